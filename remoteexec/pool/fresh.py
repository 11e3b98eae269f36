"""A process for each call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import MappingProxyType

from remoteexec_server.wire import pooled

from .ledger import Ledger, Need, TooLarge
from .output import Output
from .pool import Pool
from .tasks import Broken, GpuVariables, PoolTask
from .workers import WorkerState, none_left
from .zygote_client import Ended, Launcher, NodeLost, NodeReady, NotStarted


class FreshWorkers(Pool):
    """A process for each call, forked when the call starts.

    What a call takes of the machine is free again when it has answered; its GPUs are when its process has ended. Where
    a process cannot be started, as too many files are open, say, its call waits for one that ends: then there are no
    more at once, but for one more with each that ends.

    Args:
        ledger: what the machine has, and the line.
        preload: modules that are imported once for all of them.
        gpu_variables: what in the environment shows a task its GPUs.
        output: see Pool.
        launcher: see Pool.
    """

    def __init__(
        self,
        ledger: Ledger[PoolTask],
        preload: Sequence[str] = (),
        gpu_variables: GpuVariables = MappingProxyType({}),
        output: Output | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self._ledger = ledger
        self._gpu_variables = gpu_variables
        self._numbers = itertools.count()
        self._nodes_lost, self._why_lost = False, ""
        self._most_at_once = math.inf  # processes; guarded by the lock
        super().__init__(preload, output, launcher)

    @property
    def waiting(self) -> int:
        """See Pool."""
        return len(self._ledger)

    def check(self, need: Need) -> None:
        """See Ledger.check."""
        self._ledger.check(need)

    def submit(self, task: PoolTask) -> None:
        """See Pool."""
        task.keep_buffers()
        if self._nodes_lost and self._is_hopeless(task):
            return
        with self._lock:
            if self._broken is None:
                self._begin_first(task)
                self._ledger.add(task)
        if self._broken is not None:
            self._refuse(task)
        else:
            self._start_what_fits()

    def withdraw(self) -> list[PoolTask]:
        """See Pool: each of them starts when it is given."""
        return []

    def cancel(self, task: PoolTask) -> bool:
        """See Pool."""
        with self._lock:
            worker = self._who_has(task)
            if worker is not None:
                self._kill(worker)
                return False
            task.give_up()
            return True

    def _start_what_fits(self) -> None:
        while True:
            with self._lock:
                self._let_go()
                may = self._broken is None and not self._resuming and len(self._workers) < self._most_at_once
                started = self._ledger.next() if may else None
                if started is None:
                    return
                task, gpus = started
                if not self._begins(task):
                    self._ledger.end(task.need, gpus)
                    continue
                try:
                    worker = self._new_worker(next(self._numbers), False, gpus)
                except OSError:  # too many open files, say: one that ends makes room
                    if self._workers:
                        self._ledger.put_back(task, gpus)
                        return
                    self._ledger.end(task.need, gpus)
                    reason: str | None = f"its process cannot be started: {self.refusal}"
                else:
                    worker.has[task.number] = task
                    worker.need, worker.gpus, worker.ready = task.need, gpus, True
                    ticket = worker.ticket()
                    self._watch_time(worker, task)
                    reason = None
            if reason is not None:
                task.end(Broken(reason))
            else:
                self._post(worker, ticket, [task], worker.fitted(task.setup, self._gpu_variables))

    def _rest(self, worker: WorkerState) -> None:
        with self._lock:
            self._stops_overtaking(worker)
            if worker.need is not None and not worker.resting:
                self._ledger.end(worker.need, worker.gpus)
                worker.resting = True
        self._start_what_fits()

    def _resume(self, worker: WorkerState) -> None:
        with self._lock:
            self._resuming.append(worker)
        self._start_what_fits()

    def _let_go(self) -> None:
        """Let those go on that rested and fit again; the caller holds the lock."""
        while self._resuming:
            worker = self._resuming[0]
            if worker.need is not None and worker.resting and not self._ledger.take(worker.need, worker.gpus):
                return
            self._resuming.popleft()
            self._go(worker)

    def _held_up(self) -> list[WorkerState] | None:
        if not self._resuming and not len(self._ledger):
            return None
        placed = [worker for worker in self._workers.values() if worker.need is not None and not worker.resting]
        return placed if all(worker.may_wait for worker in placed) else None

    def _start_more(self) -> None:
        self._start_what_fits()

    def _next_in_line(self) -> PoolTask | None:
        found = self._ledger.next()
        if found is None:
            return None
        self._ledger.end(found[0].need, found[1])
        return found[0]

    def _answered(self, worker: WorkerState, ended: Sequence[tuple[PoolTask, pooled.Result]]) -> None:
        if not worker.gpus:
            with self._lock:
                self._give_back(worker)
            self._start_what_fits()

    def _not_run(self, task: PoolTask) -> None:
        raise AssertionError("a process for one call has nothing to inherit")

    def _written(self, worker: WorkerState) -> None:
        pass

    def _halt(self, worker: WorkerState) -> None:
        pass

    def _lost(self, worker: WorkerState) -> list[PoolTask]:
        self._give_back(worker)
        return list(worker.has.values())

    def _buried(self, worker: WorkerState, started: list[PoolTask], report: Ended | NotStarted) -> None:
        if isinstance(report, NotStarted):
            self._put_back(started, report)
        else:
            self._most_at_once += 1
            for task in started:  # first: what they have submitted is not to start
                task.end(self._died(worker, report))
        self._start_what_fits()

    def _put_back(self, tasks: Sequence[PoolTask], report: NotStarted) -> None:
        """Their process could not be started: they wait for another to end, if there is one."""
        with self._lock:
            self._most_at_once = max(1, len(self._workers))
            self.refusal = report.reason
            waits = bool(self._workers) and self._broken is None
            for task in tasks if waits else ():
                self._ledger.add_first(task)
        for task in () if waits else tasks:
            task.end(Broken(f"its process cannot be started: {report.reason}"))

    def _lost_node(self, lost: NodeLost) -> None:
        super()._lost_node(lost)
        with self._lock:
            self._nodes_lost, self._why_lost = True, lost.why
            hopeless = self._ledger.lose(lost.node)
            self._kill_beside(lost)
        for task in hopeless:
            self._is_hopeless(task)
        self._start_what_fits()

    def _node_ready(self, ready: NodeReady) -> None:
        with self._lock:
            self._ledger.open(ready.node)
        self._start_what_fits()

    def _is_hopeless(self, task: PoolTask) -> bool:
        """Whether what the task asks for was lost with a node; then it is told so. Without the lock."""
        try:
            with self._lock:
                self._ledger.check(task.need)
        except TooLarge as exc:
            if task.begin():
                task.end(Broken(self._why_hopeless(exc), none_ran=not self._there))
            return True
        return False

    def _why_hopeless(self, refusal: TooLarge) -> str:
        left = f"nodes were lost, and {refusal}" if self._ledger.room.capacity else none_left(self._why_lost)
        return self._why_gone(left)

    def _give_back(self, worker: WorkerState) -> None:
        """The caller holds the lock."""
        self._stops_overtaking(worker)
        if worker.need is not None and not worker.resting:
            self._ledger.end(worker.need, worker.gpus)
        worker.need = None

    def _clear_line(self) -> list[PoolTask]:
        return self._ledger.clear()
