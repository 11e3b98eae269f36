"""What client and batch service say to each other: frozen dataclasses, JSON on the wire, never a pickle.

Requests go to the service, events come from it. Three carry bytes behind their JSON: `Submit` a bundle and
`OutcomeReady` an outcome file, both cut into slices by `frames`.
"""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass
from typing import Any

from . import plain
from .names import TaskKey as TaskKey
from .pilots import Pilots as Pilots
from .plain import MessageError as MessageError
from .plain import build as build
from .records import BurstId as BurstId
from .records import Loss as Loss
from .records import Terms as Terms
from .resources import Resources


@dataclass(frozen=True)
class Hello:
    """First request: who speaks, and which session.

    Attributes:
        protocol: `header.PROTOCOL` of the client.
        python: its minor version, "3.11".
        client: begins the ids of its bursts; the same after a reconnection.
        session: name of the session; made if missing.
        session_key: 64 hex digits, the key of the digests of the session's files if it is made now.
        alone: it is a task of the session, and sees to nothing but what it submits itself.
    """

    protocol: int
    python: str
    version: str
    client: str
    session: str
    session_key: str
    terms: Terms = Terms()  # noqa: RUF009 it is frozen
    alone: bool = False


@dataclass(frozen=True)
class Entry:
    """One task of a burst, at the same position as its call in the bundle.

    Attributes:
        resources: position in `Submit.resources`.
        upstream: tasks whose outcomes the arguments refer to.
        name: of the function.
    """

    key: TaskKey
    resources: int = 0
    upstream: tuple[TaskKey, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Submit:
    """A burst; its bundle follows as `size` bytes."""

    burst: BurstId
    tasks: tuple[Entry, ...]
    resources: tuple[Resources, ...]
    size: int


@dataclass(frozen=True)
class Cancel:
    """End these tasks, started or not."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True)
class Watch:
    """The client waits for these tasks: still, after a reconnection, or though another client submitted them."""

    keys: tuple[TaskKey, ...]


@dataclass(frozen=True)
class Tell:
    """Which tasks has the session?"""


@dataclass(frozen=True)
class Resize:
    """From now on so many pilots at the same time, at most."""

    pilots: int


@dataclass(frozen=True)
class Leave:
    """The client may be gone soon, and nobody there: what waits for room goes behind the jobs that fill it."""


@dataclass(frozen=True)
class JobScript:
    """What would be submitted for `count` tasks of these resources? `number` comes back with the answer."""

    number: int
    resources: Resources
    count: int = 1


@dataclass(frozen=True)
class Ping:
    """Is the other end alive?"""


@dataclass(frozen=True)
class Close:
    """The client is done. `discard` removes the session's files."""

    discard: bool


Request = Hello | Submit | Cancel | Watch | Tell | Resize | Leave | JobScript | Ping | Close


@dataclass(frozen=True)
class Welcome:
    """Answer to `Hello`. `session_key` is the one that holds."""

    version: str
    python: str
    host: str
    root: str
    scheduler: str
    session_key: str = ""


@dataclass(frozen=True)
class Refused:
    """The service will not work for this client. `kind` names the client's error class."""

    kind: str
    message: str


@dataclass(frozen=True)
class Known:
    """Answer to `Tell`: all tasks that were ever submitted, in that order, and their jobs as in `Accepted`."""

    tasks: tuple[Entry, ...]
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """All jobs of a burst are known to the scheduler; `jobs[i]` runs its task i ("123" or "123_4")."""

    burst: BurstId
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Rejected:
    """The scheduler, or the store, refused these tasks of a burst for good."""

    burst: BurstId
    keys: tuple[TaskKey, ...]
    kind: str
    message: str


@dataclass(frozen=True)
class Started:
    """A runner has claimed the task."""

    key: TaskKey
    job: str
    host: str


@dataclass(frozen=True)
class OutcomeReady:
    """The task has ended with an outcome; `size` bytes of its file follow."""

    key: TaskKey
    size: int


@dataclass(frozen=True)
class Lost:
    """The task will never have an outcome."""

    key: TaskKey
    loss: Loss


@dataclass(frozen=True)
class Problem:
    """Something the user should see that ends nothing: the scheduler does not answer, the store is full."""

    message: str


@dataclass(frozen=True)
class Left:
    """Answer to `Leave`, when all that can be is with the scheduler: so many tasks stay in the store, as was said."""

    tasks: int


@dataclass(frozen=True)
class Script:
    """Answer to `JobScript`: the text, or in `kind` the client's error class, and in `text` what it says."""

    number: int
    text: str
    kind: str | None = None


@dataclass(frozen=True)
class Pong:
    """Answer to `Ping`."""


@dataclass(frozen=True)
class Closed:
    """Answer to `Close`: the service has ended."""


Event = (
    Welcome
    | Refused
    | Known
    | Accepted
    | Rejected
    | Started
    | OutcomeReady
    | Lost
    | Problem
    | Left
    | Script
    | Pong
    | Closed
)
Message = Request | Event

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in typing.get_args(Message)}


def to_json(message: object) -> str:
    """One line of JSON: the fields of a dataclass, and for messages their class name as `"is"`."""
    name = type(message).__name__
    return plain.to_json(message, **({"is": name} if name in _KINDS else {}))


def from_json(text: str | bytes) -> Message:
    """The message that `to_json` wrote.

    Raises:
        MessageError: not JSON, an unknown kind, a field missing, of the wrong type, or too many.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"not JSON: {text[:80]!r}") from exc
    kind = _KINDS.get(str(fields.pop("is", ""))) if isinstance(fields, dict) else None
    if kind is None:
        raise MessageError(f"not a message: {text[:80]!r}")
    return typing.cast(Message, build(kind, fields))
