"""What is tested of tasks on SLURM elsewhere, on a real Flux: MPI ranks, further attempts, saved states, pilots."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from remoteexec import FluxClusterExecutor, Retry, checkpoint, current_executor, errors
from tests.clusters.flux import FluxInstance
from tests.integration.faults import outcome_within
from tests.integration.test_retries import crash, fail_once

WAIT_S = 60.0


def at(instance: FluxInstance, **more: Any) -> FluxClusterExecutor:
    return FluxClusterExecutor(cache_directory=instance.new_root(), poll_s=1.0, **more)


def ranks(x: int) -> tuple[str, int, int]:
    from mpi4py import MPI

    return os.environ["REMOTEEXEC_JOB_ID"], MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(x)


def test_ranks_over_two_nodes_compute_together(flux_instance: FluxInstance) -> None:
    with at(flux_instance) as exe:
        future: Any = exe.submit(ranks, 4, resource_dict={"cores": 4, "num_nodes": 2})
        then = exe.submit(len, future)
        assert [rank[1:] for rank in future.result(WAIT_S)] == [(n, 16) for n in range(4)]
        assert then.result(WAIT_S) == 4


def long(steps: int) -> tuple[int, int]:
    """Each attempt goes on where the last one has ended."""
    state = {"step": 0}
    state.update(checkpoint(lambda: dict(state)) or {})
    began = state["step"]
    while state["step"] < steps:
        time.sleep(0.1)
        state["step"] += 1
    return began, state["step"]


def test_tasks_are_tried_again_with_more_time_and_go_on_from_their_states(
    flux_instance: FluxInstance, tmp_path: Path
) -> None:
    with at(flux_instance, retries=Retry(2, {"killed", "error", "timeout"}, {"time": 3})) as exe:
        crashed = exe.submit(crash, str(tmp_path / "crash"), 1)
        failed = exe.submit(fail_once, str(tmp_path / "fail"))
        lost = exe.submit(crash, str(tmp_path / "lost"), 9)
        late = exe.submit(long, 80, resource_dict={"run_time_max": 5})
        assert (crashed.result(WAIT_S), failed.result(WAIT_S)) == (2, "second")
        assert str(outcome_within(lost, WAIT_S)).startswith("3 attempts: killed, killed, killed; ")
        began, ended = late.result(WAIT_S)
    assert (20 <= began < 60, ended, late.task.attempts) == (True, 80, 2)


def test_a_task_that_reaches_its_time_limit_says_so(flux_instance: FluxInstance) -> None:
    with at(flux_instance, resource_dict={"run_time_max": 2}) as exe:
        assert isinstance(outcome_within(exe.submit(time.sleep, 60), WAIT_S), errors.TaskTimeout)


def test_a_task_that_outlasts_its_pilot_goes_on_in_the_next(flux_instance: FluxInstance) -> None:
    options: dict[str, Any] = {"block_allocation": True, "max_workers": 1, "resource_dict": {"run_time_max": 6}}
    with at(flux_instance, retries=Retry(2, {"timeout"}), **options) as exe:
        future = exe.submit(long, 80)
        began, ended = future.result(WAIT_S)
    assert (20 <= began < 80, ended, future.task.attempts) == (True, 80, 2)


def test_pilots_run_tasks_that_grow_ranks_and_further_attempts(flux_instance: FluxInstance, tmp_path: Path) -> None:
    options: dict[str, Any] = {"block_allocation": True, "max_workers": 2, "resource_dict": {"cores": 2}}
    with at(flux_instance, retries=Retry(1, {"killed"}), **options) as exe:
        one = {"cores": 1}
        together: Any = exe.submit(ranks, 3)
        number = exe.submit(fib_alone, 6, resource_dict=one)
        crashed = exe.submit(crash, str(tmp_path / "crash"), 1, resource_dict=one)
        assert [rank[1:] for rank in together.result(WAIT_S)] == [(0, 6), (1, 6)]
        assert (number.result(WAIT_S), crashed.result(WAIT_S)) == (8, 2)


def fib_alone(n: int) -> Any:
    """Without ranks, which cannot submit anything."""
    if n < 2:
        return n
    exe, one = current_executor(), {"cores": 1}
    children = [exe.submit(fib_alone, n - k, resource_dict=one) for k in (1, 2)]
    return sum(child.result() for child in children)


def where(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["REMOTEEXEC_JOB_ID"]


def test_pilots_follow_each_other_and_become_more_and_fewer(flux_instance: FluxInstance) -> None:
    with at(flux_instance, block_allocation=True, max_workers=1, resource_dict={"run_time_max": 8}) as exe:
        jobs = {future.result(WAIT_S) for future in [exe.submit(where, 0.4 + n / 1e6) for n in range(40)]}
        assert 2 <= len(jobs) <= 6
        exe.max_workers = 3
        more = [exe.submit(where, 0.3 + n / 1e6) for n in range(40)]
        assert len({future.result(WAIT_S) for future in more}) >= 3


def test_a_pilot_that_is_cancelled_loses_what_it_runs_and_the_rest_goes_on_elsewhere(
    flux_instance: FluxInstance, tmp_path: Path
) -> None:
    with at(flux_instance, block_allocation=True, max_workers=1) as exe:
        first = exe.submit(say_and_stay, str(tmp_path / "job"))
        others = [exe.submit(abs, -n) for n in range(20)]
        end = time.monotonic() + WAIT_S
        while not (tmp_path / "job").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        flux_instance.run(["flux", "cancel", (tmp_path / "job").read_text()])
        with pytest.raises(errors.TaskCancelled):
            first.result(WAIT_S)
        assert [other.result(WAIT_S) for other in others] == list(range(20))


def say_and_stay(path: str) -> None:
    Path(f"{path}.new").write_text(os.environ["REMOTEEXEC_JOB_ID"])
    Path(f"{path}.new").rename(path)
    time.sleep(100)
