"""Futures that know their task, and futures made of other futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import pytest

from remoteexec import futures
from remoteexec.futures import Ran, TaskFuture, TaskInfo, function_name
from remoteexec.selections import batched, get_item_from_future, split_future
from remoteexec_server.wire.messages import TaskKey


def finished(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def failed(exc: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(exc)
    return future


def cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    future.set_running_or_notify_cancel()
    return future


def test_a_split_future_gives_its_elements() -> None:
    assert [part.result(0) for part in split_future(finished((1, "two", None)), 3)] == [1, "two", None]


def test_an_item_is_there_as_soon_as_the_result_is() -> None:
    source: Future[dict[str, int]] = Future()
    item = get_item_from_future(source, "a")
    assert not item.done()
    source.set_result({"a": 7})
    assert item.result(0) == 7


def test_items_of_none_are_none() -> None:
    assert [part.result(0) for part in split_future(finished(None), 2)] == [None, None]


def test_an_item_of_an_item() -> None:
    assert get_item_from_future(get_item_from_future(finished([{"x": 5}]), 0), "x").result(0) == 5


@pytest.mark.parametrize(
    ("result", "key", "expected"),
    [((1,), 3, IndexError), ({"a": 1}, "b", KeyError), (5, 0, TypeError)],
)
def test_an_item_that_is_not_there_is_an_error_of_that_item(result: Any, key: Any, expected: type[Exception]) -> None:
    assert type(get_item_from_future(finished(result), key).exception(0)) is expected


def test_an_item_fails_like_its_source() -> None:
    exc = ZeroDivisionError("x")
    assert get_item_from_future(failed(exc), 0).exception(0) is exc


def test_an_item_is_cancelled_with_its_source() -> None:
    item = get_item_from_future(cancelled(), 0)
    assert item.cancelled()
    assert wait([item], timeout=0).not_done == set()


def test_cancelling_an_item_cancels_nothing_else() -> None:
    source: Future[Any] = Future()
    first, second = split_future(source, 2)
    assert first.cancel()
    assert first.cancel()
    source.set_result((1, 2))
    assert (first.cancelled(), second.result(0)) == (True, 2)


def test_an_item_runs_while_its_source_does() -> None:
    source: Future[Any] = Future()
    item = get_item_from_future(source, 0)
    source.set_running_or_notify_cancel()
    assert (item.running(), item.done()) == (True, False)


def test_callbacks_of_an_item_get_the_item_and_wait_and_as_completed_see_it() -> None:
    source: Future[Any] = Future()
    items = split_future(source, 2)
    seen: list[Any] = []
    items[1].add_done_callback(lambda future: seen.append(future.result()))
    source.set_result(("a", "b"))
    assert (seen, {f.result() for f in as_completed(items, timeout=0)}) == (["b"], {"a", "b"})


def test_only_futures_have_items() -> None:
    with pytest.raises(TypeError, match="expected a future, got a tuple"):
        get_item_from_future((1, 2), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must be at least 0, not -1"):
        split_future(finished(()), -1)


def test_batches_fill_in_the_order_in_which_futures_finish() -> None:
    futures: list[Future[int]] = [Future() for _ in range(5)]
    batches = batched(futures, 2)
    for number in (3, 0):
        futures[number].set_result(number)
    assert [batch.done() for batch in batches] == [True, False, False]
    for number in (4, 2, 1):
        futures[number].set_result(number)
    assert [batch.result(0) for batch in batches] == [[3, 0], [4, 2], [1]]


def test_batches_of_finished_futures() -> None:
    assert [batch.result(0) for batch in batched([finished(n) for n in range(4)], 2)] == [[0, 1], [2, 3]]


def test_no_futures_make_no_batches() -> None:
    assert batched([], 3) == []


def test_a_batch_fails_only_when_no_other_result_is_left_for_it() -> None:
    exc = ValueError("x")
    batches = batched([failed(exc), finished(1), finished(2), cancelled(), finished(3)], 2)
    assert [batch.exception(0) for batch in batches] == [None, exc, exc]
    assert batches[0].result() == [1, 2]


def test_batches_of_cancelled_futures_are_cancelled() -> None:
    (batch,) = batched([cancelled(), finished(1)], 2)
    assert batch.cancelled()


def test_a_cancelled_batch_stays_so() -> None:
    futures: list[Future[int]] = [Future(), Future()]
    first, second = batched(futures, 1)
    assert first.cancel()
    for number, future in enumerate(futures):
        future.set_result(number)
    assert (first.cancelled(), second.result(0)) == (True, [1])


def test_batches_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        batched([], 0)
    with pytest.raises(TypeError, match="expected futures, got a int"):
        batched([3], 1)  # type: ignore[arg-type]


def test_asyncio_can_wait_for_a_task_and_for_an_item() -> None:
    task: TaskFuture[tuple[int, int]] = TaskFuture(TaskKey("t"), object(), lambda key: None)
    item = get_item_from_future(task, 1)

    async def both() -> tuple[Any, Any]:
        asyncio.get_running_loop().call_soon(task.set_result, (1, 2))
        return await task, await item

    assert asyncio.run(both()) == ((1, 2), 2)


def test_a_future_cannot_be_pickled_by_itself() -> None:
    for future in (TaskFuture[int](TaskKey("t"), None, lambda key: None), split_future(Future(), 1)[0]):
        with pytest.raises(TypeError, match="pass its result"):
            pickle.dumps(future)


def test_a_task_says_what_is_known_of_it() -> None:
    future: TaskFuture[int] = TaskFuture(TaskKey("t1"), object(), lambda key: None, "work")
    submitted = future.task.submitted
    nothing = (None,) * 7
    assert future.task == TaskInfo(TaskKey("t1"), "work", "pending", *nothing[:4], submitted, *nothing[:3])
    assert future.task.duration_s is None
    future.set_running_or_notify_cancel()
    assert future.task.state == "running"
    future.ran = Ran("n1", 12, 3, "7_0", 10.0, 12.5, 4096)
    future.output = "hello\n"
    future.set_result(1)
    assert future.task == TaskInfo(
        TaskKey("t1"), "work", "done", "n1", 12, 3, "7_0", submitted, 10.0, 12.5, 4096, "hello\n"
    )
    assert future.task.duration_s == 2.5


def test_a_task_says_that_it_failed_or_was_cancelled() -> None:
    first: TaskFuture[int] = TaskFuture(TaskKey("t1"), None, lambda key: None)
    second: TaskFuture[int] = TaskFuture(TaskKey("t2"), None, lambda key: None)
    first.set_exception(ValueError())
    second.cancel()
    assert (first.task.state, second.task.state) == ("failed", "cancelled")
    with pytest.raises(CancelledError):
        second.result(0)


def test_whoever_asks_while_a_future_ends_is_told_of_it() -> None:
    """It may have no condition until then, which whoever asks first makes."""
    sources = [TaskFuture[int](TaskKey(f"t{n}"), None, lambda key: None) for n in range(300)]
    called: list[int] = []
    asks: list[Callable[[TaskFuture[int]], object]] = [
        lambda future: future.result(30),
        lambda future: future.exception(30),
        lambda future: next(as_completed([future], 30)).result(0),
        lambda future: wait([future], 30).done.pop().result(0),
        lambda future: future.add_done_callback(lambda ended: called.append(ended.result(0))),
    ]

    def end() -> None:
        for n, future in enumerate(sources):
            assert future.show_running()
            future.set_result(n)

    def asked(ask: Callable[[TaskFuture[int]], object]) -> list[object]:
        return [ask(future) for future in sources]

    with concurrent.futures.ThreadPoolExecutor(len(asks) + 1) as threads:
        told = [threads.submit(asked, ask) for ask in asks]
        threads.submit(end).result(30)
        answers = [each.result(30) for each in told]

    everything = list(range(300))
    assert answers == [everything, [None] * 300, everything, everything, [None] * 300]
    assert sorted(called) == everything


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_futures_of_a_fork_end_though_a_thread_was_ending_one() -> None:
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with futures._making:
            held.set()
            over.wait(30)

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        threads.submit(hold)
        assert held.wait(30)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout has one
            signal.alarm(10)
            TaskFuture[int](TaskKey("t"), None, lambda key: None).set_result(1)
            os._exit(0)
        over.set()
    assert os.waitpid(child, 0)[1] == 0


def test_functions_have_names_for_people() -> None:
    class Callable:
        def __call__(self) -> None: ...

    name = Callable.__qualname__
    assert [function_name(f) for f in (max, functools.partial(functools.partial(pow, 1), 2), Callable())] == [
        "max",
        "pow",
        name,
    ]


def test_futures_of_ours_are_futures() -> None:
    assert isinstance(split_future(Future(), 1)[0], concurrent.futures.Future)
