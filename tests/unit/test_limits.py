"""No attempt asks for more time than its partition gives."""

from __future__ import annotations

import pytest

from remoteexec_server.batch.limits import allowed
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
