"""Tasks of an executor that has a pool: how they start when their inputs are done, and how they end."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from remoteexec_server import failure
from remoteexec_server.wire import pooled
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.wire.resources import Resources

from .. import errors
from ..engine import tries
from ..engine.caching import Before
from ..engine.ends import broken, death, outcome
from ..engine.graph import failure_of, inputs_of
from ..engine.growing import Growth
from ..futures import Ran
from ..pool.fresh import FreshWorkers
from ..pool.kept import KeptWorkers
from ..pool.tasks import Broken, Died, End, Function, Heir, PoolFuture, PoolTask
from .base import BaseExecutor

log = logging.getLogger("remoteexec")
AnyFuture = concurrent.futures.Future[Any]
HeldCall = tuple[PoolTask, Function, Pickled, Sequence[AnyFuture]]


class PooledExecutor(BaseExecutor):
    """See above; what starts the pool and takes calls is its subclasses'."""

    def __init__(self, wait: bool) -> None:
        super().__init__(wait)
        self._lock = threading.Lock()  # guards all below
        self._pool: FreshWorkers | KeptWorkers | None = None
        self._open: dict[int, PoolTask] = {}
        self._none_open = threading.Condition(self._lock)
        self._before: dict[int, Before] = {}
        self._growth: Growth | None = None  # of the pool thread alone
        self._closed = False
        self._interrupted = False  # by Ctrl-C, while somebody waited for a result, and no call was submitted since
        self._chain = threading.local()
        self._error_log: str | None = None  # of kept workers, as they were told

    @abstractmethod
    def asked(self, pool: Any, worker: Any, task: PoolTask, ask: pooled.Ask, buffers: Sequence[Any]) -> None:
        """See pool.tasks.Owner."""

    def interrupted(self) -> None:
        """See pool.tasks.Owner."""
        self._interrupted = True

    def _bequeath(self, future: AnyFuture, call: Heir) -> None:
        """A call waits for this future alone: see PoolTask.heir."""
        if isinstance(future, PoolFuture) and future.owner is self and future.heir is None:
            future.heir = call
            if future.done():  # else it lets go of it when it is
                future.heir = None

    def _later(self, call: HeldCall) -> None:
        """A call's inputs are done; long chains of failures are followed one by one, not by recursion."""
        chain: deque[HeldCall] | None = getattr(self._chain, "calls", None)
        if chain is not None:
            chain.append(call)
            return
        self._chain.calls = chain = deque([call])
        try:
            while chain:
                self._launch(*chain.popleft())
        finally:
            self._chain.calls = None

    def _launch(self, task: PoolTask, function: Function, arguments: Pickled, futures: Sequence[AnyFuture]) -> None:
        """Run a call whose inputs are done, or let it fail like the first that failed."""
        before = self._before.pop(task.number, None)
        hit = before() if before is not None and not task.future.cancelled() else None
        if hit is not None:
            self._settle(task, hit.result, hit.exception)
            return
        if task.future.cancelled():
            return
        exc = failure_of(futures)
        if exc is None:
            if task.inherited:
                return
            try:
                inputs = inputs_of(futures)
            except BaseException as why:  # whatever the results' own pickling raises
                exc = errors.CallNotPicklable(f"an input cannot be pickled: {why}")
        if exc is not None:
            self._settle(task, None, exc)
            return
        task.fill(function, arguments.data, arguments.buffers, inputs)
        assert self._pool is not None
        self._pool.submit(task)

    def ended(self, task: PoolTask, end: End) -> None:
        """See pool.tasks.Owner."""
        if self._growth is not None and self._growth.parted(task, end):
            return
        try:
            if task.resources is None and not task.deaths:  # most often
                result, exc = outcome(task.future, end)
            elif self.tried_again(task, end):
                return
            else:
                result, exc = outcome(task.future, tries.with_deaths(task, end))
                attempts = len(task.deaths) + (not isinstance(end, Broken))
                task.future.ran = task.future.ran._replace(attempts=attempts or None)
            if isinstance(exc, errors.TaskLost):
                self.log_lost(task, exc)
        except BaseException as why:  # the pool thread's edge: the future must not wait for ever
            result, exc = None, why
        self._settle(task, result, exc)

    def log_lost(self, task: PoolTask, exc: BaseException) -> None:
        """See engine.growing.Host: to the file that its process would have written to."""
        path = self._error_log if task.setup is None else task.setup.get("error_log")
        failure.log_lost(path, task.future.task.function, exc)

    def tried_again(self, task: PoolTask, end: End) -> bool:
        """See engine.growing.Host. It goes to the end of the line: what ends its workers is to keep nobody waiting."""
        following = tries.following(task, end)
        if following is None:
            return False
        loss = following.loss
        log.info("task %s is tried again after %s: %s", task.future.key, loss.reason, loss.message)
        task.deaths, task.watches = (*task.deaths, loss), False
        self._prepare(task, following.resources)
        assert self._pool is not None  # it has run the task
        self._pool.submit(task)
        return True

    @abstractmethod
    def _prepare(self, task: PoolTask, resources: Resources) -> None:
        """See to what a further attempt of a task takes while it runs."""

    def _settle(self, task: PoolTask, result: Any, exc: BaseException | None) -> None:
        if task.begin():
            try:
                if exc is None:
                    task.future.set_result(result)
                else:
                    task.future.set_exception(exc)
            except concurrent.futures.InvalidStateError:
                pass  # cancelled while it ran
        task.let_go()
        self.release(task.number)

    def forget(self, key: TaskKey) -> None:
        """See pool.tasks.Owner."""
        task = self._open.get(int(key[1:]))
        if task is not None:
            task.begin()  # tells who waits for it
            task.give_up()
            self.release(task.number)

    def cancel_running(self, key: TaskKey) -> bool:
        """See pool.tasks.Owner."""
        task = self._open.get(int(key[1:]))
        if task is not None and (self._pool is None or self._pool.cancel(task)):
            self.release(task.number)
        return True

    def runs(self, key: TaskKey) -> Ran:
        """See pool.tasks.Owner."""
        task, pool = self._open.get(int(key[1:])), self._pool
        return Ran() if task is None or pool is None else pool.where(task)

    def end_cancelled(self, task: PoolTask) -> None:
        """See engine.growing.Host."""
        task.give_up()
        task.future.end_cancelled()
        self.release(task.number)

    def error(self, key: TaskKey, end: Died | Broken) -> BaseException:
        """See engine.growing.Host."""
        return death(key, end) if isinstance(end, Died) else broken(key, end)

    def release(self, number: int) -> None:
        """See engine.growing.Host."""
        with self._lock:
            self._open.pop(number, None)
            if self._open or not self._closed:
                return
            pool = self._pool
            self._none_open.notify_all()
        if pool is not None:
            pool.abandon()
