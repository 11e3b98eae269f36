"""Who is to blame when a call cannot be pickled: the function, or which of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import errors


def blame_function(fn: object, exc: BaseException) -> errors.CallNotPicklable:
    """For a function whose pickling raised this."""
    return errors.CallNotPicklable(
        f"function {_name(fn)} cannot be pickled: {exc}; does it use a lock, an open file or a connection "
        "from outside? Make that inside the function"
    )


def blame_argument(
    fn: object, args: Sequence[Any], kwargs: Mapping[str, Any], exc: BaseException, dumps: Callable[[Any], object]
) -> errors.CallNotPicklable:
    """For arguments whose pickling raised this: each is pickled by itself until one fails."""
    named = {f"argument {n}": arg for n, arg in enumerate(args, 1)} | {f"argument {k!r}": v for k, v in kwargs.items()}
    for name, value in named.items():
        try:
            dumps(value)
        except Exception as why:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return errors.CallNotPicklable(f"{name} of {_name(fn)}, a {kind}, cannot be pickled: {why}")
    return errors.CallNotPicklable(f"the arguments of {_name(fn)} cannot be pickled: {exc}")


def _name(fn: object) -> str:
    return repr(getattr(fn, "__qualname__", None) or fn)
