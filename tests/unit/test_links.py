"""Tasks that end as others do: ends are passed on, jobs make room, and what tasks submit finds a submitter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remoteexec_server import late_inputs, running
from remoteexec_server.batch import queues
from remoteexec_server.batch.base import JobId, JobRef, JobSpec, JobState, SchedulerUnavailable, SubmitRejected
from remoteexec_server.batch.service import Service
from remoteexec_server.store import links
from remoteexec_server.store.outcomes import Outcomes
from remoteexec_server.store.session import Journal, Session, StoreError, read_job
from remoteexec_server.wire import header
from remoteexec_server.wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Entry,
    Loss,
    Lost,
    OutcomeReady,
    Problem,
    Rejected,
    TaskKey,
    Terms,
    Watch,
)
from tests.unit.test_service import KEY, SIZE, World, burst, job, submitted, world

__all__ = ["world"]

PARENT, AFTER = TaskKey("b-t1"), TaskKey("b-t2")
CHILD, SECOND, GRANDCHILD = TaskKey("k-t1"), TaskKey("k-t2"), TaskKey("g-t1")
OURS, THEIRS, DEEP = BurstId("b-1"), BurstId("k-1"), BurstId("g-1")
DOWN = SchedulerUnavailable("sbatch cannot be run: no such file")


def grown(world: World, *children: Entry | TaskKey) -> tuple[Service, Service]:
    """The user's service with a task that has become its first child, and the task's own."""
    service, task = world.service(), world.service("k", alone=True)
    submitted(world, service, burst(OURS, PARENT))
    submitted(world, task, burst(THEIRS, *(children or (CHILD,))))
    links.publish_link(world.session, PARENT, CHILD)
    world.queue.end(job(100))
    return service, task


def test_a_task_ends_as_the_child_whose_future_it_returned(world: World) -> None:
    service, _ = grown(world)
    assert world.run(service, 100.0) == []

    world.end(CHILD)
    assert world.run(service, 10.0) == [OutcomeReady(PARENT, SIZE)]
    assert header.check(world.session.outcome(PARENT).read_bytes(), KEY, "outcome", PARENT).status == "ok"
    assert service.wait_s() is None


def test_links_of_links_are_followed_to_the_end(world: World) -> None:
    service, _ = grown(world)
    submitted(world, world.service("g", alone=True), burst(DEEP, GRANDCHILD))
    links.publish_link(world.session, CHILD, GRANDCHILD)
    assert world.run(service, 100.0) == []

    world.end(GRANDCHILD, ok=False)
    assert world.run(service, 10.0) == [OutcomeReady(PARENT, SIZE)]
    assert header.read(world.session.outcome(PARENT).read_bytes()).status == "error"


def test_a_child_that_had_ended_before_anybody_looked_is_found(world: World) -> None:
    _, task = grown(world)
    world.end(CHILD)
    world.run(task, 10.0)

    late = world.service()
    late.handle(Watch((PARENT,)))
    assert world.run(late, 1.0) == [OutcomeReady(PARENT, SIZE)]


def test_a_link_to_a_burst_that_is_not_to_be_seen_yet_is_looked_at_again(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(OURS, PARENT))
    links.publish_link(world.session, PARENT, CHILD)
    assert world.run(service, 5.0) == []

    submitted(world, world.service("k", alone=True), burst(THEIRS, CHILD))
    world.end(CHILD)
    assert world.run(service, 10.0) == [OutcomeReady(PARENT, SIZE)]


def test_losses_of_children_are_passed_on(world: World) -> None:
    service, task = grown(world)
    world.run(service, 5.0)
    task.handle(Cancel((CHILD,)))

    loss = world.session.read_loss(CHILD)
    assert world.run(service, 10.0) == [Lost(PARENT, loss)]
    assert (world.session.read_loss(PARENT), loss.reason) == (loss, "cancelled")


def test_who_follows_a_child_whose_input_failed_fails_like_the_input(world: World) -> None:
    service, task = grown(world, Entry(SECOND), Entry(CHILD, 0, (SECOND,)))
    world.end(SECOND, ok=False)
    world.run(task, 10.0)

    assert world.session.read_loss(CHILD).upstream == SECOND
    assert world.run(service, 10.0) == [OutcomeReady(PARENT, SIZE)]
    assert header.check(world.session.outcome(PARENT).read_bytes(), KEY, "outcome", PARENT).status == "error"


def test_an_outcome_that_is_damaged_is_not_sealed_anew(world: World) -> None:
    service, _ = grown(world)
    world.end(CHILD)
    path = world.session.outcome(CHILD)
    path.write_bytes(path.read_bytes() + b"more")

    [event] = world.run(service, 10.0)
    assert isinstance(event, Lost)
    assert (event.key, event.loss.reason, "damaged" in event.loss.message) == (PARENT, "store", True)
    assert f"{PARENT}.h5" not in world.names()


def test_what_waits_for_a_task_that_follows_another_waits_for_that_ones_job(world: World) -> None:
    service, _ = grown(world)
    world.run(service, 5.0)

    submitted(world, service, burst(BurstId("b-2"), Entry(AFTER, 0, (PARENT,))))
    assert world.queue.jobs[JobId("102")].after == (job(101),)


def test_files_are_kept_while_a_child_that_nobody_waits_for_runs(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(OURS, PARENT))
    task = world.service("k", alone=True)
    submitted(world, task, burst(THEIRS, CHILD))
    task.close(discard=False)
    world.end(PARENT)
    world.run(service, 10.0)

    world.services.clear()
    service.close(discard=True)
    assert world.session.outcome(PARENT).exists()
    world.end(CHILD)
    last = world.service("c")
    world.services.clear()
    last.close(discard=True)
    assert not world.session.path.exists()


def test_a_damaged_link_is_named_and_a_circle_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    links.link_file(world.session, CHILD).write_text('{"to": "../x"}')
    with pytest.raises(StoreError, match=r"k-t1.link is no link"):
        links.read_link(world.session, CHILD)

    monkeypatch.setattr(links, "_LONGEST", 10)
    links.publish_link(world.session, CHILD, SECOND)
    links.publish_link(world.session, SECOND, CHILD)
    with pytest.raises(StoreError, match="circle"):
        links.followed(world.session, CHILD, world.names())


# ---- who submits ----


def test_a_task_sees_only_what_it_has_submitted_itself(world: World) -> None:
    submitted(world, world.service(), burst(OURS, PARENT))
    task = world.service("k", alone=True)

    assert submitted(world, task, burst(THEIRS, CHILD)) == [Accepted(THEIRS, ("101",))]
    world.queue.calls.clear()
    world.end(PARENT)
    world.end(CHILD)
    assert world.run(task, 100.0) == [OutcomeReady(CHILD, SIZE)]
    assert task.wait_s() is None


@pytest.mark.parametrize(
    "trouble",
    [
        DOWN,
        SubmitRejected("sbatch: error: Batch job submission failed: Access/permission denied"),
        SubmitRejected("sbatch cannot be run on this machine: [Errno 2] No such file or directory: 'sbatch'"),
    ],
)
def test_what_a_tasks_host_cannot_submit_another_service_does(world: World, trouble: Exception) -> None:
    service = world.service()
    submitted(world, service, burst(OURS, PARENT))
    world.queue.troubles["submit"] = [trouble] * 5
    task = world.service("k", alone=True)
    events = submitted(world, task, burst(THEIRS, CHILD)) + world.run(task, 20.0)

    assert events[-1] == Problem(f"{trouble}; 1 tasks wait in the store until a service of the session can submit them")
    assert (task.submitting, len(world.queue.jobs)) == (False, 1)
    world.queue.troubles.clear()
    world.run(service, world.terms.poll_s)
    assert world.queue.jobs[JobId("101")].name == "rx-k-1-0"
    world.end(CHILD)
    assert world.run(task, 60.0) == [OutcomeReady(CHILD, SIZE)]
    assert len(world.queue.jobs) == 2


def test_what_is_refused_for_another_reason_is_refused(world: World) -> None:
    world.queue.troubles["submit"] = [SubmitRejected("invalid partition")]
    assert submitted(world, world.service("k", alone=True), burst(THEIRS, CHILD)) == [
        Rejected(THEIRS, (CHILD,), "SubmitRejected", "invalid partition"),
        Accepted(THEIRS, ("",)),
    ]


def test_no_job_of_a_task_waits_for_its_other_jobs(world: World) -> None:
    world.terms = Terms(jobs_at_once=2)
    keys = [TaskKey(f"k-t{n}") for n in range(5)]
    submitted(world, world.service("k", alone=True), burst(THEIRS, *keys), burst(BurstId("k-2"), TaskKey("k-t9")))

    assert [(spec.count, spec.at_once) for spec in world.queue.jobs.values()] == [(5, 2), (1, 1)]


# ---- making room ----


@pytest.fixture
def room(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Lets the job behind PARENT see whether it has to make room."""
    monkeypatch.setattr(queues, "connect", lambda *_: world.queue)
    monkeypatch.setattr(late_inputs, "_SHORT_S", 0.0)

    def ask() -> bool:
        _, description = read_job(world.session.job_directory("rx-b-2-0"))
        return late_inputs.make_room(world.session, description, 0)

    return ask


