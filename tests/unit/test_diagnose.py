"""A job that left no outcome is explained by what the scheduler and the end of its log say."""

from __future__ import annotations

import pytest

from remoteexec_server import exits
from remoteexec_server.batch import diagnose
from remoteexec_server.batch.base import JobFacts, JobId, JobRef, JobState
from remoteexec_server.exits import Exit
from remoteexec_server.wire.evidence import Evidence, Usage
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
NO_H5PY = """Traceback (most recent call last):
  File "/r/server/1f/remoteexec_server/runner.py", line 142, in _run
    from .store import hdf5
ModuleNotFoundError: No module named 'h5py'"""
NO_ENCODINGS = """Fatal Python error: init_fs_encoding: failed to get the Python codec of the filesystem encoding
ModuleNotFoundError: No module named 'encodings'"""
NO_JOB = "FileNotFoundError: [Errno 2] No such file or directory: '/r/sessions/s/jobs/rx-b-0/job.json'"
STALE = "OSError: [Errno 116] Stale file handle: '/r/sessions/s/jobs/rx-b-0/job.json'"
NO_PACKAGE = "/p/python: can't open file '/r/server/1f/remoteexec_server': [Errno 2] No such file or directory"


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
        (JobFacts(JobState.NODE_FAIL, "BOOT_FAIL", "n2"), "", "never_started"),
        (JobFacts(JobState.PREEMPTED), "", "preempted"),
        (JobFacts(JobState.CANCELLED), PREEMPTION, "preempted"),
        (JobFacts(JobState.CANCELLED), "", "cancelled"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 74), "", "store"),
        (JobFacts(JobState.FAILED, "JobLaunchFailure", "n1", None, 11), "", "killed"),
        (JobFacts(JobState.FAILED, "RaisedSignal:9(Killed)", "n1", None, 9), "", "killed"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 137), "", "killed"),
        (JobFacts(JobState.FAILED, "JobLaunchFailure", "n1", None, 53), "", "never_started"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 1), "", "unknown"),
        (JobFacts(JobState.PENDING, "DependencyNeverSatisfied"), "", "rejected"),
        (JobFacts(JobState.PENDING, "PartitionTimeLimit"), "", "rejected"),
        (JobFacts(JobState.PENDING, "launch failed requeued held"), "", "never_started"),
        (JobFacts(JobState.PENDING, "launch_failed_requeued_held"), "", "never_started"),
        (JobFacts(JobState.PENDING, "JobHoldMaxRequeue"), "", "never_started"),
        (JobFacts(JobState.PENDING, "AssocMaxCpuPerJobLimit"), "", "quota"),
        (JobFacts(JobState.PENDING, "QOSMaxMemoryPerNode"), "", "quota"),
        (JobFacts(JobState.PENDING, "QOSMinGRES"), "", "quota"),
        (JobFacts(JobState.PENDING, "BadConstraints"), "", "rejected"),
        (JobFacts(JobState.FAILED, "BadConstraints", None, 1), "", "rejected"),
        (JobFacts(JobState.FAILED, "RECONFIG_FAIL"), "", "never_started"),
        (JobFacts(JobState.TIMEOUT, "DEADLINE"), "", "timeout"),
        (
            JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 127),
            "x: /p/python: No such file or directory",
            "python_missing",
        ),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 126), "", "python_missing"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 1), NO_ENCODINGS, "python_missing"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 1), NO_H5PY, "import_error"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 1), NO_JOB, "store"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 1), STALE, "store"),
        (JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 2), NO_PACKAGE, "store"),
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
        JobFacts(JobState.PENDING, "JobHeldAdmin"),
        JobFacts(JobState.PENDING, "PartitionConfig"),
        JobFacts(JobState.PENDING, "AssocMaxJobsLimit"),
        JobFacts(JobState.PENDING, "QOSMaxJobsPerUserLimit"),
        JobFacts(JobState.PENDING, "AssocGrpCPUMinutesLimit"),
        JobFacts(JobState.PENDING, "QOSMaxCpuPerUserLimit"),
        JobFacts(JobState.RUNNING),
        JobFacts(JobState.COMPLETED, exit_code=0),
        JobFacts(JobState.GONE),
    ],
)
def test_nothing_is_decided_while_an_outcome_may_still_come(facts: JobFacts) -> None:
    """Not even by words in a log, which the task's own output may hold."""
    assert explain(facts, OOM_KILL + TIME_LIMIT) is None


def test_the_message_says_what_happened_the_evidence_and_the_next_step() -> None:
    facts = JobFacts(JobState.TIMEOUT, "TimeLimit", "n1", None, 15, usage=Usage(time_s=121, time_limit_s=120))
    loss = explain(facts, resources=Resources(run_time_max_s=90))
    assert loss == Loss(
        "timeout",
        "job 12_3 reached its time limit (run_time_max 90 s; ran 121 s) on n1 (state TIMEOUT, reason TimeLimit, "
        "signal 15 (SIGTERM)). Ask for more; run_time_max=90 -> try 180; its log is /r/3.log",
        job="12_3",
        node="n1",
        signal=15,
        log_path="/r/3.log",
        evidence=Evidence("TIMEOUT", "TimeLimit", "", Usage(121, 120), "run_time_max=90 -> try 180"),
    )


GB = 1 << 30


