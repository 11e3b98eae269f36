"""Batches between a pool and its workers, over socket pairs of this process."""

from __future__ import annotations

import mmap
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from remoteexec_server.wire import pooled

LARGE = (1 << 20) + 5


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def joined(pieces: list[bytes | memoryview]) -> bytes:
    return b"".join(pieces)


class Pieces:
    """A socket that gives what was sent in pieces of chosen sizes."""

    def __init__(self, data: bytes, sizes: Iterator[int]) -> None:
        self._data, self._sizes = memoryview(data), sizes

    def recv(self, most: int) -> bytes:
        size = min(most, next(self._sizes))
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def recv_into(self, view: memoryview) -> int:
        piece = self.recv(len(view))
        view[: len(piece)] = piece
        return len(piece)


def everything(data: bytes, sizes: Iterator[int]) -> list[tuple[Any, list[bytes]]]:
    stream = pooled.Stream(Pieces(data, sizes))  # type: ignore[arg-type]
    found: list[tuple[Any, list[bytes]]] = []
    try:
        while True:
            found += [(said, [bytes(buffer) for buffer in buffers]) for said, buffers in stream.read()]
    except EOFError:
        return found


BATCHES: list[tuple[Any, list[bytes]]] = [
    ([], []),
    (("calls", [1, b"x", None, 2.5, True]), []),
    ("two buffers", [b"a" * 10, b""]),
    ("a large one between", [b"s" * 7, b"L" * LARGE, b"t" * 9]),
    ("after it", []),
    ("two large ones", [b"1" * LARGE, b"2" * LARGE]),
]


@pytest.mark.parametrize("seed", range(6))
def test_batches_arrive_whole_and_in_order_however_they_are_cut(seed: int) -> None:
    dice = random.Random(seed)
    data = b"".join(joined(pooled.frame(said, [memoryview(b) for b in buffers])) for said, buffers in BATCHES)
    sizes = iter(lambda: dice.choice([1, 2, 7, 8, 9, 100, 70_000, 1 << 21]), 0)
    assert everything(data, sizes) == BATCHES


def test_nothing_is_lost_when_there_is_no_more_for_now(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.setblocking(False)
    stream = pooled.Stream(theirs)
    data = joined(pooled.frame("said", [memoryview(b"b" * 20)]))
    for position in range(len(data) - 1):
        ours.send(data[position : position + 1])
        assert stream.read() == []
        with pytest.raises(BlockingIOError):
            stream.read()
    ours.send(data[-1:])
    assert stream.read() == [("said", [bytearray(b"b" * 20)])]


def test_next_gives_one_batch_at_a_time(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    for number in range(3):
        pooled.send(ours, number)
    stream = pooled.Stream(theirs)
    assert [stream.next() for _ in range(3)] == [(0, []), (1, []), (2, [])]
    ours.close()
    with pytest.raises(EOFError):
        stream.next()


def test_the_end_within_a_batch_is_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    ours.send(joined(pooled.frame("said", [memoryview(b"b" * 20)]))[:-1])
    ours.close()
    stream = pooled.Stream(theirs)
    with pytest.raises(EOFError):
        stream.next()


def test_large_buffers_are_sent_from_where_they_are_and_small_ones_joined() -> None:
    large = memoryview(bytearray(LARGE))
    pieces = pooled.frame("said", [memoryview(b"a"), large, memoryview(b"b"), memoryview(b"c")])
    assert [len(piece) for piece in pieces[1:]] == [LARGE, 2]
    assert isinstance(pieces[1], memoryview)
    assert pieces[1].obj is large.obj


def test_a_large_pickle_travels_as_a_buffer() -> None:
    small, large, buffers = b"p" * 10, b"P" * LARGE, [memoryview(b"x")]
    assert pooled.split(small, buffers) == (small, buffers)
    rest, split = pooled.split(large, buffers)
    assert (rest, [bytes(view) for view in split]) == (None, [large, b"x"])
    assert pooled.joined(small, buffers) == (small, buffers)
    assert pooled.joined(None, split) == (large, buffers)


def test_room_can_be_written_to_whatever_its_size() -> None:
    for size in (0, 10, LARGE):
        room = pooled.room(size)
        view = memoryview(room)
        view[:] = b"w" * size
        assert (len(room), bytes(room[-1:])) == (size, b"w"[:size])
    assert isinstance(pooled.room(LARGE), mmap.mmap)
