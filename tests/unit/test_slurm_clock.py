"""When SLURM ends a job, by a host's own clock: outputs of real versions, recorded, below recorded/."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from remoteexec_server import slurm_clock

RECORDED = sorted((Path(__file__).parent / "recorded").glob("slurm-*"))


def at(hour: int, minute: int, second: int) -> float:
    """In the zone of the machine that reads them, as `scontrol` writes times."""
    return time.mktime((2026, 11, 23, hour, minute, second, 0, 0, -1))


@pytest.mark.parametrize(
    ("version", "moment"),
    list(zip(RECORDED, [(18, 32, 2), (18, 36, 31), (18, 32, 47), (18, 34, 22), (18, 33, 35)], strict=True)),
    ids=lambda given: given.name if isinstance(given, Path) else "",
)
def test_the_controller_says_what_time_it_has(version: Path, moment: tuple[int, int, int]) -> None:
    assert slurm_clock.controllers_time((version / "show_config.txt").read_text()) == at(*moment)


def test_a_controller_that_does_not_answer_has_no_time() -> None:
    assert slurm_clock.controllers_time("") is None
    assert slurm_clock.controllers_time("slurm_load_ctl_conf error: Unable to contact slurm controller\n") is None


def test_a_job_says_when_it_started_and_when_it_will_end() -> None:
    found = slurm_clock.job_times(
        "JobId=7 RunTime=00:00:01 StartTime=2026-11-23T10:00:00 EndTime=2026-11-23T11:00:30 Deadline=N/A"
    )

    assert found == (at(10, 0, 0), at(11, 0, 30))


@pytest.mark.parametrize("text", ["", "JobId=7 StartTime=2026-11-23T10:00:00 EndTime=Unknown"])
def test_a_job_without_a_time_limit_has_no_end(text: str) -> None:
    assert slurm_clock.job_times(text) is None


def test_outside_a_job_nothing_ends() -> None:
    assert slurm_clock.left_s(3.0, {}) is None


def test_where_the_controller_cannot_be_asked_a_job_began_when_its_process_did(tmp_path: Path) -> None:
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "1600"}

    assert slurm_clock.left_s(50.0, {**told, "PATH": str(tmp_path)}) == 550
