"""What SlurmQueue makes of sbatch's answers; the rest of it is tried on a real SLURM."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from remoteexec_server.batch.base import JobId, JobRef, JobSpec, SchedulerUnavailable, SubmitRejected
from remoteexec_server.batch.pysqa_queue import SlurmQueue
from remoteexec_server.wire.resources import Resources

SPEC = JobSpec("rx-b-0", Path("/x"), ("true",), 1, Resources())


def test_an_sbatch_that_never_gives_a_number_is_believed_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SlurmQueue()
    answer: dict[str, Any] = {"command": "sbatch", "exit_code": 0, "errors": "", "output": "thanks!"}
    monkeypatch.setattr(queue, "_request", lambda request: answer)
    for _ in range(4):
        with pytest.raises(SchedulerUnavailable):
            queue.submit(SPEC)
    with pytest.raises(SubmitRejected) as caught:
        queue.submit(SPEC)

    assert str(caught.value) == "sbatch gives no job number for rx-b-0: thanks! (exit code 0)"


LOCAL = [
    "bash: fork: Cannot allocate memory",
    "sbatch: fork: retry: Resource temporarily unavailable",
    "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
    "sbatch: error while loading shared libraries: libslurmfull.so: cannot open it: Too many open files",
    "sbatch: error: Unable to open file /home/me/run_queue.sh: Input/output error",
    "sbatch: error: Batch job submission failed: Memory management error",
    "sbatch: error: Batch job submission failed: Unable to create job record, try again",
    "sbatch: error: Batch job submission failed: Failed to connect to authentication agent",
    "sbatch: error: Batch job submission failed: Slurm internal error, contact system administrator",
]


def answering(monkeypatch: pytest.MonkeyPatch, errors: str) -> SlurmQueue:
    """A queue whose sbatch fails with these words."""
    queue = SlurmQueue()
    answer: dict[str, Any] = {"failed": "command", "command": "sbatch", "exit_code": 1, "errors": errors, "output": ""}
    monkeypatch.setattr(queue, "_request", lambda request: answer)
    return queue


@pytest.mark.parametrize("errors", LOCAL)
def test_a_login_node_that_has_run_out_of_something_refuses_nothing(
    monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    with pytest.raises(SchedulerUnavailable):
        answering(monkeypatch, errors).submit(SPEC)


def test_an_error_without_a_reason_is_for_now_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = answering(monkeypatch, "sbatch: error: Batch job submission failed: Unspecified error\n")
    for _ in range(4):
        with pytest.raises(SchedulerUnavailable):
            queue.submit(SPEC)
    with pytest.raises(SubmitRejected, match="Unspecified error"):
        queue.submit(SPEC)


def test_a_plug_in_that_says_why_it_refuses_is_believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "sbatch: error: lua: jobs need an account\nsbatch: error: Batch job submission failed: Unspecified error\n"
    with pytest.raises(SubmitRejected, match="jobs need an account"):
        answering(monkeypatch, words).submit(SPEC)


def test_few_jobs_are_asked_about_one_by_one_however_often_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []
    queue = SlurmQueue(clock=lambda: now[0])

    def answer(argv: list[str]) -> subprocess.CompletedProcess[str]:
        asked.append(argv[0])
        shown = "\n".join(f"{number}|CANCELLED|None||rx-a-{number}" for number in range(50))
        said = {"squeue": shown, "scontrol": "AccountingStorageType = accounting_storage/none"}
        return subprocess.CompletedProcess(argv, 0, said[argv[0]], "")

    monkeypatch.setattr(queue, "_run", answer)
    queue.config()
    before = asked.count("scontrol")
    for then, count in ((0.0, 20), (1.0, 20), (29.0, 20), (30.0, 40), (31.0, 40)):
        now[0] = then
        queue.states([JobRef(JobId(str(number))) for number in range(50)])
        assert asked.count("scontrol") - before == count
