"""A batch service that says what the test wants said, and one that runs calls on threads of this process."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field, replace
from typing import Any

from remoteexec.engine.client import Deliver, Heard
from remoteexec.engine.tracker import Linked
from remoteexec_server import runner
from remoteexec_server.runner import InputLostError
from remoteexec_server.store import hdf5
from remoteexec_server.store.hdf5 import Outcome
from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Close,
    Closed,
    Entry,
    Hello,
    Leave,
    Left,
    Loss,
    Lost,
    OutcomeReady,
    Request,
    Started,
    Submit,
    TaskKey,
    Welcome,
)

WELCOME = Welcome("0.1.0", "3.x", "here", "/r", "fake")


class ScriptedService:
    """Remembers what it is asked; answers are the test's.

    Attributes:
        trouble: raised by `open`, one after the other.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.asked: queue.SimpleQueue[tuple[Request, bytes]] = queue.SimpleQueue()
        self.trouble: list[BaseException] = []
        self.opened = self.closed = 0
        self._deliver: Deliver = lambda item: None

    def open(self, deliver: Deliver) -> Welcome:
        self.opened += 1
        if self.trouble:
            raise self.trouble.pop(0)
        self._deliver = deliver
        self.say(Linked())
        return replace(WELCOME, session_key=self.key.hex())

    def send(self, request: Request, data: bytes = b"") -> None:
        self.asked.put((request, data))

    def close(self) -> None:
        self.closed += 1

    def next(self) -> Request:
        """What it is asked next."""
        return self.asked.get(timeout=10.0)[0]

    def next_submit(self) -> Submit:
        request = self.next()
        assert isinstance(request, Submit), request
        return request

    def say(self, event: Heard, data: bytes = b"") -> None:
        self._deliver((event, data))

    def accept(self, submit: Submit) -> None:
        self.say(Accepted(submit.burst, tuple(f"7_{n}" for n in range(len(submit.tasks)))))

    def start(self, key: TaskKey) -> None:
        self.say(Started(key, "7", "n1"))

    def end(self, key: TaskKey, result: object = None, ok: bool = True) -> None:
        """The task's outcome: a result, or the exception it raised."""
        outcome = Outcome(True, payload.dumps(result), {}) if ok else _failed(result)
        data = hdf5.write_outcome(key, outcome, self.key)
        self.say(OutcomeReady(key, len(data)), data)


@dataclass
class _Task:
    entry: Entry
    burst: BurstId
    position: int
    started: bool = False
    cancelled: bool = False
    failed: bool = False
    outcome: Outcome | None = None


@dataclass
class ThreadService:
    """Runs every call on a thread of its own, from and to the same bytes as a cluster."""

    hello: Hello
    _changed: threading.Condition = field(default_factory=threading.Condition)  # guards _tasks
    _tasks: dict[TaskKey, _Task] = field(default_factory=dict)

    def open(self, deliver: Deliver) -> Welcome:
        self._deliver = deliver
        deliver((Linked(), b""))
        return replace(WELCOME, session_key=self.hello.session_key)

    def send(self, request: Request, data: bytes = b"") -> None:
        match request:
            case Submit():
                for position, entry in enumerate(request.tasks):
                    self._tasks[entry.key] = task = _Task(entry, request.burst, position)
                    threading.Thread(target=self._run, args=(task, data), daemon=True).start()
                self._deliver((Accepted(request.burst, tuple("7" for _ in request.tasks)), b""))
            case Cancel():
                for key in request.keys:
                    self._tasks[key].cancelled = True
                    self._lose(self._tasks[key], Loss("cancelled", "cancelled by its submitter"))
            case Leave():
                self._deliver((Left(0), b""))
            case Close():
                self._deliver((Closed(), b""))

    def close(self) -> None:
        pass

    def _lose(self, task: _Task, loss: Loss) -> None:
        with self._changed:
            if task.failed or task.outcome is not None:
                return
            task.failed = True
            self._changed.notify_all()
        self._deliver((Lost(task.entry.key, loss), b""))

    def _run(self, task: _Task, bundle: bytes) -> None:
        key = bytes.fromhex(self.hello.session_key)
        function, arguments = hdf5.read_call(bundle, task.burst, task.position, key)
        try:
            for upstream in task.entry.upstream:
                self._input(upstream)
            if task.cancelled:
                return
            self._deliver((Started(task.entry.key, "7", "here"), b""))
            outcome = self._call(function, arguments)
        except InputLostError as lost:
            self._lose(task, Loss("upstream", str(lost), upstream=lost.key))
            return
        with self._changed:
            if task.failed:
                return
            task.outcome, task.failed = outcome, not outcome.ok
            self._changed.notify_all()
        data = hdf5.write_outcome(task.entry.key, outcome, key)
        self._deliver((OutcomeReady(task.entry.key, len(data)), data))

    def _call(self, function: payload.Pickled, arguments: payload.Pickled) -> Outcome:
        try:
            fn = payload.loads(function.data, function.buffers)
            args, kwargs = payload.loads(arguments.data, arguments.buffers, self._input)
            result = fn(*args, **kwargs)
        except InputLostError:
            raise
        except BaseException as exc:
            return _failed(exc)
        try:
            return Outcome(True, payload.dumps(result), {})
        except BaseException as exc:
            return runner._failed(exc, "result_not_picklable", type(result).__qualname__)

    def _input(self, key: TaskKey) -> Any:
        with self._changed:
            task = self._tasks[key]
            self._changed.wait_for(lambda: task.failed or task.outcome is not None)
            if task.failed or task.outcome is None or task.outcome.value is None:
                raise InputLostError(key)
            value = task.outcome.value
        return payload.loads(value.data, value.buffers)


def _failed(exc: object) -> Outcome:
    assert isinstance(exc, BaseException)
    return runner._failed(exc, "raised")
