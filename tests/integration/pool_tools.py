"""What the tests of pools share: executors in both modes, small functions to call, and a look at processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor

MODES = [pytest.param(False, id="fresh"), pytest.param(True, id="kept")]
both_modes = pytest.mark.parametrize("kept", MODES)


def executor(kept: bool, workers: int = 2, **settings: Any) -> SingleNodeExecutor:
    return SingleNodeExecutor(workers, block_allocation=kept, **settings)


def eventually(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until something is true; fail if it does not get so."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return found + [one for child in found for one in descendants(child)]


def add_one(x: int) -> int:
    return x + 1


def own_pid(*_: Any) -> int:
    return os.getpid()


def sleep_after_saying(path: str, seconds: float = 60.0) -> int:
    """Sleep, after writing one's pid to a file."""
    Path(path + ".part").write_text(str(os.getpid()))
    os.rename(path + ".part", path)
    time.sleep(seconds)
    return os.getpid()


def kill_self(how: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), how)
