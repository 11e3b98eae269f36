"""What of one or many nodes is taken, and which waiting task starts next. Pure: no processes, no clock.

First come, first served; tasks that fit go past one that does not, but only until they have taken `PATIENCE` times the
whole capacity: then what is free is left free for it, on one node if there are many. Tasks that need the same wait in
one line, and the lines are kept in the order of their first tasks: the choice looks at as many lines as there are
before the first that fits, and at `LOOK_AT` at most, however many tasks wait, and however many nodes there are.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

PATIENCE = 2
"""Picked, not measured: enough to fill gaps with short tasks, few enough not to starve a large one."""
LOOK_AT = 32
"""Lines. Tasks that all need something else would otherwise each be looked at whenever one ends. Picked: wide enough to
find what fits into a gap."""
_DEEPER = 2**40
"""More than there are tasks: what is deeper has an earlier place."""
_UNLIMITED = 64
"""What counts as the capacity, for PATIENCE, where only GPUs are limited."""


class Need(NamedTuple):
    """What one task takes while it runs.

    Attributes:
        cores: CPUs.
        gpus: whole GPUs.
        memory_bytes: what it said it uses; counted where there are many nodes.
        parts: that may be on nodes of their own, each an equal share of the above.
        nodes: on which these parts are to be; 0: on one if one can hold all, else on as few as there is room on.
    """

    cores: int = 1
    gpus: int = 0
    memory_bytes: int = 0
    parts: int = 1
    nodes: int = 0

    @property
    def part(self) -> Need:
        """What one of its parts takes."""
        return Need(self.cores // self.parts, self.gpus // self.parts, -(-self.memory_bytes // self.parts))

    def times(self, count: int) -> Need:
        """What so many tasks like this take on one node."""
        return Need(self.cores * count, self.gpus * count, self.memory_bytes * count)


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


class Room(Protocol):
    """What can be taken. A place is the GPUs that a task has, and what more its room wants to know of it."""

    capacity: int
    """Cores, or what stands for them."""

    def check(self, need: Need) -> None:
        """Refuse what can never start.

        Raises:
            TooLarge: names what is asked and what there is.
        """

    def fits(self, need: Need) -> bool:
        """Whether there is room now."""

    def take(self, need: Need) -> tuple[str, ...]:
        """Take what fits."""

    def retake(self, need: Need, place: tuple[str, ...]) -> bool:
        """Take the same place again; False if that is not free."""

    def give(self, need: Need, place: tuple[str, ...]) -> None:
        """What was taken is free."""

    def hold(self, need: Need) -> bool:
        """Leave what gets free to this need until it fits; False if others can then take nothing at all."""

    def open(self, node: int) -> None:
        """This node can be used from now on, of a room that has those that cannot."""

    def lose(self, node: int) -> None:
        """This node is gone, and what was taken there."""


class OneNode:
    """Cores and GPUs of one machine.

    Args:
        cores: that may be used at once; None for no limit.
        gpus: names of the GPUs, as CUDA_VISIBLE_DEVICES has them.
    """

    def __init__(self, cores: int | None, gpus: Sequence[str] = ()) -> None:
        self._cores, self._all_gpus = cores, tuple(gpus)
        self.capacity = cores or 0
        self._used_cores = 0
        self._free_gpus = list(gpus)

    def check(self, need: Need) -> None:
        """See Room."""
        if self._cores is not None and need.cores > self._cores:
            raise TooLarge(f"a task asks for {need.cores} cores, and max_cores is {self._cores}: it could never start")
        if need.gpus > len(self._all_gpus):
            raise TooLarge(
                f"a task asks for {need.gpus} GPUs, and {len(self._all_gpus)} are known here: it could never start; "
                "CUDA_VISIBLE_DEVICES names those to use"
            )

    def fits(self, need: Need) -> bool:
        """See Room."""
        cores = self._cores is None or self._used_cores + need.cores <= self._cores
        return cores and need.gpus <= len(self._free_gpus)

    def take(self, need: Need) -> tuple[str, ...]:
        """See Room."""
        self._used_cores += need.cores
        gpus = tuple(self._free_gpus[: need.gpus])
        del self._free_gpus[: need.gpus]
        return gpus

    def retake(self, need: Need, place: tuple[str, ...]) -> bool:
        """See Room."""
        if not self.fits(need) or not set(place) <= set(self._free_gpus):
            return False
        self._used_cores += need.cores
        self._free_gpus = [gpu for gpu in self._free_gpus if gpu not in place]
        return True

    def give(self, need: Need, place: tuple[str, ...]) -> None:
        """See Room."""
        self._used_cores -= need.cores
        self._free_gpus += place

    def hold(self, need: Need) -> bool:
        """See Room."""
        return False

    def open(self, node: int) -> None:
        """See Room: this one can be from the first."""

    def lose(self, node: int) -> None:
        """See Room: this process would be gone, too."""


class Ledger(Generic[T]):
    """Cores, GPUs and tasks at once, and the line of tasks that wait for them.

    Args:
        cores: see OneNode.
        gpus: see OneNode.
        tasks: that may run at once; None for no limit.
        room: another than one machine.
    """

    def __init__(
        self, cores: int | None, gpus: Sequence[str] = (), tasks: int | None = None, room: Room | None = None
    ) -> None:
        self.room = room or OneNode(cores, gpus)
        self.tasks = tasks
        self._used_tasks = 0
        self._lines: dict[Need, deque[tuple[int, T]]] = {}  # none of them empty
        self._heads: list[tuple[int, Need]] = []  # the place of the first of each line, sorted
        self._gone = 0  # of these, as many at the beginning are left over: moving all others would take longer
        self._places = itertools.count()
        self._length = 0
        self._passed_by = 0  # cores, or tasks without, that went past the first in line
        self._unfit = 0  # lines, from the first, of which none has had room since something got free
        self._patience = PATIENCE * (self.room.capacity or tasks or _UNLIMITED)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return iter([task for _, task in sorted((w for line in self._lines.values() for w in line), key=_place)])

    def check(self, need: Need) -> None:
        """See Room."""
        self.room.check(need)

    def add(self, task: T) -> None:
        """A task joins the line; before all that are less deep."""
        waiting = next(self._places) - task.depth * _DEEPER, task
        need = task.need
        line = self._lines.get(need)
        if line is None:
            self._lines[need] = deque((waiting,))
            self._insert_head(waiting[0], need)
        elif not task.depth:
            line.append(waiting)
        else:
            before = line[0][0]
            bisect.insort(line, waiting, key=_place)
            self._move_head(need, before, line[0][0])
        self._length += 1

    def clear(self) -> list[T]:
        """Take everything out of the line."""
        gone = list(self)
        self._lines.clear()
        self._heads.clear()
        self._length = self._passed_by = self._unfit = self._gone = 0
        return gone

    def open(self, node: int) -> None:
        """See Room."""
        self._unfit = 0
        self.room.open(node)

    def lose(self, node: int) -> list[T]:
        """See Room. What can never start then is taken out of the line."""
        self._unfit = 0
        self.room.lose(node)
        gone: list[T] = []
        for need in list(self._lines):
            try:
                self.room.check(need)
            except TooLarge:
                gone += [task for _, task in self._lines.pop(need)]
        self._heads = [head for head in self._heads[self._gone :] if head[1] in self._lines]
        self._gone = 0
        self._length -= len(gone)
        return gone

    def next(self) -> tuple[T, tuple[str, ...]] | None:
        """The task that starts now and its place, counted as running from here on; None if none may."""
        if not self._lines or (self.tasks is not None and self._used_tasks >= self.tasks):
            return None
        fits, heads, gone = self.room.fits, self._heads, self._gone
        first = heads[gone][1]
        if not self._unfit and fits(first):
            self._passed_by = 0
            return self._start(0)
        if self._passed_by >= self._patience:
            if not self.room.hold(first):
                return None
            self._unfit = 0  # what was held for the first may have room
        for at in range(self._unfit, min(LOOK_AT, len(heads) - gone)):
            need = heads[gone + at][1]
            if fits(need):
                self._unfit = at
                self._passed_by = self._passed_by + max(1, need.cores) if at else 0
                return self._start(at)
        self._unfit = LOOK_AT
        return None

    def end(self, need: Need, place: tuple[str, ...]) -> None:
        """A running task has ended."""
        self._used_tasks -= 1
        self._unfit = 0
        self.room.give(need, place)

    def take(self, need: Need, place: tuple[str, ...]) -> bool:
        """A task that gave back what it had goes on, in the same place; False if that is not free now."""
        if self.tasks is not None and self._used_tasks >= self.tasks:
            return False
        if not self.room.retake(need, place):
            return False
        self._used_tasks += 1
        return True

    def put_back(self, task: T, place: tuple[str, ...]) -> None:
        """A task that `next` gave could not be started: it is the first of its line again."""
        self.end(task.need, place)
        self.add_first(task)

    def add_first(self, task: T) -> None:
        """A task is the first of its line."""
        first, need = -next(self._places), task.need
        line = self._lines.setdefault(need, deque())
        if line:
            first = min(first, line[0][0] - 1)
            self._move_head(need, line[0][0], first)
        else:
            self._insert_head(first, need)
        line.appendleft((first, task))
        self._length += 1

    def _insert_head(self, place: int, need: Need) -> None:
        at = bisect.bisect_left(self._heads, (place, need), self._gone)
        self._heads.insert(at, (place, need))
        self._unfit = min(self._unfit, at - self._gone)

    def _move_head(self, need: Need, before: int, now: int) -> None:
        if now != before:
            del self._heads[bisect.bisect_left(self._heads, (before, need), self._gone)]
            self._insert_head(now, need)

    def _pop_head(self, at: int) -> Need:
        heads, gone = self._heads, self._gone
        need = heads[gone + at][1]
        heads[gone + 1 : gone + at + 1] = heads[gone : gone + at]
        self._gone = gone + 1
        if self._gone * 2 >= len(heads):
            del heads[: self._gone]
            self._gone = 0
        return need

    def _start(self, at: int) -> tuple[T, tuple[str, ...]]:
        """Start the first of a line, which fits."""
        need = self._pop_head(at)
        line = self._lines[need]
        _, task = line.popleft()
        if line:
            bisect.insort(self._heads, (line[0][0], need), self._gone)
        else:
            del self._lines[need]
        self._length -= 1
        self._used_tasks += 1
        return task, self.room.take(need)


def _place(waiting: tuple[int, object]) -> int:
    return waiting[0]
