"""Graphs that grow: tasks that submit tasks, wait for them, and return their futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import SingleNodeExecutor, current_executor, get_item_from_future, split_future
from remoteexec.errors import TaskKilled

pytestmark = pytest.mark.usefixtures("process_mark")


@pytest.fixture(params=[False, True], ids=["fresh", "kept"])
def exe(request: pytest.FixtureRequest) -> Iterator[SingleNodeExecutor]:
    """Two workers."""
    with SingleNodeExecutor(max_workers=2, block_allocation=request.param) as executor:
        yield executor


def add(a: Any, b: Any) -> Any:
    return a + b


def fib(n: int) -> int:
    if n < 2:
        return n
    exe = current_executor()
    one, two = exe.submit(fib, n - 1), exe.submit(fib, n - 2)
    return int(one.result() + two.result())


def test_a_recursion_needs_no_more_than_its_places(exe: SingleNodeExecutor) -> None:
    assert exe.submit(fib, 12).result(60) == 144


def test_a_single_worker_is_enough() -> None:
    for kept in (False, True):
        with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
            assert exe.submit(fib, 6).result(30) == 8


def test_many_tasks_that_wait_for_children_at_once(exe: SingleNodeExecutor) -> None:
    assert list(exe.map(fib, [5] * 8, timeout=60)) == [5] * 8


def down(n: int) -> Any:
    return current_executor().submit(down, n - 1) if n else "down"


def test_a_task_that_returns_a_future_ends_as_that_does(exe: SingleNodeExecutor) -> None:
    assert exe.submit(down, 100).result(60) == "down"


def test_a_returned_future_can_be_an_argument_of_others(exe: SingleNodeExecutor) -> None:
    assert exe.submit(add, exe.submit(down, 2), "!").result(30) == "down!"


def siblings() -> int:
    exe = current_executor()
    first = exe.submit(add, 1, 2)
    second = exe.submit(add, [first], [first])
    return sum(exe.submit(sum, second).result() for _ in range(2))


def test_futures_of_children_are_arguments_of_children(exe: SingleNodeExecutor) -> None:
    assert exe.submit(siblings).result(30) == 12


def mapped(count: int) -> list[int]:
    return list(current_executor().map(add, range(count), range(count)))


def test_children_are_mapped_in_order(exe: SingleNodeExecutor) -> None:
    assert exe.submit(mapped, 20).result(60) == list(range(0, 40, 2))


def waited() -> tuple[int, int]:
    exe = current_executor()
    futures = [exe.submit(add, n, n) for n in range(4)]
    done, _ = wait(futures[:2], timeout=30)
    return len(done), sum(future.result() for future in as_completed(futures, timeout=30))


def test_wait_and_as_completed_give_up_the_place(exe: SingleNodeExecutor) -> None:
    assert list(exe.map(lambda _: waited(), range(3), timeout=60)) == [(2, 12)] * 3


def selected() -> int:
    exe = current_executor()
    parts = split_future(exe.submit(divmod, 7, 2), 2)
    return int(exe.submit(add, *parts).result() + parts[0].result())


def test_items_of_children_can_be_used(exe: SingleNodeExecutor) -> None:
    assert exe.submit(selected).result(30) == 7


def made_of_children() -> tuple[int, list[int], int]:
    exe = current_executor()
    item = get_item_from_future(split_future(exe.submit(nested), 2)[1], "x")
    (batch,) = exe.batched(list_of_futures=[exe.submit(add, 1, 2)], n=1)
    other = get_item_from_future(exe.submit(nested), 0)
    wait([other], timeout=30)
    return item.result(), batch.result(), other.result(0)


def batches_of_children() -> tuple[list[int], str]:
    exe = current_executor()
    one, two = exe.batched([exe.submit(add, n, n) for n in range(4)], 2)
    total = exe.submit(sum, one).result() + exe.submit(sum, two).result()
    (failing,) = exe.batched([exe.submit(divide_by_zero)], 1)
    return [total], type(failing.exception()).__name__


def divide_by_zero() -> float:
    return 1 / 0


def test_a_task_takes_results_as_they_come(exe: SingleNodeExecutor) -> None:
    assert exe.submit(batches_of_children).result(30) == ([12], "ZeroDivisionError")


def nested() -> tuple[int, dict[str, int]]:
    return 5, {"x": 6}


async def gather() -> list[int]:
    exe = current_executor()
    found: list[int] = await asyncio.gather(*[exe.submit(add, n, n) for n in range(3)])
    return found


def in_a_loop() -> list[int]:
    return asyncio.run(gather())


def test_waiting_for_what_is_made_of_children_and_for_them_in_asyncio_gives_up_the_place() -> None:
    for kept in (False, True):
        with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
            assert exe.submit(made_of_children).result(30) == (6, [3], 5)
            assert exe.submit(in_a_loop).result(30) == [0, 2, 4]


def large(count: int) -> float:
    exe = current_executor()
    array: Any = exe.submit(np.ones, count)
    return float(exe.submit(np.sum, exe.submit(add, array, np.ones(count))).result())


def test_large_arrays_go_to_children_and_back(exe: SingleNodeExecutor) -> None:
    assert exe.submit(large, 1_000_000).result(60) == 2_000_000.0


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def odd() -> None:
    raise Odd(1, 2)


def caught(what: str) -> tuple[str, str, bool]:
    exe = current_executor()
    child: Future[Any] = exe.submit({"odd": odd, "kill": kill, "lambda": unpicklable, "input": odd}[what])
    if what == "input":
        child = exe.submit(add, child, 1)
    try:
        child.result()
    except Exception as exc:
        return type(exc).__name__, str(exc), exc.__cause__ is not None
    return "", "", False


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unpicklable() -> Any:
    return threading.Lock()


def test_a_task_catches_what_its_child_raises(exe: SingleNodeExecutor) -> None:
    assert exe.submit(caught, "odd").result(30) == ("Odd", "1 2", True)
    assert exe.submit(caught, "input").result(30) == ("Odd", "1 2", True)
    name, text, _ = exe.submit(caught, "lambda").result(30)
    assert (name, "cannot pickle" in text) == ("ChildLost", True)


def test_a_task_is_told_that_its_child_was_killed() -> None:
    with SingleNodeExecutor(max_workers=2) as exe:
        name, text, _ = exe.submit(caught, "kill").result(30)
    assert (name, "SIGKILL" in text) == ("TaskKilled", True)


def returned(what: str) -> Any:
    return current_executor().submit({"odd": odd, "kill": kill}[what])


def test_a_task_fails_like_the_child_whose_future_it_returned() -> None:
    with SingleNodeExecutor(max_workers=2) as exe:
        with pytest.raises(Odd, match="1 2"):
            exe.submit(returned, "odd").result(30)
        with pytest.raises(TaskKilled, match="SIGKILL"):
            exe.submit(returned, "kill").result(30)


def not_waited_for(path: str) -> str:
    current_executor().submit(Path(path).write_text, "written")
    return "gone"


def test_children_nobody_waits_for_run_and_the_shutdown_waits_for_them(tmp_path: Path) -> None:
    for kept in (False, True):
        path = tmp_path / str(kept)
        with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
            future = exe.submit(not_waited_for, str(path))
        assert (future.result(), path.read_text()) == ("gone", "written")


def cancelling() -> tuple[bool, bool]:
    exe = current_executor()
    child = exe.submit(time.sleep, 60)
    cancelled = child.cancel()
    try:
        child.result(10)
    except CancelledError:
        return cancelled, True
    return cancelled, False


def test_a_task_cancels_its_child(exe: SingleNodeExecutor) -> None:
    began = time.monotonic()
    assert exe.submit(cancelling).result(30) == (True, True)
    exe.shutdown()
    assert time.monotonic() - began < 30


def endless() -> None:
    while True:
        time.sleep(1)


def patient(how: str) -> tuple[bool, float]:
    """Whether a child that does not end can be given up, and how long the wait for it has taken."""
    child = current_executor().submit(endless)
    began = time.monotonic()
    if how == "wait":
        wait([child], timeout=0.3)
    else:
        with pytest.raises(concurrent.futures.TimeoutError):
            get_item_from_future(child, 0).result(timeout=0.3) if how == "item" else child.result(timeout=0.3)
    return child.cancel(), time.monotonic() - began


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_waiting_for_a_child_has_an_end_though_that_has_the_place(kept: bool, workers: int) -> None:
    with SingleNodeExecutor(max_workers=workers, block_allocation=kept) as exe:
        for how in ("result", "wait", "item"):
            for cancelled, waited_s in [each.result(30) for each in [exe.submit(patient, how) for _ in range(workers)]]:
                assert cancelled
                assert waited_s < 2
        assert exe.submit(occupied_by_none).result(30) == "free"


def occupied_by_none() -> str:
    return "free"


def first_of_two() -> tuple[int, float]:
    """What has come in time, though the place is gone to a child that does not end."""
    exe = current_executor()
    soon, never = exe.submit(add, 1, 2), exe.submit(endless)
    began = time.monotonic()
    found = soon.result(timeout=0.5)
    never.cancel()
    return found, time.monotonic() - began


@pytest.mark.parametrize("kept", [False, True])
def test_a_place_is_waited_for_no_longer_than_the_child(kept: bool) -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
        found, took_s = exe.submit(first_of_two).result(30)
        assert (found, took_s < 2) == (3, True)


def overtaking(directory: str) -> None:
    child = current_executor().submit(time.sleep, 1)
    wait([child], timeout=0.1)
    Path(directory, "beside").touch()
    time.sleep(0.5)
    Path(directory, "beside").unlink()


def seen(directory: str) -> bool:
    return Path(directory, "beside").exists()


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_starts_beside_a_task_that_runs_beside_its_child(kept: bool, tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
        parent = exe.submit(overtaking, str(tmp_path))
        others = [exe.submit(seen, str(tmp_path)) for _ in range(3)]
        assert parent.result(30) is None
        assert [other.result(30) for other in others] == [False] * 3


def with_resources(resources: dict[str, Any]) -> Any:
    return current_executor().submit(threads, resource_dict=resources).result()


def threads() -> str:
    return os.environ["OMP_NUM_THREADS"]


def test_children_have_resources_of_their_own() -> None:
    with SingleNodeExecutor(max_cores=2) as exe:
        assert exe.submit(with_resources, {"threads_per_core": 2}).result(30) == "2"
        with pytest.raises(ValueError, match="it could never start"):
            exe.submit(with_resources, {"threads_per_core": 3}).result(30)


def occupied(directory: str, depth: int) -> int:
    """The most tasks at once that any of these has seen."""
    mine = Path(directory, f"{os.getpid()}-{depth}-{time.monotonic_ns()}")
    mine.touch()
    seen = len(os.listdir(directory))
    time.sleep(0.02)
    mine.unlink()
    if depth:
        exe = current_executor()
        children = [exe.submit(occupied, directory, depth - 1) for _ in range(3)]
        seen = max(seen, *(child.result() for child in children))
        mine.touch()
        seen = max(seen, len(os.listdir(directory)))
        time.sleep(0.02)
        mine.unlink()
    return seen


def test_no_more_tasks_run_at_once_than_there_are_places(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    assert exe.submit(occupied, str(tmp_path), 3).result(60) <= 2


def test_a_parent_that_is_killed_takes_its_waiting_children_with_it(tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=1) as exe:
        future = exe.submit(killed_with_children, str(tmp_path / "x"))
        with pytest.raises(TaskKilled):
            future.result(30)
        assert exe.submit(add, 1, 1).result(30) == 2
    assert not (tmp_path / "x").exists()


def killed_with_children(path: str) -> None:
    current_executor().submit(Path(path).touch)
    kill()


def test_cancelling_all_at_shutdown_cancels_children_too(tmp_path: Path) -> None:
    for kept in (False, True):
        submitted = tmp_path / str(kept)
        exe = SingleNodeExecutor(max_workers=1, block_allocation=kept)
        future = exe.submit(family, 20, submitted)
        while not submitted.exists():
            time.sleep(0.01)
        exe.shutdown(cancel_futures=True)
        assert future.result() == "some cancelled"


def family(count: int, submitted: Path) -> str:
    children = [current_executor().submit(time.sleep, 0.2) for _ in range(count)]
    children[0].result()
    submitted.touch()
    wait(children)
    return "some cancelled" if any(child.cancelled() for child in children) else "none cancelled"


def test_there_is_no_executor_outside_of_tasks() -> None:
    with pytest.raises(RuntimeError, match="no such task runs here"):
        current_executor()


def test_debugging_grows_too() -> None:
    with SingleNodeExecutor(debug=True) as exe:
        assert exe.submit(fib, 5).result() == 5
        assert exe.submit(down, 2).result() == "down"
    with pytest.raises(RuntimeError, match="no such task runs here"):
        current_executor()


def sleeps(path: str) -> bool:
    """A child is there, and nothing of this task waits for it."""
    current_executor().submit(Path(path).touch)
    time.sleep(1.0)
    return os.path.exists(path)


def test_a_task_that_sleeps_and_waits_for_nobody_keeps_its_place(tmp_path: Path) -> None:
    for kept in (False, True):
        path = tmp_path / str(kept)
        with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
            assert exe.submit(sleeps, str(path)).result(30) is False
        assert path.exists()


def looks_again_and_again() -> Any:
    child = current_executor().submit(down, 0)
    while not child.done():
        time.sleep(0.01)
    return child.result()


def test_a_task_that_looks_for_a_childs_end_again_and_again_lends_its_place() -> None:
    for kept in (False, True):
        with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
            assert exe.submit(looks_again_and_again).result(30) == "down"
