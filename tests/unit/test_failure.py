"""An exception is, after it has travelled, what it was before, whatever its class does in `__init__`."""

from __future__ import annotations

import linecache
import sys
import threading
import traceback
from collections.abc import Iterator
from email.message import Message
from typing import Any
from urllib.error import HTTPError

import pytest

from remoteexec_server import failure
from remoteexec_server.wire import payload


class Formats(Exception):
    def __init__(self, code: object) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Joins(ValueError):
    def __init__(self, values: list[int]) -> None:
        super().__init__("values: " + ", ".join(map(str, values)))
        self.values = values


class Exits(SystemExit):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a + b)


class NoFile(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "No such thing", path)


class NamesModule(ImportError):
    def __init__(self, module: str) -> None:
        super().__init__(f"no {module}", name=module)


class OnlyNamed(KeyError):
    def __init__(self, *, key: str) -> None:
        super().__init__(key)
        self.key = key


class Locks(Exception):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.n, self.lock = n, threading.Lock()


def told(exc: BaseException) -> tuple[Any, ...]:
    names = ("code", "filename", "errno", "name", "object")
    of_python = {name: getattr(exc, name, None) for name in names}
    return type(exc), str(exc), repr(exc.args), repr(exc.__dict__), repr(of_python)


def travelled(exc: BaseException, for_later: bool) -> BaseException:
    pickled = failure.pickled(exc, for_later)
    assert pickled is not None
    found: BaseException = payload.loads(pickled.data, pickled.buffers)
    return found


@pytest.mark.parametrize("for_later", [False, True])
@pytest.mark.parametrize(
    "exc",
    [
        Formats(5),
        Joins([1, 2]),
        Exits(1, 2),
        NoFile("a'; echo b ü"),
        NamesModule("mod"),
        OnlyNamed(key="k"),
        Formats(Formats(1)),
        ValueError(Formats(1), [Joins([3])]),
        OSError(2, "x", "y"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        KeyError("k"),
    ],
    ids=repr,
)
def test_an_exception_is_the_same_after_it_has_travelled(exc: BaseException, for_later: bool) -> None:
    assert told(travelled(exc, for_later)) == told(exc)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no groups before Python 3.11")
@pytest.mark.parametrize("for_later", [False, True])
def test_exceptions_of_a_group_are_the_same_too(for_later: bool) -> None:
    found: Any = travelled(ExceptionGroup("all", [Formats(1), Joins([2])]), for_later)  # noqa: F821
    assert [told(each) for each in found.exceptions] == [told(Formats(1)), told(Joins([2]))]


@pytest.mark.parametrize("for_later", [False, True])
def test_what_cannot_travel_as_it_was_does_not_travel_changed(for_later: bool) -> None:
    assert failure.pickled(Locks(3), for_later) is None


CELL = "def f(x):\n    y = x + 1\n    raise ValueError(y)  # in the cell\n"


@pytest.fixture
def cell() -> Iterator[Any]:
    """A function of a notebook's cell: its text is in linecache, and in no file."""
    name = "/tmp/ipykernel_7/no_such_file.py"
    linecache.cache[name] = (len(CELL), None, CELL.splitlines(True), name)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, name, "exec"), names)
    yield names["f"]
    linecache.cache.pop(name, None)


def test_a_function_without_a_file_takes_its_source_along(cell: Any) -> None:
    pickled = payload.dumps(cell)
    linecache.clearcache()
    with pytest.raises(ValueError, match="2") as raised:
        payload.loads(pickled.data)(1)
    assert "raise ValueError(y)  # in the cell" in "".join(traceback.format_exception(raised.value))


def test_a_function_with_a_file_does_not(cell: Any) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("def f(x):\n    return 'not' + ' sent'\n", __file__, "exec"), names)
    linecache.getlines(__file__)
    assert b"code_with_source" not in payload.dumps(names["f"]).data
    assert b"code_with_source" in payload.dumps(cell).data


def test_what_an_error_of_the_system_keeps_out_of_sight_comes_along() -> None:
    exc = HTTPError("http://host/page", 404, "no such page", Message(), None)
    found = failure.pickled(exc)
    assert found is not None
    came = payload.loads(found.data, found.buffers)
    assert (type(came), came.filename, came.url, came.code) == (HTTPError, "http://host/page", "http://host/page", 404)


def test_a_huge_payload_travels_and_its_text_does_not() -> None:
    exc = ValueError(list(range(100_000)))
    facts, found = failure.unpacked(failure.packed(exc, "raised"))
    assert found is not None
    assert (payload.loads(found.data).args, facts["message"], facts["traceback"]) == (
        (list(range(100_000)),),
        "[0, 1, 2, 3, 4, 5, ...]",
        "ValueError: [0, 1, 2, 3, 4, 5, ...]",
    )
