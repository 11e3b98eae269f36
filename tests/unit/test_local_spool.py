"""What the embedded scheduler and its clients write for each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.batch import local_spool
from remoteexec_server.batch.base import JobFacts, JobId, JobRef, JobState
from remoteexec_server.batch.local_spool import Fold, Job, Process, Record, Spool

JOB = Job(JobId("7"), "rx-a-0", "/d", ("x", "a b"), 3, 2, 1.5, ("5", "6_1"), {"HOME": "/h"})
RUNNING = JobFacts(JobState.RUNNING, node="m")
KILLED = JobFacts(JobState.FAILED, "RaisedSignal", "m", None, 9)
EVENTS = [
    local_spool.job_event(JOB),
    local_spool.start_event(JOB.job, [0, 1], "m"),
    local_spool.run_event(JOB.job, 0, Process(11, "5", 2.0)),
    local_spool.run_event(JOB.job, 1, Process(12, "6", 2.0)),
    local_spool.end_event(JOB.job, [1], KILLED),
]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_folded_however_they_are_cut(size: int) -> None:
    data = "".join(EVENTS).encode()
    fold = Fold()
    for start in range(0, len(data), size):
        fold.feed(data[start : start + size])
    record = Record("rx-a-0", 3, {0: RUNNING, 1: KILLED}, {0: Process(11, "5", 2.0)})
    assert fold.records == {JobId("7"): record}
    assert [record.of(index) for index in (0, 1, 2, 3)] == [RUNNING, KILLED, JobFacts(JobState.PENDING), None]
    assert record.of(None) == RUNNING


def test_a_line_cut_short_by_a_crash_costs_only_itself() -> None:
    fold = Fold()
    fold.feed((EVENTS[0] + EVENTS[1][:20] + "\n" + EVENTS[1] + '{"e":"end","job":"99","i":"0"}\n[]\n').encode())
    assert fold.records[JobId("7")].facts == {0: RUNNING, 1: RUNNING}


def test_a_job_comes_out_as_it_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a'; echo b ü" / "spool")
    spool.make()
    spool.hand_over(JOB)
    assert list(spool.waiting()) == [JOB]
    assert (spool.path.stat().st_mode & 0o777, next(spool.inbox.iterdir()).stat().st_mode & 0o777) == (0o700, 0o600)


def test_numbers_are_given_once_also_when_their_file_is_lost(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.make()
    assert [spool.next_job(), spool.next_job()] == ["1", "2"]
    spool.hand_over(JOB)
    (tmp_path / "next").unlink()
    assert spool.next_job() == "8"


def test_a_spool_without_a_scheduler_is_not_served(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "none")
    assert (spool.served(), spool.wake(), spool.has_work()) == (False, False, False)


def test_references_are_those_of_the_queue() -> None:
    assert [str(JOB.ref(2)), JOB.ref(2)] == ["7_2", JobRef(JobId("7"), 2)]
