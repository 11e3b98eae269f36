"""Calls are pickled by submit itself, which says what cannot travel; a burst holds each function and resource once."""

from __future__ import annotations

import concurrent.futures
import gc
import pickle
import sys
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from remoteexec.engine.calls import Call, ForeignFailed, Pickler, bundle
from remoteexec.errors import CallNotPicklable
from remoteexec.futures import TaskFuture
from remoteexec_server.store import hdf5
from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import BurstId, Entry, TaskKey
from remoteexec_server.wire.resources import Resources

KEY = bytes(range(32))
OWNER = object()
PLAIN = Resources()
A, B = TaskKey("a"), TaskKey("b")


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@pytest.fixture
def pickler() -> Pickler:
    return Pickler(OWNER)


def sibling(key: TaskKey, owner: object = OWNER) -> TaskFuture[Any]:
    return TaskFuture(key, owner, lambda key: None)


def done(result: object) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def loaded(call: Call, **results: Any) -> Any:
    arguments = call.arguments
    return payload.loads(arguments.data, arguments.buffers, lambda key: results[key])


def test_arguments_are_what_they_were_when_submit_was_called(pickler: Pickler) -> None:
    numbers, array = [1], np.arange(5000.0)
    call = pickler.pickle(capture, (numbers, array), {"k": numbers}, PLAIN)
    numbers.append(2)
    array[:] = -1

    (first, second), named = loaded(call)
    assert (first, second[-1], named, call.inputs, call.foreign) == ([1], 4999.0, {"k": [1]}, {}, ())
    assert call.size == call.arguments.size > 40_000


def test_equal_functions_are_one_until_they_differ(pickler: Pickler) -> None:
    factor = 1

    def scaled(x: int) -> int:
        return factor * x

    one, same = (pickler.pickle(scaled, (1,), {}, PLAIN).function for _ in range(2))
    factor = 2
    other = pickler.pickle(scaled, (1,), {}, PLAIN).function

    assert (one is same, one is other) == (True, False)
    assert [payload.loads(function.data)(3) for function in (one, other)] == [3, 6]


def test_a_function_nobody_needs_any_more_is_not_kept(pickler: Pickler) -> None:
    gone = weakref.ref(pickler.pickle(lambda: 1, (), {}, PLAIN).function)
    gc.collect()

    assert gone() is None


def test_futures_of_the_same_executor_are_referred_to_wherever_they_stand(pickler: Pickler) -> None:
    a, b = sibling(A), sibling(B)
    call = pickler.pickle(capture, (a, [{"x": (b, a)}]), {"k": a}, PLAIN)

    assert (call.inputs, call.foreign) == ({A: a, B: b}, ())
    assert loaded(call, a=1, b=2) == ((1, [{"x": (2, 1)}]), {"k": 1})


def test_futures_of_others_that_are_done_are_replaced_by_their_results(pickler: Pickler) -> None:
    call = pickler.pickle(capture, ([done({"n": 1})],), {}, PLAIN)

    assert (call.foreign, loaded(call)) == ((), (([{"n": 1}],), {}))


def test_futures_of_others_are_waited_for_and_filled_in(pickler: Pickler) -> None:
    one: Future[Any] = Future()
    other: Future[Any] = Future()
    a, mutable = sibling(A), [0]
    call = pickler.pickle(capture, (one, a, [other], mutable), {}, PLAIN)
    mutable.append(1)
    assert (call.inputs, call.foreign) == ({A: a}, (one, other))

    other.set_result("other")
    call = pickler.fill(call)
    assert call.foreign == (one,)
    one.set_result(done([a, sibling(B)]))
    call = pickler.fill(call)

    assert (set(call.inputs), call.foreign) == ({A, B}, ())
    assert loaded(call, a=1, b=2) == (([1, 2], 1, ["other"], [0]), {})


def test_a_future_of_another_executor_of_ours_is_foreign(pickler: Pickler) -> None:
    other = sibling(A, owner=object())

    call = pickler.pickle(capture, (other,), {}, PLAIN)

    assert (call.inputs, call.foreign) == ({}, (other,))


