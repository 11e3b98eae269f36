"""Calls for a pool: pickled at once, held until the futures among their arguments are done, then run.

submit ─ pickle ─ no futures inside ──────────────────────────▶ run
                └ futures inside: told of each one's end ─ all have results ─▶ run, the results pickled beside the
                call
                                                        └ one failed or was cancelled ─▶ the future fails like it
"""

from __future__ import annotations

import concurrent.futures
import itertools
import pickle
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from remoteexec_server.wire import payload, pooled
from remoteexec_server.wire.names import MAINS
from remoteexec_server.wire.payload import Pickled

from ..futures import referred_by
from ..pool.tasks import Function
from .unpicklable import blame_argument, blame_function

if TYPE_CHECKING:
    from remoteexec_server.contents.checked import Check

_MOST_KNOWN = 1000
"""Functions remembered: enough for a workflow's, few enough for a loop over lambdas."""
_MOST_RECENT = 200
_SMALL = 1 << 16
"""How many functions, of up to so many bytes, are held though nobody calls them now. One that is pickled with each call
is the same to a worker, with what it keeps in its globals, as long as its bytes have the same number."""
_CONSTANT = (int, float, complex, str, bytes, bool, type(None), type(...), range, types.ModuleType)
_CLOUDPICKLE = b"cloudpickle"
"""In every pickle of a function by value: what makes it again is in there."""
_ABSENT = object()


class Functions:
    """Pickled functions, each pickled again only if it may have changed.

    A function's code and defaults are part of it, and so are the globals and closure cells it uses. It is known to be
    unchanged while all of these are the same objects, of kinds that cannot change: numbers, texts, modules, what
    modules have under its name, other such functions. A function that uses a list, say, is pickled at every call.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._by_bytes: weakref.WeakValueDictionary[bytes, Function] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[bytes, Function] = OrderedDict()  # held: workers keep what such a function keeps
        self._known: dict[Any, tuple[_Uses, Function]] = {}
        self._checked: dict[tuple[Function, Check], Function] = {}
        self._lock = threading.Lock()  # guards the dictionaries

    def get(self, fn: Callable[..., Any]) -> Function:
        """The pickled function.

        Raises:
            errors.CallNotPicklable: names the function.
        """
        try:
            known = self._known.get(fn)
        except TypeError:  # cannot be hashed
            return self._pickled(fn)[1]
        if known is not None and known[0].unchanged():
            return known[1]
        uses, function = self._pickled(fn)
        if uses.fixed and not pooled.is_large(function.data, function.buffers):
            with self._lock:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[fn] = (uses, function)
        return function

    def checked(self, function: Function, check: Check) -> Function:
        """The same for a worker that compares, when it loads it, what it finds by name.

        It is remembered, so that a kept worker compares once, before its calls have changed anything in its modules.
        """
        from remoteexec_server.contents.checked import Checked  # late: few executors keep results

        known = self._checked.get((function, check))
        if known is None:
            pickled = payload.dumps(Checked(Pickled(function.data, function.buffers), check), by_value=False)
            known = self.of_bytes(pickled.data, pickled.buffers)
            with self._lock:
                if len(self._checked) >= _MOST_KNOWN:
                    self._checked.clear()
                if not pooled.is_large(known.data, known.buffers):
                    self._checked[function, check] = known
        return known

    def _pickled(self, fn: Callable[..., Any]) -> tuple[_Uses, Function]:
        try:
            pickled = payload.dumps_here(fn)
        except BaseException as exc:  # whatever the objects that it uses raise
            raise blame_function(fn, exc) from exc
        uses = _Uses(fn, by_name=_CLOUDPICKLE not in pickled.data)
        # copied: they are sent when the call's turn comes, and the caller may change his arrays before that
        return uses, self.of_bytes(pickled.data, [memoryview(bytes(view)) for view in pickled.buffers])

    def of_bytes(self, data: bytes, buffers: Sequence[memoryview] = ()) -> Function:
        """The pickled function that these bytes are."""
        with self._lock:
            function = self._by_bytes.get(data) if not buffers else None
            if function is None:
                function = Function(next(self._numbers), data, tuple(buffers))
                if not buffers:
                    self._by_bytes[data] = function
            if not buffers and len(data) <= _SMALL:
                self._recent[data] = function
                self._recent.move_to_end(data)
                if len(self._recent) > _MOST_RECENT:
                    self._recent.popitem(last=False)
        return function


class _Uses:
    """What a function's meaning depends on.

    Attributes:
        fixed: none of it can change unnoticed.

    Args:
        by_name: it was pickled as a name, and is what the worker finds under that.
    """

    def __init__(self, fn: Callable[..., Any], by_name: bool) -> None:
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        if isinstance(fn, types.FunctionType):
            self.fixed = by_name or self._follow(fn)
        else:
            self.fixed = by_name and _found_by_name(fn)

    def unchanged(self) -> bool:
        """Whether all of it is what it was."""
        for fn, code, defaults, kwdefaults in self._functions:
            if fn.__code__ is not code or fn.__defaults__ is not defaults or fn.__kwdefaults__ != kwdefaults:
                return False
            if fn.__dict__:
                return False
        for names, name, value in self._globals:
            if names.get(name, _ABSENT) is not value:
                return False
        try:
            for cell, value in self._cells:
                if cell.cell_contents is not value:
                    return False
        except ValueError:  # a cell that somebody emptied
            return False
        return True

    def _follow(self, fn: types.FunctionType) -> bool:
        """Note what a function uses; whether all of it is of kinds that cannot change."""
        if any(fn is known[0] for known in self._functions):
            return True
        kwdefaults = dict(fn.__kwdefaults__) if fn.__kwdefaults__ is not None else None
        self._functions.append((fn, fn.__code__, fn.__defaults__, kwdefaults))
        try:
            cells = [(cell, cell.cell_contents) for cell in fn.__closure__ or ()]
        except ValueError:  # a cell that is still empty
            return False
        names = fn.__globals__
        used = [(names, name, names.get(name, _ABSENT)) for name in _names(fn.__code__)]
        self._cells += cells
        self._globals += used
        values = [value for _, _, value in used if value is not _ABSENT] + [value for _, value in cells]
        values += [*(fn.__defaults__ or ()), *(kwdefaults or {}).values()]
        return not fn.__dict__ and all(self._cannot_change(value) for value in values)

    def _cannot_change(self, value: Any) -> bool:
        if isinstance(value, _CONSTANT):
            return True
        if isinstance(value, (tuple, frozenset)):
            return all(self._cannot_change(item) for item in value)
        return _found_by_name(value) or (isinstance(value, types.FunctionType) and self._follow(value))


def _names(code: types.CodeType) -> set[str]:
    """Names that may be globals' in a function and the functions inside of it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _found_by_name(value: Any) -> bool:
    """A function or class that travels as a name, so what it is does not travel at all."""
    name, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(name, str) or not isinstance(path, str):
        return False
    if name in MAINS or name in payload.sent_by_value():
        return False
    found: Any = sys.modules.get(name)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found is value


