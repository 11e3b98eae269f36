"""What kinds of pools do in their own ways."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

from remoteexec_server.wire import pooled

from .tasks import PoolTask
from .workers import WorkerState
from .zygote_client import Ended, NodeLost, NodeReady, NotStarted

log = logging.getLogger("remoteexec")


class Choices(ABC):
    """Where a task goes, and what a worker does next; see `pool` for the rules that all keep."""

    @abstractmethod
    def submit(self, task: PoolTask) -> None:
        """Run a task; how it ends is told to the task, once, on any thread."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Tasks that no worker has."""

    @abstractmethod
    def withdraw(self) -> list[PoolTask]:
        """Take back what workers were given and have not started; the caller ends these tasks."""

    @abstractmethod
    def cancel(self, task: PoolTask) -> bool:
        """End a task that has been begun, with its worker if it runs.

        Returns:
            False if its end will be told; otherwise nothing more is heard of it.
        """

    @abstractmethod
    def _answered(self, worker: WorkerState, ended: Sequence[tuple[PoolTask, pooled.Result]]) -> None:
        """The worker has answered these: they are not in `has` any more. Called on the pool thread without the lock."""

    @abstractmethod
    def _not_run(self, task: PoolTask) -> None:
        """A worker has not run it, since there was nothing to inherit. The caller holds the lock."""

    @abstractmethod
    def _rest(self, worker: WorkerState) -> None:
        """The worker's task waits for others: its place is free. Called on the pool thread without the lock."""

    @abstractmethod
    def _resume(self, worker: WorkerState) -> None:
        """It wants a place again, before tasks that have not started: `_go` when there is one. See `_rest`.

        It is in `_resuming` until then, and nothing is started while anybody is.
        """

    @abstractmethod
    def _written(self, worker: WorkerState) -> None:
        """All was written and nobody writes any more; called without the lock."""

    @abstractmethod
    def _lost(self, worker: WorkerState) -> list[PoolTask]:
        """Forget a worker that is not in `_workers` any more; the tasks it had started. Under the lock."""

    @abstractmethod
    def _buried(self, worker: WorkerState, started: list[PoolTask], report: Ended | NotStarted) -> None:
        """The worker has ended while it had these. Called on the pool thread without the lock."""

    @abstractmethod
    def _halt(self, worker: WorkerState) -> None:
        """It has been stopped by a signal: take back what it has not started. The caller holds the lock."""

    @abstractmethod
    def _held_up(self) -> list[WorkerState] | None:
        """Those that have places, if something wants one and all of them may only be waiting. Under the lock."""

    @abstractmethod
    def _start_more(self) -> None:
        """Start what there is room for; on the pool thread without the lock."""

    @abstractmethod
    def _next_in_line(self) -> PoolTask | None:
        """Take the first out of the line. Under the lock."""

    def _lost_node(self, lost: NodeLost) -> None:
        """A node is gone; its workers are buried next. Called on the pool thread without the lock."""
        log.warning("node %s is lost: %s", lost.name, lost.why or "its agent has ended or cannot be reached")

    @abstractmethod
    def _node_ready(self, ready: NodeReady) -> None:
        """A node can run workers. Called on the pool thread without the lock."""

    def _heard(self, worker: WorkerState) -> None:  # noqa: B027  # workers of one call have nothing else
        """What it has not taken can be taken back. Called on the pool thread without the lock."""

    def _named(self, worker: WorkerState) -> int | None:
        """Its number, if that says more than which call it runs."""
        return None

    @abstractmethod
    def _clear_line(self) -> list[PoolTask]:
        """Take all tasks out of the line. Under the lock."""
