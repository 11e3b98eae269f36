"""A job that left no outcome is explained by what the scheduler and the end of its log say."""

from __future__ import annotations

import pytest

from remoteexec_server.batch import diagnose
from remoteexec_server.batch.base import JobFacts, JobId, JobRef, JobState
from remoteexec_server.wire.messages import Loss
from remoteexec_server.wire.resources import Resources

REF = JobRef(JobId("12"), 3)

OVER_MEMORY = (
    "slurmstepd-n1: error: StepId=2.batch exceeded memory limit (324349952 > 104857600), being killed\n"
    "slurmstepd-n1: error: Exceeded job memory limit"
)
OOM_KILL = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have been OOM Killed."
)
TIME_LIMIT = "slurmstepd-n1: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-23T10:00:00 DUE TO TIME LIMIT ***"
NODE_FAILURE = "slurmstepd-n1: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-23T10:00:00 DUE TO NODE FAILURE ***"
PREEMPTION = "slurmstepd-n1: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-23T10:00:00 DUE TO PREEMPTION ***"


def explain(facts: JobFacts, log: str = "", resources: Resources | None = None) -> Loss | None:
    return diagnose.loss(facts, REF, log, "/r/3.log", resources)


@pytest.mark.parametrize(
    ("facts", "log", "reason"),
    [
        (JobFacts(JobState.TIMEOUT, "TimeLimit", "n1"), TIME_LIMIT, "timeout"),
        (JobFacts(JobState.CANCELLED), TIME_LIMIT, "timeout"),
        (JobFacts(JobState.OUT_OF_MEMORY, "OutOfMemory", "n1", None, 125), "", "out_of_memory"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 137), OOM_KILL, "out_of_memory"),
        (JobFacts(JobState.FAILED, "JobLaunchFailure", "n1", None, 9), OVER_MEMORY, "out_of_memory"),
        (JobFacts(JobState.CANCELLED, "", "n1"), OVER_MEMORY, "out_of_memory"),
        (JobFacts(JobState.NODE_FAIL, "", "n2"), "", "node_failure"),
        (JobFacts(JobState.CANCELLED, "", "n2"), NODE_FAILURE, "node_failure"),
        (JobFacts(JobState.NODE_FAIL, "BOOT_FAIL", "n2"), "", "node_failure"),
        (JobFacts(JobState.PREEMPTED), "", "preempted"),
        (JobFacts(JobState.CANCELLED), PREEMPTION, "preempted"),
        (JobFacts(JobState.CANCELLED), "", "cancelled"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 74), "", "store"),
        (JobFacts(JobState.FAILED, "JobLaunchFailure", "n1", None, 11), "", "killed"),
        (JobFacts(JobState.FAILED, "RaisedSignal:9(Killed)", "n1", None, 9), "", "killed"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 137), "", "killed"),
        (JobFacts(JobState.FAILED, "JobLaunchFailure", "n1", None, 53), "", "unknown"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 1), "", "unknown"),
        (JobFacts(JobState.PENDING, "DependencyNeverSatisfied"), "", "rejected"),
        (JobFacts(JobState.PENDING, "PartitionTimeLimit"), "", "rejected"),
        (JobFacts(JobState.PENDING, "launch failed requeued held"), "", "rejected"),
        (JobFacts(JobState.PENDING, "launch_failed_requeued_held"), "", "rejected"),
    ],
)
def test_the_reason(facts: JobFacts, log: str, reason: str) -> None:
    loss = explain(facts, log)
    assert loss is not None
    assert (loss.reason, loss.job, loss.node, loss.log_tail, loss.log_path) == (
        reason,
        "12_3",
        facts.node,
        log,
        "/r/3.log",
    )


@pytest.mark.parametrize(
    "facts",
    [
        JobFacts(JobState.PENDING, "Resources"),
        JobFacts(JobState.PENDING, "JobHeldUser"),
        JobFacts(JobState.RUNNING),
        JobFacts(JobState.COMPLETED, exit_code=0),
        JobFacts(JobState.GONE),
    ],
)
def test_nothing_is_decided_while_an_outcome_may_still_come(facts: JobFacts) -> None:
    """Not even by words in a log, which the task's own output may hold."""
    assert explain(facts, OOM_KILL + TIME_LIMIT) is None


def test_the_message_says_what_happened_the_evidence_and_the_next_step() -> None:
    facts = JobFacts(JobState.TIMEOUT, "TimeLimit", "n1", None, 15)
    loss = explain(facts, resources=Resources(run_time_max_s=90))
    assert loss is not None
    assert loss.message == (
        "job 12_3 reached its time limit (run_time_max 90 s) on n1 (state TIMEOUT, reason TimeLimit, "
        "signal 15 (SIGTERM)). Ask for more with run_time_max; its log is /r/3.log"
    )
    assert loss.signal == 15


def test_memory_that_was_not_asked_for() -> None:
    loss = explain(JobFacts(JobState.OUT_OF_MEMORY), resources=Resources())
    assert loss is not None
    assert "it asked for no amount, so the cluster's default held" in loss.message


def test_slurms_number_53_is_not_shown_as_a_signal() -> None:
    loss = explain(JobFacts(JobState.FAILED, "JobLaunchFailure", "n1", None, 53))
    assert loss is not None
    assert loss.signal is None
    assert "never started" in loss.message
    assert "53" not in loss.message
