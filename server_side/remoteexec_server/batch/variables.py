"""What every template may use, whichever scheduler it is for. Pure."""

from __future__ import annotations

import math

from ..wire.resources import Resources
from .base import JobSpec

__all__ = ["common", "cores_of_template", "full_name", "is_named"]


def full_name(spec: JobSpec) -> str:
    """Our own name of the job, and behind a dot, which no name of ours has, the user's."""
    user = spec.resources.job_name
    return f"{spec.name}.{user}" if user else spec.name


def is_named(full: str, name: str) -> bool:
    """Whether `full_name` may have made the one of the other."""
    return full == name or full.startswith(f"{name}.")


def common(spec: JobSpec) -> dict[str, object]:
    """Every field of `Resources` in pysqa's units, and every key of `extra`; the job's own come from its dialect.

    `cores` counts threads, too, in a template that does not use `threads_per_core`, as in executorlib.
    `run_time_max` is in seconds and `memory_max` in GB, as in pysqa's own templates; `run_time_minutes` and `memory_mb`
    (for each node) are rounded up to what schedulers understand.
    """
    r = spec.resources
    return {
        **r.extra,
        "working_directory": str(spec.directory),
        "cores": cores_of_template(r, spec.least_cores),
        "threads_per_core": r.threads_per_core,
        "gpus_per_core": r.gpus_per_core,
        "num_nodes": r.num_nodes,
        "exclusive": r.exclusive,
        "run_time_max": None if r.run_time_max_s is None else math.ceil(r.run_time_max_s),
        "run_time_minutes": None if r.run_time_max_s is None else max(1, math.ceil(r.run_time_max_s / 60)),
        "warn_time": r.warning_s,
        "memory_max": _whole(r.memory_max_gb),
        "memory_mb": memory_mb(r, r.num_nodes or 1),
        "priority": r.priority,
        "partition": r.partition,
        "queue": r.partition,
        "account": r.account,
        "qos": r.qos,
        "reservation": r.reservation,
        "constraint": r.constraint,
        "cwd": r.cwd,
        "slurm_cmd_args": list(r.slurm_cmd_args),
        "count": spec.count,
    }


def cores_of_template(resources: Resources, least: int = 0) -> int:
    """Variable `cores`: ranks, or all CPUs where the user's template knows no threads; not fewer than `least`."""
    cores = resources.cores
    if resources.submission_template is not None and "threads_per_core" not in resources.submission_template:
        cores *= resources.threads_per_core
    return max(cores, least)


def memory_mb(resources: Resources, parts: int) -> int | None:
    """MB for each of so many equal parts of the job, rounded up; never 0, which would mean all of it."""
    if resources.memory_max_gb is None:
        return None
    return max(1, math.ceil(resources.memory_max_gb * 1024 / parts - 1e-9))


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value