@pytest.mark.parametrize(
    ("usage", "asked", "used", "suggestion"),
    [
        (Usage(), 2.0, "memory_max 2 GB", "memory_max=2 -> try 4"),
        (Usage(memory_bytes=GB), 0.5, "memory_max 0.5 GB; used 1 GB", "memory_max=0.5 -> try 1.3"),
        (
            Usage(memory_limit_bytes=GB // 5, memory_bytes=GB // 4),
            None,
            "it asked for no memory_max, so the cluster's default, 0.2 GB, held; used 0.25 GB",
            "try memory_max=0.4",
        ),
        (Usage(), None, "it asked for no memory_max, so the cluster's default held", "try a larger memory_max"),
    ],
)
def test_memory_used_against_asked_and_how_much_to_try(
    usage: Usage, asked: float | None, used: str, suggestion: str
) -> None:
    loss = explain(JobFacts(JobState.OUT_OF_MEMORY, usage=usage), resources=Resources(memory_max_gb=asked))
    assert loss is not None
    assert f"ran out of memory ({used}) (state OUT_OF_MEMORY). Ask for more; {suggestion};" in loss.message
    assert (loss.evidence.suggestion, loss.evidence.usage) == (suggestion, usage)


def test_a_time_limit_that_was_not_asked_for() -> None:
    facts = JobFacts(JobState.TIMEOUT, usage=Usage(time_s=600.4, time_limit_s=600))
    loss = explain(facts, resources=Resources())
    assert loss is not None
    assert "(it asked for no run_time_max, so the cluster's default, 600 s, held; ran 600 s)" in loss.message
    assert loss.evidence.suggestion == "try run_time_max=1200"


def test_the_runners_last_words_complete_what_the_scheduler_says() -> None:
    """No accounting runs, or it looked too seldom."""
    log = f"a line of the user's\nremoteexec: {Exit(-9, 12.34, 3 * GB)}\n{OOM_KILL}"
    loss = explain(JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 137), log, Resources(memory_max_gb=2))
    assert loss is not None
    assert loss.reason == "out_of_memory"
    assert loss.evidence.usage == Usage(time_s=12.3, memory_bytes=3 * GB)
    assert "(memory_max 2 GB; used 3 GB)" in loss.message


@pytest.mark.parametrize("end", [Exit(-9, 1.5, 4096), Exit(3, 0.0, 1)])
def test_the_runners_last_words_are_read_as_they_were_written(end: Exit) -> None:
    assert exits.parse(f"x\nremoteexec: {Exit(1, 1.0, 1)}\nremoteexec: {end}\ny") == end
    assert exits.parse("remoteexec: the task's process") is None


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("root", "was cancelled by root (state CANCELLED). If it was not you, ask the site's staff; "),
        ("its owner", "was cancelled by its owner (state CANCELLED); "),
        ("", "was cancelled (state CANCELLED). If it was not you, ask the site's staff; "),
    ],
)
def test_who_cancelled_it_is_said_where_it_is_known(by: str, says: str) -> None:
    loss = explain(JobFacts(JobState.CANCELLED, cancelled_by=by))
    assert loss is not None
    assert (loss.message, loss.evidence.cancelled_by) == (f"job 12_3 {says}its log is /r/3.log", by)


@pytest.mark.parametrize(
    ("log", "quoted"),
    [
        (NO_H5PY, "could not import what it needs: ModuleNotFoundError: No module named 'h5py' on n1"),
        (STALE, "could not reach the store: OSError: [Errno 116] Stale file handle: '/r/sessions"),
        (NO_PACKAGE, "could not reach the store: can't open file '/r/server/1f/remoteexec_server'"),
    ],
)
def test_the_line_of_the_log_that_tells_is_in_the_message(log: str, quoted: str) -> None:
    loss = explain(JobFacts(JobState.FAILED, "NonZeroExitCode", "n1", 1), log)
    assert loss is not None
    assert quoted in loss.message


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("JobHeldAdmin", "job 12_3 waits: an administrator holds it, who can release it (JobHeldAdmin)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
            "job 12_3 waits: a node it needs is down, drained or reserved (ReqNodeNotAvail, UnavailableNodes:n[1-2])",
        ),
        ("Resources", None),
        ("Priority", None),
    ],
)
def test_a_job_that_waits_for_somebody_is_told_of_and_kept(reason: str, text: str | None) -> None:
    facts = JobFacts(JobState.PENDING, reason)
    assert (explain(facts), diagnose.waiting(facts, REF)) == (None, text)
    assert diagnose.waiting(JobFacts(JobState.RUNNING, reason), REF) is None


def test_what_a_job_should_ask_for_instead() -> None:
    loss = explain(JobFacts(JobState.PENDING, "PartitionTimeLimit"), resources=Resources(run_time_max_s=7200))
    assert loss is not None
    assert loss.evidence.suggestion == "run_time_max=7200: `sinfo -o '%P %l'` lists the limits of partitions"


def test_slurms_number_53_is_not_shown_as_a_signal() -> None:
    loss = explain(JobFacts(JobState.FAILED, "JobLaunchFailure", "n1", None, 53))
    assert loss is not None
    assert loss.signal is None
    assert "never started" in loss.message
    assert "53" not in loss.message


def test_how_an_unexplained_end_is_told() -> None:
    loss = diagnose.unexplained(JobFacts(JobState.COMPLETED, node="n1"), REF, 90, "tail", "/r/3.log")
    assert (loss.reason, loss.evidence.state, loss.log_tail) == ("unknown", "COMPLETED", "tail")
