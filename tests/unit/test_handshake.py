"""Two ends of a socket that know one secret, and two that do not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from remoteexec_server.wire import handshake


def meet(accepted: Callable[[socket.socket], Any], connected: Callable[[socket.socket], Any]) -> list[Any]:
    """What each end of a socket pair ended with: None, or the class of an exception."""
    ours, theirs = socket.socketpair()
    ends: list[Any] = [None, None]

    def be(which: int, sock: socket.socket, end: Callable[[socket.socket], Any]) -> None:
        with sock:
            sock.settimeout(10)
            try:
                end(sock)
            except Exception as exc:
                ends[which] = type(exc)

    other = threading.Thread(target=be, args=(1, theirs, connected))
    other.start()
    be(0, ours, accepted)
    other.join()
    return ends


def test_ends_with_the_same_secret_agree() -> None:
    assert meet(lambda s: handshake.accepted(s, b"secret"), lambda s: handshake.connected(s, b"secret")) == [None, None]


def test_who_connects_without_the_secret_is_refused_and_learns_nothing() -> None:
    ends = meet(lambda s: handshake.accepted(s, b"secret"), lambda s: handshake.connected(s, b"guess"))

    assert ends == [handshake.NotOurs, ConnectionResetError]


def test_who_listens_without_the_secret_is_refused() -> None:
    def impostor(sock: socket.socket) -> None:
        sock.sendall(b"n" * 32)
        sock.recv(64)
        sock.sendall(b"p" * 32)

    assert meet(impostor, lambda s: handshake.connected(s, b"secret")) == [None, handshake.NotOurs]


def test_an_answer_sent_back_as_ones_own_is_refused() -> None:
    def mirror(sock: socket.socket) -> None:
        sock.sendall(sock.recv(32) * 2)
        sock.recv(32)

    assert meet(lambda s: handshake.accepted(s, b"secret"), mirror)[0] is handshake.NotOurs


@pytest.mark.parametrize("said", [b"", b"x" * 10])
def test_an_end_that_goes_away_is_a_broken_connection(said: bytes) -> None:
    assert meet(lambda s: handshake.accepted(s, b"secret"), lambda s: s.sendall(said) if said else None)[0] in (
        ConnectionResetError,
        BrokenPipeError,
    )
