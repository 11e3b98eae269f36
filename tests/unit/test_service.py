"""The batch service: every job is submitted once, every task's end is told, whatever fails in between."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cloudpickle
import pytest

from remoteexec_server.batch.base import (
    JobFacts,
    JobId,
    JobRef,
    JobState,
    QuotaReached,
    SchedulerUnavailable,
    SubmitRejected,
)
from remoteexec_server.batch.service import Service
from remoteexec_server.batch.submitter import Jobs
from remoteexec_server.store import session as store
from remoteexec_server.store.session import Claim, Session
from remoteexec_server.wire import header
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
    Problem,
    Rejected,
    Started,
    Submit,
    TaskKey,
    Terms,
    Watch,
)
from remoteexec_server.wire.resources import Resources
from tests.unit import fake_queue
from tests.unit.fake_queue import LIE, Clock, Crash, FakeQueue

KEY = bytes(range(32))
ONE, TWO = BurstId("b-1"), BurstId("b-2")
A, B, C, D = (TaskKey(name) for name in "abcd")
DOWN = SchedulerUnavailable("slurm_load_jobs error: Unable to contact slurm controller")


@dataclass
class World:
    """A store, a queue and a clock, which outlive services."""

    session: Session
    queue: FakeQueue = field(default_factory=FakeQueue)
    clock: Clock = field(default_factory=Clock)
    terms: Terms = field(default_factory=Terms)
    services: list[Service] = field(default_factory=list)

    def service(self, client: str = "b", alone: bool = False) -> Service:
        """A new process that takes over, if it is of the same client."""
        jobs = Jobs(("python", "runner"), "fake", self.terms, alone)
        self.services.append(Service(self.session, self.queue, jobs, client, self.clock))
        return self.services[-1]

    def run(self, service: Service, seconds: float = 0.0) -> list[Event]:
        """What the service says within so many seconds of doing what is due."""
        events: list[Event] = []
        until = self.clock.now + seconds
        for _ in range(10_000):
            events += service.step()
            while (ready := service.next_outcome()) is not None:
                assert len(ready[1]) == ready[0].size
                events.append(ready[0])
            wait = service.wait_s()
            if wait is None or self.clock.now + wait > until:
                self.clock.now = until
                return events
            self.clock.now += wait
        raise AssertionError("the service spins")

    def end(self, key: TaskKey, ok: bool = True) -> None:
        """The task's runner publishes an outcome."""
        head = Header("outcome", key, "ok" if ok else "error", cloudpickle=cloudpickle.__version__)
        self.session.publish_outcome(key, header.seal(head, b"", KEY))

    def names(self) -> set[str]:
        return set(os.listdir(self.session.outcomes))


SIZE = header.BLOCK


@pytest.fixture
def world(tmp_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # which is what would take the time
    tmp_root.mkdir(mode=0o700)
    world = World(Session.create(tmp_root, "s-1", KEY.hex()))
    yield world
    for service in world.services:
        service.close(discard=False)


def burst(name: BurstId, *entries: Entry | TaskKey, resources: tuple[Resources, ...] = (Resources(),)) -> Submit:
    tasks = tuple(entry if isinstance(entry, Entry) else Entry(entry) for entry in entries)
    return Submit(name, tasks, resources, header.BLOCK)


def sealed(submit: Submit) -> bytes:
    return header.seal(Header("bundle", submit.burst, cloudpickle=cloudpickle.__version__), b"", KEY)


def submitted(world: World, service: Service, *submits: Submit) -> list[Event]:
    events: list[Event] = []
    for submit in submits:
        events += service.handle(submit, sealed(submit))
    return events + world.run(service)


def sizes(queue: FakeQueue) -> list[int]:
    return [spec.count for spec in queue.jobs.values()]


def job(number: int, index: int | None = None) -> JobRef:
    return JobRef(JobId(str(number)), index)


# ---- submitting ----


def test_a_burst_of_equal_tasks_is_one_array(world: World) -> None:
    service = world.service()

    events = submitted(world, service, burst(ONE, A, B, C))

    assert events == [Accepted(ONE, ("100_0", "100_1", "100_2"))]
    [spec] = world.queue.jobs.values()
    directory = world.session.path / "jobs" / "rx-b-1-0"
    assert (spec.name, spec.directory, spec.command, spec.count, spec.after) == (
        "rx-b-1-0",
        directory,
        ("python", "runner", str(directory)),
        3,
        (),
    )


def test_a_single_task_is_a_job_without_an_index(world: World) -> None:
    assert submitted(world, world.service(), burst(ONE, A)) == [Accepted(ONE, ("100",))]


def test_tasks_are_grouped_by_resources_and_by_inputs(world: World) -> None:
    kinds = (Resources(), Resources(partition="long"))
    events = submitted(
        world,
        world.service(),
        burst(
            ONE,
            Entry(A),
            Entry(B, 1),
            Entry(C, 0, (A,)),
            Entry(D, 0, (B, A)),
            Entry(TaskKey("e"), 0, (A, B)),
            Entry(TaskKey("f")),
            resources=kinds,
        ),
    )

    assert events == [Accepted(ONE, ("100_0", "101", "102", "103_0", "103_1", "100_1"))]
    assert [(spec.resources.partition, spec.after) for spec in world.queue.jobs.values()] == [
        (None, ()),
        ("long", ()),
        (None, (job(100, 0),)),
        (None, (job(101), job(100, 0))),
    ]


@pytest.mark.parametrize(
    ("most", "count", "jobs"), [(4, 3, [3]), (4, 4, [4]), (4, 5, [4, 1]), (4, 12, [4, 4, 4]), (1, 3, [1, 1, 1])]
)
def test_an_array_is_cut_at_the_longest_the_cluster_takes(world: World, most: int, count: int, jobs: list[int]) -> None:
    world.queue.array = most
    keys = [TaskKey(f"t{n}") for n in range(count)]

    [accepted] = submitted(world, world.service(), burst(ONE, *keys))

    assert isinstance(accepted, Accepted)
    assert (sizes(world.queue), len(set(accepted.jobs))) == (jobs, count)


def test_an_array_that_is_waited_for_as_a_whole_is_named_once(world: World) -> None:
    keys = [TaskKey(f"t{n}") for n in range(5)]
    submitted(world, world.service(), burst(ONE, *keys, Entry(A, 0, tuple(keys)), Entry(B, 0, tuple(keys[:4]))))

    assert [spec.after for spec in world.queue.jobs.values()] == [
        (),
        (job(100),),
        (job(100, 0), job(100, 1), job(100, 2), job(100, 3)),
    ]


def test_an_input_that_is_done_is_not_waited_for(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, B))
    world.end(A)
    assert world.run(service, 1.0) == [OutcomeReady(A, SIZE)]

    submitted(world, service, burst(TWO, Entry(C, 0, (A, B))))

    assert world.queue.jobs[JobId("101")].after == (job(100, 1),)
    assert store.read_job(world.session.job_directory("rx-b-2-0"))[1].upstream == {"a": "100_0", "b": "100_1"}


