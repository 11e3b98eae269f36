"""The future of a task: `concurrent.futures.Future` that knows which task it stands for."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, TypeVar

from remoteexec_server.wire.messages import TaskKey

R = TypeVar("R")


class TaskFuture(concurrent.futures.Future[R]):
    """What `submit` returns. As an argument of another call of the same executor it stands for its result.

    Attributes:
        key: name of the task in its session, and of its files on the cluster.
        owner: what makes two futures siblings: their executor's driver.
    """

    def __init__(self, key: TaskKey, owner: object, on_cancel: Callable[[TaskKey], None]) -> None:
        super().__init__()
        self.key = key
        self.owner = owner
        self._on_cancel = on_cancel
        self._shown: bool | None = None  # what `show_running` answered; of the driver thread alone

    def cancel(self) -> bool:
        """Cancel the task unless it has started; see concurrent.futures.Future.cancel."""
        before = self.cancelled()
        if not super().cancel():
            return False
        if not before:
            self._on_cancel(self.key)
        return True

    def show_running(self) -> bool:
        """For the driver: the future is running, and may be completed; may be said again.

        Returns:
            False if it was cancelled before; who waits for it is then told so, once, whatever the driver hears first,
            the outcome or the cancellation.
        """
        if self._shown is None:
            self._shown = self.set_running_or_notify_cancel()
        return self._shown

    def __reduce__(self) -> Any:
        raise TypeError(
            "a future can only be an argument of the executor's own submit: in other places pass its result()"
        )
