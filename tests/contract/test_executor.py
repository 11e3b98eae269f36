"""The contract of concurrent.futures.Executor, kept by every executor of ours.

Run for an executor over threads of this process (the same engine, a fake service), and for real ones. As root the
SlurmClusterExecutor is tried in a process of the cluster's user: this file once more, told so by the environment.
"""

from __future__ import annotations

import concurrent.futures
import gc
import inspect
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remoteexec import (
    FluxClusterExecutor,
    RemoteExecutor,
    ResourceError,
    SingleNodeExecutor,
    SlurmClusterExecutor,
    TestClusterExecutor,
    errors,
    split_future,
)
from remoteexec.executors.base import BaseExecutor
from remoteexec.executors.batch import BatchExecutor
from tests.clusters.rootless import SlurmCluster
from tests.contract.login_node import LOGIN_NODE, run_there
from tests.integration.conftest import installed
from tests.unit.fake_service import ThreadService

WAIT_S = 60.0
pytestmark = pytest.mark.timeout(180)


@dataclass
class Place:
    """Makes executors of one kind.

    Attributes:
        directory: where tasks and the test can both read and write.
    """

    make: Callable[[], BaseExecutor]
    directory: Path
    _made: list[BaseExecutor] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def new(self) -> BaseExecutor:
        """An executor of the test's own."""
        self._made.append(self.make())
        return self._made[-1]

    def path(self) -> Path:
        """Of a file that is not there yet."""
        return self.directory / f"file-{next(self._numbers)}"

    def close(self) -> None:
        for executor in self._made:
            executor.shutdown(cancel_futures=True)


KINDS = (
    ["SlurmClusterExecutor"]
    if LOGIN_NODE in os.environ
    else [
        "threads",
        "SingleNodeExecutor, fresh",
        "SingleNodeExecutor, kept",
        "TestClusterExecutor",
        "TestClusterExecutor, pilots",
        "RemoteExecutor, local scheduler",
        pytest.param("RemoteExecutor, SLURM", marks=pytest.mark.slurm),
        pytest.param("FluxClusterExecutor", marks=pytest.mark.flux),
    ]
)


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    shared = tmp_path_factory.mktemp("shared")
    match request.param:
        case "threads":
            place = Place(lambda: BatchExecutor(ThreadService), shared)
        case "SingleNodeExecutor, fresh":
            place = Place(SingleNodeExecutor, shared)
        case "SingleNodeExecutor, kept":
            place = Place(lambda: SingleNodeExecutor(block_allocation=True), shared)
        case "TestClusterExecutor":
            root = tmp_path_factory.mktemp("a'; echo b ü", numbered=False) / "root"
            place = Place(lambda: TestClusterExecutor(cache_directory=str(root)), shared)
        case "TestClusterExecutor, pilots":
            root = tmp_path_factory.mktemp("pilots") / "root"
            few: dict[str, Any] = {"block_allocation": True, "max_workers": 2, "idle_time_s": 0.2}
            place = Place(lambda: TestClusterExecutor(cache_directory=str(root), **few), shared)
        case "RemoteExecutor, local scheduler":
            embedded = request.getfixturevalue("embedded_cluster")
            near = installed(embedded, "contract")
            place = Place(lambda: RemoteExecutor(near), shared)
        case "RemoteExecutor, SLURM":
            cluster = request.getfixturevalue("slurm_cluster")
            far = installed(cluster, "contract")
            place = Place(lambda: RemoteExecutor(far), cluster.make_directory("contract"))
        case "FluxClusterExecutor":
            instance = request.getfixturevalue("flux_instance")
            there = instance.new_root("a'; echo b ü")
            place = Place(lambda: FluxClusterExecutor(cache_directory=there, poll_s=1.0), shared)
        case _:
            home = Path(os.environ[LOGIN_NODE])
            options = {"cache_directory": str(home / "root"), "poll_s": 1.0}
            place = Place(lambda: SlurmClusterExecutor(**options), home)  # type: ignore[arg-type]
    yield place
    place.close()


@pytest.fixture(scope="module")
def executor(place: Place) -> BaseExecutor:
    """For tests that do not shut it down."""
    return place.new()


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def fail(text: str) -> None:
    raise ValueError(text)


def reciprocal(x: int) -> float:
    return 1 / x


def wait_for(path: Path) -> str:
    """Runs until the test writes the file."""
    while not path.exists() or not path.read_text():
        time.sleep(0.02)
    return path.read_text()


