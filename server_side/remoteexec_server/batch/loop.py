"""The loop around a `Service`: requests from an inbox, events to whoever listens. One thread, in the gateway as in a
user's own process on the login node.

    inbox (SimpleQueue) ── get, at most until something is due ── handle / step ── emit(event, bytes)
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..store.root import UnsafeRootError, open_root
from ..store.session import Session, StoreError
from ..wire import header
from ..wire.messages import (
    Cancel,
    Close,
    Closed,
    Event,
    Hello,
    JobScript,
    Refused,
    Request,
    Resize,
    Script,
    Submit,
    Tell,
    Watch,
    Welcome,
)
from . import queues
from .base import QueueError
from .preview import preview
from .pysqa_config import PysqaConfigError
from .service import Service
from .submitter import Jobs

_FINISH_S = 60.0
"""For how long; what is then left is submitted when a client comes back."""
Inbox = queue.SimpleQueue[tuple[Request, bytes] | None]
"""Requests with their bytes; None when the client is gone."""
Emit = Callable[[Event, bytes], None]


def run(inbox: Inbox, emit: Emit, root: str, scheduler: str, command: tuple[str, ...]) -> None:
    """Serve one client until it closes or is gone.

    Args:
        inbox: what the client asks; the first request is `Hello`.
        emit: told every event, on this thread.
        root: our directory on the cluster, as configured.
        scheduler: one of `queues.NAMES`.
        command: starts the runner, without its arguments.
    """
    first = inbox.get()
    if first is None or not isinstance(first[0], Hello):
        return
    hello = first[0]
    jobs = Jobs(command, scheduler, hello.terms, hello.alone)
    opened = _open(hello, root, jobs)
    if isinstance(opened, Refused):
        emit(opened, b"")
        return
    service, welcome = opened
    emit(welcome, b"")
    discard = False
    try:
        discard = _serve(service, inbox, emit, partial(preview, service.queue, service.session, jobs, hello.client))
        _finish_submitting(service, emit)
    finally:
        service.close(discard)
    emit(Closed(), b"")


def _finish_submitting(service: Service, emit: Emit) -> None:
    """What was taken from a client that is gone, or is about to go, is submitted all the same."""
    deadline = service.clock() + _FINISH_S
    while service.submitting and service.clock() < deadline:
        for event in service.step():
            with contextlib.suppress(OSError):
                emit(event, b"")
        time.sleep(max(0.01, min(service.wait_s() or 0.0, 1.0)))  # outcomes to be told would make it 0


def _serve(service: Service, inbox: Inbox, emit: Emit, script: Callable[[JobScript], Script]) -> bool:
    """Until the client closes (True: remove the session's files) or is gone; `script`: see `preview`."""
    while True:
        try:
            item = inbox.get(timeout=service.wait_s())
        except queue.Empty:
            pass
        else:
            if item is None:
                return False
            request, data = item
            match request:
                case Close():
                    return request.discard
                case JobScript():
                    emit(script(request), b"")
                case Submit() | Cancel() | Watch() | Tell() | Resize():
                    for event in service.handle(request, data):
                        emit(event, b"")
                case _:
                    return False  # nothing else is to be said here
        for event in service.step():
            emit(event, b"")
        while (ready := service.next_outcome()) is not None:
            emit(*ready)


def _open(hello: Hello, root: str, jobs: Jobs) -> tuple[Service, Welcome] | Refused:
    import socket

    from .. import __version__

    if hello.protocol != header.PROTOCOL:
        return Refused("ProtocolMismatch", f"client speaks protocol {hello.protocol}, this side {header.PROTOCOL}")
    if hello.python != header.PYTHON:
        return Refused("PythonMismatch", f"client runs Python {hello.python}, this side Python {header.PYTHON}")
    try:
        path = open_root(root)
        session = Session.create(path, hello.session, hello.session_key)
        batch = queues.connect(jobs.scheduler, path, hello.terms.pysqa_config_directory)
        service = Service(session, batch, jobs, hello.client)
    except UnsafeRootError as exc:
        return Refused("UnsafeRoot", str(exc))
    except PysqaConfigError as exc:
        return Refused("ConfigError", str(exc))
    except (StoreError, OSError) as exc:
        return Refused("StoreError", str(exc))
    except (QueueError, ValueError) as exc:
        return Refused("SchedulerUnavailable", str(exc))
    welcome = Welcome(__version__, header.PYTHON, socket.gethostname(), str(path), batch.name, session.key.hex())
    return service, welcome


def runner_command(python: str) -> tuple[str, ...]:
    """How a job starts our runner with this Python and this copy of the package."""
    return (python, str(Path(__file__).resolve().parent.parent), "runner")
