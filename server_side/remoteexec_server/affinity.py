"""Which cores a worker runs on, of those that its node gives to the allocation.

The pool numbers a node's cores from 0. What such a number means there is known only if the node has as many: as many
CPUs, or as many physical cores, as the agent may use. Otherwise (fake nodes, or nodes that others use, too) nobody is
pinned.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

Group = tuple[int, ...]
"""CPUs that are threads of one core."""
_groups: list[Group] | None = None


def learn() -> None:
    """See what cores there are; forks of this process need not look again."""
    global _groups
    if hasattr(os, "sched_getaffinity"):
        _groups = grouped(os.sched_getaffinity(0), _siblings)


def pin(indices: Sequence[int], count: int) -> None:
    """Run on these alone, with all that this process starts.

    Args:
        indices: which of the node's cores, as `cpus` takes them.
        count: how many the scheduler says that there are.
    """
    found = cpus(_groups or [], indices, count)
    if found:
        with contextlib.suppress(OSError):  # somebody has taken one away
            os.sched_setaffinity(0, found)


def cpus(groups: Sequence[Group], indices: Sequence[int], count: int) -> set[int]:
    """The CPUs that cores with these numbers are; none if there is no telling."""
    threads = [cpu for group in groups for cpu in group]
    if count == len(threads):
        return {threads[index] for index in indices}
    if count == len(groups):
        return {cpu for index in indices for cpu in groups[index]}
    return set()


def grouped(usable: set[int], siblings: Callable[[int], set[int]]) -> list[Group]:
    """CPUs that may be used, those together that are threads of one core."""
    return sorted({tuple(sorted(({cpu} | siblings(cpu)) & usable)) for cpu in usable})


def _siblings(cpu: int) -> set[int]:
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", encoding="ascii") as file:
            return _numbers(file.read())
    except (OSError, ValueError):  # a kernel that does not tell
        return set()


def _numbers(listed: str) -> set[int]:
    """Of a list like "0,4" or "0-1"."""
    parts = [part.partition("-") for part in listed.strip().split(",")]
    return {n for first, _, last in parts for n in range(int(first), int(last or first) + 1)}
