"""Calls and results as bytes, and back: the one module that unpickles.

Large buffers (arrays) travel out of band (pickle protocol 5) and are never copied into a pickle. A reference to another
task's result is pickled as a call of `resolve`, so wherever in the arguments it stands, at any depth, the value is in
its place when the load is done; the argument is never searched.

Nothing here checks who wrote the bytes: callers have agreed on the header first (`header.check`).
"""

from __future__ import annotations

import io
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from .messages import TaskKey

OUT_OF_BAND = 4096
"""Bytes from which a buffer becomes a dataset of its own: below, a dataset costs more than the copy."""


@dataclass(frozen=True)
class Pickled:
    """An object as bytes, with the buffers it refers to, in order."""

    data: bytes
    buffers: tuple[memoryview, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.data) + sum(b.nbytes for b in self.buffers)


Reference = Callable[[Any], "tuple[Callable[..., Any], tuple[Any, ...]] | None"]
"""Told every object that is no plain container or number: how to pickle it, or None for the usual way."""

_values: ContextVar[Callable[[TaskKey], Any]] = ContextVar("values")
_slots: ContextVar[Sequence[Any]] = ContextVar("slots")


def resolve(key: TaskKey) -> Any:
    """The result of another task. Called by pickle while arguments are loaded."""
    return _values.get()(key)


def given(value: Any) -> Any:
    """A result that is known already, in place of the future it came from. Called by pickle."""
    return value


def slot(number: int) -> Any:
    """One of the values that a pickle is filled with. Called by pickle."""
    return _slots.get()[number]


def fill(data: bytes, buffers: Sequence[Any], values: Sequence[Any]) -> Any:
    """The object of a pickle that refers to `slot`s. Called by pickle."""
    token = _slots.set(values)
    try:
        return pickle.loads(data, buffers=buffers)
    finally:
        _slots.reset(token)


class Filled:
    """Stands, in a pickle, for what was pickled earlier with `slot`s for values that were not known yet."""

    def __init__(self, pickled: Pickled, values: Sequence[Any]) -> None:
        self._pickled, self._values = pickled, tuple(values)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return fill, (self._pickled.data, [pickle.PickleBuffer(view) for view in self._pickled.buffers], self._values)


def dumps(value: object, reference: Reference | None = None) -> Pickled:
    """Pickle by value what the other end cannot import, by cloudpickle.

    Raises:
        Whatever the object's own pickling raises, TypeError and PicklingError mostly.
    """
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        view = memoryview(buffer)
        if view.nbytes < OUT_OF_BAND:
            return True
        buffers.append(view if view.c_contiguous else buffer.raw())
        return False

    stream = io.BytesIO()
    _Pickler(stream, keep, reference).dump(value)
    return Pickled(stream.getvalue(), tuple(buffers))


def loads(data: bytes | memoryview, buffers: Sequence[Any] = (), values: Callable[[TaskKey], Any] | None = None) -> Any:
    """The object that `dumps` was given.

    Args:
        data: from a file whose header was checked.
        buffers: its out-of-band buffers; arrays are made on them without a copy.
        values: gives the results that the object refers to.
    """
    if values is None:
        return pickle.loads(data, buffers=buffers)
    token = _values.set(values)
    try:
        return pickle.loads(data, buffers=buffers)
    finally:
        _values.reset(token)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle that sends the user's own modules by value and asks about references."""

    def __init__(self, stream: io.BytesIO, keep: Callable[[pickle.PickleBuffer], bool], reference: Reference | None):
        super().__init__(stream, protocol=5, buffer_callback=keep)
        self._reference = reference

    def reducer_override(self, obj: Any) -> Any:
        if self._reference is not None:
            reduced = self._reference(obj)
            if reduced is not None:
                return reduced
        if isinstance(obj, (types.FunctionType, type)):
            _send_by_value(getattr(obj, "__module__", None))
        return super().reducer_override(obj)


_known: set[str] = set()


def _send_by_value(name: str | None) -> None:
    """Let cloudpickle send a module's functions and classes by value if the other end cannot be expected to have it."""
    if name is None or name in _known:
        return
    _known.add(name)
    module = sys.modules.get(name)
    if module is not None and name != "__main__" and _is_users_own(module):
        cloudpickle.register_pickle_by_value(module)


_INSTALLED = tuple({Path(sysconfig.get_path(p)).resolve() for p in ("stdlib", "platstdlib", "purelib", "platlib")})


def _is_users_own(module: types.ModuleType) -> bool:
    """A module beside the user's script, not one of the standard library, of site-packages, or of ours."""
    if module.__name__.partition(".")[0] in ("remoteexec", "remoteexec_server"):
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in _INSTALLED) and not (
        {"site-packages", "dist-packages"} & set(path.parts)
    )
