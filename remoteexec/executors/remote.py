"""The executor of a laptop: each call is a job on a cluster behind an SSH login."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from remoteexec_server.wire.messages import Hello
from remoteexec_server.wire.resources import Resources, Retry

from ..config.file import load_cluster
from ..config.model import ClusterConfig
from ..deploy.launch import missing, start_argv
from ..deploy.package import package_files
from ..engine.caching import Caching
from ..resources import with_defaults
from ..ssh.gateway_client import GatewayClient
from ..views.views import Views
from .batch import BatchExecutor, Options
from .checks import check_resources

__all__ = ["RemoteExecutor"]


class RemoteExecutor(BatchExecutor):
    """Each call is a job on a cluster that `remoteexec config add-cluster` knows, reached over one SSH connection.

    The connection is made by the `with` statement, or by the first call. When it breaks, it is made again, and
    nothing is lost or run twice; jobs and their dependencies go on meanwhile.

    Args:
        cluster: its name in clusters.toml, or a configuration.
        resource_dict: what every call asks for unless it says otherwise, above the `resources` of the configuration.
        retries: a `Retry`, as `resource_dict["retries"]`, for all calls.
        max_workers: see Options, as everything that is not listed here.
        plot_dependency_graph: see Views, as the next three.
        plot_dependency_graph_filename: see Views.
        export_workflow_filename: see Views.
        log_obj_size: see Views.
        password: called, once, when the cluster refused the keys and takes a password; returns it, or None. It is
            remembered for reconnections as long as the executor lives.
        config_file: instead of clusters.toml in the user's configuration directory.
        cache_directory: on this machine: results are kept there, and looked for before a call is run; see
            docs/cache.md. Task files go to the configuration's `root` on the cluster.
        cache_errors: keep what calls raised, too.
        pmi_mode: as in `resource_dict`, for all calls; so is `openmpi_oversubscribe`.

    Raises:
        ConfigError: no such cluster, or a mistake in its entry.
    """

    def __init__(
        self,
        cluster: str | ClusterConfig,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        *,
        max_workers: int | None = None,
        max_cores: int | None = None,
        session: str | None = None,
        retries: Retry | None = None,
        submits_per_minute: float = 60.0,
        disable_dependencies: bool = False,
        plot_dependency_graph: bool | Literal["after"] = False,
        plot_dependency_graph_filename: str | Path | None = None,
        export_workflow_filename: str | Path | None = None,
        log_obj_size: bool = False,
        wait: bool = True,
        password: Callable[[], str | None] | None = None,
        config_file: Path | None = None,
        block_allocation: bool = False,
        init_function: Callable[..., Mapping[str, Any] | None] | None = None,
        idle_time_s: float = 60.0,
        cache_directory: str | os.PathLike[str] | None = None,
        cache_errors: bool = False,
        pmi_mode: str | None = None,
        openmpi_oversubscribe: bool = False,
    ) -> None:
        config = cluster if isinstance(cluster, ClusterConfig) else load_cluster(cluster, config_file)
        check_resources(resource_dict)
        if not isinstance(resource_dict, Resources):
            resource_dict = {**config.resources, **(resource_dict or {})}
        resource_dict = with_defaults(
            resource_dict, pmi_mode=pmi_mode, openmpi_oversubscribe=openmpi_oversubscribe or None, retries=retries
        )
        views = Views(plot_dependency_graph, plot_dependency_graph_filename, export_workflow_filename, log_obj_size)
        options = Options(
            max_workers=max_workers,
            max_cores=max_cores,
            session=session,
            submits_per_minute=submits_per_minute,
            poll_s=_poll_s(config),
            disable_dependencies=disable_dependencies,
            pysqa_config_directory=config.pysqa_config_directory,
            views=views,
            wait=wait,
            block_allocation=block_allocation,
            init_function=init_function,
            idle_time_s=idle_time_s,
        )
        caching = Caching(cache_directory, cache_errors)
        super().__init__(
            lambda hello: client_of(config, hello, password), resource_dict, options, caching, place_of(config)
        )


def _poll_s(config: ClusterConfig) -> float:
    return config.poll_s if config.scheduler != "local" else min(config.poll_s, 1.0)


def place_of(config: ClusterConfig) -> str:
    """Names a cluster and our directory on it: see BatchExecutor."""
    return f"{config.scheduler} {config.host}:{config.root}"


def client_of(config: ClusterConfig, hello: Hello, password: Callable[[], str | None] | None = None) -> GatewayClient:
    """The way to the service on a cluster; nothing is reached yet."""
    settings = config.ssh_settings(functools.cache(password) if password is not None else None)

    def connect() -> Any:
        from ..ssh.fabric_link import FabricLink

        link = FabricLink(settings)
        link.connect()
        return link

    digest = package_files().digest

    def argv(sentinel: str) -> list[str]:
        return start_argv(config, digest, "gateway", "--scheduler", config.scheduler, "--sentinel", sentinel)

    return GatewayClient(connect, argv, lambda code, stderr: missing(code, stderr, config), hello)
