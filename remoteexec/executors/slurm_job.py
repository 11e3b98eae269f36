"""The executor of a SLURM allocation: all its nodes behind one pool."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from remoteexec_server.wire.resources import Resources, Retry

from ..allocation.base import Allocation, Step
from ..allocation.slurm import allocation
from ..allocation.steps import SlurmSteps, Steps, check_options
from ..pool.ledger import Need
from .allocated import AllocatedExecutor, Pmi, own_parameters

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SlurmJobExecutor"]

log = logging.getLogger("remoteexec")

_NOT_OF_THE_STEP = (
    *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
    *("SLURM_NTASKS_PER_GPU", "SLURM_DISTRIBUTION"),
)
_OPTIONS_TOLD = "slurm_cmd_args of a call"
_OURS = ("--export=ALL", "--input=all", "--output=all", "--error=all")
"""Whatever the job says of its own: agents have the caller's environment, and are told by standard input what to do."""
_NARROWER = (
    "SLURM_CPUS_PER_TASK",
    "SLURM_EXACT",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_NODE",
    "SLURM_CPU_BIND",
    "SLURM_GPUS_PER_TASK",
)
"""What the job was asked for would give the agents' step less than the job has."""


class SlurmJobExecutor(AllocatedExecutor):
    """Runs calls on all nodes of the SLURM allocation that this process is in (`salloc`, `sbatch`, a task of a job).

    One step starts an agent on each node; from then on SLURM is not asked any more, but for MPI functions whose ranks
    are on several nodes. A call takes cores, GPUs and, if it says `memory_max`, memory of one node; of several, if it
    is an MPI function that no node can hold, or says `num_nodes`: these ranks are a step of `srun`. Agents connect to
    this process by TLS 1.3 with a certificate of the session, which both ends have to show, and such ranks to theirs.

    Args:
        max_workers: see SingleNodeExecutor.
        pmi_mode: how `srun` and the ranks find each other, its `--mpi`; found out if not given. Given, ranks on a
            single node are started by `srun`, too, and otherwise by mpiexec.
        hostname_localhost: agents connect to 127.0.0.1, and nobody else can: for an allocation of this one machine.
        resource_dict: see SingleNodeExecutor; `slurm_cmd_args` here are further options of the agents' `srun`, and as
            those of a call of the one that starts its ranks.
        pin_cores: see AllocatedExecutor.

    All others are those of SingleNodeExecutor; the ones that executorlib has, too, come first and in its order.

    Raises:
        NoAllocation: (a ValueError) this process is in no allocation.
        ValueError: see SingleNodeExecutor.
    """

    _heeded = ("slurm_cmd_args", "num_nodes")

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | os.PathLike[str] | None = None,
        max_cores: int | None = None,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        pmi_mode: Pmi | None = None,
        hostname_localhost: bool | None = None,
        block_allocation: bool = False,
        init_function: Callable[[], Mapping[str, Any] | None] | None = None,
        disable_dependencies: bool = False,
        refresh_rate: float = 0.01,
        plot_dependency_graph: bool | Literal["after"] = False,
        plot_dependency_graph_filename: str | Path | None = None,
        export_workflow_filename: str | Path | None = None,
        log_obj_size: bool = False,
        wait: bool = True,
        restart_limit: int = 0,
        openmpi_oversubscribe: bool = False,
        *,
        cache_errors: bool = False,
        preload: Sequence[str] = (),
        debug: bool = False,
        show_output: bool | Literal["prefix"] | None = None,
        retries: Retry | None = None,
        pin_cores: bool = True,
    ) -> None:
        given = own_parameters(locals())
        super().__init__(**given)

    def _check(self, need: Need, resources: Resources) -> None:
        check_options(resources.slurm_cmd_args)
        super()._check(need, resources)

    def _tell_in_vain(self, resources: Resources) -> None:
        super()._tell_in_vain(resources)
        options = resources.slurm_cmd_args
        if resources.cores == 1 and options != self._defaults.slurm_cmd_args and _OPTIONS_TOLD not in self._told:
            self._told.add(_OPTIONS_TOLD)
            log.warning(
                "slurm_cmd_args=%r has no effect: srun starts the ranks of calls with cores above 1, and no others; in "
                "the executor's resource_dict they are options of the step of all agents",
                list(options),
            )

    def _needs_step(self, resources: Resources) -> bool:
        return resources.slurm_cmd_args != () or super()._needs_step(resources)

    def _new_steps(self) -> Steps:
        return SlurmSteps(self._allocation)

    def _find_allocation(self) -> Allocation:
        return allocation()

    def _step(self) -> Step:
        count = len(self._allocation.nodes)
        argv = ["srun", f"--jobid={self._allocation.job}", f"--nodes={count}", f"--ntasks={count}"]
        argv += ["--ntasks-per-node=1", "--overlap", "--mpi=none", "--mem=0", *_OURS]
        argv += ["--no-kill", "--wait=0", "--kill-on-bad-exit=0", "--quiet", *self._defaults.slurm_cmd_args]
        return Step(argv, dict.fromkeys((*_NOT_OF_THE_STEP, *_NARROWER)))
