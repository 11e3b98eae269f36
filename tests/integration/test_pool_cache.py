"""Caches with real processes: nothing runs twice, sessions and executors share, and two writers do no harm."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import SingleNodeExecutor, TestClusterExecutor, errors, get_cache_data
from remoteexec.engine.cache import CacheWarning

pytestmark = pytest.mark.usefixtures("process_mark")


def local(directory: Path, **settings: Any) -> SingleNodeExecutor:
    return SingleNodeExecutor(max_workers=2, cache_directory=str(directory), **settings)


def kept(directory: Path, **settings: Any) -> SingleNodeExecutor:
    return local(directory, block_allocation=True, **settings)


def noted(x: Any, file: str) -> Any:
    """Double x; each run leaves a line in the file."""
    with open(file, "a") as lines:
        lines.write(f"{x}\n")
    return 2 * x


def slow(x: Any, file: str) -> Any:
    time.sleep(0.3)
    return noted(x, file)


def refuse(file: str) -> None:
    noted("x", file)
    raise KeyError("no")


def runs(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "runs.txt"


@pytest.mark.parametrize("make", [local, kept])
def test_a_call_runs_once_in_all_executors_of_one_directory(
    make: Callable[..., SingleNodeExecutor], tmp_path: Path, log: Path
) -> None:
    with make(tmp_path / "cache") as exe:
        first = exe.submit(noted, 4, str(log)).result()
    with make(tmp_path / "cache") as exe:
        future = exe.submit(noted, x=4, file=str(log))
        assert (future.done(), exe._pool) == (True, None)  # no process was started
    assert (first, future.result(), runs(log)) == (8, 8, 1)


def test_local_and_file_based_executors_share_one_cache(tmp_path: Path, log: Path) -> None:
    array = np.arange(1000.0)
    with TestClusterExecutor(cache_directory=str(tmp_path / "cache")) as cluster:
        one = cluster.submit(noted, 3, str(log))
        two = cluster.submit(noted, one, str(log))
        three = cluster.submit(np.add, array, array)
        assert (two.result(), three.result()[-1]) == (12, 1998.0)
    with local(tmp_path / "cache") as exe:
        one = exe.submit(noted, 3, str(log))
        two = exe.submit(noted, one, str(log))
        three = exe.submit(np.add, array, array)
        four = exe.submit(noted, 5, str(log))
        assert [future.done() for future in (one, two, three)] == [True] * 3
        assert (two.result(), three.result()[-1], four.result()) == (12, 1998.0, 10)
    with TestClusterExecutor(cache_directory=str(tmp_path / "cache")) as cluster:
        assert cluster.submit(noted, 5, str(log)).done()
        assert list(cluster.map(noted, (3, 5, 6), [str(log)] * 3)) == [6, 10, 12]
    assert runs(log) == 4
    jobs = {
        Path(told["filename"]).stem.partition("-")[0]: told["queue_id"] for told in get_cache_data(tmp_path / "cache")
    }
    assert jobs["add"] is not None


def clustered(directory: Path, **settings: Any) -> TestClusterExecutor:
    return TestClusterExecutor(cache_directory=str(directory), **settings)


def seven() -> int:
    return 7


RANKS: list[dict[str, Any]] = [{"cores": 1}, {"cores": 2, "openmpi_oversubscribe": True}]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("make", [local, clustered])
def test_a_function_on_other_ranks_is_another_call_in_every_executor(
    make: Callable[..., Any], first: int, tmp_path: Path
) -> None:
    order = [RANKS[first], RANKS[1 - first]]
    with make(tmp_path / "cache") as exe:
        one, two = (exe.submit(seven, resource_dict=asked) for asked in order)  # the second while the first runs
        found = [one.result(), two.result()]
    assert found == ([7, [7, 7]] if first == 0 else [[7, 7], 7])
    for again in (local, clustered):
        with again(tmp_path / "cache") as exe:
            futures = [exe.submit(seven, resource_dict=asked) for asked in order]
            assert [future.done() for future in futures] == [True, True]  # equal keys for equal calls
            assert [future.result() for future in futures] == found


def variable() -> str | None:
    return os.environ.get("REMOTEEXEC_TEST_VARIABLE")


@pytest.mark.parametrize("make", [local, clustered])
def test_variables_that_a_call_names_are_part_of_it(make: Callable[..., Any], tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [{"environment": {"REMOTEEXEC_TEST_VARIABLE": value}} for value in "12"]
    with make(tmp_path / "cache") as exe:
        assert [exe.submit(variable, resource_dict=asked).result() for asked in (*given, {})] == ["1", "2", None]
    for again in (local, clustered):
        with again(tmp_path / "cache", resource_dict=given[1]) as exe:
            future = exe.submit(variable)
            assert (future.done(), future.result()) == (True, "2")


def test_a_call_of_a_cluster_is_shared_while_it_runs_and_stands_for_its_result(tmp_path: Path, log: Path) -> None:
    with TestClusterExecutor(cache_directory=str(tmp_path / "cache")) as exe:
        futures = [exe.submit(slow, 1, str(log)) for _ in range(3)]
        after = [exe.submit(noted, future, str(log)) for future in futures]
        assert ([f.result() for f in futures], [f.result() for f in after]) == ([2] * 3, [4] * 3)
    assert runs(log) == 2


@pytest.mark.parametrize("make", [local, kept])
def test_the_same_call_submitted_twice_while_it_runs_runs_once(
    make: Callable[..., SingleNodeExecutor], tmp_path: Path, log: Path
) -> None:
    with make(tmp_path / "cache") as exe:
        futures = [exe.submit(slow, 1, str(log)) for _ in range(5)]
        assert [future.result() for future in concurrent.futures.as_completed(futures)] == [2] * 5
    assert runs(log) == 1


@pytest.mark.parametrize("make", [local, kept])
def test_a_call_that_failed_runs_again_unless_errors_are_kept(
    make: Callable[..., SingleNodeExecutor], tmp_path: Path, log: Path
) -> None:
    for keep, so_far in ((False, 1), (True, 2), (True, 2), (False, 3)):
        with make(tmp_path / "cache", cache_errors=keep) as exe:
            exc = exe.submit(refuse, str(log)).exception()
        assert (type(exc), exc.args if exc else None, runs(log)) == (KeyError, ("no",), so_far)
        assert "in refuse" in str(exc.__cause__ if exc else "")


def die() -> None:
    os._exit(3)


def test_a_death_is_not_kept(tmp_path: Path) -> None:
    with local(tmp_path / "cache", cache_errors=True) as exe:
        assert exe.submit(die).exception() is not None
    assert get_cache_data(tmp_path / "cache") == []


def test_a_call_may_choose_its_directory_and_name(tmp_path: Path, log: Path) -> None:
    named = {"cache_directory": str(tmp_path / "cache"), "cache_key": "mine"}
    for make in (SingleNodeExecutor(max_workers=1), SingleNodeExecutor(max_workers=1, block_allocation=True)):
        with make as exe:
            future = exe.submit(noted, 1, str(log), resource_dict=named)
            assert (future.result(), future.cache_key) == (2, "mine")
            assert exe.submit(noted, 1, str(log)).cache_key is None
    assert (os.listdir(tmp_path / "cache" / "cache").count("mine.h5"), runs(log)) == (1, 3)


def test_futures_of_other_executors_are_looked_up_when_they_are_done(tmp_path: Path, log: Path) -> None:
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(1) as threads, local(tmp_path / "cache") as exe:
            other = threads.submit(slow, 1, os.devnull)
            future = exe.submit(noted, other, str(log))
            assert future.result() == 4
            assert future.cache_key is not None
    assert runs(log) == 1


def test_a_failed_input_fails_the_call_as_without_a_cache(tmp_path: Path, log: Path) -> None:
    with local(tmp_path / "cache", cache_errors=True) as exe:
        future = exe.submit(noted, exe.submit(refuse, str(log)), str(log))
        assert type(future.exception()) is KeyError
    assert [told["function"].__name__ for told in get_cache_data(tmp_path / "cache")] == ["refuse"]


def test_arguments_may_change_after_submit(tmp_path: Path) -> None:
    array = np.zeros(100_000)
    with local(tmp_path / "cache") as exe:
        futures = []
        for value in range(3):
            array[:] = value
            futures.append(exe.submit(np.sum, array))
        assert [future.result() for future in futures] == [0.0, 100_000.0, 200_000.0]
        array[:] = 1
        assert exe.submit(np.sum, array).result() == 100_000.0


def test_cancelled_calls_are_neither_run_nor_kept(tmp_path: Path, log: Path) -> None:
    with SingleNodeExecutor(max_workers=1, cache_directory=str(tmp_path / "cache")) as exe:
        first = exe.submit(slow, 1, str(log))
        second, third = exe.submit(noted, 2, str(log)), exe.submit(noted, 2, str(log))
        assert (second.cancel(), third.cancel(), first.result()) == (True, True, 2)
    assert (len(get_cache_data(tmp_path / "cache")), runs(log)) == (1, 1)


def test_what_shutdown_cancels_is_cancelled_when_it_returns(tmp_path: Path, log: Path) -> None:
    exe = SingleNodeExecutor(max_workers=1, cache_directory=str(tmp_path / "cache"))
    futures = [exe.submit(slow, n, str(log)) for n in range(4)]
    while not futures[0].running():
        time.sleep(0.01)
    exe.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False, True, True, True]
    assert futures[0].result() == 0


def test_shutdown_waits_until_everything_is_kept(tmp_path: Path) -> None:
    with kept(tmp_path / "cache") as exe:
        futures = [exe.submit(abs, -n) for n in range(200)]
    assert (all(future.done() for future in futures), len(get_cache_data(tmp_path / "cache"))) == (True, 200)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        exe.submit(abs, -1)  # although it is there


def test_a_damaged_entry_is_reported_and_made_again(tmp_path: Path, log: Path) -> None:
    for expected in (1, 2, 2):
        with local(tmp_path / "cache") as exe:
            if expected == 2 and runs(log) == 1:
                (entry,) = (tmp_path / "cache" / "cache").glob("*.h5")
                entry.write_bytes(entry.read_bytes()[:-3])
                with pytest.warns(CacheWarning, match="is not loaded, as if it were not there"):
                    future = exe.submit(noted, 1, str(log))
            else:
                future = exe.submit(noted, 1, str(log))
            assert (future.result(), runs(log)) == (2, expected)


SCRIPT = """
import sys
import dataclasses
from remoteexec import SingleNodeExecutor

