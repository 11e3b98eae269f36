"""What a partition allows, for further attempts, which ask for more than anybody has written down."""

from __future__ import annotations

from dataclasses import replace

from ..wire.resources import Resources
from .base import Queue, QueueError
from .pysqa_queue import SlurmQueue
from .slurm_text import Partition, seconds

__all__ = ["allowed", "within"]


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
    limits = [
        seconds(partition.time_limit)
        for partition in partitions
        if (partition.default if resources.partition is None else partition.name in resources.partition.split(","))
    ]
    most = max((limit for limit in limits if limit is not None), default=None)
    if most is None or None in limits or resources.run_time_max_s is None or resources.run_time_max_s <= most:
        return resources
    return replace(resources, run_time_max_s=most)
