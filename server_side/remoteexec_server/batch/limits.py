"""What a partition allows: time, for further attempts, which ask for more than anybody has written down; and how large
a job can be at all."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from ..wire.resources import Resources
from .base import Queue, QueueError
from .configured import ConfiguredQueue
from .pysqa_queue import SlurmQueue
from .slurm_text import Partition, seconds

__all__ = ["allowed", "beyond", "lacking", "within"]


def within(queue: Queue, resources: Resources) -> Resources:
    """The same, with no more time than the partition gives, where the scheduler says what that is."""
    if resources.run_time_max_s is None or not isinstance(queue, SlurmQueue):
        return resources
    try:
        return allowed(resources, queue.partitions())
    except QueueError:
        return resources


def allowed(resources: Resources, partitions: list[Partition]) -> Resources:
    """The same, with no more time than its partition gives.

    Args:
        partitions: as `sinfo` tells them; where no partition is asked for, the default one counts.
    """
    limits = [seconds(partition.time_limit) for partition in _asked_for(resources, partitions)]
    most = max((limit for limit in limits if limit is not None), default=None)
    if most is None or None in limits or resources.run_time_max_s is None or resources.run_time_max_s <= most:
        return resources
    return replace(resources, run_time_max_s=most)


def lacking(queue: Queue, resources: Resources) -> str | None:
    """What a job asks for and the cluster does not have; None: it has all, or does not say what it has.

    Raises:
        SchedulerUnavailable: it does not answer.
    """
    configured = isinstance(queue, ConfiguredQueue)
    queue = queue.inner if isinstance(queue, ConfiguredQueue) else queue
    if not isinstance(queue, SlurmQueue):
        return None
    partitions = queue.partitions()
    elsewhere = configured or _is_placed_elsewhere(resources) or "SBATCH_PARTITION" in os.environ
    return beyond(resources, partitions if elsewhere else _asked_for(resources, partitions))


def beyond(resources: Resources, partitions: Sequence[Partition]) -> str | None:
    """What a job asks for and none of these partitions has, with both numbers; None: one has it, or it is not known.

    Nodes count in whatever state they are: what is down now may be up tomorrow.
    """
    if not partitions:
        return None
    where = f"partition {partitions[0].name} has" if len(partitions) == 1 else "the largest partition has"
    nodes = max(partition.nodes for partition in partitions)
    if resources.num_nodes is not None and resources.num_nodes > nodes:
        return f"num_nodes={resources.num_nodes}, and {where} {nodes}"
    cpus = [partition.cpus for partition in partitions]
    asked = max(resources.cores, resources.num_nodes or 1) * resources.threads_per_core
    most = max((count for count in cpus if count is not None), default=0)
    if None not in cpus and asked > most:
        return f"{asked} CPUs (cores x threads_per_core), and {where} {most}"
    return None


def _asked_for(resources: Resources, partitions: Sequence[Partition]) -> list[Partition]:
    """Those a job may run in: the default one, where it names none."""
    return [
        partition
        for partition in partitions
        if (partition.default if resources.partition is None else partition.name in resources.partition.split(","))
    ]


def _is_placed_elsewhere(resources: Resources) -> bool:
    """Whether the job may say to sbatch in another way which partition it is for."""
    return resources.submission_template is not None or any(
        re.match(r"-p|--part", argument) for argument in resources.slurm_cmd_args
    )
