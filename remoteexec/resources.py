"""`resource_dict` as users write it, read into the frozen `Resources` that travel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from remoteexec_server.wire.resources import ResourceError, Resources, Retry

__all__ = ["ResourceError", "Resources", "Retry", "read_resources"]

_RENAMED = {
    "run_time_max": "run_time_max_s",
    "memory_max": "memory_max_gb",
    "queue": "partition",
    "retries": "retry",
    "warn_time": "warn_time_s",
}
_BESIDE = ("extra", "retry", "warn_time_s")
_FIELDS = {field.name for field in fields(Resources)} - {"extra"}


def read_resources(given: Mapping[str, Any] | Resources | None, defaults: Resources | None = None) -> Resources:
    """What one call asks for.

    Args:
        given: keys as in executorlib (`run_time_max` in seconds, `memory_max` in GB, `queue` for `partition`), or a
            `Resources`, which replaces the defaults as a whole. Keys that are none of ours reach the submission
            template.
        defaults: what holds where `given` says nothing.

    Raises:
        ResourceError: names key, value and rule; a ValueError.
    """
    if isinstance(given, Resources):
        resources = given
    else:
        resources = _merge(given or {}, defaults or Resources())
    resources.validate()
    return resources


def resource_names(resources: Resources) -> dict[str, Any]:
    """Resources under the keys that `read_resources` takes; how often a task is tried is no part of what it is."""
    names = {new: old for old, new in _RENAMED.items() if old != "queue"}
    plain = {names.get(f.name, f.name): getattr(resources, f.name) for f in fields(resources) if f.name not in _BESIDE}
    return {**plain, **resources.extra}


def with_defaults(given: Mapping[str, Any] | Resources | None, **more: Any) -> Mapping[str, Any] | Resources | None:
    """The same resources, and where they say nothing what parameters of an executor say; None of these says nothing.

    Raises:
        ValueError: both say something, and not the same.
    """
    said = {key: value for key, value in more.items() if value is not None}
    if not said:
        return given
    if isinstance(given, Resources):
        return replace(given, **{_RENAMED.get(key, key): value for key, value in said.items()})
    for key, value in said.items():
        if given is not None and given.get(key, value) != value:
            raise ValueError(f"{key}={value!r}, and resource_dict says {given[key]!r}: say it once")
    return {**(given or {}), **said}


def says_threads(given: Mapping[str, Any] | Resources | None) -> bool:
    """Whether it asks for a number of threads, one included; a `Resources` that says 1 may only not say another."""
    if isinstance(given, Resources):
        return given.threads_per_core != 1
    return given is not None and "threads_per_core" in given


def check_names(given: Mapping[str, Any]) -> None:
    """Refuse keys that only a submission template could use.

    Raises:
        ResourceError: names the key.
    """
    for key in given:
        if _RENAMED.get(key, key) not in _FIELDS:
            raise ResourceError(f"resource_dict[{key!r}] is no resource remoteexec knows")


def _merge(given: Mapping[str, Any], defaults: Resources) -> Resources:
    values: dict[str, Any] = {}
    extra = dict(defaults.extra)
    for key, value in given.items():
        name = _RENAMED.get(key, key)
        if name not in _FIELDS:
            warnings.warn(
                f"resource_dict[{key!r}] is no resource remoteexec knows; only a submission_template can use it",
                stacklevel=4,
            )
            extra[key] = value
        elif name == "slurm_cmd_args":
            values[name] = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
        else:
            values[name] = value
    return replace(defaults, **values, extra=extra)