def waiting(world: World) -> Service:
    """PARENT has become CHILD after AFTER was submitted behind it."""
    service = world.service()
    submitted(world, service, burst(OURS, PARENT), burst(BurstId("b-2"), Entry(AFTER, 0, (PARENT,))))
    submitted(world, world.service("k", alone=True), burst(THEIRS, CHILD))
    links.publish_link(world.session, PARENT, CHILD)
    world.queue.end(job(100))
    return service


def test_a_job_whose_input_has_become_another_task_is_submitted_again_behind_it(
    world: World, room: Callable[[], bool]
) -> None:
    service = waiting(world)

    assert room() is True
    spec = world.queue.jobs[JobId("103")]
    assert (spec.after, spec.count, spec.command[-1]) == ((job(102),), 1, str(spec.directory))
    _, first = read_job(world.session.job_directory("rx-b-2-0"))
    assert read_job(spec.directory)[1] == replace(first, name="rx-b-2-0-r1w1-0", move=1)
    assert late_inputs.last_job(world.session, AFTER) == "103"

    world.queue.end(job(101))  # the job that made room: the service looks for the new one
    assert world.run(service, 300.0) == []
    world.end(CHILD)
    world.end(AFTER)
    assert set(world.run(service, 30.0)) == {OutcomeReady(AFTER, SIZE), OutcomeReady(PARENT, SIZE)}


