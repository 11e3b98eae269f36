"""The service's side of pilots: how many there are, what becomes of tasks of dead ones, what is never done twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest

from remoteexec_server.batch.base import JobId, JobRef, JobState, QuotaReached, SubmitRejected
from remoteexec_server.store.crew import Beat, CrewStore
from remoteexec_server.store.links import publish_link
from remoteexec_server.store.outcomes import log_path
from remoteexec_server.store.segments import Kind, LogWriter
from remoteexec_server.store.session import Claim, Journal, Session
from remoteexec_server.store.tickets import Ticket
from remoteexec_server.wire import header, messages
from remoteexec_server.wire.header import Header
from remoteexec_server.wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Entry,
    Event,
    Leave,
    Left,
    Loss,
    Lost,
    OutcomeReady,
    Pilots,
    Problem,
    Resize,
    Started,
    Submit,
    TaskKey,
    Terms,
    Watch,
)
from remoteexec_server.wire.pilots import pilot_resources
from remoteexec_server.wire.resources import Resources, Retry
from tests.unit.fake_queue import LIE, Crash
from tests.unit.test_service import DOWN, KEY, SIZE, World, burst, sealed, submitted

ONE, TWO = BurstId("b-1"), BurstId("b-2")
PILOTS = Pilots(3, Resources())
KEYS = tuple(TaskKey(f"t{n}") for n in range(12))
CLAIM = Claim("100", "n1", 7, 1.0)
FIRST, LAST = "rx-b-p0-0", "rx-b-p0-2"


@pytest.fixture
def world(tmp_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    tmp_root.mkdir(mode=0o700)
    world = World(Session.create(tmp_root, "s-1", KEY.hex()), terms=Terms(pilots=PILOTS))
    yield world
    for service in world.services:
        service.close(discard=False)


@pytest.fixture
def store(world: World) -> CrewStore:
    return CrewStore(world.session, "b")


def take(store: CrewStore, pilot: str, job: str = "100_0") -> Ticket:
    """A pilot begins, and takes a ticket."""
    store.join(pilot)
    store.beat(pilot, Beat(job, "n1", 7, 1.0))
    name = store.tickets()[0]
    ticket = store.read(name)
    assert ticket is not None
    assert store.take(pilot, name)
    return ticket


class Worker:
    """The log of a pilot's worker."""

    def __init__(self, world: World, pilot: str, number: int = 0) -> None:
        self._log = LogWriter(Path(log_path(world.session, f"{pilot}-w{number}")))

    def start(self, key: TaskKey) -> None:
        self._log.append(Kind.STARTED, key, messages.to_json(CLAIM).encode())

    def end(self, key: TaskKey) -> None:
        head = Header("outcome", key, "ok", cloudpickle=cloudpickle.__version__)
        self._log.append(Kind.OUTCOME, key, header.seal(head, b"", KEY))


def run(store: CrewStore, world: World, pilot: str, job: str = "100_0", number: int = 0) -> None:
    """A pilot runs all there is."""
    worker = Worker(world, pilot, number)
    while store.tickets():
        for piece in take(store, pilot, job).pieces:
            worker.start(piece.key)
            worker.end(piece.key)


def shapes(world: World) -> list[tuple[str, int]]:
    return [(spec.name, spec.count) for spec in world.queue.jobs.values()]


def keys_of(ticket: Ticket) -> list[TaskKey]:
    return [piece.key for piece in ticket.pieces]


def losses(events: list[Event]) -> dict[TaskKey, str]:
    return {event.key: event.loss.reason for event in events if isinstance(event, Lost)}


def test_a_burst_is_accepted_at_once_and_as_many_pilots_submitted_as_may_be(world: World, store: CrewStore) -> None:
    events = submitted(world, world.service(), burst(ONE, *KEYS))

    assert events == [Accepted(ONE, ("",) * 12)]
    assert shapes(world) == [("rx-b-p0", 3)]
    (spec,) = world.queue.jobs.values()
    assert spec.command == ("python", "pilot", str(spec.directory), "b")
    assert spec.resources == pilot_resources(PILOTS, "fake")
    assert len(store.tickets()) == 12


