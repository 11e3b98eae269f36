"""The future of a task: `concurrent.futures.Future` that knows which task it stands for."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
import time
from _thread import RLock
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from remoteexec_server.callbacks import call_back
from remoteexec_server.wire.names import TaskKey

R = TypeVar("R")


class _Condition(RLock):  # type: ignore[misc]  # final for typeshed, and meant to be subclassed (BASETYPE) in CPython
    """A threading.Condition that is nothing but its lock until somebody waits."""

    __slots__ = ("_waiting",)
    _waiting: list[Any]

    def wait(self, timeout: float | None = None) -> bool:
        """See threading.Condition.wait."""
        waiter = threading.Lock()
        waiter.acquire()
        if not hasattr(self, "_waiting"):
            self._waiting = []
        self._waiting.append(waiter)
        self.release()  # taken once: nothing in concurrent.futures waits with it taken twice
        told = False
        try:
            told = waiter.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            self.acquire()
            if not told and waiter in self._waiting:
                self._waiting.remove(waiter)
        return told

    def notify_all(self) -> None:
        """See threading.Condition.notify_all."""
        if hasattr(self, "_waiting"):
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.release()


_making = threading.RLock()
"""Guards the making of conditions, so that each future has one, and futures that have none yet: of most nobody asks
anything before they are done. Taken twice only where a finalizer comes in between."""


def _make_anew() -> None:
    """In a fork: a thread that is not there may have it."""
    global _making
    _making = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_make_anew)


class Ran(NamedTuple):
    """What is known of where and when a task ran; see TaskInfo."""

    host: str | None = None
    pid: int | None = None
    worker: int | None = None
    job: str | None = None
    started: float | None = None
    ended: float | None = None
    max_rss_bytes: int | None = None
    attempts: int | None = None


@dataclass(frozen=True)
class TaskInfo:
    """What, where, when and how long. Times are seconds since the epoch; None is what is not known, or not yet.

    Attributes:
        key: name of the task, unique in its executor.
        function: name of the function.
        state: "pending", "running", "done", "failed" or "cancelled".
        host: where it ran.
        pid: of the process that ran it.
        worker: number of the kept worker that ran it.
        job: the scheduler's name of its job.
        submitted: when `submit` was called.
        started: when its function was called; inputs were there.
        ended: when that had returned, or the task was lost.
        max_rss_bytes: the most memory its process has had resident until then; a kept worker's earlier calls count.
        attempts: how many it took, where jobs are tried again; see `Retry`.
        output: what it printed, if the executor keeps that; see `show_output` of SingleNodeExecutor.
    """

    key: TaskKey
    function: str
    state: str
    host: str | None
    pid: int | None
    worker: int | None
    job: str | None
    submitted: float
    started: float | None
    ended: float | None
    max_rss_bytes: int | None
    output: str | None = None
    attempts: int | None = None

    @property
    def duration_s(self) -> float | None:
        """Seconds the function ran."""
        return None if self.started is None or self.ended is None else self.ended - self.started


def function_name(fn: Callable[..., Any]) -> str:
    """What to call a function in a text for people."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


Refer = Callable[[Any], Any]
"""How a future is pickled: as what `__reduce__` returns."""
_pickling = threading.local()  # .refer: of the call whose arguments this thread is pickling


class referred_by:
    """While it is entered, futures that this thread pickles are references: the C pickler asks them, not us."""

    __slots__ = ("_before", "_refer")

    def __init__(self, refer: Refer) -> None:
        self._refer = refer

    def __enter__(self) -> None:
        self._before = getattr(_pickling, "refer", None)
        _pickling.refer = self._refer

    def __exit__(self, *exc: object) -> None:
        _pickling.refer = self._before


class AwaitableFuture(concurrent.futures.Future[R]):
    """A future that asyncio can wait for, too."""

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def _invoke_callbacks(self) -> None:
        call_back(self, self._done_callbacks)  # type: ignore[attr-defined]  # typeshed leaves it out

    def __reduce__(self) -> Any:
        refer = getattr(_pickling, "refer", None)
        if refer is not None:
            return refer(self)
        raise TypeError(
            "a future can only be an argument of the executor's own submit: in other places pass its result()"
        )


