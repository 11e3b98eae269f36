"""Further attempts of tasks: submitted once each, whoever learns of the death, and told in the end."""

from __future__ import annotations

import os

import pytest

from remoteexec_server.batch.base import JobState, SubmitRejected
from remoteexec_server.store.session import Claim, Job, JobTask, Journal
from remoteexec_server.wire.messages import Accepted, Cancel, Entry, Loss, Lost, OutcomeReady, TaskKey, Watch
from remoteexec_server.wire.resources import Resources, Retry
from tests.unit.fake_queue import LIE, Crash
from tests.unit.test_service import ONE, SIZE, A, B, C, World, burst, job, submitted, world

__all__ = ["world"]

TWICE = Resources(run_time_max_s=60, retry=Retry(2, {"timeout", "killed"}))


def tried(world: World, *entries: Entry | TaskKey) -> None:
    submitted(world, world.service(), burst(ONE, *entries, resources=(TWICE,)))


def names(world: World) -> list[tuple[str, int, float | None]]:
    return [(spec.name, spec.count, spec.resources.run_time_max_s) for spec in world.queue.jobs.values()]


def test_a_task_whose_job_timed_out_gets_another_with_more_time(world: World) -> None:
    tried(world, A)
    [service] = world.services
    world.queue.end(job(100), JobState.TIMEOUT)

    assert world.run(service, 40.0) == []
    assert names(world) == [("rx-b-1-0", 1, 60), ("rx-b-1-0-r2-0", 1, 90)]
    assert "a.died-1" in world.names()

    world.end(A)
    assert world.run(service, 5.0) == [OutcomeReady(A, SIZE)]


def test_those_that_died_together_share_an_array(world: World) -> None:
    tried(world, A, B, C)
    [service] = world.services
    world.queue.end(job(100, 0), JobState.TIMEOUT)
    world.queue.end(job(100, 2), JobState.TIMEOUT)
    world.run(service, 40.0)

    assert names(world)[1:] == [("rx-b-1-0-r2-0", 2, 90)]
    world.queue.end(job(101, 1), JobState.TIMEOUT)
    world.run(service, 40.0)
    assert names(world)[2:] == [("rx-b-1-0-r3-2", 1, 135)]


def test_when_no_attempt_is_left_the_loss_names_them_all(world: World) -> None:
    tried(world, A)
    [service] = world.services
    for number in (100, 101, 102):
        world.queue.end(job(number), JobState.TIMEOUT)
        events = world.run(service, 40.0)

    [lost] = events
    assert isinstance(lost, Lost)
    assert lost.loss.attempts == ("timeout", "timeout", "timeout")
    assert lost.loss.message.startswith("3 attempts: timeout, timeout, timeout; job 102 reached its time limit")
    assert world.names() == {"a.died-1", "a.died-2", "a.lost"}


def test_what_is_cancelled_by_hand_is_not_tried_again(world: World) -> None:
    tried(world, A)
    world.queue.end(job(100), JobState.CANCELLED)

    [lost] = world.run(world.services[0], 40.0)

    assert isinstance(lost, Lost)
    assert (lost.loss.reason, lost.loss.attempts, len(world.queue.jobs)) == ("cancelled", (), 1)


def test_a_dependant_waits_for_the_new_job(world: World) -> None:
    tried(world, A)
    [service] = world.services
    world.session.publish_death(A, 1, Loss("killed", "by a signal"))
    world.run(service, 0.2)
    submitted(world, service, burst(type(ONE)("b-2"), Entry(B, 0, (A,))))
    world.run(service, 5.0)

    assert [(spec.name, spec.after) for spec in world.queue.jobs.values()] == [
        ("rx-b-1-0", ()),
        ("rx-b-1-0-r2-0", ()),
        ("rx-b-2-0", (job(101),)),
    ]


def test_a_death_that_a_supervisor_tells_is_followed_at_once(world: World) -> None:
    tried(world, A)
    world.session.claim(A, Claim("100", "n1", 1, 0.0))
    world.session.publish_death(A, 1, Loss("killed", "by a signal"))
    world.run(world.services[0], 4.0)

    assert names(world)[1:] == [("rx-b-1-0-r2-0", 1, 60)]
    assert world.names() == {"a.died-1"}
    assert not world.session.claim(A, Claim("100", "n1", 1, 0.0), 1)
    assert world.session.claim(A, Claim("101", "n1", 1, 0.0), 2)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "described only"])
def test_what_a_supervisor_has_submitted_is_not_submitted_again(world: World, noted: bool) -> None:
    tried(world, A)
    [service] = world.services
    again = Job("rx-b-1-0-r2-0", ONE, (JobTask(0, A),), TWICE, attempt=2)
    directory = world.session.add_job(again)
    spec = world.queue.jobs[next(iter(world.queue.jobs))]
    number = world.queue.submit(type(spec)(again.name, directory, spec.command, 1, TWICE))
    if noted:
        journal = Journal(world.session)
        journal.append({"job": number, "name": again.name, "tasks": 1, "again": True})
        journal.close()
    world.session.publish_death(A, 1, Loss("killed", "by a signal"))
    world.run(service, 40.0)

    assert len(world.queue.jobs) == 2
    world.queue.end(job(101), JobState.FAILED, signal=11)
    world.run(service, 40.0)
    assert names(world)[2:] == [("rx-b-1-0-r3-0", 1, 60)]


