"""Shared objects on their way to nodes: what is sent to whom, and who is given what."""

from __future__ import annotations

import os
import select
import socket
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from remoteexec_server import shared_objects
from remoteexec_server.shared_copies import PIECE_BYTES, Copies, Originals
from remoteexec_server.wire import lanes, names, payload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="share needs Linux")
SIZE = 2 * PIECE_BYTES + 10
PLENTY = 1 << 40


def file_of(data: bytes) -> int:
    handle = os.memfd_create("test")
    os.write(handle, data)
    return handle


def original(value: object = None) -> tuple[int, str]:
    """A shared file and its digest."""
    data = payload.dumps(value, by_value=False).data
    digest = shared_objects.digest_of([data])
    return shared_objects.write([data], digest, in_memory=True), digest


def sent(originals: Originals, node: int) -> list[tuple[bytes, int, int]]:
    """Kinds, objects and lengths, until nothing is due."""
    found = []
    while node in originals.due:
        kind, number, data = originals.next(node)
        found.append((kind, number, len(data) - lanes.COUNT.size if kind == lanes.PIECE else -1))
    return found


# ---- the relay's side ----


def test_objects_go_in_pieces_in_turn_to_those_who_want_them() -> None:
    originals = Originals()
    originals.add(0, file_of(b"a" * SIZE))
    originals.add(1, file_of(b"b"))
    assert originals.due == {}
    assert all([originals.want(7, 0), originals.want(7, 1), originals.want(8, 1)])

    pieces = [(lanes.PIECE, 0, PIECE_BYTES), (lanes.PIECE, 1, 1), (lanes.PIECE, 0, PIECE_BYTES), (lanes.PIECE, 0, 10)]
    assert (sent(originals, 7), sent(originals, 8)) == (pieces, [(lanes.PIECE, 1, 1)])


def test_what_is_wanted_before_the_callers_word_of_it_comes_when_that_does() -> None:
    originals = Originals()
    assert originals.want(1, 0)
    assert originals.want(2, 0)
    originals.lose(2)
    assert originals.due == {}
    originals.add(0, file_of(b"x"))
    assert list(originals.due) == [1]


def test_what_is_released_is_sent_no_more_and_those_who_have_some_are_told() -> None:
    originals = Originals()
    originals.add(0, file_of(b"a" * SIZE))
    originals.add(1, file_of(b"b"))
    for node in (1, 2, 3):
        originals.want(node, 0)
    originals.want(1, 1)
    originals.next(1)
    sent(originals, 2)
    originals.lose(3)
    assert originals.remove(0) == {1, 2}
    assert (originals.remove(0), originals.want(1, 0)) == (set(), False)
    assert sent(originals, 1) == [(lanes.PIECE, 1, 1)]


def test_who_has_no_room_gets_no_more_until_he_wants_it_again() -> None:
    originals = Originals()
    originals.add(0, file_of(b"a" * SIZE))
    originals.want(1, 0)
    originals.next(1)
    originals.refused(1, 0)
    originals.refused(1, 5)
    assert originals.due == {}
    assert originals.want(1, 0)
    assert sum(length for _, _, length in sent(originals, 1)) == SIZE


def test_a_file_that_cannot_be_read_is_said_to_be_gone() -> None:
    originals = Originals()
    originals.add(0, -1)
    originals.want(1, 0)
    kind, number, reason = originals.next(1)
    assert (kind, number, originals.due) == (lanes.GONE, 0, {})
    assert b"cannot be read" in reason


# ---- the agent's side ----


class Node:
    """One agent's copies, and processes that ask for them."""

    def __init__(self, free: int = PLENTY) -> None:
        self.session = uuid.uuid4().hex[:16]
        self.free = free
        self.copies = Copies(self.session, "n1", lambda: self.free)
        self._askers: list[socket.socket] = []

    def ask(self, number: int, size: int) -> socket.socket:
        asker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asker.connect(shared_objects.name_of_agent(self.session, "n1"))
        asker.setblocking(False)
        asker.send(shared_objects.ASK.pack(number, size))
        self._askers.append(asker)
        return asker

    def serve(self) -> list[int]:
        return self.copies.serve() + self.copies.serve()  # accepted, then heard

    def close(self) -> None:
        self.copies.close()
        for asker in self._askers:
            asker.close()


@pytest.fixture
def node() -> Iterator[Node]:
    found = Node()
    yield found
    found.close()


def piece(at: int, data: bytes) -> bytes:
    return lanes.COUNT.pack(at) + data


