"""What processes leave behind them: on Linux it is ended with the worker whose call has started it.

    caller ─ zygote ─ worker ─ what its call starts, in whatever group or session; orphans of that become the worker's
                    ◀─ orphans of a worker that is gone: the zygote has no other children, and kills these

A process in a session of its own is in no group that could be killed. But the kernel gives an orphan to the next above
it that has asked for orphans (PR_SET_CHILD_SUBREAPER), and workers and zygote have. So whose they are is known without
marks in their environment, which they may clear. A worker that the zygote cannot kill any more, since somebody has
killed that, is killed by the kernel (PR_SET_PDEATHSIG); what it has started is then left.

Source: prctl(2), proc(5); Linux 3.5 and, for PDEATHSIG, older.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Container
from typing import Any

_SWEEPER = "remoteexec-swee"
"""The kernel keeps 15 bytes."""
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36
_prctl: Callable[..., Any] | None = None


def prepare() -> None:
    """Find what the kernel is asked with; once, before there are workers, which need not do it each."""
    global _prctl
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):  # a Python without ctypes, or an odd C library
        import ctypes

        _prctl = ctypes.CDLL(None).prctl


def adopt() -> None:
    """From now on, orphans of those that this process starts are its children."""
    if _prctl is not None:
        _prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with(parent: int) -> None:
    """End this process when its parent has ended, who is this one."""
    if _prctl is not None:
        _prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def children() -> list[int]:
    """Of this process, which has one thread; none where the kernel does not tell."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:  # no /proc, or a kernel that was built without
        return []


def be_sweeper() -> None:
    """This process is one that ends what a worker's ranks are, when that is gone, and then itself; see `sweeper`."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(_SWEEPER)


def end_children(but: Container[int] = ()) -> None:
    """Kill children, but for these; not as long as there are sweepers, which have to see what they sweep."""
    found = [pid for pid in children() if pid not in but]
    if not any(_is_sweeper(pid) for pid in found):
        for pid in found:
            _kill(pid)


def _is_sweeper(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n") == _SWEEPER
    except OSError:  # it has ended
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
