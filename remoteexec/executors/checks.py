"""Parameters of executors, refused at construction where they cannot be right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from remoteexec_server.wire.resources import Resources


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number, or too small; None is no number, and fine.

    Raises:
        TypeError: it is no int.
        ValueError: it is less than `least`.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number of at least {least}, not {value!r}: pass an int")
    if value < least:
        rule = "greater than 0" if least == 1 else f"at least {least}"
        raise ValueError(f"{name} must be {rule}, not {value}")


def check_resources(given: Any) -> None:
    """Refuse a `resource_dict` that is none.

    Raises:
        TypeError: says what it is.
    """
    if given is not None and not isinstance(given, (Mapping, Resources)):
        raise TypeError(f"resource_dict must be a dictionary or a Resources, not {given!r}: {{'cores': 1}}, say")


def check_room(resources: Resources, max_cores: int | None) -> None:
    """Refuse what would wait for ever, as it is more by itself than may run at once.

    Raises:
        ValueError: names both values, and the remedy.
    """
    if max_cores is not None and resources.cpus > max_cores:
        raise ValueError(
            f"cores={resources.cores} with threads_per_core={resources.threads_per_core} is {resources.cpus} CPUs, and "
            f"max_cores={max_cores}: it could never start; raise max_cores, or ask for fewer"
        )


def check_function(name: str, value: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: says what it is.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function, not {value!r}: pass the function itself, not what it returns")


def check_number(name: str, value: Any, zero: bool = False) -> None:
    """Refuse what is no finite number, or not above 0; `zero`: or below it.

    Raises:
        TypeError: it is no number.
        ValueError: it is too small, infinite or not-a-number.
    """
    rule = f"{name} must be a {'number of at least' if zero else 'number greater than'} 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{rule}, not {value!r}: pass an int or a float")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{rule}, not {value}")


def check_shown(value: Any) -> None:
    """Refuse a `show_output` that is none.

    Raises:
        ValueError: names those there are.
    """
    if value not in (True, False, "prefix", None):
        raise ValueError(f"show_output must be True, False, 'prefix' or None, not {value!r}")


def check_names(name: str, value: Any) -> None:
    """Refuse what is no list of names; a text is one name, and no list.

    Raises:
        TypeError: says what it is.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        shown = f": [{value!r}], say" if isinstance(value, str) else ""
        raise TypeError(f"{name} must be a list of names of modules, not {value!r}{shown}")