def given(asker: socket.socket) -> tuple[bytes, int]:
    """What the file that was given holds, and its inode."""
    _, (handle,), _, _ = socket.recv_fds(asker, 1000, 1)
    try:
        return os.pread(handle, 1000, 0), os.fstat(handle).st_ino
    finally:
        os.close(handle)


def test_all_who_ask_are_given_one_file_once_it_is_whole(node: Node) -> None:
    early = [node.ask(5, 6) for _ in range(2)]
    assert node.serve() + node.serve() == [5]
    assert node.copies.take(5, piece(0, b"abc"))
    with pytest.raises(BlockingIOError):
        early[0].recv(1)
    assert node.copies.take(5, piece(3, b"def"))
    late = node.ask(5, 6)
    assert node.serve() == []
    seen = [given(asker) for asker in (*early, late)]
    assert [data for data, _ in seen] == [b"abcdef"] * 3
    assert len({inode for _, inode in seen}) == 1


def test_nobody_can_write_to_a_copy(node: Node) -> None:
    asker = node.ask(0, 3)
    node.serve()
    node.copies.take(0, piece(0, b"abc"))
    _, (handle,), _, _ = socket.recv_fds(asker, 1000, 1)
    with pytest.raises(OSError):
        os.write(handle, b"x")
    with pytest.raises(OSError):
        os.open(f"/proc/self/fd/{handle}", os.O_WRONLY | os.O_TRUNC)
    os.close(handle)


def test_who_waits_for_what_is_released_is_told(node: Node) -> None:
    asker = node.ask(0, 6)
    node.serve()
    node.copies.take(0, piece(0, b"abc"))
    node.copies.drop(0, "it was released")
    assert asker.recv(1000) == b"it was released"
    assert node.copies.take(0, piece(3, b"def"))
    node.copies.drop(0, "nobody is there to hear this")


def test_without_room_the_reason_is_said_and_it_may_be_tried_again(node: Node) -> None:
    node.free = 1000
    first, second = node.ask(0, 800), node.ask(1, 200)
    assert node.serve() + node.serve() == [0]
    assert b"node n1 has no room for a copy of a shared object of 200 bytes: 200 bytes" in second.recv(1000)
    node.free = PLENTY
    node.ask(1, 200)
    assert node.serve() == [1]
    with pytest.raises(BlockingIOError):
        first.recv(1)


def test_pieces_from_before_there_was_no_room_are_not_taken_for_new_ones(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError("no space left")

    asker = node.ask(0, 6)
    node.serve()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert not node.copies.take(0, piece(0, b"ab"))
    assert b"no space left" in asker.recv(1000)
    again = node.ask(0, 6)
    assert node.serve() == [0]
    assert node.copies.take(0, piece(2, b"cd"))
    for at, data in ((0, b"ab"), (2, b"cd"), (4, b"ef")):
        assert node.copies.take(0, piece(at, data))
    assert given(again)[0] == b"abcdef"


def test_one_that_has_ended_is_forgotten_and_the_others_get_it(node: Node) -> None:
    gone, stays = node.ask(0, 3), node.ask(0, 3)
    node.serve()
    node.serve()
    gone.close()
    node.ask(0, 3).close()
    assert node.serve() + node.serve() == []
    node.copies.take(0, piece(0, b"abc"))
    assert given(stays)[0] == b"abc"


def test_another_users_process_is_not_heard(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    asker = node.ask(0, 3)
    assert node.serve() == []
    with pytest.raises(ConnectionResetError):  # it was not even read
        asker.recv(1)
    with pytest.raises(shared_objects.NotShared, match="no agent"):
        shared_objects.receive_copy(node.session, 0, 3, "")


# ---- the worker's side ----


@pytest.mark.parametrize("environment", ["n1", "n2", None], ids=["its node", "another's", "none"])
def test_a_process_finds_the_agent_of_its_machine(
    node: Node, monkeypatch: pytest.MonkeyPatch, environment: str | None
) -> None:
    monkeypatch.delenv(names.NODE, raising=False)
    if environment is not None:
        monkeypatch.setenv(names.NODE, environment)
    file, digest = original({"a": [1, 2]})
    size = os.fstat(file).st_size
    node.ask(0, size)
    node.serve()
    node.copies.take(0, piece(0, os.pread(file, size, 0)))
    os.close(file)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(shared_objects.receive_copy, node.session, 0, size, digest)
        for _ in ("connects", "asks"):
            select.select([node.copies], [], [], 10)
            node.copies.serve()
        assert found.result(10) == {"a": [1, 2]}