class Thing:
    """Something that can be watched."""


@pytest.fixture
def never() -> Iterator[Future[Any]]:
    """A future of another executor, which holds back what takes its result until the test ends."""
    future: Future[Any] = Future()
    yield future
    if not future.done():
        future.set_result(None)


# ---- submit ----


def test_submit_gives_a_future_of_the_result(executor: BaseExecutor) -> None:
    future = executor.submit(pow, 2, 5)

    assert isinstance(future, Future)
    assert (future.result(WAIT_S), future.done(), future.running(), future.exception()) == (32, True, False, None)


def test_every_argument_name_is_the_functions_own(executor: BaseExecutor) -> None:
    assert executor.submit(capture, 1, self=2, fn=3).result(WAIT_S) == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(fn=capture)  # type: ignore[call-arg]


def test_builtins_without_a_signature_can_be_called(executor: BaseExecutor) -> None:
    futures = [executor.submit(max, [3, 5]), executor.submit(dict, a=1), executor.submit(time.sleep, 0)]

    assert [future.result(WAIT_S) for future in futures] == [5, {"a": 1}, None]


def test_lambdas_closures_and_methods_can_be_called(executor: BaseExecutor) -> None:
    factor = 3

    class Local:
        def times(self, x: int) -> int:
            return factor * x

    futures = [executor.submit(lambda x: factor * x, 2), executor.submit(Local().times, 2)]
    assert [future.result(WAIT_S) for future in futures] == [6, 6]
    assert executor.submit("a-b".split, "-").result(WAIT_S) == ["a", "b"]


def test_an_exception_comes_back_as_itself_with_its_remote_traceback(executor: BaseExecutor) -> None:
    class Own(LookupError):
        pass

    def lookup() -> None:
        raise Own("where", 3)

    exc = executor.submit(lookup).exception(WAIT_S)

    assert isinstance(exc, LookupError)
    assert (type(exc).__name__, exc.args) == ("Own", ("where", 3))
    assert "in lookup" in str(exc.__cause__)
    with pytest.raises(ZeroDivisionError):
        executor.submit(reciprocal, 0).result(WAIT_S)


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_exception_that_would_end_a_process_is_one_like_any_other(
    executor: BaseExecutor, exc: BaseException
) -> None:
    def leave() -> None:
        raise exc

    got = executor.submit(leave).exception(WAIT_S)

    assert (type(got), got and got.args) == (type(exc), exc.args)


def test_what_cannot_be_pickled_is_refused_by_submit_itself(executor: BaseExecutor) -> None:
    nested: list[Any] = []
    for _ in range(2 * sys.getrecursionlimit()):
        nested = [nested]

    with pytest.raises(errors.CallNotPicklable, match=r"argument 1 of 'capture', a _thread\.lock"):
        executor.submit(capture, threading.Lock())
    with pytest.raises(errors.CallNotPicklable, match=r"argument 'k' of 'capture', a builtins\.list"):
        executor.submit(capture, k=nested)
    assert executor.submit(capture).result(WAIT_S) == ((), {})


def test_a_result_that_cannot_be_pickled_fails_its_future_alone(executor: BaseExecutor) -> None:
    with pytest.raises(errors.ResultNotPicklable, match="lock"):
        executor.submit(threading.Lock).result(WAIT_S)


def test_a_function_with_our_own_parameter_is_refused(executor: BaseExecutor) -> None:
    def takes(resource_dict: dict[str, int]) -> None: ...

    with pytest.raises(ValueError, match="rename the parameter"):
        executor.submit(takes, {})


def test_resources_of_one_call_are_read_and_the_callers_dict_is_left_alone(executor: BaseExecutor) -> None:
    wanted: dict[str, Any] = {"run_time_max": 20}
    if isinstance(executor, SingleNodeExecutor) and executor.info["block_allocation"]:
        with pytest.raises(ValueError, match=r"run_time_max.* run with the executor's resources"):
            executor.submit(capture, 1, resource_dict=wanted)
        return
    future = executor.submit(capture, 1, resource_dict=wanted)
    wanted["run_time_max"] = -1

    with pytest.raises(ResourceError, match="run_time_max=-1"):
        executor.submit(capture, resource_dict=wanted)
    assert (future.result(WAIT_S), wanted) == (((1,), {}), {"run_time_max": -1})


