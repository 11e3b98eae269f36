"""Whether all tasks that have places wait for tasks that have none.

A task that waits by `result`, `wait` and the like says so, and its place is another's meanwhile. One that waits in
another way says nothing: asyncio's `wrap_future`, a callback that sets an event, a loop over `done()`. If all that have
places have submitted tasks which have not ended, and have asked for their end in such a way, something wants a place,
and none of them computes, nothing would ever go on: then they are taken to wait. One that has never asked does not wait
for them, though it may sleep: its cores and GPUs are its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

LOOK_S = 0.25
"""Seconds between two looks, while some task has submitted others that have not ended. Picked, not measured: 20 ms of
computing are seen in it."""
_COMPUTES_S = 0.02
"""Two of the kernel's ticks: what threads that only wait now and then may use."""

Running = tuple[int, int]
"""A process and its task."""


class Stalls:
    """What was seen at the last look; of one thread alone.

    Args:
        cpu_s: see `cpu_s`.
    """

    def __init__(self, cpu_s: Callable[[int], float | None]) -> None:
        self._cpu_s = cpu_s
        self._before: dict[Running, float | None] | None = None

    def look(self, running: Sequence[Running] | None) -> bool:
        """Look once; whether nothing has gone on since the last look.

        Args:
            running: who have places, if something wants one and all of them may be waiting; otherwise None.
        """
        before, self._before = self._before, None
        if running is not None:
            self._before = {each: self._cpu_s(each[0]) for each in running}
        if before is None or self._before is None or before.keys() != self._before.keys():
            return False
        return all(_idle(before[each], self._before[each]) for each in before)


def _idle(before_s: float | None, now_s: float | None) -> bool:
    return before_s is not None and now_s is not None and now_s - before_s < _COMPUTES_S


def cpu_s(pid: int) -> float | None:
    """CPU seconds of a process and all that it has started; None if one of them computes right now.

    Zero where the kernel does not tell (no /proc).
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        children = [child for thread in os.listdir(f"/proc/{pid}/task") for child in _children(pid, thread)]
    except OSError:
        return 0.0
    if fields[0] == "R":
        return None
    total = sum([int(field) for field in fields[11:15]]) / os.sysconf("SC_CLK_TCK")
    for child in children:
        its = cpu_s(child)
        if its is None:
            return None
        total += its
    return total


def _children(pid: int, thread: str) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:  # it has ended, or the kernel was built without
        return []
