"""One node's share of an allocation: a zygote and its workers, whose sockets are carried over one connection.

`agent`, started by the scheduler once on every node, reads from its standard input what `relay` wrote there: where that
listens, the names of the nodes, the session's certificate with its key, and what to import. Then

    relay ═ TLS ═ agent ─┬ zygote: forks, kills, reports
                         ├ worker's socket and token pipe, for each
                         └ copies of shared objects: who loads one asks for it; see `shared_copies`

One thread carries bytes and never waits for one of them. When the connection or the relay is gone, the agent ends; the
zygote sees that and kills all workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from typing import Any

from . import affinity, far_session, zygote
from .wire import names

_CHUNK = 1 << 18
_TOLD_S = 120.0
"""For who has started it to say what for: it may be gone."""
_BUSY_BYTES = 8 * 8
"""A worker with so many more calls keeps nobody waiting for a result, and gives the next ones soon."""
_REST_S = 0.0005
"""What comes meanwhile from such workers goes in one piece. Measured: a fifth of the time of many short calls."""
_CONNECT_S = 10.0
_IDENTIFY_S = 30.0


def main(argv: list[str]) -> int:
    """Serve until the relay is gone."""
    if not select.select([sys.stdin], [], [], _TOLD_S)[0]:
        print(f"remoteexec: nothing was said within {_TOLD_S:g} s to the agent of this node", file=sys.stderr)
        return 1
    told = json.loads(sys.stdin.buffer.readline())
    local = told["addresses"] == [far_session.LOCALHOST]
    session = far_session.FarSession(told["session"], told["certificate"], local)
    far_session.remember(session)
    name = os.environ[names.NODE] = _name(told["identify"])
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # all that the job has here, though its step was bound to one core
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
    affinity.learn()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.setsid()
        os._exit(_zygote(theirs, told["preload"]))
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's business
    problem = _import_problem(ours) if told["preload"] else b""
    from . import open_files  # late, as the next: the zygote does without, and forks faster
    from .shared_copies import Copies
    from .wire import lanes

    open_files.raise_limit()  # each worker takes three, and one while it waits for a shared object
    copies = Copies(told["session"], name)
    try:
        link = lanes.Link(lanes.context(told["certificate"], server=False).wrap_socket(_connect(told)))
    except OSError as exc:
        print(f"remoteexec: {exc}", file=sys.stderr, flush=True)
        return 1
    if problem:
        link.put(lanes.FAILED, told["nodes"].index(name), problem)
        with contextlib.suppress(OSError):
            link.flush()
            link.sock.recv(1)  # until it is read, and the relay has closed
        return 1
    link.sock.setblocking(False)
    link.put(lanes.HELLO, told["nodes"].index(name))
    with contextlib.closing(copies), contextlib.suppress(OSError, EOFError):
        _Agent(link, ours, copies, [session.ranks_of(node) for node in told["nodes"]]).serve()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)  # if it was stopped, it ends now, too; nobody has waited for it: it is that one
    return 0


def _name(identify: list[str]) -> str:
    """Which of the nodes this is."""
    if not identify:
        return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    said = subprocess.run(identify, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_IDENTIFY_S, check=True)
    return said.stdout.decode().strip()


def _import_problem(zygotes: socket.socket) -> bytes:
    """Wait until all is imported; why that cannot be."""
    said = b""
    while said != zygote.IMPORTED and (data := zygotes.recv(1 << 16)):
        said += data
    return b"" if said == zygote.IMPORTED else said or b"preload: the process that imports has ended"


def _zygote(control: socket.socket, preload: list[str]) -> int:
    try:
        return zygote.main([str(control.detach()), *preload])
    except BaseException:  # the process edge
        sys.excepthook(*sys.exc_info())
        return 1


def _connect(told: dict[str, Any]) -> socket.socket:
    """To the first address that answers; who it is, TLS sees."""
    from .wire import lanes

    problem: OSError | None = None
    for address in dict.fromkeys([*told["addresses"], os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")]):
        try:
            sock = socket.create_connection((address, told["port"]), _CONNECT_S)
        except OSError as exc:
            problem = exc
            continue
        lanes.prepare(sock)
        return sock
    raise ConnectionError(
        f"{socket.gethostname()} cannot connect to the executor at any of {told['addresses']}: {problem}"
    )


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    """One that is closed again if what follows fails."""
    ends = os.pipe()
    for end in ends:
        undo.callback(os.close, end)
    return ends


def _waiting_in(pipe: int) -> int:
    """How many bytes."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