def test_calls_may_come_from_many_threads(executor: BaseExecutor) -> None:
    with ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(lambda n: executor.submit(abs, -n), range(16)))

    assert [future.result(WAIT_S) for future in futures] == list(range(16))


# ---- map ----


def test_map_gives_results_in_the_order_of_its_arguments(executor: BaseExecutor) -> None:
    assert list(executor.map(pow, range(10), itertools.repeat(2))) == [n * n for n in range(10)]
    assert list(executor.map(pow, [], [1])) == []
    assert list(executor.map(capture, "ab", chunksize=5)) == [(("a",), {}), (("b",), {})]


def test_map_raises_where_the_call_failed(executor: BaseExecutor) -> None:
    results = executor.map(reciprocal, [1, 2, 0, 4])

    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_gives_up_after_its_timeout(executor: BaseExecutor, place: Place) -> None:
    path = place.path()
    results = executor.map(wait_for, [path], timeout=0.1)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    path.write_text("go")


def test_map_may_take_arguments_from_results_of_its_own_executor(executor: BaseExecutor) -> None:
    futures = [executor.submit(abs, -n) for n in range(3)]

    results = executor.map(abs, (future.result(WAIT_S) for future in futures))

    assert list(results) == [0, 1, 2]


@pytest.mark.skipif(
    "buffersize" not in inspect.signature(concurrent.futures.Executor.map).parameters, reason="Python < 3.14"
)
def test_map_with_a_buffer_gives_every_result(executor: BaseExecutor) -> None:
    few: dict[str, Any] = {"buffersize": 2}
    assert list(executor.map(abs, range(5), **few)) == list(range(5))


# ---- waiting ----


def test_a_result_can_be_waited_for_with_a_timeout(executor: BaseExecutor, never: Future[Any]) -> None:
    future = executor.submit(capture, never)

    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(0.05)
    assert future.cancel()


def test_as_completed_gives_each_future_when_it_is_done(
    executor: BaseExecutor, place: Place, never: Future[Any]
) -> None:
    path = place.path()
    slow, quick = executor.submit(wait_for, path), executor.submit(abs, -1)
    done = concurrent.futures.as_completed([slow, quick], WAIT_S)

    assert next(done) is quick
    path.write_text("go")
    assert [next(done), slow.result()] == [slow, "go"]


def test_items_of_a_result_come_with_as_completed_and_wait_and_a_callback_gets_the_item(
    executor: BaseExecutor, place: Place
) -> None:
    path = place.path()
    slow = split_future(executor.submit(lambda x: (x, -1), executor.submit(wait_for, path)), 2)
    quick, failing = split_future(executor.submit(divmod, 7, 2), 2), split_future(executor.submit(fail, "no"), 1)
    seen: list[Any] = []
    quick[0].add_done_callback(seen.append)
    total = executor.submit(sum, [*quick, slow[1]])
    ended = concurrent.futures.wait([*quick, *failing, slow[0]], WAIT_S, concurrent.futures.FIRST_EXCEPTION)

    assert (failing[0] in ended.done, slow[0] in ended.not_done) == (True, True)
    assert {item.result(0) for item in concurrent.futures.as_completed(quick, WAIT_S)} == {3, 1}
    assert seen == [quick[0]]
    path.write_text("go")
    assert concurrent.futures.wait([*slow, total], WAIT_S).not_done == set()
    assert ([item.result(0) for item in slow], total.result(0)) == (["go", -1], 3)


def test_wait_returns_with_the_first_or_the_first_that_failed(executor: BaseExecutor, never: Future[Any]) -> None:
    held, quick = executor.submit(capture, never), executor.submit(abs, -1)
    first = concurrent.futures.wait([held, quick], WAIT_S, concurrent.futures.FIRST_COMPLETED)
    assert (first.done, first.not_done) == ({quick}, {held})

    failing = executor.submit(fail, "no")
    second = concurrent.futures.wait([held, quick, failing], WAIT_S, concurrent.futures.FIRST_EXCEPTION)
    assert (second.done, second.not_done) == ({quick, failing}, {held})
    assert held.cancel()
    assert concurrent.futures.wait([held], WAIT_S).done == {held}


