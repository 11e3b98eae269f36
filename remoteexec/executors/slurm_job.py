"""The executor of a SLURM allocation: all its nodes behind one pool."""

from __future__ import annotations

from ..allocation.base import Allocation, Step
from ..allocation.slurm import allocation
from .allocated import AllocatedExecutor

__all__ = ["SlurmJobExecutor"]

_NOT_OF_THE_STEP = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
_NARROWER = ("SLURM_CPUS_PER_TASK", "SLURM_EXACT", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE", "SLURM_CPU_BIND")
"""What the job was asked for would give the agents' step less than the job has."""


class SlurmJobExecutor(AllocatedExecutor):
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

    _heeded = ("slurm_cmd_args",)

    def _find_allocation(self) -> Allocation:
        return allocation()

    def _step(self) -> Step:
        count = len(self._allocation.nodes)
        argv = ["srun", f"--jobid={self._allocation.job}", f"--nodes={count}", f"--ntasks={count}"]
        argv += ["--ntasks-per-node=1", "--overlap", "--mpi=none", "--mem=0"]
        argv += ["--no-kill", "--wait=0", "--kill-on-bad-exit=0", "--quiet", *self._defaults.slurm_cmd_args]
        return Step(argv, dict.fromkeys((*_NOT_OF_THE_STEP, *_NARROWER)))
