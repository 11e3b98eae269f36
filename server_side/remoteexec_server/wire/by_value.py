"""Pickling by cloudpickle, which sends what the other end cannot import: by value.

Apart from `payload`, which can do without for most calls: it takes as long to import as all else of ours.
"""

from __future__ import annotations

import functools
import io
import itertools
import linecache
import operator
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from .names import MAINS

if TYPE_CHECKING:
    from .payload import Reference


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle that sends the user's own modules by value and asks about references."""

    def __init__(
        self,
        stream: io.BytesIO,
        keep: Callable[[Any], bool] | None,
        reference: Reference | None,
        by_value: bool,
    ) -> None:
        super().__init__(stream, protocol=5, buffer_callback=keep)
        self._reference, self._by_value = reference, by_value
        self._sources: dict[str, str | None] = {}  # by file name; one object each, so that it is pickled once

    def reducer_override(self, obj: Any) -> Any:
        if self._reference is not None:
            reduced = self._reference(obj)
            if reduced is not None:
                return reduced
        if type(obj) is types.CodeType:
            return self._code(obj)
        if isinstance(obj, (types.FunctionType, type)):
            self._see_to_module(obj)
        again = _AGAIN.get(obj.__code__ if type(obj) is types.FunctionType else type(obj))
        if again is not None:
            self._see_to_module(obj)
            if not _is_importable(obj):
                return again(obj)
        return super().reducer_override(obj)

    def _see_to_module(self, obj: Any) -> None:
        name = getattr(obj, "__module__", None)
        if self._by_value or name in MAINS:
            _send_by_value(name)

    def _code(self, code: types.CodeType) -> Any:
        """A function's code; with its source, if tracebacks at the other end could not show that otherwise."""
        name = code.co_filename
        if name not in self._sources:
            self._sources[name] = _source_without_file(name)
        source = self._sources[name]
        make, parts = self.dispatch_table[types.CodeType](code)
        parts = (*parts[:_FILE], "".join(name), *parts[_FILE + 1 :])  # which cloudpickle 3.1.3 leaves out
        return (make, parts) if source is None else (code_with_source, (source, name, *parts))


_FILE = 10
"""Where `types.CodeType` takes the name of the file."""
_LONGEST_SOURCE = 1 << 18
"""Characters. Picked, not measured: no cell of a notebook is longer, but what a program has written may be."""


def _source_without_file(name: str) -> str | None:
    """The text of a notebook's cell, or of what was typed at a prompt; None if it is in a file, or nobody knows it."""
    entry = linecache.cache.get(name)
    if entry is None or len(entry) != 4 or os.path.exists(name):
        return None
    source = "".join(entry[2])
    return source if len(source) <= _LONGEST_SOURCE else None


def code_with_source(source: str, name: str, *parts: Any) -> types.CodeType:
    """Code whose source tracebacks in this process can show. Called by pickle."""
    linecache.cache[name] = len(source), None, source.splitlines(True), name
    return types.CodeType(*parts)


def _lru_cache(obj: Any) -> Any:
    """A function that remembers its results: the same, with nothing remembered. Python says no more than its name."""
    state = {name: value for name, value in vars(obj).items() if name != "cache_parameters"}
    return lru_cached, (obj.__wrapped__, obj.cache_parameters()), state


def lru_cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """A function that remembers its results. Called by pickle."""
    return functools.lru_cache(**parameters)(function)


def _descriptor(obj: Any) -> Any:
    """One without its lock (until Python 3.11), and without what it has been asked (from 3.13 on)."""
    return type(obj), (obj.func,), {n: v for n, v in vars(obj).items() if n not in ("lock", "_method_cache")}


def _single_dispatch(obj: Any) -> Any:
    """What its functions are registered for, without its weak references to classes that it has been called with."""
    own = {name: value for name, value in vars(obj).items() if name not in _OF_DISPATCH}
    state = dict(obj.registry), {**own, **{name: getattr(obj, name) for name in _NAMES}}
    return functools.singledispatch, (obj.registry[object],), state, None, None, register_all


def register_all(dispatcher: Any, state: tuple[dict[type, Callable[..., Any]], dict[str, Any]]) -> None:
    """The functions of a `singledispatch`, and its attributes. Called by pickle."""
    registry, attributes = state
    for kind, function in registry.items():
        dispatcher.register(kind, function)
    for name, value in attributes.items():
        setattr(dispatcher, name, value)


_OF_DISPATCH = frozenset(vars(functools.singledispatch(print)))
_NAMES = ("__module__", "__name__", "__qualname__", "__doc__")
_AGAIN: dict[Any, Callable[[Any], Any]] = {
    functools._lru_cache_wrapper: _lru_cache,
    functools.cached_property: _descriptor,
    functools.singledispatchmethod: _descriptor,
    functools.singledispatch(print).__code__: _single_dispatch,  # type: ignore[attr-defined]  # a function, in fact
}
"""How to make again what neither Python nor cloudpickle can send by value: by type, of functions by code."""


def _is_importable(obj: Any) -> bool:
    """Whether the other end finds this by module and name."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if module not in sys.modules or module in MAINS or name is None:
        return False
    packages = list(itertools.accumulate(module.split("."), "{}.{}".format))
    if not cloudpickle.list_registry_pickle_by_value().isdisjoint(packages):
        return False
    try:
        found: object = operator.attrgetter(name)(sys.modules[module])
    except AttributeError:
        return False
    return found is obj


_known: set[str] = set()


def _send_by_value(name: str | None) -> None:
    """Let cloudpickle send a module's functions and classes by value if the other end cannot be expected to have it."""
    if name is None or name in _known:
        return
    _known.add(name)
    module = sys.modules.get(name)
    if module is not None and name != "__main__" and (name in MAINS or is_users_own(module)):
        cloudpickle.register_pickle_by_value(module)


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Where modules are that are nobody's own."""
    import sysconfig  # late: it reads how Python was built

    return tuple({Path(sysconfig.get_path(p)).resolve() for p in ("stdlib", "platstdlib", "purelib", "platlib")})


def is_users_own(module: types.ModuleType) -> bool:
    """A module beside the user's script, not one of the standard library, of site-packages, or of ours."""
    if module.__name__.partition(".")[0] in ("remoteexec", "remoteexec_server"):
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    path = Path(file).resolve()
    if any(path.is_relative_to(place) for place in _installed()) or {"site-packages", "dist-packages"} & set(
        path.parts
    ):
        return False
    depth = module.__name__.count(".") + (path.stem == "__init__")
    return len(path.parents) <= depth or module.__name__.partition(".")[0] not in _installed_in(path.parents[depth])


@functools.cache
def _installed_in(directory: Path) -> frozenset[str]:
    """What `pip install --target` has put beside modules of the user's own: nobody's own, and cloudpickle, which may be
    among it, cannot send itself."""
    records = [path.read_text("utf-8", "replace") for path in directory.glob("*.dist-info/RECORD")]
    files = (line.partition(",")[0] for record in records for line in record.splitlines())
    return frozenset(file.partition("/")[0].removesuffix(".py") for file in files)
