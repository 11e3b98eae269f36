"""MPI ranks on several nodes and their worker, by TLS 1.3: both ends show the session's certificate.

    srun ─┬─ watch ── rank 0     on each node; each of them connects to the worker, which listens until all are there
          ├─ watch ── rank 1
          └─ ...

The watch tells how its rank ends, as on one machine, and ends it: when its connection is gone, so is the worker,
whoever ended that, or its node. Then the rank's process group is killed, whatever becomes of the step and of srun.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Iterable

from . import affinity, far_session, mpi_watch, rank_links
from .far_session import FarSession
from .mpi_watch import Word
from .parent import end_with
from .rank_links import Arrival
from .sweeper import shared_memory
from .wire import lanes

__all__ = ["FarLinks", "FarRank"]

_RANK, _WATCH = b"r", b"w"
_HELLO = struct.Struct(">cqq64s")
"""Who it is, what both call the rank, its pid, the name of its node."""
_WORD = struct.Struct(">cqi")
_WAITED, _ABORT, _FILE = b"W", b"A", b"F"
_STRANGER_S = 10.0
"""For somebody who has connected to show who he is."""
_CONNECT_S = 10.0
_FILES = 256
"""Left for all else of the worker. Picked, not measured."""
_TOLD_S = 2.0
"""For the watch to pass on that a rank aborts."""
_LAUNCHER = "SLURM_LAUNCH_NODE_IPADDR"
_NODE = "SLURMD_NODENAME"


class FarLinks:
    """See rank_links.Links.

    Args:
        session: whose certificate the ranks have to show.
        size: ranks.
    """

    def __init__(self, session: FarSession, size: int) -> None:
        _allow_files(2 * size)
        self._tls = lanes.context(session.certificate, server=True)
        self._tls.num_tickets = 0  # nobody comes again, and what a watch does not read would cut off its last word
        self._listener = socket.create_server(
            (far_session.LOCALHOST if session.local else "", 0), backlog=2 * size + 16
        )
        self._listener.setblocking(False)
        self.address = f"{self._listener.getsockname()[1]}@{','.join(_addresses(session))}"
        self.secret = base64.b64encode(session.certificate.encode()).decode()
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._strangers: dict[int, tuple[ssl.SSLSocket, float]] = {}  # until when each may say who he is
        self._watches: dict[int, tuple[ssl.SSLSocket, int]] = {}  # and whose
        self._told: deque[Word] = deque()

    def fileno(self) -> int:
        """See Links."""
        return self._poll.fileno()

    def arrivals(self) -> list[Arrival]:
        """See Links."""
        return self._step(0.0)

    def shut(self) -> None:
        """See Links."""
        self._listener.close()  # by which it is polled no more
        for file, (sock, _) in list(self._strangers.items()):
            self._turn_away(file, sock)

    def words(self) -> int:
        """See Links."""
        return self._poll.fileno()

    def take(self, patience_s: float = 0.0) -> Word | None:
        """See Links."""
        deadline = time.monotonic() + patience_s
        while not self._told:
            left_s = deadline - time.monotonic()
            self._step(max(0.0, left_s))
            if left_s <= 0:
                break
        return self._told.popleft() if self._told else None

    def close(self) -> None:
        """See Links."""
        self.shut()
        for sock, _ in self._watches.values():
            sock.close()
        self._watches.clear()
        self._poll.close()

    def _step(self, patience_s: float) -> list[Arrival]:
        found = []
        for file, _ in self._poll.poll(patience_s):
            if file in self._watches:
                self._hear(file)
            elif file in self._strangers:
                found += self._meet(file)
            else:
                self._let_in()
        now = time.monotonic()
        for file, (sock, until) in list(self._strangers.items()):
            if until < now:
                self._turn_away(file, sock)
        return found

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):
            plain, _ = self._listener.accept()
            lanes.prepare(plain)
            plain.setblocking(False)
            sock = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            self._strangers[sock.fileno()] = sock, time.monotonic() + _STRANGER_S
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _meet(self, file: int) -> list[Arrival]:
        """Until he has shown the certificate, nothing that he says is looked at."""
        sock, _ = self._strangers[file]
        try:
            sock.do_handshake()
            said = sock.recv(_HELLO.size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return []
        except OSError:
            said = b""
        if len(said) != _HELLO.size:
            self._turn_away(file, sock)
            return []
        who, ident, pid, node = _HELLO.unpack(said)
        del self._strangers[file]
        sock.setblocking(True)
        if who == _WATCH:
            self._watches[file] = sock, ident
            return []
        self._poll.unregister(file)
        return [Arrival(sock, ident, pid, node.rstrip(b"\0").decode(errors="replace"))]

    def _turn_away(self, file: int, sock: ssl.SSLSocket) -> None:
        self._poll.unregister(file)
        del self._strangers[file]
        sock.close()

    def _hear(self, file: int) -> None:
        sock, _ = self._watches[file]
        try:
            said = sock.recv(_WORD.size)  # each was sent by itself, so it comes whole
        except OSError:
            said = b""
        if len(said) != _WORD.size:
            self._poll.unregister(file)
            sock.close()
            ident = self._watches.pop(file)[1]
            self._told.append(Word(ident, None, None))  # if it has told more, this comes too late to matter
            return
        kind, ident, value = _WORD.unpack(said)
        self._told.append(Word(ident, None, value) if kind == _ABORT else Word(ident, value, None))


def _allow_files(count: int) -> None:
    """Let this process have as many more open, as far as it may."""
    import resource  # late: Windows has none, and the client imports this package

    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _FILES
    if least != resource.RLIM_INFINITY and least < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most)
            )


def _addresses(session: FarSession) -> list[str]:
    """Where the other nodes may reach this one."""
    if session.local:
        return [far_session.LOCALHOST]
    name = socket.gethostname()
    found = [os.environ.get(_NODE, name), name]
    with contextlib.suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]
    return list(dict.fromkeys(found))


class FarRank:
    """See rank_links.RankEnd."""

    def __init__(self, address: str) -> None:
        port, _, hosts = address.partition("@")
        self._port, self._hosts = int(port), hosts.split(",")
        self._tls = lanes.context(base64.b64decode(os.environ.pop(rank_links.SECRET)).decode(), server=False)
        self._ident = int.from_bytes(os.urandom(7), "big")
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # all that the job has here: who counts its cores is the executor
                os.sched_setaffinity(0, range(os.cpu_count() or 1))
        affinity.learn()

    def watched(self) -> None:
        """See RankEnd."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        watch = os.getpid()
        pid = os.fork()
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # here and there: whoever is first
        if pid == 0:
            ours.close()
            self._to_watch = theirs
            end_with(watch)
            return
        theirs.close()
        code = 1
        try:
            code = self._watch(pid, ours)
        finally:
            os._exit(code)

    def connect(self) -> socket.socket:
        """See RankEnd."""
        return self._connect(_RANK, os.getpid())

    def tell_abort(self, code: int) -> None:
        """See RankEnd: once it is told, since all may be killed at once."""
        with contextlib.suppress(OSError):
            self._to_watch.settimeout(_TOLD_S)
            self._to_watch.send(_WORD.pack(_ABORT, self._ident, code))
            self._to_watch.recv(1)

    def tell_files(self, paths: Iterable[str]) -> None:
        """See RankEnd."""
        for path in paths:
            with contextlib.suppress(OSError):
                self._to_watch.send(_FILE + os.fsencode(path))

    def _connect(self, who: bytes, pid: int) -> ssl.SSLSocket:
        """To the first address where somebody has the certificate."""
        problem: OSError | None = None
        for address in dict.fromkeys([*filter(None, [os.environ.get(_LAUNCHER)]), *self._hosts]):
            try:
                plain = socket.create_connection((address, self._port), _CONNECT_S)
                lanes.prepare(plain)
                sock = self._tls.wrap_socket(plain)
            except OSError as exc:
                problem = exc
                continue
            sock.settimeout(None)
            node = os.environ.get(_NODE, socket.gethostname())
            sock.sendall(_HELLO.pack(who, self._ident, pid, node.encode()[:64]))
            return sock
        raise ConnectionError(
            f"{socket.gethostname()} cannot connect to the worker of its MPI function at any of {self._hosts}: "
            f"{problem}"
        )

    def _watch(self, pid: int, rank: socket.socket) -> int:
        try:
            return _Watch(pid, self._ident, rank, self._connect(_WATCH, os.getpid())).serve()
        except OSError as exc:
            _kill_group(pid)
            print(f"remoteexec: {exc}", file=sys.stderr, flush=True)
            return 1


