"""What workers are made to be, how many run at once, and what each call gets of the machine."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remoteexec
from remoteexec import ResourceError, SingleNodeExecutor, errors
from remoteexec.pool import workers
from remoteexec_server import worker
from tests.integration.pool_tools import add_one, alive, both_modes, eventually, executor, kill_self, own_pid

pytestmark = pytest.mark.usefixtures("process_mark")

Interval = tuple[float, float]


def busy(seconds: float = 0.05) -> Interval:
    """When it ran."""
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


def most_at_once(intervals: list[Interval], weights: list[int] | None = None) -> int:
    weights = weights or [1] * len(intervals)
    changes = [(start, weight) for (start, _), weight in zip(intervals, weights, strict=True)]
    changes += [(end, -weight) for (_, end), weight in zip(intervals, weights, strict=True)]
    now, most = 0, 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


# ---- how many at once ----


@both_modes
def test_max_workers_is_reached_and_never_exceeded(kept: bool) -> None:
    with executor(kept, workers=3) as exe:
        intervals = [future.result(timeout=20) for future in [exe.submit(busy) for _ in range(15)]]
    assert most_at_once(intervals) == 3


def test_max_cores_is_never_exceeded_by_calls_of_different_sizes() -> None:
    sizes = [random.Random(7).randint(1, 4) for _ in range(24)]
    with SingleNodeExecutor(max_cores=4) as exe:
        futures = [exe.submit(busy, 0.03, resource_dict={"threads_per_core": size}) for size in sizes]
        intervals = [future.result(timeout=20) for future in futures]
    assert most_at_once(intervals, sizes) in (3, 4)


def test_kept_workers_with_threads_share_max_cores() -> None:
    with SingleNodeExecutor(max_cores=5, block_allocation=True, resource_dict={"threads_per_core": 2}) as exe:
        intervals = [future.result(timeout=20) for future in [exe.submit(busy) for _ in range(8)]]
    assert most_at_once(intervals) == 2


def test_a_large_call_starts_although_small_ones_keep_coming() -> None:
    with SingleNodeExecutor(max_cores=2) as exe:
        small = [exe.submit(busy, 0.05) for _ in range(2)]
        large = exe.submit(busy, 0.01, resource_dict={"threads_per_core": 2})
        small += [exe.submit(busy, 0.05) for _ in range(30)]
        started, _ = large.result(timeout=20)
        before = [future for future in small if future.result(timeout=20)[0] < started]
    assert len(before) <= 2 + 4 + 2  # the first two, PATIENCE times the cores, and what ran beside the last of these


def test_small_calls_go_past_a_large_one_that_does_not_fit() -> None:
    with SingleNodeExecutor(max_cores=2) as exe:
        exe.submit(busy, 0.5)
        large = exe.submit(busy, 0.01, resource_dict={"threads_per_core": 2})
        small = exe.submit(busy, 0.01)
        assert small.result(timeout=20)[1] < large.result(timeout=20)[0]


def test_what_can_never_fit_is_refused_at_submit() -> None:
    with SingleNodeExecutor(max_cores=2) as exe:
        with pytest.raises(ValueError, match="3 cores, and max_cores is 2"):
            exe.submit(add_one, 1, resource_dict={"threads_per_core": 3})
        with pytest.raises(ValueError, match="GPUs"):
            exe.submit(add_one, 1, resource_dict={"gpus_per_core": 99})
        assert exe.submit(add_one, 1).result(timeout=20) == 2
    with pytest.raises(ValueError, match="none could start"):
        SingleNodeExecutor(max_cores=2, block_allocation=True, resource_dict={"threads_per_core": 3})
    with pytest.raises(ValueError, match="max_cores is 2"):
        SingleNodeExecutor(max_cores=2, resource_dict={"threads_per_core": 3})


def test_no_limit_given_means_the_cores_of_this_machine() -> None:
    cores = len(os.sched_getaffinity(0))
    with SingleNodeExecutor() as exe:
        intervals = [future.result(timeout=20) for future in [exe.submit(busy) for _ in range(4 * cores)]]
    assert most_at_once(intervals) <= cores


# ---- resizing ----


def test_max_workers_can_grow_and_shrink_under_load() -> None:
    with executor(True, workers=1) as exe:
        futures = [exe.submit(busy, 0.02) for _ in range(30)]
        exe.max_workers = 4
        eventually(lambda: sum(future.done() for future in futures) > 8)
        exe.max_workers = 2
        changed = time.monotonic()
        exe.submit(busy).result(timeout=20)
        later = [exe.submit(busy, 0.02) for _ in range(20)]
        intervals = [future.result(timeout=20) for future in futures + later]
        assert exe.max_workers == 2
    assert most_at_once(intervals) == 4
    assert most_at_once([interval for interval in intervals if interval[0] > changed + 0.1]) <= 2


def test_resizing_at_random_loses_no_call() -> None:
    dice = random.Random(3)
    with executor(True, workers=2) as exe:
        futures = []
        for _ in range(60):
            futures += [exe.submit(add_one, n) for n in range(25)]
            exe.max_workers = dice.randint(1, 5)
        assert [future.result(timeout=30) for future in futures] == list(range(1, 26)) * 60


def test_max_workers_of_fresh_processes_cannot_be_changed() -> None:
    with executor(False) as exe:
        with pytest.raises(NotImplementedError, match="block_allocation"):
            exe.max_workers = 3
        assert exe.max_workers == 2
    with executor(True) as exe:
        with pytest.raises(ValueError, match="greater than 0"):
            exe.max_workers = 0
        assert exe.max_workers == 2


# ---- kept workers ----


def test_kept_workers_keep_their_state_and_fresh_processes_do_not() -> None:
    def count() -> int:
        import math

        math.calls = getattr(math, "calls", 0) + 1  # type: ignore[attr-defined]
        return math.calls  # type: ignore[attr-defined, no-any-return]

    with executor(True, workers=1) as kept, executor(False, workers=1) as fresh:
        assert [kept.submit(count).result(timeout=20) for _ in range(3)] == [1, 2, 3]
        assert [fresh.submit(count).result(timeout=20) for _ in range(3)] == [1, 1, 1]


def test_init_function_fills_parameters_that_were_not_given() -> None:
    def prepare() -> dict[str, Any]:
        return {"factor": 10, "unused": None}

    def scaled(x: int, factor: int = 1) -> int:
        return x * factor

    def any_keywords(**given: int) -> dict[str, int]:
        return given

    with executor(True, workers=1, init_function=prepare) as exe:
        assert exe.submit(scaled, 2).result(timeout=20) == 20
        assert exe.submit(scaled, 2, 3).result(timeout=20) == 6
        assert exe.submit(scaled, 2, factor=4).result(timeout=20) == 8
        assert exe.submit(any_keywords, a=1).result(timeout=20) == {"a": 1}
        assert exe.submit(pow, 2, 3).result(timeout=20) == 8


def test_an_init_function_that_raises_is_the_outcome_of_every_call() -> None:
    def broken() -> None:
        raise LookupError("no data")

    with executor(True, workers=1, init_function=broken) as exe:
        for _ in range(2):
            with pytest.raises(LookupError, match="no data") as caught:
                exe.submit(add_one, 1).result(timeout=20)
        assert 'raise LookupError("no data")' in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="block_allocation=True"):
        SingleNodeExecutor(init_function=broken)


def test_workers_can_hold_an_interactive_program() -> None:
    def start() -> dict[str, Any]:
        return {"program": subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)}

    def ask(text: str, program: Any = None) -> tuple[str, int]:
        program.stdin.write(text + "\n")
        program.stdin.flush()
        return program.stdout.readline(), program.pid

    with executor(True, workers=1, init_function=start) as exe:
        answers = [exe.submit(ask, text).result(timeout=20) for text in ("a", "b")]
    assert [text for text, _ in answers] == ["a\n", "b\n"]
    assert answers[0][1] == answers[1][1]
    eventually(lambda: not alive(answers[0][1]))


def test_workers_have_numbers_that_a_call_can_ask_for() -> None:
    def number(executorlib_worker_id: int | None = None) -> tuple[int | None, int | None]:
        time.sleep(0.05)
        return executorlib_worker_id, remoteexec.worker_id()

    with executor(True, workers=2) as exe:
        found = {future.result(timeout=20) for future in [exe.submit(number) for _ in range(10)]}
    assert found == {(0, 0), (1, 1)}
    assert remoteexec.worker_id() is None


def keep_number(executorlib_worker_id: int) -> dict[str, Any]:
    return {"kept": executorlib_worker_id}


def number_and_kept(executorlib_worker_id: int, kept: int) -> tuple[int, int]:
    time.sleep(0.05)
    return executorlib_worker_id, kept


def test_an_init_function_can_ask_for_the_number_of_its_worker() -> None:
    with executor(True, workers=2, init_function=keep_number) as exe:
        found = {future.result(timeout=20) for future in [exe.submit(number_and_kept) for _ in range(10)]}
    assert found == {(0, 0), (1, 1)}


def test_restart_limit_is_how_many_workers_are_replaced() -> None:
    with executor(True, workers=1, restart_limit=2) as exe:
        for _ in range(3):
            assert isinstance(exe.submit(kill_self).exception(timeout=20), errors.TaskKilled)
        with pytest.raises(errors.TaskKilled, match=r"its last worker was ended by SIGKILL, .*: `restart_limit` was 2"):
            exe.submit(add_one, 1).result(timeout=20)


def test_a_worker_that_died_before_submit_returned_gets_no_more_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replacement has its number, and is what the pool knows by it."""

    def replaced(worker: workers.WorkerState) -> bool:
        assert exe._pool is not None
        return exe._pool._workers.get(0) not in (None, worker)

    def slow(*args: Any) -> bool:
        done = workers.write(*args)
        if threading.current_thread() is threading.main_thread():
            eventually(lambda: replaced(first))
        return done

    with executor(True, workers=1, restart_limit=1) as exe:
        assert exe.submit(add_one, 1).result() == 2
        assert exe._pool is not None
        first = exe._pool._workers[0]
        monkeypatch.setattr("remoteexec.pool.pool.write", slow)
        killed = exe.submit(kill_self)
        monkeypatch.undo()

        assert isinstance(killed.exception(20), errors.TaskKilled)
        assert exe.submit(add_one, 2).result(20) == 3


