"""Objects that an executor shares: tasks receive them in the place of their handles, from one copy in memory."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import SingleNodeExecutor, TestClusterExecutor, errors
from remoteexec_server.wire import names
from tests.integration.pool_tools import both_modes, eventually, executor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="share needs Linux")
LENGTH = 1 << 20


def total(array: Any) -> float:
    return float(array.sum())


def total_of(nested: Any) -> float:
    return float(nested["in"][0].sum())


def write_to(array: Any) -> None:
    array[0] = 1


def write_to_all(arrays: Any) -> list[str]:
    said = []
    for array in arrays:
        try:
            array[0] = 1
        except ValueError as exc:
            said.append(str(exc))
    return said


def inode_of(array: Any) -> tuple[str | None, int]:
    """Of the file that the array's memory is, and the node in an allocation."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return os.environ.get(names.NODE), int(line.split()[4])
    raise AssertionError("the address is in no mapping")


def shared_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # closed since
            continue
    return [path for path in found if "remoteexec shared" in path]


def wait_for(path: str) -> Any:
    eventually(lambda: Path(path).exists(), 60)


def total_after(path: str, array: Any) -> float:
    wait_for(path)
    return total(array)


@both_modes
def test_tasks_receive_the_object_in_the_place_of_its_handle(kept: bool) -> None:
    with executor(kept) as exe:
        shared = exe.share(np.arange(LENGTH, dtype=float))
        plain = exe.share({"in": [np.ones(3)], "text": "x"})
        said = [
            exe.submit(total, shared).result(),
            exe.submit(total_of, {"in": [shared]}).result(),
            exe.submit(total_of, plain).result(),
            exe.submit(total, array=shared).result(),
        ]
    assert said == [LENGTH * (LENGTH - 1) / 2] * 2 + [3.0, LENGTH * (LENGTH - 1) / 2]


@both_modes
def test_a_future_and_a_handle_travel_together(kept: bool) -> None:
    with executor(kept) as exe:
        shared = exe.share(np.ones(LENGTH))
        one = exe.submit(total, shared)
        assert exe.submit(lambda a, b: a + b.sum(), one, shared).result() == 2 * LENGTH


@both_modes
def test_arrays_in_it_are_read_only_small_ones_and_those_with_gaps_too(kept: bool) -> None:
    with executor(kept) as exe:
        with pytest.raises(ValueError, match="read-only"):
            exe.submit(write_to, exe.share(np.zeros(LENGTH))).result()
        arrays = exe.share([np.zeros(3), np.zeros(LENGTH)[::2], np.zeros((20, 30)).T, np.zeros((9, 9, 9))[:, 1]])
        assert exe.submit(write_to_all, arrays).result() == ["assignment destination is read-only"] * 4


@both_modes
def test_all_workers_have_one_copy_and_equal_objects_are_one(kept: bool) -> None:
    with executor(kept, 4) as exe:
        first, again = exe.share(np.ones(LENGTH)), exe.share(np.ones(LENGTH))
        seen = {future.result() for future in [exe.submit(inode_of, handle) for handle in (first, again) * 4]}
        assert len(seen) == len({node for node, _ in seen})
        assert len(shared_files()) == 1
        first.release()
        assert exe.submit(total, again).result() == LENGTH


@both_modes
def test_its_memory_is_free_when_handle_and_tasks_are_gone(kept: bool, tmp_path: Path) -> None:
    with executor(kept) as exe:
        shared = exe.share(np.ones(LENGTH))
        future = exe.submit(total_after, str(tmp_path / "go"), shared)
        shared.release()
        assert len(shared_files()) == 1
        with pytest.raises(errors.CallNotPicklable, match="released"):
            exe.submit(total, shared)
        (tmp_path / "go").touch()
        assert future.result() == LENGTH
        eventually(lambda: not shared_files(), 60)
        shared = exe.share(np.ones(LENGTH))
        del shared
        gc.collect()
        assert shared_files() == []


def test_a_refused_call_keeps_nothing() -> None:
    with SingleNodeExecutor(1, disable_dependencies=True) as exe:
        shared = exe.share(np.ones(LENGTH))
        with pytest.raises(ValueError, match="disable_dependencies"):
            exe.submit(total_of, [shared, exe.submit(abs, -1)])
        shared.release()
        gc.collect()
        assert shared_files() == []