def test_a_service_asks_about_the_new_job(world: World, room: Callable[[], bool]) -> None:
    service = waiting(world)
    assert room()
    world.queue.end(job(101))
    world.run(service, 100.0)
    world.queue.end(job(103), JobState.TIMEOUT)

    [event] = world.run(service, 100.0)
    assert isinstance(event, Lost)
    assert (event.key, event.loss.reason, event.loss.job) == (AFTER, "timeout", "103")


def test_nobody_makes_room_for_what_has_ended_or_has_no_job(world: World, room: Callable[[], bool]) -> None:
    waiting(world)
    world.queue.end(job(102))
    assert room() is False
    world.end(CHILD)
    assert room() is False
    assert len(world.queue.jobs) == 3


def test_a_job_that_cannot_be_submitted_again_waits_where_it_is(
    world: World, room: Callable[[], bool], capfd: pytest.CaptureFixture[str]
) -> None:
    waiting(world)
    world.queue.troubles["submit"] = [DOWN]

    assert room() is False
    assert capfd.readouterr().err == (f"remoteexec: inputs are computed by job 102, which is waited for here: {DOWN}\n")


def test_what_waits_for_a_job_that_made_room_makes_room_too(world: World, room: Callable[[], bool]) -> None:
    service = waiting(world)
    third = TaskKey("b-t3")
    submitted(world, service, burst(BurstId("b-3"), Entry(third, 0, (AFTER,))))
    assert room()
    world.queue.end(job(101))

    _, description = read_job(world.session.job_directory("rx-b-3-0"))
    assert late_inputs.make_room(world.session, description, 0) is True
    assert world.queue.jobs[JobId("105")].after == (job(104),)


def test_notes_of_jobs_that_made_room_are_no_notes_of_bursts(world: World, room: Callable[[], bool]) -> None:
    waiting(world)
    assert room()
    notes = [note for note in Journal(world.session).notes() if "again" in note]
    assert [(note["name"], note["job"]) for note in notes] == [("rx-b-2-0-r1w1-0", "103")]

    later = world.service()
    assert later.handle(Watch((AFTER,))) == []
    assert json.loads(links.link_file(world.session, PARENT).read_bytes()) == {"to": CHILD}


def test_a_claim_is_not_given_for_a_task_that_has_become_another(world: World) -> None:
    from remoteexec_server.store.session import Claim

    links.publish_link(world.session, PARENT, CHILD)
    assert world.session.claim(PARENT, Claim("1", "h", 1, 0.0)) is False
    assert world.names() == {f"{PARENT}.link"}


def test_the_session_of_a_root_lists_the_bursts_of_some_clients(tmp_path: Path) -> None:
    session = Session.create(tmp_path, "s", KEY.hex())
    for name in ("b-1", "b-2", "bb-1", "k-1"):
        session.add_burst(burst(BurstId(name), TaskKey(f"{name}-t")), b"")
    assert {submit.burst for submit in session.bursts({"b", "k"})} == {"b-1", "b-2", "k-1"}
    assert len(session.manifests()) == 4


