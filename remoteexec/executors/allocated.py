"""What executors of an allocation share, whoever gave it: many nodes behind one pool."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from remoteexec_server.wire.resources import Resources

from ..allocation.base import Allocation, Step
from ..allocation.launcher import AllocationLauncher
from ..allocation.nodes import ManyNodes
from ..engine.sharing import Shared
from ..pool.fresh import FreshWorkers
from ..pool.kept import KeptWorkers
from ..pool.ledger import Ledger, Need, TooLarge
from ..pool.tasks import GpuVariables, PoolTask
from ..resources import with_defaults
from .base import BaseExecutor
from .single_node import SingleNodeExecutor

__all__ = ["AllocatedExecutor", "Pmi"]

T = TypeVar("T")
_GIB = 2**30
_CUDA = "CUDA_VISIBLE_DEVICES"
_KEPT_HERE = "workers that are kept have all their MPI ranks on one node; leave out block_allocation for several"
Pmi = Literal["pmi1", "pmi2", "pmix"]


class AllocatedExecutor(SingleNodeExecutor):
    """Runs calls on all nodes of an allocation, where an agent on each starts the workers.

    A subclass says what the allocation has, `_find_allocation`, and what starts the agents, `_step`; and, if it can
    start MPI ranks on several nodes, `_spreads`.

    Args:
        max_workers: see SingleNodeExecutor.
        pmi_mode: checked here; what it does, the scheduler's executor says.
        hostname_localhost: agents connect to 127.0.0.1, and nobody else can: for an allocation of this one machine.
        resource_dict: see SingleNodeExecutor.
        options: all that SingleNodeExecutor takes.

    Raises:
        NoAllocation: (a ValueError) this process is in no allocation.
        ValueError: see SingleNodeExecutor.
    """

    _spreads = False  # MPI ranks over several nodes

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        pmi_mode: Pmi | None = None,
        hostname_localhost: bool | None = None,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **options: Any,
    ) -> None:
        if pmi_mode not in (None, "pmi1", "pmi2", "pmix"):
            raise ValueError(f"pmi_mode must be 'pmi1', 'pmi2' or 'pmix', not {pmi_mode!r}")
        resource_dict = with_defaults(resource_dict, pmi_mode=pmi_mode)
        self._allocation = self._find_allocation()
        self._localhost = bool(hostname_localhost)
        super().__init__(max_workers, hostname_localhost=hostname_localhost, resource_dict=resource_dict, **options)

    @property
    def allocation(self) -> Allocation:
        """What the scheduler gave this job."""
        return self._allocation

    # ---- of each scheduler ----

    @abstractmethod
    def _find_allocation(self) -> Allocation:
        """What there is.

        Raises:
            NoAllocation: nothing.
        """

    @abstractmethod
    def _step(self) -> Step:
        """What starts the agents."""

    # ---- of all ----

    def share(self, obj: T) -> Shared[T]:
        """See BaseExecutor: not possible on many nodes."""
        return BaseExecutor.share(self, obj)

    def _all_cores(self) -> int:
        return self._allocation.cores

    def _find_gpus(self) -> tuple[list[str], GpuVariables]:
        names = {gpu: gpu for node in self._allocation.nodes for gpu in node.gpus}
        return list(names), {_CUDA: names} if names else {}

    def _new_ledger(self) -> Ledger[PoolTask]:
        return Ledger(None, tasks=self._max_workers, room=ManyNodes(self._allocation.nodes, self._max_cores))

    def _takes(self, resources: Resources) -> Need:
        cores, gpus, *_ = super()._takes(resources)
        memory_bytes = int((resources.memory_max_gb or 0) * _GIB)
        if not self._spreads or resources.cores == 1:
            return Need(cores, gpus, memory_bytes)
        nodes = resources.num_nodes or 0
        if cores == resources.cores * resources.threads_per_core:
            return Need(cores, gpus, memory_bytes, resources.cores, nodes)
        parts = max(1, cores // resources.threads_per_core) if not gpus else 1  # ranks that share cores
        return Need(cores - cores % parts, gpus, memory_bytes, parts, nodes)

    def _check(self, need: Need, resources: Resources) -> None:
        if self._spreads and (resources.num_nodes or 1) > resources.cores:
            raise TooLarge(
                f"num_nodes={resources.num_nodes} with cores={resources.cores}: each node gets one rank at least, so "
                "cores has to be as large"
            )
        super()._check(need, resources)
        if self._kept:
            self._ledger.check(need)

    def _workers(self, most: int | None) -> int:
        """Kept workers: as many as the nodes have room for, each on one node."""
        each = self._need.cores
        if self._need.nodes > 1:
            raise TooLarge(f"num_nodes={self._need.nodes} with block_allocation=True: {_KEPT_HERE}")
        room = sum(node.cores // each for node in self._allocation.nodes)
        if self._max_cores is not None:
            room = min(room, self._max_cores // each)
        if room < 1:
            raise TooLarge(
                f"a worker takes {each} cores, and no node of the allocation has them: none could start; {_KEPT_HERE}"
            )
        return min(room, most or room)

    def _worker_gpus(self, workers: int) -> list[tuple[str, ...]]:
        if self._need.gpus:
            raise ValueError(
                "gpus_per_core with block_allocation=True is not possible on many nodes: leave out block_allocation, "
                "each call then gets GPUs of its own"
            )
        return []

    def _start(self) -> FreshWorkers | KeptWorkers:
        pool = super()._start()
        pool.ends_at = self._allocation.ends_at
        return pool

    def _launcher(self, preload: Sequence[str]) -> AllocationLauncher:
        return AllocationLauncher(
            self._allocation, self._step(), localhost=self._localhost, preload=preload, cores=self._need.cores
        )