def test_callbacks_are_called_once_with_their_future_even_if_one_fails(
    executor: BaseExecutor, never: Future[Any], caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Future[Any]] = []
    everything = threading.Semaphore(0)

    def note(future: Future[Any]) -> None:
        called.append(future)
        everything.release()

    def broken(future: Future[Any]) -> None:
        raise RuntimeError("a callback's own fault")

    ends = [executor.submit(abs, -1), executor.submit(fail, "no"), executor.submit(capture, never)]
    for future in ends:
        future.add_done_callback(broken)
        future.add_done_callback(note)
    assert ends[2].cancel()
    for _ in ends:
        assert everything.acquire(timeout=WAIT_S)
    ends[0].add_done_callback(note)  # done already: called at once

    assert sorted(map(id, called)) == sorted(map(id, [*ends, ends[0]]))
    assert executor.submit(abs, -2).result(WAIT_S) == 2


def test_a_callback_may_submit(executor: BaseExecutor) -> None:
    chained: Future[Any] = Future()

    def follow(future: Future[int]) -> None:
        executor.submit(abs, -future.result()).add_done_callback(lambda f: chained.set_result(f.result()))

    executor.submit(abs, -3).add_done_callback(follow)

    assert chained.result(WAIT_S) == 3


# ---- futures as arguments ----


def test_futures_anywhere_in_the_arguments_stand_for_their_results(executor: BaseExecutor) -> None:
    one, two = executor.submit(abs, -1), executor.submit(abs, -2)
    future = executor.submit(capture, one, [two, {"x": (one, [two])}], k={"y": one})

    assert future.result(WAIT_S) == ((1, [2, {"x": (1, [2])}]), {"k": {"y": 1}})


def test_a_chain_of_futures_is_computed_in_order(executor: BaseExecutor) -> None:
    future = executor.submit(abs, -1)
    for _ in range(3):
        future = executor.submit(sum, [future, future])

    assert future.result(WAIT_S) == 8


def test_a_failure_reaches_what_takes_its_result(executor: BaseExecutor) -> None:
    first = executor.submit(fail, "no")
    second = executor.submit(capture, [first])
    third = executor.submit(capture, second)

    assert str(third.exception(WAIT_S)) == "no"
    assert second.exception() is first.exception() is third.exception()


def test_futures_of_other_executors_are_waited_for(executor: BaseExecutor) -> None:
    go = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        ready = threads.submit(abs, -1)
        late = threads.submit(go.wait, WAIT_S)
        failed = threads.submit(fail, "over there")
        sums = [executor.submit(capture, ready, [late]), executor.submit(capture, failed)]
        go.set()

        assert sums[0].result(WAIT_S) == ((1, [True]), {})
        assert str(sums[1].exception(WAIT_S)) == "over there"


def test_futures_of_another_executor_of_the_same_kind_are_waited_for(place: Place, executor: BaseExecutor) -> None:
    with place.new() as other:
        assert executor.submit(sum, [other.submit(abs, -1), executor.submit(abs, -2)]).result(WAIT_S) == 3


# ---- cancelling and running ----


def test_a_future_that_has_not_started_can_be_cancelled(executor: BaseExecutor, never: Future[Any]) -> None:
    future = executor.submit(capture, never)
    dependant = executor.submit(capture, future)

    assert (future.cancel(), future.cancelled(), future.done(), future.running()) == (True, True, True, False)
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    with pytest.raises(CancelledError):
        dependant.result(WAIT_S)
    assert list(concurrent.futures.as_completed([future], WAIT_S)) == [future]


def test_a_future_that_runs_says_so_and_is_cancelled_with_its_job(executor: BaseExecutor, place: Place) -> None:
    path = place.path()
    future = executor.submit(wait_for, path)
    deadline = time.monotonic() + WAIT_S
    while not future.running() and time.monotonic() < deadline:
        time.sleep(0.01)

    assert (future.running(), future.cancel(), future.cancelled()) == (True, True, True)
    path.write_text("go")
    ended = executor.submit(wait_for, path)
    assert (ended.result(WAIT_S), ended.cancel()) == ("go", False)


# ---- shutting down ----


def test_after_shutdown_no_call_is_taken(place: Place) -> None:
    executor = place.new()
    future = executor.submit(abs, -1)
    executor.shutdown()

    assert future.done()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(abs, -1)
        with pytest.raises(RuntimeError):
            executor.map(abs, [1])
        executor.shutdown()


def test_an_executor_that_was_never_used_shuts_down(place: Place) -> None:
    executor = place.new()
    executor.shutdown()

    with pytest.raises(RuntimeError):
        executor.submit(abs, -1)


