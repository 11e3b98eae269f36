"""Calls of a pool that are tried again: which ends are followed by another attempt, and what is said of the last."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

from remoteexec import Retry, SingleNodeExecutor, current_executor, errors
from tests.integration.pool_tools import both_modes, eventually, executor, sleep_after_saying

KILLED = Retry(2, {"killed"})


def crash(path: str, times: int) -> int:
    """End the process so many times; then say how often it began."""
    with open(path, "a") as file:
        file.write("x")
    count = len(Path(path).read_text())
    if count <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return count


def raise_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        raise KeyError("first")
    return "second"


def stay_once(path: str, s: float) -> str:
    if not Path(path).exists():
        Path(path).touch()
        time.sleep(60)
    time.sleep(s)
    return "stayed"


def fill(megabytes: int) -> int:
    return len(b"x" * (megabytes << 20)) >> 20


def total_after_crash(array: Any, path: str) -> float:
    crash(path, 1)
    return float(array.sum())


def parent(path: str, times: int) -> tuple[int, int | None]:
    child = current_executor().submit(crash, path, times)
    return child.result(), os.getpid()


def hand_on(path: str, times: int) -> Any:
    return current_executor().submit(crash, path, times)


def crash_with_children(path: str) -> list[int]:
    """The first attempt dies while it has a child that runs, the second waits for all."""
    first = not Path(path).exists()
    children = [current_executor().submit(abs, -n) for n in range(3)]
    if first:
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [child.result() for child in children]


@both_modes
def test_a_crash_is_tried_again_and_the_last_error_names_all_attempts(kept: bool, tmp_path: Path) -> None:
    with executor(kept, retries=KILLED, **({"restart_limit": 9} if kept else {})) as exe:
        futures = [exe.submit(crash, str(tmp_path / str(times)), times) for times in (0, 1, 2, 5)]
        assert [future.result(20) for future in futures[:3]] == [1, 2, 3]
        exc = futures[3].exception(20)
    assert isinstance(exc, errors.TaskKilled)
    assert str(exc).startswith("3 attempts: killed, killed, killed; the process of task t4 (pid ")
    assert [future.task.attempts for future in futures] == [1, 2, 3, 3]


def test_retries_of_one_call_are_its_own(tmp_path: Path) -> None:
    with SingleNodeExecutor(2) as exe:
        once = exe.submit(crash, str(tmp_path / "once"), 1)
        again = exe.submit(crash, str(tmp_path / "again"), 1, resource_dict={"retries": KILLED})
        assert isinstance(once.exception(20), errors.TaskKilled)
        assert (again.result(20), again.task.attempts, once.task.attempts) == (2, 2, None)


@both_modes
def test_what_the_function_raises_is_tried_again_only_if_that_was_asked_for(kept: bool, tmp_path: Path) -> None:
    with executor(kept, retries=Retry(1, {"killed"})) as exe:
        assert isinstance(exe.submit(raise_once, str(tmp_path / "once")).exception(20), KeyError)
    with executor(kept, retries=Retry(1, {"error"})) as exe:
        future = exe.submit(raise_once, str(tmp_path / "twice"))
        assert (future.result(20), future.task.attempts) == ("second", 2)


@both_modes
def test_a_call_that_took_too_long_gets_more_time(kept: bool, tmp_path: Path) -> None:
    resources = {"run_time_max": 0.6}
    with executor(kept, resource_dict=resources, retries=Retry(1, {"timeout"}, {"time": 20})) as exe:
        future = exe.submit(stay_once, str(tmp_path / "mark"), 1.0)
        assert (future.result(20), future.task.attempts) == ("stayed", 2)
    with executor(kept, resource_dict=resources, retries=Retry(1, {"timeout"}, {"time": 1})) as exe:
        exc = exe.submit(time.sleep, 60).exception(20)
    assert isinstance(exc, errors.TaskTimeout)
    assert str(exc).startswith("2 attempts: timeout, timeout; task t1 took longer than its run_time_max")


@both_modes
def test_the_time_of_an_attempt_does_not_end_the_next(kept: bool, tmp_path: Path) -> None:
    """The first attempt ends at once, the second lasts until after the first one would have been too long."""
    settings = {"restart_limit": 1} if kept else {}
    with executor(kept, 1, resource_dict={"run_time_max": 2}, retries=KILLED, **settings) as exe:
        assert exe.submit(crash_then_stay, str(tmp_path / "mark"), 0.8, 1.6).result(20) == 2


def crash_then_stay(path: str, before_s: float, s: float) -> int:
    time.sleep(0 if Path(path).exists() else before_s)
    count = crash(path, 1)
    time.sleep(s)
    return count


def test_a_call_that_ran_out_of_memory_gets_more() -> None:
    retry = Retry(1, {"out_of_memory"}, {"memory": 8})
    with SingleNodeExecutor(1) as exe:
        more = exe.submit(fill, 300, resource_dict={"memory_max": 0.1, "retries": retry})
        same = exe.submit(fill, 300, resource_dict={"memory_max": 0.1, "retries": Retry(2, {"error"})})
        assert (more.result(20), more.task.attempts) == (300, 2)
        assert (type(same.exception(20)), same.task.attempts) == (MemoryError, 3)


@both_modes
def test_what_is_cancelled_is_not_tried_again(kept: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with executor(kept, retries=Retry(3, {"killed", "error", "timeout"})) as exe:
        future = exe.submit(sleep_after_saying, str(mark))
        eventually(mark.exists)
        mark.unlink()
        assert future.cancel()
        assert exe.submit(abs, -1).result(20) == 1
    assert not mark.exists()


@both_modes
def test_further_attempts_have_the_arguments_as_they_were_at_submit(kept: bool, tmp_path: Path) -> None:
    array = numpy.ones(1_000_000)
    settings = {"restart_limit": 1} if kept else {}
    with executor(kept, 1, retries=KILLED, **settings) as exe:
        assert exe.submit(abs, -1).result(20) == 1  # so that a kept worker is free
        future = exe.submit(total_after_crash, array, str(tmp_path / "mark"))
        array[:] = 0
        assert future.result(20) == 1_000_000


@both_modes
def test_a_chain_goes_on_behind_a_further_attempt(kept: bool, tmp_path: Path) -> None:
    settings = {"restart_limit": 9} if kept else {}
    with executor(kept, 1, retries=KILLED, **settings) as exe:
        for n in range(5):
            first = exe.submit(crash, str(tmp_path / str(n)), 1)
            last = exe.submit(abs, exe.submit(abs, first))
            assert (first.result(20), last.result(20), last.task.attempts) == (2, 2, 1)


def test_when_no_worker_is_left_nothing_waits_for_ever(tmp_path: Path) -> None:
    with SingleNodeExecutor(1, block_allocation=True, retries=KILLED) as exe:
        future = exe.submit(crash, str(tmp_path / "mark"), 1)
        exc = future.exception(20)
    assert str(exc).startswith("task t1 cannot run again, after killed: its last worker was ended by SIGKILL")
    assert (type(exc), future.task.attempts) == (errors.TaskKilled, 1)


@both_modes
def test_children_are_tried_again_and_their_parents_are_not(kept: bool, tmp_path: Path) -> None:
    settings = {"restart_limit": 9} if kept else {}
    with executor(kept, retries=Retry(1, {"killed", "error"}), **settings) as exe:
        waiting, following = exe.submit(parent, str(tmp_path / "a"), 1), exe.submit(hand_on, str(tmp_path / "b"), 1)
        assert (waiting.result(20)[0], following.result(20)) == (2, 2)
        assert (waiting.task.attempts, following.task.attempts) == (1, None)
        exc = exe.submit(hand_on, str(tmp_path / "c"), 9).exception(20)
    assert str(exc).startswith("2 attempts: killed, killed; ")
    assert len((tmp_path / "c").read_text()) == 2


@both_modes
def test_a_parent_is_tried_again_and_submits_its_children_anew(kept: bool, tmp_path: Path) -> None:
    settings = {"restart_limit": 1} if kept else {}
    with executor(kept, 1, retries=KILLED, **settings) as exe:
        assert exe.submit(crash_with_children, str(tmp_path / "mark")).result(20) == [0, 1, 2]


def test_a_cached_call_that_was_tried_again_is_kept_once(tmp_path: Path) -> None:
    with SingleNodeExecutor(1, cache_directory=tmp_path / "cache", retries=KILLED) as exe:
        assert exe.submit(crash, str(tmp_path / "mark"), 1).result(20) == 2
        assert exe.submit(crash, str(tmp_path / "mark"), 1).result(20) == 2
    assert (tmp_path / "mark").read_text() == "xx"


def test_states_are_not_saved_in_pools() -> None:
    with pytest.raises(ValueError, match="warn_time=5: only tasks of an executor of a cluster are warned"):
        SingleNodeExecutor(resource_dict={"warn_time": 5})
