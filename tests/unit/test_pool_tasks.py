"""One task on its way: what is sent, what is copied, and how its future can end."""

from __future__ import annotations

import concurrent.futures

import pytest

from remoteexec.futures import Ran
from remoteexec.pool.tasks import Function, PoolFuture, PoolTask, visible, with_environment
from remoteexec_server.wire.names import TaskKey

CUDA = {"CUDA_VISIBLE_DEVICES": {name: name for name in "12345"}}


class Notes:
    """An owner that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def ended(self, task: object, end: object) -> None:
        self.told.append("ended")

    def asked(self, *_: object) -> None:
        self.told.append("asked")

    def runs(self, key: TaskKey) -> Ran:
        raise AssertionError(key)

    def interrupted(self) -> None:
        self.told.append("interrupted")

    def forget(self, key: TaskKey) -> None:
        self.told.append(f"forget {key}")

    def cancel_running(self, key: TaskKey) -> bool:
        self.told.append(f"cancel running {key}")
        return True


def task(owner: Notes | None = None) -> PoolTask:
    owner = owner or Notes()
    found: PoolFuture[int] = PoolFuture(TaskKey("t7"), owner)
    found.number = 7
    return found


def test_a_call_says_how_many_buffers_it_has_and_how_large_it_is() -> None:
    found = task()
    array, value = memoryview(bytes(10)), memoryview(bytes(20))
    found.fill(Function(3, b"f", ()), b"args", [array], [(b"in", [value]), (b"put", [])])
    assert found.on_wire() == ((7, 3, b"args", 2, ((b"in", 1), (b"put", 0))), [array, value])
    assert found.size == 4 + 2 + 3 + 30


def test_what_the_caller_may_change_is_copied_once() -> None:
    found, array = task(), bytearray(b"before")
    found.fill(Function(3, b"f", ()), b"args", [memoryview(array), memoryview(b"fixed")])
    found.keep_buffers()
    kept = list(found.buffers)
    array[:] = b"after!"
    found.keep_buffers()
    assert ([bytes(view) for view in found.buffers], list(found.buffers) == kept) == ([b"before", b"fixed"], True)


def test_a_waiting_future_is_cancelled_and_its_owner_told_once() -> None:
    owner = Notes()
    found = task(owner)
    assert (found.future.cancel(), found.future.cancel(), owner.told) == (True, True, ["forget t7"])
    assert found.begin() is False


def test_a_running_future_is_cancelled_and_its_task_ended() -> None:
    owner = Notes()
    found = task(owner)
    told: list[bool] = []
    found.future.add_done_callback(lambda future: told.append(future.cancelled()))
    assert (found.begin(), found.future.running(), found.future.cancel_waiting()) == (True, True, False)
    assert (found.future.cancel(), found.future.cancelled(), told, owner.told) == (
        True, True, [True], ["cancel running t7"]
    )  # fmt: skip
    with pytest.raises(concurrent.futures.InvalidStateError):
        found.future.set_result(1)


def test_a_future_that_is_done_cannot_be_cancelled() -> None:
    owner = Notes()
    found = task(owner)
    found.begin()
    found.future.set_result(1)
    assert (found.future.cancel(), found.future.result(), owner.told) == (False, 1, [])


def test_who_waits_for_a_running_future_is_told_that_it_was_cancelled() -> None:
    found = task()
    found.begin()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(concurrent.futures.wait, [found.future], 20)
        while not found.future._waiters:
            pass
        found.future.cancel()
        assert waiting.result(timeout=20) == ({found.future}, set())


def test_a_task_that_was_given_up_holds_nothing_and_does_not_begin() -> None:
    found = task()
    found.fill(Function(3, b"f", ()), b"args", [memoryview(b"array")])
    found.begin()
    found.give_up()
    assert (found.begin(), found.on_wire()) == (False, ((7, -1, b"", 0, None), ()))


def test_gpus_are_shown_to_who_asked_for_some() -> None:
    setup = with_environment({"environment": {"A": "1"}}, visible(["3", "5"], CUDA))
    assert setup == {"environment": {"A": "1", "CUDA_VISIBLE_DEVICES": "3,5"}}
    assert with_environment({"cwd": "/x"}, visible([], CUDA)) == {"cwd": "/x"}
