"""`resource_dict` as users write it, and parameters of executors that mean the same: see `wire.asked`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from remoteexec_server.wire.asked import FIELDS, RENAMED, read_resources
from remoteexec_server.wire.resources import ResourceError, Resources, Retry

__all__ = ["ResourceError", "Resources", "Retry", "read_resources"]

_BESIDE = ("extra", "retry", "warn_time_s")
_OF_JOBS = (
    "num_nodes",
    "exclusive",
    "priority",
    "partition",
    "account",
    "qos",
    "reservation",
    "constraint",
    "slurm_cmd_args",
    "submission_template",
)
"""What a scheduler is asked for, and a process cannot be."""


def resource_names(resources: Resources) -> dict[str, Any]:
    """Resources under the keys that `read_resources` takes; how often a task is tried is no part of what it is."""
    names = {new: old for old, new in RENAMED.items() if old != "queue"}
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
        return replace(given, **{RENAMED.get(key, key): value for key, value in said.items()})
    for key, value in said.items():
        if given is not None and given.get(key, value) != value:
            raise ValueError(f"{key}={value!r}, and resource_dict says {given[key]!r}: say it once")
    return {**(given or {}), **said}


def says_threads(given: Mapping[str, Any] | Resources | None) -> bool:
    """Whether it asks for a number of threads, one included; a `Resources` that says 1 may only not say another."""
    if isinstance(given, Resources):
        return given.threads_per_core != 1
    return given is not None and "threads_per_core" in given


def asked_of_scheduler(resources: Resources) -> dict[str, Any]:
    """What is asked for that only a job can have; a single node is what every process has."""
    plain = Resources(num_nodes=1 if resources.num_nodes == 1 else None)
    asked = {name: getattr(resources, name) for name in _OF_JOBS}
    return {name: value for name, value in asked.items() if value != getattr(plain, name)}


def asked_of_process(resources: Resources) -> dict[str, Any]:
    """What is asked for that only a process of its own can have, by the keys of `resource_dict`."""
    plain, names = Resources(), {new: old for old, new in RENAMED.items()}
    asked = {name: getattr(resources, name) for name in ("gpus_per_core", "memory_max_gb", "run_time_max_s", "retry")}
    return {names.get(name, name): value for name, value in asked.items() if value != getattr(plain, name)}


def check_names(given: Mapping[str, Any]) -> None:
    """Refuse keys that only a submission template could use.

    Raises:
        ResourceError: names the key.
    """
    for key in given:
        if RENAMED.get(key, key) not in FIELDS:
            raise ResourceError(f"resource_dict[{key!r}] is no resource remoteexec knows: {_remedy(key)}")


def _remedy(key: object) -> str:
    from difflib import get_close_matches  # late: for mistakes only

    fields_renamed = {new for old, new in RENAMED.items() if old != "queue"}
    known = sorted({*FIELDS, *RENAMED} - fields_renamed - {"warn_time"})
    near = get_close_matches(str(key), known, 1)
    return f"is {near[0]!r} meant?" if near else f"leave it out; there are {', '.join(known)}"
