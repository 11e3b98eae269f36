"""The client of a gateway comes back after a drop, gives up where it must, and never waits for a dead connection."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

import pytest

from remoteexec import errors
from remoteexec.engine.client import Failed, Heard
from remoteexec.engine.tracker import Linked, Unlinked
from remoteexec.ssh import gateway_client
from remoteexec.ssh.base import Buffer, Completed, Link, Stream
from remoteexec.ssh.gateway_client import GatewayClient
from remoteexec_server.wire import frames, header
from remoteexec_server.wire.messages import (
    BurstId,
    Cancel,
    Close,
    Closed,
    Entry,
    Event,
    Hello,
    Message,
    OutcomeReady,
    Ping,
    Pong,
    Problem,
    Refused,
    Submit,
    TaskKey,
    Welcome,
)
from remoteexec_server.wire.resources import Resources

HELLO = Hello(header.PROTOCOL, header.PYTHON, "0.1.0", "c", "s-1", "00" * 32)
WELCOME = Welcome("0.1.0", header.PYTHON, "login", "/r", "fake")
LOST = errors.ConnectionLost("the connection broke")
A = TaskKey("a")


def encoded(message: Message, data: bytes = b"") -> bytes:
    return b"".join(frames.encode(message, data))


class FakeGateway:
    """A link, and the stream of the gateway it starts; what it says is up to the test."""

    def __init__(self, first: bytes = encoded(WELCOME), noise: bytes = b"", sentinel: bool = True) -> None:
        self.first, self.noise, self.sentinel = first, noise, sentinel
        self.output: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        self.rest = b""
        self.input = io.BytesIO()
        self.exit_code: int | None = 1
        self.stderr = ""
        self.closed = threading.Event()
        self.argv: Sequence[str] = ()
        self.refuses_to_write = False

    # ---- Link ----

    @property
    def is_open(self) -> bool:
        return not self.closed.is_set()

    def connect(self) -> None:
        pass

    def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float = 60.0) -> Completed:
        raise NotImplementedError

    def open(self, argv: Sequence[str]) -> Stream:
        self.argv = argv
        mark = b"\n" + argv[-1].encode() + b"\n" if self.sentinel else b""
        self.output.put(self.noise + mark + self.first)
        return self

    def put_file(self, data: bytes, path: PurePosixPath, mode: int = 0o600) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed.set()
        self.output.put(LOST)

    # ---- Stream ----

    def read_some(self, n: int) -> bytes:
        while not self.rest:
            item = self.output.get()
            if isinstance(item, Exception):
                self.output.put(item)
                raise item
            if not item:
                self.output.put(b"")
                return b""
            self.rest = item
        taken, self.rest = self.rest[:n], self.rest[n:]
        return taken

    def write(self, data: Buffer) -> None:
        if self.refuses_to_write:
            raise LOST
        self.input.write(data)

    def close_input(self) -> None:
        raise NotImplementedError

    def stderr_tail(self) -> str:
        return self.stderr

    # ---- for tests ----

    def says(self, event: Event, data: bytes = b"") -> None:
        self.output.put(encoded(event, data))

    def heard(self) -> list[tuple[Message, bytes]]:
        return list(frames.decode(io.BytesIO(self.input.getvalue()).read))


class Ears:
    """What was delivered, in order."""

    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[tuple[Heard, bytes]] = queue.SimpleQueue()

    def __call__(self, item: tuple[Heard, bytes]) -> None:
        self._heard.put(item)

    def next(self) -> Heard:
        return self._heard.get(timeout=10.0)[0]

    def next_with_bytes(self) -> tuple[Heard, bytes]:
        return self._heard.get(timeout=10.0)

    def silent(self) -> bool:
        return self._heard.empty()


@pytest.fixture
def ears() -> Ears:
    return Ears()


Start = Callable[..., GatewayClient]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Makes clients that connect to these gateways, one after the other; an exception is a connection that fails."""
    monkeypatch.setattr(gateway_client, "_PAUSES_S", (0.0, 0.0))
    clients: list[GatewayClient] = []

    def make(*gateways: FakeGateway | Exception) -> GatewayClient:
        waiting = list(gateways)

        def connect() -> Link:
            gateway = waiting.pop(0)
            if isinstance(gateway, Exception):
                raise gateway
            return gateway

        def explain(code: int | None, stderr: str) -> errors.RunnerError | None:
            return errors.RunnerMissing("install it") if code == 67 else None

        clients.append(GatewayClient(connect, lambda sentinel: ["gateway", "--sentinel", sentinel], explain, HELLO))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_after_the_welcome_events_are_delivered_with_their_bytes(start: Start, ears: Ears) -> None:
    gateway = FakeGateway(noise=b"Welcome to the cluster\n")
    client = start(gateway)

    assert client.open(ears) == WELCOME
    gateway.says(Problem("no space"))
    gateway.says(Pong())
    gateway.says(OutcomeReady(A, 3), b"abc")

    assert [ears.next_with_bytes() for _ in range(3)] == [
        (Linked(), b""),
        (Problem("no space"), b""),
        (OutcomeReady(A, 3), b"abc"),
    ]
    assert gateway.heard() == [(HELLO, b"")]


