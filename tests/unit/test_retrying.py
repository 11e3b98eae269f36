"""Whether a task that died is tried again, and with what."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from remoteexec.resources import ResourceError, Resources, Retry, read_resources, resource_names
from remoteexec_server import retrying
from remoteexec_server.wire import messages
from remoteexec_server.wire.evidence import Evidence, Usage
from remoteexec_server.wire.messages import Loss

ANY = Retry(2, {"timeout", "out_of_memory", "killed"}, {"memory": 2, "time": 1.5})
ASKED = Resources(retry=ANY, memory_max_gb=1.0, run_time_max_s=60)


def because(reason: str, **facts: Any) -> Loss:
    return Loss(reason, f"job 7: {reason}", **facts)


@pytest.mark.parametrize(
    ("loss", "memory", "time"),
    [
        (because("timeout"), 1.0, 90),
        (because("out_of_memory"), 2.0, 60),
        (because("killed", signal=int(signal.SIGKILL)), 2.0, 60),
        (because("killed", signal=int(signal.SIGSEGV)), 1.0, 60),
    ],
)
def test_what_ran_out_is_asked_for_in_a_larger_amount(loss: Loss, memory: float, time: float) -> None:
    assert retrying.next_attempt(ASKED, loss, 1) == Resources(retry=ANY, memory_max_gb=memory, run_time_max_s=time)


def test_each_attempt_asks_for_more_than_the_one_before() -> None:
    second = retrying.next_attempt(ASKED, because("timeout"), 1)
    assert second is not None
    third = retrying.next_attempt(second, because("timeout"), 2)
    assert third is not None

    assert (second.run_time_max_s, third.run_time_max_s) == (90, 135)
    assert retrying.next_attempt(third, because("timeout"), 3) is None


def test_what_the_task_did_not_ask_for_is_scaled_from_what_the_scheduler_gave() -> None:
    usage = Usage(time_limit_s=100.0, memory_limit_bytes=1 << 30)
    given = Evidence(usage=usage)

    longer = retrying.next_attempt(Resources(retry=ANY), because("timeout", evidence=given), 1)
    larger = retrying.next_attempt(Resources(retry=ANY), because("out_of_memory", evidence=given), 1)

    assert longer == Resources(retry=ANY, run_time_max_s=150)
    assert larger == Resources(retry=ANY, memory_max_gb=2.0)
    assert retrying.next_attempt(Resources(retry=ANY), because("timeout"), 1) == Resources(retry=ANY)


@pytest.mark.parametrize("reason", ["cancelled", "rejected", "upstream", "quota", "node_failure", "error"])
def test_other_ends_are_final(reason: str) -> None:
    assert retrying.next_attempt(ASKED, because(reason), 1) is None


def test_nothing_is_tried_again_unasked() -> None:
    assert retrying.next_attempt(Resources(), because("timeout"), 1) is None


def test_the_last_loss_names_all_attempts() -> None:
    deaths = [because("timeout"), because("timeout")]
    last = retrying.told(because("out_of_memory"), deaths)

    assert last.message == "3 attempts: timeout, timeout, out_of_memory; job 7: out_of_memory"
    assert last.attempts == ("timeout", "timeout", "out_of_memory")
    assert retrying.told(last, deaths) == last
    assert retrying.told(because("killed"), []) == because("killed")


def test_jobs_of_further_attempts_are_named_after_the_first() -> None:
    second = retrying.job_name("rx-b-1-0", 2, 3)

    assert second == "rx-b-1-0-r2-3"
    assert retrying.job_name(second, 3, 5) == "rx-b-1-0-r3-5"
    assert retrying.job_name("rx-b-1-0-a-b-r2-3-a", 3, 5) == "rx-b-1-0-a-b-r3-5"


def test_equal_retries_are_one_kind_of_resources_also_after_they_travelled() -> None:
    one = Resources(retry=Retry(1, ["timeout", "preempted"], {"time": 2}))
    two = Resources(retry=Retry(1, {"preempted", "timeout"}, {"time": 2.0}))
    travelled = messages.build(Resources, json.loads(messages.to_json(one)))

    assert (one, hash(one)) == (two, hash(two))
    assert (travelled, hash(travelled)) == (one, hash(one))


def test_retries_are_no_part_of_what_a_cached_call_is() -> None:
    resources = read_resources({"retries": ANY, "warn_time": 5})

    assert (resources.retry, resources.warn_time_s, resources.warning_s) == (ANY, 5, 5)
    assert resource_names(resources) == resource_names(Resources())


@pytest.mark.parametrize(
    ("reasons", "warning"), [({"timeout"}, 60), ({"preempted", "killed"}, 60), ({"killed"}, None), (None, None)]
)
def test_who_may_save_a_state_is_warned_a_minute_before_the_end(reasons: set[str] | None, warning: int | None) -> None:
    assert Resources(retry=Retry(1, reasons) if reasons else None).warning_s == warning


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"times": 0}, "times=0: must be a whole number from 1 to 99"),
        ({"times": True}, "times=True: must be a whole number from 1 to 99"),
        ({"on": "timeout"}, "on='timeout': must be a set of reasons: error, "),
        ({"on": {"cancelled"}}, "on: 'cancelled' is no reason to try again; there are error, "),
        ({"scale": 2}, "scale=2: must be a mapping"),
        ({"scale": {"memory": 0.5}}, r"scale\['memory'\]=0.5: must be a number of at least 1"),
        ({"scale": {"cores": 2}}, "scale: 'cores' cannot be scaled; only memory and time can"),
    ],
)
def test_a_retry_that_cannot_be_is_refused_when_it_is_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        Retry(**given)


def test_resources_refuse_what_is_no_retry() -> None:
    with pytest.raises(ResourceError, match="retries=3: must be a Retry"):
        read_resources({"retries": 3})
    with pytest.raises(ResourceError, match="warn_time=0: must be whole seconds from 1 to 65535"):
        read_resources({"warn_time": 0})
