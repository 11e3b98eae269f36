"""Our executors in the form that CPython's own tests construct them in, importable by the scripts these run."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Any

import remoteexec
from tests.contract import in_allocation  # noqa: F401  # which may say what SingleNodeExecutor means
from tests.contract.login_node import LOGIN_NODE


class Fresh(remoteexec.SingleNodeExecutor):
    """A process for each call."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None) -> None:
        super().__init__(max_workers)


class Kept(remoteexec.SingleNodeExecutor):
    """Workers that are kept."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None) -> None:
        super().__init__(max_workers, block_allocation=True)


class Files(remoteexec.TestClusterExecutor):
    """Jobs and files; it has no number of workers."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None) -> None:
        directory = tempfile.mkdtemp(prefix="remoteexec-contract-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        super().__init__(cache_directory=directory, poll_s=0.1)


class Slurm(remoteexec.SlurmClusterExecutor):
    """Jobs of SLURM, submitted by the cluster's user."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None) -> None:
        directory = tempfile.mkdtemp(prefix="contract-", dir=os.environ[LOGIN_NODE])
        super().__init__(cache_directory=directory, poll_s=1.0, submits_per_minute=6000)
