"""A pilot's workers: forked, told what to run, heard, reaped; and their logs, which are put onto the disk here."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..runner import spare_from_alarms
from ..store.crew import CrewStore
from ..store.outcomes import log_path
from ..store.segments import Kind, LogReader, LogWriter
from ..wire.messages import TaskKey
from ..wire.resources import Resources
from .growth import OVERTAKE, REST, WAKE
from .hand import Item
from .plan import Grant, Ledger
from .worker import AGAIN, DONE, END, FAILED, LINKED, ORDER, PilotWorker, Pipes, run, unpacked


@dataclass(eq=False)
class Hired:
    """A worker process.

    Attributes:
        number: what it is called, by `worker_id()`; also by a worker that takes its place.
        kept: it runs one task after the other, all with the same resources.
        orders: both ends of the pipe it is told by.
        done: read end of the pipe it says by what is done.
        sent: what it was told and has not said to be done, in order.
        grant: what it uses of the pilot while it has something to run.
        since: when the first of `sent` began, at the earliest; seconds, monotonic.
        resources: of all it runs.
        go: both ends of the pipe by which it is told that its task may go on.
        rests: its task waits for others that it has submitted; what it uses of the pilot is free meanwhile.
        wakes: that one would go on, and waits until something is free.
        beside: that one has not waited for it, and runs.
        silent: it has closed its end, and has ended or will.
        limit_at: when that is to be ended, if it has a limit of its own.
    """

    pid: int
    number: int
    kept: bool
    log: LogWriter
    path: Path
    orders: tuple[int, int]
    done: int
    resources: Resources
    go: tuple[int, int]
    sent: dict[TaskKey, Item] = field(default_factory=dict)
    grant: Grant | None = None
    since: float = 0.0
    limit_at: float | None = None
    unread: bytes = b""
    rests: bool = False
    wakes: bool = False
    beside: bool = False
    silent: bool = False
    dirty: bool = False

    def send(self, item: Item, now: float) -> None:
        """Tell it to run a task, after those it has."""
        if not self.sent:
            self.since = now
        self.sent[item.key] = item
        os.write(self.orders[1], item.order().packed())
        self.dirty = True

    def tell_end(self) -> None:
        """Let it end, after what it has."""
        os.write(self.orders[1], END)

    def take_back(self) -> list[Item]:
        """What it was told and has not begun."""
        items: list[Item] = []
        while True:
            try:
                record = os.read(self.orders[0], ORDER)
            except BlockingIOError:
                return items
            order = unpacked(record)
            if order is not None and order.key in self.sent:
                items.append(self.sent.pop(order.key))

    def let_go_on(self, grant: Grant) -> None:
        """There is room for its task again."""
        self.grant, self.rests = grant, False
        self.since = time.monotonic()
        if self.wakes and not self.beside:
            os.write(self.go[1], b".")
        self.wakes = self.beside = False

    def overtake(self) -> None:
        """Its task goes on without: there is one more than there are places for, and nothing starts meanwhile."""
        if self.wakes and not self.beside:
            self.beside = True
            os.write(self.go[1], b".")

    def rest(self) -> None:
        """Its task waits for others."""
        self.rests, self.wakes, self.beside = True, False, False

    def hear(self) -> Iterator[tuple[Item, bytes]]:
        """Tasks that it says something of, and what: see `worker.DONE` and `growth.REST`."""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self.done, 1 << 16)
            self.silent = not said
            self.unread += said
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            mark = line[:1] if line[:1] in _MARKS else DONE
            key = TaskKey(line[len(mark) :].decode())
            item = self.sent.get(key)
            if item is None:
                continue
            if mark not in (REST, WAKE, OVERTAKE):
                del self.sent[key]
                self.since = time.monotonic()
                self.rests = self.wakes = self.beside = False  # it may have gone on without a place
            self.dirty = True
            yield item, mark

    def begun(self) -> tuple[set[TaskKey], set[TaskKey]]:
        """What a worker that has died had started and not ended, and what it had ended, of all it was told."""
        reader = LogReader(self.path)
        records = reader.look()
        reader.close()
        ended = {record.key for record in records if record.kind is not Kind.STARTED}
        started = {record.key for record in records if record.kind is Kind.STARTED}
        return (started - ended) & self.sent.keys(), ended & self.sent.keys()


_MARKS = (FAILED, LINKED, AGAIN, REST, WAKE, OVERTAKE)


class Staff:
    """The workers of one pilot.

    Args:
        store: the crew.
        pilot: its name.
    """

    def __init__(self, store: CrewStore, pilot: str) -> None:
        self._store, self._pilot = store, pilot
        self._logs = 0
        self._spare: list[tuple[LogWriter, Path]] = []
        self.hired: dict[int, Hired] = {}
        self.poll = select.poll()

    def hire(self, resources: Resources, number: int, kept: bool, gpus: tuple[str, ...] | None = None) -> Hired:
        """Fork a worker for tasks of these resources.

        Args:
            gpus: all it may see; None: what the pilot sees.

        Raises:
            OSError: there is no memory for it, or its log cannot be made.
        """
        log, path = self._spare.pop() if self._spare else self._new_log()
        orders, done, go = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number_ in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number_, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            spare_from_alarms()
            for other in self.hired.values():
                for handle in (*other.orders, *other.go, other.done, other.log.handle):
                    os.close(handle)
            if gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            run(parent, PilotWorker(self._store, self._pilot, log, Pipes(orders[0], done[1], go[0]), resources, number))
        os.close(done[1])
        os.set_blocking(done[0], False)
        hired = self.hired[pid] = Hired(pid, number, kept, log, path, orders, done[0], resources, go)
        self.poll.register(hired.done, select.POLLIN)
        return hired

    def by_handle(self, handle: int) -> Hired | None:
        """The worker that says something there."""
        return next((hired for hired in self.hired.values() if hired.done == handle), None)

    def wake(self, ledger: Ledger) -> bool:
        """Let tasks go on whose children have ended; False: there is no room for one of them yet."""
        for hired in self.hired.values():
            if hired.wakes:
                grant = ledger.take(hired.resources)
                if grant is None:
                    return False
                hired.let_go_on(grant)
        return True

    def overhear(self, hired: Hired) -> None:
        """It will say nothing more."""
        with contextlib.suppress(KeyError):
            self.poll.unregister(hired.done)

    def reap(self) -> Iterator[tuple[Hired | None, int]]:
        """Children that have ended, with their exit codes; None for one that is no worker."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            yield self.hired.get(pid), os.waitstatus_to_exitcode(status)

    def dismiss(self, hired: Hired, clean: bool) -> None:
        """A worker that was reaped is forgotten; its log is for another if it has ended well."""
        del self.hired[hired.pid]
        self.overhear(hired)
        for handle in (*hired.orders, *hired.go, hired.done):
            os.close(handle)
        self._sync(hired)
        if clean:
            hired.log.catch_up()
            self._spare.append((hired.log, hired.path))
        else:
            hired.log.close()

    def sync(self) -> None:
        """Let all see what workers have written.

        Raises:
            OSError: the disk does not take it.
        """
        for hired in self.hired.values():
            self._sync(hired)

    @property
    def dirty(self) -> bool:
        """Something may have been written that is not on the disk."""
        return any(hired.dirty for hired in self.hired.values())

    def busy_s(self, now: float) -> float:
        """For how long all who have a place have been at what they run, in seconds; 0.0 if one has nothing."""
        since = [hired.since if hired.sent else now for hired in self.hired.values() if not hired.rests]
        return now - max(since, default=now)

    def signal(self, number: int) -> None:
        """Tell all workers that have something to run and may be tried again: they may save a state."""
        for hired in self.hired.values():
            if hired.sent and hired.resources.retry is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(hired.pid, number)

    def kill(self) -> None:
        """End all workers now, whatever they do."""
        for pid in self.hired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _sync(self, hired: Hired) -> None:
        if hired.dirty:
            hired.dirty = bool(hired.sent)  # it may write the start or the end of a task at any moment
            hired.log.sync()

    def _new_log(self) -> tuple[LogWriter, Path]:
        path = Path(log_path(self._store.session, f"{self._pilot}-w{self._logs}"))
        self._logs += 1
        return LogWriter(path), path


def import_all() -> None:
    """What every worker needs, imported once for all."""
    import importlib

    for name in ("cloudpickle", "remoteexec_server.store.hdf5", "remoteexec_server.failure"):
        importlib.import_module(name)
    sys.stdout.flush()  # or each worker would write it, too
