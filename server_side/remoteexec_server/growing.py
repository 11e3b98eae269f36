"""Calls that a task submits to the executor it runs in, through its worker's socket. For tasks of jobs see
`growing_jobs`, which makes the same futures.

    task ─ submit ─▶ ChildFuture ─ "submit" ──▶ pool: a task like all others, before those that nobody waits for
    reader thread ◀─ news: how children ended ─ pool
    task ─ result() ─ "rest" ─▶ pool: its place is free for another task
                    ─ "resume" ─▶ pool ─ go ─▶ it goes on, as soon as there is a place again
                    ─ "overtake" ─▶ pool ─ go ─▶ its time to wait is over: it goes on without a place
         ─ done(), add_done_callback() ─ "watch" ─▶ pool: it may be waiting in a way that nobody sees

The reader thread starts when a task first asks for its executor. From then on it reads all that the pool says; calls
are handed to the main thread. Whoever waits for a child has to rest: `result`, `exception`, `wait` and `as_completed`
do, also on what is made of children. A task that waits in another way keeps its place, unless nothing else goes on and
it has asked for a child's end: one that never has does not wait (see `pool.stalls` of the client).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

from . import batches, failure, running
from .callbacks import call_back
from .wire import payload, pooled

if TYPE_CHECKING:
    from .growing_store import StoreGrowth
    from .worker import Worker

R = TypeVar("R")
in_caller: ContextVar[concurrent.futures.Executor | None] = ContextVar("in_caller", default=None)
"""The executor of a call that runs in its caller."""


def current_executor() -> ParentExecutor:
    """The executor that the task which calls this runs in.

    Its `submit` and `map` make tasks beside this one. Their futures can be waited for, be arguments of further calls,
    and be what the task returns: its outcome is then that future's. Those a task has submitted and does not wait for
    run all the same.

    Raises:
        RuntimeError: this is no task, or one that cannot submit others: an MPI rank.
    """
    caller = in_caller.get()
    if caller is not None:
        return cast("ParentExecutor", caller)  # which has the same methods
    from . import worker  # which imports this module only when it has to

    found = worker.current()
    if found is not None:
        in_pool = found.growth()
        return ParentExecutor(in_pool, in_pool.task)
    if running.task is not None:
        from . import growing_jobs

        in_job = growing_jobs.growth()
        if in_job is not None:
            return ParentExecutor(in_job, in_job.task)
    raise RuntimeError("current_executor() is for tasks of executors; no such task runs here")


class ChildLost(RuntimeError):
    """A task that this one submitted has failed, and its exception cannot be loaded here."""


class ChildTraceback(Exception):
    """The traceback of a child's exception, shown as its cause."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}\n"""'