@pytest.mark.parametrize("trouble", [LIE, Crash()], ids=["a lie", "a crash"])
def test_an_attempt_whose_submission_got_no_answer_is_submitted_once(world: World, trouble: BaseException) -> None:
    tried(world, A, B)
    world.session.publish_death(A, 1, Loss("killed", "by a signal"))
    world.session.publish_death(B, 1, Loss("killed", "by a signal"))
    world.queue.troubles["submit"] = [trouble]
    try:
        world.run(world.services[0], 10.0)
    except Crash:
        service = world.service()
        service.handle(Watch((A, B)))
        world.run(service, 10.0)

    assert names(world) == [("rx-b-1-0", 2, 60), ("rx-b-1-0-r2-0", 2, 60)]
    world.end(A)
    told = world.run(world.services[-1], 5.0)
    assert OutcomeReady(A, SIZE) in told


def test_a_service_that_takes_over_goes_on_where_the_other_was(world: World) -> None:
    tried(world, A)
    world.queue.end(job(100), JobState.TIMEOUT)
    world.run(world.services[0], 40.0)
    service = world.service()
    service.handle(Watch((A,)))
    world.queue.end(job(101), JobState.TIMEOUT)
    world.run(service, 40.0)

    assert names(world) == [("rx-b-1-0", 1, 60), ("rx-b-1-0-r2-0", 1, 90), ("rx-b-1-0-r3-0", 1, 135)]


def test_a_death_with_nobody_there_is_followed_by_whoever_comes(world: World) -> None:
    tried(world, A)
    world.services.pop().close(discard=False)
    world.session.publish_death(A, 1, Loss("timeout", "time limit"))
    other = world.service("other")
    world.run(other, 5.0)

    assert names(world)[1:] == [("rx-b-1-0-r2-0", 1, 90)]


def test_another_service_leaves_attempts_to_the_one_that_has_the_burst(world: World) -> None:
    tried(world, A)
    other = world.service("other")
    other.handle(Watch((A,)))
    world.session.publish_death(A, 1, Loss("timeout", "time limit"))
    world.run(other, 10.0)
    assert len(world.queue.jobs) == 1

    world.run(world.services[0], 10.0)
    world.run(other, 60.0)
    assert names(world)[1:] == [("rx-b-1-0-r2-0", 1, 90)]
    world.end(A)
    assert world.run(other, 60.0) == [OutcomeReady(A, SIZE)]


def test_a_dependant_that_went_behind_another_job_is_followed_there(world: World) -> None:
    tried(world, A, Entry(B, 0, (A,)))
    [service] = world.services
    moved = Job("rx-b-1-1-r1w1-1", ONE, (JobTask(1, B),), TWICE, move=1)
    spec = world.queue.jobs[next(iter(world.queue.jobs))]
    number = world.queue.submit(type(spec)(moved.name, world.session.add_job(moved), spec.command, 1, TWICE))
    journal = Journal(world.session)
    journal.append({"job": number, "name": moved.name, "tasks": 1, "again": True})
    journal.close()
    world.queue.end(job(101))
    world.run(service, 200.0)
    assert "b.lost" not in world.names()

    world.queue.end(job(102), JobState.FAILED, signal=11)
    world.run(service, 40.0)
    assert names(world)[3:] == [("rx-b-1-1-r2-1", 1, 60)]


def test_an_attempt_that_is_refused_ends_the_task(world: World) -> None:
    tried(world, A)
    [service] = world.services
    world.queue.end(job(100), JobState.TIMEOUT)
    world.queue.troubles["submit"] = [SubmitRejected("Requested time limit is invalid")]

    [lost] = world.run(service, 40.0)

    assert lost == Lost(
        A,
        Loss(
            "rejected",
            "2 attempts: timeout, rejected; Requested time limit is invalid",
            attempts=("timeout", "rejected"),
        ),
    )


def test_a_task_that_is_cancelled_between_attempts_is_not_submitted(world: World) -> None:
    tried(world, A)
    [service] = world.services
    world.session.publish_death(A, 1, Loss("killed", "by a signal"))
    world.run(service, 0.2)
    service.handle(Cancel((A,)))
    world.run(service, 10.0)

    assert (len(world.queue.jobs), "a.lost" in os.listdir(world.session.outcomes)) == (1, True)


def test_the_client_is_told_once_that_its_burst_was_accepted(world: World) -> None:
    service = world.service()
    events = submitted(world, service, burst(ONE, A, resources=(TWICE,)))
    world.session.publish_death(A, 1, Loss("killed", "by a signal"))
    events += world.run(service, 10.0)

    assert events == [Accepted(ONE, ("100",))]