def test_there_are_no_more_pilots_than_tickets(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, KEYS[0]))
    assert shapes(world) == [("rx-b-p0", 1)]
    submitted(world, service, burst(TWO, *KEYS[1:]))
    world.run(service, 5.0)
    assert shapes(world) == [("rx-b-p0", 1), ("rx-b-p1", 2)]


def test_what_pilots_do_is_told_as_if_each_task_were_a_job(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS[:2]))
    worker = Worker(world, FIRST)
    ticket = take(store, FIRST)
    worker.start(KEYS[0])
    assert world.run(service, 3.0) == [Started(KEYS[0], "100", "n1")]
    worker.end(KEYS[0])
    assert keys_of(ticket) == [KEYS[0]]
    assert world.run(service, 3.0) == [OutcomeReady(KEYS[0], SIZE)]


def test_a_pilot_that_dies_loses_what_it_had_started_and_nothing_else(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    ticket = take(store, FIRST)
    more = take(store, FIRST)
    Worker(world, FIRST).start(keys_of(ticket)[0])
    world.queue.end(JobRef(JobId("100"), 0), JobState.NODE_FAIL)

    events = world.run(service, 31.0)

    assert losses(events) == {keys_of(ticket)[0]: "node_failure"}
    held = [piece.key for name in store.tickets() if (found := store.read(name)) for piece in found.pieces]
    assert sorted(held) == sorted(set(KEYS) - {keys_of(ticket)[0]})
    assert held[0] == keys_of(more)[0]  # it comes first again
    assert store.members() == []
    assert shapes(world) == [("rx-b-p0", 3), ("rx-b-p1", 1)]


def test_what_a_dead_pilot_had_started_is_tried_again_as_long_as_it_may_be(world: World, store: CrewStore) -> None:
    asked = Resources(run_time_max_s=100.0, retry=Retry(1, ("node_failure",), {}))
    world.terms = Terms(pilots=Pilots(3, asked))
    service = world.service()
    submitted(world, service, burst(ONE, KEYS[0], resources=(asked,)))
    for attempt, (pilot, job) in enumerate((("rx-b-p0-0", "100"), ("rx-b-p1-0", "101"))):
        take(store, pilot, job)
        Worker(world, pilot).start(KEYS[0])
        assert losses(world.run(service, 3.0)) == {}
        world.queue.end(JobRef(JobId(job)), JobState.NODE_FAIL)
        events = world.run(service, 31.0)
        assert len(world.session.deaths(KEYS[0])) == 1
        assert len(store.tickets()) == 1 - attempt
    assert losses(events) == {KEYS[0]: "node_failure"}


def test_a_task_that_ends_as_another_is_not_lost_with_the_pilot_that_ran_it(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, KEYS[0]))
    take(store, FIRST, "100")
    Worker(world, FIRST).start(KEYS[0])
    publish_link(world.session, KEYS[0], TaskKey("b-child-t1"))
    world.queue.end(JobRef(JobId("100")), JobState.NODE_FAIL)
    events = world.run(service, 70.0)
    assert (losses(events), store.tickets(), store.members()) == ({}, [], [])


def test_a_pilot_with_a_damaged_log_loses_what_it_had(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    ticket = take(store, FIRST)
    Path(log_path(world.session, f"{FIRST}-w0")).write_bytes(b"x" * 100)
    world.queue.end(JobRef(JobId("100"), 0), JobState.NODE_FAIL)

    assert losses(world.run(service, 31.0)) == dict.fromkeys(keys_of(ticket), "store")


def test_a_pilot_that_left_is_replaced_when_there_is_more_to_do(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, KEYS[0]))
    run(store, world, FIRST, "100")
    store.beat(FIRST, Beat("100", "n1", 7, 1.0, ended=1, left="idle"))
    world.run(service, 1.0)
    submitted(world, service, burst(TWO, KEYS[1]))
    world.run(service, 6.0)

    assert shapes(world) == [("rx-b-p0", 1), ("rx-b-p1", 1)]


