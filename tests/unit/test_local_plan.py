"""Which element starts next on one machine."""

from __future__ import annotations

from remoteexec_server.batch.base import JobId
from remoteexec_server.batch.local_plan import PATIENCE, Element, Plan
from remoteexec_server.batch.local_spool import Job


def job(number: int, cores: int = 1, count: int = 1, after: tuple[str, ...] = ()) -> Job:
    return Job(JobId(str(number)), f"rx-{number}", "/d", ("x",), count, cores, None, after, {})


def element(number: int, at: int = 0) -> Element:
    return Element(JobId(str(number)), at)


def plan(cores: int, *jobs: Job) -> Plan:
    made = Plan(cores)
    for each in jobs:
        made.add(each)
    return made


def test_first_come_first_served_as_far_as_the_cores_go() -> None:
    made = plan(3, job(1, count=2), job(2), job(3))
    assert made.startable() == [element(1, 0), element(1, 1), element(2)]
    assert made.startable() == []
    assert made.end(element(1, 1)) is False
    assert made.startable() == [element(3)]


def test_a_job_is_over_with_its_last_element() -> None:
    made = plan(2, job(1, count=2))
    made.startable()
    assert [made.end(element(1, 0)), made.end(element(1, 1)), len(made)] == [False, True, 0]


def test_small_jobs_pass_a_large_one_but_do_not_starve_it() -> None:
    made = plan(4, job(1, cores=3), job(2, cores=4), job(3, count=100))
    assert made.startable() == [element(1), element(3, 0)]
    made.end(element(1))
    passed = running = [element(3, 0)]
    while element(2) not in (chosen := made.startable()):
        passed, running = [*passed, *chosen], [*running, *chosen]
        made.end(running.pop(0))
    assert len(passed) == PATIENCE * 4


def test_a_dependant_waits_for_the_whole_array() -> None:
    made = plan(4, job(1, count=2), job(2, after=("1",)))
    assert made.startable() == [element(1, 0), element(1, 1)]
    made.end(element(1, 0))
    assert made.startable() == []
    made.end(element(1, 1))
    assert made.startable() == [element(2)]


def test_a_dependant_of_one_element_waits_for_that_one() -> None:
    made = plan(4, job(1, count=3), job(2, after=("1_1",)))
    made.startable()
    made.end(element(1, 1))
    assert made.startable() == [element(2)]


def test_a_dependency_that_is_over_or_unknown_or_itself_holds_nothing_up() -> None:
    made = plan(4, job(1, count=2))
    made.startable()
    made.end(element(1, 0))
    made.add(job(2, after=("1_0", "77", "2")))
    assert made.startable() == [element(2)]


def test_a_dependency_on_element_0_of_a_job_without_an_array_is_one_on_the_job() -> None:
    made = plan(4, job(1), job(2, after=("1_0",)))
    assert made.startable() == [element(1)]
    made.end(element(1))
    assert made.startable() == [element(2)]


def test_dropping_elements_lets_dependants_go() -> None:
    made = plan(1, job(1, count=3), job(2, after=("1_2",)), job(3, after=("1",)))
    assert made.startable() == [element(1, 0)]
    assert made.drop(JobId("1"), {0, 2}) == ([2], [0], False)
    made.end(element(1, 0))
    assert made.startable() == [element(1, 1)]
    assert made.drop(JobId("1")) == ([], [1], False)
    assert made.end(element(1, 1)) is True
    assert made.startable() == [element(2)]
    made.end(element(2))
    assert made.startable() == [element(3)]


def test_dropping_a_job_that_has_not_started_ends_it() -> None:
    made = plan(1, job(1, cores=2), job(2, after=("1",)))
    assert made.drop(JobId("1"), None) == ([0], [], True)
    assert made.startable() == [element(2)]


def test_a_dependant_may_be_dropped_while_it_waits() -> None:
    made = plan(1, job(1), job(2, after=("1",)))
    made.startable()
    assert made.drop(JobId("2"), None) == ([0], [], True)
    made.end(element(1))
    assert (made.startable(), len(made)) == ([], 0)


def test_after_a_restart_running_elements_hold_their_cores_and_ended_ones_stay_ended() -> None:
    made = Plan(2)
    made.add(job(1, count=4), running=[1], ended=[0])
    assert made.startable() == [element(1, 2)]
    made.end(element(1, 1))
    assert made.startable() == [element(1, 3)]
