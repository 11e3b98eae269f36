"""What tasks of pilots can do beside returning a value: submit others, be tried again, save a state; and pilots that
are more or fewer than before."""

from __future__ import annotations

import os
import time
from concurrent.futures import TimeoutError as TimedOut
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from remoteexec import Retry, TestClusterExecutor, checkpoint, current_executor, errors
from remoteexec.config.model import ClusterConfig
from remoteexec_server.store.outcomes import Outcomes
from remoteexec_server.store.session import Session
from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import outcome_within, placed
from tests.integration.running import running
from tests.integration.test_retries import count, crash, fail_once

WAIT_S = 60.0


@pytest.fixture
def root(tmp_root: Path) -> str:
    return str(tmp_root)


def pilots(root: str, **more: Any) -> TestClusterExecutor:
    """One pilot, with one worker, on the embedded scheduler."""
    return TestClusterExecutor(**{"cache_directory": root, "block_allocation": True, "max_workers": 1, **more})


def fib(n: int) -> int:
    """Waits for its children, in a process that its pilot goes on to need."""
    if n < 2:
        return n
    exe = current_executor()
    one, two = exe.submit(fib, n - 1), exe.submit(fib, n - 2)
    return one.result() + two.result()


def where() -> tuple[str, int]:
    return os.environ["REMOTEEXEC_JOB_ID"], os.getpid()


def test_tasks_that_wait_for_their_children_do_not_keep_them_from_running(root: str) -> None:
    with pilots(root) as exe:
        assert [future.result(WAIT_S) for future in [exe.submit(fib, n) for n in (5, 6, 1, 0)]] == [5, 8, 1, 0]


def give_up(alone: bool) -> tuple[bool, float]:
    """How long a wait takes that ends before the child, which has the place."""
    child = current_executor().submit(time.sleep, 6, resource_dict={"environment": {"K": "1"}} if alone else None)
    time.sleep(0.5)
    began = time.monotonic()
    try:
        child.result(timeout=1.0)
    except TimedOut:
        return True, time.monotonic() - began
    return False, time.monotonic() - began


@pytest.mark.parametrize("alone", [False, True])
def test_waiting_for_a_child_has_an_end_though_that_has_the_place(root: str, alone: bool) -> None:
    with pilots(root) as exe:
        resources = {"environment": {"K": "0"}} if alone else None
        given_up, took_s = exe.submit(give_up, alone, resource_dict=resources).result(WAIT_S)
        assert (given_up, took_s < 4) == (True, True)
        assert exe.submit(fib, 4).result(WAIT_S) == 3


def fib_alone(n: int) -> int:
    if n < 2:
        return n
    exe = current_executor()
    children = [exe.submit(fib_alone, n - k, resource_dict={"environment": {"K": str(k)}}) for k in (1, 2)]
    return sum(child.result() for child in children)


def test_tasks_with_resources_of_their_own_make_room_for_their_children_too(root: str) -> None:
    with pilots(root) as exe:
        assert exe.submit(fib_alone, 4, resource_dict={"environment": {"K": "0"}}).result(WAIT_S) == 3


def grow_later(path: str) -> Any:
    Path(path).touch()
    time.sleep(2.0)
    exe = current_executor()
    exe.submit(fib, 3)  # nobody waits for it
    return exe.submit(fib, exe.submit(fib, 5))


def test_a_graph_in_pilots_grows_to_its_end_with_nobody_logged_in(root: str, tmp_path: Path) -> None:
    exe = pilots(root, session="alone")
    future = exe.submit(grow_later, str(tmp_path / "began"))
    after = exe.submit(str, future)
    end = time.monotonic() + WAIT_S
    while not (tmp_path / "began").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    exe._driver._client.close()  # as a process that was killed
    exe.shutdown(wait=False)
    outcomes = Outcomes(Session(Path(root) / "sessions" / "alone"))
    services = Path(root) / "sessions" / "alone" / "services"
    while not outcomes.ended(after.key):
        assert time.monotonic() < end, "nobody goes on"
        time.sleep(0.2)
        outcomes.look()
    assert os.listdir(services) == []
    with pilots(root, session="alone") as other:
        found = other.futures()
        assert [each.result(WAIT_S) for each in found if each.key in (future.key, after.key)] == [5, "5"]
        assert sorted(each.result(WAIT_S) for each in found if each.key not in (future.key, after.key))[-2:] == [5, 5]


def watched(path: str, seconds: float) -> float:
    """Compute for a while, before and after a child; say when, so that overlaps are seen."""
    child = current_executor().submit(nap, path, seconds)
    note(path, seconds)
    found: float = child.result()
    note(path, seconds)
    return found


def nap(path: str, seconds: float) -> float:
    note(path, seconds)
    return seconds


def note(path: str, seconds: float) -> None:
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        pass
    with open(path, "a") as file:
        file.write(f"{began} {time.monotonic()}\n")


def test_no_more_tasks_compute_at_a_time_than_a_pilot_has_room_for(root: str, tmp_path: Path) -> None:
    path = tmp_path / "times"
    with pilots(root) as exe:
        futures = [exe.submit(watched, str(path), 0.1 + n / 1e4) for n in range(6)]
        assert [future.result(WAIT_S) for future in futures] == [0.1 + n / 1e4 for n in range(6)]
    times = sorted(tuple(float(part) for part in line.split()) for line in path.read_text().splitlines())
    assert len(times) == 18
    assert all(ended <= began for (_, ended), (began, _) in pairwise(times))


