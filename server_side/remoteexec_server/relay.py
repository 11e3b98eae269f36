"""Between a pool and the agents of an allocation: to the pool it is what the zygote is on one machine.

`relay CONTROL RECALL`: two sockets to the pool. From standard input it reads, as one line of JSON, the names of the
nodes, the command that starts the agents, and what they import.

    pool ─┬ control: requests with workers' sockets and pipes ▶ ◀ reports
          │          and with files of objects that are shared, whose copies go to the nodes that want one
          ├ recall: what of a worker's tokens has it not taken?
          └ sockets and pipes of workers ─── relay ═ TLS ═ agents ─── sockets and pipes of workers

One thread carries bytes and waits for nobody; another passes on what the step says, and keeps the end of that. A node
whose connection ends is lost: that is reported for each of its workers, and once for the node. When the pool is gone,
however it went, all connections are closed, so the agents end, and with them their step; what is left of that a moment
later is killed.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

from . import open_files, zygote
from .shared_copies import Originals
from .wire import lanes

REQUEST = struct.Struct("<cqi")
"""As the zygote's, with the number of the node; or one of the following, with the number of a shared object."""
SHARE, UNSHARE = b"+", b"-"
RECALL = struct.Struct("<q")
RECALLED = struct.Struct("<I")
LOST = -5
"""A report: the worker's node is lost; its number is in the place of the pid."""
NODE_LOST = -6
"""A report: this node is lost, its number in the place of the worker's. As many bytes as stand in the place of the pid
follow: why, as text, as far as that is known."""
NODE_READY = -7
"""A report: its agent is there, for the first time and until it is lost."""
HEARD = -8
"""A report: what this worker has not taken could not be asked for in time, and now can."""
_RECALL_S = 1.0
"""The pool waits so long, and for nothing else meanwhile."""
_HELLO_S = 5.0
"""Who connects has so long to say who he is."""
_SILENT = 6
"""A node is lost whose agent has answered none of as many pings. Picked, not measured: a machine that swaps may say
nothing for long. What is cut off or has no power, the connection notices."""
_START_S = 120.0
"""So is one whose agent does not connect. Picked, not measured: nodes have booted when an allocation starts."""
_END_S = 2.0
_CANCEL_S = 5.0
_TAIL_BYTES = 4096
_LINES = 8
_LATE_S = 5.0
"""What was said before is not why a node is lost. Picked, not measured."""
_SCHEDULERS = ("slurmstepd:", "srun:", "flux-exec:")
_RESERVE = 8
"""Files besides, of those that may be open, for connections that are nobody's yet."""
_CHUNK = 1 << 18
_SENT_AT_ONCE = 1 << 20
_RELEASED = b"the shared object is not there any more: it was released"


def main(argv: list[str]) -> int:
    """Carry bytes until the pool is gone."""
    told = json.loads(sys.stdin.buffer.readline())
    control, recall = (socket.socket(fileno=int(number)) for number in argv)
    certificate = new_certificate()
    listener = socket.create_server((told["listen"], 0), backlog=len(told["nodes"]) + 16)
    given = {
        "nodes": told["nodes"],
        "identify": told["identify"],
        "addresses": told["addresses"],
        "port": listener.getsockname()[1],
        "certificate": certificate,
        "preload": told["preload"],
        "session": told["session"],
    }
    with contextlib.ExitStack() as files:
        out, err = [files.enter_context(open(path, "ab")) for path in told["logs"] or ()] or (None, None)
        environment = _environment(told["environment"])
        pipe = subprocess.PIPE
        step = subprocess.Popen(told["step"], stdin=pipe, stdout=out, stderr=pipe, env=environment)
        said = Said(step.stderr, os.dup(err.fileno() if err is not None else sys.stderr.fileno()))
    open_files.raise_limit()  # each worker takes two or three; agents and workers have the limit as it was
    try:
        assert step.stdin is not None
        with contextlib.suppress(OSError):
            step.stdin.write(json.dumps(given).encode() + b"\n")
            step.stdin.close()
        tls = lanes.context(certificate, server=True)
        relay = _Relay(control, recall, listener, len(told["nodes"]), tls, told["ping_s"])
        relay.watch_step(step, told["shown"], said)
        with contextlib.suppress(EOFError, ConnectionError):
            relay.serve()
        relay.close()
    finally:
        if told["end"]:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                nothing = subprocess.DEVNULL
                subprocess.run(told["end"], stdin=nothing, stdout=nothing, stderr=nothing, timeout=_CANCEL_S)
        _end(step)
        said.join(_END_S)
    return 0


