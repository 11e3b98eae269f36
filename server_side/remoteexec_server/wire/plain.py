"""Dataclasses as JSON objects, and back, checked field by field."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, NewType, Union

__all__ = ["MessageError", "build", "to_json"]


class MessageError(ValueError):
    """Bytes that are not a message of this protocol."""


T = typing.TypeVar("T")


def build(kind: type[T], plain: object) -> T:
    """A dataclass from the JSON object that `to_json` wrote for it, checked field by field.

    Raises:
        MessageError: names the class and the field that does not fit.
    """
    if not isinstance(plain, dict):
        raise MessageError(f"{kind.__name__}: expected an object, got {plain!r:.80}")
    hints = _hints(kind)
    unknown = plain.keys() - hints.keys()
    if unknown:
        raise MessageError(f"{kind.__name__}: unknown fields {sorted(unknown)}")
    try:
        return kind(**{name: _read(hints[name], value, f"{kind.__name__}.{name}") for name, value in plain.items()})
    except MessageError:
        raise
    except (TypeError, ValueError) as exc:  # a class may refuse values itself
        raise MessageError(f"{kind.__name__}: {exc}") from exc


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = {k: v for k, v in typing.get_type_hints(kind).items() if k in kind.__dataclass_fields__}
    return _HINTS[kind]


def to_json(value: object, **more: object) -> str:
    """One line of JSON: the fields of a dataclass that are not their defaults, and what stands before them."""
    return json.dumps({**more, **_plain(value)}, separators=(",", ":"))


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if f.default is dataclasses.MISSING or item != f.default:
                plain[f.name] = _plain(item)
        return plain
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _read(option, value, where)
            except MessageError:
                continue
        raise MessageError(f"{where}: {value!r:.80} is none of {hint}")
    if origin is tuple or origin is Collection:
        if not isinstance(value, list):
            raise MessageError(f"{where}: expected a list, got {value!r:.80}")
        return tuple(_read(args[0], item, where) for item in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise MessageError(f"{where}: expected an object, got {value!r:.80}")
        return {k: _read(args[1], v, where) for k, v in value.items()}
    if hint is type(None):
        if value is not None:
            raise MessageError(f"{where}: expected null, got {value!r:.80}")
        return None
    if isinstance(hint, NewType):
        hint = hint.__supertype__
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise MessageError(f"{where}: expected {hint.__name__}, got {value!r:.80}")
    return value
