"""concurrent.futures for scientists: run each call where it belongs, from this machine to a cluster behind SSH."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from remoteexec_server.checkpoint import checkpoint
from remoteexec_server.growing import current_executor
from remoteexec_server.worker import worker_id

from ._version import __version__
from .executors.base import BaseExecutor
from .executors.single_node import SingleNodeExecutor
from .futures import TaskFuture, TaskInfo
from .resources import ResourceError, Resources, Retry
from .selections import get_item_from_future, split_future

if TYPE_CHECKING:
    from .engine.cache import get_cache_data, get_future_from_cache
    from .engine.sharing import Shared
    from .executors.cluster import FluxClusterExecutor, SlurmClusterExecutor, TestClusterExecutor
    from .executors.flux_job import FluxJobExecutor
    from .executors.left_tasks import get_cache_data_queue, terminate_task_in_cache, terminate_tasks_in_cache
    from .executors.remote import RemoteExecutor
    from .executors.slurm_job import SlurmJobExecutor

__all__ = [
    "BaseExecutor",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "RemoteExecutor",
    "ResourceError",
    "Resources",
    "Retry",
    "Shared",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
    "TaskFuture",
    "TaskInfo",
    "TestClusterExecutor",
    "__version__",
    "checkpoint",
    "current_executor",
    "get_cache_data",
    "get_cache_data_queue",
    "get_future_from_cache",
    "get_item_from_future",
    "split_future",
    "terminate_task_in_cache",
    "terminate_tasks_in_cache",
    "worker_id",
]

_LATE = {
    "FluxClusterExecutor": "executors.cluster",
    "FluxJobExecutor": "executors.flux_job",
    "RemoteExecutor": "executors.remote",
    "Shared": "engine.sharing",
    "SlurmClusterExecutor": "executors.cluster",
    "SlurmJobExecutor": "executors.slurm_job",
    "TestClusterExecutor": "executors.cluster",
    "get_cache_data": "engine.cache",
    "get_cache_data_queue": "executors.left_tasks",
    "get_future_from_cache": "engine.cache",
    "terminate_task_in_cache": "executors.left_tasks",
    "terminate_tasks_in_cache": "executors.left_tasks",
}
"""Where names are that are imported when they are first asked for: who has no cluster need not wait for them."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    globals()[name] = found
    return found
