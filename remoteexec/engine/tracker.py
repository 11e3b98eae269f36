"""What to do next, decided without doing anything: events in, actions out. No I/O, no clock, no lock, no thread.

    Added ─▶ HELD ──InputReady──▶ QUEUED ──Due──▶ SENT ──Accepted──▶ SUBMITTED ──Started──▶ RUNNING
               │                    │               │                    │                     │
               └────────────────────┴───────────────┴─────────┬──────────┴─────────────────────┘
                                                              ▼
                                   DONE (Ended) · FAILED (Ended, Lost, Rejected, an input failed) · CANCELLED

A task is HELD while an input is computed elsewhere (a future of another executor), or needs one that is held. Inputs
of the same executor hold nothing: they are waited for on the cluster.

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
_PLACED = frozenset({State.SENT, State.SUBMITTED, State.RUNNING})
"""The service has it, or is about to."""


# ---- events that do not come from the service ----


@dataclass(frozen=True)
class Added:
    """A new task.

    Attributes:
        size: bytes it adds to a bundle.
        upstream: tasks of this executor it takes results of.
        awaited: futures of other executors it takes results of and that are not done.
    """

    key: TaskKey
    size: int = 0
    upstream: tuple[TaskKey, ...] = ()
    awaited: int = 0


@dataclass(frozen=True)
class InputReady:
    """One of the futures of other executors has a result."""

    key: TaskKey


@dataclass(frozen=True)
class InputFailed:
    """One of the futures of other executors failed, or its result cannot be sent."""

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
        blockers: how many things it is held by: futures of other executors, and held inputs.
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
        self._held: dict[TaskKey, list[TaskKey]] = {}  # held task -> tasks that it holds
        self._cancelled: list[TaskKey] = []  # that the service had, or was about to get
        self._linked = False
        self._count = 0
        self._open = 0

    @property
    def open(self) -> int:
        """Tasks that have not ended."""
        return self._open

    @property
    def unsent(self) -> int:
        """Tasks the scheduler has not accepted yet; those held by other executors' futures are not counted."""
        return len(self._queued) + sum(map(len, self._bursts.values()))

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
            case InputReady():
                return self._unblock(event)
            case InputFailed():
                return self._fail(event, event.key, Fail(event.key))
            case Due():
                return self._send_queued(event) if self._linked else []
            case Accepted():
                return self._accept(event)
            case Rejected():
                return self._reject(event)
            case Started():
                return [ShowRunning(event.key)] if self._move(event, event.key) else []
            case Ended():
                return self._end(event)
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

    def _move(self, event: TrackerEvent, key: TaskKey, to: State | None = None) -> Record | None:
        """Change one task's state by the table; None if the task has ended and the event is only late."""
        record = self._records.get(key)
        if record is None:
            raise IllegalEvent(f"{type(event).__name__} for task {key}, which was never added")
        if record.state in FINAL:
            return None
        after = TRANSITIONS[type(event)].get(record.state)
        if after is None:
            raise IllegalEvent(f"{type(event).__name__} for task {key}, which is {record.state.value}")
        record.state = to or after
        if record.state in FINAL:
            self._open -= 1
            self._queued.pop(key, None)
        return record

    def _add(self, event: Added) -> list[Action]:
        if event.key in self._records:
            raise IllegalEvent(f"task {event.key} was added before")
        inputs = [self._records[key] for key in event.upstream]
        holders = [record.key for record in inputs if record.state is State.HELD]
        blockers = event.awaited + len(holders)
        record = Record(event.key, State.HELD if blockers else State.QUEUED, event.size, event.upstream, blockers)
        self._records[event.key] = record
        self._open += 1
        for holder in holders:
            self._held[holder].append(event.key)
        if blockers:
            self._held[event.key] = []
        else:
            self._queued[event.key] = None
        return []

    def _unblock(self, event: InputReady) -> list[Action]:
        """One thing less holds a task; what becomes free joins the burst, inputs before what needs them."""
        free = [event.key]
        while free:
            key = free.pop()
            record = self._records[key]
            if record.state is not State.HELD:
                if record.state in FINAL:
                    continue
                raise IllegalEvent(f"InputReady for task {key}, which is {record.state.value}")
            record.blockers -= 1
            if not record.blockers:
                self._move(event, key)
                self._queued[key] = None
                free += self._held.pop(key)
        return []

    def _send_queued(self, event: Due) -> list[Action]:
        """Cut what was gathered into bursts; a task whose input has failed is not sent."""
        actions: list[Action] = []
        keys: list[TaskKey] = []
        size = 0
        for key in list(self._queued):
            record = self._records[key]
            failed = self._failed_input(record)
            if failed is not None:
                record.state = State.FAILED
                self._open -= 1
                actions.append(FailLike(key, failed))
                continue
            if keys and (len(keys) >= self.limits.tasks or size + record.size > self.limits.size):
                actions.append(self._send(keys))
                keys, size = [], 0
            self._move(event, key)
            keys.append(key)
            size += record.size
        self._queued.clear()
        return [*actions, self._send(keys)] if keys else actions

    def _failed_input(self, record: Record) -> TaskKey | None:
        for key in record.upstream:
            if self._records[key].state in (State.FAILED, State.CANCELLED):
                return key
        return None

    def _send(self, keys: Iterable[TaskKey]) -> Send:
        self._count += 1
        burst, members = BurstId(f"{self.name}-{self._count}"), tuple(keys)
        self._bursts[burst] = members
        return Send(burst, members)

    def _accept(self, event: Accepted) -> list[Action]:
        members = self._bursts.pop(event.burst, None)
        if members is None:
            return []  # the answer came twice, after a reconnection
        for key, job in zip(members, event.jobs, strict=True):
            record = self._records[key]
            record.job = job
            if record.state is State.SENT:
                self._move(event, key)
        return [Release(event.burst)]

    def _reject(self, event: Rejected) -> list[Action]:
        """Some tasks of a burst, or all: then it will not be accepted any more."""
        actions: list[Action] = [Fail(key) for key in event.keys if self._move(event, key)]
        if len(event.keys) == len(self._bursts.get(event.burst, ())):
            del self._bursts[event.burst]
            actions.append(Release(event.burst))
        return actions

    def _end(self, event: Ended) -> list[Action]:
        self._move(event, event.key, None if event.ok else State.FAILED)
        return []

    def _lose(self, event: Lost) -> list[Action]:
        if not self._move(event, event.key):
            return []
        upstream = event.loss.upstream
        if event.loss.reason == "upstream" and upstream in self._records:
            return [FailLike(event.key, upstream)]
        return [Fail(event.key)]

    def _fail(self, event: InputFailed, key: TaskKey, action: Action) -> list[Action]:
        """A held task fails, and with it what it holds."""
        return [action, *self._drop(event, key)] if self._move(event, key) else []

    def _drop(self, event: InputFailed | CancelAsked, key: TaskKey) -> list[Action]:
        """What a held task that failed or was cancelled has held fails like it."""
        actions: list[Action] = []
        gone = [key]
        while gone:
            failed = gone.pop()
            for dependant in self._held.pop(failed, ()):
                if self._move(event, dependant, State.FAILED):
                    actions.append(FailLike(dependant, failed))
                    gone.append(dependant)
        return actions

    def _cancel(self, event: CancelAsked) -> list[Action]:
        placed: list[TaskKey] = []
        actions: list[Action] = []
        for key in event.keys:
            where = self._records[key].state
            if self._move(event, key) and where in _PLACED:
                placed.append(key)
            else:
                actions += self._drop(event, key)
        self._cancelled += placed
        if placed and self._linked:
            actions.append(SendCancel(tuple(placed)))
        return actions

    def _resume(self) -> list[Action]:
        """After a connection was made: say again what may have got lost, then go on."""
        unanswered = {key for members in self._bursts.values() for key in members}
        waiting = tuple(
            key for key, record in self._records.items() if record.state in _PLACED and key not in unanswered
        )
        actions: list[Action] = [Send(burst, members) for burst, members in self._bursts.items()]
        if self._count:
            actions.append(SendWatch((*waiting, *unanswered)))
        if self._cancelled:
            actions.append(SendCancel(tuple(self._cancelled)))  # all: what was said just before the drop may be lost
        return actions
