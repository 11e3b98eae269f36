"""Functions pickled no more often than they change, and calls that wait for futures."""

from __future__ import annotations

import concurrent.futures
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

from remoteexec import errors
from remoteexec.engine.graph import Functions, Held, failure_of, inputs_of, pickle_call
from remoteexec_server.wire import payload

Future = concurrent.futures.Future


@pytest.fixture
def pickles(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was pickled."""
    seen: list[object] = []
    dumps = payload.dumps_here

    def noted(value: object, *more: Any) -> payload.Pickled:
        seen.append(value)
        return dumps(value, *more)

    monkeypatch.setattr(payload, "dumps_here", noted)
    return seen


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module whose functions travel by value, as those of a script do."""
    found = types.ModuleType("a_users_script")
    sys.modules[found.__name__] = found
    cloudpickle.register_pickle_by_value(found)
    yield found
    cloudpickle.unregister_pickle_by_value(found)
    del sys.modules[found.__name__]


def define(module: types.ModuleType, text: str) -> Callable[..., Any]:
    exec(compile(text, "script.py", "exec"), module.__dict__)
    return module.f  # type: ignore[no-any-return]


def called(functions: Functions, fn: Callable[..., Any], *args: Any) -> Any:
    """What a worker would compute."""
    return payload.loads(functions.get(fn).data)(*args)


def test_an_unchanged_function_is_pickled_once(module: types.ModuleType, pickles: list[object]) -> None:
    f = define(
        module, "import math\nfactor = 2\ndef g(x): return x * factor\ndef f(x): return [math.floor(g(y)) for y in x]"
    )
    functions = Functions()
    found = [functions.get(f) for _ in range(3)]
    assert (found[0] is found[1] is found[2], pickles) == (True, [f])
    assert called(functions, f, [1.6]) == [3]


CHANGES: dict[str, tuple[str, Callable[[types.ModuleType], Any]]] = {
    "a global": ("v = 1\ndef f(): return v", lambda m: setattr(m, "v", 2)),
    "a global that was not there": ("def f(): return max(1, 1)", lambda m: setattr(m, "max", lambda *_: 2)),
    "a global of an inner function": ("v = 1\ndef f(): return [v for _ in 'a'][0]", lambda m: setattr(m, "v", 2)),
    "a global of a function it calls": ("v = 1\ndef g(): return v\ndef f(): return g()", lambda m: setattr(m, "v", 2)),
    "a function it calls": ("def g(): return 1\ndef f(): return g()", lambda m: setattr(m, "g", lambda: 2)),
    "what is in a list": ("v = [1]\ndef f(): return v[0]", lambda m: m.v.__setitem__(0, 2)),
    "a class": ("class C: v = 1\ndef f(): return C.v", lambda m: setattr(m.C, "v", 2)),
    "a default": ("def f(v=1): return v", lambda m: setattr(m.f, "__defaults__", (2,))),
    "a keyword's default": ("def f(*, v=1): return v", lambda m: m.f.__kwdefaults__.update(v=2)),
    "the code": ("def f(): return 1\ndef g(): return 2", lambda m: setattr(m.f, "__code__", m.g.__code__)),
    "an attribute": ("def f(): return getattr(f, 'v', 1)", lambda m: setattr(m.f, "v", 2)),
    "a closure's cell": (
        "def make():\n v = 1\n def f(): return v\n def change():\n  nonlocal v\n  v = 2\n return f, change\n"
        "f, change = make()",
        lambda m: m.change(),
    ),
    "what a tuple holds": ("v = ([1],)\ndef f(): return v[0][0]", lambda m: m.v[0].__setitem__(0, 2)),
}


@pytest.mark.parametrize(("text", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_what_a_function_uses_is_noticed(
    module: types.ModuleType, text: str, change: Callable[[types.ModuleType], Any]
) -> None:
    f = define(module, text)
    functions = Functions()
    assert called(functions, f) == 1
    change(module)
    assert called(functions, f) == 2


@pytest.mark.parametrize(
    "text",
    [
        "def f(x): return x + 1",
        "size = (1, (2, 'a'), None)\ndef f(x): return size",
        "import os.path\nfrom os.path import join\ndef f(x): return join(os.path.sep, x)",
        "from collections import OrderedDict\ndef f(x): return OrderedDict(x)",
        "def f(n): return n * f(n - 1) if n else 1",
    ],
)
def test_what_cannot_change_is_not_pickled_again(module: types.ModuleType, text: str, pickles: list[object]) -> None:
    f = define(module, text)
    functions = Functions()
    assert functions.get(f) is functions.get(f)
    assert pickles == [f]


def test_functions_that_are_found_by_name_travel_as_names(pickles: list[object]) -> None:
    functions = Functions()
    for fn in (len, dict, np.sum, np.linalg.norm):
        assert functions.get(fn) is functions.get(fn)
        assert payload.loads(functions.get(fn).data) is fn
    assert pickles == [len, dict, np.sum, np.linalg.norm]


def test_methods_of_objects_are_pickled_with_what_these_hold_now() -> None:
    values = [1]
    functions = Functions()
    assert called(functions, values.count, 1) == 1
    values.append(1)
    assert called(functions, values.count, 1) == 2


def test_equal_functions_are_one_on_the_wire(module: types.ModuleType) -> None:
    f = define(module, "def f(x): return x")
    g = define(module, "def f(x): return x + 1")
    functions = Functions()
    assert functions.get(f) is functions.get(f)
    assert functions.get(f).number != functions.get(g).number
    h = define(module, "v = [1]\ndef f(): return v")
    assert functions.get(h) is functions.get(h)  # pickled each time, and the same bytes


def test_functions_that_nobody_calls_any_more_are_forgotten(module: types.ModuleType) -> None:
    functions = Functions()
    for number in range(1_500):
        functions.get(define(module, f"v = []\ndef f(): return v, {number}"))
    assert len(functions._by_bytes) <= 200
    for number in range(1_500):
        functions.get(define(module, f"def f(): return {number}"))
    assert len(functions._known) <= 1_000


def test_what_cannot_be_pickled_is_named() -> None:
    lock = __import__("threading").Lock()
    with pytest.raises(errors.CallNotPicklable, match=r"function .*<lambda>.* cannot be pickled"):
        Functions().get(lambda: lock)
    with pytest.raises(errors.CallNotPicklable, match=r"argument 1 of 'len', a _thread.lock, cannot be pickled"):
        pickle_call(len, (lock,), {})


def future_of(value: Any) -> Future[Any]:
    found: Future[Any] = Future()
    found.set_result(value)
    return found


def failed(exc: BaseException) -> Future[Any]:
    found: Future[Any] = Future()
    found.set_exception(exc)
    return found


def cancelled() -> Future[Any]:
    found: Future[Any] = Future()
    found.cancel()
    return found


def test_futures_at_any_depth_are_references_in_the_order_they_are_met() -> None:
    one, other = future_of(1), future_of(2)
    pickled, futures = pickle_call(print, ([one, {"k": (other, one)}],), {"x": other})
    assert futures == [one, other]
    values = {"0": "one", "1": "other"}
    assert payload.loads(pickled.data, pickled.buffers, values.__getitem__) == (
        (["one", {"k": ("other", "one")}],),
        {"x": "other"},
    )


def test_a_held_call_is_handed_on_once_when_the_last_result_is_there() -> None:
    first: Future[int] = Future()
    second: Future[int] = Future()
    handed: list[str] = []
    Held([first, future_of(0), second], "call", handed.append)
    second.set_result(2)
    assert handed == []
    first.set_result(1)
    assert handed == ["call"]


def test_a_held_call_is_handed_on_once_when_the_first_has_failed() -> None:
    first: Future[int] = Future()
    second: Future[int] = Future()
    handed: list[str] = []
    Held([first, second], "call", handed.append)
    second.set_exception(ValueError())
    first.cancel()
    assert handed == ["call"]


def test_nothing_of_a_call_is_held_by_the_futures_it_waited_for() -> None:
    class Argument:
        pass

    import weakref

    argument = Argument()
    gone = weakref.ref(argument)
    source: Future[int] = Future()
    Held([source], (argument,), lambda call: None)
    del argument
    source.set_result(1)
    assert gone() is None


def test_the_failure_is_that_of_the_first_future_that_failed() -> None:
    exc = ValueError("x")
    assert failure_of([future_of(1), Future()]) is None
    assert failure_of([future_of(1), failed(exc), cancelled()]) is exc
    assert isinstance(failure_of([cancelled(), failed(exc)]), concurrent.futures.CancelledError)


def test_inputs_are_the_results_with_their_large_buffers_apart() -> None:
    array = np.arange(10_000.0)
    inputs = inputs_of([future_of("a"), future_of(array)])
    assert [len(buffers) for _, buffers in inputs] == [0, 1]
    assert payload.loads(*inputs[0]) == "a"
    assert (payload.loads(*inputs[1]) == array).all()
