"""100 MB that many calls use: shared once, against passed to each; on this machine, on kept workers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from report import Row, finish

from remoteexec import SingleNodeExecutor

CALLS, PASSED, WORKERS = 400, 20, 2
VALUES = 12_500_000


def own_file(array: Any) -> int:
    """Inode of the memory that the array lies in, 0 for memory of this process alone. Reads one value of each page."""
    array[::512].sum()
    address = array.ctypes.data
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return int(line.split()[4])
    return 0


def rows() -> list[Row]:
    """Copies of what is shared, and how long a call takes to one that is passed the array."""
    array = np.ones(VALUES)
    with SingleNodeExecutor(WORKERS, block_allocation=True) as exe:
        list(exe.map(abs, range(WORKERS)))
        began = time.perf_counter()
        shared = exe.share(array)
        files = {future.result() for future in [exe.submit(own_file, shared) for _ in range(CALLS)]}
        shared_s = (time.perf_counter() - began) / CALLS
        if 0 in files:
            raise AssertionError("a call had a copy of its own")
        began = time.perf_counter()
        for _ in range(PASSED):
            exe.submit(own_file, array).result()
        passed_s = (time.perf_counter() - began) / PASSED
    return [
        Row(f"100 MB shared with {CALLS} calls: copies beside the caller's array", len(files), "", 1),
        Row("a call of these to one that is passed the array", shared_s / passed_s, "x"),
    ]


if __name__ == "__main__":
    finish("Sharing", rows())
