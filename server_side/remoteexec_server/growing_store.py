"""What a task submits to the session it belongs to, however it gets there: futures, gathered bursts, ends.

    task ─ submit ─ pickled ─▶ inbox ─▶ sender thread: gathers bursts ─▶ `_send`
    futures ◀─ `_complete`, `_lose`, `_fail` ◀─ whoever hears of ends

`growing_jobs` sends them to a gateway beside the task, `pilot.growth` puts them into tickets.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .growing import ChildFuture, ChildLost, ChildTraceback
from .wire import payload
from .wire.messages import BurstId, Entry, Loss, Submit, TaskKey
from .wire.payload import Pickled
from .wire.resources import Resources

if TYPE_CHECKING:
    from .store.session import Session

__all__ = ["StoreGrowth"]

_GATHER_S, _GATHER_MOST_S = 0.005, 0.1
"""A burst is sent when nothing came for so long, or this long after its first call; picked, not measured."""
_LARGE = 64 * 1024 * 1024
"""Bytes from which a burst is sent at once."""


@dataclass(frozen=True)
class _New:
    key: TaskKey
    name: str
    function: Pickled
    arguments: Pickled
    upstream: tuple[TaskKey, ...]
    resources: Resources


@dataclass(frozen=True)
class _Cancelled:
    key: TaskKey


_END = object()


class StoreGrowth:
    """What one task has submitted; has the methods of `growing.Growth` that futures and executors need.

    Args:
        name: of the client that the task is.
    """

    task = 0

    def __init__(self, session: Session, name: str) -> None:
        self._session, self._key, self._name = session, session.key, name
        self._lock = threading.Lock()  # guards the number of children, and who is open
        self._count = self._bursts = 0
        self._open: dict[TaskKey, ChildFuture[Any]] = {}
        self._children: weakref.WeakValueDictionary[TaskKey, ChildFuture[Any]] = weakref.WeakValueDictionary()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()  # _New, _Cancelled, events to be set, _END
        self._sender = threading.Thread(target=self._send_all, name="remoteexec-bursts", daemon=True)

    # ---- how it gets there ----

    def resting(self, done: Callable[[], bool], timeout: float | None = None) -> AbstractContextManager[None]:
        """What whoever waits for a child has to enter; see growing.Growth.resting."""
        raise NotImplementedError

    def finish(self) -> None:
        """The function has ended: see that all is in the store, or with the scheduler, before anybody is told."""
        raise NotImplementedError

    def _read_resources(self, resources: Mapping[str, Any] | None) -> Resources:
        """What a child asks for.

        Raises:
            ValueError: it cannot be had.
        """
        raise NotImplementedError

    def _send(self, submit: Submit, data: bytes) -> None:
        raise NotImplementedError

    def _cancel(self, key: TaskKey) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        """All is sent."""
        raise NotImplementedError

    def _is_heard(self) -> bool:
        """Whether somebody will tell how children end."""
        raise NotImplementedError

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
            wanted = self._read_resources(resources)
        except ValueError as exc:
            child.set_running_or_notify_cancel()
            child.set_exception(exc)
            return child
        with self._lock:
            self._children[key] = child
            self._open[key] = child
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        self._inbox.put(_New(key, name, function, arguments, tuple(upstream), wanted))
        if not self._is_heard():
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
        self._inbox.put(_Cancelled(key))

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
            if isinstance(item, threading.Event):
                item.set()
            elif isinstance(item, _Cancelled):
                self._cancel(item.key)
            elif item is _END:
                self._close()
                return

    def _flush(self, timeout_s: float) -> None:
        """Return when all that was submitted before is sent."""
        sent = threading.Event()
        self._inbox.put(sent)
        sent.wait(timeout_s)

    def _send_rest(self, timeout_s: float) -> None:
        """Send what is left; nothing more will come."""
        self._inbox.put(_END)
        self._sender.join(timeout_s)

    def _send_burst(self, new: Sequence[_New]) -> None:
        self._bursts += 1
        try:
            submit, data = _bundle(BurstId(f"{self._name}-{self._bursts}"), new, self._key)
        except Exception as exc:  # HDF5 and the user's buffers may object to each other
            self._fail([call.key for call in new], f"the calls cannot be written: {exc!r}")
            return
        self._send(submit, data)

    # ---- how children end ----

    def _complete(self, key: TaskKey, data: bytes, origin: TaskKey | None = None) -> None:
        """A child has an outcome, or ends as `origin`, which has it."""
        with self._lock:
            child = self._open.pop(key, None)
        if child is None or not child.set_running_or_notify_cancel():
            return
        try:
            value, exc = _loaded(data, origin or key, self._key)
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
