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
import queue
import secrets
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from . import __version__, running
from .growing import ChildFuture, ChildLost, ChildTraceback
from .wire import asked, frames, header, payload
from .wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Close,
    Entry,
    Hello,
    Loss,
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
from .wire.payload import Pickled
from .wire.resources import Resources

_GATHER_S, _GATHER_MOST_S = 0.005, 0.1
"""A burst is sent when nothing came for so long, or this long after its first call; picked, not measured."""
_LARGE = 64 * 1024 * 1024
"""Bytes from which a burst is sent at once."""
_FINISH_S = 75.0
"""How long the gateway may take to end; it gives up submitting after 60."""
_REVIVALS = 3


def growth() -> JobGrowth | None:
    """What the task that runs in this process has submitted, and can; None if it is no task of a job."""
    task = running.task
    if task is None:
        return None
    if task.pid != os.getpid():
        raise RuntimeError("current_executor() is for the process of the task, not for one that it has forked")
    if task.growth is None:
        task.growth = JobGrowth(task)
    return task.growth


@dataclass(frozen=True)
class _New:
    key: TaskKey
    name: str
    function: Pickled
    arguments: Pickled
    upstream: tuple[TaskKey, ...]
    resources: Resources


class JobGrowth:
    """What one task has submitted; has the methods of `growing.Growth` that futures and executors need.

    Args:
        task: that runs in this process.
    """

    task = 0

    def __init__(self, task: running.Running) -> None:
        self._session, self._job, self._environment = task.session, task.job, task.environment
        self._key = self._session.key
        self._name = secrets.token_hex(4)
        self._lock = threading.Lock()  # guards the number of children, and who is open
        self._count = self._bursts = 0
        self._open: dict[TaskKey, ChildFuture[Any]] = {}
        self._children: weakref.WeakValueDictionary[TaskKey, ChildFuture[Any]] = weakref.WeakValueDictionary()
        self._inbox: queue.SimpleQueue[_New | Request] = queue.SimpleQueue()
        self._writing = threading.Lock()  # guards the gateway's stdin, and the two below
        self._unaccepted: dict[BurstId, tuple[Submit, bytes]] = {}
        self._closing = False
        self._process = self._start()
        self._reader = threading.Thread(target=self._hear_all, name="remoteexec-news", daemon=True)
        self._reader.start()
        self._sender = threading.Thread(target=self._send_all, name="remoteexec-bursts", daemon=True)
        self._sender.start()

    # ---- the task's threads ----

    def submit(
        self, task: int, fn: Callable[..., Any], call: tuple[Any, Any], resources: Mapping[str, Any] | None
    ) -> ChildFuture[Any]:
        """See growing.ParentExecutor."""
        upstream: dict[TaskKey, None] = {}

        def refer(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
            if not isinstance(obj, Future):
                return None
            key = self.key_of(obj)
            if key is not None:
                upstream[key] = None
                return payload.resolve, (key,)
            if self._is_item(obj):
                return payload.selected, (obj.source, obj.key)  # type: ignore[attr-defined]  # the source is met next
            return payload.given, (obj.result(),)  # one of somebody else's

        arguments = _detached(payload.dumps(call, refer))
        function = _detached(payload.dumps(fn))
        with self._lock:
            self._count += 1
            number = self._count
        child: ChildFuture[Any] = ChildFuture(self, task, number)
        key = self._name_of(number)
        try:
            wanted = asked.read_resources(resources, self._job.terms.defaults)
        except ValueError as exc:
            child.set_running_or_notify_cancel()
            child.set_exception(exc)
            return child
        with self._lock:
            self._children[key] = child
            self._open[key] = child
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        self._inbox.put(_New(key, name, function, arguments, tuple(upstream), wanted))
        if not self._reader.is_alive():
            self._fail_all()
        return child

    def key_of(self, result: Any) -> TaskKey | None:
        """The task of a future that is one of these."""
        mine = isinstance(result, ChildFuture) and result.growth is self
        return self._name_of(result.number) if mine else None

    def cancelled(self, child: ChildFuture[Any]) -> None:
        """A child's future was cancelled here."""
        key = self._name_of(child.number)
        with self._lock:
            self._open.pop(key, None)
        child.set_running_or_notify_cancel()
        self._inbox.put(Cancel((key,)))

    def resting(self) -> AbstractContextManager[None]:
        """Whoever waits keeps its job."""
        return nullcontext()

    def finish(self) -> None:
        """The function has ended: see that all is with the scheduler, or in the store, before anybody is told."""
        self._inbox.put(Close(False))
        self._sender.join(_FINISH_S)
        try:
            self._process.wait(_FINISH_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _say(f"{len(self._unaccepted)} bursts of tasks may wait in the store for a service of the session")
        self._reader.join(1.0)

    def _name_of(self, number: int) -> TaskKey:
        return TaskKey(f"{self._name}-t{number}")

    def _is_item(self, obj: Any) -> bool:
        """Whether it is an item, or an item of an item, of a child's result."""
        if obj.cancelled() or not hasattr(obj, "source"):
            return False
        while hasattr(obj, "source"):
            obj = obj.source
        return self.key_of(obj) is not None

    # ---- the sender thread ----

    def _send_all(self) -> None:
        waiting: list[_New] = []
        size, began = 0, 0.0
        while True:
            try:
                item = self._inbox.get(timeout=_GATHER_S if waiting else None)
            except queue.Empty:
                item = None
            if isinstance(item, _New):
                began = began if waiting else time.monotonic()
                waiting.append(item)
                size += item.function.size + item.arguments.size
                if size < _LARGE and time.monotonic() - began < _GATHER_MOST_S:
                    continue
            if waiting:
                self._send_burst(waiting)
                waiting, size = [], 0
            if isinstance(item, Close):
                with self._writing:
                    self._closing = True
                    self._write(item)
                return
            if item is not None and not isinstance(item, _New):
                with self._writing:
                    self._write(item)

    def _send_burst(self, new: Sequence[_New]) -> None:
        self._bursts += 1
        try:
            submit, data = _bundle(BurstId(f"{self._name}-{self._bursts}"), new, self._key)
        except Exception as exc:  # HDF5 and the user's buffers may object to each other
            self._fail([call.key for call in new], f"the calls cannot be written: {exc!r}")
            return
        with self._writing:
            self._unaccepted[submit.burst] = submit, data
            self._write(submit, data)

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

    def _complete(self, key: TaskKey, data: bytes) -> None:
        with self._lock:
            child = self._open.pop(key, None)
        if child is None or not child.set_running_or_notify_cancel():
            return
        try:
            value, exc = _loaded(data, key, self._key)
        except BaseException as why:  # whatever the user's objects raise, or a file that is not what it should be
            value, exc = None, ChildLost(f"what a child returned or raised cannot be loaded: {why!r}")
        if exc is None:
            child.set_result(value)
        else:
            child.set_exception(exc)

    def _lose(self, key: TaskKey, loss: Loss) -> None:
        source = self._children.get(loss.upstream) if loss.upstream is not None else None
        if loss.reason != "upstream" or source is None:
            self._fail([key], loss.message)
            return
        with self._lock:
            child = self._open.pop(key, None)
        if child is not None:
            source.add_done_callback(lambda source: _fail_like(child, source))

    def _fail(self, keys: Sequence[TaskKey], message: str) -> None:
        for key in keys:
            with self._lock:
                child = self._open.pop(key, None)
            if child is not None and child.set_running_or_notify_cancel():
                child.set_exception(ChildLost(message))

    def _fail_all(self) -> None:
        with self._lock:
            keys = list(self._open)
        self._fail(keys, "the process that submits this task's calls has ended, and so has its successor")


def _say(message: str) -> None:
    """A line for the job's log, which the task may have closed."""
    with contextlib.suppress(Exception):
        os.write(2, f"remoteexec: {message}\n".encode())


def _fail_like(child: ChildFuture[Any], source: Future[Any]) -> None:
    if source.cancelled():
        Future.cancel(child)
    if child.set_running_or_notify_cancel():
        child.set_exception(source.exception() or ChildLost("an input of the child was lost"))


def _loaded(data: bytes, key: TaskKey, session_key: bytes) -> tuple[Any, BaseException | None]:
    """The result of a child, or its exception."""
    from .store import hdf5

    outcome = hdf5.read_outcome(data, key, session_key)
    if outcome.ok and outcome.value is not None:
        return payload.loads(outcome.value.data, outcome.value.buffers), None
    exc: Any = None
    if outcome.value is not None:
        with contextlib.suppress(Exception):  # its class is not to be had here: the text has to do
            exc = payload.loads(outcome.value.data, outcome.value.buffers)
    if not isinstance(exc, BaseException):
        exc = ChildLost(f"{outcome.facts.get('type')}: {outcome.facts.get('message')}")
    exc.__cause__ = ChildTraceback(outcome.facts.get("traceback", ""))
    return None, exc


def _bundle(burst: BurstId, new: Sequence[_New], key: bytes) -> tuple[Submit, bytes]:
    """One burst and its file; equal functions and resources stand in it once."""
    from .store import hdf5

    functions: dict[bytes, int] = {}
    pickled: list[Pickled] = []
    resources: dict[Resources, int] = {}
    calls, entries = [], []
    for call in new:
        at = functions.get(call.function.data) if not call.function.buffers else None
        if at is None:
            at = len(pickled)
            pickled.append(call.function)
            if not call.function.buffers:
                functions[call.function.data] = at
        calls.append(hdf5.Call(at, call.arguments))
        which = resources.setdefault(call.resources, len(resources))
        entries.append(Entry(call.key, which, call.upstream, call.name))
    data = hdf5.write_bundle(burst, pickled, calls, key)
    return Submit(burst, tuple(entries), tuple(resources), len(data)), data


def _detached(pickled: Pickled) -> Pickled:
    """With copies of its buffers: the task may change its arrays as soon as `submit` has returned."""
    return Pickled(pickled.data, tuple(_own(view) for view in pickled.buffers))


def _own(view: memoryview) -> memoryview:
    import numpy as np

    try:
        return np.array(view).data
    except (TypeError, ValueError):  # a format numpy does not know
        return memoryview(bytes(view))
