"""Executors of a login node: one job per call. The batch service runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from remoteexec_server.store import root
from remoteexec_server.wire.resources import Resources

from ..engine.caching import Caching
from ..engine.client import InProcess
from .batch import BatchExecutor
from .pilots import PilotWish

__all__ = ["SlurmClusterExecutor", "TestClusterExecutor"]


class SlurmClusterExecutor(BatchExecutor):
    """Each call is a SLURM job, submitted from this machine, which is a login node.

    Args:
        resource_dict: what every call asks for unless it says otherwise; see `read_resources`.
        cache_directory: where task files go, on a file system that the compute nodes share; `$SCRATCH/remoteexec` or
            `~/.remoteexec` if None. It must be the user's alone. If given, results are kept there, and looked for
            before a call is run: see docs/cache.md.
        cache_errors: keep what calls raised, too.
        poll_s: seconds between two `squeue`, for all jobs at once, asked only while results are missing.
        wait: whether leaving the `with` block waits for all tasks.
        block_allocation: run tasks in `max_workers` jobs, each of which keeps a worker, instead of one job each.
        max_workers: see block_allocation.
        init_function: runs once in each worker; the dictionary it returns fills parameters of later calls that have
            those names and were not given.
        idle_time_s: seconds without anything to do after which such a job ends.
    """

    def __init__(
        self,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        *,
        cache_directory: str | None = None,
        cache_errors: bool = False,
        poll_s: float = 30.0,
        wait: bool = True,
        block_allocation: bool = False,
        max_workers: int | None = None,
        init_function: Callable[[], Mapping[str, Any] | None] | None = None,
        idle_time_s: float = 60.0,
    ) -> None:
        where = cache_directory or root.DEFAULT
        caching = Caching(cache_directory, cache_errors, otherwise=where)
        pilots = PilotWish(block_allocation, max_workers, init_function, idle_time_s)
        super().__init__(lambda hello: InProcess(hello, where, "slurm"), resource_dict, poll_s, wait, caching, pilots)


class TestClusterExecutor(BatchExecutor):
    """Files and jobs as on a cluster, with processes of this machine: no scheduler needed.

    See SlurmClusterExecutor.
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
        block_allocation: bool = False,
        max_workers: int | None = None,
        init_function: Callable[[], Mapping[str, Any] | None] | None = None,
        idle_time_s: float = 60.0,
    ) -> None:
        where = cache_directory or root.DEFAULT
        caching = Caching(cache_directory, cache_errors, otherwise=where)
        pilots = PilotWish(block_allocation, max_workers, init_function, idle_time_s)
        super().__init__(lambda hello: InProcess(hello, where, "local"), resource_dict, poll_s, wait, caching, pilots)
