"""What client and batch service say to each other: frozen dataclasses, JSON on the wire, never a pickle.

Requests go to the service, events come from it. Three carry bytes behind their JSON: `Submit` a bundle and
`OutcomeReady` an outcome file, both cut into slices by `frames`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NewType, Union

from .evidence import NOTHING, Evidence
from .names import TaskKey as TaskKey
from .pilots import Pilots as Pilots
from .resources import Resources

BurstId = NewType("BurstId", str)
"""Name of one burst of submits, chosen by the client; the same id twice is submitted once."""


class MessageError(ValueError):
    """Bytes that are not a message of this protocol."""


@dataclass(frozen=True)
class Terms:
    """How jobs are submitted and asked about.

    Attributes:
        poll_s: seconds between questions to the scheduler, for all jobs at once.
        grace_s: seconds after a job's end before a missing outcome counts as lost; NFS may hide a file for 60.
        submits_per_minute: submissions, on average.
        jobs_at_once: jobs and elements of arrays that may run or wait in the queue at the same time; None: no limit.
        cores_at_once: the same, in CPUs.
        pilots: run tasks in these; None: each is a job.
        pysqa_config_directory: on the service's side, with the site's templates and limits.
        defaults: what calls that tasks submit ask for where they say nothing.
    """

    poll_s: float = 30.0
    grace_s: float = 90.0
    submits_per_minute: float = 60.0
    jobs_at_once: int | None = None
    cores_at_once: int | None = None
    pilots: Pilots | None = None
    pysqa_config_directory: str | None = None
    defaults: Resources = field(default_factory=Resources)


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
    terms: Terms = Terms()
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


Request = Hello | Submit | Cancel | Watch | Tell | Resize | JobScript | Ping | Close


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
class Loss:
    """Why a task will never have an outcome; the content of a `.lost` file.

    Attributes:
        reason: "timeout", "out_of_memory", "node_failure", "cancelled", "preempted", "killed", "rejected", "quota",
            "never_started", "python_missing", "import_error", "store", "upstream" or "unknown".
        message: what happened, the evidence, the next step.
        log_tail: last lines the job printed.
        log_path: where the whole log lies on the cluster.
        upstream: with reason "upstream": the task whose failure this one inherits.
        evidence: the scheduler's facts, and what to change.
        attempts: why each attempt ended, this one last, where there were several.
    """

    reason: str
    message: str
    job: str | None = None
    node: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""
    log_path: str | None = None
    upstream: TaskKey | None = None
    evidence: Evidence = NOTHING
    attempts: tuple[str, ...] = ()


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
    Welcome | Refused | Known | Accepted | Rejected | Started | OutcomeReady | Lost | Problem | Script | Pong | Closed
)
Message = Request | Event

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in typing.get_args(Message)}


def to_json(message: object) -> str:
    """One line of JSON: the fields of a dataclass, and for messages their class name as `"is"`."""
    plain = _plain(message)
    if type(message).__name__ in _KINDS:
        plain = {"is": type(message).__name__, **plain}
    return json.dumps(plain, separators=(",", ":"))


def from_json(text: str | bytes) -> Message:
    """The message that `to_json` wrote.

    Raises:
        MessageError: not JSON, an unknown kind, a field missing, of the wrong type, or too many.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"not JSON: {text[:80]!r}") from exc
    kind = _KINDS.get(str(plain.pop("is", ""))) if isinstance(plain, dict) else None
    if kind is None:
        raise MessageError(f"not a message: {text[:80]!r}")
    return typing.cast(Message, build(kind, plain))


T = typing.TypeVar("T")


def build(kind: type[T], plain: object) -> T:
    """A dataclass from the JSON object that `to_json` wrote for it, checked field by field.

    Raises:
        MessageError: names the class and the field that does not fit.
    """
    if not isinstance(plain, dict):
        raise MessageError(f"{kind.__name__}: expected an object, got {plain!r:.80}")
    hints = _hints(kind)
    unknown = plain.keys() - hints.keys()
    if unknown:
        raise MessageError(f"{kind.__name__}: unknown fields {sorted(unknown)}")
    try:
        return kind(**{name: _read(hints[name], value, f"{kind.__name__}.{name}") for name, value in plain.items()})
    except MessageError:
        raise
    except (TypeError, ValueError) as exc:  # a class may refuse values itself
        raise MessageError(f"{kind.__name__}: {exc}") from exc


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = {k: v for k, v in typing.get_type_hints(kind).items() if k in kind.__dataclass_fields__}
    return _HINTS[kind]


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if f.default is dataclasses.MISSING or item != f.default:
                plain[f.name] = _plain(item)
        return plain
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _read(option, value, where)
            except MessageError:
                continue
        raise MessageError(f"{where}: {value!r:.80} is none of {hint}")
    if origin is tuple or origin is Collection:
        if not isinstance(value, list):
            raise MessageError(f"{where}: expected a list, got {value!r:.80}")
        return tuple(_read(args[0], item, where) for item in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise MessageError(f"{where}: expected an object, got {value!r:.80}")
        return {k: _read(args[1], v, where) for k, v in value.items()}
    if hint is type(None):
        if value is not None:
            raise MessageError(f"{where}: expected null, got {value!r:.80}")
        return None
    if isinstance(hint, NewType):
        hint = hint.__supertype__
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise MessageError(f"{where}: expected {hint.__name__}, got {value!r:.80}")
    return value
