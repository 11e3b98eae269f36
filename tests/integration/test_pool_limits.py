"""What is promised is kept: sizes, GPUs, files, and that nothing waits for ever."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor, current_executor, errors
from tests.integration.pool_tools import add_one, both_modes, executor

pytestmark = pytest.mark.usefixtures("process_mark")


def run(script: str, *python: str, expect: int = 0, **environment: str) -> str:
    """What a script prints that runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, *python, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


# ---- tasks that wait for tasks in their own way ----


def through_threads() -> list[int]:
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda n: current_executor().submit(add_one, n).result(), range(8)))


def through_wrap_future() -> list[int]:
    async def wait() -> list[int]:
        return await asyncio.gather(*[asyncio.wrap_future(current_executor().submit(add_one, n)) for n in range(3)])

    return asyncio.run(wait())


def through_run_in_executor() -> int:
    async def wait() -> int:
        return await asyncio.get_running_loop().run_in_executor(current_executor(), add_one, 1)

    return asyncio.run(wait())


def through_a_callback() -> bool:
    told = threading.Event()
    current_executor().submit(add_one, 1).add_done_callback(lambda _: told.set())
    return told.wait(20)


@both_modes
@pytest.mark.parametrize(
    ("wait", "result"),
    [
        (through_threads, list(range(1, 9))),
        (through_wrap_future, [1, 2, 3]),
        (through_run_in_executor, 2),
        (through_a_callback, True),
    ],
)
def test_a_task_may_wait_in_any_way_on_a_single_worker(kept: bool, wait: Callable[[], Any], result: Any) -> None:
    with executor(kept, workers=1) as exe:
        assert (exe.submit(wait).result(20), exe.submit(wait).result(20)) == (result, result)
        assert exe.submit(add_one, 1).result(20) == 2


def when() -> float:
    return time.time()


def submit_and_compute(seconds: float) -> tuple[float, float]:
    """When it ended, and when what it had submitted ran."""
    child = current_executor().submit(when)
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return time.time(), child.result()


@both_modes
def test_a_task_that_computes_keeps_its_place_from_its_children(kept: bool) -> None:
    with executor(kept, workers=1) as exe:
        ended, child_ran = exe.submit(submit_and_compute, 0.8).result(60)
    assert ended < child_ran


# ---- files ----

DEEP = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
    from remoteexec import SingleNodeExecutor, current_executor

    def down(n):
        return current_executor().submit(down, n - 1).result() + 1 if n else 0

    with SingleNodeExecutor(1, block_allocation={kept}) as exe:
        print(exe.submit(down, 200).exception(90))
        print(exe.submit(down, 3).result(20))
