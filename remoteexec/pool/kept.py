"""Workers that are kept: each runs one call after the other."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence

from remoteexec_server.wire import pooled

from .output import Output
from .pool import Pool
from .tasks import Died, PoolTask, visible, with_environment
from .workers import POOL, WorkerState
from .zygote_client import BUFFER, Ended, NotStarted

_AHEAD = 64
"""Calls a worker may have at most, so that it never waits for the next."""
_AHEAD_S = 0.02
"""Seconds of work a worker may have: what waits behind a call cannot be cancelled as cheaply as in the line. Calls
that take longer than this have one call behind them."""
_AHEAD_BYTES = 128 * 1024
"""What is sent ahead is to fit the socket: more would be left to the pool thread."""
_LEAST_S = 1e-6
_SMALL = 2 * BUFFER + pooled.CHUNK
"""Calls of less may lie in the socket when `submit` returns, but for what the worker reads before it takes the token,
and are copied; of larger ones it has read more then, and so has taken the token."""

log = logging.getLogger("remoteexec")


class KeptWorkers(Pool):
    """Workers that run one call after the other.

    Args:
        size: how many.
        setup: what each is made to be.
        restarts: how many workers that died are replaced, in all.
        preload: modules that are imported once for all of them.
        gpus: for each worker; the first `size` are used first.
        gpu_variables: names in the environment that show a worker its GPUs.
        output: see Pool.

    Raises:
        OSError: not one worker could be started.
    """

    def __init__(
        self,
        size: int,
        setup: pooled.Setup,
        restarts: int = 0,
        preload: Sequence[str] = (),
        gpus: Sequence[tuple[str, ...]] = (),
        gpu_variables: Sequence[str] = (),
        output: Output | None = None,
    ) -> None:
        self._line: deque[PoolTask] = deque()
        self._idle: dict[int, WorkerState] = {}
        self._setup, self._restarts, self._size = setup, restarts, size
        self._gpus, self._gpu_variables = list(gpus), gpu_variables
        self._pace_s = _AHEAD_S  # of a call, on average of late
        self._grown = False  # a task has rested: there may be more workers than places
        self._spares: list[WorkerState] = []
        self._resuming: deque[WorkerState] = deque()
        super().__init__(preload, output)
        try:
            self.resize(size)
        except BaseException:
            self.stop()
            raise

    @property
    def waiting(self) -> int:
        """See Pool."""
        return len(self._line)

    def resize(self, size: int) -> None:
        """Have this many workers from now on; those too many end after their present call.

        Raises:
            OSError: not one could be started.
        """
        with self._lock:
            self._size = size
            living = self._placed()
            for worker in living[size:]:
                worker.retiring = True
                self._requeue(self._take_back(worker))
                self._dismiss_if_done(worker)
            self._let_go()
            missing = size - len(self._placed())
        for _ in range(missing):
            if not self._start():
                break
        self._feed_idle()

    def submit(self, task: PoolTask) -> None:
        """See Pool."""
        if task.buffers and (not self._idle or task.size < _SMALL):
            task.keep_buffers()
        with self._lock:
            if self._broken is None:
                worker = None
                if not self._idle:
                    task.keep_buffers()
                    self._line_up(task)
                elif not task.begin():
                    return
                else:
                    worker = self._idle.popitem()[1]
                    ticket = worker.ticket()
                    self._give(worker, [task])
        if self._broken is not None:
            self._refuse(task)
        elif worker is not None:
            self._post(worker, ticket, [task], wait=True)
        elif self._grown:
            self._make_up()

    def _line_up(self, task: PoolTask) -> None:
        if task.depth:
            self._line.insert(bisect.bisect_right(self._line, -task.depth, key=_shallowness), task)
        else:
            self._line.append(task)

    def withdraw(self) -> list[PoolTask]:
        """See Pool."""
        taken: list[PoolTask] = []
        with self._lock:
            for worker in self._workers.values():
                back = self._take_back(worker)
                if back and not worker.has:  # what it is about to start counts as started
                    self._give(worker, back[:1])
                    del back[0]
                taken += back
        return taken

    def cancel(self, task: PoolTask) -> bool:
        """See Pool."""
        with self._lock:
            worker = self._who_has(task)
            if worker is not None:
                self._requeue(self._take_back(worker))
                if task.number in worker.has:
                    self._kill(worker)
                    return False
                self._free(worker)
            task.give_up()
        self._feed_idle()
        return True

    def _start(self) -> bool:
        """One more worker, with work if there is some; False if no more can be started for now."""
        with self._lock:
            if self._broken is not None or self._stopping:
                return False
            number = next(n for n in itertools.count() if n not in self._workers)
            try:
                worker = self._new_worker(number, kept=True)
            except OSError as exc:
                if not self._workers:
                    raise
                log.warning("only %d of %d workers could be started: %s", len(self._workers), self._size, exc)
                return False
            worker.gpus = self._gpus.pop(0) if self._gpus else self._lent_gpus()
            ticket = worker.ticket()
            tasks = self._portion(worker)
        self._post(worker, ticket, tasks, with_environment(self._setup, visible(worker.gpus, self._gpu_variables)))
        return True

    def _portion(self, worker: WorkerState) -> list[PoolTask]:
        """Take from the line what this worker is given now; the caller holds the lock, and posts it."""
        tasks: list[PoolTask] = []
        if not self._line or worker.halted:
            return tasks
        share = len(self._line) // max(1, self._size) + 1
        most = min(share, max(2, min(_AHEAD, int(_AHEAD_S / self._pace_s))) - len(worker.has))
        load = worker.load
        while self._line and len(tasks) < most:
            task = self._line[0]
            ahead = bool(tasks or worker.has)
            if ahead and (task.walltime_s is not None or load + task.size > _AHEAD_BYTES):
                break
            self._line.popleft()
            if task.begin():
                tasks.append(task)
                load += task.size
                if task.walltime_s is not None:
                    break
        if tasks:
            self._give(worker, tasks)
        return tasks

    def _give(self, worker: WorkerState, tasks: Sequence[PoolTask]) -> None:
        """The worker has these tasks from now on; the caller holds the lock, and posts them when it has released it."""
        for task in tasks:
            worker.has[task.number] = task
            worker.load += task.size
        handle = worker.endpoint.token_in
        assert handle is not None  # it is not buried
        os.write(handle, pooled.TOKENS[len(tasks)].pack(*[task.number for task in tasks]))
        if worker.ready:
            self._watch_time(worker, tasks[0])

    def _take_back(self, worker: WorkerState) -> list[PoolTask]:
        """Tasks of a worker that it has not started, and now will not; the caller holds the lock."""
        if worker.endpoint.token_out is None or not worker.has:
            return []
        try:
            tokens = os.read(worker.endpoint.token_out, pooled.TOKEN.size * len(worker.has))
        except BlockingIOError:
            return []
        tasks = [worker.has.pop(number) for (number,) in pooled.TOKEN.iter_unpack(tokens)]
        worker.load -= sum([task.size for task in tasks])
        return tasks

    def _requeue(self, tasks: Sequence[PoolTask]) -> None:
        """Tasks that were taken back are the first in line again; the caller holds the lock."""
        for task in tasks:
            task.keep_buffers()
        self._line.extendleft(reversed(tasks))

    def _free(self, worker: WorkerState) -> None:
        """It may have nothing to do now: then it is free; the caller holds the lock, and calls `_feed_idle` after."""
        if worker.has or worker.halted or worker.writer is not None or worker.number not in self._workers:
            return
        if worker.retiring:
            self._dismiss_if_done(worker)
        elif self._grown and (self._resuming or len(self._placed()) > self._size):
            self._put_aside(worker)
        else:
            self._idle[worker.number] = worker

    def _dismiss_if_done(self, worker: WorkerState) -> None:
        """A retiring worker with nothing to do ends; its report comes. The caller holds the lock."""
        if not worker.has:
            self._idle.pop(worker.number, None)
            with contextlib.suppress(OSError):  # it is gone already
                worker.endpoint.sock.shutdown(socket.SHUT_RDWR)

    # ---- tasks that wait for tasks ----

    def _placed(self) -> list[WorkerState]:
        """Those that may run calls: `size` of them, but for those that retire. The caller holds the lock."""
        return [w for w in self._workers.values() if not (w.retiring or w.resting or w.spare)]

    def _rest(self, worker: WorkerState) -> None:
        with self._lock:
            worker.resting = self._grown = True
            self._requeue(self._take_back(worker))
        self._make_up()

    def _make_up(self) -> None:
        """See that there are workers for what waits, in the places of those that rest; without the lock."""
        while True:
            with self._lock:
                self._let_go()
                if len(self._placed()) >= self._size:
                    break
                if self._spares:
                    worker = self._spares.pop()
                    worker.spare = False
                    self._free(worker)
                    continue
                if not self._line:
                    break
            if not self._start():
                break
        self._feed_idle()

    def _resume(self, worker: WorkerState) -> None:
        with self._lock:
            self._resuming.append(worker)
            if len(self._placed()) >= self._size and self._idle:
                self._put_aside(self._idle.popitem()[1])
            self._let_go()

    def _let_go(self) -> None:
        """Let those go on that rested, as far as there are places; the caller holds the lock."""
        while self._resuming and len(self._placed()) < self._size:
            self._go(self._resuming.popleft())

    def _put_aside(self, worker: WorkerState) -> None:
        """A worker has nothing and no place; some are kept for the next time. The caller holds the lock."""
        worker.spare = True
        if len(self._spares) < self._size:
            self._spares.append(worker)
        else:
            worker.retiring = True
            self._dismiss_if_done(worker)
        self._let_go()

    def _lent_gpus(self) -> tuple[str, ...]:
        """Those of a worker that rests, for the one in its place."""
        return next((worker.gpus for worker in self._workers.values() if worker.resting), ())

    def _answered(self, worker: WorkerState, ended: Sequence[tuple[PoolTask, pooled.Result]]) -> None:
        took_s = sum([result[5] - result[4] for _, result in ended]) / len(ended)
        with self._lock:
            self._pace_s = (self._pace_s + took_s) / 2 + _LEAST_S
            if worker.retiring:
                self._dismiss_if_done(worker)
                return
            if self._resuming:  # they go before what has not started
                self._requeue(self._take_back(worker))
                self._free(worker)
                return
            if worker.halted:
                self._halt(worker)
                return
            if worker.has and (not self._line or len(worker.has) > _AHEAD // 2):
                return
            if not worker.has and not self._line and len(self._idle) < len(self._workers) - 1:
                self._steal(worker)
            more = self._portion(worker)
            if not more:
                self._free(worker)
                return
            ticket = POOL if worker.pending else worker.ticket()
        self._post(worker, ticket, more)

    def _steal(self, thief: WorkerState) -> None:
        """A worker is free: tasks that wait behind the longest line of another come back; the caller holds the lock."""
        victim = max(self._workers.values(), key=_length)
        if victim is not thief and len(victim.has) > 1:
            tasks = self._take_back(victim)
            self._requeue(tasks)

    def _written(self, worker: WorkerState) -> None:
        with self._lock:
            self._free(worker)
        self._feed_idle()

    def _feed_idle(self) -> None:
        """What came back into the line goes to those that are free."""
        while True:
            with self._lock:
                if not self._idle or not self._line:
                    return
                worker = self._idle.popitem()[1]
                tasks = self._portion(worker)
                if not tasks:  # all were cancelled
                    self._idle[worker.number] = worker
                    return
                ticket = worker.ticket()
            self._post(worker, ticket, tasks)

    def _halt(self, worker: WorkerState) -> None:
        self._idle.pop(worker.number, None)
        self._requeue(self._take_back(worker))

    def _lost(self, worker: WorkerState) -> list[PoolTask]:
        self._idle.pop(worker.number, None)
        for others in (self._spares, self._resuming):
            if worker in others:
                others.remove(worker)
        self._let_go()
        self._requeue(self._take_back(worker))
        if worker.gpus and all(worker.gpus != other.gpus for other in self._workers.values()):
            self._gpus.insert(0, worker.gpus)
        return list(worker.has.values())

    def _buried(self, worker: WorkerState, started: list[PoolTask], report: Ended | NotStarted) -> None:
        with self._lock:
            ours = worker.timed_out or worker.cancelled
            living = len(self._placed())
            replace = not self._stopping and living < self._size and not isinstance(report, NotStarted)
            if replace and not ours and not worker.retiring:
                replace = self._restarts > 0
                self._restarts -= replace
        if isinstance(report, Ended):
            for task in started:
                task.end(Died(report.pid, report.status, worker.timed_out))
        if not (replace and self._start()) and not self._workers and not self._stopping:
            said = f": {report.reason}" if isinstance(report, NotStarted) else ""
            self._break(f"its last worker has ended{said}")
        if self._grown:
            self._make_up()
        self._feed_idle()

    def _named(self, worker: WorkerState) -> int | None:
        return worker.number

    def _clear_line(self) -> list[PoolTask]:
        tasks, self._line = list(self._line), deque()
        return tasks


def _shallowness(task: PoolTask) -> int:
    return -task.depth


def _length(worker: WorkerState) -> int:
    return len(worker.has)
