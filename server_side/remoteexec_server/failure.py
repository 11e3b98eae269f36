"""An exception as data: what it was, its text and traceback, and the exception itself where it can be pickled."""

from __future__ import annotations

import contextlib
import marshal
import os
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from .wire import payload
from .wire.payload import Pickled

_MOST = 10_000
"""Elements of an argument of an exception whose text is written out. Picked, not measured."""
_OF_OSERROR = ("errno", "strerror", "filename", "filename2")
"""What an OSError keeps where nobody sees it: neither in `args`, if its class has an `__init__`, nor in `__dict__`."""
_OURS = ("remoteexec_server.runner", "remoteexec_server.worker", "remoteexec.engine.in_caller")


def facts(exc: BaseException, kind: str, subject: str = "") -> dict[str, Any]:
    """What can be said of it in JSON.

    Args:
        kind: "raised" by the function, "call_not_loadable", "result_not_picklable", "refused", "not_set_up".
        subject: of "result_not_picklable": the class of the result.
    """
    return {
        "kind": kind,
        "subject": subject,
        "type": f"{type(exc).__module__}.{type(exc).__qualname__}",
        "bases": [base.__name__ for base in type(exc).__mro__ if base.__module__ == "builtins"],
        "message": _text(exc),
        "traceback": _traceback(exc),
    }


def packed(exc: BaseException, kind: str, subject: str = "") -> bytes:
    """Facts and exception in one; see `unpacked`."""
    import json  # late: most tasks do not fail

    found = pickled(exc) if kind == "raised" else None
    return marshal.dumps((json.dumps(facts(exc, kind, subject)), found.data if found else b""))


def unpacked(data: bytes) -> tuple[dict[str, Any], Pickled | None]:
    """What `packed` was given: facts, and the pickled exception if it could be pickled."""
    import json

    said, found = marshal.loads(data)
    return json.loads(said), Pickled(found) if found else None


def amended(data: bytes, traceback_head: str = "", **more: Any) -> bytes:
    """A `packed` failure with further facts, and a line before its traceback."""
    import json

    said, found = marshal.loads(data)
    known = json.loads(said)
    return marshal.dumps((json.dumps({**known, "traceback": traceback_head + known["traceback"], **more}), found))


def log(path: str | None, function: object, args: object, kwargs: object, exc: BaseException) -> None:
    """Append a call that failed to the user's `error_log_file`, if there is one."""
    if path is not None:
        _append(path, lambda: f"function: {function!r}\nargs: {args!r}\nkwargs: {kwargs!r}\n{_traceback(exc)}\n\n")


def log_lost(path: str | None, function: str, exc: BaseException) -> None:
    """Append a call whose process is gone, and so cannot do it, nor say what its arguments were."""
    if path is not None:
        _append(path, lambda: f"function: {function}\n{type(exc).__module__}.{type(exc).__qualname__}: {exc}\n\n")


def _append(path: str, make: Callable[[], str]) -> None:
    try:
        text = make()
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "a") as file:
            file.write(text)
    except BaseException as why:  # a __repr__ of the user's, or a file that cannot be written
        print(f"error_log_file {path}: {why!r}", file=sys.stderr)


def _text(exc: BaseException) -> str:
    if _has_huge_text(exc):
        return reprlib.repr(exc.args[0] if len(exc.args) == 1 else exc.args)
    try:
        return str(exc)
    except Exception:  # a broken __str__ of the user's
        return f"<no text: {type(exc).__qualname__}.__str__ failed>"


def _has_huge_text(exc: BaseException) -> bool:
    """Whether its text is that of large lists and the like, which takes longer than all else and tells nobody more."""
    return type(exc).__str__ is BaseException.__str__ and any(_is_huge(arg) for arg in exc.args)


def _is_huge(value: object) -> bool:
    return isinstance(value, (list, tuple, dict, set, frozenset, bytes, bytearray)) and len(value) > _MOST


def _traceback(exc: BaseException) -> str:
    """The traceback from the user's function on; our own frames tell nobody anything."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in _OURS:
        trace = trace.tb_next
    told = exc
    if _has_huge_text(exc):
        told = BaseException(_text(exc))
        told.__cause__, told.__context__ = exc.__cause__, exc.__context__
        told.__suppress_context__ = exc.__suppress_context__
    try:
        return "".join(traceback.TracebackException(type(exc), told, trace).format()).rstrip()
    except Exception:
        return "".join(traceback.format_tb(trace)) + type(exc).__qualname__


def pickled(exc: BaseException, for_later: bool = False) -> Pickled | None:
    """An exception as bytes that load again, or None.

    Unpickling calls the class with `args`, which fails where `__init__` takes other arguments, and gives another text
    where it formats them: then it is rebuilt without `__init__`.

    Args:
        for_later: see `payload.dumps_for_later`.
    """
    first: Pickled | None = None  # that loads: better than none, should no other be what it was
    wanted = _told(exc)
    for attempt in _attempts(exc, for_later):
        try:
            found = attempt()
            loaded = payload.loads(found.data, found.buffers)
            same = _told(loaded) == wanted
        except BaseException:  # whatever the user's objects raise
            continue
        if type(loaded) is type(exc):
            if same:
                return found
            first = first or found
    return first


def _attempts(exc: BaseException, for_later: bool) -> Iterator[Callable[[], Pickled]]:
    """Ways to pickle an exception, the most natural first."""

    def dumps(value: object, reference: payload.Reference | None = None) -> Pickled:
        return payload.dumps_for_later(value, reference) if for_later else payload.dumps(value, reference, in_band=True)

    yield lambda: dumps(exc)
    yield lambda: dumps(exc, _without_init)
    yield lambda: dumps(_Rebuilt(exc))  # where its class says itself how it is pickled


def _told(exc: BaseException) -> tuple[object, ...]:
    """What can be compared of an exception: texts, since few objects of the user's are equal to a copy."""
    state = {**exc.__dict__, **_of_oserror(exc)}
    return _text(exc), [_shown(arg) for arg in exc.args], {name: _shown(each) for name, each in state.items()}


def _of_oserror(exc: BaseException) -> dict[str, Any]:
    if not isinstance(exc, OSError):
        return {}
    return {name: value for name in _OF_OSERROR if (value := getattr(exc, name, None)) is not None}


def _shown(value: object) -> str:
    """An object as text, without the place in memory that the text of many has."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if type(value).__repr__ is object.__repr__:
        return name
    if _is_huge(value):
        return f"{name} of {len(value)}"  # type: ignore[arg-type]  # which has a length
    try:
        return name + repr(value)
    except Exception:  # a broken __repr__ of the user's
        return name


def _without_init(obj: object) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Pickles exceptions, those inside of others too, as what `rebuild_exception` makes again."""
    return _Rebuilt(obj).__reduce__() if isinstance(obj, BaseException) else None


class _Rebuilt:
    """Stands for an exception in a pickle."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        # what Python's own class says, which knows more than `args` of an OSError or ImportError
        _, args, *state = _builtin(type(self._exc)).__reduce__(self._exc)
        found = {**(state[0] if state and state[0] else {}), **_of_oserror(self._exc)}
        return rebuild_exception, (type(self._exc), args, found)


def rebuild_exception(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """An exception as it was, no `__init__` of the user's called. Called by pickle."""
    exc = kind.__new__(kind, *args)
    with contextlib.suppress(TypeError):  # args that are not what that class takes
        _builtin(kind).__init__(exc, *args)  # it sets what is no attribute: `code` of SystemExit
    exc.__setstate__(state)
    return exc


def _builtin(kind: type[BaseException]) -> Any:
    """The class of Python's own that it is made from."""
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")
