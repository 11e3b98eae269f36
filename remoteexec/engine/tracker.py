"""What to do next, decided without doing anything: events in, actions out. No I/O, no clock, no lock, no thread.

    Added ─▶ HELD ──InputReady──▶ QUEUED ──Due──▶ SENT ──Accepted──▶ SUBMITTED ──Started──▶ RUNNING
               │                    │               │                    │                     │
               └────────────────────┴───────────────┴─────────┬──────────┴─────────────────────┘
                                                              ▼
                                   DONE (Ended) · FAILED (Ended, Lost, Rejected, an input failed) · CANCELLED

A task is HELD while an input is computed elsewhere (a future of another executor), or needs one that is held. Inputs
of the same executor hold nothing: they are waited for on the cluster. A task that is not sent yet fails as soon as one
of its inputs has; one that is sent is for the service to fail.

Invariants: one `Record` has all of a task's state; a final state is never left; an event that does not fit a final
state is a late answer and does nothing; any other event without a rule raises `IllegalEvent` and changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from remoteexec_server.wire.messages import Accepted, BurstId, Lost, Rejected, Started, TaskKey


class State(enum.Enum):
    """Where a task is."""

    HELD = "held"
    QUEUED = "queued"
    SENT = "sent"
    SUBMITTED = "submitted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})
_OPEN = frozenset(State) - FINAL
_UNSENT = frozenset({State.HELD, State.QUEUED})
_PLACED = frozenset({State.SENT, State.SUBMITTED, State.RUNNING})
"""The service has it, or is about to."""


# ---- events that do not come from the service ----


@dataclass(frozen=True)
class Added:
    """A new task.

    Attributes:
        size: bytes it adds to a bundle.
        upstream: tasks of this executor it takes results of.
        awaits: it takes results of futures of other executors that are not done.
    """

    key: TaskKey
    size: int = 0
    upstream: tuple[TaskKey, ...] = ()
    awaits: bool = False


@dataclass(frozen=True)
class Adopted:
    """These tasks were submitted by somebody else, or in an earlier process, and are waited for here."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True)
class InputReady:
    """The futures of other executors have results, with which `size` and `upstream` are these; see Added."""

    key: TaskKey
    size: int
    upstream: tuple[TaskKey, ...]


@dataclass(frozen=True)
class InputFailed:
    """One of the futures of other executors failed, or its result cannot be sent."""

    key: TaskKey


@dataclass(frozen=True)
class _InputEnded:
    """An input of the same executor failed or was cancelled: follows from the event that said so."""

    key: TaskKey


@dataclass(frozen=True)
class Due:
    """The burst has been gathered long enough."""


@dataclass(frozen=True)
class Ended:
    """The task's outcome is here."""

    key: TaskKey
    ok: bool


@dataclass(frozen=True)
class CancelAsked:
    """The user cancelled these futures."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True)
class Linked:
    """The service can be reached: for the first time, or again."""


@dataclass(frozen=True)
class Unlinked:
    """The service cannot be reached."""

    reason: str = ""


TrackerEvent = (
    Added
    | Adopted
    | InputReady
    | InputFailed
    | Due
    | Accepted
    | Rejected
    | Started
    | Ended
    | Lost
    | CancelAsked
    | Linked
    | Unlinked
)


# ---- actions ----


@dataclass(frozen=True)
class Send:
    """Send these tasks as one burst; sent again under the same id, it is not run again."""

    burst: BurstId
    keys: tuple[TaskKey, ...]


@dataclass(frozen=True)
class SendCancel:
    """Ask the service to end these tasks."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True)
