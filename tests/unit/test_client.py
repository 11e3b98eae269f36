"""The service on a thread of this process: what it says is delivered, what it refuses is raised."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remoteexec import errors
from remoteexec.engine.client import Failed, Heard, InProcess
from remoteexec.engine.tracker import Linked
from remoteexec_server.batch import loop
from remoteexec_server.wire.messages import Closed, Event, Hello, Pong, Problem, Refused, Welcome

HELLO = Hello(1, "3.x", "0.1.0", "c", "s-1", "00" * 32)
WELCOME = Welcome("0.1.0", "3.x", "here", "/r", "fake")


class Delivered:
    """What was delivered, in order."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[tuple[Heard, bytes]] = queue.SimpleQueue()

    def __call__(self, item: tuple[Heard, bytes]) -> None:
        self._items.put(item)

    def next(self) -> Heard:
        return self._items.get(timeout=10.0)[0]

    def empty(self) -> bool:
        return self._items.empty()


Run = Callable[[loop.Inbox, loop.Emit], None]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., InProcess]]:
    """Makes a client of services that behave so, one after the other."""
    clients: list[InProcess] = []

    def make(*runs: Run) -> InProcess:
        waiting = list(runs)

        def run(inbox: loop.Inbox, emit: loop.Emit, *rest: Any) -> None:
            first = inbox.get()
            assert first == (HELLO, b"")
            assert rest[:2] == ("/root/of/ours", "fake")
            waiting.pop(0)(inbox, emit)

        monkeypatch.setattr(loop, "run", run)
        clients.append(InProcess(HELLO, "/root/of/ours", "fake"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def welcomes(*events: Event) -> Run:
    """Says this, then answers every request with a Pong until the client closes."""

    def run(inbox: loop.Inbox, emit: loop.Emit) -> None:
        for event in (WELCOME, *events):
            emit(event, b"")
        while inbox.get() is not None:
            emit(Pong(), b"")
        emit(Closed(), b"")

    return run


def refuses(inbox: loop.Inbox, emit: loop.Emit) -> None:
    emit(Refused("UnsafeRoot", "mode 0777"), b"")


def crashes(inbox: loop.Inbox, emit: loop.Emit) -> None:
    raise MemoryError("no room")


def crashes_later(inbox: loop.Inbox, emit: loop.Emit) -> None:
    emit(WELCOME, b"")
    raise MemoryError("no room")


def test_the_welcome_is_returned_and_what_follows_is_delivered(start: Callable[..., InProcess]) -> None:
    delivered = Delivered()
    client = start(welcomes(Problem("x")))

    assert client.open(delivered) == WELCOME
    assert [delivered.next(), delivered.next()] == [Linked(), Problem("x")]
    client.send(HELLO)
    assert delivered.next() == Pong()
    client.close()
    assert (delivered.next(), delivered.empty()) == (Closed(), True)


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [(refuses, errors.UnsafeRoot, "^mode 0777$"), (crashes, errors.RunnerError, "no room")],
)
def test_a_service_that_does_not_start_is_raised_and_may_be_tried_again(
    start: Callable[..., InProcess], run: Run, error: type[Exception], says: str
) -> None:
    delivered = Delivered()
    client = start(run, welcomes())

    with pytest.raises(error, match=says):
        client.open(delivered)
    assert delivered.empty()
    assert client.open(delivered) == WELCOME
    assert (delivered.next(), delivered.empty()) == (Linked(), True)


def test_a_service_that_crashes_later_fails_the_executor(start: Callable[..., InProcess]) -> None:
    delivered = Delivered()
    start(crashes_later).open(delivered)

    assert delivered.next() == Linked()
    failed = delivered.next()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, MemoryError)
