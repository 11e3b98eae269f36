"""What the scheduler said is shared by the services of a session: one asks, while its answer is recent and whole."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remoteexec_server.batch.answers import Answers
from remoteexec_server.batch.base import JobId, JobRef, JobSpec, JobState, SubmitRejected
from remoteexec_server.batch.pysqa_queue import SlurmQueue
from remoteexec_server.wire.resources import Resources


@dataclass
class Slurm:
    """What it says, and what it was asked."""

    directory: Path
    jobs: list[str] = field(default_factory=lambda: ["7|RUNNING|None|n1|rx-a-0", "8_[0-1]|PENDING|None||rx-a-1"])
    asked: list[str] = field(default_factory=list)

    def service(self, recent_s: float = 30.0) -> SlurmQueue:
        """One more that asks."""
        queue = SlurmQueue(answers=Answers(self.directory, recent_s))
        queue._ask = self._answer  # type: ignore[method-assign]
        return queue

    def _answer(self, argv: list[str]) -> str:
        self.asked.append(argv[0])
        return "\n".join(self.jobs) if argv[0] == "squeue" else "MaxArraySize = 77\nSLURM_VERSION = 22.05.8\n"

    def age(self, question: str, seconds: float) -> None:
        """So many seconds pass."""
        path = self.directory / question
        at = path.stat().st_mtime - seconds
        os.utime(path, (at, at))


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path / "answers")


SEVEN, EIGHT, NINE = JobRef(JobId("7")), JobRef(JobId("8"), 1), JobRef(JobId("9"))


def test_settings_are_asked_for_once_an_hour_for_all(slurm: Slurm) -> None:
    assert [slurm.service().max_array() for _ in range(3)] == [77, 77, 77]
    assert slurm.asked == ["scontrol"]
    slurm.age("config", 3601)
    assert slurm.service().max_array() == 77
    assert slurm.asked == ["scontrol", "scontrol"]


def test_a_recent_answer_serves_all_and_is_asked_for_again_when_it_is_old(slurm: Slurm) -> None:
    services = [slurm.service() for _ in range(4)]
    states = [service.states([SEVEN, EIGHT])[EIGHT].state for service in services]
    assert (states, slurm.asked) == ([JobState.PENDING] * 4, ["squeue"])
    slurm.age("squeue", 31)
    for service in reversed(services):
        service.states([SEVEN])
    assert slurm.asked == ["squeue", "squeue"]


def test_who_has_asked_does_so_again_at_its_next_turn(slurm: Slurm) -> None:
    service = slurm.service()
    service.states([SEVEN])
    service.states([SEVEN])
    assert slurm.asked == ["squeue", "squeue"]


def test_an_answer_that_does_not_know_a_job_is_not_believed(slurm: Slurm) -> None:
    slurm.service().states([SEVEN])
    slurm.jobs.append("9|RUNNING|None|n1|rx-a-2")
    assert slurm.service().states([SEVEN, NINE])[NINE].state is JobState.RUNNING
    assert slurm.asked == ["squeue", "squeue"]


def test_after_a_refusal_for_a_job_to_wait_for_nothing_old_is_believed(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.service().states([SEVEN])
    service = slurm.service()
    errors = "sbatch: error: Batch job submission failed: Job dependency problem"
    answer: dict[str, Any] = {"failed": "command", "command": "sbatch", "exit_code": 1, "errors": errors, "output": ""}
    monkeypatch.setattr(service, "_request", lambda request: answer)
    with pytest.raises(SubmitRejected):
        service.submit(JobSpec("rx-a-3", Path("/x"), ("true",), 1, Resources(), (SEVEN,)))
    service.states([SEVEN])
    assert slurm.asked == ["squeue", "squeue"]


def test_a_directory_that_cannot_be_written_costs_a_question_each(slurm: Slurm) -> None:
    slurm.directory.write_text("a file")
    assert [service.states([SEVEN])[SEVEN].state for service in (slurm.service(), slurm.service())] == [
        JobState.RUNNING,
        JobState.RUNNING,
    ]
    assert slurm.asked == ["squeue", "squeue"]


def test_nothing_but_answers_is_left(slurm: Slurm) -> None:
    for _ in range(2):
        service = slurm.service()
        service.max_array()
        service.states([SEVEN])
    assert sorted(os.listdir(slurm.directory)) == ["config", "squeue"]
