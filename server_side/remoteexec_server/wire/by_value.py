"""Pickling by cloudpickle, which sends what the other end cannot import: by value.

Apart from `payload`, which can do without for most calls: it takes as long to import as all else of ours.
"""

from __future__ import annotations

import functools
import io
import linecache
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
            name = getattr(obj, "__module__", None)
            if self._by_value or name in MAINS:
                _send_by_value(name)
        return super().reducer_override(obj)

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
