"""The proxy that stands in for a wide-area link."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.clusters.delayproxy import DelayProxy


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def round_trip_s(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    return time.monotonic() - began


def test_delay_both_ways(echo_port: int) -> None:
    with DelayProxy("127.0.0.1", echo_port, 0.02) as proxy:
        with socket.create_connection((proxy.host, proxy.port)) as connection:
            assert 0.04 <= round_trip_s(connection) < 0.2
            proxy.delay(0.0)
            assert round_trip_s(connection) < 0.04
        assert (proxy.connections(), proxy.transferred_bytes()) == (1, 4)


def test_a_stalled_link_is_silent_and_loses_nothing(echo_port: int) -> None:
    with (
        DelayProxy("127.0.0.1", echo_port, 0.0) as proxy,
        socket.create_connection((proxy.host, proxy.port)) as connection,
    ):
        round_trip_s(connection)
        proxy.stall()
        connection.sendall(b"y")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.resume()
        connection.settimeout(10)
        assert connection.recv(1) == b"y"


def test_reset_and_refusal(echo_port: int) -> None:
    with DelayProxy("127.0.0.1", echo_port, 0.0) as proxy:
        with socket.create_connection((proxy.host, proxy.port)) as connection:
            round_trip_s(connection)
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port))
        proxy.accept()
        with socket.create_connection((proxy.host, proxy.port)) as connection:
            round_trip_s(connection)


def test_the_end_of_one_direction_is_passed_on(echo_port: int) -> None:
    data = bytes(range(256)) * 4096
    with (
        DelayProxy("127.0.0.1", echo_port, 0.01) as proxy,
        socket.create_connection((proxy.host, proxy.port)) as connection,
    ):

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        sender.join()
        assert received == data