def test_an_input_that_the_scheduler_has_forgotten_is_left_out(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A), burst(TWO, B))
    world.queue.forget(JobId("100"))

    events = submitted(world, service, burst(BurstId("b-3"), Entry(C, 0, (A, B))))

    assert events == [Accepted(BurstId("b-3"), ("102",))]
    assert world.queue.jobs[JobId("102")].after == (job(101),)


def test_the_same_burst_twice_is_submitted_once(world: World) -> None:
    service = world.service()
    submit = burst(ONE, A, B)

    assert submitted(world, service, submit, submit) == [Accepted(ONE, ("100_0", "100_1"))]
    assert submitted(world, service, submit) == [Accepted(ONE, ("100_0", "100_1"))]
    assert sizes(world.queue) == [2]


@pytest.mark.parametrize(
    ("submit", "kind", "says"),
    [
        (burst(ONE, Entry(A, 1)), "ProtocolMismatch", "names resources that are not there"),
        (burst(ONE, Entry(A, -1)), "ProtocolMismatch", "names resources that are not there"),
        (burst(ONE, A, A), "ProtocolMismatch", "one of them twice"),
        (burst(ONE), "ProtocolMismatch", "no tasks"),
        (burst(ONE, TaskKey("../a")), "ProtocolMismatch", "letters, digits"),
        (burst(BurstId("../../x"), A), "ProtocolMismatch", "letters, digits"),
        (burst(ONE, A, resources=(Resources(partition="a b"),)), "SubmitRejected", "partition='a b'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_burst_that_cannot_be_right_is_refused_and_leaves_nothing(
    world: World, submit: Submit, kind: str, says: str
) -> None:
    service = world.service()

    [event] = submitted(world, service, submit)

    assert isinstance(event, Rejected)
    assert (event.burst, event.keys, event.kind) == (submit.burst, tuple(e.key for e in submit.tasks), kind)
    assert says in event.message
    assert (world.queue.jobs, os.listdir(world.session.path / "bursts"), service.wait_s()) == ({}, [], None)


@pytest.mark.parametrize("bundle", [b"", sealed(burst(TWO, A)), sealed(burst(ONE, A)) + b"x"])
def test_a_bundle_of_another_burst_or_session_is_refused(world: World, bundle: bytes) -> None:
    [event] = world.service().handle(burst(ONE, A), bundle)

    assert isinstance(event, Rejected)
    assert event.message.startswith("bundle refused: ")


def test_a_task_of_an_earlier_burst_is_refused(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))

    assert submitted(world, service, burst(TWO, B, A)) == [
        Rejected(TWO, (B, A), "SubmitRejected", "tasks ['a'] were submitted before")
    ]
    assert submitted(world, service, burst(TWO, B)) == [Accepted(TWO, ("101",))]


def test_what_the_scheduler_refuses_is_told_in_its_words_and_the_rest_goes_on(world: World) -> None:
    service = world.service()
    world.queue.troubles["submit"] = [SubmitRejected("sbatch: error: invalid partition")]
    kinds = (Resources(partition="nowhere"), Resources())

    events = submitted(world, service, burst(ONE, Entry(A, 0), Entry(B, 1), Entry(C, 1, (A,)), resources=kinds))

    assert set(events[:-1]) == {
        Rejected(ONE, (A,), "SubmitRejected", "sbatch: error: invalid partition"),
        Lost(C, Loss("upstream", "input a has failed", upstream=A)),
    }
    assert events[-1] == Accepted(ONE, ("", "100", ""))
    assert world.names() == {"a.lost", "c.lost"}


# ---- exactly once ----


def test_an_sbatch_that_lied_is_looked_up_before_anything_is_submitted_again(world: World) -> None:
    service = world.service()
    world.queue.troubles["submit"] = [LIE]

    events = submitted(world, service, burst(ONE, A, B))
    assert events == [Problem(f"{LIE}; submitting again in 1 s")]
    assert service.wait_s() == 1.0
    assert world.run(service, 1.0) == [Accepted(ONE, ("100_0", "100_1"))]
    assert sizes(world.queue) == [2]


def test_a_scheduler_that_is_down_is_asked_less_and_less_often(world: World) -> None:
    service = world.service()
    world.queue.troubles["submit"] = [DOWN] * 7
    began = world.clock.now

    events = submitted(world, service, burst(ONE, A)) + world.run(service, 200.0)

    pauses = [event.message.rpartition(" in ")[2] for event in events if isinstance(event, Problem)]
    assert pauses == ["1 s", "2 s", "5 s", "10 s", "30 s"]  # what was just said is not said again
    assert events[-1] == Accepted(ONE, ("100",))
    assert (world.queue.calls.count("submit"), world.clock.now - began) == (8, 200.0)


def test_nothing_is_submitted_while_it_is_unknown_whether_the_last_attempt_was_taken(world: World) -> None:
    service = world.service()
    world.queue.troubles = {"submit": [LIE], "find": [DOWN, DOWN]}
    submitted(world, service, burst(ONE, A))

    assert world.run(service, 60.0)[-1] == Accepted(ONE, ("100",))
    assert (world.queue.calls.count("submit"), world.queue.calls.count("find")) == (1, 3)


def test_a_cluster_that_does_not_say_how_long_an_array_may_be_is_waited_for(world: World) -> None:
    service = world.service()
    world.queue.troubles["max_array"] = [DOWN]

    assert submitted(world, service, burst(ONE, A)) == [Problem(f"{DOWN}; submitting again in 1 s")]
    assert world.run(service, 1.0) == [Accepted(ONE, ("100",))]


def test_a_second_burst_waits_its_turn_without_spinning(world: World) -> None:
    service = world.service()
    world.queue.troubles["submit"] = [DOWN] * 6

    submitted(world, service, burst(ONE, A), burst(TWO, B))

    assert service.wait_s() == 1.0
    assert [event for event in world.run(service, 300.0) if isinstance(event, Accepted)] == [
        Accepted(ONE, ("100",)),
        Accepted(TWO, ("101",)),
    ]


@pytest.mark.parametrize("most", [1, 2, 10])
@pytest.mark.parametrize("crashes", [1, 2, 3])
def test_a_service_that_dies_between_sbatch_and_journal_is_followed_by_one_that_finds_the_job(
    world: World, most: int, crashes: int
) -> None:
    world.queue.array = most
    world.queue.troubles["submit"] = [Crash()] * crashes
    submit = burst(ONE, A, B, Entry(C, 0, (A, B)))
    service = world.service()
    service.handle(submit, sealed(submit))
    died = 0
    while True:
        try:
            events = world.run(service)
            break
        except Crash:
            died += 1
            service = world.service()
            assert service.handle(submit, sealed(submit)) == []

    assert died == min(crashes, len(world.queue.jobs))
    assert len({spec.name for spec in world.queue.jobs.values()}) == len(world.queue.jobs)
    assert sum(sizes(world.queue)) == 3
    assert [type(event) for event in events] == [Accepted]


def test_a_burst_is_cut_as_it_was_though_the_cluster_takes_longer_arrays_now(world: World) -> None:
    world.queue.array = 2
    keys = [TaskKey(f"t{n}") for n in range(6)]
    world.queue.troubles["submit"] = [Crash()]
    submit = burst(ONE, *keys)
    service = world.service()
    service.handle(submit, sealed(submit))
    with pytest.raises(Crash):
        world.run(service)
    world.queue.array = 100

    world.run(world.service())

    assert sizes(world.queue) == [2, 2, 2]


def test_a_service_whose_client_has_come_back_elsewhere_submits_nothing_more(world: World) -> None:
    old = world.service()
    old.handle(burst(ONE, A), sealed(burst(ONE, A)))
    new = world.service()

    assert (world.run(old), world.run(new)) == ([], [Accepted(ONE, ("100",))])
    assert sizes(world.queue) == [1]


def test_a_burst_that_another_service_has_taken_over_is_followed_to_its_end(world: World) -> None:
    slow = world.service()
    slow.handle(burst(ONE, A), sealed(burst(ONE, A)))
    world.run(world.service())

    assert world.run(slow, 40.0) == [Accepted(ONE, ("100",))]
    world.end(A)
    assert world.run(slow, 3.0) == [OutcomeReady(A, SIZE)]


def test_a_burst_has_an_owner_before_others_can_see_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[str] = []
    add = Session.add_burst

    def watched(session: Session, submit: Submit, bundle: bytes) -> None:
        owners.append(session.owner(submit.burst))
        add(session, submit, bundle)

    monkeypatch.setattr(Session, "add_burst", watched)
    submitted(world, world.service(), burst(ONE, A))

    assert owners == [world.session.owner(ONE)]


def test_two_clients_of_a_session_submit_each_their_own_bursts_and_take_each_others_results(world: World) -> None:
    theirs, mine = world.service("c"), world.service()
    other = BurstId("c-1")
    theirs.handle(burst(other, C), sealed(burst(other, C)))
    mine.handle(Watch((C,)))
    assert submitted(world, mine, burst(ONE, Entry(A, 0, (C,)))) == [Accepted(ONE, ("100",))]
    assert world.run(theirs) == [Accepted(other, ("101",))]

    world.end(C)
    assert world.run(mine, 40.0) == [OutcomeReady(C, SIZE)]
    assert sizes(world.queue) == [1, 1]


def test_the_burst_of_a_client_that_has_died_is_submitted_by_another(world: World) -> None:
    dead = world.service("c")
    other = BurstId("c-1")
    dead.handle(burst(other, C), sealed(burst(other, C)))

    mine = world.service()
    mine.handle(Watch((C,)))
    assert (world.run(mine, 40.0), sizes(world.queue)) == ([], [])  # it may be slow
    for path in (world.session.path / "services").iterdir():
        os.utime(path, (1.0, 1.0))
    world.run(mine, 40.0)

    assert sizes(world.queue) == [1]


def test_no_more_jobs_than_agreed_are_in_the_queue_and_the_rest_waits_in_the_store(world: World) -> None:
    world.terms = Terms(jobs_at_once=3)
    world.queue.array = 2
    service = world.service()
    keys = [TaskKey(f"t{n}") for n in range(6)]
    submitted(world, service, burst(ONE, *keys))
    world.run(service, 1.0)
    assert [(spec.count, spec.at_once) for spec in world.queue.jobs.values()] == [(2, 2), (2, 1)]

    world.end(keys[0])
    world.end(keys[1])
    world.run(service, 3.0)
    assert [(spec.count, spec.at_once) for spec in world.queue.jobs.values()] == [(2, 2), (2, 1), (2, 1)]


def test_cores_at_once_count_those_of_each_task(world: World) -> None:
    world.terms = Terms(cores_at_once=8)
    service = world.service()
    wide = burst(ONE, Entry(A, 0), Entry(B, 0), Entry(C, 1), resources=(Resources(cores=3), Resources(cores=8)))
    submitted(world, service, wide)
    world.run(service, 5.0)
    assert [(spec.count, spec.at_once) for spec in world.queue.jobs.values()] == [(2, 2)]

    world.end(A)
    world.end(B)
    world.run(service, 5.0)
    assert sizes(world.queue) == [2, 1]


def test_a_task_that_is_larger_than_the_limit_is_refused_and_the_rest_goes_on(world: World) -> None:
    world.terms = Terms(cores_at_once=2)
    wide = burst(ONE, Entry(A, 0), Entry(B, 1), resources=(Resources(cores=4), Resources()))

    said = (
        "a task asks for 4 CPUs (cores x threads_per_core), and max_cores is 2: it could never start; raise max_cores, "
        "or ask for fewer"
    )
    assert submitted(world, world.service(), wide) == [
        Rejected(ONE, (A,), "SubmitRejected", said),
        Accepted(ONE, ("", "100")),
    ]


def test_what_a_quota_refuses_waits_in_the_store_and_is_said_once(world: World) -> None:
    refused = QuotaReached("QOSMaxSubmitJobPerUserLimit")
    world.queue.troubles["submit"] = [refused, refused]
    service = world.service()

    events = submitted(world, service, burst(ONE, A))
    events += world.run(service, 100.0)

    assert events == [
        Problem("QOSMaxSubmitJobPerUserLimit; 1 tasks wait in the store until there is room"),
        Accepted(ONE, ("100",)),
    ]


FULL = QuotaReached("QOSMaxSubmitJobPerUserLimit")


def test_an_array_that_a_quota_refuses_though_nothing_of_ours_is_queued_is_halved(world: World) -> None:
    keys = [TaskKey(f"t{n}") for n in range(5)]
    world.queue.troubles["submit"] = [FULL, FULL]
    service = world.service()

    events = submitted(world, service, burst(ONE, *keys))

    assert [(spec.name, spec.count) for spec in world.queue.jobs.values()] == [
        ("rx-b-1-0-a-a", 2),
        ("rx-b-1-0-a-b", 1),
        ("rx-b-1-0-b", 2),
    ]
    assert events == [Accepted(ONE, ("100_0", "100_1", "101", "102_0", "102_1"))]
    assert sorted(os.listdir(world.session.path / "jobs")) == ["rx-b-1-0-a-a", "rx-b-1-0-a-b", "rx-b-1-0-b"]


def test_an_array_waits_for_a_quota_while_something_of_ours_is_queued(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.queue.troubles["submit"] = [FULL]

    events = submitted(world, service, burst(TWO, B, C))
    events += world.run(service, 100.0)

    assert sizes(world.queue) == [1, 2]
    assert events == [
        Problem("QOSMaxSubmitJobPerUserLimit; 2 tasks wait in the store until there is room"),
        Accepted(TWO, ("101_0", "101_1")),
    ]


def test_whoever_goes_on_cuts_a_halved_array_in_the_same_way(world: World) -> None:
    keys = [TaskKey(f"t{n}") for n in range(4)]
    world.queue.troubles["submit"] = [FULL, Crash()]
    with pytest.raises(Crash):
        submitted(world, world.service(), burst(ONE, *keys))

    service = world.service()
    events = service.handle(burst(ONE, *keys), sealed(burst(ONE, *keys))) + world.run(service)

    assert [(spec.name, spec.count) for spec in world.queue.jobs.values()] == [("rx-b-1-0-a", 2), ("rx-b-1-0-b", 2)]
    assert events == [Accepted(ONE, ("100_0", "100_1", "101_0", "101_1"))]


def test_who_follows_a_burst_sees_that_an_array_of_it_was_halved(world: World) -> None:
    keys = [TaskKey(f"t{n}") for n in range(2)]
    world.terms = Terms(submits_per_minute=1.0)
    world.queue.array = 1000
    first = world.service()
    first.handle(burst(ONE, *keys), sealed(burst(ONE, *keys)))
    world.queue.troubles["submit"] = [FULL]
    other = world.service("other")
    other.handle(Watch(tuple(keys)))
    world.run(first)
    world.run(other, 60.0)
    for index, key in enumerate(keys):
        world.end(key)
        world.queue.end(job(100 + index))

    assert [event for event in world.run(other, 60.0) if isinstance(event, OutcomeReady)] == [
        OutcomeReady(key, SIZE) for key in keys
    ]


def test_who_leaves_has_what_waits_for_room_put_behind_what_fills_it(world: World) -> None:
    world.terms = Terms(jobs_at_once=2)
    service = world.service()
    kinds = tuple(Resources(run_time_max_s=60.0 * n) for n in range(1, 5))
    entries = [Entry(TaskKey(f"t{n}"), n) for n in range(4)]
    assert submitted(world, service, burst(ONE, *entries, resources=kinds)) == []
    assert sizes(world.queue) == [1, 1]

    events = service.handle(Leave()) + world.run(service, 2.0)

    assert events == [Accepted(ONE, ("100", "101", "102", "103")), Left(0)]
    assert [spec.after for spec in world.queue.jobs.values()] == [(), (), (job(100),), (job(101),)]


def test_who_leaves_puts_an_array_behind_with_the_limit_on_its_elements(world: World) -> None:
    world.terms = Terms(cores_at_once=4)
    service = world.service()
    kinds = (Resources(cores=2), Resources(cores=2, run_time_max_s=60.0))
    entries = [Entry(TaskKey(f"t{n}"), n // 3) for n in range(6)]
    submitted(world, service, burst(ONE, *entries, resources=kinds))
    service.handle(Leave())
    world.run(service, 2.0)
    assert [(spec.count, spec.at_once, spec.after) for spec in world.queue.jobs.values()] == [
        (3, 2, ()),
        (3, 2, (job(100),)),
    ]


def test_what_a_quota_refuses_a_client_that_leaves_stays_in_the_store_and_is_said_once(world: World) -> None:
    refused = QuotaReached("QOSMaxSubmitJobPerUserLimit")
    world.queue.troubles["submit"] = [refused, refused, refused]
    service = world.service()
    submitted(world, service, burst(ONE, A), burst(TWO, B))

    events = service.handle(Leave()) + world.run(service, 1.0)

    assert service.left() == 1
    assert events == [
        Accepted(TWO, ("100",)),
        Problem("QOSMaxSubmitJobPerUserLimit; 1 tasks stay in the store until somebody uses session='s-1' again"),
        Left(1),
    ]


def test_who_leaves_does_not_wait_for_a_slow_pace(world: World) -> None:
    world.terms = Terms(submits_per_minute=1.0)
    service = world.service()
    submitted(world, service, burst(ONE, A), burst(TWO, B))
    assert service.handle(Leave()) + world.run(service, 1.0) == [
        Problem(
            "submits_per_minute allows no more now; 1 tasks stay in the store until somebody uses session='s-1' again"
        ),
        Left(1),
    ]
    assert service.left() is None  # what goes on without the client has the time


def test_who_leaves_waits_for_a_scheduler_that_does_not_answer(world: World) -> None:
    world.queue.troubles["submit"] = [DOWN, DOWN]
    service = world.service()
    submitted(world, service, burst(ONE, A))
    service.handle(Leave())
    assert Left(0) not in world.run(service, 0.5)
    assert world.run(service, 10.0)[-2:] == [Accepted(ONE, ("100",)), Left(0)]


def test_a_job_that_may_wait_for_long_is_told_once(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, B))
    held = JobFacts(JobState.PENDING, "JobHeldUser")
    world.queue.facts.update({job(100, 0): held, job(100, 1): held})

    first = world.run(service, 100.0)
    world.queue.facts[job(100, 0)] = JobFacts(JobState.PENDING, "PartitionDown")

    assert first == [
        Problem("job 100 waits: you, or a tool of yours, hold it: `scontrol release` ends that (JobHeldUser)")
    ]
    assert world.run(service, 100.0) == [Problem("job 100 waits: its partition is down (PartitionDown)")]


@pytest.mark.parametrize(
    ("a_minute", "at_once", "after_a_minute"),
    [(0.5, 1, 1), (1.0, 1, 2), (30.0, 30, 60), (60.0, 60, 80), (90.0, 60, 80)],
)
def test_as_many_submissions_as_a_minute_has_come_at_once_and_the_rest_is_spread(
    world: World, a_minute: float, at_once: int, after_a_minute: int
) -> None:
    world.terms = Terms(submits_per_minute=a_minute)
    world.queue.array = 1
    service = world.service()
    submitted(world, service, burst(ONE, *[TaskKey(f"t{n}") for n in range(80)]))

    world.run(service, 0.1)
    first = len(world.queue.jobs)
    world.run(service, 60.0)
    assert (first, len(world.queue.jobs)) == (at_once, after_a_minute)


def test_a_job_submitted_twice_in_spite_of_all_is_followed_where_its_task_runs(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.session.claim(A, Claim("99", "n1", 1, 0.0))
    world.queue.end(job(99), JobState.RUNNING)
    world.queue.end(job(100))  # its runner found the claim of the other

    assert world.run(service, 300.0) == [Started(A, "99", "n1")]
    world.queue.end(job(99), JobState.TIMEOUT)
    [lost] = world.run(service, 60.0)
    assert isinstance(lost, Lost)
    assert (lost.loss.reason, lost.loss.job) == ("timeout", "99")


# ---- how tasks end ----


def test_outcomes_are_told_with_their_bytes_once(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, B))
    world.session.claim(A, Claim("100_0", "n1", 7, 0.0))
    assert world.run(service, 1.0) == [Started(A, "100_0", "n1")]
    world.end(A)
    world.end(B, ok=False)

    assert world.run(service, 5.0) == [OutcomeReady(A, SIZE), OutcomeReady(B, SIZE)]
    assert (world.run(service, 600.0), service.wait_s(), world.queue.calls.count("states")) == ([], None, 0)


def test_a_claim_that_is_being_written_is_read_later(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    path = world.session.running(A)
    path.write_text('{"job":"100","ho')

    assert world.run(service, 1.0) == []
    path.write_text('{"job":"100","host":"n1","pid":7,"started":1.5}')
    assert world.run(service, 3.0) == [Started(A, "100", "n1")]


def test_a_claim_that_is_never_finished_does_not_keep_the_service_busy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.session.running(A).touch()
    world.run(service, 20.0)
    looks: list[Path] = []
    listdir = os.listdir

    def counted(path: Path) -> list[str]:
        looks.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", counted)

    world.run(service, 9.0)

    assert len(looks) <= 6


def test_an_outcome_that_cannot_be_read_now_is_told_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.end(A)
    read, failures = Path.read_bytes, [OSError("Stale file handle")] * 2

    def stale(path: Path) -> bytes:
        if path.name == "a.h5" and failures:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)

    assert world.run(service, 10.0) == [
        Problem("outcome of task a cannot be read: Stale file handle"),
        OutcomeReady(A, SIZE),
    ]


def test_an_outcome_that_is_no_outcome_is_told_all_the_same(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, Entry(B, 0, (A,))))
    world.session.publish_outcome(A, b"garbage")

    assert set(world.run(service, 1.0)) == {
        OutcomeReady(A, 7),
        Lost(B, Loss("upstream", "input a has failed", upstream=A)),
    }


@pytest.mark.parametrize(
    ("state", "facts", "reason"),
    [
        (JobState.TIMEOUT, {}, "timeout"),
        (JobState.OUT_OF_MEMORY, {}, "out_of_memory"),
        (JobState.NODE_FAIL, {}, "node_failure"),
        (JobState.CANCELLED, {}, "cancelled"),
        (JobState.PREEMPTED, {}, "preempted"),
        (JobState.FAILED, {"signal": 9}, "killed"),
        (JobState.FAILED, {"exit_code": 74}, "store"),
        (JobState.FAILED, {"exit_code": 1}, "unknown"),
    ],
)
def test_a_job_that_ended_badly_is_told_at_the_next_question(
    world: World, state: JobState, facts: dict[str, int], reason: str
) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.session.log("rx-b-1-0", 0).write_text("one\ntwo\n")
    world.queue.end(job(100), state, node="n1", **facts)

    [event] = world.run(service, 30.0)

    assert isinstance(event, Lost)
    assert (event.key, event.loss.reason, event.loss.job, event.loss.node, event.loss.log_tail) == (
        A,
        reason,
        "100",
        "n1",
        "one\ntwo",
    )
    assert world.session.read_loss(A) == event.loss
    assert (service.wait_s(), world.queue.calls.count("states")) == (None, 1)


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.GONE])
def test_a_job_that_ended_well_may_have_its_outcome_late_and_is_lost_after_the_grace_period(
    world: World, state: JobState
) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, B))
    world.queue.end(job(100, 0), state)
    world.queue.end(job(100, 1), state)

    assert world.run(service, 30.0 + 89.0) == []
    world.end(B)
    events = world.run(service, 31.0)

    [loss] = [event.loss for event in events if isinstance(event, Lost)]
    assert set(events) == {OutcomeReady(B, SIZE), Lost(A, loss)}
    assert (loss.reason, loss.message.partition(" ended")[0]) == ("unknown", "job 100_0")