def test_no_pilot_is_submitted_for_a_ticket_whose_inputs_are_being_computed(world: World, store: CrewStore) -> None:
    service = world.service()
    submit = burst(
        ONE, Entry(KEYS[0]), Entry(KEYS[1], 1, KEYS[:1]), resources=(Resources(), Resources(threads_per_core=2))
    )
    submitted(world, service, submit)
    assert shapes(world) == [("rx-b-p0", 1)]
    assert keys_of(take(store, FIRST, "100")) == [KEYS[0]]
    world.run(service, 20.0)
    assert (shapes(world), len(store.tickets())) == ([("rx-b-p0", 1)], 1)

    worker = Worker(world, FIRST)
    worker.start(KEYS[0])
    worker.end(KEYS[0])
    store.beat(FIRST, Beat("100", "n1", 7, 1.0, ended=1, left="idle"))
    world.run(service, 20.0)
    assert shapes(world) == [("rx-b-p0", 1), ("rx-b-p1", 1)]


def test_a_successor_counts(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, KEYS[0]), burst(TWO, KEYS[1]))
    world.run(service, 10.0)
    assert shapes(world) == [("rx-b-p0", 2)]
    journal = Journal(world.session)
    journal.append({"job": "900", "name": "rx-b-p7", "tasks": 1})
    journal.close()
    for index in range(2):
        pilot = f"rx-b-p0-{index}"
        store.beat(pilot, Beat(f"100_{index}", "n1", 7, 1.0, left="walltime", successor="rx-b-p7"))
    world.run(service, 10.0)
    assert shapes(world) == [("rx-b-p0", 2), ("rx-b-p1", 1)]


def test_an_sbatch_that_lied_is_not_repeated(world: World) -> None:
    world.queue.troubles["submit"] = [LIE]
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    world.run(service, 20.0)

    assert shapes(world) == [("rx-b-p0", 3)]


@pytest.mark.parametrize(
    ("trouble", "later"),
    [(DOWN, [("rx-b-p0", 3)]), (QuotaReached("AssocMaxSubmitJobLimit"), [("rx-b-p0", 1), ("rx-b-p1", 2)])],
    ids=["down", "a quota"],
)
def test_pilots_wait_for_a_scheduler_that_says_not_now(
    world: World, trouble: Exception, later: list[tuple[str, int]]
) -> None:
    """There may be room for one where there is none for three."""
    world.queue.troubles["submit"] = [trouble]
    service = world.service()
    events = submitted(world, service, burst(ONE, *KEYS))

    assert [event for event in events if isinstance(event, Problem)] == [
        Problem(f"{trouble}; submitting pilots again in 1 s")
    ]
    assert shapes(world) == []
    assert service.submitting
    world.run(service, 20.0)
    assert shapes(world) == later
    assert not service.submitting


def test_pilots_that_a_quota_refuses_do_not_keep_a_client_that_leaves(world: World) -> None:
    world.queue.troubles["submit"] = [QuotaReached("AssocMaxSubmitJobLimit")] * 9
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    events = service.handle(Leave()) + world.run(service, 5.0)
    kept = f"{len(KEYS)} tasks stay in the store until somebody uses session='s-1' again"
    assert Problem(f"AssocMaxSubmitJobLimit; {kept}") in events
    assert events[-1] == Left(len(KEYS))
    assert service.left() == len(KEYS)


def test_one_that_takes_over_knows_the_number_that_was_submitted_in_the_end(world: World) -> None:
    world.queue.troubles["submit"] = [QuotaReached("AssocMaxSubmitJobLimit"), Crash()]
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    with pytest.raises(Crash):
        world.run(service, 5.0)
    other = world.service()
    world.run(other, 20.0)
    assert shapes(world) == [("rx-b-p0", 1), ("rx-b-p1", 2)]


def test_no_more_pilots_than_an_array_may_have_are_submitted_at_once(world: World) -> None:
    world.queue.array = 2
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    world.run(service, 5.0)
    assert shapes(world) == [("rx-b-p0", 2), ("rx-b-p1", 1)]