class SendWatch:
    """Tell the service that these are still waited for."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True)
class Release:
    """The burst is on the cluster, or refused: its bytes are not needed here any more."""

    burst: BurstId


@dataclass(frozen=True)
class ShowRunning:
    """The future is running."""

    key: TaskKey


@dataclass(frozen=True)
class Fail:
    """The future fails for the reason in the event that led here."""

    key: TaskKey


@dataclass(frozen=True)
class FailLike:
    """The future fails as its input did."""

    key: TaskKey
    upstream: TaskKey


Action = Send | SendCancel | SendWatch | Release | ShowRunning | Fail | FailLike


TRANSITIONS: dict[type[object], dict[State, State]] = {
    InputReady: {State.HELD: State.QUEUED},
    InputFailed: {State.HELD: State.FAILED},
    _InputEnded: dict.fromkeys(_UNSENT, State.FAILED),
    Due: {State.QUEUED: State.SENT},
    Accepted: {State.SENT: State.SUBMITTED, State.RUNNING: State.RUNNING},
    Rejected: dict.fromkeys(_PLACED, State.FAILED),
    Started: dict.fromkeys(_PLACED, State.RUNNING),
    Ended: dict.fromkeys(_PLACED, State.DONE),
    Lost: dict.fromkeys(_PLACED, State.FAILED),
    CancelAsked: dict.fromkeys(_OPEN, State.CANCELLED),
}
"""Event -> state -> next state; `Ended` with an error leads to FAILED instead."""


class IllegalEvent(Exception):
    """An event that cannot happen in the state the task is in; nothing was changed."""


@dataclass
class Record:
    """All that is known of one task.

    Attributes:
        blockers: what it is held by: each held input is one, all futures of other executors together are one.
        job: the scheduler's name of its job, once accepted.
    """

    key: TaskKey
    state: State
    size: int
    upstream: tuple[TaskKey, ...]
    blockers: int
    job: str = ""


@dataclass(frozen=True)
class Limits:
    """How much goes into one burst.

    Attributes:
        tasks: in one burst.
        size: bytes; every runner of the burst reads and checks its whole bundle.
    """

    tasks: int = 20_000
    size: int = 16 * 1024 * 1024


@dataclass
class Tracker:
    """The tasks of one executor.

    Attributes:
        name: begins the id of every burst: unique for the executor.
        limits: see Limits.
    """

    name: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._records: dict[TaskKey, Record] = {}
        self._queued: dict[TaskKey, None] = {}
        self._bursts: dict[BurstId, tuple[TaskKey, ...]] = {}  # sent, not accepted
        self._takers: dict[TaskKey, list[TaskKey]] = {}  # task that has not ended -> what was added with it as input
        self._cancelled: dict[TaskKey, None] = {}  # placed, and the service has not said yet that they ended
        self._linked = False
        self._count = 0
        self._open = self._held = 0

    @property
    def open(self) -> int:
        """Tasks that have not ended."""
        return self._open

    @property
    def unsent(self) -> int:
        """Tasks the scheduler has not accepted yet; those held by other executors' futures are not counted."""
        return len(self._queued) + sum(map(len, self._bursts.values()))

    @property
    def held(self) -> int:
        """Tasks that wait for futures of other executors, or for such tasks."""
        return self._held

    @property
    def gathering(self) -> bool:
        """A burst is being gathered and could be sent."""
        return bool(self._queued) and self._linked

    def record(self, key: TaskKey) -> Record:
        """What is known of one task."""
        return self._records[key]

    def handle(self, event: TrackerEvent) -> list[Action]:
        """Take one event; returns what is to be done, in order.

        Raises:
            IllegalEvent: the event cannot happen now; nothing was changed.
        """
        match event:
            case Added():
                return self._add(event)
            case Adopted():
                return self._adopt(event)
            case InputReady():
                return self._unblock(event)
            case InputFailed():
                return self._fail(event, event.key)
            case Due():
                return self._send_queued(event) if self._linked else []
            case Accepted():
                return self._accept(event)
            case Rejected():
                return self._reject(event)
            case Started():
                return [ShowRunning(event.key)] if self._move(event, event.key) else []
            case Ended(key, ok=True):
                self._move(event, key)
                return []
            case Ended():
                return self._fail(event, event.key)
            case Lost():
                return self._lose(event)
            case CancelAsked():
                return self._cancel(event)
            case Linked():
                self._linked = True
                return self._resume()
            case Unlinked():
                self._linked = False
                return []

    def _known(self, event: TrackerEvent, *keys: TaskKey) -> None:
        for key in keys:
            if key not in self._records:
                raise IllegalEvent(f"{type(event).__name__} names task {key}, which was never added")

    def _check(self, event: TrackerEvent | _InputEnded, key: TaskKey) -> Record:
        """The record of a task that the event may happen to, or that has ended."""
        record = self._records.get(key)
        if record is None:
            raise IllegalEvent(f"{type(event).__name__} for task {key}, which was never added")
        if record.state not in FINAL and record.state not in TRANSITIONS[type(event)]:
            raise IllegalEvent(f"{type(event).__name__} for task {key}, which is {record.state.value}")
        return record

    def _move(self, event: TrackerEvent | _InputEnded, key: TaskKey, to: State | None = None) -> Record | None:
        """Change one task's state by the table; None if the task has ended and the event is only late."""
        record = self._check(event, key)
        if record.state in FINAL:
            if isinstance(event, (Ended, Lost, Rejected)):
                self._cancelled.pop(key, None)
            return None
        self._held -= record.state is State.HELD
        record.state = to or TRANSITIONS[type(event)][record.state]
        if record.state in FINAL:
            self._open -= 1
            self._queued.pop(key, None)
            if record.state is State.DONE:
                self._takers.pop(key, None)
        return record

    def _add(self, event: Added) -> list[Action]:
        if event.key in self._records:
            raise IllegalEvent(f"task {event.key} was added before")
        self._known(event, *event.upstream)
        record = self._records[event.key] = Record(event.key, State.HELD, event.size, (), int(event.awaits))
        self._open += 1
        self._held += 1
        return self._connect(record, event.upstream)

    def _adopt(self, event: Adopted) -> list[Action]:
        known = self._records
        keys = tuple(key for key in event.keys if key not in known or known[key].state in FINAL)
        for key in keys:
            known[key] = Record(key, State.SUBMITTED, 0, (), 0)
        self._open += len(keys)
        return [SendWatch(keys)] if keys and self._linked else []

    def _unblock(self, event: InputReady) -> list[Action]:
        self._known(event, *event.upstream)
        record = self._check(event, event.key)
        if record.state in FINAL:
            return []
        record.size = event.size
        record.blockers -= 1
        return self._connect(record, event.upstream)

    def _connect(self, record: Record, upstream: tuple[TaskKey, ...]) -> list[Action]:
        """Tie a held task to its inputs; it fails like one that has failed, stays held, or joins the burst."""
        new = [self._records[key] for key in dict.fromkeys(upstream) if key not in record.upstream]
        record.upstream = upstream
        for source in new:
            if source.state in (State.FAILED, State.CANCELLED):
                return self._fail(_InputEnded(record.key), record.key, FailLike(record.key, source.key))
        for source in new:
            if source.state is not State.DONE:
                self._takers.setdefault(source.key, []).append(record.key)
            record.blockers += source.state is State.HELD
        self._release(record)
        return []

    def _release(self, record: Record) -> None:
        """Queue a task that nothing holds any more, then what it has held: inputs before what needs them."""
        free = [record] if not record.blockers else []
        while free:
            record = free.pop()
            record.state = State.QUEUED
            self._held -= 1
            self._queued[record.key] = None
            for taker in [self._records[key] for key in self._takers.get(record.key, ())]:
                if taker.state is State.HELD:
                    taker.blockers -= 1
                    if not taker.blockers:
                        free.append(taker)

    def _send_queued(self, event: Due) -> list[Action]:
        """Cut what was gathered into bursts."""
        actions: list[Action] = []
        keys: list[TaskKey] = []
        size = 0
        for key in self._queued:
            record = self._records[key]
            if keys and (len(keys) >= self.limits.tasks or size + record.size > self.limits.size):
                actions.append(self._send(keys))
                keys, size = [], 0
            self._move(event, key)
            keys.append(key)
            size += record.size
        self._queued.clear()
        return [*actions, self._send(keys)] if keys else actions

    def _send(self, keys: Iterable[TaskKey]) -> Send:
        self._count += 1
        burst, members = BurstId(f"{self.name}-{self._count}"), tuple(keys)
        self._bursts[burst] = members
        return Send(burst, members)

    def _accept(self, event: Accepted) -> list[Action]:
        members = self._bursts.get(event.burst)
        if members is None:
            return []  # the answer came twice, after a reconnection
        if len(members) != len(event.jobs):
            raise IllegalEvent(f"{len(event.jobs)} jobs accepted for the {len(members)} tasks of burst {event.burst}")
        for key, job in zip(members, event.jobs, strict=True):
            self._records[key].job = job
            self._move(event, key)
        del self._bursts[event.burst]
        return [Release(event.burst)]

    def _reject(self, event: Rejected) -> list[Action]:
        """Some tasks of a burst, or all: then it will not be accepted any more."""
        for key in event.keys:
            self._check(event, key)
        actions = [action for key in event.keys for action in self._fail(event, key)]
        if len(event.keys) == len(self._bursts.get(event.burst, ())):
            del self._bursts[event.burst]
            actions.append(Release(event.burst))
        return actions

    def _lose(self, event: Lost) -> list[Action]:
        upstream = event.loss.upstream
        if event.loss.reason == "upstream" and upstream in self._check(event, event.key).upstream:
            return self._fail(event, event.key, FailLike(event.key, upstream))
        return self._fail(event, event.key)

    def _fail(self, event: TrackerEvent | _InputEnded, key: TaskKey, action: Action | None = None) -> list[Action]:
        """A task fails, for the reason in the event unless `action` names another, and what waits for it here too."""
        if self._move(event, key, State.FAILED) is None:
            return []
        return [action or Fail(key), *self._drop(key)]

    def _drop(self, key: TaskKey) -> list[Action]:
        """A task failed or was cancelled: what takes its result and is not sent fails like it."""
        actions: list[Action] = []
        gone = [key]
        while gone:
            source = gone.pop()
            for taker in self._takers.pop(source, ()):
                if self._records[taker].state in _UNSENT:
                    self._move(_InputEnded(taker), taker)
                    actions.append(FailLike(taker, source))
                    gone.append(taker)
        return actions

    def _cancel(self, event: CancelAsked) -> list[Action]:
        self._known(event, *event.keys)
        before = {key: self._records[key].state for key in event.keys}
        moved = [key for key in before if self._move(event, key)]
        actions = [action for key in moved for action in self._drop(key)]
        placed = dict.fromkeys(key for key in moved if before[key] in _PLACED)
        self._cancelled |= placed
        if placed and self._linked:
            actions.append(SendCancel(tuple(placed)))
        return actions

    def _resume(self) -> list[Action]:
        """After a connection was made: say again what may have got lost in the last one."""
        actions: list[Action] = [Send(burst, members) for burst, members in self._bursts.items()]
        placed = tuple(key for key, record in self._records.items() if record.state in _PLACED)
        if placed:
            actions.append(SendWatch(placed))
        if self._cancelled:
            actions.append(SendCancel(tuple(self._cancelled)))
        return actions