def test_an_outcome_found_when_the_scheduler_is_asked_counts_more_than_its_state(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.clock.now += 29.99
    world.run(service)
    world.queue.end(job(100), JobState.FAILED, exit_code=1)
    world.end(A)
    world.clock.now += 0.02

    assert world.run(service) == [OutcomeReady(A, SIZE)]


def test_the_scheduler_is_asked_once_for_all_jobs_and_no_more_often_than_was_said(world: World) -> None:
    service = world.service()
    submitted(world, service, *(burst(BurstId(f"b-{n}"), TaskKey(f"t{n}")) for n in range(20)))

    assert world.run(service, 600.0) == []
    assert world.queue.calls.count("states") == 20


def test_a_scheduler_that_cannot_be_asked_ends_nothing(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.queue.troubles["states"] = [DOWN, DOWN, DOWN]

    assert world.run(service, 119.0) == [Problem(f"{DOWN}; asking again in 30 s")]
    world.end(A)
    assert world.run(service, 5.0) == [OutcomeReady(A, SIZE)]


def test_a_failure_reaches_every_dependant_and_their_jobs_are_ended_in_one_command(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, Entry(B, 0, (A,)), Entry(C, 0, (B,))), burst(TWO, Entry(D, 0, (C, A))))
    world.end(A, ok=False)

    events = world.run(service, 2.0)

    assert set(events) == {
        OutcomeReady(A, SIZE),
        Lost(B, Loss("upstream", "input a has failed", upstream=A)),
        Lost(C, Loss("upstream", "input b has failed", upstream=B)),
        Lost(D, Loss("upstream", "input a has failed", upstream=A)),
    }
    assert (world.queue.calls.count("cancel"), set(world.queue.cancelled)) == (1, {job(101), job(102), job(103)})
    assert world.names() == {"a.h5", "b.lost", "c.lost", "d.lost"}


def test_a_task_that_started_before_its_input_failed_is_left_to_its_runner(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, Entry(B, 0, (A,))))
    world.session.claim(B, Claim("101", "n1", 7, 0.0))
    world.run(service, 1.0)
    world.end(A, ok=False)

    assert world.run(service, 5.0) == [OutcomeReady(A, SIZE)]
    world.session.publish_loss(B, Loss("upstream", "input a has failed", job="101", upstream=A))
    assert world.run(service, 5.0) == [Lost(B, Loss("upstream", "input a has failed", job="101", upstream=A))]
    assert world.queue.cancelled == []


