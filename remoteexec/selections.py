"""Futures made of other futures: one item of a result, and the next n results of many.

They are proper futures: `as_completed`, `wait`, callbacks and `await` work with them, and they can be arguments of
further calls of any executor. A `Selection` of a task of the same executor is made where the dependant runs, so on a
cluster the rest of the result does not travel for its sake.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import Any, TypeVar

from remoteexec_server import batches
from remoteexec_server.batches import begin
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


class _Made(AwaitableFuture[Any], batches.Made):
    """See `batches`; asyncio can wait for it, and it can be an argument."""


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
        return super().cancel() and not begin(self)

    def _take(self, source: AnyFuture) -> None:
        if source.cancelled():
            self.cancel()
            return
        if not begin(self):
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


class Batch(_Made, batches.Batch):
    """The results of n of its sources, in the order in which they finished."""


def batched(futures: Sequence[concurrent.futures.Future[R]], n: int) -> list[AwaitableFuture[list[R]]]:
    """See `batches.batched`."""
    return [*batches.batched(futures, n, Batch)]
