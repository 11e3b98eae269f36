"""The executor of a SLURM allocation: all its nodes behind one pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from remoteexec_server.wire.resources import Resources

from ..allocation.launcher import AllocationLauncher
from ..allocation.nodes import ManyNodes
from ..allocation.slurm import Allocation, allocation
from ..pool.fresh import FreshWorkers
from ..pool.kept import KeptWorkers
from ..pool.ledger import Ledger, Need, TooLarge
from ..pool.tasks import GpuVariables, PoolTask
from .single_node import SingleNodeExecutor

__all__ = ["SlurmJobExecutor"]

_GIB = 2**30
_CUDA = "CUDA_VISIBLE_DEVICES"
_NOT_OF_THE_STEP = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
_NARROWER = ("SLURM_CPUS_PER_TASK", "SLURM_EXACT", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE", "SLURM_CPU_BIND")
"""What the job was asked for would give the agents' step less than the job has."""


class SlurmJobExecutor(SingleNodeExecutor):
    """Runs calls on all nodes of the SLURM allocation that this process is in (`salloc`, `sbatch`, a task of a job).

    One step starts an agent on each node; from then on SLURM is not asked any more. A call takes cores, GPUs and, if
    it says `memory_max`, memory of one node. Agents connect to this process by TLS 1.3 with a certificate of the
    session, which both ends have to show.

    Args:
        max_workers: see SingleNodeExecutor.
        pmi_mode: taken, and without effect: MPI ranks of a call are started by mpiexec, on one node.
        hostname_localhost: agents connect to 127.0.0.1, and nobody else can: for an allocation of this one machine.
        resource_dict: see SingleNodeExecutor; `slurm_cmd_args` here are further options of the agents' `srun`.
        options: all that SingleNodeExecutor takes.

    Raises:
        NoAllocation: (a ValueError) this process is in no allocation.
        ValueError: see SingleNodeExecutor.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        pmi_mode: Literal["pmi1", "pmi2", "pmix"] | None = None,
        hostname_localhost: bool | None = None,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **options: Any,
    ) -> None:
        if pmi_mode not in (None, "pmi1", "pmi2", "pmix"):
            raise ValueError(f"pmi_mode must be 'pmi1', 'pmi2' or 'pmix', not {pmi_mode!r}")
        self._allocation: Allocation = allocation()
        self._localhost = bool(hostname_localhost)
        super().__init__(max_workers, hostname_localhost=hostname_localhost, resource_dict=resource_dict, **options)

    @property
    def allocation(self) -> Allocation:
        """What SLURM gave this job."""
        return self._allocation

    def _all_cores(self) -> int:
        return self._allocation.cores

    def _find_gpus(self) -> tuple[list[str], GpuVariables]:
        names = {gpu: gpu for node in self._allocation.nodes for gpu in node.gpus}
        return list(names), {_CUDA: names} if names else {}

    def _new_ledger(self) -> Ledger[PoolTask]:
        return Ledger(None, tasks=self._max_workers, room=ManyNodes(self._allocation.nodes, self._max_cores))

    def _takes(self, resources: Resources) -> Need:
        cores, gpus, _ = super()._takes(resources)
        return Need(cores, gpus, int((resources.memory_max_gb or 0) * _GIB))

    def _check(self, need: Need, resources: Resources) -> None:
        super()._check(need, resources)
        if self._kept:
            self._ledger.check(need)

    def _workers(self, most: int | None) -> int:
        """Kept workers: as many as the nodes have room for, each on one node."""
        each = self._need.cores
        room = sum(node.cores // each for node in self._allocation.nodes)
        if self._max_cores is not None:
            room = min(room, self._max_cores // each)
        if room < 1:
            raise TooLarge(f"a worker takes {each} cores, and no node of the allocation has them: none could start")
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
        count = len(self._allocation.nodes)
        argv = ["srun", f"--jobid={self._allocation.job}", f"--nodes={count}", f"--ntasks={count}"]
        argv += ["--ntasks-per-node=1", "--overlap", "--mpi=none", "--mem=0"]
        argv += ["--no-kill", "--wait=0", "--kill-on-bad-exit=0", "--quiet", *self._defaults.slurm_cmd_args]
        changes = dict.fromkeys((*_NOT_OF_THE_STEP, *_NARROWER))
        return AllocationLauncher(
            *(self._allocation, argv, changes),
            localhost=self._localhost,
            preload=preload,
            cores=self._need.cores,
        )