def test_what_is_submitted_after_its_input_failed_fails_without_a_job(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.end(A, ok=False)
    world.run(service, 1.0)

    assert submitted(world, service, burst(TWO, Entry(B, 0, (A,)))) == [
        Lost(B, Loss("upstream", "input a has failed", upstream=A)),
        Accepted(TWO, ("",)),
    ]
    assert len(world.queue.jobs) == 1


def test_a_long_chain_fails_without_recursion(world: World) -> None:
    service = world.service()
    keys = [TaskKey(f"t{n}") for n in range(3000)]
    chain = [Entry(key, 0, (keys[n - 1],) if n else ()) for n, key in enumerate(keys)]
    world.queue.troubles["submit"] = [SubmitRejected("no")]

    events = submitted(world, service, burst(ONE, *chain))

    assert len([event for event in events if isinstance(event, Lost)]) == 2999


# ---- cancelling ----


def test_a_cancelled_task_that_was_not_submitted_gets_no_job(world: World) -> None:
    service = world.service()
    service.handle(burst(ONE, A), sealed(burst(ONE, A)))

    assert service.handle(Cancel((A,))) == [Lost(A, Loss("cancelled", "cancelled by its submitter", job=""))]
    assert world.run(service, 60.0) == [Accepted(ONE, ("",))]
    assert (world.queue.jobs, world.names(), service.wait_s()) == ({}, {"a.lost"}, None)


def test_a_cancelled_element_is_ended_and_the_others_go_on(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, B, C))

    assert service.handle(Cancel((B, TaskKey("stranger")))) == [
        Lost(B, Loss("cancelled", "cancelled by its submitter", job="100_1"))
    ]
    assert (world.run(service), world.queue.cancelled) == ([], [job(100, 1)])
    assert service.handle(Cancel((B,))) == []


