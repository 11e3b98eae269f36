"""Executors of a login node: one job per call. The batch service runs in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from remoteexec_server.store import root
from remoteexec_server.wire.resources import Resources

from ..engine.caching import Caching
from ..engine.client import InProcess
from .batch import BatchExecutor

__all__ = ["FluxClusterExecutor", "LoginNodeExecutor", "SlurmClusterExecutor", "TestClusterExecutor"]


class LoginNodeExecutor(BatchExecutor):
    """Each call is a job, submitted from this machine; made by its subclasses.

    Args:
        resource_dict: what every call asks for unless it says otherwise; see `read_resources`.
        cache_directory: where task files go, on a file system that the compute nodes share; `$SCRATCH/remoteexec` or
            `~/.remoteexec` if None. It must be the user's alone. If given, results are kept there, and looked for
            before a call is run: see docs/cache.md.
        cache_errors: keep what calls raised, too.
        pysqa_config_directory: with a `queue.yaml` and the templates it names, whose limits hold; see
            docs/configuration.md.
        poll_s: seconds between two questions to the scheduler, for all jobs at once, while results are missing.
        wait: whether leaving the `with` block waits for all tasks.
    """

    SCHEDULER: ClassVar[str]

    def __init__(
        self,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        *,
        cache_directory: str | None = None,
        cache_errors: bool = False,
        pysqa_config_directory: str | None = None,
        poll_s: float = 30.0,
        wait: bool = True,
    ) -> None:
        where = cache_directory or root.DEFAULT
        caching = Caching(cache_directory, cache_errors, otherwise=where)
        super().__init__(
            lambda hello: InProcess(hello, where, self.SCHEDULER),
            resource_dict,
            poll_s,
            wait,
            caching,
            _absolute(pysqa_config_directory),
        )


def _absolute(directory: str | None) -> str | None:
    """A script may change its directory before the first call."""
    return None if directory is None else os.path.abspath(os.path.expandvars(os.path.expanduser(directory)))


class SlurmClusterExecutor(LoginNodeExecutor):
    """Each call is a SLURM job, submitted from this machine, which is a login node. See LoginNodeExecutor."""

    SCHEDULER = "slurm"


class FluxClusterExecutor(LoginNodeExecutor):
    """Each call is a job of the Flux instance that `flux` talks to here: the system's, or the one that FLUX_URI names.

    See LoginNodeExecutor.
    """

    SCHEDULER = "flux"


class TestClusterExecutor(BatchExecutor):
    """Files and jobs as on a cluster, with processes of this machine: no scheduler needed.

    See LoginNodeExecutor.
    """

    __test__ = False  # pytest takes classes of this name for tests

    def __init__(
        self,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        *,
        cache_directory: str | None = None,
        cache_errors: bool = False,
        poll_s: float = 1.0,
        wait: bool = True,
    ) -> None:
        where = cache_directory or root.DEFAULT
        caching = Caching(cache_directory, cache_errors, otherwise=where)
        super().__init__(lambda hello: InProcess(hello, where, "local"), resource_dict, poll_s, wait, caching)
