"""The zygote as the pool sees it: asks for workers, is told of their ends."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from remoteexec_server import zygote
from remoteexec_server.wire import pooled

from . import machine
from .tasks import how_exited

_RESERVE = 16
"""Files that are left to the user of those that a process may open."""
BUFFER = 1 << 18
"""Bytes a socket may hold, and at most twice that: fewer switches between the two ends of a large argument."""
_PATH = "import sys, os; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
"""Its modules are to be found where ours were; by PYTHONPATH, all that tasks start would be told so, too."""
START = f"{_PATH}from remoteexec_server.__main__ import main; sys.exit(main())"
"""What Python runs to be a part of ours; its first argument is `path`."""
_START_ZYGOTE = (
    f"{_PATH}from remoteexec_server import __main__, zygote; zygote.print_errors_to(int(sys.argv.pop(1))); "
    "sys.exit(__main__.main())"
)
"""The same of one whose second argument says where its errors go, from the time on when it has begun."""

_END_S = 1.0
_TAIL = 10
"""Lines of what a zygote has said that are told with its end."""
_AT_ONCE_S, _MOST_AT_ONCE = 5.0, 3
"""One that ends sooner has ended at once, and so many more are tried in a row. Picked, not measured."""


def _standard_error() -> Any:
    """A file that is where ours goes; where we have none, nowhere."""
    try:
        return os.fdopen(os.dup(2), "wb", 0)
    except OSError:
        return open(os.devnull, "wb")


def _file_without_name() -> Any:
    try:
        return os.fdopen(os.memfd_create("remoteexec-zygote"), "w+b")
    except (AttributeError, OSError):  # no Linux, or an old one
        import tempfile  # late: this imports as much as the rest of the package

        return tempfile.TemporaryFile()


def path() -> str:
    """Where modules are found here, as one text."""
    return os.pathsep.join(machine.places())


class Endpoint:
    """Our ends of what connects us with one worker.

    Attributes:
        sock: calls and results; does not block.
        token_in: where tokens are written; with `token_out`, where they are read, None for a worker of one call, and
            when closed: a number that somebody else's file may have next is not kept.
        output: where what it prints is read, if it is; does not block.
        lost: its node is gone, and its own end not told yet.
        cores: which cores of its node are its own, and how many those are; None: it is not pinned.
        node: name of its node; None: this machine.
    """

    lost = False
    cores: tuple[tuple[int, ...], int] | None = None
    node: str | None = None

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        token_in: int | None = None,
        token_out: int | None = None,
        output: int | None = None,
    ) -> None:
        self.number, self.sock, self.token_in, self.token_out = number, sock, token_in, token_out
        self.output = output

    @property
    def there(self) -> bool:
        """Whether its node is ready: before that it is given no tasks, which another may run sooner."""
        return True

    def give(self, tasks: Sequence[int]) -> None:
        """Write tokens: of these tasks, as many as `pooled.TOKENS` has."""
        assert self.token_in is not None  # it is not buried
        os.write(self.token_in, pooled.TOKENS[len(tasks)].pack(*tasks))

    def take_back(self, tasks: Collection[int]) -> list[int]:
        """Read tokens that the worker has not taken, and now will not; of tasks that it was given."""
        if self.token_out is None:
            return []
        try:
            tokens = os.read(self.token_out, pooled.TOKEN.size * len(tasks))
        except BlockingIOError:
            return []
        return [number for (number,) in pooled.TOKEN.iter_unpack(tokens)]

    def close(self) -> None:
        """The worker ends as soon as it waits for a call."""
        self.sock.close()
        handles = (self.token_in, self.token_out, self.output)
        self.token_in = self.token_out = self.output = None
        for handle in handles:
            if handle is not None:
                os.close(handle)


class Started(NamedTuple):
    """A worker is there."""

    number: int
    pid: int


class NotStarted(NamedTuple):
    """A worker could not be forked."""

    number: int
    reason: str


class Ended(NamedTuple):
    """A worker is gone; see Died."""

    number: int
    pid: int
    status: int
    node: str | None = None
    why: str | None = None


class Halted(NamedTuple):
    """A worker was stopped by a signal (SIGSTOP, say), or goes on."""

    number: int
    pid: int
    halted: bool


class NodeLost(NamedTuple):
    """A node is gone; the ends of its workers are reported each, after this. `why` is empty if nobody knows."""

    node: int
    name: str
    why: str = ""


class NodeReady(NamedTuple):
    """A node can run workers; before that, nobody knows whether it ever will."""

    node: int
    name: str


class Heard(NamedTuple):
    """A worker's node did not say in time what that had not taken, and now does."""

    number: int


