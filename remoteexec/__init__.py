"""concurrent.futures for scientists: run each call where it belongs, from this machine to a cluster behind SSH."""

from __future__ import annotations

from ._version import __version__
from .executors.base import BaseExecutor
from .executors.cluster import SlurmClusterExecutor, TestClusterExecutor
from .executors.remote import RemoteExecutor
from .futures import TaskFuture
from .resources import ResourceError, Resources

__all__ = [
    "BaseExecutor",
    "RemoteExecutor",
    "ResourceError",
    "Resources",
    "SlurmClusterExecutor",
    "TaskFuture",
    "TestClusterExecutor",
    "__version__",
]