def test_after_shutdown_a_handle_is_of_no_use() -> None:
    exe = SingleNodeExecutor(1)
    shared = exe.share(np.ones(LENGTH))
    exe.shutdown()
    assert shared_files() == []
    with pytest.raises(RuntimeError, match="after shutdown"):
        exe.submit(total, shared)
    with pytest.raises(RuntimeError, match="shut down"):
        _ = shared.value
    with pytest.raises(RuntimeError, match="after shutdown"):
        exe.share(1)


def test_a_handle_elsewhere_is_refused_with_the_reason() -> None:
    with SingleNodeExecutor(1) as exe, SingleNodeExecutor(1) as other:
        shared = exe.share(np.ones(LENGTH))
        other.share(1)
        with pytest.raises(TypeError, match="pass its handle to submit"):
            pickle.dumps(shared)
        with pytest.raises(errors.CallNotPicklable, match="another executor's"):
            other.submit(total, shared)
        with pytest.raises(errors.CallNotPicklable, match="not inside the function"):
            exe.submit(lambda: shared)


def test_debug_gives_the_object_too() -> None:
    with SingleNodeExecutor(1, debug=True) as exe:
        assert exe.submit(total, exe.share(np.ones(LENGTH))).result() == LENGTH


def test_a_cached_call_with_a_handle_is_the_call_with_the_object(tmp_path: Path) -> None:
    def mark(array: Any, path: str) -> float:
        with open(path, "a") as file:
            file.write("ran\n")
        return float(array.sum())

    marks = str(tmp_path / "marks")
    array = np.ones(LENGTH)
    with SingleNodeExecutor(1, cache_directory=tmp_path / "cache") as exe:
        said = [exe.submit(mark, each, marks).result() for each in (array, exe.share(array), array)]
    assert (said, Path(marks).read_text()) == ([LENGTH] * 3, "ran\n")


def test_when_the_caller_is_killed_nothing_is_left(tmp_path: Path) -> None:
    script = f"""
import sys, time
import numpy as np
from remoteexec import {SingleNodeExecutor.__name__}
def hold(array, path):
    with open(path, "w") as file:
        file.write("x")
    time.sleep(600)
exe = {SingleNodeExecutor.__name__}(2)
shared = exe.share(np.ones(1 << 20))
[exe.submit(hold, shared, sys.argv[1] + str(n)) for n in range(2)]
time.sleep(600)
"""

    def holders() -> list[str]:
        return [str(maps) for maps in Path("/proc").glob("[0-9]*/maps") if _holds(maps)]

    before = set(holders())
    caller = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "at")])
    try:
        eventually(lambda: (tmp_path / "at0").exists() and (tmp_path / "at1").exists(), 60)
        assert len(set(holders()) - before) == 2
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    eventually(lambda: not set(holders()) - before, 60)


def _holds(maps: Path) -> bool:
    try:
        return "remoteexec shared" in maps.read_text()
    except OSError:  # it has ended, or is somebody else's
        return False


def test_where_memory_is_short_it_is_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from remoteexec_server import free_memory

    short: Callable[[], int] = lambda: 1000  # noqa: E731
    monkeypatch.setattr(free_memory, "available_bytes", short)
    with SingleNodeExecutor(1) as exe:
        assert exe.submit(total, exe.share(np.ones(LENGTH))).result() == LENGTH


def test_all_ranks_of_a_call_receive_it() -> None:
    pytest.importorskip("mpi4py")
    with SingleNodeExecutor(max_cores=2) as exe:
        shared = exe.share(np.ones(LENGTH))
        said: Any = exe.submit(total, shared, resource_dict={"cores": 2}).result()
    assert said == [LENGTH] * 2


def test_an_executor_of_a_cluster_says_what_to_do_instead(tmp_path: Path) -> None:
    with (
        TestClusterExecutor(cache_directory=tmp_path / "cache") as exe,
        pytest.raises(NotImplementedError, match="TestClusterExecutor cannot share objects: pass the object itself"),
    ):
        exe.share(1)
