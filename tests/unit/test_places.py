"""Jobs that follow each other within a limit: no more run at once than there are places, and no fewer than can."""

from __future__ import annotations

import random

import pytest

from remoteexec_server.batch.base import JobId, JobRef
from remoteexec_server.batch.places import Handover, Holder, Plan


def job(number: int, index: int | None = None) -> JobRef:
    return JobRef(JobId(str(number)), index)


def holder(number: int, count: int = 1, at_once: int = 1, cpus: int = 1) -> Holder:
    elements = [job(number)] if count == 1 else [job(number, index) for index in range(count)]
    return Holder(JobId(str(number)), elements, at_once, cpus)


def queued(handover: Handover, number: int, count: int = 1, cpus: int = 1) -> tuple[int, tuple[JobRef, ...]]:
    """How many elements may run at once, and what it is behind."""
    plan = handover.plan(count, cpus)
    handover.hold(plan, JobId(str(number)), count)
    return plan.at_once, plan.after


def test_single_jobs_go_behind_one_job_each_and_take_turns() -> None:
    handover = Handover(2, None, [holder(1), holder(2)])
    assert [queued(handover, number) for number in (3, 4, 5)] == [(1, (job(1),)), (1, (job(2),)), (1, (job(3),))]


def test_a_place_that_is_free_is_taken_first() -> None:
    handover = Handover(3, None, [holder(1)])
    assert [queued(handover, number) for number in (3, 4, 5)] == [(1, ()), (1, ()), (1, (job(1),))]


def test_an_array_takes_all_places_that_it_can_use() -> None:
    handover = Handover(2, None, [holder(1), holder(2)])
    assert queued(handover, 3, count=5) == (2, (job(1), job(2)))
    assert queued(handover, 4) == (1, (job(3),))


def test_elements_that_all_run_at_once_leave_their_places_one_by_one() -> None:
    handover = Handover(2, None, [holder(1, count=2, at_once=2)])
    assert [queued(handover, number) for number in (3, 4)] == [(1, (job(1, 0),)), (1, (job(1, 1),))]


def test_cpus_are_places_too() -> None:
    handover = Handover(None, 4, [holder(1, cpus=3)])
    assert queued(handover, 2) == (1, ())
    assert queued(handover, 3, count=3, cpus=2) == (2, (job(1), job(2)))
    assert queued(handover, 4, cpus=4) == (1, (job(3),))


def test_where_it_is_not_known_how_many_may_run_everything_is_waited_for() -> None:
    handover = Handover(2, None, [holder(1, count=2, at_once=2), holder(2)])
    assert queued(handover, 3) == (1, (job(1), job(2)))


def test_without_limits_nothing_is_waited_for() -> None:
    assert Handover(None, None, []).plan(7, 3) == Plan(7, (), ())


@pytest.mark.parametrize("seed", range(40))
def test_whatever_ends_first_the_limits_hold_and_everything_runs(seed: int) -> None:
    chance = random.Random(seed)
    most, cores = chance.randint(1, 4), chance.randint(4, 9)
    handover = Handover(most, cores, [])
    waiting: dict[JobRef, tuple[JobRef, ...]] = {}  # element: what it is behind
    cpus: dict[JobRef, int] = {}
    at_once: dict[JobId, int] = {}
    for number in range(12):
        count, each = chance.choice([1, 1, 1, 2, 5]), chance.randint(1, 4)
        width, after = queued(handover, number, count, each)
        for ref in [job(number)] if count == 1 else [job(number, index) for index in range(count)]:
            waiting[ref], cpus[ref], at_once[ref.job] = after, each, width
    running: list[JobRef] = []
    while waiting or running:
        there = [*waiting, *running]
        for ref, after in list(waiting.items()):
            blocked = any(
                other == one or (one.index is None and other.job == one.job) for one in after for other in there
            )
            if not blocked and sum(other.job == ref.job for other in running) < at_once[ref.job]:
                running.append(ref)
                del waiting[ref]
        assert len(running) <= most
        assert sum(cpus[ref] for ref in running) <= cores
        running.remove(chance.choice(running))  # fails if nothing can run
