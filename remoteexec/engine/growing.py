"""Tasks that tasks submit: the pool's side of `remoteexec_server.growing`.

A child is a task like all others, but nothing of its outcome is unpickled here: its future holds the `End` it had,
whose bytes go to the task that asked for it, and into the calls of its siblings that take it as an argument. A task
that returns a child's future ends when that child does, with the same outcome, and has left its worker meanwhile.

All that is written down here is the pool thread's, but for the futures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from functools import partial
from typing import Any, Protocol

from remoteexec_server import failure
from remoteexec_server.wire import payload, pooled
from remoteexec_server.wire.names import TaskKey

from ..futures import Ran
from ..pool.pool import Pool
from ..pool.tasks import Answered, Broken, Died, End, Function, PoolFuture, PoolTask
from ..pool.workers import WorkerState
from . import tries
from .graph import Held


class ChildTask(PoolTask):
    """A task that a task has submitted.

    Attributes:
        depth: how many tasks stand between it and the user; deeper ones go first, so that few tasks wait at once.
        followers: tasks that have returned its future.
    """

    def __init__(self, number: int, future: PoolFuture[Any], owner: Growth, depth: int) -> None:
        super().__init__(number, future, owner)
        self.depth = depth
        self.followers: list[PoolTask] = []


class Host(Protocol):
    """The executor, as its children need it."""

    def adopt(self, make: Callable[[int], ChildTask]) -> ChildTask:
        """Count one more task that has not ended; `make` is told its number."""

    def release(self, number: int) -> None:
        """A task has ended."""

    def equip(self, task: ChildTask, resources: Mapping[str, Any] | None) -> None:
        """See to what it takes while it runs.

        Raises:
            ValueError: that cannot be.
        """

    def end_cancelled(self, task: PoolTask) -> None:
        """A task that has been begun is cancelled."""

    def tried_again(self, task: PoolTask, end: End) -> bool:
        """Whether another attempt follows this end of a task; then it is on its way."""

    def log_lost(self, task: PoolTask, exc: BaseException) -> None:
        """A task has not answered: its `error_log_file` is told."""

    def error(self, key: TaskKey, end: Died | Broken) -> BaseException:
        """What is said of a task that has not answered."""

    def interrupted(self) -> None:
        """See Owner."""

    def runs(self, key: TaskKey) -> Ran:
        """See Owner."""

    def forget(self, key: TaskKey) -> None:
        """See Owner."""

    def cancel_running(self, key: TaskKey) -> bool:
        """See Owner."""


class Growth:
    """The children of all tasks of one executor; see Owner.

    Args:
        host: the executor.
        known: the `Function` of these bytes.
    """

    def __init__(self, host: Host, known: Callable[[bytes, Sequence[memoryview]], Function]) -> None:
        self._host, self._known = host, known
        self._children: dict[int, dict[int, ChildTask]] = {}  # by the task that asked, and its name for them
        self.forget, self.cancel_running, self.interrupted = host.forget, host.cancel_running, host.interrupted
        self.runs = host.runs

    def asked(self, pool: Pool, worker: WorkerState, task: PoolTask, ask: pooled.Ask, buffers: Sequence[Any]) -> None:
        """A task asks for something; on the pool thread."""
        if ask[0] == pooled.SUBMIT:
            self._submit(pool, worker, task, pooled.SubmitAsk(*ask[1:]), [memoryview(each) for each in buffers])
        elif ask[0] == pooled.CANCEL:
            child = self._children.get(task.number, {}).get(ask[2])
            if child is not None:
                child.future.cancel()

    def _submit(
        self, pool: Pool, worker: WorkerState, task: PoolTask, ask: pooled.SubmitAsk, buffers: list[memoryview]
    ) -> None:
        rest, count = ask.function
        if ask.known == task.function.number:
            function = task.function
        else:
            data, its = pooled.joined(rest, buffers[:count])
            function = self._known(bytes(data), its)
        arguments = pooled.joined(ask.arguments[0], [view.toreadonly() for view in buffers[count:]])
        siblings = self._children.setdefault(task.number, {})
        inputs = [siblings[number] for number in ask.siblings]
        depth = getattr(task, "depth", 0) + 1

        def make(number: int) -> ChildTask:
            future: PoolFuture[End] = PoolFuture(TaskKey(f"t{number}"), self, ask.name)
            return ChildTask(number, future, self, depth)

        child = siblings[ask.child] = self._host.adopt(make)
        pool.has_child(task)
        child.future.add_done_callback(partial(self._done, pool, worker, task, ask.child, child))
        try:
            self._host.equip(child, None if ask.resources is None else payload.loads(ask.resources))
        except Exception as exc:  # whatever is wrong with what was asked for
            self.ended(child, _raised(exc))
            return
        call = (pool, child, function, arguments, inputs)
        if inputs:
            Held([each.future for each in inputs], call, lambda call: pool.post(partial(self._launch, *call)))
        else:
            self._launch(*call)

    def _launch(
        self,
        pool: Pool,
        child: ChildTask,
        function: Function,
        arguments: tuple[bytes, Sequence[memoryview]],
        inputs: Sequence[ChildTask],
    ) -> None:
        """Run a child whose inputs are done, or let it end like the first that failed."""
        values: list[tuple[bytes, Sequence[memoryview]]] = []
        for each in inputs:
            if each.future.cancelled():
                child.future.cancel()
                return
            end: End = each.future.result()
            if not isinstance(end, Answered) or not end.result[1]:
                self.ended(child, end)
                return
            data, buffers = pooled.joined(end.result[2], end.buffers)
            values.append((data, [memoryview(buffer).toreadonly() for buffer in buffers]))
        if not child.future.cancelled():
            child.fill(function, *arguments, values or None)
            pool.submit(child)

    def ended(self, task: PoolTask, end: End) -> None:
        """See Owner."""
        if self.parted(task, end) or self._host.tried_again(task, end):
            return
        if task.begin():
            try:
                task.future.set_result(tries.with_deaths(task, end))
            except InvalidStateError:  # cancelled while it ran
                pass
        self._host.release(task.number)

    def parted(self, task: PoolTask, end: End) -> bool:
        """A task has left its worker; whether it has not ended, since it has returned a child's future."""
        if isinstance(end, Answered) and end.result[1] is None:
            self._follow(task, end)
            return True
        self._leave_children(task, end)
        return False

    def _follow(self, task: PoolTask, end: Answered) -> None:
        """It ends when the child does."""
        assert end.result[2] is not None
        (number,) = pooled.TOKEN.unpack(end.result[2])
        child = self._children[task.number][number]
        task.resources = None  # from now on it is the child that may be tried again
        followers = [task]
        if isinstance(task, ChildTask):
            followers, task.followers = [*task.followers, task], []
        self._leave_children(task, end)
        if child.future.done():
            self._end_followers(followers, child)
        else:
            child.followers += followers

    def _leave_children(self, task: PoolTask, end: End) -> None:
        """What it has submitted goes on, unless it died and cannot have wanted that."""
        children = self._children.pop(task.number, None)
        if children and isinstance(end, Died):
            for child in children.values():
                child.future.cancel_waiting()

    # ---- what becomes of a child ----

    def _done(self, pool: Pool, worker: WorkerState, asker: PoolTask, number: int, child: ChildTask, _: object) -> None:
        pool.post(partial(self._tell, pool, worker, asker, number, child))

    def _tell(self, pool: Pool, worker: WorkerState, asker: PoolTask, number: int, child: ChildTask) -> None:
        """Tell who asked for a child how it ended, and let those who follow it end."""
        pool.child_ended(asker)
        followers, child.followers = child.followers, []
        self._end_followers(followers, child)
        if child.future.cancelled():
            pool.tell(worker, asker, [(number, None, b"", 0)])
            return
        end: End = child.future.result()
        if not isinstance(end, Answered):
            exc = self._host.error(child.future.key, end)
            self._host.log_lost(child, exc)
            end = _raised(exc)
        pool.tell(worker, asker, [(number, *end.result[1:4])], [memoryview(buffer) for buffer in end.buffers])

    def _end_followers(self, followers: Sequence[PoolTask], child: ChildTask) -> None:
        for task in followers:
            if child.future.cancelled():
                self._host.end_cancelled(task)
                continue
            end: End = child.future.result()
            if isinstance(end, Answered):
                end = end._replace(result=(task.number, *end.result[1:]))
            task.owner.ended(task, end)


def _raised(exc: BaseException) -> Answered:
    """As if the task had raised this."""
    now = time.time()
    return Answered((0, False, failure.packed(exc, "raised"), 0, now, now, 0, 0), ())