def test_a_loss_names_whom_nobody_knows_only_where_there_is_nothing_better(world: World) -> None:
    world.session.publish_loss(CHILD, Loss("upstream", "input k-t2 has failed", upstream=SECOND))
    outcomes = Outcomes(world.session)
    outcomes.look()
    assert links.pass_on(world.session, outcomes, CHILD, PARENT) == f"{PARENT}.lost"
    assert world.session.read_loss(PARENT).upstream == SECOND


# ---- other jobs than the first ----


def moved(world: World, first: str, index: int, move: int, noted: bool = True, **changed: Any) -> JobId | None:
    """A runner submits an element again, as one more job, and may die before it has done so."""
    _, description = read_job(world.session.job_directory(first))
    element = description.tasks[index]
    again = replace(description, name=f"{first}-r1w{move}-{index}", tasks=(element,), move=move, **changed)
    directory = world.session.add_job(again)
    if not noted:
        return None
    number = world.queue.submit(JobSpec(again.name, directory, again.command, 1, again.resources))
    journal = Journal(world.session)
    journal.append({"job": number, "name": again.name, "tasks": 1, "again": True})
    journal.close()
    return number


def test_a_service_that_learns_of_a_task_late_asks_about_its_last_job(world: World) -> None:
    submitted(world, world.service("k", alone=True), burst(THEIRS, CHILD))
    late = moved(world, "rx-k-1-0", 0, 1)
    service = world.service("g", alone=True)  # which sees the note, and knows nothing of the task
    submitted(world, service, burst(DEEP, GRANDCHILD))
    links.publish_link(world.session, GRANDCHILD, CHILD)
    world.queue.end(job(100))
    world.run(service, 100.0)
    world.queue.end(JobRef(JobId(str(late))), JobState.TIMEOUT)

    [event] = world.run(service, 100.0)
    assert isinstance(event, Lost)
    assert (event.key, event.loss.reason, event.loss.job) == (GRANDCHILD, "timeout", "101")


def test_the_last_job_is_the_one_that_was_submitted_and_has_moved_most(world: World) -> None:
    submitted(world, world.service("k", alone=True), burst(THEIRS, CHILD, SECOND))
    assert (late_inputs.last_job(world.session, SECOND), late_inputs.last_job(world.session, AFTER)) == ("100_1", None)

    moved(world, "rx-k-1-0", 1, 1)
    moved(world, "rx-k-1-0", 1, 2)
    moved(world, "rx-k-1-0", 1, 3, noted=False)
    assert (late_inputs.last_job(world.session, SECOND), late_inputs.last_job(world.session, CHILD)) == ("102", "100_0")


def test_a_job_that_made_room_is_not_taken_for_that_of_the_next_attempt(
    world: World, room: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.service()
    submitted(world, service, burst(OURS, PARENT), burst(BurstId("b-2"), Entry(AFTER, 0, (PARENT,))))
    moved(world, "rx-b-1-0", 0, 1)
    world.session.publish_death(PARENT, 1, Loss("killed", "by a signal"))
    _, description = read_job(world.session.job_directory("rx-b-2-0"))
    monkeypatch.setattr(Session, "alive", lambda *_: True)  # whose service submits the attempt

    assert late_inputs.ask(world.session, description, PARENT) == late_inputs.Fate(soon=True)
    moved(world, "rx-b-1-0", 0, 2, attempt=2)
    assert late_inputs.ask(world.session, description, PARENT) == late_inputs.Fate(behind="103")


def test_what_a_linked_input_says_is_what_its_task_says(world: World, room: Callable[[], bool]) -> None:
    waiting(world)
    _, description = read_job(world.session.job_directory("rx-b-2-0"))

    assert late_inputs.ask(world.session, description, CHILD, linked=True) == late_inputs.Fate()
    assert late_inputs.ask(world.session, description, SECOND, linked=True) == late_inputs.Fate()
    assert late_inputs.ask(world.session, description, SECOND) == late_inputs.Fate(ended=True)
    world.queue.end(job(102), JobState.TIMEOUT)
    fate = late_inputs.ask(world.session, description, CHILD, linked=True)
    assert fate.loss is not None
    assert (fate.ended, fate.loss.reason, fate.loss.job) == (True, "timeout", "102")


def test_a_queue_sees_the_environment_that_the_process_had_before_its_task(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(world, world.service(), burst(OURS, PARENT))
    session, description = read_job(world.session.job_directory("rx-b-1-0"))
    inner = dict(os.environ)
    with running.outer_environment():
        assert dict(os.environ) == inner

    monkeypatch.setattr(running, "task", running.Running(session, description, {"PATH": "/bin"}))
    with running.outer_environment():
        assert dict(os.environ) == {"PATH": "/bin"}
    assert dict(os.environ) == inner