def test_workers_that_we_ended_do_not_count_for_restart_limit() -> None:
    with executor(True, workers=1, resource_dict={"run_time_max": 0.1}) as exe:
        for _ in range(3):
            assert isinstance(exe.submit(time.sleep, 60).exception(timeout=20), errors.TaskTimeout)
        assert exe.submit(add_one, 1).result(timeout=20) == 2


def test_the_others_go_on_when_one_of_several_workers_is_gone() -> None:
    with executor(True, workers=3) as exe:
        exe.submit(kill_self).exception(timeout=20)
        assert [future.result(timeout=20) for future in [exe.submit(add_one, n) for n in range(50)]] == list(
            range(1, 51)
        )


def test_a_call_behind_a_long_one_moves_to_a_worker_that_is_free() -> None:
    with executor(True, workers=2) as exe:
        [exe.submit(add_one, n).result(timeout=20) for n in range(50)]  # so that much is sent ahead
        futures = [exe.submit(time.sleep, 1.0)] + [exe.submit(add_one, n) for n in range(200)]
        started = time.monotonic()
        assert [future.result(timeout=20) for future in futures[1:]] == list(range(1, 201))
        assert time.monotonic() - started < 0.9
        assert not futures[0].done()


def test_per_call_resources_are_refused_where_workers_are_kept() -> None:
    with executor(True) as exe:
        with pytest.raises(ValueError, match="block_allocation=True"):
            exe.submit(add_one, 1, resource_dict={"threads_per_core": 1})
        assert exe.submit(add_one, 1, resource_dict={}).result(timeout=20) == 2


