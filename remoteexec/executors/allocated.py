"""What executors of an allocation share, whoever gave it: many nodes behind one pool."""

from __future__ import annotations

import logging
import secrets
import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from remoteexec_server.wire import pooled
from remoteexec_server.wire.resources import Resources

from .. import errors
from ..allocation.base import Allocation, Step
from ..allocation.kept import places, spread_places
from ..allocation.launcher import AllocationLauncher
from ..allocation.nodes import ManyNodes, Place
from ..allocation.pinning import PinnedNodes
from ..allocation.remaining import WARN_S, Remaining, left_s
from ..allocation.steps import Steps, Way
from ..engine.sharing import Sharing
from ..pool.fresh import FreshWorkers
from ..pool.kept import KeptWorkers
from ..pool.ledger import Ledger, Need, TooLarge
from ..pool.mpi import Launch
from ..pool.tasks import GpuVariables, PoolTask
from ..resources import with_defaults
from .single_node import SingleNodeExecutor

__all__ = ["AllocatedExecutor", "Pmi"]

log = logging.getLogger("remoteexec")
_GIB = 2**30
_CUDA = "CUDA_VISIBLE_DEVICES"
Pmi = Literal["pmi1", "pmi2", "pmix"]


class AllocatedExecutor(SingleNodeExecutor):
    """Runs calls on all nodes of an allocation, where an agent on each starts the workers.

    A subclass says what the allocation has, `_find_allocation`, what starts the agents, `_step`, and what starts MPI
    ranks on several nodes, `_new_steps`.

    Args:
        max_workers: see SingleNodeExecutor.
        pmi_mode: how the scheduler and MPI ranks find each other; found out if not given. Given, ranks on a single node
            are started by the scheduler, too, and otherwise by mpiexec.
        hostname_localhost: agents connect to 127.0.0.1, and nobody else can: for an allocation of this one machine.
        pin_cores: calls that run at once have cores of their own, where a node has as many as the allocation says.
        resource_dict: see SingleNodeExecutor.
        options: all that SingleNodeExecutor takes.

    Raises:
        NoAllocation: (a ValueError) this process is in no allocation.
        ValueError: see SingleNodeExecutor.
    """

    _where = "the allocation"

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        pmi_mode: Pmi | None = None,
        hostname_localhost: bool | None = None,
        pin_cores: bool = True,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **options: Any,
    ) -> None:
        if pmi_mode not in (None, "pmi1", "pmi2", "pmix"):
            raise ValueError(f"pmi_mode must be 'pmi1', 'pmi2' or 'pmix', not {pmi_mode!r}")
        resource_dict = with_defaults(resource_dict, pmi_mode=pmi_mode)
        self._allocation = self._find_allocation()
        self._session = secrets.token_hex(8)
        self._carrier: AllocationLauncher | None = None  # under the lock, as what is shared
        self._localhost, self._pin = bool(hostname_localhost), pin_cores
        super().__init__(max_workers, hostname_localhost=hostname_localhost, resource_dict=resource_dict, **options)

    @property
    def allocation(self) -> Allocation:
        """What the scheduler gave this job."""
        return self._allocation

    @property
    def info(self) -> dict[str, Any]:
        """See BaseExecutor."""
        pmi = self._defaults.pmi_mode
        return {**super().info, "pmi_mode": pmi, "hostname_localhost": self._localhost, "pin_cores": self._pin}

    @property
    def remaining(self) -> Remaining:
        """What has not ended, and how long the allocation lasts; a minute before its end that is logged, too."""
        pool = self._pool
        running, waiting = pool.counted() if pool is not None else (0, 0)
        with self._lock:
            inputs = max(0, len(self._open) - running - waiting)
        refused = pool.refused if pool is not None else 0
        return Remaining(left_s(self._allocation.ends_at), running, waiting, inputs, refused)

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

    @abstractmethod
    def _new_steps(self) -> Steps:
        """What starts MPI ranks on several nodes."""

    @property
    def _spreads(self) -> bool:
        """Whether `cores` are MPI ranks, which may be on several nodes."""
        return True

    def _needs_step(self, resources: Resources) -> bool:
        """Whether its ranks are started by a step on a single node, too."""
        launch = self._launch_of(resources)
        return resources.pmi_mode is not None or launch is None or not launch[1]

    # ---- of all ----

    def _all_cores(self) -> int:
        return self._allocation.cores

    def _find_gpus(self) -> tuple[list[str], GpuVariables]:
        names = {gpu: gpu for node in self._allocation.nodes for gpu in node.gpus}
        return list(names), {_CUDA: names} if names else {}

    def _new_ledger(self) -> Ledger[PoolTask]:
        return Ledger(None, tasks=self._max_workers, room=self._room(is_open=False))

    def _room(self, is_open: bool) -> ManyNodes:
        return (PinnedNodes if self._pin else ManyNodes)(self._allocation.nodes, self._max_cores, is_open)

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

    def _with_room(self, task: PoolTask, resources: Resources) -> Resources:
        """See SingleNodeExecutor: what is more than any node has is cut to that, where it is to be on one."""
        most = max(node.memory_bytes or 0 for node in self._allocation.nodes)
        several = self._spreads and resources.cores > 1
        if most and resources.memory_max_gb is not None and not several:
            resources = replace(resources, memory_max_gb=min(resources.memory_max_gb, most / _GIB))
        return super()._with_room(task, resources)

    def _check(self, need: Need, resources: Resources) -> None:
        if self._spreads and (resources.num_nodes or 1) > resources.cores:
            raise TooLarge(
                f"num_nodes={resources.num_nodes} with cores={resources.cores}: each node gets one rank at least, so "
                "cores has to be as large"
            )
        super()._check(need, resources)
        if self._kept:
            self._ledger.check(need)
        self._ways(need, resources)  # said now if there are none

    def _launch_of(self, resources: Resources) -> Launch | None:
        try:
            return super()._launch_of(resources)
        except errors.RunnerMissing:  # then a step does it
            return resources.cores, [], resources.openmpi_oversubscribe, False

    def _setup(self, resources: Resources, before: Mapping[str, str], says_threads: bool) -> pooled.Setup:
        setup = super()._setup(resources, before, says_threads)
        ways = self._ways(self._takes(resources), resources)
        if ways:
            setup["step"] = (ways, [] if self._kept and not self._is_spread else self._needs_step(resources))
        return setup

    def _ways(self, need: Need, resources: Resources) -> list[Way]:
        """How a step starts its ranks; empty if there can be none."""
        room = self._ledger.room
        assert isinstance(room, ManyNodes)
        if not self._spreads or resources.cores == 1:
            return []
        spreads = room.spreads(need) if self._kept else room.may_spread(need)
        return self._steps.ways(resources) if spreads or self._needs_step(resources) else []

    @cached_property
    def _steps(self) -> Steps:
        return self._new_steps()

    def _workers(self, most: int | None) -> int:
        """Kept workers: as many as the nodes have room for, each on one node, or on several if none can hold it."""
        need, nodes = self._need, self._allocation.nodes
        room = len(self._places)
        if self._max_cores is not None:
            room = min(room, self._max_cores // need.cores)
        if room < 1:
            raise TooLarge(
                f"a worker takes {need.cores} cores, {need.gpus} GPUs and {need.memory_bytes} bytes of memory, and no "
                f"node of the allocation has all of that within max_cores={self._max_cores}: none could start"
            )
        if most is not None and need.gpus:
            sets = room if self._is_spread else sum(len(node.gpus) // need.gpus for node in nodes)
            if most > sets:
                raise ValueError(
                    f"{most} workers with gpus_per_core={self._defaults.gpus_per_core}, and the nodes of the "
                    f"allocation have GPUs for {sets}: set max_workers to at most {sets}"
                )
        return min(room, most or room)

    def _worker_gpus(self, workers: int) -> Sequence[tuple[str, ...]]:
        return self._places if self._need.gpus or self._is_spread else []

    @property
    def _is_spread(self) -> bool:
        """Whether a kept worker is on several nodes."""
        room = self._ledger.room
        assert isinstance(room, ManyNodes)
        return self._kept and room.spreads(self._need)

    @cached_property
    def _places(self) -> list[Place]:
        """Of kept workers."""
        if self._is_spread:
            return spread_places(self._room(is_open=True), self._need)
        return places(self._allocation.nodes, self._need)

    def _start(self) -> FreshWorkers | KeptWorkers:
        pool = super()._start()
        pool.ends_at = self._allocation.ends_at
        left = left_s(pool.ends_at)
        if left is not None:
            pool.ring(max(left - WARN_S, left / 2), _Report(weakref.ref(self)))
        return pool

    def _launcher(self, preload: Sequence[str]) -> AllocationLauncher:
        self._carrier = AllocationLauncher(
            self._allocation,
            self._step(),
            localhost=self._localhost,
            preload=preload,
            places=self._places if self._kept else (),
            pinned=self._need.cores if self._pin else 0,
            session=self._session,
        )
        if self._sharing is not None:
            self._sharing.carry_by(self._carrier)
        return self._carrier

    def _new_sharing(self) -> Sharing:
        if self._here:  # calls run in this process
            return Sharing()
        sharing = Sharing(self._session)
        if self._carrier is not None:
            sharing.carry_by(self._carrier)
        return sharing


def own_parameters(found: Mapping[str, Any], besides: Sequence[str] = ()) -> dict[str, Any]:
    """What a constructor was given, of its `locals()`, to be handed on by name: each stands in its signature once."""
    return {name: value for name, value in found.items() if name not in ("self", "__class__", *besides)}


class _Report:
    """Logs what remains, if anything does; holds no executor that nobody else does."""

    def __init__(self, executor: weakref.ref[AllocatedExecutor]) -> None:
        self._executor = executor

    def __call__(self) -> None:
        executor = self._executor()
        if executor is not None and not (remaining := executor.remaining).none:
            log.warning("%s; what has not ended by then fails; the executor's `remaining` has these numbers", remaining)
