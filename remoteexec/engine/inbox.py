"""What is put into a driver's inbox by other threads, besides the service's events and `CancelAsked`."""

from __future__ import annotations

import concurrent.futures
import threading
from dataclasses import dataclass, field
from typing import Any

from remoteexec_server.wire.messages import Entry, TaskKey

from ..futures import JobFuture, TaskFuture
from .calls import Call


@dataclass(frozen=True)
class New:
    """A submit, on its way to the driver thread."""

    future: JobFuture[Any]
    call: Call


@dataclass(frozen=True)
class Adopt:
    """Wait for tasks that others have submitted."""

    entries: tuple[Entry, ...]
    answer: concurrent.futures.Future[list[TaskFuture[Any]]]


@dataclass(frozen=True)
class Ask:
    """Which tasks has the session?

    Attributes:
        looked: set when those that had ended before the answer have told so; or when they never will.
    """

    answer: concurrent.futures.Future[list[TaskFuture[Any]]]
    looked: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class ForeignDone:
    """A future of another executor that a task waits for is done."""

    key: TaskKey


@dataclass(frozen=True)
class Flush:
    """A statement has submitted all its calls: send what was gathered.

    It ends on the driver thread, since the inbox may hold calls of it for longer than a burst is gathered otherwise.
    """


@dataclass(frozen=True)
class Stop:
    """End when every task has ended; `cancel`: first cancel what has not started, `running`: and what has, too."""

    cancel: bool
    running: bool = False
