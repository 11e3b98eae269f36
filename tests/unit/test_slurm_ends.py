"""Every way a job can end or fail to start, as each version of SLURM told it, is read and explained alike.

The outputs below recorded/slurm-* were recorded by recorded/record.py: the same jobs, named after what happened to
them, on clusters with accounting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remoteexec_server.batch import advice, diagnose, slurm_text
from remoteexec_server.batch.base import (
    JobFacts,
    JobRef,
    JobSpec,
    JobState,
    QueueError,
    QuotaReached,
    SchedulerUnavailable,
    SubmitRejected,
)
from remoteexec_server.batch.pysqa_queue import _refusal, _together
from remoteexec_server.batch.slurm_text import Line
from remoteexec_server.wire.messages import Loss
from remoteexec_server.wire.resources import Resources

RECORDED = sorted((Path(__file__).parent / "recorded").glob("slurm-*"))
every_version = pytest.mark.parametrize("version", RECORDED, ids=lambda path: path.name)

LOSSES = {
    "timeout": "timeout",
    "memory": "out_of_memory",
    "node-fails": "node_failure",
    "preempted": "preempted",
    "cancelled-by-owner": "cancelled",
    "cancelled-by-root": "cancelled",
    "cancelled-waiting": "cancelled",
    "cancelled-waiting-by-root": "cancelled",
    "exit-3": "unknown",
    "exit-74": "store",
    "no-python": "python_missing",
    "not-executable": "python_missing",
    "segfault": "killed",
    "killed": "killed",
    "child-killed": "killed",
    "no-log": "never_started",
    "prolog-fails": "never_started",
    "too-long": "rejected",
    "too-wide": "rejected",
    "never": "rejected",
    "too-many-cpus": "rejected",
    "too-long-for-qos": "quota",
    "completed": None,
    "held-by-owner": None,
    "held-by-root": None,
    "few-first": None,
    "few-second": None,
    "small-first": None,
    "small-second": None,
}
"""What became of each job; None: nothing is lost."""


def by_name(lines: list[Line]) -> dict[str, JobFacts]:
    return {line.name.removeprefix("rx-"): line.facts for line in lines if line.elements is None}


def shown(version: Path) -> dict[str, JobFacts]:
    return by_name(slurm_text.parse_squeue((version / "squeue.txt").read_text()))


def accounted(version: Path) -> dict[str, JobFacts]:
    return by_name(slurm_text.parse_sacct((version / "sacct.txt").read_text()))


def described(version: Path) -> dict[str, JobFacts]:
    return by_name(slurm_text.parse_show_job((version / "show_job.txt").read_text()))


def log(version: Path, name: str) -> str:
    path = version / "log" / f"{name}.txt"
    return path.read_text() if path.exists() else ""


def explained(version: Path, name: str, facts: JobFacts) -> Loss | None:
    resources = Resources(run_time_max_s=60, memory_max_gb=50 / 1024)
    return diagnose.loss(facts, JobRef.parse("7"), log(version, name), "/r/0.log", resources)


def test_five_versions_were_recorded() -> None:
    assert [path.name for path in RECORDED] == [f"slurm-{v}" for v in ("22.05", "23.11", "24.11", "25.11", "26.05")]
    for version in RECORDED:
        config = slurm_text.parse_config((version / "show_config.txt").read_text())
        assert (version.name, config.accounting) == (f"slurm-{config.version[:5]}", True)


@every_version
@pytest.mark.parametrize("source", [accounted, described], ids=["sacct", "scontrol"])
def test_every_end_is_explained(version: Path, source: Callable[[Path], dict[str, JobFacts]]) -> None:
    squeue, more = shown(version), source(version)
    found = {}
    for name in LOSSES:
        facts = squeue[name]
        if facts.state.ended and facts.state is not JobState.COMPLETED:
            facts = _together(facts, more[name])
        loss = explained(version, name, facts)
        found[name] = None if loss is None else loss.reason
    assert found == LOSSES


@every_version
def test_sacct_says_who_cancelled(version: Path) -> None:
    found = {name: facts.cancelled_by for name, facts in accounted(version).items() if facts.cancelled_by}
    assert found == {
        "cancelled-by-owner": "uid 5",
        "cancelled-by-root": "uid 0",
        "cancelled-waiting": "uid 5",
        "cancelled-waiting-by-root": "uid 0",
    }


@every_version
def test_sacct_and_scontrol_say_what_was_used_and_what_was_allowed(version: Path) -> None:
    mega = 1 << 20
    by_sacct, by_scontrol = accounted(version)["memory"].usage, described(version)["memory"].usage
    assert by_sacct.memory_bytes is not None
    assert by_sacct.memory_bytes > 200 * mega
    assert by_scontrol.memory_bytes is None
    for usage in (by_sacct, by_scontrol):
        assert (usage.time_limit_s, usage.memory_limit_bytes) == (600, 50 * mega)
    for facts in (accounted(version)["timeout"], described(version)["timeout"]):
        assert facts.usage.time_limit_s == 60
        assert facts.usage.time_s is not None
        assert 0 < facts.usage.time_s < 90


@every_version
def test_the_loss_of_a_job_that_wanted_more_memory_suggests_how_much(version: Path) -> None:
    loss = explained(version, "memory", accounted(version)["memory"])
    assert loss is not None
    assert loss.evidence.suggestion.startswith("memory_max=0.0488281 -> try 0.")


@every_version
def test_exit_codes_and_signals_are_the_same_from_both(version: Path) -> None:
    ends = {
        "exit-3": (3, None),
        "exit-74": (74, None),
        "no-python": (127, None),
        "not-executable": (126, None),
        "segfault": (None, 11),
        "killed": (None, 9),
        "child-killed": (137, None),
        "no-log": (None, 53),
        "completed": (0, None),
    }
    for source in (accounted(version), described(version)):
        assert {name: (source[name].exit_code, source[name].signal) for name in ends} == ends


@every_version
def test_elements_of_an_array_have_facts_of_their_own(version: Path) -> None:
    for name, parse in (("sacct.txt", slurm_text.parse_sacct), ("show_job.txt", slurm_text.parse_show_job)):
        lines = [line for line in parse((version / name).read_text()) if line.name == "rx-array"]
        found = {ref.index: line.facts.exit_code for line in lines for ref in line.refs()}
        assert found == {0: 0, 1: 1, 2: 2}


def refusal(version: Path, name: str) -> QueueError:
    code, _, errors = (version / "refused" / f"{name}.txt").read_text().partition("\n")
    answer = {"failed": "command", "command": "sbatch", "exit_code": int(code.split()[-1]), "errors": errors}
    return _refusal(JobSpec("rx-b-0", Path("/x"), ("true",), 1, Resources()), {**answer, "output": ""})


@every_version
@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("partition", SubmitRejected, "`sinfo` lists those there are"),
        ("account", SubmitRejected, "`sacctmgr show associations user=$USER` lists yours"),
        ("qos", SubmitRejected, "qos=…"),
        ("memory", SubmitRejected, "memory_max"),
        ("feature", SubmitRejected, "constraint=…"),
        ("reservation", SubmitRejected, "reservation=…"),
        ("gres", SubmitRejected, "gpus_per_core"),
        ("time", SubmitRejected, "run_time_max"),
        ("array", SubmitRejected, "MaxArraySize"),
        ("too-many-cpus", SubmitRejected, "cores, threads_per_core"),
        ("qos-strict-time", SubmitRejected, "QOSMaxWallDurationPerJobLimit"),
        ("qos-strict-cpus", SubmitRejected, "QOSMaxCpuPerJobLimit"),
        ("qos-submit-limit", QuotaReached, "QOSMaxSubmitJobPerUserLimit"),
        ("qos-submit-limit-by-array", QuotaReached, "QOSMaxSubmitJobPerUserLimit"),
        ("account-submit-limit", QuotaReached, "AssocMaxSubmitJobLimit"),
        ("controller-away", SchedulerUnavailable, "Unable to contact slurm controller"),
    ],
)
def test_what_sbatch_refuses_is_for_good_for_now_or_not_its_word(
    version: Path, name: str, kind: type[QueueError], says: str
) -> None:
    error = refusal(version, name)
    assert type(error) is kind
    assert says in str(error)
    if isinstance(error, QuotaReached):
        assert error.limit == says


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", ""),
        ("AssocGrpSubmitJobsLimit\nJob violates accounting/QOS policy (…)", "AssocGrpSubmitJobsLimit"),
        ("MaxSubmitJobsPerAccount\nJob violates accounting/QOS policy (…)", "MaxSubmitJobsPerAccount"),
        ("AssocGrpCpuLimit\nJob violates accounting/QOS policy (…)", None),
        ("invalid partition specified: MaxSubmit", None),
    ],
)
def test_a_limit_that_is_full_for_now(words: str, limit: str | None) -> None:
    """Names from job_state_reason.c of SLURM 22.05 and 25.11, not recorded."""
    assert advice.full_for_now(words) == limit


@pytest.mark.parametrize(
    ("reason", "alone"),
    [
        ("AssocMaxWallDurationPerJobLimit", True),
        ("QOSMaxCpuMinutesPerJobLimit", True),
        ("AssocMaxGRESPerNode", True),
        ("QOSMinCpuNotSatisfied", True),
        ("MaxMemPerLimit", True),
        ("AssocGrpCPUMinutesLimit", False),
        ("AssocGrpMemRunMinutes", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("QOSMaxBBPerUser", False),
        ("MaxCpuPerAccount", False),
        ("Resources", False),
    ],
)
def test_a_limit_on_one_job_by_itself(reason: str, alone: bool) -> None:
    """Names from job_state_reason.c of SLURM 22.05 and 25.11; two of them recorded."""
    assert advice.beyond_one_job(reason) is alone
