"""The executor of a Flux instance: all its nodes behind one pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from remoteexec_server.wire.resources import Resources, Retry

from .. import errors
from ..allocation.base import Allocation, Step
from ..allocation.flux import allocation, job_of, submit_agents
from ..allocation.launcher import agent_command
from ..allocation.steps import FluxSteps, Steps
from ..pool.mpi import Launch
from .allocated import AllocatedExecutor, Pmi, own_parameters

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FluxJobExecutor"]

_LOGS = ("flux.out", "flux.err")


class FluxJobExecutor(AllocatedExecutor):
    """Runs calls on all nodes of the Flux instance that this process is in (`flux alloc`, `flux batch`, `flux start`).

    `flux exec` starts an agent on each node, which is no job and takes no cores; from then on Flux is not asked any
    more, but for MPI functions whose ranks are on several nodes. In a job that is no instance of its own (`flux run`,
    `flux submit`) it has what that job has. A call takes cores and GPUs of one node; of several, if it is an MPI
    function that no node can hold, or says `num_nodes`: these ranks are a job of `flux run`, which has as many cores
    as the call has, and waits for no other. Agents connect to this process by TLS 1.3 with a certificate of the
    session, which both ends have to show, and such ranks to theirs.

    Args:
        max_workers: see SingleNodeExecutor.
        pmi_mode: how Flux and the ranks find each other, its `-o pmi`: "pmi1" and "pmi2" are its "simple" server,
            "pmix" needs its plugin. Given, ranks on a single node are started by `flux run`, too, else by mpiexec.
        flux_executor: a `flux.job.FluxExecutor` of the instance that FLUX_URI names, as executorlib takes it: the
            agents are a job that is submitted through it, which takes all nodes of the instance, whole, from the first
            call until this executor ends. It stays open. With nesting the calls are jobs, and agents none.
        flux_executor_nesting: each call, or each kept worker, runs in a Flux instance of its own, which has the call's
            cores and GPUs, so that it can submit jobs there or open a FluxJobExecutor; `cores` are then no MPI ranks.
        flux_log_files: what agents and calls print goes to `flux.out` and `flux.err` in the current directory, at
            their ends.
        hostname_localhost: agents connect to 127.0.0.1, and nobody else can: for an instance on this one machine.
        resource_dict: see SingleNodeExecutor.
        pin_cores: see AllocatedExecutor.

    All others are those of SingleNodeExecutor; the ones that executorlib has, too, come first and in its order.

    Raises:
        NoAllocation: (a ValueError) this process is in no instance.
        TypeError: `flux_executor` is none.
        ValueError: see SingleNodeExecutor; nesting, or a `flux_executor`, in a job that is no instance.
    """

    _heeded = ("num_nodes",)

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | os.PathLike[str] | None = None,
        max_cores: int | None = None,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        pmi_mode: Pmi | None = None,
        flux_executor: Any = None,
        flux_executor_nesting: bool = False,
        flux_log_files: bool = False,
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
        given = own_parameters(locals(), besides=("flux_executor", "flux_executor_nesting", "flux_log_files"))
        _check_executor(flux_executor)
        asked = "flux_executor_nesting=True" if flux_executor_nesting else "flux_executor"
        if (flux_executor_nesting or flux_executor is not None) and job_of(os.environ) is not None:
            raise ValueError(
                f"{asked} needs a Flux instance for this job, where jobs can be submitted: start the script with "
                "`flux batch` or `flux alloc`, or with `flux start` inside the job"
            )
        self._nesting, self._executor = flux_executor_nesting, flux_executor
        self._logs = (os.path.abspath(_LOGS[0]), os.path.abspath(_LOGS[1])) if flux_log_files else None
        super().__init__(**given)

    @property
    def info(self) -> dict[str, Any]:
        """See BaseExecutor."""
        return {
            **super().info,
            "flux_executor": self._executor,
            "flux_executor_nesting": self._nesting,
            "flux_log_files": self._logs is not None,
        }

    def _find_allocation(self) -> Allocation:
        return allocation()

    def _step(self) -> Step:
        identify = ["flux", "getattr", "rank"]
        if self._executor is not None and not self._nesting:  # else each call is a job, for which there has to be room
            try:
                job = submit_agents(self._executor, agent_command(), len(self._allocation.nodes))
            except Exception as exc:  # whatever another's code raises
                raise errors.RunnerMissing(f"flux_executor={self._executor!r} takes no job: {exc!r}") from exc
            attach = ["flux", "job", "attach", job]
            return Step(attach, {}, identify=identify, logs=self._logs, started=True, end=["flux", "cancel", job])
        ranks = ",".join(str(node.alias) for node in self._allocation.nodes)
        of = job_of(os.environ)
        argv = ["flux", "exec", "--quiet", *(["--jobid", of] if of is not None else ["--rank", ranks])]
        return Step(argv, {}, identify=identify, logs=self._logs)

    @property
    def _spreads(self) -> bool:
        return not self._nesting

    def _new_steps(self) -> Steps:
        return FluxSteps(self._allocation)

    def _launch_of(self, resources: Resources) -> Launch | None:
        if not self._nesting:
            return super()._launch_of(resources)
        need = self._takes(resources)
        argv = ["flux", "run", "--quiet", "-N1", "-n1", f"-c{need.cores}", *([f"-g{need.gpus}"] if need.gpus else [])]
        return 1, [*argv, "--requires=rank:{node}", "flux", "start"], False, True


def _check_executor(given: Any) -> None:
    """Refuse what is no `flux.job.FluxExecutor`; it is known by what it does, since Flux may be of another Python."""
    if given is not None and not all(callable(getattr(given, name, None)) for name in ("submit", "attach")):
        raise TypeError(f"flux_executor must be a flux.job.FluxExecutor(), not {given!r}")