def test_submissions_of_pilots_keep_the_pace(world: World) -> None:
    service = world.service()
    for _ in range(70):
        service._submitter.pace.count()
    submitted(world, service, burst(ONE, *KEYS))
    assert (shapes(world), service.submitting) == ([], True)
    world.run(service, 10.0)
    assert shapes(world) == []
    world.run(service, 2.0)
    assert shapes(world) == [("rx-b-p0", 3)]


def test_more_pilots_are_submitted_when_more_are_asked_for(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    assert service.handle(Resize(5)) == []
    world.run(service, 5.0)
    assert shapes(world) == [("rx-b-p0", 3), ("rx-b-p1", 2)]
    spec = store.spec()
    assert spec is not None
    assert spec.pilots.count == 5


def test_there_are_no_more_pilots_than_there_are_cores_for(world: World, store: CrewStore) -> None:
    world.terms = replace(world.terms, cores_at_once=2)
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    assert shapes(world) == [("rx-b-p0", 2)]
    service.handle(Resize(5))
    world.run(service, 20.0)
    assert shapes(world) == [("rx-b-p0", 2)]


def test_pilots_that_are_too_many_are_dismissed_those_that_have_not_begun_first(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    take(store, "rx-b-p0-1", "100_1")
    take(store, LAST, "100_2")
    store.hunger(LAST, True)
    assert service.handle(Resize(1)) == []
    assert [store.dismissed(f"rx-b-p0-{n}") for n in range(3)] == [True, False, True]
    world.run(service, 10.0)
    assert world.queue.cancelled == [JobRef(JobId("100"), 0)]
    assert shapes(world) == [("rx-b-p0", 3)]


def test_pilots_that_are_refused_fail_every_task(world: World, store: CrewStore) -> None:
    world.queue.troubles["submit"] = [SubmitRejected("invalid partition")]
    events = submitted(world, world.service(), burst(ONE, *KEYS))

    assert losses(events) == dict.fromkeys(KEYS, "rejected")
    assert store.tickets() == []


def test_pilots_that_end_again_and_again_without_running_a_task_are_given_up(world: World, store: CrewStore) -> None:
    service = world.service()
    events = submitted(world, service, burst(ONE, *KEYS))
    for _ in range(6):
        for ref, facts in list(world.queue.facts.items()):
            if not facts.state.ended:
                world.queue.end(ref, JobState.FAILED, exit_code=127)
        events += world.run(service, 31.0)

    assert len(shapes(world)) == 3
    assert set(losses(events)) == set(KEYS)
    (message,) = {event.loss.message for event in events if isinstance(event, Lost)}
    assert message.startswith("3 times in a row pilots ended before they ran a task; the last time: job 10")
    assert not service.submitting


def test_a_pilot_that_can_never_start_is_cancelled_and_counts_as_one_that_ran_nothing(world: World) -> None:
    service = world.service()
    events = submitted(world, service, burst(ONE, *KEYS))
    for _ in range(6):
        for ref, facts in list(world.queue.facts.items()):
            if facts.state is JobState.PENDING:
                world.queue.end(ref, JobState.PENDING, reason="PartitionTimeLimit")
        events += world.run(service, 40.0)

    assert set(losses(events).values()) == {"rejected"}
    assert all(facts.state.ended for facts in world.queue.facts.values())


def test_cancelled_tasks_make_no_files_and_their_tickets_are_left_to_pilots(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    events = service.handle(Cancel(KEYS[:10])) + world.run(service)

    assert losses(events) == dict.fromkeys(KEYS[:10], "cancelled")
    assert len(world.names()) == 1  # one log
    assert world.service().handle(Watch(KEYS[:1])) == [
        Lost(KEYS[0], Loss("cancelled", "cancelled by its submitter", job=""))
    ]


def test_what_is_in_no_ticket_gets_into_a_new_one_after_two_looks(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    damaged, gone, *_ = store.tickets()
    (store.path / "tickets" / damaged).write_bytes(b"{")
    store.remove(gone)

    world.run(service, 31.0)
    assert len(store.tickets()) == 10
    world.run(service, 31.0)
    found = [piece.position for name in store.tickets() if (ticket := store.read(name)) for piece in ticket.pieces]
    assert sorted(found) == list(range(12))


def test_a_service_that_takes_over_goes_on_with_the_pilots_that_are_there(world: World, store: CrewStore) -> None:
    submitted(world, world.service(), burst(ONE, *KEYS))
    ticket = take(store, FIRST)
    service = world.service()
    assert service.handle(burst(ONE, *KEYS), sealed(burst(ONE, *KEYS))) == [Accepted(ONE, ("",) * 12)]
    service.handle(Watch(KEYS))
    Worker(world, FIRST).end(keys_of(ticket)[0])

    assert world.run(service, 61.0) == [OutcomeReady(keys_of(ticket)[0], SIZE)]
    assert shapes(world) == [("rx-b-p0", 3)]
    world.queue.end(JobRef(JobId("100"), 2), JobState.NODE_FAIL)
    world.run(service, 61.0)
    assert shapes(world) == [("rx-b-p0", 3), ("rx-b-p1", 1)]


def test_a_service_that_crashed_while_it_submitted_pilots_has_submitted_them_once(world: World) -> None:
    world.queue.troubles["submit"] = [Crash()]
    service = world.service()
    service.handle(burst(ONE, *KEYS), sealed(burst(ONE, *KEYS)))
    with pytest.raises(Crash):
        world.run(service)
    service = world.service()
    service.handle(Watch(KEYS))
    world.run(service, 61.0)

    assert shapes(world) == [("rx-b-p0", 3)]


def test_another_client_follows_and_takes_over_only_when_the_first_is_gone(world: World) -> None:
    first = world.service()
    submitted(world, first, burst(ONE, *KEYS))
    world.terms = replace(world.terms, pilots=None)
    second = world.service("other")
    second.handle(Watch(KEYS))
    world.queue.end(JobRef(JobId("100"), 0), JobState.NODE_FAIL)
    world.run(second, 61.0)
    assert shapes(world) == [("rx-b-p0", 3)]
    shutil.rmtree(world.session.path / "services")
    (world.session.path / "services").mkdir()
    world.run(second, 61.0)
    world.run(second, 61.0)
    assert shapes(world) == [("rx-b-p0", 3), ("rx-b-p1", 1)]


def test_pilots_that_wait_when_all_is_done_are_cancelled(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    run(store, world, FIRST)
    world.run(service, 3.0)
    world.services.remove(service)
    service.close(discard=True)

    assert world.queue.cancelled == [JobRef(JobId("100"), 1), JobRef(JobId("100"), 2)]
    assert not world.session.path.exists()


def test_while_tasks_are_open_their_pilots_are_left_alone(world: World, store: CrewStore) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, *KEYS))
    world.services.remove(service)
    service.close(discard=True)

    assert (world.queue.cancelled, store.stopped()) == ([], False)


def test_a_failed_input_fails_what_waits_for_it(world: World, store: CrewStore) -> None:
    service = world.service()
    tasks = [Entry(KEYS[0]), Entry(KEYS[1], 0, (KEYS[0],)), Entry(KEYS[2], 0, (KEYS[1],))]
    submitted(world, service, Submit(ONE, tuple(tasks), (Resources(),), header.BLOCK))
    ticket = take(store, FIRST, "100")
    assert keys_of(ticket) == list(KEYS[:3])
    Worker(world, FIRST).start(KEYS[0])
    world.queue.end(JobRef(JobId("100")), JobState.TIMEOUT)

    assert losses(world.run(service, 31.0)) == {KEYS[0]: "timeout", KEYS[1]: "upstream", KEYS[2]: "upstream"}


def test_nothing_of_this_is_there_where_no_pilots_are_wanted(world: World) -> None:
    world.terms = Terms()
    submitted(world, world.service(), burst(ONE, *KEYS))

    assert shapes(world) == [("rx-b-1-0", 12)]
    assert not (world.session.path / "crews").exists()