def test_leaving_the_with_block_waits_for_every_task(place: Place) -> None:
    with place.new() as executor:
        futures = [executor.submit(abs, -n) for n in range(5)]
        mapped = executor.map(abs, [-1])

    assert [future.done() for future in futures] == [True] * 5
    assert list(mapped) == [1]


def test_an_exception_in_the_with_block_comes_through(place: Place) -> None:
    futures: list[Future[int]] = []

    def block() -> None:
        with place.new() as executor:
            futures.append(executor.submit(abs, -1))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        block()
    assert futures[0].result(0) == 1


def test_shutdown_without_waiting_returns_at_once_and_the_tasks_go_on(place: Place) -> None:
    path = place.path()
    executor = place.new()
    future = executor.submit(wait_for, path)
    queues = [executor.future_queue]
    executor.shutdown(wait=False)
    queues.append(executor.future_queue)

    assert [queue is None for queue in queues] == [False, True]
    assert not future.done()
    path.write_text("go")
    assert future.result(WAIT_S) == "go"


def started(executor: BaseExecutor, path: Path) -> Future[str]:
    """A task that runs until there is such a file."""
    running = executor.submit(wait_for, path)
    deadline = time.monotonic() + WAIT_S
    while not running.running() and time.monotonic() < deadline:
        time.sleep(0.01)
    return running


def test_shutdown_with_cancel_futures_cancels_what_has_not_started(place: Place, never: Future[Any]) -> None:
    executor = place.new()
    path = place.path()
    running = started(executor, path)
    held = [executor.submit(capture, never, n) for n in range(3)]
    chained = executor.submit(capture, held[0])
    go = threading.Timer(0.3, path.write_text, ("go",))
    go.start()
    executor.shutdown(cancel_futures=True)
    go.join()

    assert [future.cancelled() for future in [*held, chained]] == [True] * 4
    assert running.result(0) == "go"


def test_shutdown_without_waiting_ends_jobs_that_run_if_futures_are_cancelled(place: Place) -> None:
    executor = place.new()
    path = place.path()
    running = started(executor, path)
    executor.shutdown(wait=False, cancel_futures=True)
    jobs = isinstance(executor, BatchExecutor)
    if not jobs:
        path.write_text("go")
    executor.shutdown()

    assert running.cancelled() == jobs
    assert jobs or running.result(0) == "go"


def test_an_executor_that_nobody_holds_finishes_its_tasks_and_ends(place: Place) -> None:
    before = set(threading.enumerate())
    executor = place.make()
    future = executor.submit(abs, -1)
    started = set(threading.enumerate()) - before
    assert started
    del executor
    gc.collect()

    assert future.result(WAIT_S) == 1
    del future  # which may still be asked to cancel its task
    for thread in started:
        thread.join(WAIT_S)
    assert [thread for thread in started if thread.is_alive()] == []


# ---- what is kept ----


def test_the_length_is_that_of_what_waits_and_an_executor_is_true(place: Place, never: Future[Any]) -> None:
    with place.new() as executor:
        queued = executor.future_queue
        assert queued is not None
        assert (len(executor), bool(executor), queued.empty()) == (0, True, True)
        futures = [executor.submit(capture, never) for _ in range(3)]
        if not isinstance(executor, SingleNodeExecutor):  # which counts what waits for a worker, and for nothing else
            assert (len(executor), queued.qsize(), queued.empty()) == (3, 3, False)
        assert futures[0].cancel()
        never.set_result(1)
        assert [future.result(WAIT_S) for future in futures[1:]] == [((1,), {})] * 2

    assert (len(executor), bool(executor)) == (0, True)


def test_neither_arguments_nor_results_are_kept(executor: BaseExecutor) -> None:
    argument = Thing()
    watched = weakref.ref(argument)
    future = executor.submit(capture, argument)
    del argument
    result = future.result(WAIT_S)
    results = weakref.ref(result[0][0])
    del future, result
    deadline = time.monotonic() + WAIT_S
    while (watched() or results()) and time.monotonic() < deadline:  # the driver may be just letting go
        gc.collect()
        time.sleep(0.01)

    assert (watched(), results()) == (None, None)


# ---- on the login node ----


@pytest.mark.skipif(LOGIN_NODE in os.environ, reason="this is that run")
def test_the_contract_holds_for_an_executor_on_the_login_node(slurm_cluster: SlurmCluster) -> None:
    run_there(slurm_cluster, Path(__file__), "contract-login")
