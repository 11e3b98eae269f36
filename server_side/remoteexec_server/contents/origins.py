"""Where code comes from: the user's own modules count by their content, installed ones by name and version."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

from ..wire import by_value, payload
from ..wire.names import MAINS


def is_own(name: str | None) -> bool:
    """Whether a module is the user's own: a script, a notebook, a file beside it, or nothing that can be found."""
    if name is None or name in MAINS:
        return True
    module = sys.modules.get(name)
    return module is None or _is_own_file(name, getattr(module, "__file__", None))


@functools.lru_cache(maxsize=10_000)
def _is_own_file(name: str, file: str | None) -> bool:
    module = types.ModuleType(name)
    module.__file__ = file
    return by_value.is_users_own(module)


def module_of(obj: Any) -> str | None:
    """The module in which a function or class was written: `functools.wraps` changes what `__module__` says."""
    if isinstance(obj, types.FunctionType):
        name = obj.__globals__.get("__name__")
        return name if isinstance(name, str) else None
    module = obj.__module__
    return module if isinstance(module, str) else None


def installed_place(obj: Any) -> tuple[str, str] | None:
    """Module and qualified name of an installed function or class that is known by them; None of any other."""
    if isinstance(obj, Source):
        return None
    module, name = module_of(obj), obj.__qualname__
    if module is None or is_own(module) or "<" in name or getattr(obj, "__closure__", None):
        return None
    return module, name


class Place(NamedTuple):
    """Where another process finds something of a module of the user's own.

    Attributes:
        module: its name.
        path: attributes from there on; none of a module that is used as a whole: see Source.
    """

    module: str
    path: tuple[str, ...]

    def find(self) -> Any:
        """What is there; None of what is not.

        Raises:
            ImportError: there is no such module. Whatever else it raises when it is imported.
        """
        if not self.path:
            return source(self.module)
        found: Any = importlib.import_module(self.module)
        for name in self.path:
            found = getattr(found, name, None)
        return found


def place_of(obj: Any) -> Place | None:
    """Where another process finds a function, class or module of the user's own; None if it is sent by value."""
    if isinstance(obj, Source):
        return Place(obj.name, ()) if obj.path is not None else None
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    if module in MAINS or module in payload.sent_by_value():
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return Place(module, tuple(name.split("."))) if found is obj else None


@functools.cache
def version(module: str) -> str:
    """Version of the distribution that a module is from; "" for the standard library, and where nobody knows.

    It is taken from what is installed, not from the module, which one session may have imported and another not.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    import importlib.metadata as metadata

    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        pass
    for distribution in metadata.packages_distributions().get(top, ()):
        return metadata.version(distribution)
    return ""


class Source:
    """A module as a file: what counts of one that is used as a whole, or imported while a function runs.

    Its file counts and not its content in memory, since one session may have imported it and another not.

    Attributes:
        name: of the module.
        path: None where it has no file, or is not the user's own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _own_file(name)

    def code(self) -> types.CodeType | bytes:
        """Its code; of what is no Python the bytes."""
        if self.path is None:
            return b""
        data = self.path.read_bytes()
        if self.path.suffix != ".py":
            return data
        return compile(data, "", "exec", dont_inherit=True)


@functools.lru_cache(maxsize=10_000)
def source(name: str) -> Source:
    """The module of a name; the same object for the same name."""
    return Source(name)


def _own_file(name: str) -> Path | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, AttributeError, ValueError):  # a parent that is no package, or fails
            found = None
        file = found.origin if found is not None and found.has_location else None
    if file is None:
        return None
    return Path(file) if _is_own_file(name, file) else None


def absolute(name: str, level: int, package: str | None) -> str | None:
    """The full name of what `from ..name import` means in a package; None if it means nothing."""
    if level == 0:
        return name
    parts = (package or "").split(".")
    if not package or level > len(parts):
        return None
    base = ".".join(parts[: len(parts) - level + 1])
    return f"{base}.{name}" if name else base
