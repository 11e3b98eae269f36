"""An exception as data: what it was, its text and traceback, and the exception itself where it can be pickled."""

from __future__ import annotations

import marshal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from .wire import payload
from .wire.payload import Pickled

_OURS = ("remoteexec_server.runner", "remoteexec_server.worker")


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
    if path is None:
        return
    try:
        text = f"function: {function!r}\nargs: {args!r}\nkwargs: {kwargs!r}\n{_traceback(exc)}\n\n"
        with open(path, "a") as file:
            file.write(text)
    except BaseException as why:  # a __repr__ of the user's, or a file that cannot be written
        print(f"error_log_file {path}: {why!r}", file=sys.stderr)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # a broken __str__ of the user's
        return f"<no text: {type(exc).__qualname__}.__str__ failed>"


def _traceback(exc: BaseException) -> str:
    """The traceback from the user's function on; our own frames tell nobody anything."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in _OURS:
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(exc), exc, trace)).rstrip()
    except Exception:
        return "".join(traceback.format_tb(trace)) + type(exc).__qualname__


def pickled(exc: BaseException, for_later: bool = False) -> Pickled | None:
    """An exception as bytes that load again, or None.

    Unpickling calls the class with `args`, which fails where `__init__` takes other arguments: then it is rebuilt
    without `__init__`.

    Args:
        for_later: see `payload.dumps_for_later`.
    """
    for candidate in (exc, _Rebuilt(exc)):
        try:
            found = payload.dumps_for_later(candidate) if for_later else payload.dumps(candidate, in_band=True)
            if type(payload.loads(found.data, found.buffers)) is type(exc):
                return found
        except BaseException:
            continue
    return None


class _Rebuilt:
    """Stands for an exception in a pickle."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        return rebuild_exception, (type(self._exc), self._exc.args, self._exc.__dict__)


def rebuild_exception(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """An exception as it was, its `__init__` not called. Called by pickle."""
    exc = kind.__new__(kind, *args)
    exc.args = args
    exc.__dict__.update(state)
    return exc
