"""Futures made of other futures, and those of the next n results of many: for the user, and for tasks that submit.

Within a task, whoever waits for one made of the task's children rests like who waits for them: see `growing`.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

R = TypeVar("R")
B = TypeVar("B", bound="Batch")
AnyFuture = concurrent.futures.Future[Any]


class Made(concurrent.futures.Future[Any]):
    """A future made of others.

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

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def __reduce__(self) -> Any:
        raise TypeError("a future can be an argument of submit; in other places pass its result()")


def begin(future: AnyFuture) -> bool:
    """Whether a future may be completed; if it was cancelled, who waits for it is told so, once."""
    with future._condition:  # no other thread cancels it between the question and the answer
        return future._state != "CANCELLED_AND_NOTIFIED" and future.set_running_or_notify_cancel()


def batched(futures: Sequence[AnyFuture], n: int, make: Callable[[Sequence[AnyFuture]], B]) -> list[B]:
    """Futures of the results of the next n futures to finish, and of the next n, and so on.

    The last batch holds what is left. Failed and cancelled futures count as the last to finish, so a batch fails only
    when no other result is left for it.

    Args:
        make: a batch of these sources.

    Raises:
        ValueError: n is less than 1.
        TypeError: one of them is no future.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    for future in futures:
        if not isinstance(future, concurrent.futures.Future):
            raise TypeError(f"expected futures, got a {type(future).__qualname__}")
    batches = [make(futures) for _ in range(0, len(futures), n)]
    _Dealer(futures, batches, n)
    return batches


class Batch(Made):
    """The results of n of its sources, in the order in which they finished."""

    def cancel(self) -> bool:
        """Cancel this batch alone; the results it would have had are nobody's."""
        return super().cancel() and not begin(self)


class _Dealer:
    """Deals results to batches, in the order in which they come.

    Args:
        batches: in the order in which they are filled.
    """

    def __init__(self, futures: Sequence[AnyFuture], batches: Sequence[Batch], n: int) -> None:
        self._n, self._left = n, len(futures)
        self._lock = threading.Lock()  # guards what follows
        self._results: list[Any] = []
        self._failed: list[AnyFuture] = []
        self._open = list(reversed(batches))
        for future in futures:
            future.add_done_callback(self._take)

    def _take(self, future: AnyFuture) -> None:
        failed = future.cancelled() or future.exception() is not None
        full: tuple[Batch, list[Any]] | None = None
        lacking: list[Batch] = []
        with self._lock:
            self._left -= 1
            (self._failed if failed else self._results).append(future if failed else future.result())
            if len(self._results) == self._n or not (self._left or self._failed):
                full, self._results = (self._open.pop(), self._results), []
            if not self._left:
                lacking, self._open = self._open, []
        if full is not None and begin(full[0]):
            full[0].set_result(full[1])
        for batch in lacking:  # some futures failed, or these would be full
            _fail_like(batch, self._failed[0])


def _fail_like(batch: AnyFuture, failed: AnyFuture) -> None:
    if failed.cancelled():
        batch.cancel()
    elif begin(batch):
        batch.set_exception(failed.exception())
