"""Which call a worker runs next: the one whose token it has read."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from remoteexec_server.wire import pooled
from remoteexec_server.worker import Worker


class Pool(NamedTuple):
    """A pool's ends, and the worker at the others."""

    sock: socket.socket
    token_in: int
    token_out: int
    worker: Worker

    def give(self, *numbers: int) -> None:
        os.write(self.token_in, pooled.TOKENS[len(numbers)].pack(*numbers))

    def take_back(self) -> int:
        return int(pooled.TOKEN.unpack(os.read(self.token_out, pooled.TOKEN.size))[0])

    def send(self, *numbers: int, functions: tuple[Any, ...] = ()) -> None:
        pooled.send(self.sock, (None, functions, [(number, 7, b"arguments", 0, None) for number in numbers]))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr("remoteexec_server.worker._number", None)  # a worker sets it; this puts it back
    ours, theirs = socket.socketpair()
    token_out, token_in = os.pipe2(os.O_NONBLOCK)
    with ours, theirs:
        yield Pool(ours, token_in, token_out, Worker(theirs, token_out, 0))
    os.close(token_in)
    os.close(token_out)


def next_number(worker: Worker) -> int | None:
    task = worker._next_task()
    return None if task is None else task[0][0]


def test_calls_run_in_the_order_of_their_tokens(pool: Pool) -> None:
    pool.give(1, 2)
    pool.send(1, 2)
    pool.give(3)
    pool.send(3)

    assert [next_number(pool.worker) for _ in range(3)] == [1, 2, 3]


def test_calls_that_were_taken_back_are_left_out_and_their_functions_are_kept(pool: Pool) -> None:
    pool.give(1, 2)
    assert (pool.take_back(), pool.take_back()) == (1, 2)
    pool.send(1, 2, functions=((7, b"function", 0),))
    pool.give(3)
    pool.send(3)

    assert next_number(pool.worker) == 3
    assert pool.worker._pickled == {7: (b"function", [])}


def test_a_call_that_was_taken_back_and_given_again_runs_once(pool: Pool) -> None:
    pool.give(1)
    pool.send(1)
    pool.worker._hear()
    assert pool.take_back() == 1
    pool.give(1, 2)
    pool.send(1, 2)

    assert [next_number(pool.worker) for _ in range(2)] == [1, 2]


def test_a_call_that_was_taken_back_runs_if_its_token_comes_again_without_it(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Pool.withdraw does it, at the moment at which the worker finds no token."""
    pool.give(1)
    pool.send(1)
    assert pool.take_back() == 1
    monkeypatch.setattr(pool.worker, "_wait", lambda tokens: pool.give(1))

    assert next_number(pool.worker) == 1


def test_a_large_call_is_the_workers_as_soon_as_it_has_read_a_chunk_of_it(pool: Pool) -> None:
    pool.give(1)
    frame = pooled.frame((None, (), [(1, 7, bytes(3 * pooled.CHUNK), 0, None)]))[0]
    pool.sock.sendall(frame[: pooled.CHUNK + 1])
    pool.sock.close()

    with pytest.raises(EOFError):  # before it has all
        pool.worker._next_task()
    with pytest.raises(BlockingIOError):
        pool.take_back()


def test_a_worker_whose_pool_is_gone_has_no_next_call(pool: Pool) -> None:
    pool.sock.close()

    with pytest.raises(EOFError):
        pool.worker._next_task()
