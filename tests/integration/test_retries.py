"""Tasks that are tried again, and go on from where they were, on a real SLURM."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from remoteexec import RemoteExecutor, Retry, checkpoint, errors
from remoteexec.config.model import ClusterConfig
from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import outcome_within, placed
from tests.integration.running import running
from tests.integration.test_faults_reasons import follow, hold, lost


@pytest.fixture
def place(slurm_cluster: SlurmCluster) -> Path:
    """Where a task says that it runs; there is nothing yet."""
    return slurm_cluster.make_directory(f"again-{time.time_ns()}") / "place"


def hold_once(path: str) -> str | None:
    """Stay at the first attempt, then say which time limit there is."""
    import subprocess

    if not Path(path).exists():
        hold(path)
    argv = ["squeue", "-h", "-o", "%l", "-j", os.environ["SLURM_JOB_ID"]]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def crash(path: str, times: int) -> int:
    """End the process so many times; then say how often it began."""
    with open(path, "a") as file:
        file.write("x")
    count = len(Path(path).read_text())
    if count <= times:
        os._exit(3)
    return count


def fill(megabytes: int) -> int:
    block = b"x" * (megabytes << 20)
    time.sleep(5)  # memory is looked at now and then
    return len(block) >> 20


def fail_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        raise KeyError("first")
    return "second"


def count(path: str, steps: int) -> tuple[int, int]:
    """Count, and say where this attempt began."""
    state = {"step": 0}
    state.update(checkpoint(lambda: dict(state)) or {})
    began = state["step"]
    if began:
        return began, steps
    Path(f"{path}.new").write_text(f'["{os.environ["SLURM_JOB_ID"]}", "", {os.getpid()}, 0]')
    Path(f"{path}.new").rename(path)
    while state["step"] < steps:
        time.sleep(0.01)
        state["step"] += 1
    return began, state["step"]


def raises_in_save(path: str) -> Any:
    def save() -> None:
        raise ValueError("cannot be saved")

    state = checkpoint(save)
    if not Path(path).exists():
        hold(path)
    return state


def test_a_task_that_reached_its_time_limit_gets_a_longer_one(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path
) -> None:
    retry = Retry(1, {"timeout"}, {"time": 3})
    with running(slurm_config, session=f"t-{time.time_ns()}") as exe:
        future = exe.submit(hold_once, str(place), resource_dict={"run_time_max": 120, "retries": retry})
        after = exe.submit(follow, future)
        slurm_cluster.end_soon(placed(place).job)
        assert (future.result(60), after.result(20)) == ("6:00", "6:00")
    assert (future.task.attempts, after.task.attempts, future.task.state) == (2, 1, "done")


def test_no_attempt_asks_for_more_time_than_the_partition_gives(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path
) -> None:
    name = slurm_cluster.run(["sinfo", "-h", "-o", "%R"]).stdout.split()[0]
    slurm_cluster.run(["scontrol", "update", f"PartitionName={name}", "MaxTime=4"])
    try:
        with running(slurm_config, retries=Retry(1, {"timeout"}, {"time": 30})) as exe:
            future = exe.submit(hold_once, str(place), resource_dict={"run_time_max": 120})
            slurm_cluster.end_soon(placed(place).job)
            assert future.result(60) == "4:00"
    finally:
        slurm_cluster.run(["scontrol", "update", f"PartitionName={name}", "MaxTime=UNLIMITED"])


def test_a_task_that_ran_out_of_memory_gets_more(slurm_config: ClusterConfig) -> None:
    retry = Retry(1, {"out_of_memory"}, {"memory": 8})
    with running(slurm_config) as exe:
        future = exe.submit(fill, 300, resource_dict={"memory_max": 0.1, "retries": retry})
        assert (future.result(60), future.task.attempts) == (300, 2)


def test_a_task_whose_node_went_down_runs_on_another(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path
) -> None:
    with running(slurm_config, retries=Retry()) as exe:
        future = exe.submit(hold_once, str(place))
        slurm_cluster.down(placed(place).node)
        assert future.result(60)
        assert future.task.attempts == 2


def test_a_crash_is_tried_again_and_the_last_error_names_all_attempts(slurm_config: ClusterConfig, place: Path) -> None:
    with running(slurm_config, retries=Retry(2, {"killed"})) as exe:
        futures = [exe.submit(crash, f"{place}-{times}", times) for times in (1, 2, 5)]
        assert [future.result(60) for future in futures[:2]] == [2, 3]
        exc = lost(outcome_within(futures[2], 60))
        after = exe.submit(follow, futures[2])
        assert after.exception(20) is exc
    assert str(exc).startswith("3 attempts: killed, killed, killed; the function ended its process with exit code 3")
    assert [future.task.attempts for future in futures] == [2, 3, 3]


def test_what_the_function_raises_is_tried_again_only_if_that_was_asked_for(
    slurm_config: ClusterConfig, place: Path
) -> None:
    with running(slurm_config) as exe:
        once = exe.submit(fail_once, f"{place}-once", resource_dict={"retries": Retry(1, {"killed"})})
        twice = exe.submit(fail_once, f"{place}-twice", resource_dict={"retries": Retry(1, {"error"})})
        assert isinstance(once.exception(30), KeyError)
        assert twice.result(30) == "second"


def test_a_task_that_somebody_cancelled_is_not_tried_again(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path
) -> None:
    with running(slurm_config, retries=Retry(3, {"timeout", "killed", "unknown"})) as exe:
        future = exe.submit(hold_once, str(place))
        slurm_cluster.run(["scancel", placed(place).job])
        exc = lost(outcome_within(future, 30))
    assert (type(exc), future.task.attempts) == (errors.TaskCancelled, None)


def test_a_task_goes_on_from_its_checkpoint(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path
) -> None:
    with running(slurm_config, retries=Retry(1, {"timeout"})) as exe:
        future = exe.submit(count, str(place), 100_000, resource_dict={"run_time_max": 600})
        job = placed(place).job
        time.sleep(1)
        slurm_cluster.end_soon(job)
        began, _ = future.result(90)
    assert 50 <= began < 100_000
    assert future.task.attempts == 2


def test_a_warning_makes_a_task_save_its_state_and_go_on(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path
) -> None:
    with running(slurm_config, session=f"w-{time.time_ns()}", retries=Retry(1, {"timeout"})) as exe:
        future = exe.submit(count, str(place), 500, resource_dict={"run_time_max": 600})
        job = placed(place).job
        slurm_cluster.run(["scancel", "--signal=USR1", "--batch", job])
        saved = Path(slurm_config.root) / "sessions" / exe.session / "checkpoints" / f"{future.key}.h5"
        slurm_cluster.wait(saved.exists, "the state is not saved")
        assert future.result(60) == (0, 500)
        assert not saved.exists()


def test_an_error_while_saving_changes_nothing(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path
) -> None:
    with running(slurm_config, retries=Retry(1, {"timeout"})) as exe:
        future = exe.submit(raises_in_save, str(place), resource_dict={"run_time_max": 600})
        slurm_cluster.end_soon(placed(place).job)
        assert (future.result(90), future.task.attempts) == (None, 2)


@pytest.mark.parametrize("how", ["crash", "timeout"])
def test_with_nobody_logged_in_the_compute_node_submits_the_next_attempt(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path, how: str
) -> None:
    session = f"alone-{time.time_ns()}"
    services = Path(slurm_config.root) / "sessions" / session / "services"
    exe = RemoteExecutor(slurm_config, session=session, retries=Retry(1, {"killed", "timeout"}))
    try:
        future = exe.submit(slow_crash if how == "crash" else hold_once, str(place))
        job = placed(place).job
        exe._driver._client.close()  # as a laptop that is shut
        if how == "timeout":
            slurm_cluster.wait(lambda: not os.listdir(services), "the gateway does not end")
            slurm_cluster.end_soon(job)
        outcome = services.parent / "outcomes" / f"{future.key}.h5"
        slurm_cluster.wait(outcome.exists, "there is no outcome", 90)
    finally:
        exe.shutdown(wait=False)
    with running(slurm_config, session=session) as other:
        [found] = other.futures()
        assert found.result(20)
        assert found.task.attempts == 2


def stay_twice(path: str) -> str:
    """Stay for ever at the first attempt, for a while at the second."""
    if not Path(path).exists():
        hold(path)
    time.sleep(8)
    return "again"


@pytest.mark.parametrize("alone", [False, True], ids=["with a service", "with nobody logged in"])
def test_a_dependant_goes_behind_the_next_attempt_instead_of_waiting_in_its_job(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, place: Path, alone: bool
) -> None:
    """The loss of a node is known to the scheduler alone: with nobody logged in it is the dependant that sees it."""
    session = f"behind-{time.time_ns()}"
    path = Path(slurm_config.root) / "sessions" / session
    exe = RemoteExecutor(slurm_config, session=session, retries=Retry())
    try:
        after = exe.submit(follow, exe.submit(stay_twice, str(place)))
        node = placed(place).node
        assert exe._driver.wait_sent(20)
        if alone:
            exe._driver._client.close()  # as a laptop that is shut
            slurm_cluster.wait(lambda: not os.listdir(path / "services"), "the gateway does not end")
        slurm_cluster.down(node)
        slurm_cluster.wait((path / "outcomes" / f"{after.key}.h5").exists, "there is no outcome", 90)
    finally:
        exe.shutdown(wait=False)
    kinds = sorted(name.split("-", 4)[-1].rstrip("0123456789") for name in os.listdir(path / "jobs"))
    assert [kind for kind in kinds if kind] == ["r1w1-", "r2-"]
    with running(slurm_config, session=session) as other:
        found = other.futures()
        assert [future.result(20) for future in found] == ["again", "again"]
        assert [future.task.attempts for future in found] == [2, 1]


def slow_crash(path: str) -> str:
    if Path(path).exists():
        return "again"
    partial = Path(f"{path}.new")
    partial.write_text(f'["{os.environ["SLURM_JOB_ID"]}", "", 0, 0]')
    partial.rename(path)
    time.sleep(5)
    os._exit(1)