@dataclasses.dataclass
class Point:
    x: float

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")

def shifted(p, by):
    with open("runs.txt", "a") as file:
        file.write("x")
    if by is None:
        raise Odd(1, 2)
    return Point(p.x + by)

if __name__ == "__main__":
    with SingleNodeExecutor(max_workers=2, cache_directory="cache", cache_errors=True) as exe:
        point = exe.submit(shifted, Point(1), 2).result()
        assert point == Point(3), point
        assert type(exe.submit(shifted, Point(1), None).exception()) is Odd
        further = exe.submit(shifted, point, by=1).result()
        print(further, len(open("runs.txt").read()))
"""


def test_a_script_finds_its_results_when_it_runs_again_also_after_a_comment(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = []
    for seed, text in (("1", SCRIPT), ("2", SCRIPT), ("3", SCRIPT.replace("def shifted", "# why\n\ndef shifted"))):
        (tmp_path / "script.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path, env={**environment, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said.append((done.stdout, done.stderr))
    assert said == [("Point(x=4) 3\n", "")] * 3


def test_two_processes_that_write_the_same_entries_do_no_harm(tmp_path: Path) -> None:
    code = (
        "import sys, operator\nfrom remoteexec import SingleNodeExecutor\n"
        "with SingleNodeExecutor(max_workers=1, block_allocation=True, cache_directory=sys.argv[1]) as exe:\n"
        "    print(sum(f.result() for f in [exe.submit(operator.add, n, 1) for n in range(100)]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path / "cache")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [process.communicate(timeout=60) for process in both] == [("5050\n", "")] * 2
    assert sorted(told["output"] for told in get_cache_data(tmp_path / "cache")) == list(range(1, 101))
    assert [name for name in os.listdir(tmp_path / "cache" / "cache") if name.startswith(".")] == []


def test_what_is_wrong_with_a_call_is_said_first_by_the_executor(tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=1, cache_directory=str(tmp_path)) as exe:
        for options in ({}, {"cache_key": "a"}):
            with pytest.raises(errors.CallNotPicklable):
                exe.submit(noted, threading.Lock(), resource_dict=options)


class Thing:
    """Something that can be watched."""


@pytest.mark.parametrize("make", [local, kept])
def test_neither_arguments_nor_results_are_held(make: Callable[..., SingleNodeExecutor], tmp_path: Path) -> None:
    with make(tmp_path / "cache") as exe:
        given = Thing()
        future = exe.submit(copy.copy, given)
        watched = [weakref.ref(given), weakref.ref(future.result(10))]
        exe._caching.wait()
        gc.disable()
        try:
            del given, future
            deadline = time.monotonic() + 5
            while any(each() for each in watched) and time.monotonic() < deadline:
                time.sleep(0.01)  # a thread may be just letting go
            assert [each() for each in watched] == [None, None]
        finally:
            gc.enable()


def test_an_executor_without_a_cache_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SingleNodeExecutor(max_workers=1) as exe:
        assert exe.submit(abs, -1).result() == 1
    assert os.listdir(tmp_path) == []


ALTERED = """
import sys
from remoteexec import SingleNodeExecutor
import constant_of_mine

def half_more(x):
    return x + 0.5

if __name__ == "__main__":
    constant_of_mine.CONST = 5
    with SingleNodeExecutor(1, cache_directory=sys.argv[1]) as exe:
        one = exe.submit(constant_of_mine.f, 1)
        print(exe.submit(half_more, one).result(), exe.submit(half_more, one).result())
    with SingleNodeExecutor(1, cache_directory=sys.argv[1]) as exe:
        again = exe.submit(half_more, exe.submit(constant_of_mine.f, 1))
        again.result()
        print(again.task.pid is None)
"""


def test_what_is_computed_from_a_result_of_other_code_is_not_kept_either(tmp_path: Path) -> None:
    (tmp_path / "constant_of_mine.py").write_text("CONST = 1\ndef f(x): return x * CONST\n")
    (tmp_path / "script.py").write_text(ALTERED)
    argv = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), str(tmp_path / "cache")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.returncode) == ("1.5 1.5\nFalse\n", 0), done.stderr
