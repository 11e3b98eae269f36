"""How tasks ended, wherever it stands: a file of its own, or a record in the log of a worker.

One look lists the directory once and goes through what was appended to the logs that are there. What is new in either
is told under the same names, those of files: "<task>.running", "<task>.h5", "<task>.lost". Where no log is, it costs
nothing more than the listing. Links and deaths are always files.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable

from ..wire import plain
from ..wire.names import TaskKey
from ..wire.records import Loss
from .segments import SUFFIX, DamagedLog, Kind, LogReader, Record
from .session import Claim, Session
from .watching import Watcher

_NAMES = {Kind.STARTED: "running", Kind.OUTCOME: "h5", Kind.LOST: "lost"}


class Outcomes:
    """Claims, outcomes and losses of one session. One thread at a time.

    Args:
        clock: seconds, monotonic.
        without: logs of writers whose names begin so are passed over.

    Attributes:
        damaged: logs that cannot be read to their end, by writer.
    """

    def __init__(
        self, session: Session, clock: Callable[[], float] = time.monotonic, without: str | None = None
    ) -> None:
        self._session, self._clock, self._without = session, clock, without
        self._watcher = Watcher(session.outcomes, clock)
        self._logs: dict[str, LogReader] = {}
        self._records: dict[str, tuple[LogReader, Record]] = {}
        self._starts: dict[TaskKey, set[str]] = {}  # logs that say so: of several attempts, several
        self._files: set[str] = set()
        self._again: set[str] = set()
        self.damaged: dict[str, DamagedLog] = {}

    @property
    def due_at(self) -> float:
        """When to look next, in the clock's seconds."""
        return self._watcher.due_at

    def hurry(self) -> None:
        """Something is about to happen: look again soon."""
        self._watcher.hurry()

    def look(self) -> set[str]:
        """Names that were not there at the last look, and forgotten ones; may be asked before it is due.

        Raises:
            OSError: the directory cannot be listed.
        """
        began = self._clock()
        new = set(self._watcher.look())
        listed = self._clock()
        found = {name for name in new if not name.endswith(SUFFIX)}
        self._files |= found
        for name in new - found:
            if self._without is not None and name.startswith(self._without):
                continue
            self._logs.setdefault(name, LogReader(self._session.outcomes / name))
        logged = {told for name, log in self._logs.items() for told in self._scan(name, log)}
        again, self._again = self._again & self._records.keys(), set()
        if self._logs:
            cost_s = (listed if logged else self._clock()) - began  # to read what is new is no watching
            self._watcher.looked(cost_s, changed=bool(found or logged))
        return found | logged | again

    def forget(self, names: Iterable[str]) -> None:
        """Tell these again at the next look."""
        names = set(names)
        self._again |= names
        self._watcher.forget(names)

    def forget_all(self) -> None:
        """Tell everything again."""
        self._again |= self._records.keys()
        self._watcher.forget_all()

    def __contains__(self, name: object) -> bool:
        """Whether the last look, or one before, saw that name."""
        return name in self._records or name in self._files

    def has(self, key: TaskKey, suffix: str) -> bool:
        """The same of a task's."""
        return f"{key}.{suffix}" in self

    def ended(self, key: TaskKey) -> bool:
        """Whether an outcome or a loss was seen."""
        return self.has(key, "h5") or self.has(key, "lost")

    def outcome(self, key: TaskKey, most: int | None = None) -> bytes:
        """An outcome, or its first `most` bytes.

        Raises:
            OSError: it cannot be read.
        """
        found = self._records.get(f"{key}.h5")
        if found is not None:
            log, record = found
            length = record.length if most is None else min(most, record.length)
            return log.read(Record(record.kind, record.key, record.offset, length))
        if most is None:
            return self._session.outcome(key).read_bytes()
        with self._session.outcome(key).open("rb") as file:
            return file.read(most)

    def loss(self, key: TaskKey) -> Loss:
        """Why there is no outcome.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        found = self._records.get(f"{key}.lost")
        if found is None:
            return self._session.read_loss(key)
        return plain.build(Loss, json.loads(found[0].read(found[1])))

    def claim(self, key: TaskKey) -> Claim | None:
        """Who has the task; None while the claim is being written or after it was given up."""
        found = self._records.get(f"{key}.running")
        if found is None:
            return self._session.read_claim(key)
        try:
            return plain.build(Claim, json.loads(found[0].read(found[1])))
        except (OSError, ValueError):
            return None

    def started_in(self, prefix: str) -> set[TaskKey]:
        """Tasks that the logs of writers whose names begin so say were started, and that have not ended."""
        return {
            key
            for key, writers in self._starts.items()
            if any(name.startswith(prefix) for name in writers) and not self.ended(key)
        }

    def has_writer(self, prefix: str) -> bool:
        """Whether somebody whose name begins so has written something."""
        return any(log.name.startswith(prefix) and log.used for log in self._logs.values())

    def _scan(self, name: str, log: LogReader) -> Iterable[str]:
        """What is new in one log; a log that cannot be read now is looked at again."""
        try:
            for record in log.look():
                told = f"{record.key}.{_NAMES[record.kind]}"
                if record.kind is Kind.STARTED:
                    self._starts.setdefault(record.key, set()).add(log.name)
                    self._records[told] = log, record
                self._records.setdefault(told, (log, record))
                yield told
        except OSError:
            return
        if log.damage is not None:
            self.damaged.setdefault(name.removesuffix(SUFFIX), log.damage)


def log_path(session: Session, writer: str) -> str:
    """Where a writer's log is."""
    return os.fspath(session.outcomes / f"{writer}{SUFFIX}")
