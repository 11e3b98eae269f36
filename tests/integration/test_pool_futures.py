"""Futures of calls on this machine: what they are made into, what they know, and how else calls are run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from pathlib import Path
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor, TestClusterExecutor, get_item_from_future, split_future

pytestmark = pytest.mark.usefixtures("process_mark")


@pytest.fixture(params=["fresh", "kept", "debug"])
def exe(request: pytest.FixtureRequest) -> Iterator[SingleNodeExecutor]:
    """All ways in which calls run."""
    kept, debug = request.param == "kept", request.param == "debug"
    with SingleNodeExecutor(max_workers=2, block_allocation=kept, debug=debug) as executor:
        yield executor


def pair(n: int) -> tuple[int, dict[str, Any]]:
    return n, {"a": 2 * n, "list": [n, {"deep": 3 * n}]}


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def nothing() -> None: ...


def fail() -> None:
    raise ZeroDivisionError("on purpose")


def test_items_of_results_are_arguments_of_calls(exe: SingleNodeExecutor) -> None:
    first, second = split_future(exe.submit(pair, 4), 2)
    deep = get_item_from_future(get_item_from_future(get_item_from_future(second, "list"), 1), "deep")
    assert exe.submit(add, [first], [get_item_from_future(second, "a"), deep]).result(30) == [4, 8, 12]


def test_items_of_none_are_none(exe: SingleNodeExecutor) -> None:
    assert exe.submit(add, [split_future(exe.submit(nothing), 2)[1]], []).result(30) == [None]


def test_items_work_with_wait_and_as_completed(exe: SingleNodeExecutor) -> None:
    items = [item for n in range(5) for item in split_future(exe.submit(pair, n), 1)]
    assert sorted(item.result() for item in as_completed(items, timeout=30)) == [0, 1, 2, 3, 4]
    assert wait(items, timeout=30).not_done == set()


def test_an_item_that_is_not_there_fails_the_call_that_takes_it(exe: SingleNodeExecutor) -> None:
    missing = get_item_from_future(exe.submit(pair, 1), 7)
    with pytest.raises(IndexError):
        exe.submit(add, missing).result(30)


def test_a_failure_reaches_items_batches_and_what_takes_them(exe: SingleNodeExecutor) -> None:
    failed = exe.submit(fail)
    for future in (get_item_from_future(failed, 0), exe.batched([failed], 1)[0]):
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            exe.submit(add, future).result(30)


def test_batches_are_arguments_of_calls(exe: SingleNodeExecutor) -> None:
    batches = exe.batched([exe.submit(add, n) for n in range(7)], 3)
    sums = [exe.submit(sum, batch).result(30) for batch in batches]
    assert ([len(batch.result()) for batch in batches], sum(sums)) == ([3, 3, 1], 21)


def test_a_batch_is_there_before_slower_calls_have_ended(tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=3) as exe:
        slow = exe.submit(wait_for, tmp_path / "go")
        first, _ = exe.batched([slow, exe.submit(add, 1), exe.submit(add, 2)], 2)
        assert sorted(first.result(30)) == [1, 2]
        (tmp_path / "go").touch()


def wait_for(path: Path) -> int:
    while not path.exists():
        time.sleep(0.01)
    return 0


def test_asyncio_waits_for_calls(exe: SingleNodeExecutor) -> None:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*[exe.submit(add, n) for n in range(3)], exe.batched([exe.submit(add, 5)], 1)[0])

    assert asyncio.run(all_of_them()) == [0, 1, 2, [5]]


def test_without_dependencies_a_future_as_argument_is_refused(exe: SingleNodeExecutor) -> None:
    with SingleNodeExecutor(max_workers=1, disable_dependencies=True) as strict:
        future = exe.submit(add, 1)
        for argument in (future, [future], {"x": (future,)}, split_future(future, 1)[0]):
            with pytest.raises(ValueError, match="disable_dependencies=True: pass its result"):
                strict.submit(add, argument)
        assert strict.submit(add, 1, 2).result(30) == 3


def test_a_task_says_what_where_when_and_how_long() -> None:
    for kept in (False, True):
        with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
            before = time.time()
            future = exe.submit(identify)
            pid = future.result(30)
            task, after = future.task, time.time()
        assert (task.key, task.function, task.state, task.host) == ("t1", "identify", "done", socket.gethostname())
        assert (task.pid, task.worker, task.job) == (pid, 0 if kept else None, None)
        assert task.started is not None
        assert task.ended is not None
        assert before <= task.submitted <= task.started <= task.ended <= after
        assert task.duration_s == task.ended - task.started
        assert task.max_rss_bytes is not None
        assert 1_000_000 < task.max_rss_bytes < 10_000_000_000


def identify() -> int:
    time.sleep(0.01)
    return os.getpid()


def test_a_job_says_what_where_when_and_how_long(tmp_root: Path) -> None:
    with TestClusterExecutor(cache_directory=str(tmp_root), poll_s=0.2) as exe:
        future = exe.submit(identify)
        pid = future.result(60)
        task = future.task
    assert (task.function, task.state, task.host, task.pid) == ("identify", "done", socket.gethostname(), pid)
    assert task.job is not None
    assert task.duration_s is not None
    assert task.max_rss_bytes is not None
    assert task.duration_s > 0.005


def test_on_a_cluster_an_item_is_chosen_where_the_call_runs(tmp_root: Path) -> None:
    with TestClusterExecutor(cache_directory=str(tmp_root), poll_s=0.2) as exe:
        first, second = split_future(exe.submit(pair, 4), 2)
        total = exe.submit(add, first, get_item_from_future(second, "a"))
        missing = exe.submit(add, get_item_from_future(second, "b"))
        assert total.result(60) == 12
        with pytest.raises(KeyError, match="b"):
            missing.result(60)


def test_the_executor_tells_its_settings() -> None:
    with SingleNodeExecutor(max_workers=2, resource_dict={"threads_per_core": 3, "run_time_max": 60}) as exe:
        info = exe.info
    names = ("max_workers", "cores", "threads_per_core", "run_time_max", "block_allocation", "wait")
    assert {name: info[name] for name in names} == {
        "max_workers": 2,
        "cores": 1,
        "threads_per_core": 3,
        "run_time_max": 60,
        "block_allocation": False,
        "wait": True,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_workers": 0}, "max_workers must be greater than 0, not 0"),
        ({"max_cores": -1}, "max_cores must be greater than 0, not -1"),
        ({"init_function": dict}, "init_function needs block_allocation=True"),
        ({"refresh_rate": 0}, "refresh_rate must be a number greater than 0, not 0"),
        ({"plot_dependency_graph_filename": "g.gif"}, "plot_dependency_graph_filename must end in .svg or .png"),
        ({"plot_dependency_graph": True, "disable_dependencies": True}, "plot_dependency_graph and disable_dependenc"),
        ({"max_cores": 1, "resource_dict": {"threads_per_core": 2}}, "it could never start|none could start"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SingleNodeExecutor(**settings)


def test_settings_of_executorlib_are_taken(tmp_path: Path) -> None:
    with SingleNodeExecutor(
        max_workers=1,
        cache_directory=str(tmp_path),
        max_cores=None,
        resource_dict={"cores": 1},
        hostname_localhost=True,
        block_allocation=False,
        init_function=None,
        disable_dependencies=False,
        refresh_rate=0.05,
        plot_dependency_graph=False,
        plot_dependency_graph_filename=None,
        export_workflow_filename=None,
        log_obj_size=False,
        wait=False,
        openmpi_oversubscribe=True,
        restart_limit=1,
    ) as exe:
        future = exe.submit(add, 1, 2)
    assert future.result(30) == 3


# ---- debugging ----


def test_debugging_calls_in_the_caller_before_submit_returns() -> None:
    seen: list[Any] = []

    def note(value: list[int]) -> int:
        seen.append((os.getpid(), threading.current_thread().name))
        value.append(1)
        return len(value)

    given: list[int] = []
    with SingleNodeExecutor(debug=True) as exe:
        future = exe.submit(note, given)
        assert (future.done(), future.result()) == (True, 1)
        task = future.task
    assert seen == [(os.getpid(), threading.current_thread().name)]
    assert given == []  # arguments are copies, as in a worker
    assert (task.state, task.pid) == ("done", os.getpid())


def test_debugging_waits_for_futures_of_others() -> None:
    with concurrent.futures.ThreadPoolExecutor() as threads, SingleNodeExecutor(debug=True) as exe:
        assert exe.submit(add, threads.submit(identify), 0).result() == os.getpid()


def test_debugging_fails_like_the_call_with_its_own_traceback() -> None:
    with SingleNodeExecutor(debug=True) as exe:
        exc = exe.submit(fail).exception()
        ended = exe.submit(exit, 3).exception()
    assert isinstance(exc, ZeroDivisionError)
    assert exc.__traceback__ is not None
    assert isinstance(ended, SystemExit)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_debugging_is_ended_by_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), SingleNodeExecutor(debug=True) as exe:
        exe.submit(interrupt)


def test_debugging_works_where_the_call_is_to_work(tmp_path: Path) -> None:
    before = os.getcwd()
    with SingleNodeExecutor(debug=True, resource_dict={"cwd": str(tmp_path / "new")}) as exe:
        assert exe.submit(os.getcwd).result() == str(tmp_path / "new")
    assert os.getcwd() == before


def fail_as_told(argument: str) -> tuple[str, str, str]:
    if argument == "fail":
        raise ZeroDivisionError
    return os.environ["COLOUR"], os.environ["OMP_NUM_THREADS"], argument


def test_debugging_has_the_environment_and_the_error_log_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COLOUR", "red")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    log = tmp_path / "new" / "errors.txt"
    asked = {"environment": {"COLOUR": "blue"}, "threads_per_core": 3, "error_log_file": str(log)}
    with SingleNodeExecutor(max_cores=3, debug=True, resource_dict=asked) as exe:
        assert exe.submit(fail_as_told, "pass").result() == ("blue", "3", "pass")
        assert isinstance(exe.submit(fail_as_told, "fail").exception(), ZeroDivisionError)
        assert (os.environ["COLOUR"], "OMP_NUM_THREADS" in os.environ, caplog.messages) == ("red", False, [])
        for _ in range(2):
            exe.submit(fail_as_told, "pass", resource_dict={"run_time_max": 5, "memory_max": 1}).result()
    text = log.read_text()
    assert "fail_as_told" in text
    assert "args: ('fail',)" in text
    assert "ZeroDivisionError" in text
    assert "in_caller" not in text
    assert caplog.messages == [
        f"{what} has no effect: debug=True runs calls in this process" for what in ("memory_max=1", "run_time_max=5")
    ]


def test_debugging_fills_parameters_like_a_worker() -> None:
    with SingleNodeExecutor(debug=True, block_allocation=True, max_workers=1, init_function=initial) as exe:
        assert exe.submit(filled, 1).result() == (1, 5, 0)
        assert exe.submit(filled, 1, b=2).result() == (1, 2, 0)


def initial(executorlib_worker_id: int) -> dict[str, int]:
    return {"b": 5 + executorlib_worker_id, "other": 6}


def filled(a: int, b: int, executorlib_worker_id: int) -> tuple[int, int, int]:
    return a, b, executorlib_worker_id


@pytest.mark.parametrize("kept", [False, True])
def test_even_the_fastest_call_says_which_process_ran_it(kept: bool) -> None:
    pids = []
    for _ in range(20):
        with SingleNodeExecutor(1, block_allocation=kept) as executor:
            future = executor.submit(os.getpid)
            pids.append(future.result() == future.task.pid)
    assert pids == [True] * 20


def pid_in(path: str) -> int:
    Path(path).write_text(str(os.getpid()))
    time.sleep(0.5)
    return os.getpid()


@pytest.mark.parametrize("kept", [False, True])
def test_a_task_that_runs_is_known_with_its_process(kept: bool, tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
        for path in (tmp_path / "first", tmp_path / "second"):
            future = exe.submit(pid_in, str(path))
            waiting = exe.submit(add, 1)
            while not (path.exists() and path.read_text()) or future.task.pid is None:  # said in no fixed order
                time.sleep(0.01)
            info = future.task
            assert (info.state, info.host, info.worker) == ("running", socket.gethostname(), 0 if kept else None)
            assert (waiting.task.started, info.ended) == (None, None)
            assert info.pid == future.result(30)
            assert info.started is not None
            assert future.task.started is not None
            assert info.submitted - 0.01 < info.started <= future.task.started + 0.01
            assert waiting.result(30) == 1
