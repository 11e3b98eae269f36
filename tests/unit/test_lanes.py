"""Connections between a relay and its agents: what goes over them, and who gets none."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from remoteexec_server.relay import new_certificate
from remoteexec_server.wire import lanes


@pytest.fixture(scope="module")
def certificate() -> str:
    pytest.importorskip("cryptography")
    return new_certificate()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def linked(
    pair: tuple[socket.socket, socket.socket], server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[lanes.Link, lanes.Link]:
    """Two ends of a connection, after both have shaken hands."""
    ours, theirs = (socket.socket(fileno=end.detach()) for end in pair)
    ours.setblocking(False)
    theirs.setblocking(False)
    ends = (
        server.wrap_socket(ours, server_side=True, do_handshake_on_connect=False),
        client.wrap_socket(theirs, do_handshake_on_connect=False),
    )
    open_ends = list(ends)
    try:
        for _ in range(20):
            for end in tuple(open_ends):
                try:
                    end.do_handshake()
                    open_ends.remove(end)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
        assert open_ends == []
    except OSError:
        for end in ends:
            end.close()
        raise
    return lanes.Link(ends[0]), lanes.Link(ends[1])


def test_messages_of_any_size_arrive_in_order(certificate: str, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = linked(pair, lanes.context(certificate, True), lanes.context(certificate, False))
    sent = [(lanes.DATA, 7, bytes(range(256)) * 4000), (lanes.TOKENS, -1, b""), (lanes.REPORT, 2**40, b"x")]
    for message in sent:
        one.put(*message)

    got: list[tuple[bytes, int, bytes]] = []
    while len(got) < len(sent):
        one.flush()
        got += [(kind, worker, bytes(data)) for kind, worker, data in other.read()]
    assert (got, one.waiting) == (sent, 0)
    one.sock.close()
    other.sock.close()


def test_what_waited_for_the_connection_goes_first(certificate: str, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = linked(pair, lanes.context(certificate, True), lanes.context(certificate, False))
    waiting = bytearray()
    lanes.put(waiting, lanes.START, 1, b"\1")
    one.put(lanes.KILL, 1)
    one.take_over(waiting)
    assert one.flush()

    assert list(other.read()) == [(lanes.START, 1, b"\1"), (lanes.KILL, 1, b"")]
    one.sock.close()
    with pytest.raises((EOFError, OSError)):
        list(other.read())
    other.sock.close()


@pytest.mark.parametrize("stranger", ["another certificate", "none", "TLS 1.2"])
def test_who_has_not_the_sessions_certificate_says_nothing(
    certificate: str, stranger: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    client = lanes.context(certificate, False)
    if stranger == "another certificate":
        client = lanes.context(new_certificate(), False)
        client.verify_mode = ssl.CERT_NONE
    elif stranger == "none":
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
    else:
        client.minimum_version = ssl.TLSVersion.TLSv1_2
        client.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises(ssl.SSLError):
        linked(pair, lanes.context(certificate, True), client)
