"""No attempt asks for more time than its partition gives; and what is more than there is can be told."""

from __future__ import annotations

import pytest

from remoteexec_server.batch.limits import allowed, beyond
from remoteexec_server.batch.slurm_text import Partition
from remoteexec_server.wire.resources import Resources

PARTITIONS = [
    Partition("short", True, "10:00", 2, default=True),
    Partition("day", True, "1-00:00:00", 2),
    Partition("free", True, "infinite", 2),
]


@pytest.mark.parametrize(
    ("partition", "asked", "most"),
    [
        (None, 900.0, 600.0),
        (None, 300.0, 300.0),
        (None, None, None),
        ("day", 900.0, 900.0),
        ("day", 90_000.0, 86_400.0),
        ("free", 1e6, 1e6),
        ("short,day", 90_000.0, 86_400.0),
        ("short,free", 1e6, 1e6),
        ("unknown", 1e6, 1e6),
    ],
)
def test_time_is_what_was_asked_for_up_to_what_the_partition_gives(
    partition: str | None, asked: float | None, most: float | None
) -> None:
    resources = Resources(partition=partition, run_time_max_s=asked, cores=3)
    assert allowed(resources, PARTITIONS) == Resources(partition=partition, run_time_max_s=most, cores=3)


SMALL, LARGE = Partition("small", True, "10:00", 2, True, 8), Partition("large", True, "10:00", 60, False, 960)


@pytest.mark.parametrize(
    ("asked", "partitions", "said"),
    [
        (Resources(num_nodes=50), [SMALL], "num_nodes=50, and partition small has 2"),
        (Resources(num_nodes=50), [LARGE], None),
        (Resources(num_nodes=50), [SMALL, LARGE], None),
        (Resources(num_nodes=61), [SMALL, LARGE], "num_nodes=61, and the largest partition has 60"),
        (Resources(num_nodes=2), [SMALL], None),
        (Resources(cores=8), [SMALL], None),
        (Resources(cores=9), [SMALL], "9 CPUs (cores x threads_per_core), and partition small has 8"),
        (Resources(threads_per_core=9), [SMALL], "9 CPUs (cores x threads_per_core), and partition small has 8"),
        (
            Resources(num_nodes=2, threads_per_core=5),
            [SMALL],
            "10 CPUs (cores x threads_per_core), and partition small has 8",
        ),
        (Resources(cores=9), [SMALL, LARGE], None),
        (Resources(cores=9), [Partition("old", True, "10:00", 2)], None),
        (Resources(cores=9), [], None),
    ],
)
def test_what_is_more_than_there_is_is_told_with_both_numbers(
    asked: Resources, partitions: list[Partition], said: str | None
) -> None:
    assert beyond(asked, partitions) == said