Report = Started | NotStarted | Ended | Halted | NodeLost | NodeReady | Heard


class Launcher(Protocol):
    """What starts workers for a pool, here or on other machines. One thread at a time.

    Attributes:
        control: can be read when there are reports.
        environment: what workers have unless they are told otherwise.
        far: what was written to a worker may be on its way, not read yet.
        room: how many kept workers there is room for, on nodes that are not lost; None: there is no saying.
    """

    control: socket.socket
    environment: dict[str, str]
    far: bool

    @property
    def room(self) -> int | None:
        """See above."""

    def start_worker(self, number: int, kept: bool, output: bool = False, place: tuple[str, ...] = ()) -> Endpoint:
        """Fork a worker. It is there for calls at once: they wait in the socket until it reads.

        Args:
            output: read what it prints; otherwise that goes where ours goes.
            place: which the ledger gave it.

        Raises:
            OSError: no more files can be opened, or no node has room.
        """

    def has_lost(self, place: tuple[str, ...]) -> bool:
        """Whether that is on a node that is gone."""

    def kill_worker(self, number: int) -> None:
        """Kill a worker and all that it started, if it is still there."""

    def reports(self) -> Sequence[Report] | None:
        """What was said; None when nothing will be any more. Reads once."""

    def why_ended(self) -> str:
        """Nothing will be said any more: why, and what can be done about it. May wait a second."""

    def successor(self) -> Launcher | None:
        """Nothing will be said any more: one that starts workers from now on; None if that makes no sense.

        Raises:
            OSError: it cannot be started.
            ImportError: it cannot import what it is to.
        """

    def end_orphans(self, pids: Sequence[int]) -> None:
        """Nothing will be said any more: end these workers, if nobody else does."""

    def close(self) -> None:
        """End every worker."""

    def leave(self) -> None:
        """In a fork of the caller: let go, so that the caller's end is seen."""


