"""Shared objects of executors with other machines: what these are told of, and what a call's pickle says there."""

from __future__ import annotations

import gc
import os
import sys
from concurrent.futures import Future
from typing import Any

import pytest

from remoteexec.engine import sharing as module
from remoteexec.engine.sharing import Sharing
from remoteexec_server import shared_objects
from remoteexec_server.wire import payload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="share needs Linux")


class Told:
    """A carrier that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def share(self, number: int, file: int) -> None:
        os.fstat(file)  # it is open
        self.said.append(number)

    def unshare(self, number: int) -> None:
        self.said.append(f"not {number}")


@pytest.fixture
def shared_by() -> tuple[Sharing, Told]:
    sharing, told = Sharing("a-session"), Told()
    sharing.carry_by(told)
    return sharing, told


def test_other_machines_are_told_of_each_object_once_and_of_its_end(shared_by: tuple[Sharing, Told]) -> None:
    sharing, told = shared_by
    first, again, other = sharing.share([1]), sharing.share([1]), sharing.share([2])
    first.release()
    assert told.said == [0, 1]
    again.release()
    del other
    gc.collect()
    assert told.said == [0, 1, "not 0", "not 1"]


def test_what_was_shared_and_released_before_is_another_object_when_it_is_shared_again(
    shared_by: tuple[Sharing, Told],
) -> None:
    sharing, told = shared_by
    for _ in range(2):
        sharing.share([1]).release()
    assert told.said == [0, "not 0", 1, "not 1"]


def test_those_that_come_later_are_told_of_what_there_is() -> None:
    sharing, told = Sharing("a-session"), Told()
    handles = [sharing.share([number]) for number in range(3)]
    handles[1].release()
    sharing.carry_by(told)
    assert told.said == [0, 2]
    sharing.close()
    assert sorted(told.said[2:]) == ["not 0", "not 2"]


def test_calls_that_have_not_ended_keep_it(shared_by: tuple[Sharing, Told]) -> None:
    sharing, told = shared_by
    handle, future = sharing.share([1]), Future[None]()
    with sharing.lend() as lent:
        payload.dumps_here((handle, handle))
    lent.until_done(future)
    sharing.close()
    assert told.said == [0]
    future.set_result(None)
    assert told.said == [0, "not 0"]


def test_its_pickle_says_where_to_ask_and_the_caller_has_the_object_himself(
    shared_by: tuple[Sharing, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing, _ = shared_by
    handle = sharing.share([1])
    with sharing.lend():
        data = payload.dumps_here(handle).data
    asked: list[Any] = []
    monkeypatch.setattr(shared_objects, "receive_copy", lambda *place: asked.append(place))
    payload.loads(data)
    ((session, number, size, digest),) = asked
    assert (session, number, size % 4096, len(digest)) == ("a-session", 0, 0, 64)
    assert handle.value == [1]


def test_two_threads_that_share_equal_objects_at_once_have_one(
    shared_by: tuple[Sharing, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing, told = shared_by
    write, faster = module._write, []

    def slow(*given: Any) -> int:
        monkeypatch.setattr(module, "_write", write)
        faster.append(sharing.share([1]))
        return write(*given)

    monkeypatch.setattr(module, "_write", slow)
    before = len(os.listdir("/proc/self/fd"))
    handle = sharing.share([1])
    assert (told.said, len(os.listdir("/proc/self/fd"))) == ([0], before + 1)
    handle.release()
    assert faster.pop().value == [1]


def test_what_is_written_while_the_executor_shuts_down_is_let_go(
    shared_by: tuple[Sharing, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing, told = shared_by
    write = module._write

    def slow(*given: Any) -> int:
        sharing.close()
        return write(*given)

    monkeypatch.setattr(module, "_write", slow)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError, match="after shutdown"):
        sharing.share([1])
    assert (told.said, len(os.listdir("/proc/self/fd"))) == ([], before)
