"""What is cached is the result of the code that the key says: for modules that a worker imports by itself."""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor, get_cache_data
from remoteexec.engine.cache import CacheWarning
from tests.integration.pool_tools import both_modes

PLAIN = """
import functools
CONST = 1
SETTINGS = {"shift": 0}
_known = {}
class Shape:
    def area(self):
        return CONST
@functools.lru_cache
def squared(x):
    return x * x
def f(x):
    return x * CONST + SETTINGS["shift"]
def remembered(x):
    return _known.setdefault(x, squared(x))
def also(x):
    return remembered(x) + 1
def area(shape):
    return shape.area()
"""
EDITED = PLAIN.replace("return x * CONST", "return 1000 + x * CONST").replace("return CONST", "return 1000 + CONST")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of the user's own."""
    name = f"mine_{os.getpid()}_{time.monotonic_ns()}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its file changes within a second
    (tmp_path / f"{name}.py").write_text(PLAIN)
    yield importlib.import_module(name)
    del sys.modules[name]


def edit(module: ModuleType, text: str) -> None:
    assert module.__file__ is not None
    Path(module.__file__).write_text(text)
    importlib.invalidate_caches()


def run(directory: Path, kept: bool, fn: Any, *args: Any) -> tuple[Any, list[str]]:
    """Result of one call in an executor of its own, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SingleNodeExecutor(1, cache_directory=str(directory), block_allocation=kept) as exe:
            result = exe.submit(fn, *args).result()
    return result, [str(one.message).split(" and found")[0] for one in caught if one.category is CacheWarning]


def warned(function: str, module: ModuleType) -> list[str]:
    return [f"a result of {function} is not cached, since its process has imported {module.__name__}"]


@both_modes
def test_what_was_set_in_a_module_here_is_not_what_runs_there_and_is_not_cached(
    kept: bool, module: ModuleType, tmp_path: Path
) -> None:
    assert run(tmp_path / "c", kept, module.f, 1) == (1, [])
    for name, value in (("CONST", 5), ("SETTINGS", {"shift": 7})):
        before = getattr(module, name)
        setattr(module, name, value)
        assert run(tmp_path / "c", kept, module.f, 1) == (1, warned("f", module))
        setattr(module, name, before)
    assert [found["output"] for found in get_cache_data(tmp_path / "c")] == [1]


@both_modes
def test_an_edited_file_is_not_cached_under_the_key_of_what_it_was(
    kept: bool, module: ModuleType, tmp_path: Path
) -> None:
    edit(module, EDITED)
    assert run(tmp_path / "c", kept, module.f, 1) == (1001, warned("f", module))
    assert run(tmp_path / "c", kept, module.area, module.Shape()) == (1001, warned("area", module))
    edit(module, PLAIN)
    assert run(tmp_path / "c", kept, module.f, 1) == (1, [])
    assert run(tmp_path / "c", kept, module.area, module.Shape()) == (1, [])


def test_a_module_that_is_reloaded_here_is_an_old_one_in_a_kept_worker(module: ModuleType, tmp_path: Path) -> None:
    exe = SingleNodeExecutor(1, cache_directory=str(tmp_path / "c"), block_allocation=True)
    assert exe.submit(module.f, 1).result() == 1
    edit(module, EDITED)
    importlib.reload(module)
    old = exe.submit(module.f, 1)
    with pytest.warns(CacheWarning, match="a result of f is not cached"):
        exe.shutdown()
    assert old.result() == 1
    assert run(tmp_path / "c", True, module.f, 1) == (1001, [])


@both_modes
def test_a_function_of_the_script_is_compared_in_what_it_takes_from_modules(
    kept: bool, module: ModuleType, tmp_path: Path
) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "f": module.f, "module": module}
    exec("def mine(x):\n    return f(x), module.f(x), module.CONST", names)
    assert run(tmp_path / "c", kept, names["mine"], 1) == ((1, 1, 1), [])
    module.CONST = 5  # type: ignore[attr-defined]
    assert run(tmp_path / "c", kept, names["mine"], 1) == ((1, 1, 1), warned("mine", module))


def test_what_calls_leave_behind_in_a_kept_worker_does_not_keep_later_ones_from_being_cached(
    module: ModuleType, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with SingleNodeExecutor(1, cache_directory=str(tmp_path / "c"), block_allocation=True) as exe:
            assert [exe.submit(module.remembered, x).result() for x in range(4)] == [0, 1, 4, 9]
    assert len(get_cache_data(tmp_path / "c")) == 4


def test_a_name_of_the_users_own_is_kept_whatever_ran(module: ModuleType, tmp_path: Path) -> None:
    module.CONST = 5  # type: ignore[attr-defined]
    with SingleNodeExecutor(1, cache_directory=str(tmp_path / "c")) as exe:
        assert exe.submit(module.f, 1, resource_dict={"cache_key": "A"}).result() == 1
    assert [Path(found["filename"]).stem for found in get_cache_data(tmp_path / "c")] == ["A"]


def twice(x: int) -> int:
    return 2 * x


def times_ten(x: int) -> int:
    return 10 * x


@both_modes
def test_what_is_made_of_a_named_result_is_cached_by_that_result_and_not_by_the_call(
    kept: bool, tmp_path: Path
) -> None:
    with SingleNodeExecutor(1, cache_directory=str(tmp_path / "c"), block_allocation=kept) as exe:
        exe.submit(twice, 1, resource_dict={"cache_key": "A"}).result()
        named = exe.submit(twice, 2, resource_dict={"cache_key": "A"})
        assert (named.result(), exe.submit(times_ten, named).result()) == (2, 20)
        assert exe.submit(times_ten, exe.submit(twice, 2)).result() == 40
