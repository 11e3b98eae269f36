"""What pilots are to be like, and which tasks they can run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .resources import ResourceError, Resources

_WARN_S = 60
"""Before its time limit SLURM tells a pilot, which takes up to so long again."""
_SHARED = ("cwd", "environment", "error_log_file", "run_time_max_s", "openmpi_oversubscribe", "retry")
"""Resources that a task in a pilot may have of its own, beside those that are counted."""
_COUNTED = ("cores", "threads_per_core", "gpus_per_core", "memory_max_gb")


@dataclass(frozen=True)
class Pilots:
    """Jobs that host workers, which run tasks one after the other.

    Attributes:
        count: pilots at the same time, at most.
        resources: what one worker is made for, and what a task asks for that does not say otherwise.
        workers: in each pilot.
        idle_time_s: seconds without anything to do after which a pilot ends.
        init: a pickled function that each worker calls once, in base 64; "" for none.
    """

    count: int
    resources: Resources
    workers: int = 1
    idle_time_s: float = 60.0
    init: str = ""


def limited(pilots: Pilots, cores: int | None) -> Pilots:
    """The same, no more at the same time than so many CPUs are enough for, and at least one; None: no limit."""
    if cores is None:
        return pilots
    each = pilots.resources.cpus * pilots.workers
    return replace(pilots, count=max(1, min(pilots.count, cores // each)))


def pilot_resources(pilots: Pilots, scheduler: str) -> Resources:
    """What the job of a pilot asks for: one node that has room for all its workers, and with SLURM a warning."""
    worker = pilots.resources
    memory = None if worker.memory_max_gb is None else worker.memory_max_gb * pilots.workers
    arguments, warn_s = worker.slurm_cmd_args, worker.warn_time_s or _WARN_S
    long = worker.run_time_max_s is None or worker.run_time_max_s >= 10 * warn_s
    if scheduler == "slurm" and long and not any(argument.startswith("--signal") for argument in arguments):
        arguments = (*arguments, f"--signal=B:USR1@{warn_s}")
    return replace(
        worker,
        cores=worker.cores * pilots.workers,
        memory_max_gb=memory,
        num_nodes=worker.num_nodes or 1,
        slurm_cmd_args=arguments,
        retry=None,
        warn_time_s=None,
    )


def check_fits(resources: Resources, pilots: Pilots) -> None:
    """Refuse a task that no pilot could run.

    Raises:
        ResourceError: names what is too much, or cannot be another than the pilots'.
    """
    for name in resources.__dataclass_fields__:
        asked, there = getattr(resources, name), getattr(pilots.resources, name)
        if name not in (*_SHARED, *_COUNTED) and asked != there:
            raise ResourceError(
                f"{name}={asked!r}: with block_allocation tasks run in jobs that have {name}={there!r}; "
                "give it to the executor, or use one without block_allocation"
            )
    worker, times = pilots.resources, pilots.workers
    room = {
        "CPUs (cores x threads_per_core)": (resources.cpus, worker.cpus * times),
        "GPUs (cores x gpus_per_core)": (gpus(resources), gpus(worker) * times),
        "GB of memory (memory_max)": (resources.memory_max_gb or 0, (worker.memory_max_gb or float("inf")) * times),
        "seconds (run_time_max)": (resources.run_time_max_s or 0, worker.run_time_max_s or float("inf")),
    }
    if resources.cores > 1 and (resources.cores > worker.cores * times):
        raise ResourceError(
            f"cores={resources.cores}: a pilot of this executor has room for {worker.cores * times} MPI ranks; "
            "give the executor as many cores"
        )
    if gpus(resources) and times > 1 and gpus(resources) != gpus(worker):
        raise ResourceError(f"gpus_per_core={resources.gpus_per_core}: each of a pilot's {times} workers has its own")
    for what, (asked, most) in room.items():
        if asked > most:
            raise ResourceError(f"a task asks for {asked:g} {what}, and a pilot of this executor has {most:g}")


def within(resources: Resources, pilots: Pilots) -> Resources:
    """The same, memory and time no more than a pilot has."""
    worker = pilots.resources
    memory, time_s = resources.memory_max_gb, resources.run_time_max_s
    if memory is not None and worker.memory_max_gb is not None:
        memory = min(memory, worker.memory_max_gb * pilots.workers)
    if time_s is not None and worker.run_time_max_s is not None:
        time_s = min(time_s, worker.run_time_max_s)
    return replace(resources, memory_max_gb=memory, run_time_max_s=time_s)


def gpus(resources: Resources) -> int:
    """GPUs of a whole task."""
    return resources.gpus_per_core * resources.cores
