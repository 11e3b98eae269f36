"""Calls made ready to travel: pickled on the caller's thread, so that what cannot travel is said by `submit` itself."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import BurstId, Entry, Submit, TaskKey
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.wire.resources import Resources

from .. import errors
from ..futures import TaskFuture, function_name
from ..selections import Selection
from .unpicklable import blame_argument, blame_function


@dataclass(frozen=True)
class Call:
    """One call, ready to travel.

    Attributes:
        name: of the function.
        inputs: tasks of the same executor whose results the arguments refer to, by key.
        slots: futures of other executors that the arguments have slots for: see `Pickler.fill`.
        foreign: futures of other executors that have to be done before.
    """

    function: Pickled
    arguments: Pickled
    name: str
    resources: Resources
    inputs: Mapping[TaskKey, TaskFuture[Any]]
    slots: Sequence[concurrent.futures.Future[Any]] = ()
    foreign: Sequence[concurrent.futures.Future[Any]] = ()

    @property
    def size(self) -> int:
        """Bytes in a bundle; the function is counted with its first call only, so not here."""
        return self.arguments.size


class ForeignFailed(Exception):
    """A future of another executor among the arguments has failed, for the reason in `__cause__`."""


class Pickler:
    """Pickles calls for one executor.

    A function is pickled with each call, since the globals and closures it uses may have changed; equal bytes are kept,
    sent and stored once.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._known: weakref.WeakValueDictionary[bytes, Pickled] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()  # guards _known

    def pickle(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resources: Resources,
        function: Pickled | None = None,
    ) -> Call:
        """Make a call ready.

        Args:
            function: `fn` as `pickle_function` gave it, where it is known not to have changed.

        Raises:
            errors.CallNotPicklable: names the argument, or the function, that cannot travel.
            ForeignFailed: an argument is a future of another executor, and has failed.
        """
        references = _References(self._owner)
        function = function or self.pickle_function(fn)
        try:
            arguments = _detached(payload.dumps((args, kwargs), references))
        except ForeignFailed:
            raise
        except Exception as exc:  # whatever the user's own pickling raises
            raise blame_argument(fn, args, kwargs, exc, self._try) from exc
        slots = tuple(references.foreign)
        return Call(function, arguments, function_name(fn), resources, references.inputs, slots, slots)

    def fill(self, call: Call) -> Call:
        """The call with the results of other executors' futures in their slots; all else is what it was at `submit`.

        Returns:
            The same call, its `foreign` being what is still to be waited for; or one without slots.

        Raises:
            errors.CallNotPicklable: one of the results cannot travel.
            ForeignFailed: one of the futures has failed.
        """
        waiting = tuple(future for future in call.slots if not future.done())
        if waiting:
            return replace(call, foreign=waiting)
        references = _References(self._owner)
        values = [_result(future) for future in call.slots]
        try:
            arguments = _detached(payload.dumps(payload.Filled(call.arguments, values), references))
        except ForeignFailed:
            raise
        except Exception as exc:
            raise errors.CallNotPicklable(
                f"the result of another executor's future among the arguments cannot be pickled: {exc}"
            ) from exc
        if references.foreign:  # futures among the results
            return replace(call, foreign=tuple(references.foreign))
        return Call(call.function, arguments, call.name, call.resources, {**call.inputs, **references.inputs})

    def pickle_function(self, fn: Callable[..., Any]) -> Pickled:
        """A function as bytes; the same object for the same bytes.

        Raises:
            errors.CallNotPicklable: names the function.
        """
        try:
            pickled = _detached(payload.dumps(fn))
        except Exception as exc:
            raise blame_function(fn, exc) from exc
        if pickled.buffers:
            return pickled
        with self._lock:
            return self._known.setdefault(pickled.data, pickled)

    def _try(self, value: Any) -> None:
        with contextlib.suppress(ForeignFailed):
            payload.dumps(value, _References(self._owner))


def bundle(burst: BurstId, keys: Sequence[TaskKey], calls: Sequence[Call], key: bytes) -> tuple[Submit, bytes]:
    """One burst: what is said of it, and its file. Equal functions and resources stand in it once."""
    from remoteexec_server.store import hdf5  # late: h5py takes as long to import as all else

    functions: dict[int, int] = {}
    pickled: list[Pickled] = []
    resources: dict[Resources, int] = {}
    entries: list[Entry] = []
    arguments: list[hdf5.Call] = []
    for task, call in zip(keys, calls, strict=True):
        if id(call.function) not in functions:
            functions[id(call.function)] = len(pickled)
            pickled.append(call.function)
        arguments.append(hdf5.Call(functions[id(call.function)], call.arguments))
        which = resources.setdefault(call.resources, len(resources))
        entries.append(Entry(task, which, tuple(call.inputs), call.name))
    data = hdf5.write_bundle(burst, pickled, arguments, key)
    return Submit(burst, tuple(entries), tuple(resources), len(data)), data


class _References:
    """Futures among arguments, as pickle meets them."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self.inputs: dict[TaskKey, TaskFuture[Any]] = {}
        self.foreign: list[concurrent.futures.Future[Any]] = []

    def __call__(self, obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        if not isinstance(obj, concurrent.futures.Future):
            return None
        if isinstance(obj, TaskFuture) and obj.owner is self._owner:
            self.inputs[obj.key] = obj
            return payload.resolve, (obj.key,)
        if isinstance(obj, Selection) and not obj.cancelled() and self._own(obj.source):
            return payload.selected, (obj.source, obj.key)  # the source is met next
        if not obj.done():
            self.foreign.append(obj)
            return payload.slot, (len(self.foreign) - 1,)
        return payload.given, (_result(obj),)

    def _own(self, future: concurrent.futures.Future[Any]) -> bool:
        """Whether its result is, or can be made from, that of a task of this executor."""
        while isinstance(future, Selection):
            future = future.source
        return isinstance(future, TaskFuture) and future.owner is self._owner


def _result(future: concurrent.futures.Future[Any]) -> Any:
    try:
        return future.result()
    except BaseException as exc:
        raise ForeignFailed(str(exc)) from exc


def _detached(pickled: Pickled) -> Pickled:
    return Pickled(pickled.data, tuple(_own(view) for view in pickled.buffers))


def _own(view: memoryview) -> memoryview:
    """A copy: the caller may change its array as soon as `submit` has returned."""
    import numpy as np

    try:
        return np.array(view).data
    except (TypeError, ValueError):  # a format numpy does not know
        return memoryview(bytes(view))