def test_requests_are_sent_with_their_bytes(start: Start, ears: Ears) -> None:
    gateway = FakeGateway()
    client = start(gateway)
    submit = Submit(BurstId("b"), (Entry(A),), (Resources(),), 5)
    client.send(Cancel((A,)))  # before there is a connection: dropped
    client.open(ears)
    client.send(submit, b"hello")
    client.send(Close(True))

    assert gateway.heard() == [(HELLO, b""), (submit, b"hello"), (Close(True), b"")]


@pytest.mark.parametrize(
    "breaks",
    [LOST, OSError("reset"), b"", b"no frame at all", encoded(Problem("x"))[:-1]],
    ids=["lost", "reset", "ended", "garbage", "cut"],
)
def test_a_broken_connection_is_made_again(start: Start, ears: Ears, breaks: Exception | bytes) -> None:
    first, second = FakeGateway(), FakeGateway()
    client = start(first, errors.ConnectError("no route"), second)
    client.open(ears)
    assert ears.next() == Linked()
    first.output.put(breaks)
    if isinstance(breaks, bytes) and breaks:
        first.output.put(b"")

    lost, unreachable, linked = ears.next(), ears.next(), ears.next()

    assert isinstance(lost, Unlinked)
    assert lost.reason.startswith("connection to the cluster lost: ")
    assert unreachable == Unlinked("the cluster cannot be reached: no route; trying again")
    assert linked == Linked()
    assert first.closed.is_set()
    assert first.argv[-1] != second.argv[-1]  # each gateway has its own sentinel
    client.send(Cancel((A,)))
    assert second.heard() == [(HELLO, b""), (Cancel((A,)), b"")]


def test_the_last_words_of_a_gateway_that_ended_are_told(start: Start, ears: Ears) -> None:
    first = FakeGateway()
    first.stderr = "Traceback ...\nMemoryError\n"
    start(first, FakeGateway()).open(ears)
    first.output.put(b"")
    ears.next()

    assert ears.next() == Unlinked(
        "connection to the cluster lost: the gateway ended: Traceback ...\nMemoryError; trying again"
    )


def test_a_request_that_cannot_be_written_breaks_the_connection(start: Start, ears: Ears) -> None:
    first, second = FakeGateway(), FakeGateway()
    client = start(first, second)
    client.open(ears)
    first.refuses_to_write = True
    client.send(Cancel((A,)))

    assert [type(ears.next()) for _ in range(3)] == [Linked, Unlinked, Linked]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: errors.AuthenticationFailed("refused"), errors.AuthenticationFailed),
        (lambda: errors.HostKeyChanged("changed"), errors.HostKeyChanged),
        (lambda: FakeGateway(encoded(Refused("UnsafeRoot", "mode 0777"))), errors.UnsafeRoot),
        (lambda: FakeGateway(encoded(Refused("no such class", "why"))), errors.RunnerError),
        (lambda: FakeGateway(encoded(Refused("task_lost", "why"))), errors.RunnerError),
        (lambda: FakeGateway(encoded(Welcome("0.1.0", "3.7", "login", "/r", "x"))), errors.PythonMismatch),
    ],
)
def test_what_no_second_try_can_mend_is_raised_at_first_and_ends_the_client_later(
    start: Start, ears: Ears, make: Callable[[], FakeGateway | Exception], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        start(make()).open(ears)
    assert (type(caught.value), ears.silent()) == (kind, True)

    first = FakeGateway()
    start(first, make()).open(ears)
    first.output.put(LOST)

    assert [type(ears.next()) for _ in range(2)] == [Linked, Unlinked]
    failed = ears.next()
    assert isinstance(failed, Failed)
    assert type(failed.error) is kind


class Dying(FakeGateway):
    """Ends after what it says first."""

    def __init__(self, exit_code: int, stderr: str, first: bytes = b"", sentinel: bool = True) -> None:
        super().__init__(first, b"bash: python: not found\n" if not sentinel else b"", sentinel)
        self.exit_code, self.stderr = exit_code, stderr

    def open(self, argv: Sequence[str]) -> Stream:
        super().open(argv)
        self.output.put(b"")
        return self


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: Dying(67, "no /r/server", sentinel=False), errors.RunnerMissing, "^install it$"),
        (
            lambda: Dying(1, "", sentinel=False),
            errors.RunnerMissing,
            r"did not start \(exit code 1\); it said: bash: python: not found",
        ),
        (lambda: Dying(-9, "Killed", sentinel=False), errors.RunnerMissing, r"\(exit code -9\); it said: Killed"),
        (
            lambda: Dying(1, "ImportError: x"),
            errors.RunnerError,
            "ended before it answered; its last words: ImportError",
        ),
        (lambda: Dying(1, "", b"garbage, garbage"), errors.RunnerError, "no gateway of ours: not a frame"),
        (lambda: Dying(1, "", encoded(WELCOME)[:-3]), errors.RunnerError, "no gateway of ours: the stream ended"),
        (lambda: Dying(1, "", encoded(Ping())), errors.RunnerError, "ended before it answered"),
    ],
)
def test_a_gateway_that_does_not_start_is_explained(
    start: Start, ears: Ears, make: Callable[[], FakeGateway], kind: type[Exception], says: str
) -> None:
    gateway = make()
    with pytest.raises(kind, match=says) as caught:
        start(gateway).open(ears)

    assert (type(caught.value), gateway.closed.is_set(), ears.silent()) == (kind, True, True)