def test_an_element_cancelled_while_the_scheduler_did_not_answer_is_ended_when_it_does(world: World) -> None:
    service = world.service()
    world.queue.troubles["submit"] = [DOWN]
    submitted(world, service, burst(ONE, A, B))
    service.handle(Cancel((A,)))

    assert world.run(service, 2.0) == [Accepted(ONE, ("100_0", "100_1"))]
    assert world.queue.cancelled == [job(100, 0)]


def test_a_cancel_that_got_no_answer_is_said_again(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.queue.troubles["cancel"] = [DOWN]
    service.handle(Cancel((A,)))

    assert service.submitting
    assert world.run(service) == [Problem(f"{DOWN}; cancelling again in 5 s")]
    assert (world.run(service, 5.0), world.queue.cancelled, service.submitting) == ([], [job(100)], False)


def test_cancelling_what_has_ended_changes_nothing(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.end(A)
    world.run(service, 1.0)

    assert (service.handle(Cancel((A,))), world.run(service, 9.0), world.names()) == ([], [], {"a.h5"})


# ---- another service takes over ----


def test_another_service_knows_from_the_store_what_the_first_one_did(world: World) -> None:
    first = world.service()
    submitted(world, first, burst(ONE, A, B), burst(TWO, Entry(C, 0, (A,))))
    first.close(discard=False)
    world.end(A)

    second = world.service()

    assert submitted(world, second, burst(ONE, A, B)) == [Accepted(ONE, ("100_0", "100_1"))]
    assert set(second.handle(Watch((A, B, C))) + world.run(second, 1.0)) == {OutcomeReady(A, SIZE)}
    world.end(B)
    world.queue.end(job(101), JobState.TIMEOUT)
    events = world.run(second, 40.0)
    assert [type(event) for event in events] == [OutcomeReady, Lost]
    assert len(world.queue.jobs) == 2


def test_nothing_is_told_before_the_client_says_that_it_waits(world: World) -> None:
    submitted(world, world.service(), burst(ONE, A, B, C))
    world.end(A)
    world.session.publish_loss(B, Loss("killed", "why"))
    second = world.service()

    assert world.run(second, 60.0) == []
    assert set(second.handle(Watch((A, B, C, TaskKey("stranger")))) + world.run(second, 31.0)) == {
        OutcomeReady(A, SIZE),
        Lost(B, Loss("killed", "why")),
        Lost(TaskKey("stranger"), Loss("unknown", "session s-1 has no such task")),
    }


def test_a_started_task_is_shown_again_after_a_reconnection(world: World) -> None:
    submitted(world, world.service(), burst(ONE, A))
    world.session.claim(A, Claim("100", "n1", 7, 0.0))
    second = world.service()
    world.run(second, 1.0)

    assert second.handle(Watch((A,))) == [Started(A, "100", "n1")]


def test_a_rejection_that_got_lost_on_the_way_is_told_as_a_loss(world: World) -> None:
    world.queue.troubles["submit"] = [SubmitRejected("sbatch: error: no")]
    submitted(world, world.service(), burst(ONE, A))
    second = world.service()

    events = submitted(world, second, burst(ONE, A)) + second.handle(Watch((A,)))

    assert Lost(A, Loss("rejected", "sbatch: error: no")) in events
    assert len(world.queue.jobs) == 0


def test_a_journal_cut_off_by_a_crash_is_read_as_far_as_it_goes(world: World) -> None:
    submitted(world, world.service(), burst(ONE, A, B))
    [path] = (world.session.path / "journal").iterdir()
    path.write_bytes(path.read_bytes()[:-5])

    assert submitted(world, world.service(), burst(ONE, A, B)) == [Accepted(ONE, ("100_0", "100_1"))]
    assert len(world.queue.jobs) == 1


# ---- the disk ----


def full(names: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No space for files whose names end so."""
    publish = store.publish

    def failing(path: Path, data: bytes) -> None:
        if path.name.endswith(tuple(names)):
            raise OSError(28, "No space left on device")
        publish(path, data)

    monkeypatch.setattr(store, "publish", failing)


SAYS = "the store on the cluster cannot be written: [Errno 28] No space left on device"


@pytest.mark.parametrize("names", [["b-1.h5"], ["b-1.json"]])
def test_a_full_disk_refuses_the_burst(world: World, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    service = world.service()
    full(names, monkeypatch)

    assert submitted(world, service, burst(ONE, A)) == [Rejected(ONE, (A,), "StoreError", SAYS)]
    assert (world.queue.jobs, service.wait_s()) == ({}, None)
    monkeypatch.undo()
    assert submitted(world, service, burst(TWO, A)) == [Accepted(TWO, ("100",))]


@pytest.mark.parametrize("names", [["job.json"], ["job.json", ".lost"]])
def test_a_full_disk_refuses_the_job_and_what_needs_it(
    world: World, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    service = world.service()
    full(names, monkeypatch)

    events = submitted(world, service, burst(ONE, A, Entry(B, 0, (A,))))

    assert events[0] == Rejected(ONE, (A,), "StoreError", SAYS)
    assert Lost(B, Loss("upstream", "input a has failed", upstream=A)) in events
    assert events[-1] == Accepted(ONE, ("", ""))
    assert world.queue.jobs == {}
    told_again = {event.key for event in service.handle(Watch((A, B))) if isinstance(event, Lost)}
    assert told_again == {A, B}  # to a client that never got the answer


def test_a_loss_that_cannot_be_written_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    full([".lost"], monkeypatch)

    assert service.handle(Cancel((A,))) == [
        Problem("loss of task a cannot be written: [Errno 28] No space left on device"),
        Lost(A, Loss("cancelled", "cancelled by its submitter", job="100")),
    ]


def test_a_directory_that_cannot_be_listed_now_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.end(A)
    outcomes, listdir, failures = world.session.outcomes, os.listdir, [OSError("Stale file handle")]

    def stale(path: Path) -> list[str]:
        if path == outcomes and failures:
            raise failures.pop()
        return listdir(path)

    monkeypatch.setattr(os, "listdir", stale)

    assert world.run(service, 5.0) == [
        Problem("the store cannot be listed: Stale file handle"),
        OutcomeReady(A, SIZE),
    ]


def test_a_disk_that_is_full_for_minutes_ends_no_service_and_no_task(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeats find no room, nor does the name of a service that would take over."""
    first = world.service()
    submitted(world, first, burst(ONE, A))
    first.handle(burst(TWO, B), sealed(burst(TWO, B)))
    for path in (world.session.path / "services").iterdir():
        os.utime(path, (0, 0))  # it has died, long ago
    full([""], monkeypatch)

    again = world.service()
    events = again.handle(Watch((A, B))) + world.run(again, 300.0)
    assert {type(event) for event in events} == {Problem}
    assert Problem("the store cannot be written: [Errno 28] No space left on device") in events
    monkeypatch.undo()
    world.end(A)

    events = world.run(again, 300.0)
    assert [event for event in events if not isinstance(event, Problem)] == [
        OutcomeReady(A, SIZE),
        Accepted(TWO, ("101",)),
    ]


# ---- a listing that lags ----


class LateListing:
    """os.listdir of the outcomes as it was a minute ago, as some file systems show it."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, lag_s: float = 60.0) -> None:
        self._world, self._lag_s, self._listdir = world, lag_s, os.listdir
        self._seen: list[tuple[float, list[str]]] = [(0.0, [])]
        monkeypatch.setattr(os, "listdir", self)

    def __call__(self, path: Path) -> list[str]:
        names = self._listdir(path)
        if path != self._world.session.outcomes:
            return names
        now = self._world.clock.now
        self._seen.append((now, names))
        return next(shown for at, shown in reversed(self._seen) if at <= now - self._lag_s)


def test_an_outcome_that_the_listing_shows_a_minute_late_is_neither_lost_nor_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A, B, Entry(C, 0, (B,))))
    LateListing(world, monkeypatch)
    assert world.session.claim(A, Claim("100_0", "n1", 7, 0.0))
    world.end(A)
    for index in (0, 1):
        world.queue.end(job(100, index))

    assert world.run(service, 55.0) == []
    shown = world.run(service, 15.0)
    assert [event for event in shown if not isinstance(event, Started)] == [OutcomeReady(A, SIZE)]
    assert world.run(service, 45.0) == []  # of B nothing came; the job ended 115 s ago, and was asked about after 30
    lost = world.run(service, 30.0)
    assert [(type(event), getattr(event, "key", "")) for event in lost] == [(Lost, B), (Lost, C)]


@pytest.mark.parametrize("state", [JobState.TIMEOUT, JobState.COMPLETED, JobState.GONE])
def test_before_a_job_is_declared_lost_its_outcome_is_looked_for_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch, state: JobState
) -> None:
    """A listing that lags for longer than anybody waits; and a limit that a job reached as its last act was done."""
    service = world.service()
    submitted(world, service, burst(ONE, A, Entry(B, 0, (A,))))
    LateListing(world, monkeypatch, lag_s=1000.0)
    world.end(A)
    world.queue.end(job(100), state)

    assert world.run(service, 200.0) == [OutcomeReady(A, SIZE)]


# ---- time and the end ----


def test_the_service_waits_for_what_is_next(world: World) -> None:
    service = world.service()
    assert service.wait_s() is None
    service.handle(burst(ONE, A), sealed(burst(ONE, A)))
    assert service.wait_s() == 0.0
    world.run(service)
    assert service.wait_s() == pytest.approx(0.02)
    world.run(service, 29.0)
    wait = service.wait_s()
    assert wait is not None
    assert 0.0 < wait <= 1.0  # then the scheduler is asked
    world.end(A)
    world.run(service, 2.0)
    assert service.wait_s() is None


def test_with_everything_over_a_closed_session_can_be_discarded(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))
    world.end(A)
    world.run(service, 1.0)

    service.close(discard=True)

    assert (world.session.path.exists(), world.queue.calls[-1]) == (False, "close")


def test_a_session_whose_jobs_go_on_is_kept(world: World) -> None:
    service = world.service()
    submitted(world, service, burst(ONE, A))

    service.close(discard=True)

    assert world.session.bundle(ONE).exists()


def test_facts_of_the_fake_are_those_of_a_queue() -> None:
    queue = FakeQueue()
    queue.facts = {job(1, 0): JobFacts(JobState.COMPLETED), job(1, 1): JobFacts(JobState.RUNNING)}

    assert queue.states([job(1), job(1, 0), job(1, 2), job(2)]) == {
        job(1): JobFacts(JobState.RUNNING),
        job(1, 0): JobFacts(JobState.COMPLETED),
        job(1, 2): JobFacts(JobState.GONE),
        job(2): JobFacts(JobState.GONE),
    }


# ---- random stories ----


class Client:
    """Plays the client, the runners and the scheduler's bad days, in random order."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.chance = world, random.Random(seed)
        self.world.queue.array = self.chance.randint(1, 4)
        self.bursts: list[Submit] = []
        self.unanswered: dict[BurstId, Submit] = {}
        self.told: dict[TaskKey, Event] = {}
        self.cancelled: set[TaskKey] = set()
        self.service = world.service()

    def act(self, requests: list[tuple[Submit | Cancel | Watch, bytes]], seconds: float) -> None:
        """Say something and let time pass; if the service dies of it, another takes over and is told what matters."""
        try:
            for request, data in requests:
                self.hear(self.service.handle(request, data))
            self.hear(self.world.run(self.service, seconds))
        except Crash:
            self.service = self.world.service()
            again: list[tuple[Submit | Cancel | Watch, bytes]] = [(s, sealed(s)) for s in self.unanswered.values()]
            waiting = tuple(e.key for submit in self.bursts for e in submit.tasks if e.key not in self.told)
            self.act([*again, (Watch(waiting), b""), (Cancel(tuple(sorted(self.cancelled))), b"")], seconds)

    def hear(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Accepted():
                    self.unanswered.pop(event.burst, None)
                case OutcomeReady() | Lost():
                    self.end(event.key, event)
                case Rejected():
                    for key in event.keys:
                        self.end(key, event)

    def end(self, key: TaskKey, event: Event) -> None:
        assert key not in self.told, f"{key} ended twice: {self.told[key]}, {event}"
        self.told[key] = event

    def submit(self) -> None:
        known = [entry.key for submit in self.bursts for entry in submit.tasks]
        entries: list[Entry] = []
        for _ in range(self.chance.randint(1, 6)):
            key = TaskKey(f"t{len(known)}")
            entries.append(Entry(key, 0, tuple(self.chance.sample(known, min(len(known), self.chance.randint(0, 2))))))
            known.append(key)
        submit = burst(BurstId(f"b-{len(self.bursts)}"), *entries)
        self.bursts.append(submit)
        self.unanswered[submit.burst] = submit
        self.act([(submit, sealed(submit))], self.chance.random())

    def cancel(self) -> None:
        open_ = [e.key for submit in self.bursts for e in submit.tasks if e.key not in self.told]
        keys = self.chance.sample(open_, min(len(open_), 2))
        self.cancelled |= set(keys)
        self.act([(Cancel(tuple(keys)), b"")], 0.0)

    def trouble(self) -> None:
        method = self.chance.choice(["submit", "submit", "submit", "find", "states", "cancel", "max_array"])
        kinds = [DOWN, LIE, Crash(), SubmitRejected("no")] if method == "submit" else [DOWN]
        self.world.queue.troubles.setdefault(method, []).append(self.chance.choice(kinds))

    def work(self, well: float = 0.6) -> None:
        """Every job that may start does, and ends in one way or another."""
        for number, spec in list(self.world.queue.jobs.items()):
            refs = fake_queue.refs(number, spec.count)
            if not any(self.world.queue.state(ref).state is JobState.PENDING for ref in refs):
                continue
            tasks = store.read_job(spec.directory)[1].tasks
            if not all(self.world.queue.state(ref).state.ended for ref in spec.after):
                continue
            for ref, task in zip(refs, tasks, strict=True):
                if self.world.queue.facts[ref].state is JobState.PENDING and self.chance.random() < 0.5:
                    self.run(ref, task.key, well)
        self.act([], self.chance.choice([0.1, 40.0]))

    def run(self, ref: JobRef, key: TaskKey, well: float) -> None:
        if not self.world.session.claim(key, Claim(str(ref), "n1", 7, 0.0)):
            self.world.queue.end(ref)
        elif self.chance.random() < well:
            self.world.end(key)
            self.world.queue.end(ref)
        else:
            state = self.chance.choice([JobState.TIMEOUT, JobState.FAILED, JobState.COMPLETED, JobState.GONE])
            self.world.queue.end(ref, state)


@pytest.mark.parametrize("seed", range(15))
def test_whatever_fails_each_task_has_one_job_at_most_and_one_end(world: World, seed: int) -> None:
    client = Client(world, seed)
    for _ in range(40):
        steps = [client.submit, client.submit, client.cancel, client.trouble, client.trouble, client.work]
        steps[client.chance.randrange(len(steps))]()
    world.queue.troubles.clear()
    for _ in range(30):
        client.work(well=1.0)
        client.act([], 60.0)

    tasks = {entry.key for submit in client.bursts for entry in submit.tasks}
    placed = [task.key for spec in world.queue.jobs.values() for task in store.read_job(spec.directory)[1].tasks]
    assert (set(client.told), client.unanswered) == (tasks, {})
    assert len(placed) == len(set(placed))
    assert (client.service.wait_s(), client.service.submitting) == (None, False)


def test_what_the_queue_will_not_heed_is_said_once(world: World) -> None:
    service = world.service()
    unheeded = (Resources(qos="high"),)
    first = submitted(world, service, burst(ONE, A, resources=unheeded))
    second = submitted(world, service, burst(TWO, B, resources=unheeded))

    assert [event.message for event in first + second if isinstance(event, Problem)] == [
        "qos='high' has no effect: this queue has none"
    ]
