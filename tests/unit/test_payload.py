"""Objects are the same after they have travelled, by value where the other end cannot import them."""

from __future__ import annotations

import collections.abc
import functools
import pickle
import pkgutil
import pprint
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec_server.contents import origins
from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import TaskKey
from remoteexec_server.wire.payload import OUT_OF_BAND, dumps, loads


class Reference:
    """Stands for the result of a task, as a future does."""

    def __init__(self, key: str) -> None:
        self.key = key


def refer(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    return (payload.resolve, (obj.key,)) if isinstance(obj, Reference) else None


def travelled(value: object) -> Any:
    pickled = dumps(value)
    return loads(pickled.data, [bytes(view) for view in pickled.buffers])


@pytest.mark.parametrize("value", [None, 1, "ü\ud800", b"\0", (1, [2, {"a": {3}}]), 1j, ..., NotImplemented])
def test_a_plain_value_is_the_same(value: object) -> None:
    assert travelled(value) == value


def test_a_closure_a_lambda_and_a_class_of_a_test_travel_by_value() -> None:
    factor = 3

    class Local:
        def times(self, x: int) -> int:
            return factor * x

    assert (travelled(lambda x: factor * x)(2), travelled(Local().times)(2)) == (6, 6)


def decorated() -> dict[str, Any]:
    """Things that Python pickles by their names or not at all, under names that nobody else finds."""

    @functools.lru_cache(maxsize=7, typed=True)
    def fib(n: int) -> int:
        """Numbers."""
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    class Box:
        @functools.cached_property
        def two(self) -> int:
            return 2

        @functools.cache  # noqa: B019  # as users do it
        def plus(self, n: int) -> int:
            return self.two + n

        @functools.singledispatchmethod
        def kind(self, _: object) -> str:
            return "any"

        @kind.register
        def _(self, _: int) -> str:
            return "int"

    @functools.singledispatch
    def shape(_: object) -> str:
        """Of all."""
        return "object"

    shape.register(list, lambda x: f"list of {shape(x[0])}")
    shape.register(Box, lambda _: "box")
    shape.register(collections.abc.Sized, lambda _: "sized")
    return {"fib": fib, "box": Box(), "shape": shape}


def test_functions_that_remember_or_dispatch_travel_by_value() -> None:
    there = travelled(decorated())
    fib, box, shape = there["fib"], there["box"], there["shape"]

    assert (fib(30), fib.cache_parameters(), fib.__doc__) == (832040, {"maxsize": 7, "typed": True}, "Numbers.")
    assert fib.cache_info().misses == 31  # it calls itself, and no other that was made on the way
    assert (box.two, box.plus(3), box.kind(1), box.kind("")) == (2, 5, "int", "any")
    assert [shape([box]), shape({}), shape(1.0)] == ["list of box", "sized", "object"]
    assert (shape.__doc__, shape.__module__) == ("Of all.", __name__)


def test_a_function_that_remembers_goes_by_name_where_it_has_one() -> None:
    assert travelled([origins.version, pprint.pprint]) == [origins.version, pprint.pprint]
    dispatcher = pkgutil.iter_importer_modules  # type: ignore[attr-defined]  # a singledispatch that typeshed leaves out
    assert travelled(dispatcher) is dispatcher


def test_small_arrays_stay_in_the_pickle_and_large_ones_do_not() -> None:
    small, large = np.zeros(OUT_OF_BAND // 8 - 1), np.arange(OUT_OF_BAND // 8, dtype=float)
    pickled = dumps({"small": small, "large": large, "again": large})

    assert ([view.nbytes for view in pickled.buffers], len(pickled.data) < 2 * OUT_OF_BAND) == ([OUT_OF_BAND], True)
    assert pickled.size == len(pickled.data) + OUT_OF_BAND
    assert np.array_equal(loads(pickled.data, pickled.buffers)["again"], large)


def test_references_are_replaced_wherever_they_stand() -> None:
    a, b = Reference("a"), Reference("b")
    pickled = dumps(([a, {"x": (b, {"y": a})}], {"k": b}), refer)
    asked: list[str] = []

    def values(key: TaskKey) -> str:
        asked.append(key)
        return f"<{key}>"

    assert loads(pickled.data, pickled.buffers, values) == (
        [["<a>", {"x": ("<b>", {"y": "<a>"})}], {"k": "<b>"}][0],
        {"k": "<b>"},
    )
    assert asked == ["a", "b"]  # each once: pickle remembers what it has seen


def test_a_reference_that_cannot_be_had_ends_the_load() -> None:
    def values(key: TaskKey) -> None:
        raise KeyError(key)

    pickled = dumps([Reference("a")], refer)
    with pytest.raises(KeyError, match="a"):
        loads(pickled.data, (), values)
    with pytest.raises(LookupError):  # and nothing of that load is left for the next one
        loads(pickled.data)


def test_a_known_result_takes_the_place_of_its_future() -> None:
    pickled = dumps([Reference("a")], lambda obj: (payload.given, ({"n": 1},)) if isinstance(obj, Reference) else None)

    assert loads(pickled.data) == [{"n": 1}]


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), [threading.Lock()], {"a": sys._getframe()}],
    ids=["a lock", "a lock in a list", "a frame"],
)
def test_what_cannot_be_pickled_raises_what_pickle_raises(value: object) -> None:
    with pytest.raises((TypeError, pickle.PicklingError)):
        dumps(value)


def test_what_is_nested_too_deep_is_an_exception_like_any_other() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises((RecursionError, pickle.PicklingError)):  # cloudpickle words it so
        dumps(nested)


def test_a_module_beside_the_script_travels_by_value_and_a_library_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_of_payload.py").write_text("FACTOR = 7\ndef seven(x):\n    return FACTOR * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine_of_payload  # type: ignore[import-not-found]

    pickled = dumps(mine_of_payload.seven)
    monkeypatch.delitem(sys.modules, "mine_of_payload")
    monkeypatch.undo()

    assert loads(pickled.data)(6) == 42
    assert b"seven" in pickled.data
    assert len(dumps(subprocess.run).data) < 100
    assert len(dumps(np.linalg.norm).data) < 100
    assert len(dumps(payload.resolve).data) < 100


def test_what_pip_has_installed_beside_the_script_travels_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own_of_payload", "installed_of_payload"):
        (tmp_path / f"{name}.py").write_text("def seven():\n    return 7\n")
    (tmp_path / "package_of_payload").mkdir()
    (tmp_path / "package_of_payload" / "part.py").write_text("def seven():\n    return 7\n")
    (tmp_path / "some-1.0.dist-info").mkdir()
    (tmp_path / "some-1.0.dist-info" / "RECORD").write_text(
        "installed_of_payload.py,sha256=0,30\npackage_of_payload/part.py,sha256=0,30\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import installed_of_payload  # type: ignore[import-not-found]
    import own_of_payload  # type: ignore[import-not-found]
    import package_of_payload.part  # type: ignore[import-not-found]

    by_value = [
        len(dumps(module.seven).data) > 100
        for module in (own_of_payload, installed_of_payload, package_of_payload.part)
    ]

    assert by_value == [True, False, False]