# ---- resources of a call ----


def environment(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


@both_modes
def test_threads_per_core_sets_what_numerical_libraries_read(kept: bool) -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    with SingleNodeExecutor(max_cores=3, block_allocation=kept, resource_dict={"threads_per_core": 3}) as exe:
        assert exe.submit(environment, *names).result(timeout=20) == ["3"] * 4


def test_a_call_that_says_so_has_other_threads_than_the_executors() -> None:
    given = {"threads_per_core": 2}
    with SingleNodeExecutor(max_cores=2) as exe:
        assert exe.submit(environment, "OMP_NUM_THREADS", resource_dict=given).result(timeout=20) == ["2"]
        assert exe.submit(environment, "OMP_NUM_THREADS").result(timeout=20) == ["1"]
    assert given == {"threads_per_core": 2}


def test_one_resource_dict_serves_two_executors() -> None:
    given = {"threads_per_core": 1, "cwd": None}
    with executor(True, resource_dict=given) as one, executor(False, resource_dict=given) as other:
        assert [exe.submit(add_one, 1).result(timeout=20) for exe in (one, other)] == [2, 2]
    assert given == {"threads_per_core": 1, "cwd": None}


def gpus_for(seconds: float) -> tuple[str | None, Interval]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), busy(seconds)


def _overlap(one: Interval, other: Interval) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def test_calls_that_run_at_once_have_different_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-77")
    with SingleNodeExecutor(max_workers=4) as exe:
        one = [exe.submit(gpus_for, 0.05, resource_dict={"gpus_per_core": 1}) for _ in range(6)]
        both = exe.submit(gpus_for, 0.05, resource_dict={"gpus_per_core": 2})
        results = [future.result(timeout=20) for future in one]
        assert {gpu for gpu, _ in results} == {"3", "GPU-77"}
        assert set(str(both.result(timeout=20)[0]).split(",")) == {"3", "GPU-77"}
        assert not [(a, b) for n, a in enumerate(results) for b in results[:n] if a[0] == b[0] and _overlap(a[1], b[1])]
        assert (
            exe.submit(gpus_for, 0).result(timeout=20)[0] == "3,GPU-77"
        )  # who asks for none sees what the caller sees
        with pytest.raises(ValueError, match="asks for 3 GPUs, and 2 are known"):
            exe.submit(gpus_for, 0, resource_dict={"gpus_per_core": 3})


