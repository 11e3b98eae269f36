"""What all pools share: a zygote, a thread, workers with sockets, and how these end.

    submit (any thread) ─ task ─▶ free worker?  yes: straight into its socket      no: into the line
    pool thread ─ selector ─┬ worker's socket ─ results ─▶ task.end; more tasks to that worker
                            │                 └ takes bytes again ─▶ what is left of its calls
                            ├ zygote ┬ a worker has ended ─▶ what it had is lost, or goes back into the line
                            │        ├ a worker was stopped by a signal ─▶ a warning; it gets no more until it goes on
                            │        └ it has ended itself ─▶ so have all workers, and another zygote is started
                            ├ alarm ─ resized, stopped, an earlier deadline
                            ├ look, while tasks have children ─ nothing goes on: who waits lends his place (`stalls`)
                            └ deadline ─ a task took too long: kill; or the bell rings

`_lock` guards workers, line, tokens and the selector's list of sockets. Nothing of the user's runs under it, and
nothing waits under it but for the zygote to read a request, which never waits itself. The rules that all paths keep:

1. A task is in one place: the line, or `has` of one worker in `_workers`, or ended. Whoever takes it from there, under
   the lock, tells how it ended, after releasing the lock.
2. A worker in `_workers` is buried once, by the pool thread, when the zygote has reported its end; from then on it is
   in no list, its files are closed, and its tasks are ended or back in the line.
3. One thread at a time writes to a worker's socket, and until it has finished, `writer` says so: whoever started the
   worker or gave it tasks when it was free, or the pool thread. An answer proves that what any other thread had to
   write was read, so the pool thread may then write.
4. A worker that is alive, has nothing, is written to by nobody, does not retire and was not stopped by a signal is
   free, and then no line waits.
5. What of a task's arguments is not copied is written before `submit` returns, to a worker that has taken the token;
   all else is copied before, so that the caller may change his arrays afterwards.
6. The pool thread never waits for one worker: sockets do not block.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import logging
import os
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remoteexec_server.wire import pooled

from ..futures import Ran
from .choices import Choices
from .output import Output, OutputReader
from .poller import READ, WRITE, Poller
from .stalls import LOOK_S, Stalls, cpu_s
from .tasks import Answered, Broken, Died, PoolTask, nodes_beside
from .workers import POOL, Pieces, WorkerState, no_room, tell_of_halt, too_late, warn_of_halt, when_over, write
from .zygote_client import Ended, Halted, Heard, Launcher, NodeLost, NodeReady, NotStarted, Started, ZygoteClient

log = logging.getLogger("remoteexec")

_PATIENCE_S = 0.05
"""How long `submit` waits for a worker to go on reading; what is left is then copied and left to the pool thread."""
MOST_AT_REST = 1000
"""Processes whose tasks wait for tasks that they have submitted, at most: 10 MB each. Picked, not measured."""
_LONG_S = 86400.0
"""epoll waits for 24 days at most."""
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool(Choices):
    """See above.

    Args:
        preload: modules that are imported once for all workers.
        output: what is done with what tasks print; None: it goes where this process's output goes.
        launcher: starts workers elsewhere than on this machine; it sees to `preload` then.

    Attributes:
        on_failure: a weak reference to what is called when the pool thread ends by a fault of ours, with what is said.
        refusal: why the last process that was to be started was not; None if it was.
        ends_at: when all workers end, in Unix time; None: nobody ends them.
        refused: tasks that were not started, since there was too little time until then.
    """

    def __init__(
        self, preload: Sequence[str] = (), output: Output | None = None, launcher: Launcher | None = None
    ) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._workers: dict[int, WorkerState] = {}
        self._broken: str | None = None
        self._stopping = False
        self._deadlines: list[tuple[float, int, int, int]] = []  # when, worker, task, its attempts before
        self._posted: deque[Callable[[], None]] = deque()
        self._resuming: deque[WorkerState] = deque()  # those whose tasks have waited for others, and have no place yet
        self._parents = 0  # tasks that have submitted others that have not ended; of the pool thread, as the next two
        self._stalls = Stalls(_waits if launcher is not None else cpu_s)
        self._look_at = 0.0
        self.on_failure: Callable[[], Callable[[str], None] | None] = lambda: None
        self.refusal: str | None = None
        self.ends_at: float | None = None
        self.refused = 0
        self._there = launcher is None  # a machine that workers run on
        self._bell: tuple[float, Callable[[], None]] | None = None
        self._zygote: Launcher = launcher if launcher is not None else ZygoteClient(preload)
        self._alarm, self._alarm_in = socket.socketpair()
        self._alarm.setblocking(False)
        self._alarm_in.setblocking(False)
        self._poller = Poller()
        self._poller.add(self._zygote.control, self._zygote)
        self._poller.add(self._alarm, self._alarm)
        self._thread = threading.Thread(target=self._run, name="remoteexec-pool", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # the interpreter exits
            self._clean_up()
            raise
        _pools.add(self)

    @property
    def environment(self) -> Mapping[str, str]:
        """What workers have unless they are told otherwise."""
        return self._zygote.environment

    # ---- the end ----

    def stop(self) -> None:
        """End; the caller sees to it that nothing runs or waits, or that it need not. Waits, but not for itself."""
        self.abandon()
        if not self.on_own_thread:
            self._thread.join()

    def abandon(self) -> None:
        """The same without waiting and without a lock: for a finalizer, which may run anywhere."""
        self._stopping = True
        self._wake()

    def leave(self) -> None:
        """In a fork of this process: the workers are the parent's."""
        self._stopping = True
        self._broken = "this process is a fork of the one that started the workers"
        self._lock = threading.Lock()  # somebody may have held it
        self._zygote.leave()

    @property
    def on_own_thread(self) -> bool:
        """Whether the caller is the pool's own thread."""
        return threading.current_thread() is self._thread

    def _kill(self, worker: WorkerState) -> None:
        """End a worker, since its task was cancelled; the caller holds the lock."""
        worker.cancelled = True
        self._zygote.kill_worker(worker.number)

    def _who_has(self, task: PoolTask) -> WorkerState | None:
        """The caller holds the lock."""
        return next((worker for worker in self._workers.values() if task.number in worker.has), None)

    def _kill_beside(self, lost: NodeLost) -> None:
        """End the workers of which the lost node had some ranks, and no more; the caller holds the lock."""
        for worker in self._workers.values():
            if lost.node in nodes_beside(worker.gpus):
                worker.lost_with = lost.name
                self._zygote.kill_worker(worker.number)

    def post(self, call: Callable[[], None]) -> None:
        """Have something done by the pool thread, soon."""
        self._posted.append(call)
        if not self.on_own_thread:
            self._wake()

    def _why_gone(self, otherwise: str) -> str:
        """Why nothing can run any more; after the end of an allocation that says more than what is left there."""
        over = when_over(self.ends_at)
        return f"{over}; {otherwise}" if over else otherwise

    def _died(self, worker: WorkerState, report: Ended) -> Died:
        node = report.node or worker.lost_with
        why = (when_over(self.ends_at) if node else "") or report.why
        return Died(report.pid, report.status, worker.timed_out, node, why or None)

    def ring(self, in_s: float, call: Callable[[], None]) -> None:
        """Have something done by the pool thread later; what was asked for before is forgotten."""
        self._bell = time.monotonic() + in_s, call
        self._wake()

    def counted(self) -> tuple[int, int]:
        """How many tasks run, and how many wait: in the line, or behind others on a worker."""
        with self._lock:
            given = [len(worker.has) for worker in self._workers.values()]
            running = sum([count > 0 for count in given])
            return running, sum(given) - running + self.waiting

    def where(self, task: PoolTask) -> Ran:
        """Where a task runs, or is about to: which process, and since when if no other is before it there."""
        with self._lock:
            worker = self._who_has(task)
            if worker is None:
                return Ran()
            first = worker.pid is not None and next(iter(worker.has)) == task.number
            host = None if self._zygote.far else socket.gethostname()
            return Ran(host, worker.pid, self._named(worker), started=worker.since if first else None)

    def has_child(self, task: PoolTask) -> None:
        """A task has submitted another; on the pool thread."""
        self._parents += not task.children
        task.children += 1

    def child_ended(self, task: PoolTask) -> None:
        """One of those has ended; on the pool thread."""
        task.children -= 1
        self._parents -= not task.children

    def tell(
        self,
        worker: WorkerState,
        task: PoolTask,
        news: Sequence[pooled.News],
        buffers: Sequence[memoryview] = (),
    ) -> None:
        """Tell a task something while it runs; on the pool thread, which alone writes to a worker that runs one."""
        with self._lock:
            if task.number not in worker.has:
                return
        self._say(worker, list(news), buffers)

    # ---- what subclasses use ----

    def _go(self, worker: WorkerState) -> None:
        """A task that rested has a place again; on any thread."""
        worker.resting = False
        if not self._stops_overtaking(worker):
            self._tell_go(worker)

    def _tell_go(self, worker: WorkerState) -> None:
        self.post(lambda: self._say(worker, [(pooled.GO, True, b"", 0)]))

    def _overtake(self, worker: WorkerState) -> None:
        """The time that its task would wait is over: it goes on, one more than there are places, and gets the next."""
        with self._lock:
            if worker in self._resuming and not worker.beside:
                worker.beside = True
                self._tell_go(worker)

    def _stops_overtaking(self, worker: WorkerState) -> bool:
        """Its task has a place, wants none, or has ended; whether it ran without one. The caller holds the lock."""
        beside, worker.beside = worker.beside, False
        if beside and worker in self._resuming:
            self._resuming.remove(worker)
        return beside

    def _say(self, worker: WorkerState, news: list[pooled.News], buffers: Sequence[memoryview] = ()) -> None:
        if self._workers.get(worker.number) is not worker:
            return
        pieces = deque(pooled.frame(news, buffers))
        if worker.pending:
            worker.pending += pieces
        elif not write(worker.endpoint.sock, pieces):
            with self._lock:
                self._leave_to_pool_thread(worker, pieces, ())

    def _new_worker(self, number: int, kept: bool, place: tuple[str, ...] = ()) -> WorkerState:
        """Start a worker; the caller holds the lock.

        Raises:
            OSError: there is no room for one more; `refusal` says why.
        """
        try:
            if len(self._workers) >= MOST_AT_REST and self._at_rest() >= MOST_AT_REST:
                raise OSError(errno.EUSERS, "too many tasks that wait")
            worker = WorkerState(self._zygote.start_worker(number, kept, self._output is not None, place))
        except OSError as exc:
            self.refusal = no_room(exc, self._at_rest())
            raise
        self.refusal = None
        self._workers[number] = worker
        self._poller.add(worker.endpoint.sock, worker)
        if self._output is not None and worker.endpoint.output is not None:
            worker.output = OutputReader(worker.endpoint.output, self._output, worker.has)
            self._poller.add(worker.output.handle, worker.output)
        return worker

    def _at_rest(self) -> int:
        return sum([worker.resting for worker in self._workers.values()])

    def _post(
        self,
        worker: WorkerState,
        ticket: int,
        tasks: Sequence[PoolTask],
        setup: pooled.Setup | None = None,
        wait: bool = False,
    ) -> None:
        """Write calls to a worker; without the lock.

        What the socket does not take is left to the pool thread.

        Args:
            ticket: of the worker, taken when it was given these tasks.
            wait: leave it only when the worker has stopped reading; the tasks' buffers need not have been copied.
        """
        pieces = worker.frame(tasks, setup)
        if worker.pending:  # so this is the pool thread
            worker.pending += pieces
            return
        done = write(worker.endpoint.sock, pieces, _PATIENCE_S if wait else 0.0)
        with self._lock:
            if not done:
                self._leave_to_pool_thread(worker, pieces, tasks if wait else ())
            if worker.halted:  # since it was given them: what was told only now it has not taken
                self._halt(worker)
            elif not done or worker.writer != ticket:  # it has answered meanwhile
                return
            if done and worker.writer == ticket:
                worker.writer = None
            if worker.has and not worker.halted:
                return
        self._written(worker)

    def _begin_first(self, task: PoolTask) -> None:
        """While no node is ready the first task counts as begun: a shutdown that cancels what waits lets it run.

        The caller holds the lock.
        """
        if not self._there and not self.waiting:
            task.begin()

    def _begins(self, task: PoolTask) -> bool:
        """Whether a task may start now. If there is too little time left for it, it is told so soon; under the lock."""
        if not task.begin():
            return False
        reason = too_late(task, self.ends_at)
        if reason is not None:
            self.refused += 1
            self.post(lambda: task.end(Broken(reason)))
        return reason is None

    def _leave_to_pool_thread(self, worker: WorkerState, pieces: Pieces, uncopied: Sequence[PoolTask]) -> None:
        """The caller holds the lock."""
        if self._workers.get(worker.number) is not worker:
            return
        for task in uncopied:
            task.keep_buffers()
        worker.writer = POOL
        worker.pending += [bytes(piece) for piece in pieces] if uncopied else pieces
        with contextlib.suppress(KeyError):  # its end was seen
            self._poller.want(worker.endpoint.sock, READ | WRITE)

    def _go_on_writing(self, worker: WorkerState) -> None:
        """On the pool thread: the socket takes bytes again."""
        if not write(worker.endpoint.sock, worker.pending):
            return
        with self._lock:
            with contextlib.suppress(KeyError):  # its end was seen
                self._poller.want(worker.endpoint.sock, READ)
            if worker.writer == POOL:
                worker.writer = None
        self._written(worker)

    def _watch_time(self, worker: WorkerState, task: PoolTask) -> None:
        """End the worker if the task takes longer than it may; the caller holds the lock."""
        if task.walltime_s is not None:
            when = time.monotonic() + task.walltime_s
            heapq.heappush(self._deadlines, (when, worker.number, task.number, len(task.deaths)))
            if self._deadlines[0][2] == task.number:
                self._wake()

    def _break(self, reason: str) -> None:
        """Nothing can run any more."""
        with self._lock:
            self._broken = reason
            tasks = self._clear_line()
            for worker in self._workers.values():
                tasks += worker.has.values()
                worker.has.clear()
        for task in tasks:
            if task.begin():
                task.end(Broken(reason, none_ran=not self._there))

    def _refuse(self, task: PoolTask) -> None:
        if task.begin():
            task.end(Broken(str(self._broken), none_ran=not self._there))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # awake already, or gone
            self._alarm_in.send(b"w")

    # ---- the pool thread ----

    def _run(self) -> None:
        try:
            while not self._stopping:
                for found, readable, writable in self._poller.wait(self._next_deadline_s()):
                    if type(found) is WorkerState:
                        if self._workers.get(found.number) is not found:  # buried in this same round
                            continue
                        if writable and found.pending:
                            self._go_on_writing(found)
                        if readable:
                            self._read(found)
                    elif type(found) is OutputReader:
                        self._read_output(found)
                    elif found is self._alarm:
                        self._alarm.recv(4096)
                    else:
                        self._hear()
                if self._posted:
                    self._do_posted()
                if self._deadlines:
                    self._end_overdue()
                if self._bell is not None:
                    self._ring_if_due(*self._bell)
                if self._parents:
                    self._look()
        except BaseException as exc:  # the thread's edge: nobody may wait for ever
            self._fail(f"the pool failed: {exc!r}")
            raise
        finally:
            self._clean_up()

    def _ring_if_due(self, when: float, call: Callable[[], None]) -> None:
        if when <= time.monotonic():
            self._bell = None
            call()

    def _fail(self, reason: str) -> None:
        try:
            self._break(reason)
            self._do_posted()
        finally:
            told = self.on_failure()
            if told is not None:
                told(reason)

    def _look(self) -> None:
        """See that something goes on; see `stalls`."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        with self._lock:
            held = self._held_up()
            running = None if held is None else [(worker.pid or 0, next(iter(worker.has))) for worker in held]
        if held is None or not self._stalls.look(running):
            return
        for worker in held:
            self._rest(worker)
        if held:
            return
        refusal = self.refusal  # all rest, and there was no room to start what they wait for
        self._start_more()
        if refusal is None or self.refusal is None:
            return
        with self._lock:
            task = self._next_in_line()
        if task is not None and task.begin():
            task.end(Broken(f"its process cannot be started: {self.refusal}"))

    def _read_output(self, output: OutputReader) -> None:
        if not output.read():
            with self._lock, contextlib.suppress(KeyError):  # the worker was buried in this same round
                self._poller.drop(output.handle)

    def _do_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def _read(self, worker: WorkerState) -> None:
        """Take results from a worker's socket; its end is told by the zygote."""
        try:
            batches = worker.stream.read()
        except BlockingIOError:
            return
        except (EOFError, OSError):
            with self._lock, contextlib.suppress(KeyError):
                self._poller.drop(worker.endpoint.sock)
            return
        for said, buffers in batches:
            if type(said) is tuple:
                self._asked(worker, said, buffers)
            else:
                self._take(worker, said, buffers)

    def _asked(self, worker: WorkerState, ask: pooled.Ask, buffers: Sequence[Any]) -> None:
        task = worker.has.get(ask[1])
        if task is None:  # it was given up, or a thread that it left behind asks
            if ask[0] == pooled.RESUME:
                self._go(worker)
            return
        match ask[0]:
            case pooled.REST:
                self._rest(worker)
            case pooled.RESUME:
                self._resume(worker)
            case pooled.OVERTAKE:
                self._overtake(worker)
            case pooled.WATCH:
                task.watches = True
            case pooled.HALTED:
                _, _, rank, pid = ask
                warn_of_halt(task, f"the process {pid} of its MPI rank {rank}", pid)
            case _:
                task.owner.asked(self, worker, task, ask, buffers)

    def _take(self, worker: WorkerState, results: Sequence[pooled.Result], buffers: Sequence[Any]) -> None:
        if worker.output is not None:
            worker.output.read()  # what they printed was written before
        ended: list[tuple[PoolTask, pooled.Result]] = []
        with self._lock:
            if not worker.ready:
                worker.ready, worker.since = True, time.time()
                for task in worker.has.values():
                    self._watch_time(worker, task)
                    break
            for result in results:
                stray = result[1] is None and result[2] is None
                given = worker.take(result[0])
                if given is None:  # all was given up
                    return
                if stray:
                    self._not_run(given)
                    continue
                if given.follower is not None:
                    worker.settle_follower(given, result)
                ended.append((given, result))
            if results and not worker.pending:
                worker.writer = None
        if ended:
            worker.since = ended[-1][1][5]
        else:
            if results:
                self._written(worker)
            return
        if worker.output is not None and not worker.has:
            worker.output.end_line()
        self._answered(worker, ended)
        at = 0
        for task, result in ended:
            count = result[3]
            its = buffers[at : at + count] if count else ()
            task.end(Answered(result, its, self._named(worker), worker.endpoint.node))
            at += count

    def _hear(self) -> None:
        reports = self._zygote.reports()
        if reports is None:
            self._outlive_zygote()
            return
        for report in reports:
            if isinstance(report, NodeLost):
                self._lost_node(report)
                continue
            if isinstance(report, NodeReady):
                self._there = True
                self._node_ready(report)
                continue
            worker = self._workers.get(report.number)
            if worker is None:
                continue
            if isinstance(report, Started):
                worker.pid = report.pid
            elif isinstance(report, Halted):
                self._heed_halt(worker, report)
            elif isinstance(report, Heard):
                self._heard(worker)
            else:
                self._bury(worker, report)

    def _outlive_zygote(self) -> None:
        """No workers are started or reported any more: what ran is over; the rest is for those of a successor."""
        ended = self._zygote
        with self._lock:
            self._poller.drop(ended.control)
            pids = [worker.pid for worker in self._workers.values() if worker.pid is not None]
        ended.end_orphans(pids)
        if self._stopping:
            return
        why, successor = ended.why_ended(), None
        try:
            successor = ended.successor()
        except (OSError, ImportError) as exc:
            why = f"{why}; another one cannot be started: {exc}"
        if successor is None:
            self._break(why)
            return
        log.warning("%s; another one is started", why)
        with self._lock:
            self._zygote = successor
            self._poller.add(successor.control, successor)
            workers = list(self._workers.values())  # whoever was asked for until now is gone
        ended.close()
        for worker in workers:
            self._bury(worker, Ended(worker.number, worker.pid or 0, signal.SIGKILL, why=why))

    def _heed_halt(self, worker: WorkerState, report: Halted) -> None:
        """A worker was stopped, or goes on. Who stopped it may want that: it is not ended, but who waits is told."""
        with self._lock:
            worker.halted = report.halted
            if worker.halted:
                self._halt(worker)
            tasks = list(worker.has.values())
        tell_of_halt(worker.halted, report.pid, tasks)
        self._written(worker)

    def _bury(self, worker: WorkerState, report: Ended | NotStarted) -> None:
        """A worker has ended: hear its last words, forget it, and see what becomes of its tasks."""
        with contextlib.suppress(BlockingIOError, EOFError, OSError):
            while True:
                for said, buffers in worker.stream.read():
                    if type(said) is not tuple:
                        self._take(worker, said, buffers)
                    elif said[0] == pooled.SUBMIT:  # else nobody is there any more for whom it would matter
                        self._asked(worker, said, buffers)
        if worker.output is not None:
            worker.output.read()
            worker.output.end_line()
            worker.output.close()
        with self._lock:
            for file in (worker.endpoint.sock, worker.endpoint.output):
                if file is not None:
                    with contextlib.suppress(KeyError):
                        self._poller.drop(file)
            del self._workers[worker.number]
            started = self._lost(worker)
            worker.has.clear()
            worker.pending.clear()
            worker.endpoint.close()
        self._buried(worker, started, report)

    def _next_deadline_s(self) -> float | None:
        if not self._deadlines and not self._parents and self._bell is None:
            return None
        now = time.monotonic()
        until_s = LOOK_S if self._parents else _LONG_S
        if self._deadlines:
            until_s = min(until_s, self._deadlines[0][0] - now)
        if self._bell is not None:
            until_s = min(until_s, self._bell[0] - now)
        return max(0.0, until_s)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                _, number, task, attempts = heapq.heappop(self._deadlines)
                worker = self._workers.get(number)
                if worker is not None and task in worker.has and len(worker.has[task].deaths) == attempts:
                    worker.timed_out = True
                    self._zygote.kill_worker(number)

    def _clean_up(self) -> None:
        with self._lock:
            self._broken = self._broken or "the executor was shut down"
            workers, self._workers = list(self._workers.values()), {}
            for worker in workers:
                worker.endpoint.close()
            self._poller.close()
        self._zygote.close()
        self._alarm.close()
        self._alarm_in.close()


def _waits(pid: int) -> float:
    """In the place of `cpu_s` for processes of other machines, of which only what they say is known."""
    return 0.0


def _leave_all() -> None:
    for pool in list(_pools):
        pool.leave()


if hasattr(os, "register_at_fork"):  # not on Windows, where there are no forks either
    os.register_at_fork(after_in_child=_leave_all)
