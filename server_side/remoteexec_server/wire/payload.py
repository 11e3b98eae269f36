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
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from .names import TaskKey

OUT_OF_BAND = 4096
"""Bytes from which a buffer becomes a dataset of its own: below, a dataset costs more than the copy."""

ATOMS = frozenset((type(None), bool, int, float, complex, str))
"""Types whose pickles refer to nothing, so that nothing has to be looked for in them."""


@dataclass
class Pickled:
    """An object as bytes, with the buffers it refers to, in order. Nobody changes one.

    It is not frozen, which takes three times as long to make: every call of a pool makes two.
    """

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


class Altered(NamedTuple):
    """A function that is not, in this process, what it is in that of the caller; see `contents.checked`.

    Attributes:
        function: as it is here.
        modules: that it is made of here and there.
    """

    function: Callable[..., Any]
    modules: Sequence[str]


class SelectionError(Exception):
    """The item that was asked for is not there; the reason is `__cause__`."""


def select(value: Any, key: Any) -> Any:
    """One item of a result; None of None."""
    return None if value is None else value[key]


def selected(value: Any, key: Any) -> Any:
    """The same, called by pickle.

    Raises:
        SelectionError: so that this is not taken for arguments that cannot be loaded.
    """
    try:
        return select(value, key)
    except Exception as exc:  # whatever the value's own `[]` raises
        raise SelectionError(str(exc)) from exc


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


def dumps(
    value: object,
    reference: Reference | None = None,
    *,
    in_band: bool = False,
    by_value: bool = True,
    out_of_band: int = OUT_OF_BAND,
) -> Pickled:
    """Pickle by cloudpickle.

    Args:
        reference: see Reference.
        in_band: all in one, no buffers beside it.
        by_value: send what is in modules of the user's own by value, for an end that cannot import them.
        out_of_band: bytes from which a buffer is beside it.

    Raises:
        Whatever the object's own pickling raises, TypeError and PicklingError mostly.
    """
    from .by_value import Pickler  # late: it takes a while, and numbers and arrays never need it

    buffers: list[memoryview] = []
    stream = io.BytesIO()
    Pickler(stream, None if in_band else _keeper(buffers, out_of_band), reference, by_value).dump(value)
    return Pickled(stream.getvalue(), tuple(buffers))


def _keeper(buffers: list[memoryview], least: int = OUT_OF_BAND) -> Callable[[pickle.PickleBuffer], bool]:
    """Takes buffers out of band from so many bytes on."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        view = memoryview(buffer)
        if view.nbytes < least:
            return True
        buffers.append(view if view.c_contiguous else buffer.raw())
        return False

    return keep


def dumps_here(value: object, reference: Reference | None = None) -> Pickled:
    """Pickle for another process of this machine: by the C pickler, and by cloudpickle only where that fails.

    References have to be objects that the C pickler refuses.
    """
    if type(value) in ATOMS:
        return Pickled(pickle.dumps(value, 5))
    buffers: list[memoryview] = []
    try:
        data = pickle.dumps(value, protocol=5, buffer_callback=_keeper(buffers))
        # the other end has another script (of both MAINS this is a part), and need not have the others
        if b"_main__" not in data and not any(name.encode() in data for name in sent_by_value()):
            return Pickled(data, tuple(buffers))
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    return dumps(value, reference, by_value=False)


def sent_by_value() -> set[str]:
    """Names of the modules whose functions and classes cloudpickle sends by value: who told it so has imported it."""
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else set()


class _ByName(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, buffers: list[memoryview], reference: Reference) -> None:
        super().__init__(stream, protocol=5, buffer_callback=_keeper(buffers))
        self._reference = reference

    def reducer_override(self, obj: Any) -> Any:
        return self._reference(obj) or NotImplemented


def dumps_for_later(value: object, reference: Reference | None = None) -> Pickled:
    """Pickle for a later run of the same script, which will have the same things in `__main__`: so by their names.

    By cloudpickle, it would get classes of its own back as strangers of the same name.
    """
    buffers: list[memoryview] = []
    try:
        if reference is None:
            return Pickled(pickle.dumps(value, protocol=5, buffer_callback=_keeper(buffers)), tuple(buffers))
        stream = io.BytesIO()
        _ByName(stream, buffers, reference).dump(value)
        return Pickled(stream.getvalue(), tuple(buffers))
    except (pickle.PicklingError, AttributeError, TypeError):
        return dumps(value, reference, by_value=False)


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
