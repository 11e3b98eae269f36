"""Messages and the bytes behind them survive any way in which a stream may deliver them, or are refused."""

from __future__ import annotations

import io
import random
import struct

import pytest

from remoteexec_server.wire import frames
from remoteexec_server.wire.frames import SLICE, FrameError, Reader
from remoteexec_server.wire.messages import (
    BurstId,
    Entry,
    Message,
    MessageError,
    OutcomeReady,
    Ping,
    Pong,
    Submit,
    TaskKey,
)
from remoteexec_server.wire.resources import Resources

SENTINEL = b"0123456789abcdef"


def submit(size: int) -> Submit:
    return Submit(BurstId("b"), (Entry(TaskKey("t")),), (Resources(),), size)


def encoded(*messages: tuple[Message, bytes]) -> bytes:
    return b"".join(frame for message, data in messages for frame in frames.encode(message, data))


def reader(data: bytes, most: int = 1 << 20) -> Reader:
    stream = io.BytesIO(data)
    return lambda n: stream.read(min(n, most))


def decoded(data: bytes, most: int = 1 << 20, first: bytes = b"") -> list[tuple[Message, bytes]]:
    return list(frames.decode(reader(data, most), first))


STORY: list[tuple[Message, bytes]] = [
    (Ping(), b""),
    (submit(5), b"hello"),
    (submit(0), b""),
    (OutcomeReady(TaskKey("t"), 3), b"\0\1\2"),
    (Pong(), b""),
]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 9, 1 << 20])
def test_messages_arrive_whole_however_the_stream_is_cut(most: int) -> None:
    assert decoded(encoded(*STORY), most) == STORY


def test_bytes_that_were_read_already_come_first() -> None:
    data = encoded(*STORY)

    assert [decoded(data[cut:], first=data[:cut]) for cut in range(len(data) + 1)] == [STORY] * (len(data) + 1)


@pytest.mark.parametrize("size", [SLICE - 1, SLICE, SLICE + 1, 3 * SLICE])
def test_many_bytes_travel_in_slices(size: int) -> None:
    body = random.Random(size).randbytes(size)
    pieces = list(frames.encode(submit(size), memoryview(body)))

    assert (len(pieces), max(map(len, pieces))) == (1 + -(-size // SLICE), min(size, SLICE) + 8)
    assert decoded(b"".join(pieces)) == [(submit(size), body)]


def test_a_size_that_is_not_that_of_the_bytes_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(MessageError, match="Submit announces 4 bytes, 5 were given"):
        encoded((submit(4), b"hello"))


@pytest.mark.parametrize("cut", range(1, len(encoded((submit(5), b"hello")))))
def test_a_stream_that_breaks_off_inside_a_message_is_an_error(cut: int) -> None:
    with pytest.raises(FrameError):
        decoded(encoded((submit(5), b"hello"))[:cut])


def test_a_stream_that_ends_between_messages_has_ended() -> None:
    assert decoded(b"") == []


def frame(text: bytes, tail: bytes = b"") -> bytes:
    return struct.pack(">II", 4 + len(text) + len(tail), len(text)) + text + tail


PING = b'{"is":"Ping"}'


@pytest.mark.parametrize(
    "data",
    [
        b"Last login: Mon Nov 23 from somewhere\n",
        struct.pack(">II", 1 << 30, 4),
        struct.pack(">II", 3, 0),
        struct.pack(">II", 10, 7) + b"x" * 10,
        frame(b"", b"a slice before any message"),
        frame(PING, b"tail"),
        frame(b'{"is":"OutcomeReady","key":"t","size":-1}'),
        frame(b'{"is":"OutcomeReady","key":"t","size":3}') + frame(PING),
        frame(b'{"is":"OutcomeReady","key":"t","size":3}') + frame(b"", b"four"),
        frame(b'{"is":"OutcomeReady","key":"t","size":3}') + frame(b"", b""),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        decoded(data)


@pytest.mark.parametrize("text", [b"not JSON", b'{"is":"Nothing"}', b"[1]", b"\xff\xfe", b'{"is":"Ping","x":1}'])
def test_a_frame_without_a_message_is_refused(text: bytes) -> None:
    with pytest.raises(MessageError):
        decoded(frame(text))


def test_random_bytes_end_in_an_error_of_ours() -> None:
    chance = random.Random(1)
    for _ in range(500):
        data = bytearray(encoded(*STORY))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decoded(bytes(data))
        except (FrameError, MessageError):
            pass


@pytest.mark.parametrize("most", [1, 2, 17, 65536])
@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"Welcome to the cluster\r\nQuota: 93 %\n",
        b"no newline at the end",
        b"+ exec gateway --sentinel " + SENTINEL + b"\n",
        SENTINEL + b"\n",
        b"\xff\x00\n",
    ],
)
def test_what_a_login_shell_prints_before_the_sentinel_is_passed_over(noise: bytes, most: int) -> None:
    read = reader(noise + b"\n" + SENTINEL + b"\n" + encoded(*STORY), most)

    first = frames.skip_to(SENTINEL, read)

    assert list(frames.decode(read, first)) == STORY


def test_a_shell_that_never_reaches_the_gateway_is_quoted() -> None:
    with pytest.raises(FrameError, match=r"^bash: python: command not found$"):
        frames.skip_to(SENTINEL, reader(b"bash: python: command not found\n"))


def test_a_shell_that_never_stops_printing_is_given_up() -> None:
    with pytest.raises(FrameError, match=r"^(yes\n)+yes$"):
        frames.skip_to(SENTINEL, lambda n: b"yes\n" * 100, most=10_000)
