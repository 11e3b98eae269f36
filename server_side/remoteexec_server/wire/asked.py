"""`resource_dict` as users write it, read into the frozen `Resources` that travel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from .resources import Resources

RENAMED = {
    "run_time_max": "run_time_max_s",
    "memory_max": "memory_max_gb",
    "queue": "partition",
    "retries": "retry",
    "warn_time": "warn_time_s",
}
"""Keys that have other names than the fields of `Resources`."""
FIELDS = {field.name for field in fields(Resources)} - {"extra"}


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


def _merge(given: Mapping[str, Any], defaults: Resources) -> Resources:
    values: dict[str, Any] = {}
    extra = dict(defaults.extra)
    for key, value in given.items():
        name = RENAMED.get(key, key)
        if name not in FIELDS:
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
