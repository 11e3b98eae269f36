"""What a relay and its agents say: the bytes of many workers' sockets on one encrypted connection.

    message = kind (1 byte) | worker (8 bytes) | length (4 bytes), big endian | that many bytes

Nobody on the way looks into what workers and the pool say to each other. Both ends have the session's certificate and
its key and demand it of the other, by TLS 1.3: before that is agreed, no byte is looked at.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Iterator

HELLO = b"h"
"""An agent says the number of its node instead of a worker's, first of all."""
FAILED = b"f"
"""Instead of that: there will be no agent on this node, for a reason that follows as text."""
PING = b"i"
"""From the relay; an agent says it back when its zygote has answered, too."""
START = b"s"
"""Fork a worker: see `KEPT`, `OUTPUT` for the one byte of flags."""
LOST = b"l"
"""The node whose number stands in the worker's place is lost: ranks here whose worker is there are to be killed."""
KILL = b"k"
DATA = b"d"
"""Of the worker's socket, either way."""
TAKEN = b"a"
"""How many more bytes of DATA the worker has taken, as a number: see `AHEAD`."""
TOKENS = b"t"
"""For the worker's pipe."""
RECALL = b"r"
"""Read what is in that pipe: answered by the same, with what was."""
LEFT = b"u"
"""The same of a worker that has ended, unasked and before the report of that."""
CLOSE = b"c"
"""The pool has closed its end."""
PRINTED = b"p"
REPORT = b"e"
"""One of the zygote's."""
WANT = b"W"
"""A node is to have a copy of the shared object that has this number, which stands in the worker's place."""
PIECE = b"O"
"""Some of that, after where in the object it belongs; one after the other, from the first on."""
GONE = b"G"
"""Nothing more of that object, with the reason: from the relay, it is shared no more; from an agent, it has no room."""

KEPT, OUTPUT = 1, 2
_HEAD = struct.Struct(">cqI")
Data = bytes | memoryview
_CHUNK = 1 << 16
_READ_AT_ONCE = 1 << 18
MUCH = 8 << 20
"""Bytes that wait for a connection, from which on nothing more is read for it. Picked, not measured."""
AHEAD = 4 << 20
"""Bytes that may be on their way to one worker: more would fill its node's memory while it does not read. Picked."""
TAKEN_AT_ONCE = AHEAD // 8
COUNT = struct.Struct(">q")
_IDLE_S, _PROBE_S, _PROBES = 4, 2, 2
"""A machine that is gone without a word is noticed after `_IDLE_S + _PROBE_S * _PROBES` seconds."""


class Link:
    """One end of a connection; never blocks.

    Attributes:
        sent: bytes that were sent.

    Raises:
        OSError, from all but `put`: the other end is gone, or was not who it has to be.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._out = bytearray()
        self._sending = b""  # must be offered again as it is
        self.sent = 0
        self._kept = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes that are to be sent."""
        return len(self._out) + len(self._sending)

    def put(self, kind: bytes, worker: int, data: Data | bytearray = b"") -> None:
        """Send this with the next `flush`."""
        self._out += _HEAD.pack(kind, worker, len(data))
        self._out += data

    def take_over(self, waiting: bytearray) -> None:
        """Send first what was put when there was no connection yet."""
        self._out = waiting + self._out

    def flush(self) -> bool:
        """Send as much as is taken; whether that is all."""
        while self._sending or self._out:
            if not self._sending:
                self._sending = bytes(memoryview(self._out)[:_CHUNK])
                del self._out[:_CHUNK]
            try:
                self.sock.send(self._sending)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            self.sent += len(self._sending)
            self._sending = b""
        return True

    def read(self) -> Iterator[tuple[bytes, int, Data]]:
        """Whole messages that are here, a few at once; DATA and PIECE as views, which end when the next is asked for.

        Raises:
            EOFError: the other end has closed; what came before was given.
        """
        ended = False
        until = len(self._kept) + _READ_AT_ONCE  # a record of TLS is read whole: what is left, a poll tells
        while len(self._kept) < until:
            try:
                data = self.sock.recv(_CHUNK)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                ended = True
                break
            self._kept += data
        used, end = 0, len(self._kept)
        with memoryview(self._kept) as view:
            while end - used >= _HEAD.size:
                kind, worker, length = _HEAD.unpack_from(view, used)
                start = used + _HEAD.size
                if end - start < length:
                    break
                used = start + length
                if kind in (DATA, PIECE):
                    with view[start:used] as part:
                        yield kind, worker, part
                else:
                    yield kind, worker, bytes(view[start:used])
        del self._kept[:used]
        if ended:
            raise EOFError


def put(waiting: bytearray, kind: bytes, worker: int, data: Data | bytearray = b"") -> None:
    """What `Link.take_over` takes."""
    waiting += _HEAD.pack(kind, worker, len(data))
    waiting += data


def context(certificate: str, server: bool) -> ssl.SSLContext:
    """TLS 1.3 between two ends that both have this certificate and its key, as PEM."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    found.minimum_version = ssl.TLSVersion.TLSv1_3
    found.check_hostname = False  # who has the key is the other end, whatever his address
    found.verify_mode = ssl.CERT_REQUIRED
    found.load_verify_locations(cadata=certificate)
    with os.fdopen(os.memfd_create("session"), "wb") as file:  # `ssl` reads it from a file; this one has no name
        file.write(certificate.encode())
        file.flush()
        found.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return found


def prepare(sock: socket.socket) -> None:
    """No waiting for more to send; and a machine that is gone is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_S),
        ("TCP_KEEPINTVL", _PROBE_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", 1000 * (_IDLE_S + _PROBE_S * _PROBES)),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
