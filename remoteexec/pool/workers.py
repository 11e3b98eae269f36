"""One worker as the pool sees it: what it has, and what is still to be written to it."""

from __future__ import annotations

import errno
import itertools
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Sequence

from remoteexec_server.wire import pooled

from .ledger import Need
from .output import OutputReader
from .tasks import GpuVariables, PoolTask, placed
from .zygote_client import Endpoint, most_files

Pieces = deque["bytes | memoryview"]

POOL = 0
"""Who writes to a worker's socket: the pool thread writes what is pending. Otherwise the ticket of who posts."""
_tickets = itertools.count(1)
_EARLY_S = 5.0
"""Clocks of nodes differ. Picked, not measured."""
_MOST_KNOWN = 256
"""Functions a worker keeps: enough for a workflow's, few enough for a loop over lambdas."""

log = logging.getLogger("remoteexec")


class WorkerState:
    """One worker.

    Attributes:
        output: reads what its tasks print, if that is wanted.
        has: tasks it was given and has not answered, in order.
        knows: functions it was sent and keeps, in that order.
        load: bytes of the calls it has.
        pid: once it has started.
        ready: it is set up.
        since: when the first of its tasks began, in Unix time, as far as that is known here.
        writer: who is writing to its socket, and nobody else may: POOL or a ticket; None for nobody.
        pending: what the pool thread has still to write.
        halted: it was stopped by a signal, and gets nothing until it goes on.
        retiring: it has nothing and was told to end.
        timed_out: we ended it, since a task took too long.
        cancelled: we ended it, since its task was cancelled.
        lost_with: a node besides its own, of which its task had a part, and with which we ended it.
        gpus: it has for all its life.
        need: what it takes of the machine and has not given back.
        resting: its task waits for tasks that it has submitted, or is taken to, and its place is theirs.
        beside: its task has stopped waiting before there was a place for it, and runs: it is the next to have one.
        spare: it has nothing, and others have all places.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.stream = pooled.Stream(endpoint.sock)
        self.output: OutputReader | None = None
        self.has: dict[int, PoolTask] = {}
        self.knows: dict[int, None] = {}
        self.load = 0
        self.pid: int | None = None
        self.ready = False
        self.since = time.time()
        self.writer: int | None = None
        self.pending: Pieces = deque()
        self.halted = False
        self.retiring = False
        self.timed_out = False
        self.cancelled = False
        self.lost_with: str | None = None
        self.gpus: tuple[str, ...] = ()
        self.need: Need | None = None
        self.resting = False
        self.beside = False
        self.spare = False

    @property
    def number(self) -> int:
        """Which worker it is."""
        return self.endpoint.number

    @property
    def lost(self) -> bool:
        """It is gone with a node of its, or will be in a moment."""
        return self.endpoint.lost or self.lost_with is not None

    @property
    def may_wait(self) -> bool:
        """Whether its task has submitted others that have not ended, and has asked for their end."""
        return any(task.children and task.watches for task in itertools.islice(self.has.values(), 1))

    def take(self, number: int) -> PoolTask | None:
        """It has this task no more; None if it had not. Under the pool's lock."""
        task = self.has.pop(number, None)
        if task is not None:
            self.load -= 0 if task.stray else task.size
            task.stray = False
        return task

    def settle_follower(self, task: PoolTask, result: pooled.Result) -> None:
        """It has answered a task that has a follower. Under the pool's lock.

        What can be inherited the follower has, here as there. Otherwise it is not run there, nor are those after it.
        """
        follower, task.follower = task.follower, None
        if follower is None or follower.number not in self.has:
            return
        if result[2] is not None and pooled.inheritable(result):
            self.load += len(result[2])
            follower.inherit(result[2])
            return
        while follower is not None and follower.number in self.has:
            self.load -= follower.size
            follower.inherited, follower.stray = False, True
            follower.follower, follower = None, follower.follower

    def fitted(self, setup: pooled.Setup | None, variables: GpuVariables) -> pooled.Setup:
        """The setup with what it has of its machine."""
        found = placed(setup, self.gpus, variables)
        if self.endpoint.cores is not None:
            found["cores"] = self.endpoint.cores
        return found

    def ticket(self) -> int:
        """Become its writer; under the pool's lock."""
        self.writer = next(_tickets)
        return self.writer

    def frame(self, tasks: Sequence[PoolTask], setup: pooled.Setup | None = None) -> Pieces:
        """Calls as they are written to it; who asks has to write them. It is sent each function once."""
        if setup is None and len(tasks) == 1:
            (task,) = tasks
            call, its = task.on_wire()
            if not its and call[1] in self.knows:  # most often
                return deque(pooled.frame((None, (), (call,))))
        functions: list[pooled.Function] = []
        buffers: list[memoryview] = []
        calls: list[pooled.Call] = []
        for function in {task.function.number: task.function for task in tasks}.values():
            if function.number not in self.knows:
                if not pooled.is_large(function.data, function.buffers):
                    self.knows[function.number] = None
                rest, its = pooled.split(function.data, function.buffers)
                functions.append((function.number, rest, len(its)))
                buffers += its
        if len(self.knows) > _MOST_KNOWN:
            functions += self._forgotten()
        for task in tasks:
            call, its = task.on_wire()
            calls.append(call)
            buffers += its
        return deque(pooled.frame((setup, functions, calls), buffers))

    def _forgotten(self) -> list[pooled.Function]:
        """Have it forget the functions that were sent first, but for those of calls that it has."""
        needed = {task.function.number for task in list(self.has.values())}
        old = [number for number in self.knows if number not in needed][: -_MOST_KNOWN // 2]
        for number in old:
            del self.knows[number]
        return [(number, None, pooled.FORGET) for number in old]


def warn_of_halt(task: PoolTask, whose: str, pid: int) -> None:
    """Say that a task waits, for whoever can see to that."""
    log.warning(
        "task %s (%s) waits: %s was stopped by a signal; `kill -CONT %d` lets it go on, cancel() of its future ends it",
        *(task.future.key, task.future.task.function, whose, pid),
    )


def tell_of_halt(halted: bool, pid: int, tasks: Sequence[PoolTask]) -> None:
    """Say that a worker's process was stopped while it had these, or goes on."""
    if not halted:
        log.info("process %d of a worker goes on", pid)
        return
    for task in tasks:
        warn_of_halt(task, f"its process {pid}", pid)
    if not tasks:
        log.warning(
            "process %d of a worker was stopped by a signal and gets no calls: `kill -CONT %d` lets it go on",
            *(pid, pid),
        )


def no_room(exc: OSError, resting: int) -> str:
    """Why one more worker cannot be started, and what helps.

    Args:
        resting: how many there are whose tasks wait for others.
    """
    wait = f"{resting} tasks wait for tasks that they have submitted, each in a process of its own"
    if exc.errno == errno.EUSERS:
        return f"{wait}, which is the most: let tasks return such futures instead of waiting for them"
    if exc.errno != errno.EMFILE:
        return str(exc)
    limit = f"one more takes more open files than the {most_files()} that this process may have (`ulimit -n`)"
    if resting:
        return f"{wait}, and {limit}: raise that limit, or let tasks return such futures instead of waiting"
    return f"{limit}: raise that limit"


def too_late(task: PoolTask, ends_at: float | None) -> str | None:
    """Why a task is not started any more, if it may take longer than there is time."""
    if task.walltime_s is None or ends_at is None:
        return None
    left_s = ends_at - time.time()
    if task.walltime_s <= left_s:
        return None
    return (
        f"it may take {task.walltime_s:g} s (run_time_max), and the allocation ends in {max(0.0, left_s):.0f} s: "
        "it was not started; submit it in a longer allocation, or with less run_time_max"
    )


def when_over(ends_at: float | None) -> str:
    """Why nodes are gone, if their time is up; else nothing."""
    if ends_at is None or time.time() < ends_at - _EARLY_S:
        return ""
    return f"the allocation has reached its time limit, {time.strftime('%H:%M:%S', time.localtime(ends_at))}"


def none_left(why: str | None, each: int = 1) -> str:
    """What is said when all nodes are lost, with why the last one is.

    Args:
        each: nodes that a worker is on: then there are too few.
    """
    left = (
        "no node of the allocation is left" if each == 1 else f"a worker is on {each} nodes, and so many are not left"
    )
    return left + (f": {why}" if why else "")


def write(sock: socket.socket, pieces: Pieces, patience_s: float = 0.0) -> bool:
    """Write to a socket that does not block.

    Args:
        pieces: what is written is taken out of it.
        patience_s: how long to wait for the other end to read some.

    Returns:
        Whether all is written, or never will be: that a worker is gone is noticed elsewhere.
    """
    while pieces:
        piece = pieces[0]
        try:
            sent = sock.send(piece)
        except BlockingIOError:
            if not patience_s or not _writable(sock, patience_s):
                return False
            continue
        except OSError:
            pieces.clear()
            return True
        if sent == len(piece):
            pieces.popleft()
        else:
            pieces[0] = memoryview(piece)[sent:]
    return True


def _writable(sock: socket.socket, timeout_s: float) -> bool:
    try:
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLOUT)
        return bool(poll.poll(timeout_s * 1000))
    except (OSError, ValueError):  # closed meanwhile: the next write says so
        return True