def new_certificate() -> str:
    """A certificate of this session alone and its key, as PEM; both ends have it, and demand it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "remoteexec session")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)  # clocks of nodes differ
        .not_valid_after(now + 365 * day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (made.public_bytes(serialization.Encoding.PEM) + private).decode()


def _environment(changes: dict[str, str | None]) -> dict[str, str]:
    """Of the step; None: it is not to have that."""
    found = {**os.environ, **changes}
    return {name: value for name, value in found.items() if value is not None}


def _end(step: subprocess.Popen[bytes]) -> None:
    for end in (None, step.terminate, step.kill):
        if end is not None:
            end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.wait(_END_S)
            return


def _dismissed(sock: ssl.SSLSocket) -> bool:
    """Whether this was an agent; it is told that it is not needed."""
    with sock:
        try:
            sock.settimeout(_END_S)
            sock.do_handshake()
            sock.recv(1)  # its hello: what comes after that is not needed
        except OSError:
            return False
    return True


class Said(threading.Thread):
    """Passes on what a step writes, and keeps the end of it; a thread, since who reads it may stop reading.

    Args:
        source: what it writes into.
        file: where that goes; closed in the end.
    """

    def __init__(self, source: IO[bytes] | None, file: int) -> None:
        super().__init__(name="remoteexec-said", daemon=True)
        assert source is not None  # it was asked for
        self._source, self._file = source.fileno(), file
        self._keep_open = source
        self._kept = b""
        self._told: deque[tuple[float, str]] = deque(maxlen=_LINES)
        self.start()

    def run(self) -> None:
        """Until the step has closed it."""
        while data := os.read(self._source, 1 << 16):
            self._kept = (self._kept + data)[-_TAIL_BYTES:]
            lines = data.decode(errors="replace").splitlines()
            self._told.extend([(time.monotonic(), line) for line in lines if line.startswith(_SCHEDULERS)])
            with contextlib.suppress(OSError):  # nobody reads it
                while data:
                    data = data[os.write(self._file, data) :]
        os.close(self._file)

    def tail(self) -> str:
        """The end of all that was said so far."""
        return self._kept.decode(errors="replace").strip()

    def of_scheduler(self) -> str:
        """What the scheduler itself has said of late, and no user's program."""
        since = time.monotonic() - _LATE_S
        return "; ".join(dict.fromkeys([line.strip() for when, line in list(self._told) if when >= since]))


