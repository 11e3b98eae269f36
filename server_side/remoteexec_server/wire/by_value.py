"""Pickling by cloudpickle, which sends what the other end cannot import: by value.

Apart from `payload`, which can do without for most calls: it takes as long to import as all else of ours.
"""

from __future__ import annotations

import functools
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

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

    def reducer_override(self, obj: Any) -> Any:
        if self._reference is not None:
            reduced = self._reference(obj)
            if reduced is not None:
                return reduced
        if self._by_value and isinstance(obj, (types.FunctionType, type)):
            _send_by_value(getattr(obj, "__module__", None))
        return super().reducer_override(obj)


_known: set[str] = set()


def _send_by_value(name: str | None) -> None:
    """Let cloudpickle send a module's functions and classes by value if the other end cannot be expected to have it."""
    if name is None or name in _known:
        return
    _known.add(name)
    module = sys.modules.get(name)
    if module is not None and name != "__main__" and is_users_own(module):
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
    return not any(path.is_relative_to(place) for place in _installed()) and not (
        {"site-packages", "dist-packages"} & set(path.parts)
    )
