"""Executors of an allocation that is only described: what further attempts and kept workers may take."""

from __future__ import annotations

from typing import Any

import pytest

from remoteexec import Resources, Retry, SlurmJobExecutor
from remoteexec.allocation.base import Allocation, Node
from remoteexec.allocation.remaining import Remaining
from remoteexec.executors import slurm_job
from remoteexec.pool.ledger import Need
from remoteexec.pool.tasks import PoolFuture, PoolTask
from remoteexec_server.wire.names import TaskKey

GIB = 2**30
NODES = (Node("a", 2, 10 * GIB, ("0", "1")), Node("b", 8, 4 * GIB, ("0",)))
BOTH: dict[str, Any] = {"block_allocation": True, "resource_dict": {"gpus_per_core": 1}}


@pytest.fixture(autouse=True)
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "allocation", lambda: Allocation("7", NODES))


def task(exe: SlurmJobExecutor, resources: Resources) -> PoolTask:
    found: PoolFuture[int] = PoolFuture(TaskKey("t1"), exe)
    found.number, found.resources, found.setup = 1, resources, {"memory_bytes": 0, "cwd": "/x"}
    return found


@pytest.mark.parametrize(("cores", "had", "asks", "gets"), [(1, 2, 8, 8), (1, 2, 50, 10), (8, 2, 4, 4), (8, 2, 50, 2)])
def test_a_further_attempt_gets_no_more_memory_than_a_node_has_for_it(
    cores: int, had: int, asks: int, gets: int
) -> None:
    exe = SlurmJobExecutor()
    before = Resources(threads_per_core=cores, memory_max_gb=had, run_time_max_s=5, retry=Retry())
    given = task(exe, before)
    exe._prepare(given, Resources(threads_per_core=cores, memory_max_gb=asks, run_time_max_s=9, retry=Retry()))
    asked = given.resources
    assert (given.need, asked and asked.memory_max_gb) == (Need(cores, 0, gets * GIB), gets)
    assert given.setup == {"memory_bytes": gets * GIB, "cwd": "/x"}
    assert given.walltime_s == 9


def test_as_many_workers_are_kept_as_nodes_have_gpus_for() -> None:
    exe = SlurmJobExecutor(**BOTH)
    assert exe._workers(None) == 3
    with pytest.raises(
        ValueError, match="4 workers with gpus_per_core=1, and the nodes of the allocation have GPUs for 3"
    ):
        exe.max_workers = 4
    exe.max_workers = 2
    assert exe.max_workers == 2
    with pytest.raises(ValueError, match="GPUs for 3: set max_workers to at most 3"):
        SlurmJobExecutor(4, **BOTH)


def test_memory_limits_the_number_of_kept_workers() -> None:
    assert SlurmJobExecutor(block_allocation=True, resource_dict={"memory_max": 3})._workers(None) == 2 + 1


def test_before_the_first_call_nothing_remains() -> None:
    assert SlurmJobExecutor().remaining == Remaining(None, 0, 0, 0, 0)


def test_a_call_without_ranks_is_told_once_that_its_srun_options_have_no_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exe = SlurmJobExecutor(resource_dict={"slurm_cmd_args": ["--quiet"]})
    for option in ("--quiet", "--exclusive", "--overlap"):
        exe._needs({"slurm_cmd_args": [option]})
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "slurm_cmd_args=['--exclusive'] has no effect"
    ]


def test_info_says_what_the_executor_of_an_allocation_was_given() -> None:
    info = SlurmJobExecutor(pmi_mode="pmi2", hostname_localhost=True, pin_cores=False).info
    assert [info[name] for name in ("pmi_mode", "hostname_localhost", "pin_cores")] == ["pmi2", True, False]
