"""What a call can do to itself: exceptions, pickling, crashes, hostile functions; and what its future then says."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import importlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import RemoteExecutor, errors
from remoteexec.config.model import ClusterConfig
from remoteexec.engine.outcomes import RemoteTraceback
from tests.clusters.embedded import EmbeddedTestCluster
from tests.integration.running import running


@pytest.fixture(scope="module")
def exe(embedded_config: ClusterConfig) -> Iterator[RemoteExecutor]:
    """One executor for the tests of this module: what one task does must not harm the next."""
    with running(embedded_config) as executor:
        yield executor
        assert executor.submit(sum, [1, 2]).result(20) == 3


def lost(future: concurrent.futures.Future[Any]) -> errors.TaskLost:
    """The loss that a future raises, of a task that the local scheduler ran on this machine."""
    exc = future.exception(30)
    assert isinstance(exc, errors.TaskLost), repr(exc)
    assert exc.job
    assert exc.node == os.uname().nodename
    assert exc.log_path is not None
    assert exc.log_tail == Path(exc.log_path).read_text().rstrip("\n")
    return exc


# ---- exceptions of the user's ----


class StrainError(ValueError):
    def __init__(self, element: str, strain: float) -> None:
        super().__init__(f"{element} breaks at {strain}")
        self.element, self.strain = element, strain


class OwnBaseException(BaseException):
    pass


def break_at(element: str, strain: float) -> None:
    raise StrainError(element, strain)


def raise_it(exc: BaseException) -> None:
    raise exc


def divide(a: float, b: float) -> float:
    return a / b


def test_an_exception_comes_back_as_itself_with_the_remote_traceback_as_its_cause(exe: RemoteExecutor) -> None:
    exc = exe.submit(divide, 1, 0).exception(20)
    assert (type(exc), str(exc)) == (ZeroDivisionError, "division by zero")
    assert exc is not None
    assert isinstance(exc.__cause__, RemoteTraceback)
    lines = exc.__cause__.text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith(", in divide")
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_an_exception_whose_init_takes_other_arguments_comes_back_as_itself(exe: RemoteExecutor) -> None:
    exc = exe.submit(break_at, "Ag", 1.5).exception(20)
    assert type(exc) is StrainError
    assert (exc.args, exc.element, exc.strain) == (("Ag breaks at 1.5",), "Ag", 1.5)


@pytest.mark.parametrize(
    "raised", [SystemExit(3), KeyboardInterrupt("no"), OwnBaseException("own"), GeneratorExit()], ids=lambda e: repr(e)
)
def test_what_is_no_exception_to_except_clauses_reaches_the_future(exe: RemoteExecutor, raised: BaseException) -> None:
    exc = exe.submit(raise_it, raised).exception(20)
    assert (type(exc), exc.args if exc else None) == (type(raised), raised.args)


def raise_what_only_the_cluster_has(directory: str) -> None:
    sys.path.insert(0, directory)
    raise importlib.import_module("only_there").OnlyThereError("too hot")


@pytest.mark.parametrize("installed", [True, False])
def test_an_exception_whose_class_exists_only_on_the_cluster_keeps_name_text_and_bases(
    exe: RemoteExecutor, embedded_cluster: EmbeddedTestCluster, installed: bool
) -> None:
    where = embedded_cluster.make_directory(f"only-{installed}")
    if installed:
        where = where / "site-packages"
        where.mkdir()
    (where / "only_there.py").write_text("class OnlyThereError(ArithmeticError):\n    pass\n")
    exc = exe.submit(raise_what_only_the_cluster_has, str(where)).exception(20)
    assert isinstance(exc, ArithmeticError)
    assert (type(exc).__qualname__, type(exc).__module__) == ("OnlyThereError", "only_there")
    assert isinstance(exc.__cause__, RemoteTraceback)
    assert exc.__cause__.text.splitlines()[-1] == "only_there.OnlyThereError: too hot"
    if installed:
        assert isinstance(exc, errors.RemoteTaskError)
        assert (exc.type_name, exc.text, str(exc)) == (
            "only_there.OnlyThereError",
            "too hot",
            "only_there.OnlyThereError: too hot",
        )
    else:
        assert exc.args == ("too hot",)


class UnpicklableError(LookupError):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def raise_unpicklable() -> None:
    raise UnpicklableError("not here")


def test_an_exception_that_cannot_be_pickled_comes_as_an_error_of_its_name_and_bases(exe: RemoteExecutor) -> None:
    exc = exe.submit(raise_unpicklable).exception(20)
    assert isinstance(exc, errors.RemoteTaskError)
    assert isinstance(exc, LookupError)
    assert (type(exc).__name__, exc.text) == ("UnpicklableError", "not here")
    assert exc.type_name.endswith(".UnpicklableError")
    assert isinstance(exc.__cause__, RemoteTraceback)
    assert exc.__cause__.text.splitlines()[-1].endswith("UnpicklableError: not here")


class BadTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def raise_without_text() -> None:
    raise BadTextError


def test_an_exception_that_has_no_text_still_comes(exe: RemoteExecutor) -> None:
    assert type(exe.submit(raise_without_text).exception(20)) is BadTextError


# ---- what cannot travel ----


def test_an_argument_that_cannot_be_pickled_is_named_by_submit(exe: RemoteExecutor) -> None:
    before = len(exe)
    with pytest.raises(errors.CallNotPicklable) as caught:
        exe.submit(divide, 1, [threading.Lock()])
    assert str(caught.value).startswith("argument 2 of 'divide', a builtins.list, cannot be pickled: ")
    with pytest.raises(errors.CallNotPicklable) as caught:
        exe.submit(divide, 1, b=threading.Lock())
    assert str(caught.value).startswith("argument 'b' of 'divide', a _thread.lock, cannot be pickled: ")
    assert len(exe) == before


def test_a_function_that_cannot_be_pickled_is_named_by_submit(exe: RemoteExecutor) -> None:
    lock = threading.Lock()

    def locked() -> bool:
        return lock.locked()

    with pytest.raises(errors.CallNotPicklable, match=r"function '.*locked' cannot be pickled: "):
        exe.submit(locked)
    with pytest.raises(errors.CallNotPicklable, match=r"function '.*locked' cannot be pickled: "):
        exe.map(locked)


def make_a_lock() -> Any:
    return threading.Lock()


def test_a_result_that_cannot_be_pickled_is_an_error_that_names_its_class(exe: RemoteExecutor) -> None:
    future = exe.submit(make_a_lock)
    exc = future.exception(20)
    assert isinstance(exc, errors.ResultNotPicklable)
    assert str(exc).startswith(f"task {exc.task} returned a _thread.lock that cannot be pickled: ")


def raise_on_load() -> None:
    raise RuntimeError("this cannot be loaded")


class FailsToLoad:
    def __reduce__(self) -> Any:
        return raise_on_load, ()


def make_fails_to_load() -> FailsToLoad:
    return FailsToLoad()


def test_a_result_that_cannot_be_loaded_here_is_an_error(exe: RemoteExecutor) -> None:
    exc = exe.submit(make_fails_to_load).exception(20)
    assert isinstance(exc, errors.RemoteTaskError)
    assert str(exc) == (f"the result of task {exc.task} cannot be loaded here: RuntimeError: this cannot be loaded")


def test_an_argument_that_cannot_be_loaded_there_is_an_error(exe: RemoteExecutor) -> None:
    exc = exe.submit(str, FailsToLoad()).exception(20)
    assert isinstance(exc, errors.RemoteTaskError)
    assert str(exc) == (
        f"the call of task {exc.task} cannot be loaded on the cluster: RuntimeError: this cannot be loaded"
    )


# ---- processes that end ----


def exit_at_once(code: int) -> None:
    print("about to leave", flush=True)
    os._exit(code)


@pytest.mark.parametrize("code", [0, 3])
def test_a_function_that_ends_its_process_is_lost_with_exit_code_and_log(exe: RemoteExecutor, code: int) -> None:
    exc = lost(exe.submit(exit_at_once, code))
    assert (type(exc), exc.reason, exc.exit_code, exc.signal) == (errors.TaskKilled, "killed", code, None)
    assert exc.log_tail == "about to leave"
    assert f"exit code {code}" in str(exc)


def segfault() -> None:
    print("deep in C", flush=True)
    ctypes.string_at(0)


def test_a_crash_in_compiled_code_is_lost_with_its_signal(exe: RemoteExecutor) -> None:
    exc = lost(exe.submit(segfault))
    assert (type(exc), exc.reason, exc.exit_code, exc.signal) == (
        errors.TaskKilled,
        "killed",
        None,
        int(signal.SIGSEGV),
    )
    assert "SIGSEGV" in str(exc)
    assert exc.log_tail.splitlines()[0] == "deep in C"


# ---- disks that are full ----


def make_large_with_small_files(megabytes: int) -> bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    return os.urandom(megabytes * 1_000_000)


def test_a_result_that_finds_no_room_is_lost_with_reason_store(exe: RemoteExecutor) -> None:
    exc = lost(exe.submit(make_large_with_small_files, 2))
    assert (type(exc), exc.reason, exc.exit_code, exc.signal) == (errors.TaskStoreUnreachable, "store", 74, None)
    assert "could not be written to the store" in str(exc)
    assert "File too large" in exc.log_tail


# ---- functions that do not behave ----


def close_standard_streams() -> str:
    for handle in (0, 1, 2):
        os.close(handle)
    return "deaf and dumb"


def close_everything() -> str:
    os.closerange(0, 1000)
    return "closed"


def replace_stdout() -> str:
    sys.stdout = sys.stderr = None
    return "none"


def go_elsewhere() -> str:
    os.chdir("/")
    os.umask(0)
    return os.getcwd()


def print_a_lot() -> int:
    line = "x" * 99
    for _ in range(200_000):
        print(line)
    return 200_000


def change_sys_modules() -> str:
    for name in ("h5py", "numpy", "json", "cloudpickle"):
        sys.modules.pop(name, None)
    return "forgotten"


def ignore_signals() -> str:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    return "ignored"


def leave_a_thread() -> str:
    threading.Thread(target=time.sleep, args=(60,)).start()
    return "left"


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (close_standard_streams, "deaf and dumb"),
        (close_everything, "closed"),
        (replace_stdout, "none"),
        (go_elsewhere, "/"),
        (print_a_lot, 200_000),
        (change_sys_modules, "forgotten"),
        (ignore_signals, "ignored"),
        (leave_a_thread, "left"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_function_may_spoil_its_process_and_its_result_still_comes(
    exe: RemoteExecutor, function: Any, result: Any
) -> None:
    assert exe.submit(function).result(30) == result


def come_back_twice(path: str) -> str:
    """Both processes return; the child last."""
    if os.fork() == 0:
        time.sleep(0.3)
        return "child"
    with contextlib.suppress(ChildProcessError):
        os.wait()
    Path(path).touch()
    return "parent"


def leave_a_child() -> str:
    if os.fork() == 0:
        time.sleep(1.0)
        return "child"
    return "parent"


def test_a_function_that_forks_and_returns_twice_has_one_result(exe: RemoteExecutor, tmp_path: Path) -> None:
    future = exe.submit(come_back_twice, str(tmp_path / "after-child"))
    assert future.result(20) == "parent"
    assert (tmp_path / "after-child").exists()
    assert exe.submit(leave_a_child).result(20) == "parent"


# ---- large and nested arguments ----


def double(array: Any) -> Any:
    return array * 2


def test_a_hundred_megabytes_go_there_and_back(exe: RemoteExecutor) -> None:
    array = np.arange(100 * (1 << 20) // 8, dtype=np.float64)
    result = exe.submit(double, array).result(60)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert np.array_equal(result, array * 2)


def test_an_array_may_be_changed_as_soon_as_submit_has_returned(exe: RemoteExecutor) -> None:
    array = np.ones(100_000)
    future = exe.submit(double, array)
    array[:] = 7
    assert future.result(20).tolist() == [2.0] * 100_000


@dataclass
class Pair:
    left: Any
    right: Any


def add(structure: Any) -> float:
    match structure:
        case Pair():
            return add(structure.left) + add(structure.right)
        case dict():
            return sum(map(add, structure.values()))
        case list() | tuple():
            return sum(map(add, structure))
    return float(structure)


def test_futures_stand_for_their_results_anywhere_in_the_arguments(exe: RemoteExecutor) -> None:
    one, two, three, four = (exe.submit(divide, n, 1) for n in (1, 2, 3, 4))
    nested = {"a": [one, (two, {"b": three})], "c": Pair(four, Pair(one, 10))}
    assert exe.submit(add, nested).result(20) == 1 + 2 + 3 + 4 + 1 + 10
    assert exe.submit(add, structure=[one, one, [one]]).result(20) == 3


# ---- futures of other executors ----


def give_late(delay_s: float, value: int) -> int:
    time.sleep(delay_s)
    return value


def test_futures_of_another_executor_are_waited_for_here(exe: RemoteExecutor) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as other:
        slow = other.submit(give_late, 0.2, 5)
        slower = other.submit(give_late, 0.4, 6)
        ours = exe.submit(divide, 8, 2)
        total = exe.submit(add, [slow, {"x": slower}, ours, Pair(slow, 1)])
        assert exe.submit(add, [total, 1]).result(20) == 5 + 6 + 4 + 5 + 1 + 1
        done = other.submit(int, 3)
        concurrent.futures.wait([done])
        assert exe.submit(add, [done]).result(20) == 3


def test_the_failure_of_another_executors_future_reaches_all_that_wait_for_it(exe: RemoteExecutor) -> None:
    def fail_late() -> None:
        time.sleep(0.2)
        raise StrainError("Cu", 2.0)

    with concurrent.futures.ThreadPoolExecutor(1) as other:
        failing = other.submit(fail_late)
        first = exe.submit(add, [failing])
        second = exe.submit(add, [first])
        assert [type(first.exception(20)), type(second.exception(20))] == [StrainError, StrainError]
        assert exe.submit(add, [failing]).exception(20) is failing.exception()


def test_a_cancelled_future_of_another_executor_fails_what_waits_for_it(exe: RemoteExecutor) -> None:
    other: concurrent.futures.Future[int] = concurrent.futures.Future()
    first = exe.submit(add, [other])
    second = exe.submit(add, [first])
    other.cancel()
    kinds = [type(future.exception(20)) for future in (first, second, exe.submit(add, [other]))]
    assert kinds == [concurrent.futures.CancelledError] * 3


def test_arguments_may_be_changed_while_another_executors_future_is_waited_for(exe: RemoteExecutor) -> None:
    other: concurrent.futures.Future[int] = concurrent.futures.Future()
    numbers, array = [1, 2, 3], np.ones(10_000)
    future = exe.submit(add, [other, numbers, array.sum(), Pair(other, 0)])
    doubled = exe.submit(lambda n, a: (n, float(a.sum())), other, array)
    numbers[:] = [100, 200, 300]
    array[:] = 7
    other.set_result(4)
    assert (future.result(20), doubled.result(20)) == (4 + 6 + 10_000 + 4, (4, 10_000.0))


def test_a_result_of_another_executor_that_cannot_travel_fails_what_waits_for_it(exe: RemoteExecutor) -> None:
    other: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future = exe.submit(add, [other])
    other.set_result(threading.Lock())
    exc = future.exception(20)
    assert isinstance(exc, errors.CallNotPicklable)
    assert str(exc).startswith("the result of another executor's future among the arguments cannot be pickled: ")
