"""An executor for a test: where the test fails, nobody waits for tasks that never end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from remoteexec import RemoteExecutor
from remoteexec.config.model import ClusterConfig


@contextmanager
def running(config: ClusterConfig, **options: Any) -> Iterator[RemoteExecutor]:
    """`with RemoteExecutor(config, **options)`, which waits at its end only if the test has passed so far."""
    exe = RemoteExecutor(config, **options)
    exe.__enter__()
    try:
        yield exe
    except BaseException:
        exe.shutdown(wait=False, cancel_futures=True)
        raise
    exe.shutdown()