class ChildFuture(concurrent.futures.Future[R]):
    """A task that this one has submitted.

    Attributes:
        growth: of the process that has submitted it.
        task: that has submitted it, and alone can pass it on.
        number: what the pool calls it.
    """

    def __init__(self, growth: Growth | StoreGrowth, task: int, number: int) -> None:
        super().__init__()
        self.growth, self.task, self.number = growth, task, number
        self._waiters = self.waiters()

    def result(self, timeout: float | None = None) -> R:
        """See concurrent.futures.Future; the task rests meanwhile."""
        if super().done():
            return super().result()
        with self.resting(super().done, timeout):
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `result`."""
        if super().done():
            return super().exception()
        with self.resting(super().done, timeout):
            return super().exception(timeout)

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio

        with self.resting(super().done):
            return (yield from asyncio.wrap_future(self).__await__())

    def resting(self, done: Callable[[], bool], timeout: float | None = None) -> AbstractContextManager[None]:
        """What whoever waits for it, or for what is made of it, has to enter; see Growth.resting."""
        return self.growth.resting(done, timeout)

    def waiters(self) -> list[Any]:
        """A list for those who wait in `wait` or `as_completed`, who then rest."""
        return _Waiters(self.growth)

    def done(self) -> bool:
        """See concurrent.futures.Future; who asks may be waiting."""
        done = super().done()
        if not done:
            self._watched()
        return done

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[R]], object]) -> None:
        """See concurrent.futures.Future; who asks to be called may be waiting for that."""
        super().add_done_callback(fn)
        self._watched()

    def _watched(self) -> None:
        if isinstance(self.growth, Growth):
            self.growth.watched(self.task)

    def cancel(self) -> bool:
        """Cancel it; if it has started, it is ended."""
        if not super().cancel():
            return False
        self.growth.cancelled(self)
        return True

    def _invoke_callbacks(self) -> None:
        call_back(self, self._done_callbacks)  # type: ignore[attr-defined]  # typeshed leaves it out

    def __reduce__(self) -> Any:
        raise TypeError(
            "a future can be an argument of submit, or all that a task returns; inside of a list or the like its "
            "result() has to be returned"
        )


class _Waiters(list[Any]):
    """Those who wait in `wait` or `as_completed`; they rest."""

    def __init__(self, growth: Growth | StoreGrowth) -> None:
        super().__init__()
        self._growth = growth

    def append(self, waiter: Any) -> None:
        """One more."""
        if not isinstance(waiter.event, _RestingEvent):
            waiter.event = _RestingEvent(self._growth)
        super().append(waiter)


class _RestingEvent(threading.Event):
    def __init__(self, growth: Growth | StoreGrowth) -> None:
        super().__init__()
        self._growth = growth

    def wait(self, timeout: float | None = None) -> bool:
        if self.is_set():
            return True
        with self._growth.resting(self.is_set, timeout):
            return super().wait(timeout)


class ParentExecutor(concurrent.futures.Executor):
    """The executor as a task of it sees it.

    Args:
        task: that submits.
    """

    def __init__(self, growth: Growth | StoreGrowth, task: int) -> None:
        self._growth, self._task = growth, task
        self._children: list[ChildFuture[Any]] = []
        self._closed = False

    def submit(  # type: ignore[override]  # as the executor itself has it
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> ChildFuture[R]:
        """Make a task of a call; what of its resources cannot be is the error of its future."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        child: ChildFuture[R] = self._growth.submit(self._task, fn, (args, kwargs), resource_dict)
        self._children.append(child)
        return child

    def batched(
        self, list_of_futures: Sequence[concurrent.futures.Future[R]], n: int
    ) -> list[concurrent.futures.Future[list[R]]]:
        """See batches.batched."""
        return [*batches.batched(list_of_futures, n, batches.Batch)]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls through this object; the executor itself goes on."""
        self._closed = True
        for child in self._children if cancel_futures else ():
            child.cancel()
        if wait:
            concurrent.futures.wait(self._children)


class Growth:
    """What a worker's tasks have submitted; one for the life of the process.

    Args:
        worker: whose socket is read by this from now on.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._numbers = itertools.count()
        self._open: dict[int, ChildFuture[Any]] = {}
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()  # batches for the main thread; None: the pool is gone
        self._lock = threading.Lock()  # guards the count of those who rest, and is held until they may go on
        self._resters = 0
        self._go = threading.Event()
        self._gone = False
        self._watches = -1  # the last task that has said so
        threading.Thread(target=self._read, name="remoteexec-news", daemon=True).start()

    @property
    def task(self) -> int:
        """The task that runs."""
        return self._worker.task

    def next_calls(self) -> tuple[Any, Sequence[Any]]:
        """The next batch of calls, for the main thread.

        Raises:
            EOFError: the pool is gone.
        """
        batch: tuple[Any, Sequence[Any]] | None = self._calls.get()
        if batch is None:
            raise EOFError
        return batch

    def number_of(self, result: Any) -> int | None:
        """Number of a result that is the future of a child of the task that runs."""
        return result.number if isinstance(result, ChildFuture) and result.task == self.task else None

    def submit(
        self, task: int, fn: Callable[..., Any], call: tuple[Any, Any], resources: Mapping[str, Any] | None
    ) -> ChildFuture[Any]:
        """See ParentExecutor."""
        siblings: list[int] = []

        def refer(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
            if not isinstance(obj, concurrent.futures.Future):
                return None
            if isinstance(obj, ChildFuture) and obj.task == task:
                siblings.append(obj.number)
                return payload.resolve, (str(len(siblings) - 1),)
            with self.resting(obj.done):  # one of somebody else's, or of an earlier task
                return payload.given, (obj.result(),)

        arguments = payload.dumps_here(call, refer)
        known = self._worker.number_of(fn)
        function = payload.Pickled(b"") if known is not None else payload.dumps_here(fn)
        rest, function_buffers = pooled.split(function.data, function.buffers)
        data, buffers = pooled.split(arguments.data, arguments.buffers)
        wanted = None if resources is None else payload.dumps_here(resources).data
        child: ChildFuture[Any] = ChildFuture(self, task, next(self._numbers))
        self._open[child.number] = child
        ask = pooled.SubmitAsk(
            task, child.number, getattr(fn, "__qualname__", ""), known, (rest, len(function_buffers)),
            (data, len(buffers)), tuple(siblings), wanted
        )  # fmt: skip
        self._worker.say((pooled.SUBMIT, *ask), [*function_buffers, *buffers])
        if self._gone:
            self._fail_all()
        return child

    def watched(self, task: int) -> None:
        """A task wants to hear of a child's end in a way in which it may be waiting for that."""
        if task != self._watches and task == self.task:
            self._watches = task
            self._worker.say((pooled.WATCH, task))

    def cancelled(self, child: ChildFuture[Any]) -> None:
        """A child's future was cancelled here."""
        if self._open.pop(child.number, None) is not None:
            child.set_running_or_notify_cancel()
            self._worker.say((pooled.CANCEL, child.task, child.number))

    @contextmanager
    def resting(self, done: Callable[[], bool], timeout: float | None = None) -> Iterator[None]:
        """While the task waits for others its place is theirs; returns when it has a place again.

        Or when there is no more time for that: then the task goes on beside those that have the places.

        Args:
            done: whether what it waits for has come. A wait that ends without has been given up, whatever the reason.
            timeout: seconds for all of it, at the longest; None: no limit.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._resters += 1
            if self._resters == 1:
                self._worker.say((pooled.REST, self.task))
        try:
            yield
        finally:
            with self._lock:
                self._resters -= 1
                if not self._resters and not self._gone:
                    self._resume(until - time.monotonic() if done() else 0.0)

    def _resume(self, patience_s: float) -> None:
        """Wait for a place, but no longer than this; the pool answers once, whatever it is asked meanwhile."""
        self._go.clear()
        self._worker.say((pooled.RESUME, self.task))
        if not self._go.wait(None if patience_s == math.inf else min(patience_s, threading.TIMEOUT_MAX)):
            self._worker.say((pooled.OVERTAKE, self.task))
            self._go.wait()

    # ---- the reader thread ----

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                said, buffers = self._worker.read()
                if isinstance(said, list):
                    self._hear(said, buffers)
                else:
                    self._calls.put((said, buffers))
        self._gone = True
        self._calls.put(None)
        self._fail_all()
        self._go.set()

    def _hear(self, news: Sequence[pooled.News], buffers: Sequence[Any]) -> None:
        at = 0
        for number, ok, data, count in news:
            mine = buffers[at : at + count]
            at += count
            if number == pooled.GO:
                self._go.set()
                continue
            child = self._open.pop(number, None)
            if child is not None:
                _complete(child, ok, *pooled.joined(data, mine))

    def _fail_all(self) -> None:
        while self._open:
            _, child = self._open.popitem()
            child.set_exception(ChildLost("the pool is gone"))


def _complete(child: ChildFuture[Any], ok: bool | None, data: Any, buffers: Sequence[Any]) -> None:
    if ok is None:
        concurrent.futures.Future.cancel(child)
        child.set_running_or_notify_cancel()
        return
    if not child.set_running_or_notify_cancel():
        return
    try:
        if ok:
            child.set_result(payload.loads(data, buffers))
            return
        facts, pickled = failure.unpacked(data)
        exc = payload.loads(pickled.data) if pickled is not None else None
        if not isinstance(exc, BaseException):
            exc = ChildLost(f"{facts['type']}: {facts['message']}")
        exc.__cause__ = ChildTraceback(facts["traceback"])
    except BaseException as why:  # whatever the user's objects raise
        exc = ChildLost(f"what a child returned or raised cannot be loaded: {why!r}")
    child.set_exception(exc)