def refused() -> tuple[str, str]:
    try:
        current_executor().submit(where, resource_dict={"cores": 99}).result()
    except ValueError as exc:
        return type(exc).__name__, str(exc)
    raise AssertionError("it was taken")


def test_a_child_that_no_pilot_has_room_for_is_refused(root: str) -> None:
    with pilots(root) as exe:
        kind, text = exe.submit(refused).result(WAIT_S)
    assert kind == "ResourceError"
    assert "99" in text


def test_attempts_follow_each_other_in_pilots_and_the_last_error_names_all(root: str, tmp_path: Path) -> None:
    retry = Retry(2, {"killed", "error"})
    with pilots(root, retries=retry) as exe:
        once = exe.submit(fail_once, str(tmp_path / "once"))
        crashes = [exe.submit(crash, str(tmp_path / f"crash-{times}"), times) for times in (1, 2, 5)]
        after = exe.submit(str, crashes[1])
        others = [exe.submit(abs, -n) for n in range(20)]
        assert once.result(WAIT_S) == "second"
        assert [future.result(WAIT_S) for future in crashes[:2]] == [2, 3]
        exc = outcome_within(crashes[2], WAIT_S)
        assert isinstance(exc, errors.TaskKilled)
        assert str(exc).startswith("3 attempts: killed, killed, killed; it ended its worker with exit code 3")
        assert (after.result(WAIT_S), [future.result(WAIT_S) for future in others]) == ("3", list(range(20)))
    futures: list[Any] = [*crashes, after]
    assert [future.task.attempts for future in futures] == [2, 3, 3, 1]


def test_a_call_is_tried_again_if_that_was_asked_for_it_alone(root: str, tmp_path: Path) -> None:
    with pilots(root) as exe:
        no = exe.submit(fail_once, str(tmp_path / "no"))
        yes = exe.submit(fail_once, str(tmp_path / "yes"), resource_dict={"retries": Retry(1, {"error"})})
        assert isinstance(no.exception(WAIT_S), KeyError)
        assert yes.result(WAIT_S) == "second"


def test_pilots_become_more_and_fewer_while_they_work(root: str) -> None:
    with pilots(root, max_workers=1) as exe:
        first = {job for job, _ in exe.map(stay, range(5))}
        exe.max_workers = 2
        assert exe.max_workers == 2
        more = {job for job, _ in exe.map(stay, range(5, 45))}
        exe.max_workers = 1
        rounds = ({job for job, _ in exe.map(stay, range(start, start + 10))} for start in range(45, 245, 10))
        alone = next(jobs for jobs in rounds if len(jobs) == 1)
        assert (len(first), len(more), next(rounds)) == (1, 2, alone)
        with pytest.raises(ValueError, match="max_workers"):
            exe.max_workers = 0


def stay(n: int) -> tuple[str, int]:
    time.sleep(0.2)
    return os.environ["REMOTEEXEC_JOB_ID"], n


def test_a_size_that_was_set_before_anything_was_submitted_is_the_size(root: str) -> None:
    with pilots(root, max_workers=1) as exe:
        exe.max_workers = 2
        assert len({job for job, _ in exe.map(stay, range(20))}) == 2


def test_jobs_without_pilots_have_no_size_to_be_changed(root: str) -> None:
    with TestClusterExecutor(cache_directory=root, max_workers=2) as exe:
        with pytest.raises(NotImplementedError, match="block_allocation=True"):
            exe.max_workers = 3


def long(path: str) -> tuple[int, int]:
    """Longer than its pilot lives; each attempt goes on where the last one has ended."""
    state = {"step": 0}
    state.update(checkpoint(lambda: dict(state)) or {})
    began = state["step"]
    while state["step"] < 90:
        time.sleep(0.1)
        state["step"] += 1
    return began, state["step"]


def test_a_task_that_outlasts_its_pilot_goes_on_in_the_next(root: str) -> None:
    with pilots(root, resource_dict={"run_time_max": 6}, retries=Retry(3, {"timeout"})) as exe:
        future = exe.submit(long, "")
        others = [exe.submit(abs, -n) for n in range(10)]
        assert [other.result(WAIT_S) for other in others] == list(range(10))
        began, ended = future.result(WAIT_S)
    assert 20 <= began < ended == 90
    assert future.task.attempts == 2


def test_a_task_goes_on_from_its_checkpoint_where_slurm_ends_its_pilot(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    place = slurm_cluster.make_directory(f"again-{time.time_ns()}") / "place"
    options: dict[str, Any] = {"block_allocation": True, "max_workers": 1, "resource_dict": {"run_time_max": 600}}
    with running(slurm_config, retries=Retry(1, {"timeout"}), **options) as exe:
        future = exe.submit(count, str(place), 100_000)
        job = placed(place).job
        time.sleep(1)
        slurm_cluster.end_soon(job)
        began, _ = future.result(90)
    assert 50 <= began < 100_000
    assert future.task.attempts == 2
