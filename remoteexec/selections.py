"""Futures made of other futures: one item of a result, and the next n results of many.

They are proper futures: `as_completed`, `wait`, callbacks and `await` work with them, and they can be arguments of
further calls of any executor. A `Selection` of a task of the same executor is made where the dependant runs, so on a
cluster the rest of the result does not travel for its sake.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from remoteexec_server.wire import payload

from .futures import AwaitableFuture

__all__ = ["Batch", "Selection", "batched", "get_item_from_future", "split_future"]

R = TypeVar("R")
AnyFuture = concurrent.futures.Future[Any]


def split_future(future: AnyFuture, n: int) -> list[AwaitableFuture[Any]]:
    """Futures of the first n elements of a result that is a tuple, a list, or anything else with numbered items.

    Each fails with IndexError if there is no such element; see `get_item_from_future`.

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, not {n}")
    return [get_item_from_future(future, position) for position in range(n)]


def get_item_from_future(future: AnyFuture, key: Any) -> AwaitableFuture[Any]:
    """A future of `result[key]`: of a dictionary's value, or of an element by its position.

    It is None if the result is None, fails like `future`, and is cancelled with it. Cancelling it cancels nothing else.
    """
    if not isinstance(future, concurrent.futures.Future):
        raise TypeError(f"expected a future, got a {type(future).__qualname__}")
    return Selection(future, key)


class _Made(AwaitableFuture[Any]):
    """A future made of others. Within a task, whoever waits for one made of the task's children rests like who waits
    for them: see `remoteexec_server.growing`.

    Attributes:
        sources: the others.
    """

    def __init__(self, sources: Sequence[AnyFuture]) -> None:
        super().__init__()
        self.sources = tuple(sources)
        waiters = self.waiters()
        if waiters is not None:
            self._waiters = waiters

    def waiters(self) -> list[Any] | None:
        """See ChildFuture; None if nobody has to rest."""
        for source in self.sources:
            if hasattr(source, "waiters"):
                found: list[Any] | None = source.waiters()
                return found
        return None

    def resting(self, done: Callable[[], bool], timeout: float | None = None) -> AbstractContextManager[None]:
        """See ChildFuture."""
        resting = next((source.resting for source in self.sources if hasattr(source, "resting")), None)
        return nullcontext() if resting is None else resting(done, timeout)

    def result(self, timeout: float | None = None) -> Any:
        """See concurrent.futures.Future."""
        if self.done():
            return super().result()
        with self.resting(self.done, timeout):
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See concurrent.futures.Future."""
        if self.done():
            return super().exception()
        with self.resting(self.done, timeout):
            return super().exception(timeout)


class Selection(_Made):
    """One item of a future's result.

    Attributes:
        source: the future.
        key: which item.
    """

    def __init__(self, source: AnyFuture, key: Any) -> None:
        super().__init__([source])
        self.source, self.key = source, key
        source.add_done_callback(self._take)

    def running(self) -> bool:
        """Whether the source is running."""
        return self.source.running() and not self.done()

    def cancel(self) -> bool:
        """Cancel this item alone: others of the same result may be wanted."""
        return super().cancel() and not _begin(self)

    def _take(self, source: AnyFuture) -> None:
        if source.cancelled():
            self.cancel()
            return
        if not _begin(self):
            return
        exc = source.exception()
        if exc is not None:
            self.set_exception(exc)
            return
        try:
            value = payload.select(source.result(), self.key)
        except BaseException as why:  # what the result's own `[]` raises
            self.set_exception(why)
        else:
            self.set_result(value)


def _begin(future: AnyFuture) -> bool:
    """Whether a future may be completed; if it was cancelled, who waits for it is told so, once."""
    with future._condition:  # no other thread cancels it between the question and the answer
        return future._state != "CANCELLED_AND_NOTIFIED" and future.set_running_or_notify_cancel()


def batched(futures: Sequence[concurrent.futures.Future[R]], n: int) -> list[AwaitableFuture[list[R]]]:
    """Futures of the results of the next n futures to finish, and of the next n, and so on.

    The last batch holds what is left. Failed and cancelled futures count as the last to finish, so a batch fails only
    when no other result is left for it.

    Raises:
        ValueError: n is less than 1.
        TypeError: one of them is no future.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    for future in futures:
        if not isinstance(future, concurrent.futures.Future):
            raise TypeError(f"expected futures, got a {type(future).__qualname__}")
    return _Batches(futures, n).batches


class Batch(_Made):
    """The results of n of its sources, in the order in which they finished."""

    def cancel(self) -> bool:
        """Cancel this batch alone; the results it would have had are nobody's."""
        return super().cancel() and not _begin(self)


class _Batches:
    """Deals results to batches, in the order in which they come.

    Attributes:
        batches: in the order in which they are filled.
    """

    def __init__(self, futures: Sequence[AnyFuture], n: int) -> None:
        self._n, self._left = n, len(futures)
        self._lock = threading.Lock()  # guards what follows
        self._results: list[Any] = []
        self._failed: list[AnyFuture] = []
        self.batches: list[AwaitableFuture[Any]] = [Batch(futures) for _ in range(0, len(futures), n)]
        self._open = list(reversed(self.batches))
        for future in futures:
            future.add_done_callback(self._take)

    def _take(self, future: AnyFuture) -> None:
        failed = future.cancelled() or future.exception() is not None
        full: tuple[AnyFuture, list[Any]] | None = None
        lacking: list[AwaitableFuture[Any]] = []
        with self._lock:
            self._left -= 1
            (self._failed if failed else self._results).append(future if failed else future.result())
            if len(self._results) == self._n or not (self._left or self._failed):
                full, self._results = (self._open.pop(), self._results), []
            if not self._left:
                lacking, self._open = self._open, []
        if full is not None and _begin(full[0]):
            full[0].set_result(full[1])
        for batch in lacking:  # some futures failed, or these would be full
            _fail_like(batch, self._failed[0])


def _fail_like(batch: AnyFuture, failed: AnyFuture) -> None:
    if failed.cancelled():
        batch.cancel()
    elif _begin(batch):
        batch.set_exception(failed.exception())
