"""Workers that are kept: each runs one call after the other."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple

from remoteexec_server.wire import pooled

from .output import Output
from .pool import Pool
from .tasks import GpuVariables, PoolTask, how_ended, nodes_beside
from .workers import POOL, WorkerState, none_left
from .zygote_client import BUFFER, Ended, Launcher, NodeLost, NodeReady, NotStarted

_AHEAD, _FAR_AHEAD = 64, 256
"""Calls a worker may have at most, so that it never waits for the next: there is more on the way to and from another
machine."""
_AHEAD_S = 0.02
"""Seconds of work a worker may have: what waits behind a call cannot be cancelled as cheaply as in the line. Calls
that take longer than this have one call behind them."""
_AHEAD_BYTES = 128 * 1024
"""What is sent ahead is to fit the socket: more would be left to the pool thread."""
_LEAST_S = 1e-6
_FAR_S = 0.005
"""What is done sooner is not taken back from a worker of another machine: to ask takes as long. Picked."""
_SMALL = 2 * BUFFER + pooled.CHUNK
"""Calls of less may lie in the socket when `submit` returns, but for what the worker reads before it takes the token,
and are copied; of larger ones it has read more then, and so has taken the token."""

_ANYWHERE: tuple[str, ...] = ()
"""The place of a worker that has none of its own."""
log = logging.getLogger("remoteexec")


class Places(NamedTuple):
    """Where workers may be.

    Attributes:
        size: how many.
        restarts: how many workers that died are replaced, in all.
        gpus: for each worker, at least `size` of them if they have any, or ranks on several nodes; each is an object
            of its own.
        gpu_variables: what in the environment shows a worker its GPUs.
    """

    size: int
    restarts: int = 0
    gpus: Sequence[tuple[str, ...]] = ()
    gpu_variables: GpuVariables = MappingProxyType({})


class KeptWorkers(Pool):
    """Workers that run one call after the other.

    Args:
        places: what there is for how many.
        setup: what each is made to be.
        preload: modules that are imported once for all of them.
        output: see Pool.
        launcher: see Pool.

    Raises:
        OSError: not one worker could be started.
    """

    def __init__(
        self,
        places: Places,
        setup: pooled.Setup,
        preload: Sequence[str] = (),
        output: Output | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self._line: deque[PoolTask] = deque()
        self._idle: dict[int, WorkerState] = {}
        self._setup, self._size = setup, places.size
        self._restarts = self._restart_limit = places.restarts
        self._gpus, self._gpu_variables = list(places.gpus), places.gpu_variables
        self._has_gpus = bool(self._gpus)
        self._pace_s = _AHEAD_S  # of a call, on average of late
        self._ahead = _AHEAD
        self._absent = 0  # workers whose nodes are not ready: something is left in the line for them
        self._grown = False  # a task has rested: there may be more workers than places
        self._shrunk = False  # so there may after `resize`
        self._spares: list[WorkerState] = []
        super().__init__(preload, output, launcher)
        if self._zygote.far:
            self._ahead = _FAR_AHEAD
        try:
            self.resize(places.size)
        except BaseException:
            self.stop()
            raise

    @property
    def waiting(self) -> int:
        """See Pool."""
        return len(self._line)

    def resize(self, size: int) -> None:
        """Have this many workers from now on.

        Of those too many the ones with nothing to do end now, and others as they answer, whoever does so first: more
        than `size` run only what they ran before.

        Raises:
            OSError: not one could be started.
        """
        size = self._most(size)
        with self._lock:
            self._size = size
            self._shrunk = len(self._placed()) > size
            for worker in self._placed() if self._shrunk else ():
                self._requeue(self._take_back(worker))
                self._free(worker)
            self._let_go()
            missing = size - len(self._placed())
        for _ in range(missing):
            if not self._start():
                break
        self._feed_idle()

    def submit(self, task: PoolTask) -> None:
        """See Pool."""
        if task.buffers and (not self._idle or task.size < _SMALL or self._zygote.far or task.resources is not None):
            task.keep_buffers()
        with self._lock:
            task.held = False
            if task.stray:  # in line when its worker has said so
                return
            if self._broken is None:
                worker = None
                if not self._idle:
                    task.keep_buffers()
                    self._begin_first(task)
                    self._line_up(task)
                elif not self._begins(task):
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
            gpus = next((each for each in self._gpus if self._not_lent(each)), _ANYWHERE)
            if self._has_gpus and gpus is _ANYWHERE:  # one that ends has them still
                return False
            number = next(n for n in itertools.count() if n not in self._workers)
            try:
                worker = self._new_worker(number, kept=True, place=gpus)
            except OSError:
                if not self._workers:
                    raise
                if not self._grown:
                    count = len(self._workers), self._size
                    log.warning("only %d of %d workers could be started: %s", *count, self.refusal)
                return False
            worker.gpus = gpus
            self._absent += not worker.endpoint.there
            ticket = worker.ticket()
            tasks = self._portion(worker)
        self._post(worker, ticket, tasks, worker.fitted(self._setup, self._gpu_variables))
        return True

    def _count_absent(self) -> None:
        """The caller holds the lock."""
        endpoints = [worker.endpoint for worker in self._workers.values()]
        self._absent = sum([not (each.there or each.lost) for each in endpoints])

    def _portion(self, worker: WorkerState, others: int = 0) -> list[PoolTask]:
        """Take from the line what this worker is given now; the caller holds the lock, and posts it.

        Args:
            others: that are free, too, and can have as much.
        """
        tasks: list[PoolTask] = []
        if worker.halted or worker.lost or not worker.endpoint.there:
            return tasks
        share = max(0, len(self._line) - self._absent) // max(1, self._size) + 1
        if others:
            share = min(share, -(-len(self._line) // (others + 1)))
        most = min(share, max(2, min(self._ahead, int(_AHEAD_S / self._pace_s))) - len(worker.has))
        load = worker.load
        while self._line and len(tasks) < most:
            task = self._line[0]
            ahead = bool(tasks or worker.has)
            if ahead and (task.walltime_s is not None or load + task.size > _AHEAD_BYTES):
                break
            self._line.popleft()
            if self._begins(task):
                tasks.append(task)
                load += task.size
                if task.walltime_s is not None:
                    break
        if not self._line:
            self._add_heirs(worker, tasks, load)
        if tasks:
            self._give(worker, tasks)
        return tasks

    def _add_heirs(self, worker: WorkerState, tasks: list[PoolTask], load: int) -> None:
        """Add what waits for the last of a worker's tasks alone, and so on, if they are short; see PoolTask.heir."""
        room = int(_AHEAD_S / self._pace_s)
        if room <= 2 or self._setup.get("launch") is not None:
            return
        last = tasks[-1] if tasks else next(reversed(worker.has.values()), None)
        room = min(self._ahead, room) - len(worker.has) - len(tasks)
        while last is not None and room > 0 and load < _AHEAD_BYTES:
            last = last.bequeath()
            if last is not None:
                last.begin()
                tasks.append(last)
                load += last.size
            room -= 1

    def _give(self, worker: WorkerState, tasks: Sequence[PoolTask]) -> None:
        """The worker has these tasks from now on; the caller holds the lock, and posts them when it has released it."""
        if not worker.has:
            worker.since = time.time()
        for task in tasks:
            worker.has[task.number] = task
            worker.load += task.size
        worker.endpoint.give([task.number for task in tasks])
        if worker.ready:
            self._watch_time(worker, tasks[0])

    def _take_back(self, worker: WorkerState) -> list[PoolTask]:
        """Tasks of a worker that it has not started, and now will not; the caller holds the lock."""
        if not worker.has:
            return []
        numbers = worker.endpoint.take_back(worker.has)
        tasks = [task for number in numbers if (task := worker.take(number)) is not None]
        for task in tasks:
            if task.held:
                task.inherited = False
        return tasks

    def _requeue(self, tasks: Sequence[PoolTask]) -> None:
        """Tasks that were taken back are the first in line again; the caller holds the lock.

        Those that were to inherit and wait for that again are not: they will be submitted.
        """
        for task in tasks:
            task.keep_buffers()
        self._line.extendleft([task for task in reversed(tasks) if not task.held])

    def _free(self, worker: WorkerState) -> None:
        """It may have nothing to do now: then it is free; the caller holds the lock, and calls `_feed_idle` after."""
        if worker.has or worker.halted or worker.lost or worker.writer is not None:
            return
        if (
            not worker.endpoint.there
            or worker.retiring
            or worker.spare
            or self._workers.get(worker.number) is not worker
        ):  # its number lives on
            return
        if self._too_many():
            self._put_aside(worker)
        else:
            self._idle[worker.number] = worker

    def _too_many(self) -> bool:
        """Whether a worker that has nothing is to leave its place; the caller holds the lock."""
        if not (self._grown or self._shrunk):  # most often
            return False
        many = len(self._placed()) > self._size
        self._shrunk = self._shrunk and many
        return many or bool(self._resuming)

    def _dismiss(self, worker: WorkerState) -> None:
        """A worker that has nothing ends; its report comes. The caller holds the lock."""
        worker.retiring = True
        with contextlib.suppress(OSError):  # it is gone already
            worker.endpoint.sock.shutdown(socket.SHUT_RDWR)

    # ---- tasks that wait for tasks ----

    def _placed(self) -> list[WorkerState]:
        """Those that may run calls: `size` of them, but for those that retire. The caller holds the lock."""
        return [w for w in self._workers.values() if not (w.retiring or w.resting or w.spare)]

    def _rest(self, worker: WorkerState) -> None:
        with self._lock:
            self._stops_overtaking(worker)
            worker.resting = self._grown = True
            self._requeue(self._take_back(worker))
        self._make_up()

    def _make_up(self) -> None:
        """See that there are workers for what waits, in the places of those that rest; without the lock."""
        while True:
            with self._lock:
                self._let_go()
                if self._resuming or len(self._placed()) >= self._size:
                    break
                worker = next((spare for spare in self._spares if self._not_lent(spare.gpus)), None)
                if worker is not None:
                    self._spares.remove(worker)
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
            if not worker.resting:  # a thread asks that an earlier task left behind: this one has its place
                self._go(worker)
                return
            self._resuming.append(worker)
            self._let_go()
            for idle in list(self._idle.values()):
                if worker not in self._resuming:
                    break
                self._put_aside(idle)

    def _let_go(self) -> None:
        """Let those go on that rested, as far as there are places, and GPUs; the caller holds the lock."""
        while self._resuming and len(self._placed()) < self._size and self._not_lent(self._resuming[0].gpus):
            self._go(self._resuming.popleft())

    def _put_aside(self, worker: WorkerState) -> None:
        """A worker has nothing and no place; some are kept for the next time. The caller holds the lock."""
        self._idle.pop(worker.number, None)
        if self._grown and len(self._spares) < self._size:
            worker.spare = True
            self._spares.append(worker)
        else:
            self._dismiss(worker)
        self._let_go()

    def _not_lent(self, gpus: tuple[str, ...]) -> bool:
        """Whether no worker sees these that runs calls, or may still be ending; the caller holds the lock."""
        return gpus is _ANYWHERE or all(w.gpus is not gpus or w.resting or w.spare for w in self._workers.values())

    def _held_up(self) -> list[WorkerState] | None:
        placed = self._placed()
        if not self._line and not self._resuming and all(len(worker.has) < 2 for worker in placed):
            return None
        return placed if all(worker.may_wait for worker in placed) else None

    def _start_more(self) -> None:
        self._make_up()

    def _next_in_line(self) -> PoolTask | None:
        return self._line.popleft() if self._line else None

    def _answered(self, worker: WorkerState, ended: Sequence[tuple[PoolTask, pooled.Result]]) -> None:
        took_s = sum([result[5] - result[4] for _, result in ended]) / len(ended)
        with self._lock:
            self._pace_s = (self._pace_s + took_s) / 2 + _LEAST_S
            if worker.resting:  # its task waited without saying so, or went on without a place
                worker.resting = False
                self._stops_overtaking(worker)
            if (self._grown or self._shrunk) and self._too_many():
                self._requeue(self._take_back(worker))
                self._free(worker)
                return
            if worker.halted:
                self._halt(worker)
                return
            if worker.has and (len(worker.has) > self._ahead // 2 or (not self._line and _last(worker).heir is None)):
                return
            if not worker.has and not self._line:
                self._pass_on(*ended[-1])
                if not self._line and len(self._idle) < len(self._workers) - 1:
                    self._steal(worker)
            more = self._portion(worker) if self._line or worker.has else ()
            if not more:
                self._free(worker)
                return
            ticket = POOL if worker.pending else worker.ticket()
        self._post(worker, ticket, more)

    def _pass_on(self, task: PoolTask, result: pooled.Result) -> None:
        """What waits for this result alone goes where that was made; the caller holds the lock."""
        if task.heir is not None and result[2] is not None and pooled.inheritable(result):
            heir = task.pass_on(result[2])
            if heir is not None:
                self._line.append(heir)

    def _not_run(self, task: PoolTask) -> None:
        self._requeue([task])

    def _steal(self, thief: WorkerState) -> None:
        """A worker is free: tasks that wait behind the longest line of another come back; the caller holds the lock."""
        victim = max(self._workers.values(), key=_length)
        if self._zygote.far and len(victim.has) * self._pace_s < _FAR_S:
            return
        if victim is not thief and any(not task.held for task in itertools.islice(victim.has.values(), 1, None)):
            tasks = self._take_back(victim)
            if tasks and not victim.has:  # it has not started the first yet, and is not free
                self._give(victim, tasks[:1])
                del tasks[0]
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
                tasks = self._portion(worker, others=len(self._idle))
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
        self._requeue([task for task in list(worker.has.values()) if task.stray and worker.take(task.number)])
        return list(worker.has.values())

    def _buried(self, worker: WorkerState, started: list[PoolTask], report: Ended | NotStarted) -> None:
        with self._lock:
            zygote_gone = isinstance(report, Ended) and report.node is None and report.why is not None
            ours = worker.timed_out or worker.cancelled or zygote_gone
            living = len(self._placed())
            replace = not self._stopping and living < self._size and not isinstance(report, NotStarted)
            if replace and not ours and not worker.retiring:
                replace = self._restarts > 0
                self._restarts -= replace
        if isinstance(report, Ended):
            for task in started:
                task.end(self._died(worker, report))
        if isinstance(report, NotStarted):
            self.refusal = report.reason
        if not (replace and self._start()) and not self._workers and not self._stopping:
            self._break(self._why_none(worker, report))
        if self._grown and not isinstance(report, NotStarted):  # else it is tried again at the next look
            self._make_up()
        self._feed_idle()

    def _lost_node(self, lost: NodeLost) -> None:
        super()._lost_node(lost)
        with self._lock:  # its workers are buried one by one, and until then get nothing
            self._kill_beside(lost)
            self._idle = {number: worker for number, worker in self._idle.items() if not worker.lost}
            self._count_absent()
            self._size = self._most(self._size)
            self._gpus = [gpus for gpus in self._gpus if not self._zygote.has_lost(gpus)]

    def _node_ready(self, ready: NodeReady) -> None:
        with self._lock:
            for worker in reversed(list(self._workers.values())):  # the first is then given the first call
                if worker.endpoint.node == ready.name:
                    self._free(worker)
            self._count_absent()
        self._feed_idle()

    def _heard(self, worker: WorkerState) -> None:
        with self._lock:
            self._requeue(self._take_back(worker))
            self._free(worker)
        self._feed_idle()

    def _most(self, size: int) -> int:
        """So many workers, or as many as there is room for on nodes that are left."""
        room = self._zygote.room
        return size if room is None else min(size, room)

    def _why_none(self, worker: WorkerState, report: Ended | NotStarted) -> str:
        if isinstance(report, NotStarted):
            return f"its last worker could not be started: {report.reason}"
        when = " while `init_function` ran" if not worker.ready and self._setup.get("init") is not None else ""
        node = report.node or worker.lost_with
        if node is not None and not self._zygote.room:
            return self._why_gone(none_left(report.why, len(nodes_beside(worker.gpus)) + 1))
        how = how_ended(report.status) if node is None else f"was lost with node {node}"
        said = f"its last worker {how}{when}, and none is left to replace it"
        return f"{said}: `restart_limit` was {self._restart_limit}"

    def _named(self, worker: WorkerState) -> int | None:
        return worker.number

    def _clear_line(self) -> list[PoolTask]:
        tasks, self._line = list(self._line), deque()
        return tasks


def _shallowness(task: PoolTask) -> int:
    return -task.depth


def _last(worker: WorkerState) -> PoolTask:
    return next(reversed(worker.has.values()))


def _length(worker: WorkerState) -> int:
    return len(worker.has)
