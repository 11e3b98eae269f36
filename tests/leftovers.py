"""Which processes a test has left behind: they have a mark in their environment, as all that those start."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def living(mark: str) -> list[str]:
    """Command lines of the processes that have the mark in their environment; zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(entry.name) != os.getpid() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def gone(mark: str, word: str = "", within_s: float = 5.0) -> list[str]:
    """What is left of the marked processes with that word in their command lines, after some time at most."""
    end = time.monotonic() + within_s
    while (left := [line for line in living(mark) if word in line]) and time.monotonic() < end:
        time.sleep(0.05)
    return left