class _Node:
    """One node; `waiting` is for its link, as long as there is none.

    Attributes:
        next_piece: how much that has to have sent before some of a shared object is next.
        silent: pings since one was answered.
        recalled: worker whose tokens its agent was asked for, and has not said yet.
        unheard: workers whose tokens the pool has asked for in vain meanwhile.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.link: lanes.Link | None = None
        self.waiting = bytearray()
        self.gone = False
        self.next_piece = self.silent = 0
        self.paused: list[_Lane] = []  # of which nothing is read until the link has sent some
        self.recalled: _Lane | None = None
        self.unheard: set[_Lane] = set()


class _Lane:
    """A worker's socket and pipes, on the pool's side.

    Attributes:
        outs: what each of its files is to take.
        report: of its end: told when all of that is taken.
        left: tokens that it has not taken, and will not.
        ahead: bytes on their way to the worker, as far as is known.
    """

    def __init__(self, number: int, node: _Node, files: Sequence[int], kept: bool) -> None:
        self.number, self.node = number, node
        self.sock, rest = files[0], list(files[1:])
        self.tokens = rest.pop(0) if kept else None
        self.printed = rest.pop(0) if rest else None
        self.outs = {file: bytearray() for file in (self.sock, self.printed) if file is not None}
        self.report: bytes | None = None
        self.left = b""
        self.ahead = 0


class _Relay:
    """Nodes, lanes, and what is polled."""

    def __init__(
        self,
        control: socket.socket,
        recall: socket.socket,
        listener: socket.socket,
        nodes: int,
        tls: ssl.SSLContext,
        ping_s: float,
    ) -> None:
        self._control, self._recall, self._listener, self._tls = control, recall, listener, tls
        self._nodes = [_Node(number) for number in range(nodes)]
        self._missing = set(self._nodes)  # their agents have not been there
        self._due: set[_Node] = set()  # may have something to send
        self._ping_s = ping_s
        self._next_ping = time.monotonic() + ping_s
        self._lanes: dict[int, _Lane] = {}
        self._poll = select.epoll()
        self._of: dict[int, Callable[[int, int], None]] = {}
        self._events: dict[int, int] = {}
        self._originals = Originals()
        self._reports = bytearray()
        self._chunk = memoryview(bytearray(_CHUNK))  # read into again and again: new memory would cost as much more
        self._asked: tuple[_Lane, float] | None = None  # whose tokens were recalled, until when
        self._last_file = open_files.limit() - _RESERVE - nodes  # for a worker: each node has one, too
        self._strangers: dict[int, tuple[lanes.Link, float]] = {}  # have not said who they are, until when
        self._start_by = time.monotonic() + _START_S
        control.setblocking(False)
        listener.setblocking(False)
        self._watch(control.fileno(), self._on_control)
        self._watch(recall.fileno(), self._on_recall)
        self._watch(listener.fileno(), self._on_listener)

    def watch_step(self, step: subprocess.Popen[bytes], shown: str, said: Said) -> None:
        """When the step ends, no agent will come any more.

        Args:
            shown: what it is, for people.
        """
        self._step, self._shown, self._said = step, shown, said
        self._watch(os.pidfd_open(step.pid), self._on_step)

    def serve(self) -> None:
        """Carry bytes until the pool is gone."""
        while True:
            due, self._due = self._due, set()
            for node in due:
                self._flush(node)
            for file, events in self._poll.poll(0.0 if self._due else self._timeout_s()):
                found = self._of.get(file)
                if found is not None:
                    found(file, events)
            self._see_time()

    def close(self) -> None:
        """Let all agents end, those too that are on their way: without a complaint in the user's terminal."""
        missing = len(self._missing)
        for node in self._nodes:
            if node.link is not None:
                node.link.sock.close()
        with contextlib.suppress(OSError):
            for link, _ in self._strangers.values():
                missing -= _dismissed(link.sock)
            until = time.monotonic() + _END_S
            while missing > 0 and (left_s := until - time.monotonic()) > 0:
                self._listener.settimeout(left_s)
                plain, _ = self._listener.accept()
                missing -= _dismissed(self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False))
        self._listener.close()

    # ---- what is polled ----

    def _watch(self, file: int, call: Callable[[int, int], None], events: int = select.EPOLLIN) -> None:
        self._of[file], self._events[file] = call, events
        self._poll.register(file, events)

    def _want(self, file: int, events: int) -> None:
        if self._events.get(file, events) != events:
            self._events[file] = events
            self._poll.modify(file, events)

    def _forget(self, file: int) -> None:
        if self._of.pop(file, None) is not None:
            del self._events[file]
            self._poll.unregister(file)

    def _timeout_s(self) -> float:
        times = [self._next_ping, *[until for _, until in self._strangers.values()]]
        if self._asked is not None:
            times.append(self._asked[1])
        if self._missing:
            times.append(self._start_by)
        return max(0.0, min(times) - time.monotonic())

    def _see_time(self) -> None:
        if self._timeout_s() != 0.0:
            return
        now = time.monotonic()
        for file, (link, until) in list(self._strangers.items()):
            if until <= now:
                self._turn_away(file, link.sock)
        if self._asked is not None and self._asked[1] <= now:
            lane, _ = self._asked
            lane.node.unheard.add(lane)
            self._answer(lane)
        if self._missing and self._start_by <= now:
            why = self._why_missing()
            for node in tuple(self._missing):
                self._lose(node, why)
        if self._next_ping <= now:
            self._next_ping = now + self._ping_s
            self._ping()

    def _ping(self) -> None:
        """Ask each agent for an answer. Pings are counted, not seconds: who was suspended with all of the job may not
        hold others for silent when it goes on."""
        for node in self._nodes:
            if node.silent >= _SILENT:
                silent_s = _SILENT * self._ping_s
                self._lose(node, f"its agent has not answered for {silent_s:g} s: it is stopped, or its machine hangs")
            elif node.link is not None:
                node.silent += 1
                self._put(node, lanes.PING, node.number)

    # ---- agents ----

    def _on_step(self, file: int, events: int) -> None:
        self._forget(file)
        self._start_by = time.monotonic() + 0.2  # who has connected may not have been heard yet

    def _why_missing(self) -> str:
        """Why nodes have no agent."""
        code = self._step.poll()
        if code is None:
            how = f"its agent, which `{self._shown}` was to start, has not connected within {_START_S:g} s"
        else:
            self._said.join(_END_S)
            how = f"`{self._shown}`, which was to start its agent, ended with exit code {code}"
        tail = self._said.tail()
        return f"{how}, and said: {tail}" if tail else f"{how}, and said nothing"

    def _on_listener(self, file: int, events: int) -> None:
        with contextlib.suppress(OSError):
            plain, _ = self._listener.accept()
            lanes.prepare(plain)
            plain.setblocking(False)
            sock = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            self._strangers[sock.fileno()] = lanes.Link(sock), time.monotonic() + _HELLO_S
            self._watch(sock.fileno(), self._on_stranger)

    def _on_stranger(self, file: int, events: int) -> None:
        """Someone has connected: until he has shown the session's certificate, nothing he says is looked at."""
        link, _ = self._strangers[file]
        sock = link.sock
        try:
            sock.do_handshake()
            messages = list(link.read())
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, EOFError):
            self._turn_away(file, sock)
            return
        if not messages:
            return
        kind, number, data = messages[0]
        node = self._nodes[number]
        if kind == lanes.FAILED and node.link is None:
            self._turn_away(file, sock)
            self._lose(node, bytes(data).decode(errors="replace"))
            return
        del self._strangers[file]
        if kind != lanes.HELLO or node.gone or node.link is not None:
            self._forget(file)
            sock.close()
            return
        node.link = link
        self._missing.discard(node)
        self._due.add(node)
        self._report(zygote.REPORT.pack(node.number, 0, NODE_READY))
        link.take_over(node.waiting)
        self._of[file] = lambda _file, _events: self._on_link(node)
        for lane in list(self._lanes.values()):
            if lane.node is node and lane.tokens is not None:
                self._watch(lane.tokens, lambda _file, _events, lane=lane: self._on_tokens(lane))  # type: ignore[misc]
                self._on_tokens(lane)

    def _turn_away(self, file: int, sock: ssl.SSLSocket) -> None:
        self._forget(file)
        del self._strangers[file]
        sock.close()

    def _on_link(self, node: _Node) -> None:
        assert node.link is not None
        self._due.add(node)  # it may be able to take more now
        try:
            for kind, number, data in node.link.read():
                if kind == lanes.WANT:
                    self._want_copy(node, number)
                elif kind == lanes.GONE:
                    self._originals.refused(node.number, number)
                elif kind == lanes.PING:
                    node.silent = 0
                elif kind == lanes.RECALL:
                    self._take_back(node, data)
                else:
                    self._take(kind, number, data)
        except (OSError, EOFError):
            self._lose(node)

    def _take(self, kind: bytes, number: int, data: lanes.Data) -> None:
        lane = self._lanes.get(number)
        if lane is None:
            pass
        elif kind == lanes.DATA:
            self._give(lane, lane.sock, data)
        elif kind == lanes.TAKEN:
            held_up = lane.ahead > lanes.AHEAD
            lane.ahead -= lanes.COUNT.unpack(data)[0]
            if held_up and lane.ahead <= lanes.AHEAD and lane.sock in self._of:
                self._give(lane, lane.sock, b"")
        elif kind == lanes.PRINTED and lane.printed is not None:
            self._give(lane, lane.printed, data)
        elif kind == lanes.LEFT:
            lane.left += bytes(data)
        elif kind == lanes.REPORT:
            if zygote.REPORT.unpack(data)[2] in (zygote.STARTED, zygote.HALTED, zygote.CONTINUED):
                self._report(bytes(data))
            else:
                lane.report = bytes(data)
                self._close_if_over(lane)

    def _take_back(self, node: _Node, tokens: lanes.Data) -> None:
        lane, node.recalled = node.recalled, None
        assert lane is not None  # it was asked
        lane.left += bytes(tokens)
        self._answer_if_asked(lane)
        while node.unheard:
            self._report(zygote.REPORT.pack(node.unheard.pop().number, 0, HEARD))

    def _put(self, node: _Node, kind: bytes, worker: int, data: lanes.Data = b"") -> None:
        if node.link is not None:
            node.link.put(kind, worker, data)
            self._due.add(node)
        elif not node.gone:
            lanes.put(node.waiting, kind, worker, data)

    def _flush(self, node: _Node) -> None:
        if node.link is None:
            return
        try:
            done = node.link.flush()
        except OSError:
            self._lose(node)
            return
        if node.number in self._originals.due:
            done = False
            if node.link.sent >= node.next_piece:  # all else that was to be sent since the last one has been
                self._put(node, *self._originals.next(node.number))
                node.next_piece = node.link.sent + node.link.waiting
        self._want(node.link.sock.fileno(), select.EPOLLIN | (0 if done else select.EPOLLOUT))
        if node.paused and node.link.waiting <= lanes.MUCH:
            paused, node.paused = node.paused, []
            for lane in paused:
                if lane.sock in self._of:
                    self._give(lane, lane.sock, b"")

    def _lose(self, node: _Node, why: str = "") -> None:
        if node.gone:
            return
        node.gone = True
        self._missing.discard(node)
        if node.link is not None:
            why = why or self._said.of_scheduler()
            self._forget(node.link.sock.fileno())
            node.link.sock.close()
            node.link = None
            for other in self._nodes:  # before any further call is started there
                if other.link is not None:
                    self._put(other, lanes.LOST, node.number)
        node.paused.clear()
        node.unheard.clear()
        self._originals.lose(node.number)
        words = why.encode(errors="replace")
        # first: nothing new is to go there
        self._report(zygote.REPORT.pack(node.number, len(words), NODE_LOST) + words)
        for lane in [lane for lane in self._lanes.values() if lane.node is node]:
            if lane.report is None:
                lane.report = zygote.REPORT.pack(lane.number, node.number, LOST)
            self._answer_if_asked(lane)
            self._close_if_over(lane)

    # ---- shared objects ----

    def _want_copy(self, node: _Node, number: int) -> None:
        if not self._originals.want(node.number, number):
            self._put(node, lanes.GONE, number, _RELEASED)

    def _unshare(self, number: int) -> None:
        for at in self._originals.remove(number):
            self._put(self._nodes[at], lanes.GONE, number, _RELEASED)

    # ---- the pool ----

    def _on_control(self, file: int, events: int) -> None:
        if events & select.EPOLLOUT:
            self._report(b"")
        if not events & ~select.EPOLLOUT:
            return
        data, files, flags, _ = socket.recv_fds(self._control, REQUEST.size, 3)
        if not data:
            raise EOFError
        kind, number, at = REQUEST.unpack(data)
        if kind == zygote.KILL:
            if number in self._lanes:
                self._put(self._lanes[number].node, lanes.KILL, number)
            return
        if kind == SHARE:
            self._originals.add(number, files[0] if files else -1)
            self._due.update(self._nodes[at] for at in self._originals.due)
            return
        if kind == UNSHARE:
            self._unshare(number)
            return
        node = self._nodes[at]
        before = self._lanes.get(number)
        if before is not None:  # the pool has let go of it
            self._put(before.node, lanes.CLOSE, number)
            self._drop(before)
        if flags & socket.MSG_CTRUNC or max(files) > self._last_file:  # some may not have come
            for file_of_lane in files:
                os.close(file_of_lane)
            self._report(zygote.REPORT.pack(number, errno.EMFILE, zygote.NOT_STARTED))
            return
        lane = self._lanes[number] = _Lane(number, node, files, kind == zygote.KEPT)
        for file_of_lane in files:
            os.set_blocking(file_of_lane, False)
        self._watch(lane.sock, lambda _file, its: self._on_lane(lane, its))
        if node.gone:
            lane.report = zygote.REPORT.pack(number, node.number, LOST)
            self._close_if_over(lane)
            return
        flags = (lanes.KEPT if lane.tokens is not None else 0) | (lanes.OUTPUT if lane.printed is not None else 0)
        self._put(node, lanes.START, number, bytes([flags]))
        if lane.tokens is not None and node.link is not None:
            self._watch(lane.tokens, lambda _file, _events: self._on_tokens(lane))

    def _on_lane(self, lane: _Lane, events: int) -> None:
        if events & select.EPOLLOUT:
            self._give(lane, lane.sock, b"")
        if not events & ~select.EPOLLOUT:
            return
        much = lane.node.link is not None and lane.node.link.waiting > lanes.MUCH
        if (much or lane.ahead > lanes.AHEAD) and not events & (select.EPOLLHUP | select.EPOLLERR):
            if much:
                lane.node.paused.append(lane)
            self._want(lane.sock, select.EPOLLOUT if lane.outs[lane.sock] else 0)
            return
        try:
            data = self._chunk[: os.readv(lane.sock, [self._chunk])]
        except BlockingIOError:
            return
        except OSError:
            data = self._chunk[:0]
        if data:
            if lane.tokens is not None and lane.node.link is not None:
                self._on_tokens(lane)
            lane.ahead += len(data)
            self._put(lane.node, lanes.DATA, lane.number, data)
            return
        self._put(lane.node, lanes.CLOSE, lane.number)
        self._answer_if_asked(lane)
        if lane.report is not None:
            self._drop(lane)
        else:  # its end is reported yet
            lane.outs[lane.sock].clear()
            self._forget(lane.sock)

    def _on_tokens(self, lane: _Lane) -> None:
        """Tokens go to the worker; as long as its node is not connected they stay where they are."""
        if lane.node.link is None:
            self._forget(lane.tokens if lane.tokens is not None else -1)
        elif data := self._tokens_of(lane):
            self._put(lane.node, lanes.TOKENS, lane.number, data)

    def _tokens_of(self, lane: _Lane) -> bytes:
        if lane.tokens is None:
            return b""
        try:
            data = os.read(lane.tokens, 1 << 16)
        except BlockingIOError:
            return b""
        if not data:
            self._forget(lane.tokens)
        return data

    def _on_recall(self, file: int, events: int) -> None:
        data = self._recall.recv(RECALL.size)
        if not data:
            self._forget(file)
            return
        (number,) = RECALL.unpack(data)
        lane = self._lanes.get(number)
        if lane is None or lane.node.link is None:
            self._answer(lane)
        elif lane.node.recalled is not None:
            lane.node.unheard.add(lane)
            self._answer(lane)
        elif lane.left and lane.report is None:  # said too late
            self._answer(lane)
        else:  # one that has ended, too: more may have been on its way to it
            self._on_tokens(lane)
            self._put(lane.node, lanes.RECALL, number)
            lane.node.recalled = lane
            self._asked = lane, time.monotonic() + _RECALL_S

    def _answer_if_asked(self, lane: _Lane) -> None:
        if self._asked is not None and self._asked[0] is lane:
            self._answer(lane)

    def _answer(self, lane: _Lane | None) -> None:
        """Tell the pool what a worker has not taken and will not, as far as is known."""
        self._asked = None
        tokens = b""
        if lane is not None:
            tokens, lane.left = lane.left, b""
            if lane.node.link is None:
                tokens += self._tokens_of(lane)
        self._recall.sendall(RECALLED.pack(len(tokens)) + tokens)

    def _give(self, lane: _Lane, file: int, data: lanes.Data) -> None:
        """Write to one of the pool's files; what it does not take now is kept."""
        out = lane.outs[file]
        out += data
        try:
            while out:
                del out[: os.write(file, memoryview(out)[:_SENT_AT_ONCE])]
        except BlockingIOError:
            pass
        except OSError:  # the pool has closed it
            out.clear()
        if file == lane.sock:
            self._want(file, select.EPOLLIN | (select.EPOLLOUT if out else 0))
        elif out and file not in self._of:
            self._watch(file, lambda file, _events: self._give(lane, file, b""), select.EPOLLOUT)
        elif not out:
            self._forget(file)
        self._close_if_over(lane)

    def _close_if_over(self, lane: _Lane) -> None:
        """Tell its end, once the pool has been given all it has said."""
        if lane.report is None or any(lane.outs.values()):
            return
        report, lane.report = lane.report, b""
        if report:
            self._report(report)
            if lane.sock not in self._of:
                self._drop(lane)

    def _drop(self, lane: _Lane) -> None:
        """The pool has buried it, or let go of it."""
        self._answer_if_asked(lane)
        self._lanes.pop(lane.number, None)
        lane.node.unheard.discard(lane)
        for file in (lane.sock, lane.tokens, lane.printed):
            if file is not None:
                self._forget(file)
                os.close(file)

    def _report(self, data: bytes) -> None:
        self._reports += data
        with contextlib.suppress(BlockingIOError):
            while self._reports:
                del self._reports[: self._control.send(self._reports)]
        self._want(self._control.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._reports else 0))
