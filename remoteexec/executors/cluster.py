"""Executors of a login node: one job per call. The batch service runs in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from remoteexec_server.store import root
from remoteexec_server.wire.resources import Resources, Retry

from ..engine.cache import Pointer
from ..engine.caching import Caching
from ..engine.client import InProcess
from ..futures import TaskFuture
from ..resources import with_defaults
from ..views.views import Views
from .batch import BatchExecutor, Options
from .checks import check_number

__all__ = ["FluxClusterExecutor", "LoginNodeExecutor", "SlurmClusterExecutor", "TestClusterExecutor"]


class LoginNodeExecutor(BatchExecutor):
    """Each call is a job, submitted from this machine. The process may end: the jobs and their graph go on.

    The parameters that executorlib has, too, come first and in its order.

    Args:
        max_workers: see Options, as everything that is not listed here.
        cache_directory: where task files go, on a file system that the compute nodes share; `$SCRATCH/remoteexec` or
            `~/.remoteexec` if None. It must be the user's alone. If given, results are kept there, and looked for
            before a call is run: see docs/cache.md.
        cache_errors: keep what calls raised, too.
        resource_dict: what every call asks for unless it says otherwise; see `read_resources`.
        pysqa_config_directory: with a `queue.yaml` and the templates it names, whose limits hold; see
            docs/configuration.md.
        pmi_mode: as in `resource_dict`, for all calls; so are `openmpi_oversubscribe` and `retries`, a `Retry`.
        hostname_localhost: taken, and without effect: nothing listens.
        refresh_rate: taken, and without effect: a result is seen within a tenth of the time it took, 2 s at most.
        plot_dependency_graph: see Views, as the next three.
        plot_dependency_graph_filename: see Views.
        export_workflow_filename: see Views.
        log_obj_size: see Views.

    Raises:
        ValueError: parameters that exclude each other, or values that cannot be; names parameter and rule.
    """

    SCHEDULER: ClassVar[str]
    POLL_S: ClassVar[float] = 30.0

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | os.PathLike[str] | None = None,
        max_cores: int | None = None,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        pysqa_config_directory: str | os.PathLike[str] | None = None,
        pmi_mode: str | None = None,
        hostname_localhost: bool | None = None,
        block_allocation: bool = False,
        init_function: Callable[..., Mapping[str, Any] | None] | None = None,
        disable_dependencies: bool = False,
        refresh_rate: float = 0.01,
        plot_dependency_graph: bool | Literal["after"] = False,
        plot_dependency_graph_filename: str | Path | None = None,
        export_workflow_filename: str | Path | None = None,
        log_obj_size: bool = False,
        wait: bool = True,
        openmpi_oversubscribe: bool = False,
        *,
        cache_errors: bool = False,
        session: str | None = None,
        retries: Retry | None = None,
        submits_per_minute: float = 60.0,
        poll_s: float | None = None,
        idle_time_s: float = 60.0,
    ) -> None:
        check_number("refresh_rate", refresh_rate)
        where = str(root.absolute(cache_directory)) if cache_directory is not None else root.DEFAULT
        views = Views(plot_dependency_graph, plot_dependency_graph_filename, export_workflow_filename, log_obj_size)
        options = Options(
            max_workers=max_workers,
            max_cores=max_cores,
            session=session,
            submits_per_minute=submits_per_minute,
            poll_s=self.POLL_S if poll_s is None else poll_s,
            disable_dependencies=disable_dependencies,
            pysqa_config_directory=None
            if pysqa_config_directory is None
            else str(root.absolute(pysqa_config_directory)),
            views=views,
            wait=wait,
            block_allocation=block_allocation,
            init_function=init_function,
            idle_time_s=idle_time_s,
        )
        super().__init__(
            lambda hello: InProcess(hello, where, self.SCHEDULER),
            with_defaults(
                resource_dict, pmi_mode=pmi_mode, openmpi_oversubscribe=openmpi_oversubscribe or None, retries=retries
            ),
            options,
            Caching(None if cache_directory is None else where, cache_errors, otherwise=where),
            place=f"{self.SCHEDULER} {where}",
        )
        self._root = root.absolute(where)
        self._unheeded = {"hostname_localhost": hostname_localhost, "refresh_rate": refresh_rate}

    @property
    def info(self) -> dict[str, Any]:
        """See BaseExecutor."""
        return {**super().info, **self._unheeded}

    def _resume(self, pointer: Pointer, name: str) -> TaskFuture[Any] | None:
        there = (self._root / "sessions" / pointer.session).is_dir()  # else it was removed, and the task with it
        return super()._resume(pointer, name) if there else None


class SlurmClusterExecutor(LoginNodeExecutor):
    """Each call is a SLURM job, submitted from this machine, which is a login node. See LoginNodeExecutor."""

    SCHEDULER = "slurm"


class FluxClusterExecutor(LoginNodeExecutor):
    """Each call is a job of the Flux instance that `flux` talks to here: the system's, or the one that FLUX_URI names.

    See LoginNodeExecutor.
    """

    SCHEDULER = "flux"


class TestClusterExecutor(LoginNodeExecutor):
    """Files and jobs as on a cluster, with processes of this machine: no scheduler needed.

    Args:
        max_workers: see LoginNodeExecutor, as everything else; the order is executorlib's, whose class of this name
            has no `pysqa_config_directory` and no `pmi_mode`.
    """

    __test__ = False  # pytest takes classes of this name for tests
    SCHEDULER = "local"
    POLL_S = 1.0

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | os.PathLike[str] | None = None,
        max_cores: int | None = None,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        hostname_localhost: bool | None = None,
        block_allocation: bool = False,
        init_function: Callable[..., Mapping[str, Any] | None] | None = None,
        disable_dependencies: bool = False,
        refresh_rate: float = 0.01,
        plot_dependency_graph: bool | Literal["after"] = False,
        plot_dependency_graph_filename: str | Path | None = None,
        export_workflow_filename: str | Path | None = None,
        log_obj_size: bool = False,
        wait: bool = True,
        openmpi_oversubscribe: bool = False,
        *,
        pysqa_config_directory: str | os.PathLike[str] | None = None,
        pmi_mode: str | None = None,
        cache_errors: bool = False,
        session: str | None = None,
        retries: Retry | None = None,
        submits_per_minute: float = 60.0,
        poll_s: float | None = None,
        idle_time_s: float = 60.0,
    ) -> None:
        super().__init__(
            max_workers,
            cache_directory,
            max_cores,
            resource_dict,
            pysqa_config_directory,
            pmi_mode,
            hostname_localhost,
            block_allocation,
            init_function,
            disable_dependencies,
            refresh_rate,
            plot_dependency_graph,
            plot_dependency_graph_filename,
            export_workflow_filename,
            log_obj_size,
            wait,
            openmpi_oversubscribe,
            cache_errors=cache_errors,
            session=session,
            retries=retries,
            submits_per_minute=submits_per_minute,
            poll_s=poll_s,
            idle_time_s=idle_time_s,
        )