def test_a_gateway_that_was_killed_while_it_started_again_is_tried_once_more(start: Start, ears: Ears) -> None:
    first, last = FakeGateway(), FakeGateway()
    start(first, Dying(-9, "Killed", sentinel=False), Dying(-9, ""), last).open(ears)
    first.output.put(LOST)

    assert [type(ears.next()) for _ in range(5)] == [Linked, Unlinked, Unlinked, Unlinked, Linked]


def test_a_client_that_could_not_open_can_be_opened_again(start: Start, ears: Ears) -> None:
    gateway = FakeGateway()
    client = start(errors.ConnectError("no route"), gateway)

    with pytest.raises(errors.ConnectError):
        client.open(ears)
    assert client.open(ears) == WELCOME
    gateway.says(Problem("x"))
    assert [ears.next(), ears.next()] == [Linked(), Problem("x")]


def test_after_closed_nobody_connects_again(start: Start, ears: Ears) -> None:
    gateway = FakeGateway()
    client = start(gateway, AssertionError("connected again"))
    client.open(ears)
    gateway.says(Closed())
    gateway.output.put(b"")

    assert [ears.next(), ears.next()] == [Linked(), Closed()]
    client.close()
    assert (ears.silent(), gateway.closed.is_set()) == (True, True)


def test_closing_while_the_connection_is_being_made_again_waits_for_nobody(
    start: Start, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_client, "_LEAVE_S", 0.0)
    first, late = FakeGateway(), FakeGateway()
    connecting, go = threading.Event(), threading.Event()
    links = [first, late]

    def connect() -> Link:
        if len(links) == 1:
            connecting.set()
            go.wait()
        return links.pop(0)

    client = GatewayClient(connect, lambda sentinel: [sentinel], lambda code, stderr: None, HELLO)
    client.open(ears)
    first.output.put(LOST)
    assert connecting.wait(10.0)
    client.close()
    go.set()

    assert late.closed.wait(10.0)
    assert [type(ears.next()) for _ in range(2)] == [Linked, Unlinked]


def test_a_silent_connection_is_given_up(start: Start, ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_client, "_LOOK_S", 0.0)
    monkeypatch.setattr(gateway_client, "_SILENT_S", 0.0)
    first = FakeGateway()
    start(first, errors.AuthenticationFailed("once is enough")).open(ears)

    assert [type(ears.next()) for _ in range(3)] == [Linked, Unlinked, Failed]
    assert first.closed.is_set()


def test_a_quiet_gateway_is_asked_for_a_sign_of_life(start: Start, ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_client, "_PING_S", 0.0)
    asked = threading.Event()

    class Quiet(FakeGateway):
        def write(self, data: Buffer) -> None:
            super().write(data)
            if bytes(data).endswith(b'{"is":"Ping"}'):
                asked.set()

    start(Quiet()).open(ears)

    assert asked.wait(10.0)
