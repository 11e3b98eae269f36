"""What SLURM says of an allocation: recorded with `salloc -N4 -n10 --gres=gpu:2` on nodes of 4 CPUs, SLURM 22.05."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from remoteexec.allocation.base import Allocation, NoAllocation, Node
from remoteexec.allocation.lists import hostnames
from remoteexec.allocation.slurm import allocation, parse_allocation

RECORDED = Path(__file__).parent / "recorded" / "allocation" / "show_job_details.txt"


def test_nodes_of_different_shares_are_found_with_their_gpus_and_the_end_of_the_job() -> None:
    found = parse_allocation("1", RECORDED.read_text(encoding="utf-8"))

    large = {"cores": 4, "memory_bytes": 2000 * 2**20, "gpus": ("0", "1")}
    small = {"cores": 1, "memory_bytes": 500 * 2**20, "gpus": ("0", "1")}
    nodes = (Node("n1", **large), Node("n2", **large), Node("n3", **small), Node("n4", **small))  # type: ignore[arg-type]
    assert found == Allocation("1", nodes, time.mktime((2026, 11, 23, 23, 58, 8, 0, 0, -1)))
    assert found.cores == 10


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("login", ["login"]),
        ("n[1-3,7],gpu2", ["n1", "n2", "n3", "n7", "gpu2"]),
        ("r[08-10]c[1,2]", ["r08c1", "r08c2", "r09c1", "r09c2", "r10c1", "r10c2"]),
        ("a,n[1-2]-ib", ["a", "n1-ib", "n2-ib"]),
    ],
)
def test_lists_of_nodes_are_spelled_out(expression: str, names: list[str]) -> None:
    assert hostnames(expression) == names


def test_other_places_than_a_running_job_are_told_what_to_do() -> None:
    with pytest.raises(NoAllocation, match=r"SLURM_JOB_ID is not set.*SlurmClusterExecutor"):
        allocation({})
    with pytest.raises(NoAllocation, match="job 3 has no nodes"):
        parse_allocation("3", "JobId=3 JobName=interactive\n   EndTime=Unknown\n")
