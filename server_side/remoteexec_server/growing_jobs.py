"""Calls that a task of a job submits to the session it belongs to: they become jobs, as it is one.

    task ─ submit ─ pickled ─▶ inbox ─▶ sender thread: gathers bursts ─ frames ─▶ gateway, a process beside the task
    futures ◀─────────────── reader thread ◀─────────── frames ──────────────────┘ store, scheduler

The task is a client of its session like any other, with a name of its own, and its gateway a service that sees to
nothing but what this client submits. It is a process so that nothing the task does to its own (threads, forks, the
environment, a function that holds the interpreter for an hour) touches what is submitted. What it cannot submit stays
in the store for another service of the session.

A task that waits for its children keeps its job.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import __version__, running
from .growing_store import StoreGrowth
from .wire import asked, frames, header
from .wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Close,
    Hello,
    Lost,
    MessageError,
    OutcomeReady,
    Problem,
    Refused,
    Rejected,
    Request,
    Submit,
    TaskKey,
    Watch,
)
from .wire.resources import Resources

_FINISH_S = 75.0
"""How long the gateway may take to end; it gives up submitting after 60."""
_REVIVALS = 3


def growth() -> StoreGrowth | None:
    """What the task that runs in this process has submitted, and can; None if it is no task of a job."""
    task = running.task
    if task is None:
        return None
    if task.pid != os.getpid():
        raise RuntimeError("current_executor() is for the process of the task, not for one that it has forked")
    if task.growth is None:
        task.growth = (task.grow or JobGrowth)(task)
    return task.growth


class JobGrowth(StoreGrowth):
    """What a task of a job has submitted.

    Args:
        task: that runs in this process.
    """

    def __init__(self, task: running.Running) -> None:
        super().__init__(task.session, secrets.token_hex(4))
        self._job, self._environment = task.job, task.environment
        self._writing = threading.Lock()  # guards the gateway's stdin, and the two below
        self._unaccepted: dict[BurstId, tuple[Submit, bytes]] = {}
        self._closing = False
        self._process = self._start()
        self._reader = threading.Thread(target=self._hear_all, name="remoteexec-news", daemon=True)
        self._reader.start()
        self._sender.start()

    def resting(self, done: Callable[[], bool], timeout: float | None = None) -> AbstractContextManager[None]:
        """Whoever waits keeps its job."""
        return nullcontext()

    def _read_resources(self, resources: Mapping[str, Any] | None) -> Resources:
        return asked.read_resources(resources, self._job.terms.defaults)

    def _is_heard(self) -> bool:
        return self._reader.is_alive()

    def finish(self) -> None:
        """The function has ended: see that all is with the scheduler, or in the store, before anybody is told."""
        self._send_rest(_FINISH_S)
        try:
            self._process.wait(_FINISH_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _say(f"{len(self._unaccepted)} bursts of tasks may wait in the store for a service of the session")
        self._reader.join(1.0)

    # ---- the sender thread ----

    def _send(self, submit: Submit, data: bytes) -> None:
        with self._writing:
            self._unaccepted[submit.burst] = submit, data
            self._write(submit, data)

    def _cancel(self, key: TaskKey) -> None:
        with self._writing:
            self._write(Cancel((key,)))

    def _close(self) -> None:
        with self._writing:
            self._closing = True
            self._write(Close(False))

    def _write(self, request: Request, data: bytes = b"") -> None:
        """What a gateway that has ended is not told, its successor is."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            for frame in frames.encode(request, data):
                self._process.stdin.write(frame)
            self._process.stdin.flush()

    # ---- the reader thread ----

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the gateway and introduce the task."""
        sentinel = secrets.token_hex(16)
        root = self._session.path.parent.parent
        options = ["--root", str(root), "--scheduler", self._job.scheduler, "--sentinel", sentinel, "--silence", "0"]
        process = subprocess.Popen(
            [*self._job.command[:-1], "gateway", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in self._environment.items() if not name.startswith("REMOTEEXEC_JOB")},
            cwd="/",
            start_new_session=True,  # what is killed with the task's process group submits what it was given, and ends
        )
        self._process, self._sentinel = process, sentinel.encode()
        name, key = self._session.path.name, self._key.hex()
        terms = self._job.terms
        self._write(Hello(header.PROTOCOL, header.PYTHON, __version__, self._name, name, key, terms, alone=True))
        return process

    def _hear_all(self) -> None:
        for _ in range(1 + _REVIVALS):
            with contextlib.suppress(OSError, MessageError):
                self._hear_gateway()
            with self._writing:
                if self._closing:
                    break
                self._process.wait()
                self._revive()
        self._fail_all()

    def _hear_gateway(self) -> None:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        first = frames.skip_to(self._sentinel, lambda n: os.read(handle, n))
        for event, data in frames.decode(lambda n: os.read(handle, n), first):
            match event:
                case OutcomeReady():
                    self._complete(event.key, data)
                case Lost():
                    self._lose(event.key, event.loss)
                case Accepted() | Rejected():
                    with self._writing:
                        self._unaccepted.pop(event.burst, None)
                    if isinstance(event, Rejected):
                        self._fail(event.keys, event.message)
                case Refused() | Problem():
                    _say(event.message)

    def _revive(self) -> None:
        """A gateway has died: the next is told what is not known to have arrived, and what is waited for."""
        self._start()
        for submit, data in list(self._unaccepted.values()):
            self._write(submit, data)
        unsent = {entry.key for submit, _ in self._unaccepted.values() for entry in submit.tasks}
        with self._lock:
            keys = tuple(key for key in self._open if key not in unsent)
        if keys:
            self._write(Watch(keys))


def _say(message: str) -> None:
    """A line for the job's log, which the task may have closed."""
    with contextlib.suppress(Exception):
        os.write(2, f"remoteexec: {message}\n".encode())