def test_rocm_devices_are_shared_out_like_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1")
    names = ("ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    with SingleNodeExecutor(max_workers=1, resource_dict={"gpus_per_core": 1}) as exe:
        assert exe.submit(environment, *names).result(timeout=20) == ["0", None]


def test_kept_workers_have_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    settings: dict[str, Any] = {"block_allocation": True, "resource_dict": {"gpus_per_core": 2}}
    with SingleNodeExecutor(2, **settings) as exe:
        found = {future.result(timeout=20)[0] for future in [exe.submit(gpus_for, 0.05) for _ in range(6)]}
    assert found == {"0,1", "2,3"}
    with pytest.raises(ValueError, match="3 workers with gpus_per_core=2 take 6 GPUs, and 4 are known"):
        SingleNodeExecutor(3, **settings)


@both_modes
def test_cwd_is_made_and_worked_in(kept: bool, tmp_path: Path) -> None:
    there = tmp_path / "a'; echo b ü" / "c"
    with executor(kept, resource_dict={"cwd": str(there)}) as exe:
        assert exe.submit(os.getcwd).result(timeout=20) == str(there)


@both_modes
def test_a_cwd_that_cannot_be_made_is_an_error_of_the_call(kept: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with executor(kept, resource_dict={"cwd": str(tmp_path / "file" / "below")}) as exe:
        with pytest.raises(NotADirectoryError):
            exe.submit(os.getcwd).result(timeout=20)


def test_a_fresh_process_works_where_the_caller_is_and_sees_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTEEXEC_TEST_OLD", "old")
    with executor(False) as exe:
        assert exe.submit(environment, "REMOTEEXEC_TEST_OLD").result(timeout=20) == ["old"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("REMOTEEXEC_TEST_NEW", "new")
        monkeypatch.delenv("REMOTEEXEC_TEST_OLD")
        names = ("REMOTEEXEC_TEST_OLD", "REMOTEEXEC_TEST_NEW", "PYTHONPATH")
        before = os.environ.get("PYTHONPATH")
        assert exe.submit(environment, *names).result(timeout=20) == [None, "new", before]
        assert exe.submit(os.getcwd).result(timeout=20) == str(tmp_path)


@both_modes
def test_a_call_over_its_memory_gets_a_memory_error(kept: bool) -> None:
    def fill(megabytes: int) -> int:
        return len(bytearray(megabytes << 20))

    with executor(kept, workers=1, resource_dict={"memory_max": 0.25}) as exe:
        with pytest.raises(MemoryError):
            exe.submit(fill, 500).result(timeout=20)
        assert exe.submit(fill, 20).result(timeout=20) == 20 << 20


@both_modes
def test_a_failing_call_is_written_to_its_error_log(kept: bool, tmp_path: Path) -> None:
    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError("no text")

    log = tmp_path / "made if missing" / "error.log"
    with executor(kept, workers=1, resource_dict={"error_log_file": str(log)}) as exe:
        exe.submit(add_one, 1).result(timeout=20)
        assert not log.exists()
        exe.submit(divmod, 1, 0).exception(timeout=20)
        exe.submit(divmod, Silent(), 0).exception(timeout=20)
        exe.submit(divmod, 2, 0).exception(timeout=20)
    text = log.read_text()
    assert [line for line in text.splitlines() if "function:" in line] == ["function: <built-in function divmod>"] * 2
    assert [line for line in text.splitlines() if line.startswith("args:")] == ["args: (1, 0)", "args: (2, 0)"]
    assert text.count("ZeroDivisionError") == 2


def test_run_time_max_is_of_the_call_and_not_of_setting_up() -> None:
    def slowly() -> dict[str, Any]:
        time.sleep(0.6)
        return {}

    with executor(True, workers=1, init_function=slowly, resource_dict={"run_time_max": 0.4}) as exe:
        assert exe.submit(add_one, 1).result(timeout=20) == 2


def test_openmpi_oversubscribe_is_taken_and_unknown_keys_are_not() -> None:
    with executor(False, resource_dict={"openmpi_oversubscribe": True}) as exe:
        assert exe.submit(add_one, 1).result(timeout=20) == 2
        with pytest.raises(ResourceError, match="'core'"):
            exe.submit(add_one, 1, resource_dict={"core": 1})
    with pytest.raises(ResourceError, match="'colour'"):
        SingleNodeExecutor(resource_dict={"colour": "red"})


# ---- what travels ----


@both_modes
def test_an_array_may_be_changed_as_soon_as_submit_has_returned(kept: bool) -> None:
    sizes = [2_000, 60_000, 300_000, 3_000_000]
    with executor(kept) as exe:
        futures = []
        for size in sizes * 2:
            array = np.ones(size)
            futures.append(exe.submit(np.sum, array))
            array[:] = 0
        assert [future.result(timeout=20) for future in futures] == sizes * 2


@both_modes
def test_arrays_that_come_back_can_be_written_to(kept: bool) -> None:
    with executor(kept) as exe:
        found = [exe.submit(np.arange, size).result(timeout=20) for size in (10, 10_000, 1_000_000)]
    for array in found:
        array += 1
    assert [int(array[0]) for array in found] == [1, 1, 1]


def test_functions_that_have_no_signature_and_keywords_named_like_ours_work() -> None:
    def given(*args: int, **kwargs: int) -> tuple[tuple[int, ...], dict[str, int]]:
        return args, kwargs

    with executor(True) as exe:
        assert exe.submit(max, 1, 2).result(timeout=20) == 2
        assert exe.submit(dict, a=1).result(timeout=20) == {"a": 1}
        assert exe.submit(given, 1, self=2, fn=3).result(timeout=20) == ((1,), {"self": 2, "fn": 3})


def test_a_changed_global_is_noticed_by_the_next_call() -> None:
    names: dict[str, Any] = {"factor": 2}
    exec("def scaled(x):\n    return x * factor", names)
    with executor(True) as exe:
        assert exe.submit(names["scaled"], 3).result(timeout=20) == 6
        names["factor"] = 5
        assert exe.submit(names["scaled"], 3).result(timeout=20) == 15


@both_modes
def test_futures_anywhere_in_the_arguments_stand_for_their_results(kept: bool) -> None:
    def same(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return args, kwargs

    with executor(kept) as exe, executor(not kept) as other:
        array = exe.submit(np.ones, 100_000)
        foreign, plain = other.submit(add_one, 1), threading.Thread
        future = exe.submit(same, [array, {"k": (foreign,)}], plain, last={"s": frozenset([1]), "f": array})
        (found, thread), keywords = future.result(timeout=20)
    assert (found[0].sum(), found[1], thread, keywords["last"]["f"].sum()) == (100_000, {"k": (2,)}, plain, 100_000)


@both_modes
def test_output_of_a_call_is_there_when_its_result_is(kept: bool, capfd: pytest.CaptureFixture[str]) -> None:
    def speak(n: int) -> None:
        print("said", n)  # into a buffer: what captures it is no terminal

    with executor(kept, workers=1) as exe:
        for n in range(3):
            exe.submit(speak, n).result(timeout=20)
    assert [line for line in capfd.readouterr().out.splitlines() if "said" in line] == ["said 0", "said 1", "said 2"]


def test_own_pid_is_another_for_each_fresh_call() -> None:
    with executor(False) as exe:
        assert len({exe.submit(own_pid).result(timeout=20) for _ in range(3)}) == 3


def parent_of_killed() -> str:
    return type(remoteexec.current_executor().submit(kill_self).exception()).__name__


@both_modes
def test_a_call_whose_process_is_gone_is_written_to_its_error_log(kept: bool, tmp_path: Path) -> None:
    log = tmp_path / "new" / "errors.txt"
    resources = {"error_log_file": str(log), "run_time_max": 2}
    with executor(kept, workers=1, restart_limit=9, resource_dict=resources) as exe:
        for fn, *args in ((kill_self,), (time.sleep, 60)):
            assert isinstance(exe.submit(fn, *args).exception(timeout=20), errors.TaskLost)
        exe.submit(parent_of_killed).result(20)
    functions = [line for line in log.read_text().splitlines() if line.startswith("function: ")]
    assert functions == ["function: kill_self", "function: sleep", "function: kill_self"]
    assert "was ended by SIGKILL" in log.read_text()
    assert "longer than its run_time_max" in log.read_text()


def test_a_job_that_fails_is_written_to_its_error_log_too(tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    with remoteexec.TestClusterExecutor(
        resource_dict={"error_log_file": str(log)}, cache_directory=str(tmp_path / "cache")
    ) as exe:
        assert isinstance(exe.submit(divmod, 1, 0).exception(timeout=30), ZeroDivisionError)
    assert [line for line in log.read_text().splitlines() if line.startswith(("function", "args"))] == [
        "function: <built-in function divmod>",
        "args: (1, 0)",
    ]


@both_modes
def test_future_queue_counts_the_calls_that_wait_and_takes_none(kept: bool) -> None:
    with executor(kept, workers=1) as exe:
        waiting = exe.future_queue
        assert waiting is not None
        assert (waiting.qsize(), waiting.empty(), waiting.full()) == (0, True, False)
        exe.submit(time.sleep, 0.3)
        futures = [exe.submit(add_one, 1, resource_dict={}) for _ in range(20)]
        assert (waiting.qsize(), waiting.empty()) == (len(exe), False)
        for refused in (waiting.put_nowait, waiting.put):
            with pytest.raises(NotImplementedError, match=r"submit\(\) adds one"):
                refused({"shutdown": True})
        for taken in (waiting.get_nowait, waiting.get):
            with pytest.raises(NotImplementedError, match=r"cancel\(\) of its future"):
                taken()
        assert [future.result(timeout=20) for future in futures] == [2] * 20
        assert waiting.qsize() == 0
    assert exe.future_queue is None


def known_functions() -> int:
    found = worker.current()
    assert found is not None
    return len(found._functions) + len(found._pickled)


def test_a_kept_worker_forgets_functions_that_are_not_used_of_late_and_large_ones_at_once() -> None:
    with executor(True, 1) as exe:
        small = [exe.submit(partial(max, i, 0)) for i in range(600)]
        assert [future.result() for future in small] == list(range(600))
        few = exe.submit(known_functions).result()
        large = [exe.submit(partial(len, bytes(100_000 + i))) for i in range(20)]
        assert [future.result() for future in large] == list(range(100_000, 100_020))
        assert exe.submit(known_functions).result() <= few + 1
        assert [exe.submit(partial(max, i, 0)).result() for i in range(3)] == [0, 1, 2]
    assert few < 400


def first_of(array: Any) -> float:
    return float(array[0])


@both_modes
def test_an_array_that_is_bound_to_a_function_is_copied_at_submit(kept: bool) -> None:
    array = np.ones(100_000)
    with executor(kept, 1) as exe:
        exe.submit(time.sleep, 0.2)
        future = exe.submit(partial(first_of, array))
        array[:] = 0
        assert future.result() == 1.0


memory: dict[int, int] = {}


def remember(number: int) -> int:
    memory[number] = 1
    return len(memory)


def test_what_a_function_keeps_in_its_globals_stays_in_its_worker() -> None:
    with remoteexec.SingleNodeExecutor(1, block_allocation=True) as exe:
        assert [exe.submit(remember, number).result(30) for number in range(4)] == [1, 2, 3, 4]
        assert list(exe.map(remember, range(4, 8))) == [5, 6, 7, 8]
