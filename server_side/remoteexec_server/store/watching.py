"""What is new among the outcomes, seen by listing their directory, less often the longer nothing happens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_LEAST_S, _MOST_S = 0.02, 2.0
_LATE = 0.1  # a result waits at most a tenth of the time since the last change: picked, not measured
_DUTY = 100.0  # a listing of n names costs c seconds: rest 100 c, so that watching takes at most 1 % of a core


class Watcher:
    """Lists one directory when it is due.

    Args:
        directory: of the outcomes.
        clock: seconds, monotonic.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._clock = directory, clock
        self._seen: frozenset[str] = frozenset()
        self._again: frozenset[str] = frozenset()
        self._changed_at = clock()
        self._due_at = clock()

    @property
    def due_at(self) -> float:
        """When the directory is to be listed next, in the clock's seconds."""
        return self._due_at

    def hurry(self) -> None:
        """Something is about to happen: look again soon."""
        self._changed_at = self._due_at = self._clock()

    def look(self) -> Iterable[str]:
        """Names that were not there at the last look, and forgotten ones; may be asked before it is due."""
        began = self._clock()
        names = frozenset(os.listdir(self._directory))
        new, again = names - self._seen, names & self._again
        self._seen, self._again = names, frozenset()
        self.looked(self._clock() - began, bool(new))
        return new | again

    def looked(self, cost_s: float, changed: bool) -> None:
        """A look that took so long is over: say when the next one is due."""
        now = self._clock()
        if changed:
            self._changed_at = now
        rest = min(max(_LEAST_S, (now - self._changed_at) * _LATE), _MOST_S)
        self._due_at = now + max(rest, cost_s * _DUTY)

    def forget(self, names: Iterable[str]) -> None:
        """Report these names again if they are there at the next look; that is no change for the pace of looking."""
        self._again |= frozenset(names)

    def forget_all(self) -> None:
        """Report every name again."""
        self._again |= self._seen