class TaskFuture(AwaitableFuture[R]):
    """What `submit` returns. As an argument of another call of the same executor it stands for its result.

    Attributes:
        key: name of the task in its session, and of its files on the cluster.
        owner: what makes two futures siblings: their executor's driver.
        output: what it has printed, as `str` of it; written by the executor.
        cache_key: name of its entry, if the call is cached; see docs/cache.md.
        cache_token: what stands for it in the keys of calls that take it as an argument.
        altered: modules of whose code or values its process had others than this one; only calls that are to be cached
            are compared.
    """

    cache_key: str | None = None
    cache_token: str | None = None
    altered: Sequence[str] = ()
    # A future to which nothing has happened yet: what stands here takes no memory in 100,000 of them.
    _ran: tuple[Any, ...] = ()
    output: object = None
    _state = "PENDING"
    _result: Any = None
    _exception: BaseException | None = None
    _made: _Condition | None = None
    _waiting_for: list[Any] | None = None
    _callbacks: list[Any] | None = None
    _shown: bool | None = None  # what `show_running` answered; of the driver thread alone

    def __init__(self, key: TaskKey, owner: object, on_cancel: Callable[[TaskKey], None], function: str = "") -> None:
        # Not what Future.__init__ does (3.10 to 3.14): its condition and its lists are made when they are needed. They
        # would be half of a pending task's memory, and every collection of garbage would look at each of them.
        self.key = key
        self.owner = owner
        self._on_cancel = on_cancel
        self._function = function
        self._submitted = time.time()

    if not TYPE_CHECKING:  # to type checkers these are the attributes that `wait` and `as_completed` ask for

        @property
        def _condition(self) -> _Condition:
            made = self._made
            if made is None:
                made = _Condition()
                with _making:
                    made = self._made = self._made or made
            return made

        @property
        def _waiters(self) -> list[Any]:
            if self._waiting_for is None:
                self._waiting_for = []
            return self._waiting_for

    @property
    def _done_callbacks(self) -> list[Any]:
        if self._callbacks is None:
            self._callbacks = []
        return self._callbacks

    @property
    def ran(self) -> Ran:
        """What is known of where and when it ran; the executor writes it."""
        return Ran(*self._ran)

    @ran.setter
    def ran(self, facts: tuple[Any, ...]) -> None:
        self._ran = tuple(facts)  # the collector of garbage has nothing to do with a plain tuple of such

    def done(self) -> bool:
        """See concurrent.futures.Future.done."""
        return self._state not in ("PENDING", "RUNNING")

    def cancelled(self) -> bool:
        """See concurrent.futures.Future.cancelled."""
        return self._state in ("CANCELLED", "CANCELLED_AND_NOTIFIED")

    def result(self, timeout: float | None = None) -> R:
        """See concurrent.futures.Future.result."""
        if self._state == "FINISHED" and self._exception is None:
            return self._result  # type: ignore[no-any-return]
        return super().result(timeout)

    def set_result(self, result: R) -> None:
        """See concurrent.futures.Future.set_result."""
        self._finish(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """See concurrent.futures.Future.set_exception."""
        self._finish(None, exception)

    def _finish(self, result: Any, exception: BaseException | None) -> None:
        with _making:
            if self._made is None and self._state in ("PENDING", "RUNNING"):
                self._result, self._exception, self._state = result, exception, "FINISHED"
                return
        with self._condition:
            if self._state not in ("PENDING", "RUNNING"):
                raise concurrent.futures.InvalidStateError(f"{self._state}: {self!r}")
            self._result, self._exception, self._state = result, exception, "FINISHED"
            for waiter in self._waiting_for or ():
                if exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()
        if self._callbacks is not None:
            self._invoke_callbacks()

    def cancel(self) -> bool:
        """Cancel the task unless it has started; see concurrent.futures.Future.cancel."""
        before = self.cancelled()
        if not super().cancel():
            return False
        if not before:
            self._on_cancel(self.key)
        return True

    def end_cancelled(self) -> bool:
        """For the executor: a task that has been begun is cancelled; whether it had not ended before."""
        with self._condition:
            if self._state != "RUNNING":
                return False
            self._state = "CANCELLED_AND_NOTIFIED"
            for waiter in self._waiting_for or ():
                waiter.add_cancelled(self)
            self._condition.notify_all()
        if self._callbacks is not None:
            self._invoke_callbacks()
        return True

    def show_running(self) -> bool:
        """For the driver: the future is running, and may be completed; may be said again.

        Returns:
            False if it was cancelled before; who waits for it is then told so, once, whatever the driver hears first,
            the outcome or the cancellation.
        """
        if self._shown is None:
            with _making:
                if self._made is None and self._state == "PENDING":  # most often
                    self._state, self._shown = "RUNNING", True
                    return True
            self._shown = self.set_running_or_notify_cancel()
        return self._shown

    @property
    def task(self) -> TaskInfo:
        """What is known of the task now."""
        if self.cancelled():
            state = "cancelled"
        elif self.done():
            state = "failed" if self.exception() is not None else "done"
        else:
            state = "running" if self.running() else "pending"
        ran = self.ran
        return TaskInfo(
            self.key,
            self._function,
            state,
            ran.host,
            ran.pid,
            ran.worker,
            ran.job,
            self._submitted,
            ran.started,
            ran.ended,
            ran.max_rss_bytes,
            None if self.output is None else str(self.output),
            ran.attempts,
        )


class JobFuture(TaskFuture[R]):
    """The future of a task that is a job: a running one can be cancelled, too."""

    def cancel(self) -> bool:
        """Cancel the task: one that waits does not start, one that runs is ended with its job."""
        if self.cancel_waiting():
            return True
        if not self.end_cancelled():
            return False
        self._on_cancel(self.key)
        return True

    def cancel_waiting(self) -> bool:
        """Cancel the task unless it has started."""
        return super().cancel()