"""


@both_modes
def test_a_recursion_beyond_the_open_file_limit_fails_and_says_so(kept: bool) -> None:
    said, after = run(DEEP.format(kept=kept)).splitlines()
    assert "open files than the 90 that this process may have (`ulimit -n`): raise that limit, or let tasks" in said
    assert after == "3"


# ---- the number of workers, and GPUs ----


def timed(seconds: float) -> tuple[float, float, str | None]:
    began = time.time()
    time.sleep(seconds)
    return began, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES")


def most_at_once(runs: Sequence[tuple[float, float, str | None]]) -> int:
    at_once = most = 0
    for _, change in sorted([(began, 1) for began, _, _ in runs] + [(ended, -1) for _, ended, _ in runs]):
        at_once += change
        most = max(most, at_once)
    return most


def test_fewer_and_more_workers_again_never_run_more_than_there_are_to_be() -> None:
    with executor(True, workers=2) as exe:
        futures = [exe.submit(timed, 0.2) for _ in range(12)]
        time.sleep(0.1)
        for size in (1, 4, 1, 2, 1, 2):
            exe.max_workers = size
        assert most_at_once([future.result(20) for future in futures]) == 2


def test_fewer_workers_wait_for_those_that_run() -> None:
    with executor(True, workers=4) as exe:
        futures = [exe.submit(timed, 0.3) for _ in range(12)]
        time.sleep(0.15)
        exe.max_workers = 1
        changed = time.time()
        runs = [future.result(20) for future in futures]
    assert most_at_once([run for run in runs if run[0] > changed]) == 1


def test_max_cores_holds_for_workers_that_are_added() -> None:
    with SingleNodeExecutor(1, max_cores=2, block_allocation=True) as exe:
        exe.submit(add_one, 1).result(20)
        exe.max_workers = 6
        assert most_at_once([future.result(20) for future in [exe.submit(timed, 0.2) for _ in range(8)]]) == 2


def test_max_workers_says_what_max_cores_leaves_of_it() -> None:
    with SingleNodeExecutor(max_workers=2, max_cores=1, block_allocation=True) as exe:
        assert (exe.max_workers, exe.info["max_workers"]) == (1, 1)
        exe.max_workers = 5
        assert exe.max_workers == 1


def test_workers_never_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with executor(True, workers=2, resource_dict={"gpus_per_core": 1}) as exe:
        futures = [exe.submit(timed, 0.2) for _ in range(8)]
        with pytest.raises(ValueError, match="4 workers with gpus_per_core=1 take 4 GPUs, and 2 are known here"):
            exe.max_workers = 4
        assert exe.max_workers == 2
        time.sleep(0.1)
        for size in (1, 2, 1, 2):
            exe.max_workers = size
        runs = [future.result(20) for future in futures]
    by_gpu = {gpu: most_at_once([run for run in runs if run[2] == gpu]) for gpu in ("4", "5")}
    assert by_gpu == {"4": 1, "5": 1}


def test_a_worker_whose_tasks_come_back_before_it_reads_them_is_not_forgotten() -> None:
    with executor(True, workers=2) as exe:
        for _ in range(30):
            for future in [exe.submit(time.sleep, 0.005) for _ in range(4)]:
                future.result(20)
        assert most_at_once([future.result(20) for future in [exe.submit(timed, 0.2) for _ in range(4)]]) == 2


def test_more_ranks_than_the_machine_has_cores_are_refused_unless_they_may_share() -> None:
    cores = len(os.sched_getaffinity(0))
    wanted = {"cores": cores + 1}
    with SingleNodeExecutor(1) as exe:
        with pytest.raises(ValueError, match=f"cores={cores + 1}, and this machine has {cores}: ask for fewer, or say"):
            exe.submit(add_one, 1, resource_dict=wanted)
    with SingleNodeExecutor(1, resource_dict={**wanted, "openmpi_oversubscribe": True}) as exe:
        assert exe.info["cores"] == cores + 1


# ---- ends ----


@both_modes
def test_a_callback_that_exits_ends_no_thread_of_ours(kept: bool) -> None:
    with executor(kept, workers=1) as exe:
        exe.submit(add_one, 1).add_done_callback(lambda _: sys.exit(3))
        assert exe.submit(add_one, 2).result(20) == 3


def callback_exits() -> int:
    first = current_executor().submit(add_one, 1)
    first.add_done_callback(lambda _: sys.exit(3))
    return first.result() + current_executor().submit(add_one, 2).result()


@both_modes
def test_a_callback_that_exits_in_a_task_ends_no_thread_there(kept: bool) -> None:
    with executor(kept, workers=1) as exe:
        assert exe.submit(callback_exits).result(20) == 5


@both_modes
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is meant
def test_shutdown_returns_when_the_pool_has_failed(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with executor(kept, workers=1) as exe:
        running = exe.submit(time.sleep, 20)
        time.sleep(0.2)
        assert exe._pool is not None

        def fail() -> None:
            raise SystemExit(3)

        exe._pool.post(fail)
        with pytest.raises(errors.TaskKilled, match="the pool failed: SystemExit"):
            running.result(20)
        with pytest.raises(errors.TaskKilled, match="the pool failed: SystemExit"):
            exe.submit(add_one, 1).result(20)


@both_modes
def test_a_fork_that_exits_leaves_the_block_at_once(kept: bool) -> None:
    script = f"""
        import os, sys, time
        from remoteexec import SingleNodeExecutor

        with SingleNodeExecutor(1, block_allocation={kept}) as exe:
            future = exe.submit(time.sleep, 1)
            child = os.fork()
            if child == 0:
                sys.exit(5)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), future.done(), future.result())
    """
    assert run(script) == "5 False None\n"


def exits() -> None:
    os._exit(3)


def test_an_init_function_that_ends_its_process_is_named() -> None:
    with executor(True, workers=1, init_function=exits, restart_limit=1) as exe:
        with pytest.raises(errors.TaskKilled) as caught:
            exe.submit(add_one, 1).result(20)
    assert str(caught.value) == (
        "task t1 cannot run: its last worker ended itself with exit code 3 while `init_function` ran, and none is left "
        "to replace it: `restart_limit` was 1"
    )


@both_modes
def test_a_cwd_that_is_a_file_is_said_to_be_one(kept: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with executor(kept, workers=1, resource_dict={"cwd": str(file)}) as exe:
        with pytest.raises(NotADirectoryError, match="is a file, not a directory; name another"):
            exe.submit(add_one, 1).result(20)


# ---- what a task leaves behind, and what it finds ----


def close_output(how: str) -> None:
    if how == "object":
        sys.stdout.close()
    elif how == "file":
        os.close(1)
    else:
        sys.stdout = None


@pytest.mark.parametrize("how", ["object", "file", "nothing"])
def test_a_worker_prints_again_after_a_task_has_closed_its_output(how: str) -> None:
    with executor(True, workers=1, show_output=False) as exe:
        exe.submit(close_output, how).result(20)
        future = exe.submit(print, "still here")
        future.result(20)
    assert future.task.output == "still here\n"


def test_functions_of_a_script_reach_forks_that_a_task_makes() -> None:
    script = """
        import multiprocessing
        from remoteexec import SingleNodeExecutor

        def square(x):
            return x * x

        def squares(n):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(square, range(n))

        for kept in (False, True):
            with SingleNodeExecutor(1, block_allocation=kept) as exe:
                print(exe.submit(squares, 3).result(20), exe.submit(squares, 4).result(20))
    """
    assert run(script) == "[0, 1, 4] [0, 1, 4, 9]\n" * 2


@both_modes
def test_what_macos_lacks_is_not_needed(kept: bool, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, select\n"
        "for module, name in ((os, 'sched_getaffinity'), (os, 'pipe2'), (os, 'waitid'), (select, 'epoll')):\n"
        "    delattr(module, name)\n"
    )
    script = f"""
        import os
        from remoteexec import SingleNodeExecutor, errors

        with SingleNodeExecutor(block_allocation={kept}, restart_limit=1) as exe:
            print(exe.submit(pow, 2, 3).result(20), hasattr(os, "pipe2"), exe.submit(hasattr, os, "waitid").result(20))
            print(type(exe.submit(os._exit, 3).exception(20)).__name__, exe.submit(pow, 2, 4).result(20))
    """
    path = os.pathsep.join([str(tmp_path), *[place for place in sys.path if place]])
    assert run(script, PYTHONPATH=path) == "8 False False\nTaskKilled 16\n"
