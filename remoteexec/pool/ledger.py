"""What of a machine is taken, and which waiting task starts next. Pure: no processes, no clock.

First come, first served; tasks that fit go past one that does not, but only until they have taken `PATIENCE` times the
whole capacity: then what is free is left free for it. Tasks that need the same wait in one line, so the choice takes as
long as there are different needs, however many tasks wait.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

PATIENCE = 2
"""Picked, not measured: enough to fill gaps with short tasks, few enough not to starve a large one."""
_DEEPER = 2**40
"""More than there are tasks: what is deeper has an earlier place."""
_UNLIMITED = 64
"""What counts as the capacity, for PATIENCE, where only GPUs are limited."""


class Need(NamedTuple):
    """What one task takes while it runs.

    Attributes:
        cores: CPUs.
        gpus: whole GPUs.
    """

    cores: int = 1
    gpus: int = 0


class Waiting(Protocol):
    """A task that waits."""

    @property
    def need(self) -> Need:
        """What it takes."""

    @property
    def depth(self) -> int:
        """How many tasks wait for it, one for the other."""


T = TypeVar("T", bound=Waiting)


class TooLarge(ValueError):
    """A task that could never start."""


class Ledger(Generic[T]):
    """Cores, GPUs and tasks at once of one machine, and the line of tasks that wait for them.

    Args:
        cores: that may be used at once; None for no limit.
        gpus: names of the GPUs, as CUDA_VISIBLE_DEVICES has them.
        tasks: that may run at once; None for no limit.
    """

    def __init__(self, cores: int | None, gpus: Sequence[str] = (), tasks: int | None = None) -> None:
        self.cores, self.tasks, self._all_gpus = cores, tasks, tuple(gpus)
        self._used_cores = 0
        self._used_tasks = 0
        self._free_gpus = list(gpus)
        self._lines: dict[Need, deque[tuple[int, T]]] = {}  # none of them empty
        self._places = itertools.count()
        self._length = 0
        self._passed_by = 0  # cores, or tasks without, that went past the first in line
        self._patience = PATIENCE * (cores or tasks or _UNLIMITED)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return iter([task for _, task in sorted((w for line in self._lines.values() for w in line), key=_place)])

    def check(self, need: Need) -> None:
        """Refuse what can never start.

        Raises:
            TooLarge: names what is asked and what there is.
        """
        if self.cores is not None and need.cores > self.cores:
            raise TooLarge(f"a task asks for {need.cores} cores, and max_cores is {self.cores}: it could never start")
        if need.gpus > len(self._all_gpus):
            raise TooLarge(
                f"a task asks for {need.gpus} GPUs, and {len(self._all_gpus)} are known here: it could never start; "
                "CUDA_VISIBLE_DEVICES names those to use"
            )

    def add(self, task: T) -> None:
        """A task joins the line; before all that are less deep."""
        waiting = next(self._places) - task.depth * _DEEPER, task
        line = self._lines.setdefault(task.need, deque())
        if task.depth:
            bisect.insort(line, waiting, key=_place)
        else:
            line.append(waiting)
        self._length += 1

    def clear(self) -> list[T]:
        """Take everything out of the line."""
        gone = list(self)
        self._lines.clear()
        self._length = self._passed_by = 0
        return gone

    def next(self) -> tuple[T, tuple[str, ...]] | None:
        """The task that starts now and its GPUs, counted as running from here on; None if none may."""
        if not self._lines or (self.tasks is not None and self._used_tasks >= self.tasks):
            return None
        first = min(self._lines, key=self._first_place)
        if self._fits(first):
            self._passed_by = 0
            return self._start(first)
        fitting = [need for need in self._lines if self._fits(need)]
        if not fitting or self._passed_by >= self._patience:
            return None
        chosen = min(fitting, key=self._first_place)
        self._passed_by += max(1, chosen.cores)
        return self._start(chosen)

    def end(self, need: Need, gpus: Sequence[str]) -> None:
        """A running task has ended."""
        self._used_cores -= need.cores
        self._used_tasks -= 1
        self._free_gpus += gpus

    def take(self, need: Need, gpus: Sequence[str]) -> bool:
        """A task that gave back what it had goes on, with the same GPUs; False if that is not free now."""
        if not self._fits(need) or not set(gpus) <= set(self._free_gpus):
            return False
        if self.tasks is not None and self._used_tasks >= self.tasks:
            return False
        self._used_cores += need.cores
        self._used_tasks += 1
        self._free_gpus = [gpu for gpu in self._free_gpus if gpu not in gpus]
        return True

    def put_back(self, task: T, gpus: Sequence[str]) -> None:
        """A task that `next` gave could not be started: it is the first of its line again."""
        self.end(task.need, gpus)
        self._lines.setdefault(task.need, deque()).appendleft((-next(self._places), task))
        self._length += 1

    def _first_place(self, need: Need) -> int:
        return self._lines[need][0][0]

    def _fits(self, need: Need) -> bool:
        cores = self.cores is None or self._used_cores + need.cores <= self.cores
        return cores and need.gpus <= len(self._free_gpus)

    def _start(self, need: Need) -> tuple[T, tuple[str, ...]]:
        line = self._lines[need]
        _, task = line.popleft()
        if not line:
            del self._lines[need]
        self._length -= 1
        self._used_cores += need.cores
        self._used_tasks += 1
        gpus = tuple(self._free_gpus[: need.gpus])
        del self._free_gpus[: need.gpus]
        return task, gpus


def _place(waiting: tuple[int, object]) -> int:
    return waiting[0]
