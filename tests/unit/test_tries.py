"""Whether a task of a pool is tried again, and what is said of its last end."""

from __future__ import annotations

import signal

import pytest

from remoteexec.engine import ends, tries
from remoteexec.pool.tasks import Answered, Broken, Died, PoolFuture, PoolTask
from remoteexec_server import failure
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.records import Loss
from remoteexec_server.wire.resources import Resources, Retry
from tests.unit.test_pool_tasks import Notes

KEY = TaskKey("t7")
ANY = Retry(2, {"timeout", "node_failure", "killed", "out_of_memory", "error"}, {"time": 2, "memory": 4})
TIMEOUT = Died(5, signal.SIGKILL, timed_out=True)
LOST = Died(0, 0, node="n2")
KILLED = Died(5, signal.SIGKILL)
EXIT = Died(5, 3 << 8)


def task(resources: Resources | None, *deaths: Loss) -> PoolTask:
    found: PoolFuture[int] = PoolFuture(KEY, Notes())
    found.number, found.resources, found.deaths = 7, resources, deaths
    return found


def raised(exc: BaseException, kind: str = "raised") -> Answered:
    return Answered((7, False, failure.packed(exc, kind), 0, 0.0, 1.0, 0, 5), ())


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (TIMEOUT, "timeout"),
        (LOST, "node_failure"),
        (KILLED, "killed"),
        (EXIT, "killed"),
        (raised(KeyError("x")), "error"),
        (raised(MemoryError()), "out_of_memory"),
    ],
)
def test_ends_have_the_names_that_retry_knows(end: Died | Answered, reason: str) -> None:
    found = tries.following(task(Resources(memory_max_gb=1, retry=ANY)), end)
    assert found is not None
    assert found.loss.reason == reason
    others = Retry(1, set(ANY.on) - {reason, "error"})
    assert tries.following(task(Resources(memory_max_gb=1, retry=others)), end) is None


def test_a_memory_error_is_an_error_like_others_where_there_was_no_limit_or_that_was_asked_for() -> None:
    for resources in (Resources(retry=ANY), Resources(memory_max_gb=1, retry=Retry(1, {"error"}))):
        found = tries.following(task(resources), raised(MemoryError()))
        assert found is not None
        assert (found.loss.reason, found.resources) == ("error", resources)


def test_attempts_ask_for_more_and_end() -> None:
    asked = Resources(run_time_max_s=10, memory_max_gb=1, retry=ANY)
    longer = tries.following(task(asked), TIMEOUT)
    larger = tries.following(task(asked), KILLED)
    assert longer is not None
    assert larger is not None
    assert (longer.resources.run_time_max_s, longer.resources.memory_max_gb) == (20, 1)
    assert (larger.resources.run_time_max_s, larger.resources.memory_max_gb) == (10, 4)
    assert tries.following(task(asked, longer.loss, larger.loss), TIMEOUT) is None


def test_what_could_not_run_was_cancelled_or_has_no_retry_is_not_tried_again() -> None:
    cancelled = task(Resources(retry=ANY))
    cancelled.future.cancel()
    for given, end in (
        (task(Resources(retry=ANY)), Broken("nothing left")),
        (cancelled, KILLED),
        (task(None), KILLED),
        (task(Resources(retry=ANY)), Answered((7, True, b"", 0, 0.0, 1.0, 0, 5), ())),
        (task(Resources(retry=ANY)), raised(KeyError(), "call_not_loadable")),
    ):
        assert tries.following(given, end) is None


def test_the_last_error_names_all_attempts() -> None:
    given = task(Resources(retry=ANY), Loss("timeout", ""), Loss("node_failure", ""))
    for end, text in (
        (EXIT, "3 attempts: timeout, node_failure, killed; the process of task t7 (pid 5) ended itself"),
        (LOST, "3 attempts: timeout, node_failure, node_failure; task t7 is lost with node n2"),
        (Broken("no node is left"), "task t7 cannot run again, after timeout, node_failure: no node is left"),
    ):
        _, exc = ends.outcome(given.future, tries.with_deaths(given, end))
        assert str(exc).startswith(text)
    assert tries.with_deaths(task(None), KILLED) is KILLED