@pytest.mark.parametrize("cause", [ValueError("no"), concurrent.futures.CancelledError()])
def test_a_failed_future_of_another_executor_fails_the_call_with_its_reason(
    pickler: Pickler, cause: BaseException
) -> None:
    failed: Future[Any] = Future()
    pending: Future[Any] = Future()
    call = pickler.pickle(capture, (pending,), {}, PLAIN)
    for future in (failed, pending):
        if isinstance(cause, ValueError):
            future.set_exception(cause)
        else:
            future.cancel()

    with pytest.raises(ForeignFailed) as at_once:
        pickler.pickle(capture, (failed,), {}, PLAIN)
    with pytest.raises(ForeignFailed) as later:
        pickler.fill(call)

    assert [type(caught.value.__cause__) for caught in (at_once, later)] == [type(cause)] * 2


LOCK = threading.Lock()


def uses_a_lock() -> bool:
    return LOCK.locked()


def too_deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(2 * sys.getrecursionlimit()):
        nested = [nested]
    return nested


class Unwilling:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "says"),
    [
        (uses_a_lock, (), {}, r"function 'uses_a_lock' cannot be pickled: .*lock.*Make that inside the function"),
        (capture, (1, LOCK), {}, r"argument 2 of 'capture', a _thread.lock, cannot be pickled: .*lock"),
        (capture, (1,), {"k": {"x": LOCK}}, r"argument 'k' of 'capture', a builtins.dict, cannot be pickled"),
        (capture, (Unwilling(),), {}, r"argument 1 of 'capture', a .*Unwilling, cannot be pickled: not me"),
        (capture, (too_deep(),), {}, r"argument 1 of 'capture', a builtins.list, cannot be pickled: .*recursion"),
        (max, (LOCK,), {}, r"argument 1 of 'max', a _thread.lock"),
    ],
    ids=["function", "position", "name", "own error", "too deep", "builtin"],
)
def test_what_cannot_be_pickled_is_named(
    pickler: Pickler, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], says: str
) -> None:
    with pytest.raises(CallNotPicklable, match=says) as caught:
        pickler.pickle(fn, args, kwargs, PLAIN)

    assert isinstance(caught.value, pickle.PicklingError)
    assert caught.value.__cause__ is not None


def test_an_interrupt_while_pickling_is_no_pickling_error(pickler: Pickler) -> None:
    class Slow:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pickler.pickle(capture, (Slow(),), {}, PLAIN)


def test_a_future_cannot_be_pickled_in_any_other_way() -> None:
    with pytest.raises(TypeError, match="an argument of the executor's own submit"):
        pickle.dumps(sibling(A))


def test_a_burst_says_each_resource_and_holds_each_function_once(pickler: Pickler) -> None:
    long = Resources(partition="long")
    calls = [
        pickler.pickle(abs, (-1,), {}, PLAIN),
        pickler.pickle(capture, (sibling(A),), {}, long),
        pickler.pickle(abs, (-2,), {}, Resources()),
        pickler.pickle(capture, (), {"k": 1}, long),
    ]
    keys = [TaskKey(name) for name in "abcd"]

    submit, data = bundle(BurstId("x-1"), keys, calls, KEY)

    assert (submit.burst, submit.resources, submit.size) == ("x-1", (PLAIN, long), len(data))
    assert submit.tasks == tuple(
        Entry(key, n % 2, (A,) if n == 1 else (), "capture" if n % 2 else "abs") for n, key in enumerate(keys)
    )
    read = [hdf5.read_call(data, BurstId("x-1"), n, KEY) for n in range(4)]
    assert [payload.loads(function.data).__name__ for function, _ in read] == ["abs", "capture", "abs", "capture"]
    assert payload.loads(read[3][1].data) == ((), {"k": 1})
    assert data.count(b"uses_a_lock") <= 1
