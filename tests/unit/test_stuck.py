"""A job that asks for more than there is is lost with the numbers; one that needs a node that is down waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.batch import slurm_text
from remoteexec_server.batch.base import JobFacts, JobRef, SchedulerUnavailable
from remoteexec_server.batch.pysqa_queue import SlurmQueue
from remoteexec_server.batch.stuck import Stuck
from remoteexec_server.wire.resources import Resources

RECORDED = Path(__file__).parent / "recorded"
VERSIONS = [path for path in sorted(RECORDED.glob("slurm-*")) if "PartitionConfig" in (path / "squeue.txt").read_text()]


class Recorded(SlurmQueue):
    """Says what sinfo said of two nodes with four CPUs each, one of them drained; or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked = 0

    def partitions(self) -> list[slurm_text.Partition]:
        self.asked += 1
        if self.away:
            raise SchedulerUnavailable("slurm_load_partitions: Unable to contact slurm controller")
        return slurm_text.parse_sinfo((RECORDED / "plain-22.05" / "sinfo_cpus.txt").read_text())


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    return Recorded()


def waiting(version: Path) -> tuple[JobRef, JobFacts]:
    """The job that asks for a thousand CPUs, as that SLURM shows it."""
    lines = slurm_text.parse_squeue((version / "squeue.txt").read_text())
    [line] = [line for line in lines if line.name == "rx-too-many-cpus-in-all"]
    return JobRef(line.job), line.facts


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_more_cpus_than_there_are_are_told_with_both_numbers(version: Path, queue: Recorded) -> None:
    ref, facts = waiting(version)
    loss = Stuck(queue).loss(facts, ref, Resources(cores=1000))
    assert loss is not None
    assert (loss.reason, loss.message) == (
        "rejected",
        f"job {ref} will never start: it asks for 1000 CPUs (cores x threads_per_core), and partition debug has 8 "
        "(state PENDING, reason PartitionConfig). Ask for less; cores, threads_per_core, num_nodes, memory_max: "
        "`sinfo -o '%P %D %c %m'` lists what nodes have",
    )


@pytest.mark.parametrize(
    "asked",
    [
        Resources(cores=8),
        Resources(num_nodes=2),
        Resources(num_nodes=2, partition="short,debug"),
        Resources(cores=8, submission_template="#SBATCH -p debug"),
        Resources(cores=8, partition="short", slurm_cmd_args=("--partition=debug",)),
        Resources(cores=1000, partition="hidden"),
    ],
    ids=repr,
)
def test_what_there_is_or_may_be_keeps_its_place_and_is_looked_up_once(queue: Recorded, asked: Resources) -> None:
    ref, facts = waiting(VERSIONS[0])
    stuck = Stuck(queue)
    assert [stuck.loss(facts, ref, asked), stuck.loss(facts, ref, asked), queue.asked] == [None, None, 1]


def test_the_partition_that_was_named_counts(queue: Recorded) -> None:
    ref, facts = waiting(VERSIONS[0])
    loss = Stuck(queue).loss(facts, ref, Resources(num_nodes=2, partition="short"))
    assert loss is not None
    assert "it asks for num_nodes=2, and partition short has 1 (" in loss.message


def test_while_the_scheduler_does_not_answer_nothing_is_lost(queue: Recorded) -> None:
    ref, facts = waiting(VERSIONS[0])
    stuck, queue.away = Stuck(queue), True
    assert stuck.loss(facts, ref, Resources(cores=1000)) is None
    queue.away = False
    assert stuck.loss(facts, ref, Resources(cores=1000)) is not None
