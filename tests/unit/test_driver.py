"""The driver gathers bursts, talks to the service and completes futures, whatever the service does."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from remoteexec import errors
from remoteexec.engine import driver as driver_module
from remoteexec.engine.client import Failed
from remoteexec.engine.driver import Driver
from remoteexec.engine.tracker import Linked, Unlinked
from remoteexec.futures import TaskFuture
from remoteexec_server.store import hdf5
from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import (
    Cancel,
    Close,
    Closed,
    Entry,
    Known,
    Leave,
    Left,
    Loss,
    Lost,
    OutcomeReady,
    Problem,
    Rejected,
    Submit,
    TaskKey,
    Tell,
    Watch,
)
from remoteexec_server.wire.resources import Resources
from tests.unit.fake_service import ScriptedService

KEY = bytes(range(32))
PLAIN = Resources()


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(KEY)


@pytest.fixture
def driver(service: ScriptedService) -> Iterator[Driver]:
    driver = Driver(service, "x")
    yield driver
    service.say(Failed(errors.ConnectionLost("the test is over")))
    driver.stop()
    driver.join()


def submit(driver: Driver, fn: Callable[..., Any] = abs, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
    driver.start()
    return driver.submit(fn, args, kwargs, PLAIN)


def goodbye(service: ScriptedService, driver: Driver) -> Close:
    """Shut down; the service answers the last word."""
    driver.stop()
    close = service.next()
    assert isinstance(close, Close)
    service.say(Closed())
    driver.join()
    return close


def call_of(request: Submit, data: bytes, position: int = 0) -> Any:
    function, arguments = hdf5.read_call(data, request.burst, position, KEY)
    return payload.loads(function.data), payload.loads(arguments.data, arguments.buffers)


# ---- there and back ----


def test_a_call_goes_there_and_its_result_comes_back(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver, abs, -3)
    request, data = service.asked.get(timeout=10.0)
    assert isinstance(request, Submit)
    fn, (args, kwargs) = call_of(request, data)
    assert (fn, args, kwargs, [entry.key for entry in request.tasks]) == (abs, (-3,), {}, [future.key])
    assert (driver.pending, future.running(), future.done()) == (1, False, False)

    service.accept(request)
    service.start(future.key)
    service.end(future.key, fn(*args))

    assert (future.result(10.0), future.done()) == (3, True)
    assert goodbye(service, driver) == Close(discard=True)
    assert (driver.pending, service.opened, service.closed) == (0, 1, 1)


def test_submits_close_together_are_one_burst(driver: Driver, service: ScriptedService) -> None:
    driver.start()
    with driver.gathering():
        futures = [driver.submit(abs, (n,), {}, Resources(partition="long")) for n in range(50)]
    request = service.next_submit()

    assert [entry.key for entry in request.tasks] == [future.key for future in futures]
    assert request.resources == (Resources(partition="long"),)


def test_a_statement_that_waits_for_its_own_results_does_not_wait_for_ever(
    driver: Driver, service: ScriptedService
) -> None:
    first = submit(driver)

    def answer() -> None:
        service.end(service.next_submit().tasks[0].key, 7)

    thread = threading.Thread(target=answer)
    thread.start()
    with driver.gathering():
        second = driver.submit(abs, (first.result(10.0),), {}, PLAIN)
    thread.join()

    assert [entry.key for entry in service.next_submit().tasks] == [second.key]


def test_a_future_as_argument_is_an_input(driver: Driver, service: ScriptedService) -> None:
    driver.start()
    with driver.gathering():
        first = driver.submit(abs, (-1,), {}, PLAIN)
        second = driver.submit(max, ([first, 2],), {}, PLAIN)
    request = service.next_submit()

    assert [entry.upstream for entry in request.tasks] == [(), (first.key,)]
    service.end(first.key, 1)
    service.end(second.key, 2)
    assert (first.result(10.0), second.result(10.0)) == (1, 2)


def test_an_exception_comes_back_as_itself_and_reaches_what_was_not_sent(
    driver: Driver, service: ScriptedService
) -> None:
    pending: Future[int] = Future()
    first = submit(driver)
    service.next_submit()
    held = submit(driver, max, first, pending)
    service.end(first.key, ValueError("no"), ok=False)

    assert isinstance(first.exception(10.0), ValueError)
    assert held.exception(10.0) is first.exception()


def test_a_future_that_takes_the_result_of_a_failed_one_fails_with_the_same_exception(
    driver: Driver, service: ScriptedService
) -> None:
    driver.start()
    with driver.gathering():
        first = driver.submit(abs, (), {}, PLAIN)
        second = driver.submit(abs, (first,), {}, PLAIN)
        third = driver.submit(abs, (second,), {}, PLAIN)
    service.next_submit()
    # the service's words may come in any order
    service.say(Lost(third.key, Loss("upstream", "m", upstream=second.key)))
    service.say(Lost(second.key, Loss("upstream", "m", upstream=first.key)))
    service.say(Lost(first.key, Loss("timeout", "too long", job="7")))

    exc = third.exception(10.0)
    assert isinstance(exc, errors.TaskTimeout)
    assert (first.exception(), second.exception()) == (exc, exc)
    assert goodbye(service, driver) == Close(discard=False)  # the files of a lost task may be wanted


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("SubmitRejected", errors.SubmitRejected),
        ("StoreError", errors.StoreError),
        ("ProtocolMismatch", errors.ProtocolMismatch),
        ("task_lost", errors.RunnerError),
        ("Nonsense", errors.RunnerError),
    ],
)
def test_a_rejection_is_of_the_class_that_it_names(
    driver: Driver, service: ScriptedService, kind: str, error: type[Exception]
) -> None:
    future = submit(driver)
    request = service.next_submit()
    service.say(Rejected(request.burst, (future.key,), kind, "the scheduler's words"))

    exc = future.exception(10.0)
    assert (type(exc), str(exc)) == (error, "the scheduler's words")


def test_an_outcome_that_is_not_of_this_session_is_corrupt(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver)
    service.next_submit()
    service.say(OutcomeReady(future.key, 7), b"garbage")

    assert isinstance(future.exception(10.0), errors.CorruptOutcome)


# ---- cancelling ----


def test_a_cancelled_future_is_cancelled_at_once_and_the_service_is_told(
    driver: Driver, service: ScriptedService
) -> None:
    future = submit(driver)
    service.accept(service.next_submit())

    assert (future.cancel(), future.cancelled(), future.cancel()) == (True, True, True)
    assert service.next() == Cancel((future.key,))
    service.end(future.key, 1)  # too late
    service.say(Lost(future.key, Loss("cancelled", "m")))
    assert concurrent.futures.wait([future], 10.0).done == {future}
    assert goodbye(service, driver) == Close(discard=True)


def test_a_future_that_runs_is_cancelled_with_its_job(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver)
    service.next_submit()
    service.start(future.key)
    submit(driver)
    service.next_submit()  # so what was said before has been heard

    told: list[bool] = []
    future.add_done_callback(lambda done: told.append(done.cancelled()))
    assert (future.running(), future.cancel(), future.cancelled(), told) == (True, True, True, [True])
    assert service.next() == Cancel((future.key,))
    service.end(future.key, 1)  # it was faster
    assert (future.cancel(), future.cancelled()) == (True, True)


def test_an_ended_future_cannot_be_cancelled(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver)
    service.next_submit()
    service.start(future.key)
    service.end(future.key, 1)

    assert (future.result(10.0), future.cancel()) == (1, False)


def test_all_tasks_of_a_session_are_to_be_had_and_ended_ones_again(driver: Driver, service: ScriptedService) -> None:
    with driver.gathering():
        mine, ended = submit(driver), submit(driver)
    service.next_submit()
    service.end(ended.key, 2)
    assert ended.result(10.0) == 2
    theirs = TaskKey("y-t1")

    asked = ThreadPoolExecutor(1).submit(driver.futures)
    assert service.next() == Tell()
    service.say(
        Known((Entry(theirs, name="their"), Entry(mine.key, name="f"), Entry(ended.key, name="g")), ("", "", ""))
    )
    assert service.next() == Watch((theirs, ended.key))
    assert service.next() == Tell()  # whose answer is behind the outcomes that are there
    service.end(ended.key, str(ended.key))
    service.say(Known((), ()))
    found = asked.result(10.0)

    assert [(future.key, future.task.function) for future in found] == [
        (theirs, "their"),
        (mine.key, mine.task.function),
        (ended.key, "g"),
    ]
    assert (found[1] is mine, found[2] is ended) == (True, False)
    assert [future.done() for future in found] == [False, False, True]
    service.end(theirs, str(theirs))
    assert [found[0].result(10.0), found[2].result(10.0)] == [theirs, ended.key]


def test_a_cut_while_ended_tasks_are_looked_for_is_no_end_of_it(driver: Driver, service: ScriptedService) -> None:
    driver.start()
    theirs = TaskKey("y-t1")
    asked = ThreadPoolExecutor(1).submit(driver.futures)
    assert service.next() == Tell()
    service.say(Known((Entry(theirs, name="their"),), ("",)))
    assert [service.next(), service.next()] == [Watch((theirs,)), Tell()]
    service.say(Unlinked("cut"))
    service.say(Linked())
    assert [service.next(), service.next()] == [Watch((theirs,)), Tell()]
    service.end(theirs, 5)
    service.say(Known((), ()))
    assert [future.done() for future in asked.result(10.0)] == [True]


def test_who_asks_for_the_tasks_is_told_when_they_are_not_to_be_had(driver: Driver, service: ScriptedService) -> None:
    driver.start()
    asked = ThreadPoolExecutor(1).submit(driver.futures)
    assert service.next() == Tell()
    service.say(Failed(errors.ConnectionLost("cut")))

    assert isinstance(asked.exception(10.0), errors.ConnectionLost)


def test_a_cancelled_future_that_was_not_sent_reaches_nobody(driver: Driver, service: ScriptedService) -> None:
    driver.start()
    with driver.gathering():
        first = driver.submit(abs, (1,), {}, PLAIN)
        second = driver.submit(abs, (first,), {}, PLAIN)
        third = driver.submit(abs, (3,), {}, PLAIN)
        assert first.cancel()

    assert [entry.key for entry in service.next_submit().tasks] == [third.key]
    with pytest.raises(CancelledError):
        second.result(10.0)


def test_shutdown_with_cancel_futures_cancels_a_whole_chain(driver: Driver, service: ScriptedService) -> None:
    pending: Future[int] = Future()
    driver.start()
    with driver.gathering():
        first = driver.submit(abs, (pending,), {}, PLAIN)
        second = driver.submit(abs, (first,), {}, PLAIN)
        third = driver.submit(abs, (second,), {}, PLAIN)

    driver.stop(cancel=True)
    assert service.next() == Close(discard=True)
    service.say(Closed())
    driver.join()

    assert [future.cancelled() for future in (first, second, third)] == [True, True, True]


@pytest.mark.parametrize("running", [False, True])
def test_running_tasks_are_ended_by_shutdown_only_if_it_says_so(
    driver: Driver, service: ScriptedService, running: bool
) -> None:
    future = submit(driver)
    submitted = service.next_submit()
    service.accept(submitted)
    service.start(future.key)
    while not future.running():
        time.sleep(0.001)

    driver.stop(cancel=True, running=running)
    if running:
        assert service.next() == Cancel((future.key,))
    else:
        service.end(future.key, 1)
    assert isinstance(service.next(), Close)
    service.say(Closed())
    driver.leave(10.0)
    driver.join()

    assert future.cancelled() == running


# ---- futures of other executors ----


def test_a_call_waits_here_for_futures_of_other_executors(driver: Driver, service: ScriptedService) -> None:
    foreign: Future[int] = Future()
    future = submit(driver, abs, foreign)
    other = submit(driver)
    assert [entry.key for entry in service.next_submit().tasks] == [other.key]

    foreign.set_result(-5)
    request, data = service.asked.get(timeout=10.0)

    assert isinstance(request, Submit)
    assert (request.tasks[0].key, call_of(request, data)) == (future.key, (abs, ((-5,), {})))


def test_leaving_waits_for_what_waits_for_another_executor(driver: Driver, service: ScriptedService) -> None:
    other: Future[int] = Future()
    held = submit(driver, abs, other)
    driver.submit(abs, (held,), {}, PLAIN)
    driver.stop()
    left = ThreadPoolExecutor(1).submit(driver.leave, 30.0)
    assert service.next() == Leave()
    service.say(Left(0))
    with pytest.raises(concurrent.futures.TimeoutError):
        left.result(0.2)
    other.set_result(-5)
    request = service.next_submit()
    assert service.next() == Leave()
    service.accept(request)
    with pytest.raises(concurrent.futures.TimeoutError):
        left.result(0.2)
    service.say(Left(0))
    assert left.result(10.0) is None


def test_calls_that_are_lost_when_the_process_ends_are_told(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    held = submit(driver, abs, Future())
    driver.submit(max, (held, 2), {}, PLAIN)
    driver.stop()
    driver.leave(0.2)
    assert [record.message for record in caplog.records] == [
        "the process ends, and 2 calls were not submitted and are lost (abs, max); 1 of them wait for futures of other "
        "executors: wait for those before you leave, or submit both calls to one executor"
    ]


def test_a_result_of_another_executor_may_be_a_future_of_this_one(driver: Driver, service: ScriptedService) -> None:
    foreign: Future[Any] = Future()
    future = submit(driver, abs, foreign)
    inner = submit(driver, abs, -1)
    service.next_submit()
    foreign.set_result(inner)
    request = service.next_submit()
    assert [(entry.key, entry.upstream) for entry in request.tasks] == [(future.key, (inner.key,))]

    service.end(inner.key, KeyError("k"), ok=False)
    service.say(Lost(future.key, Loss("upstream", "m", upstream=inner.key)))

    assert isinstance(future.exception(10.0), KeyError)


def test_a_failed_future_of_another_executor_fails_the_call(driver: Driver, service: ScriptedService) -> None:
    foreign, failed = Future[int](), Future[int]()
    failed.set_exception(ValueError("before"))
    later = submit(driver, abs, foreign)
    foreign.set_exception(ValueError("after"))

    assert [str(future.exception(10.0)) for future in (submit(driver, abs, failed), later)] == ["before", "after"]


def test_a_result_of_another_executor_that_cannot_be_pickled_fails_the_call(
    driver: Driver, service: ScriptedService
) -> None:
    foreign: Future[Any] = Future()
    future = submit(driver, abs, foreign)
    foreign.set_result(threading.Lock())

    assert isinstance(future.exception(10.0), errors.CallNotPicklable)


# ---- connections ----


def test_after_a_reconnection_the_same_bytes_are_sent_until_they_are_accepted(
    driver: Driver, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    future = submit(driver, abs, -1)
    first = service.asked.get(timeout=10.0)
    service.say(Unlinked("cut; trying again"))
    service.say(Linked())
    assert service.asked.get(timeout=10.0) == first
    assert service.next() == Watch((future.key,))

    assert isinstance(first[0], Submit)
    service.accept(first[0])
    service.say(Linked())

    assert service.next() == Watch((future.key,))
    assert caplog.messages == ["cut; trying again"]


def test_problems_are_said_in_the_log(
    driver: Driver, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    future = submit(driver)
    service.next_submit()
    service.say(Problem("the scheduler does not answer"))
    service.end(future.key)
    future.result(10.0)

    assert caplog.record_tuples == [("remoteexec", logging.WARNING, "the scheduler does not answer")]


def test_a_service_that_cannot_be_opened_is_said_by_submit_and_may_be_tried_again(
    driver: Driver, service: ScriptedService
) -> None:
    service.trouble = [errors.ConnectError("no route")]
    with pytest.raises(errors.ConnectError):
        submit(driver)
    future = submit(driver)
    service.end(service.next_submit().tasks[0].key, 1)

    assert (future.result(10.0), service.opened, driver.pending) == (1, 2, 0)


def test_a_service_that_is_gone_for_good_fails_every_future_and_ends_the_driver(
    driver: Driver, service: ScriptedService
) -> None:
    held = submit(driver, abs, Future[int]())
    future = submit(driver)
    service.next_submit()
    gone = errors.AuthenticationFailed("key refused")
    service.say(Failed(gone))

    assert (future.exception(10.0), held.exception(10.0)) == (gone, gone)
    driver.join()
    assert (driver.pending, service.closed) == (0, 1)
    with pytest.raises(RuntimeError, match="this executor has failed: key refused"):
        submit(driver)
    driver.stop()
    driver.join()
    assert service.opened == 1


def test_a_service_that_ends_unasked_fails_every_future(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver)
    service.next_submit()
    service.say(Closed())

    assert isinstance(future.exception(10.0), errors.RunnerError)


def test_nonsense_from_the_service_fails_every_future_with_the_reason(
    driver: Driver, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    future = submit(driver)
    service.next_submit()
    service.start(TaskKey("stranger"))

    assert "stranger" in str(future.exception(10.0))
    driver.join()
    assert caplog.messages == ["remoteexec: the driver failed"]
    with pytest.raises(RuntimeError):
        submit(driver)


# ---- the end ----


def test_after_stop_nothing_is_taken_and_nothing_is_opened(driver: Driver, service: ScriptedService) -> None:
    driver.stop()
    driver.join()

    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        submit(driver)
    assert service.opened == 0


def test_stop_waits_for_what_was_taken(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver)
    driver.stop()
    request = service.next_submit()
    with pytest.raises(RuntimeError, match="after shutdown"):
        submit(driver)
    service.end(request.tasks[0].key, 4)

    assert service.next() == Close(discard=True)
    service.say(Closed())
    driver.join()
    assert future.result() == 4


def test_nobody_waits_for_a_goodbye_while_the_service_is_out_of_reach(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver)
    service.next_submit()
    service.end(future.key)
    future.result(10.0)
    service.say(Unlinked("cut"))
    driver.stop()
    driver.join()

    assert (service.asked.empty(), service.closed) == (True, 1)


def test_a_service_that_does_not_say_goodbye_is_left(
    driver: Driver, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_GOODBYE_S", 0.0)
    driver.start()
    driver.stop()
    driver.join()

    assert (service.next(), service.closed) == (Close(discard=True), 1)


def test_waiting_until_everything_is_sent_ends_with_the_last_acceptance(
    driver: Driver, service: ScriptedService
) -> None:
    submit(driver, abs, Future[int]())  # held here: not counted
    submit(driver)
    request = service.next_submit()
    assert driver.wait_sent(0.0) is False
    service.accept(request)

    assert driver.wait_sent(10.0) is True


def test_who_leaves_sends_what_is_gathered_and_waits_for_the_last_acceptance(
    driver: Driver, service: ScriptedService
) -> None:
    submit(driver)
    driver.stop()
    leaving = threading.Thread(target=driver.leave, args=(10.0,))
    leaving.start()
    request = service.next_submit()
    assert service.next() == Leave()
    service.say(Left(0))
    leaving.join(0.1)
    assert leaving.is_alive()
    service.accept(request)
    leaving.join(5.0)
    assert not leaving.is_alive()


def test_who_leaves_does_not_wait_for_what_stays_in_the_store(
    driver: Driver, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    submit(driver)
    service.next_submit()
    driver.stop()
    driver.hand_over()
    assert service.next() == Leave()
    service.say(Problem("the quota is full; 1 tasks stay in the store"))
    service.say(Left(1))
    driver.leave(10.0)
    assert [record.message for record in caplog.records] == ["the quota is full; 1 tasks stay in the store"]


def test_who_leaves_a_service_that_does_not_answer_says_what_may_not_run(
    driver: Driver, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    submit(driver)
    service.next_submit()
    driver.stop()
    driver.leave(0.1)
    assert [record.message for record in caplog.records] == [
        "1 tasks may not run until somebody uses the session again: the scheduler was not reached within 0 s"
    ]


def test_who_leaves_a_service_that_took_all_and_then_falls_silent_says_that_too(
    driver: Driver, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    submit(driver)
    service.accept(service.next_submit())
    assert driver.wait_sent(5.0)
    driver.stop()
    driver.leave(0.1)
    assert [record.message for record in caplog.records] == [
        "tasks that the scheduler has not got yet may not run until somebody uses the session again: the scheduler "
        "was not reached within 0 s"
    ]


def test_after_a_reconnection_it_is_said_again_that_the_client_leaves(driver: Driver, service: ScriptedService) -> None:
    submit(driver)
    request = service.next_submit()
    driver.hand_over()
    assert service.next() == Leave()
    service.say(Unlinked("gone"))
    service.say(Linked())
    assert [service.next(), service.next(), service.next()] == [request, Watch((request.tasks[0].key,)), Leave()]


def test_a_callback_may_submit_wait_and_shut_down(driver: Driver, service: ScriptedService) -> None:
    followers: list[TaskFuture[Any]] = []

    def follow(future: Future[Any]) -> None:
        followers.append(submit(driver, abs, future.result()))
        driver.stop()
        driver.join()  # on the driver's own thread: does not wait for itself

    future = submit(driver)
    request = service.next_submit()
    future.add_done_callback(follow)
    service.end(request.tasks[0].key, -2)
    second = service.next_submit()
    service.end(second.tasks[0].key, 2)

    assert [future.result(10.0) for future in followers] == [2]


def test_submits_from_many_threads_all_arrive_once(driver: Driver, service: ScriptedService) -> None:
    driver.start()
    futures: list[TaskFuture[Any]] = []

    def many() -> None:
        for n in range(50):
            futures.append(driver.submit(abs, (n,), {}, PLAIN))

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    keys: list[TaskKey] = []
    while len(keys) < 400:
        keys += [entry.key for entry in service.next_submit().tasks]
    for thread in threads:
        thread.join()

    assert sorted(keys) == sorted(future.key for future in futures)


class Thing:
    """Something that can be watched."""

    def __init__(self) -> None:
        self.array = np.zeros(5000)


def test_neither_arguments_nor_results_are_kept(driver: Driver, service: ScriptedService) -> None:
    argument = Thing()
    seen = weakref.ref(argument)
    future = submit(driver, id, argument)
    del argument
    service.next_submit()  # the burst is on its way: nothing more of the call is needed
    gc.collect()
    assert seen() is None

    service.end(future.key, Thing())
    result = weakref.ref(future.result(10.0))
    del future
    gc.collect()
    assert result() is None


class Data(bytearray):
    """Bytes that can be watched."""


def test_the_bytes_of_an_outcome_and_of_a_bundle_are_not_kept(driver: Driver, service: ScriptedService) -> None:
    future = submit(driver)
    service.accept(service.next_submit())
    outcome = Data(hdf5.write_outcome(future.key, hdf5.Outcome(True, payload.dumps(3), {}), KEY))
    seen = weakref.ref(outcome)
    service.say(OutcomeReady(future.key, len(outcome)), outcome)  # type: ignore[arg-type]  # as good as bytes
    del outcome
    assert (future.result(10.0), driver.wait_sent(10.0)) == (3, True)
    other = submit(driver)
    service.next_submit()  # so the driver has gone on

    assert (seen(), list(driver._tasks), len(driver._bundles)) == (None, [other.key], 1)
