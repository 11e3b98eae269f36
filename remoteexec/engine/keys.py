"""The key of a call: equal for calls that mean the same, in every session of one Python minor version.

    function   its code, closure and defaults, the globals it uses, and the same of the user's own functions and
               classes that it uses; of installed ones name and version
    arguments  their contents, by parameter: `f(1)` and `f(x=1)` are one call
    futures    the key of the call that they stand for; if they have none, their result

See `remoteexec_server.contents` for what an object's contents are, and docs/cache.md for what the key does not cover.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from remoteexec_server.contents.checked import Check, check
from remoteexec_server.contents.objects import Contents, NameFuture, NoContent
from remoteexec_server.contents.origins import Place
from remoteexec_server.wire.header import PYTHON

__all__ = ["CallKey", "NoContent", "call_key"]

_FORMAT = "1"
"""Raised when a key is made in another way, so that no old entry is taken for a new one."""
_MOST_CHECKS = 1000
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")


@dataclass(frozen=True)
class CallKey:
    """The key of one call.

    Attributes:
        label: the function's name, for people who look at files.
        digest: over everything but the results of `futures`.
        futures: that are part of the key with their results.
        check: whether another process would run what the key says; None: it is sent all of that.
    """

    label: str
    digest: bytes
    futures: tuple[concurrent.futures.Future[Any], ...] = ()
    check: Check | None = None

    @property
    def known(self) -> bool:
        """Whether `name` can be told now."""
        return all(future.done() and not future.cancelled() and future.exception() is None for future in self.futures)

    def name(self) -> str:
        """The key as a file name; all futures have results.

        Raises:
            NoContent: one of the results cannot be taken apart.
        """
        parts = [self.digest, *(Contents().digest(future.result()) for future in self.futures)]
        return f"{self.label}-{hashlib.blake2b(b''.join(parts), digest_size=16).hexdigest()}"


def call_key(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name_future: NameFuture | None = None,
    beside: tuple[object, ...] = (),
) -> CallKey:
    """The key of `fn(*args, **kwargs)`.

    Args:
        name_future: see NameFuture.
        beside: what the result depends on besides.

    Raises:
        NoContent: names what cannot be taken apart.
    """
    fn, args, kwargs = _without_partial(fn, args, kwargs)
    callee = Contents()
    function = callee.digest(fn, *beside)
    arguments = Contents(name_future)
    given = arguments.digest(*bound(fn, args, kwargs))
    digest = hashlib.blake2b(b"\0".join((_FORMAT.encode(), PYTHON.encode(), function, given))).digest()
    compared = _check([*callee.places, *arguments.places], function if not arguments.places else None)
    return CallKey(_label(fn), digest, tuple(arguments.futures), compared)


def _without_partial(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The same call of the function that a `functools.partial` calls."""
    while isinstance(fn, functools.partial) and _adds_nothing(fn):
        part: functools.partial[Any] = fn
        fn, args, kwargs = part.func, (*part.args, *args), {**part.keywords, **kwargs}
    return fn, args, kwargs


def _adds_nothing(fn: functools.partial[Any]) -> bool:
    """Whether it is no more than function and first arguments; from Python 3.14 on, it may leave gaps among these."""
    gap = getattr(functools, "Placeholder", None)
    return type(fn) is functools.partial and not vars(fn) and (gap is None or all(each is not gap for each in fn.args))


_checks: dict[tuple[bytes, tuple[Place, ...]], Check | None] = {}


def _check(places: list[Place], function: bytes | None) -> Check | None:
    """The check of these places, made once while the digest of the function, which covers all of them, is the same."""
    if function is None or not places:
        return check(places)
    this = function, tuple(places)
    if this not in _checks:
        if len(_checks) >= _MOST_CHECKS:
            _checks.clear()
        _checks[this] = check(places)
    return _checks[this]


def bound(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by parameter, defaults filled in; as they are where the function has no signature or refuses them."""
    if type(fn) is types.FunctionType:
        found = _bound_by_code(fn, args, kwargs)
        return found if found is not None else (args, kwargs)
    try:
        binding = inspect.signature(fn, follow_wrapped=False).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, kwargs
    binding.apply_defaults()
    return (), dict(binding.arguments)


def _bound_by_code(
    fn: types.FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The same for a plain function, in 2 µs instead of 30; None if it would refuse the arguments."""
    code = fn.__code__
    count, only = code.co_argcount, code.co_kwonlyargcount
    names = code.co_varnames
    values = dict(zip(names[:count], args, strict=False))
    rest = args[count:]
    left = kwargs.keys() - names[code.co_posonlyargcount : count + only]
    for name, value in kwargs.items():
        if name not in left:
            if name in values:
                return None
            values[name] = value
    if (rest and not code.co_flags & inspect.CO_VARARGS) or (left and not code.co_flags & inspect.CO_VARKEYWORDS):
        return None
    defaults = fn.__defaults__ or ()
    for name, value in zip(names[count - len(defaults) : count], defaults, strict=True):
        values.setdefault(name, value)
    for name, value in (fn.__kwdefaults__ or {}).items():
        values.setdefault(name, value)
    if len(values) != count + only:
        return None
    return (values, rest), {name: kwargs[name] for name in left}


def _label(fn: Callable[..., Any]) -> str:
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return (_UNSAFE.sub("_", name).strip("_") or "call")[:40]