class ZygoteClient:
    """Starts a zygote. One thread at a time.

    It is in a session of its own: Ctrl-C in the terminal reaches the caller alone, which decides what ends.

    Args:
        preload: modules it imports, for all workers; that is waited for.
        after: what it is the successor of.

    Raises:
        ImportError: one of them cannot be imported, or has started threads; says why.

    Attributes:
        environment: what workers have unless they are told otherwise.
    """

    far = False
    room = None

    def __init__(self, preload: Sequence[str] = (), after: ZygoteClient | None = None) -> None:
        self.environment: dict[str, str] = dict(os.environ) if after is None else after.environment
        self._preload = preload
        self._ended_at_once: int = 0 if after is None else after._ended_at_once + 1
        self._started = time.monotonic()
        self._said = _file_without_name()  # what it says until it prints where we do
        self.control, theirs = socket.socketpair()
        try:
            with theirs, _standard_error() as error:
                numbers = theirs.fileno(), error.fileno()
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START_ZYGOTE, path(), str(numbers[1]), "zygote", str(numbers[0]), *preload],
                    pass_fds=numbers,
                    stdin=subprocess.DEVNULL,
                    stderr=self._said,
                    start_new_session=True,
                    env=self.environment,
                )
        except BaseException:
            self.control.close()
            self._said.close()
            raise
        self._kept = b""
        if preload:
            self._wait_until_imported()

    def _wait_until_imported(self) -> None:
        said = b""
        while said != zygote.IMPORTED and (data := self.control.recv(1 << 16)):
            said += data
        if said != zygote.IMPORTED:
            why = said.decode() or f"preload: {self.why_ended()}"
            self.close()
            raise ImportError(why)

    def why_ended(self) -> str:
        """See Launcher."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # it has closed our socket, and does something else
            self._process.kill()
            code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()[-_TAIL:]
        ended = f"the process that starts workers (pid {self._process.pid}) {how_exited(code)}"
        if code == -signal.SIGKILL:
            return f"{ended}: was there too little memory? `dmesg` says so"
        text = "".join([f"\n    {line}" for line in lines]) or " it said nothing"
        return f"{ended}; see whether `{sys.executable} -c 'import remoteexec_server'` works in this environment:{text}"

    def successor(self) -> ZygoteClient | None:
        """See Launcher; none of one that has ended at once if it is the last of several that have."""
        if time.monotonic() - self._started > _AT_ONCE_S:
            self._ended_at_once = 0
        elif self._ended_at_once >= _MOST_AT_ONCE:
            return None
        return ZygoteClient(self._preload, self)

    def start_worker(self, number: int, kept: bool, output: bool = False, place: tuple[str, ...] = ()) -> Endpoint:
        """See Launcher."""
        ours, theirs = socket.socketpair()
        pipe: tuple[int, ...] = ()
        printed: tuple[int, ...] = ()
        try:
            with theirs:
                if ours.fileno() >= most_files() - _RESERVE:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                ours.setblocking(False)
                if kept:
                    pipe = os.pipe()
                    for handle in pipe:  # not by `pipe2`, which macOS has not
                        os.set_blocking(handle, False)
                if output:
                    printed = os.pipe()
                    os.set_blocking(printed[0], False)
                request = zygote.REQUEST.pack(zygote.KEPT if kept else zygote.ONCE, number)
                with contextlib.suppress(ConnectionError):  # the pool hears of it
                    socket.send_fds(self.control, [request], [theirs.fileno(), *pipe[:1], *printed[1:]])
            if printed:
                os.close(printed[1])
        except BaseException:
            ours.close()
            for handle in (*pipe, *printed):
                os.close(handle)
            raise
        token_out, token_in = pipe or (None, None)
        return Endpoint(number, ours, token_in, token_out, printed[0] if printed else None)

    def has_lost(self, place: tuple[str, ...]) -> bool:
        """See Launcher."""
        return False

    def kill_worker(self, number: int) -> None:
        """Kill a worker and all that it started, if it is still there."""
        with contextlib.suppress(OSError):
            self.control.sendall(zygote.REQUEST.pack(zygote.KILL, number))

    def reports(self) -> list[Report] | None:
        """What it has said; None when it has ended. Reads once."""
        try:
            data = self.control.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            return None
        data = self._kept + data
        whole = len(data) - len(data) % zygote.REPORT.size
        self._kept = data[whole:]
        return [report_of(*fields) for fields in zygote.REPORT.iter_unpack(data[:whole])]

    def end_orphans(self, pids: Sequence[int]) -> None:
        """See Launcher: the zygote is gone, and cannot end its workers."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the zygote, and with it every worker."""
        self.control.close()
        self._said.close()
        self._process.wait()

    def leave(self) -> None:
        """In a fork of the caller: let go, so that the zygote sees the caller's end."""
        self.control.close()


def most_files() -> float:
    """How many files this process may have open."""
    import resource  # late: Windows has none, and imports this module

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def report_of(number: int, pid: int, status: int) -> Report:
    """What a zygote has said, in words."""
    if status == zygote.STARTED:
        return Started(number, pid)
    if status == zygote.NOT_STARTED:
        return NotStarted(number, os.strerror(pid))
    if status in (zygote.HALTED, zygote.CONTINUED):
        return Halted(number, pid, status == zygote.HALTED)
    return Ended(number, pid, status)
