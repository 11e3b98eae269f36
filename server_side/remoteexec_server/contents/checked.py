"""Whether a worker finds under a name what the client has under it: else its result would stand under a wrong key.

The key of a call is made from what the client has in memory. A worker imports the user's modules from their files, and
a kept one did so some time ago: a file that was edited, `importlib.reload`, or a constant that was set in the client
make the two differ. So a function that is to be cached travels with the digest of what it will use by name, and the
worker compares that with its own when it loads the function.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..wire import payload
from ..wire.payload import Pickled
from . import origins
from .objects import Contents


class Check(NamedTuple):
    """What has to be the same in the process that runs a call.

    Attributes:
        places: each once.
        digest: of what the client has there.
    """

    places: tuple[origins.Place, ...]
    digest: bytes


def check(places: Iterable[origins.Place]) -> Check | None:
    """The check of these places, as they are in this process; None if there are none.

    Raises:
        NoContent: names what cannot be taken apart.
    """
    found = tuple(dict.fromkeys(places))
    return Check(found, _digest(found)) if found else None


def _digest(places: Sequence[origins.Place]) -> bytes:
    # installed packages are the same here and there
    return Contents(versions=False).digest(*[place.find() for place in places])


class Checked:
    """Stands, in a pickle, for a function that is compared when it is loaded."""

    def __init__(self, function: Pickled, wanted: Check) -> None:
        self._function, self._wanted = function, wanted

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        buffers = [pickle.PickleBuffer(view) for view in self._function.buffers]
        places = [tuple(place) for place in self._wanted.places]
        return verified, (self._function.data, buffers, places, self._wanted.digest)


def verified(data: bytes, buffers: Sequence[Any], places: Sequence[tuple[str, tuple[str, ...]]], digest: bytes) -> Any:
    """The function, as `payload.Altered` where this process differs. Called by pickle."""
    imported = set(sys.modules)
    function = payload.loads(data, buffers)
    wanted = Check(tuple(origins.Place(*place) for place in places), digest)
    if wanted not in _compared:
        if len(_compared) >= _MOST_COMPARED:
            _compared.clear()
        _compared[wanted] = _same(wanted, imported)
    if _compared[wanted]:
        return function
    return payload.Altered(function, sorted({place.module for place in wanted.places}))


_MOST_COMPARED = 1000
_compared: dict[Check, bool] = {}
"""Once in a process: what calls change afterwards, a module's table of known results say, does not count."""


def _same(wanted: Check, imported: set[str]) -> bool:
    try:
        return _digest(wanted.places) == wanted.digest and not any(_edited(place, imported) for place in wanted.places)
    except BaseException:  # a module that is not to be had here, or whose objects raise: then they are not the same
        return False


def _edited(place: origins.Place, imported: set[str]) -> bool:
    """Whether a module that is known by its file may have been imported here before that was written."""
    from .. import worker  # late: it imports this package for calls that are cached only

    if place.path or place.module not in imported:
        return False
    path = origins.source(place.module).path
    return path is not None and path.stat().st_mtime > worker.started()