class _Lane:
    """A worker's socket and pipes, on our side.

    Attributes:
        out: what its socket is to take.
        taken: bytes that it has taken since the relay was told how many.
    """

    def __init__(self, number: int, sock: socket.socket, tokens: tuple[int, int] | None, printed: int | None) -> None:
        self.number, self.sock, self.tokens, self.printed = number, sock, tokens, printed
        self.out = bytearray()
        self.taken = 0


class _Agent:
    """Its lanes, and what is polled.

    Args:
        marks: of each node, what ranks have in their environment whose worker is there.
    """

    def __init__(self, link: Any, control: socket.socket, copies: Any, marks: list[str]) -> None:
        from .wire import lanes

        self._kinds, self._marks = lanes, marks
        self._link, self._control, self._copies = link, control, copies
        self._lanes: dict[int, _Lane] = {}
        self._reports = b""
        self._chunk = memoryview(bytearray(_CHUNK))  # read into again and again: new memory would cost as much more
        self._poll = select.epoll()
        self._of: dict[int, Any] = {}  # by file: a lane, a lane's number for what it prints, or what is watched below
        self._paused = self._busy = False
        for file in (link.sock, control):
            self._watch(file.fileno(), file)
        self._watch(copies.fileno(), copies)

    def serve(self) -> None:
        """Carry bytes until the link is gone."""
        read, write = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR, select.EPOLLOUT
        while True:
            done = self._link.flush()
            self._poll.modify(self._link.sock.fileno(), select.EPOLLIN | (0 if done else write))
            self._pause(self._link.waiting > self._kinds.MUCH)
            if self._busy:
                self._busy = False
                time.sleep(_REST_S)
            for file, events in self._poll.poll():
                found = self._of.get(file)
                if found is self._link.sock:
                    for message in self._link.read():
                        self._obey(*message)
                elif found is self._control:
                    self._report()
                elif found is self._copies:
                    self._ask_for_copies()
                elif type(found) is int:
                    self._hear_print(file, found)
                elif found is not None:
                    if events & write:
                        self._write(found)
                    if events & read and not self._paused:
                        self._hear(found)

    def _watch(self, file: int, data: Any) -> None:
        self._of[file] = data
        self._poll.register(file, select.EPOLLIN)

    def _forget(self, file: int) -> None:
        if self._of.pop(file, None) is not None:
            self._poll.unregister(file)

    def _pause(self, paused: bool) -> None:
        """Read no results while too many wait to be sent."""
        if paused != self._paused:
            self._paused = paused
            for lane in self._lanes.values():
                if lane.sock.fileno() in self._of:
                    self._want(lane)

    def _want(self, lane: _Lane) -> None:
        events = (0 if self._paused else select.EPOLLIN) | (select.EPOLLOUT if lane.out else 0)
        self._poll.modify(lane.sock.fileno(), events)

    def _obey(self, kind: bytes, number: int, data: bytes | memoryview) -> None:
        kinds = self._kinds
        if kind == kinds.START:
            try:
                self._start(number, data[0])
            except OSError as exc:  # too many open files, say
                self._link.put(kinds.REPORT, number, zygote.REPORT.pack(number, exc.errno or 0, zygote.NOT_STARTED))
            return
        if kind == kinds.PING:
            self._control.sendall(zygote.REQUEST.pack(zygote.PING, number))
            return
        if kind == kinds.KILL:
            self._control.sendall(zygote.REQUEST.pack(zygote.KILL, number))
            return
        if kind == kinds.LOST:
            from . import sweeper  # late: it is seldom needed

            sweeper.kill_marked([self._marks[number]])
            return
        if kind == kinds.PIECE:
            if not self._copies.take(number, data):
                self._link.put(kinds.GONE, number)
            return
        if kind == kinds.GONE:
            self._copies.drop(number, bytes(data).decode())
            return
        lane = self._lanes.get(number)
        if kind == kinds.RECALL:
            self._link.put(kinds.RECALL, number, self._recalled(lane))
        elif lane is None:
            return
        elif kind == kinds.TOKENS and lane.tokens is not None:
            os.write(lane.tokens[1], data)
        elif kind == kinds.DATA:
            waits = bool(lane.out)
            lane.out += data
            if not waits:
                self._write(lane)
        elif kind == kinds.CLOSE:
            self._drop(lane)

    def _ask_for_copies(self) -> None:
        for number in self._copies.serve():
            self._link.put(self._kinds.WANT, number)

    def _start(self, number: int, flags: int) -> None:
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                tokens = _pipe(undo) if flags & self._kinds.KEPT else None
                printed = _pipe(undo) if flags & self._kinds.OUTPUT else None
                request = zygote.REQUEST.pack(zygote.KEPT if tokens else zygote.ONCE, number)
                handles = [theirs.fileno(), *(tokens or ())[:1], *(printed or ())[1:]]
                socket.send_fds(self._control, [request], handles)
            undo.pop_all()
        for handle in (ours.fileno(), *(tokens or ()), *(printed or ())[:1]):
            os.set_blocking(handle, False)
        if printed:
            os.close(printed[1])
            self._watch(printed[0], number)
        lane = self._lanes[number] = _Lane(number, ours, tokens, printed[0] if printed else None)
        self._watch(ours.fileno(), lane)

    def _recalled(self, lane: _Lane | None) -> bytes:
        if lane is None or lane.tokens is None:
            return b""
        try:
            return os.read(lane.tokens[0], 1 << 16)
        except BlockingIOError:
            return b""

    def _write(self, lane: _Lane) -> None:
        before = len(lane.out)
        try:
            while lane.out:
                del lane.out[: lane.sock.send(memoryview(lane.out)[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:  # it is gone: the zygote says so
            lane.out.clear()
        lane.taken += before - len(lane.out)
        if lane.taken >= self._kinds.TAKEN_AT_ONCE:
            self._link.put(self._kinds.TAKEN, lane.number, self._kinds.COUNT.pack(lane.taken))
            lane.taken = 0
        if before and lane.sock.fileno() in self._of:
            self._want(lane)

    def _hear(self, lane: _Lane) -> None:
        try:
            length = lane.sock.recv_into(self._chunk)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if length:
            self._link.put(self._kinds.DATA, lane.number, self._chunk[:length])
            self._busy = self._busy or (lane.tokens is not None and _waiting_in(lane.tokens[0]) >= _BUSY_BYTES)
        else:
            self._forget(lane.sock.fileno())

    def _hear_print(self, file: int, number: int) -> None:
        try:
            data = os.read(file, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._link.put(self._kinds.PRINTED, number, data)
        else:
            self._forget(file)

    def _drop(self, lane: _Lane) -> None:
        """The pool has let go of it: the worker ends as soon as it waits for a call."""
        del self._lanes[lane.number]
        self._forget(lane.sock.fileno())
        lane.sock.close()
        if lane.printed is not None:
            self._forget(lane.printed)
            os.close(lane.printed)
        for handle in lane.tokens or ():
            os.close(handle)

    def _report(self) -> None:
        data = self._control.recv(1 << 16)
        if not data:
            raise EOFError("the zygote is gone")
        data = self._reports + data
        whole = len(data) - len(data) % zygote.REPORT.size
        self._reports = data[whole:]
        for number, pid, status in zygote.REPORT.iter_unpack(data[:whole]):
            if status == zygote.HERE:
                self._link.put(self._kinds.PING, number)
                continue
            lane = self._lanes.get(number)
            if lane is not None and status not in (zygote.STARTED, zygote.HALTED, zygote.CONTINUED):
                self._last_words(lane)
            self._link.put(self._kinds.REPORT, number, zygote.REPORT.pack(number, pid, status))

    def _last_words(self, lane: _Lane) -> None:
        """What it said before it ended comes before the report of that; and tokens that it has not taken come back."""
        while lane.sock.fileno() in self._of:
            waiting = self._link.waiting
            self._hear(lane)
            if self._link.waiting == waiting:
                break
        if lane.printed is not None:
            while lane.printed in self._of:
                waiting = self._link.waiting
                self._hear_print(lane.printed, lane.number)
                if self._link.waiting == waiting:
                    break
        self._link.put(self._kinds.LEFT, lane.number, self._recalled(lane))
