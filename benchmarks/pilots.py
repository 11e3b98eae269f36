"""What pilots do with many empty tasks, for batch.py: time for each, and how many files and directories there are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

PILOTS, MANY, INODES = 4, 2_000, 10_000


def same(value: Any) -> Any:
    return value


def pilots(directory: Path) -> dict[str, float]:
    """Milliseconds a task of 2,000 once four pilots run; then all that a session of 10,000 tasks has in it."""
    from remoteexec import SlurmClusterExecutor

    os.environ["SCRATCH"] = str(directory)  # where task files go; a cache_directory would keep the results, too
    options: dict[str, Any] = {"block_allocation": True, "max_workers": PILOTS, "resource_dict": {"memory_max": 0.2}}
    with SlurmClusterExecutor(**options) as exe:
        list(exe.map(time.sleep, [0.5] * PILOTS))  # all of them run
        began = time.perf_counter()
        assert [future.result() for future in [exe.submit(same, n) for n in range(MANY)]] == list(range(MANY))
        took_s = time.perf_counter() - began
        left = INODES - MANY - PILOTS
        assert list(exe.map(same, range(left))) == list(range(left))
        inodes = len(list((directory / "remoteexec" / "sessions").rglob("*")))
    return {"ms": 1000 * took_s / MANY, "inodes": inodes}