Futures = list[concurrent.futures.Future[Any]]


def pickle_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Pickled, Futures]:
    """The arguments as bytes, and the futures they refer to, in the order of the references.

    Raises:
        errors.CallNotPicklable: names the argument that cannot travel.
    """
    for value in args:
        if type(value) not in payload.ATOMS:
            break
    else:
        if not kwargs:
            return payload.Pickled(pickle.dumps((args, kwargs), 5)), []
    futures: Futures = []
    numbers: dict[int, int] = {}

    def refer(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        if not isinstance(obj, concurrent.futures.Future):
            return None
        number = numbers.setdefault(id(obj), len(futures))  # known if the C pickler has tried before
        if number == len(futures):
            futures.append(obj)
        return payload.resolve, (str(number),)

    try:
        with referred_by(refer):
            return payload.dumps_here((args, kwargs), refer), futures
    except BaseException as exc:  # whatever the arguments raise
        with referred_by(refer):
            blamed = blame_argument(fn, args, kwargs, exc, lambda value: payload.dumps_here(value, refer))
        raise blamed from exc


class Held:
    """A call that waits for the futures among its arguments.

    Futures remember who waits for them as long as they live, so this lets go of the call when it is handed on.

    Args:
        call: what `launch` is called with.
        launch: called once, on any thread, when every future has a result or one has failed.
    """

    __slots__ = ("_call", "_failed", "_launch", "_left")

    def __init__(self, futures: Futures, call: Any, launch: Callable[[Any], None]) -> None:
        self._left = itertools.count(len(futures) - 1, -1)  # counts atomically
        self._failed = itertools.count()
        self._call, self._launch = [call], launch
        for future in futures:
            future.add_done_callback(self._done)

    def _done(self, future: concurrent.futures.Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None:
            if next(self._failed) == 0:
                self._go()
        elif next(self._left) == 0:
            self._go()

    def _go(self) -> None:
        self._launch(self._call.pop())


def failure_of(futures: Sequence[concurrent.futures.Future[Any]]) -> BaseException | None:
    """What the first of them that failed has failed with; None if none has."""
    for future in futures:
        if future.done():
            if future.cancelled():
                return concurrent.futures.CancelledError()
            exc = future.exception()
            if exc is not None:
                return exc
    return None


def inputs_of(
    futures: Sequence[concurrent.futures.Future[Any]],
) -> list[tuple[bytes, Sequence[memoryview]]]:
    """The results of futures that are done, each pickled, with its buffers."""
    pickled = [payload.dumps_here(future.result()) for future in futures]
    return [(each.data, each.buffers) for each in pickled]
