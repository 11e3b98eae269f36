"""What a pilot decides, as functions of values: what its tasks may take, when it ends, what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..wire.pilots import Pilots, gpus
from ..wire.resources import Resources

_QUICK_S = 0.02
"""Tasks that take less, on average, are sent ahead."""
_AHEAD = 16
_LONGER = 1.5
"""How much longer than the others a task may take that is started last. Picked, not measured."""

STUCK_S = 2.0
"""Behind tasks that run for so long others wait in vain: they are also for pilots that are not there, and that the
service submits when it sees their tickets. Picked, not measured."""


@dataclass(frozen=True)
class Grant:
    """What a task has been given of a pilot."""

    cpus: int
    gpus: tuple[str, ...] = ()
    memory_gb: float = 0.0


@dataclass
class Ledger:
    """What of a pilot is free.

    Attributes:
        gpus: as CUDA_VISIBLE_DEVICES names them.
        memory_gb: None: it is not counted.
    """

    cpus: int
    gpus: list[str] = field(default_factory=list)
    memory_gb: float | None = None

    def has_room(self, resources: Resources) -> bool:
        """Whether a task could be started now."""
        short = self.memory_gb is not None and (resources.memory_max_gb or 0.0) > self.memory_gb + 1e-9
        return resources.cpus <= self.cpus and gpus(resources) <= len(self.gpus) and not short

    def take(self, resources: Resources) -> Grant | None:
        """What a task asks for; None: not now."""
        wanted, memory = gpus(resources), resources.memory_max_gb or 0.0
        if not self.has_room(resources):
            return None
        grant = Grant(resources.cpus, tuple(self.gpus[:wanted]), memory)
        self._change(grant, -1)
        return grant

    def give(self, grant: Grant) -> None:
        """The task has ended."""
        self._change(grant, 1)

    def _change(self, grant: Grant, sign: int) -> None:
        self.cpus += sign * grant.cpus
        if self.memory_gb is not None:
            self.memory_gb += sign * grant.memory_gb
        if sign > 0:
            self.gpus = sorted([*self.gpus, *grant.gpus])
        else:
            self.gpus = [name for name in self.gpus if name not in grant.gpus]


@dataclass(frozen=True)
class Ending:
    """When a pilot winds down, in seconds of a clock that nobody sets.

    Attributes:
        takes_until: later it takes no ticket.
        gives_at: what it has not started is for others.
        ends_at: the scheduler ends it.
    """

    takes_until: float
    gives_at: float
    ends_at: float

    def allows(self, now: float, run_time_s: float | None) -> bool:
        """Whether a task that says it takes so long may still be started."""
        return now + (run_time_s or 0.0) < self.gives_at

    def left_s(self, now: float, mean_s: float | None) -> float:
        """Seconds until no more tasks are to be started: those that have run so far tell how long one may take."""
        return self.gives_at - _LONGER * (mean_s or 0.0) - now


def ending(began: float, ends_at: float) -> Ending:
    """A pilot's last twentieth belongs to its ending, at most a minute; time for a file or two and an sbatch."""
    margin = min(60.0, 0.05 * max(ends_at - began, 0.0))
    return Ending(ends_at - 2 * margin, ends_at - margin, ends_at)


def ahead(mean_s: float | None) -> int:
    """How many tasks a worker is told at a time, from how long the last ones took."""
    if mean_s is None:
        return 2
    return _AHEAD if mean_s < _QUICK_S else 2


def share(waiting: int, hungry: int, mean_s: float | None, workers: int, busy_s: float = 0.0) -> int:
    """How many of the tasks that a pilot has not started are for those that have nothing.

    Args:
        mean_s: how long a task takes; None: none has ended yet.
        busy_s: for how long all its workers have been at the tasks they have: these may take as long once more,
            however short the others were.
    """
    each_s = max(mean_s if mean_s is not None else 1.0, busy_s)
    if not hungry or waiting * each_s / workers < 0.5:
        return 0
    return waiting * hungry // (hungry + 1) if waiting > 1 else waiting


def parts(count: int, wanted: int) -> Sequence[tuple[int, int]]:
    """Where to cut `count` things into at most `wanted` parts of about the same size."""
    wanted = min(count, wanted)
    return [(count * k // wanted, count * (k + 1) // wanted) for k in range(wanted)]


def share_of_gpus(devices: Sequence[str], pilots: Pilots, number: int) -> tuple[str, ...] | None:
    """What the kept worker of that number sees of a pilot's devices; None: all."""
    each = gpus(pilots.resources)
    if not each or pilots.workers == 1:
        return None
    first = number % pilots.workers * each
    return tuple(devices[first : first + each])