class _Watch:
    """Waits for its rank's end, the worker's, and what the rank has to tell."""

    def __init__(self, pid: int, ident: int, rank: socket.socket, worker: ssl.SSLSocket) -> None:
        self._pid, self._ident, self._rank, self._worker = pid, ident, rank, worker
        self._files: list[str] = []

    def serve(self) -> int:
        """The exit code to end with."""
        # What srun sends to end the rank ends the rank; this one has to outlive it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(woken, select.POLLIN)
        poll.register(self._rank.fileno(), select.POLLIN)
        poll.register(self._worker.fileno(), select.POLLRDHUP)  # it says nothing
        while (status := self._look()) is None:
            for file, _ in poll.poll():
                if file == woken:
                    os.read(woken, 4096)
                elif file == self._worker.fileno():
                    poll.unregister(file)
                    self._files += shared_memory(self._pid)
                    _kill_group(self._pid)
                elif not self._hear():
                    poll.unregister(file)
        _kill_group(self._pid)  # what it has started
        if status:
            for path in self._files:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        return mpi_watch.end_like(status)

    def _look(self) -> int | None:
        """Pass on what has become of the rank; how it ended, if it has."""
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED | getattr(os, "WCONTINUED", 0))
            if pid == 0:
                return None
            while self._hear(socket.MSG_DONTWAIT):  # what it had told before
                pass
            self._tell(_WAITED, status)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                return status

    def _hear(self, flags: int = 0) -> bool:
        """Read what the rank tells; whether there was anything."""
        try:
            said = self._rank.recv(1 << 16, flags)
        except OSError:
            return False
        if said[:1] == _FILE:
            self._files.append(os.fsdecode(said[1:]))
        elif said:
            self._tell(_ABORT, _WORD.unpack(said)[2])
            with contextlib.suppress(OSError):
                self._rank.send(b".")
        return bool(said)

    def _tell(self, kind: bytes, value: int) -> None:
        with contextlib.suppress(OSError):
            self._worker.sendall(_WORD.pack(kind, self._ident, value))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
