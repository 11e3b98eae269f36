"""A scheduler that lies, fails or is away, and executors that are left in every way; on a real SLURM."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from remoteexec import errors
from remoteexec.config.model import ClusterConfig
from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import FAILS_EVERY_SECOND_TIME, executions, with_wrappers
from tests.integration.running import running


def record(path: str, number: int, seconds: float = 0.0) -> int:
    """Append one line, so that executions can be counted."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    time.sleep(seconds)
    return number


def follow(value: Any) -> Any:
    return value


LIES_ONCE = """
"$real" "$@" >>$state/jobs
if mkdir $state/lied-$(wc -l <$state/jobs) && [ $(wc -l <$state/jobs) -le 2 ]; then
    echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
    exit 1
fi
tail -n1 $state/jobs
"""


def test_an_sbatch_that_submits_and_says_that_it_timed_out_runs_nothing_twice(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    config, state = with_wrappers(slurm_cluster, slurm_config, sbatch=LIES_ONCE)
    with running(config) as exe:
        with exe._driver.gathering():
            array = [exe.submit(record, str(state / "lines"), n) for n in range(4)]
            single = exe.submit(record, str(state / "lines"), 4, resource_dict={"run_time_max": 120})
            total = exe.submit(sum, [*array, single])
        assert total.result(40) == 10
        assert len((state / "jobs").read_text().split()) == 3  # sbatch ran once for each of the three jobs
    assert executions(state / "lines") == Counter(range(5))


def test_a_squeue_that_fails_every_second_time_is_asked_again(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    config, state = with_wrappers(slurm_cluster, slurm_config, squeue=FAILS_EVERY_SECOND_TIME, sbatch=LIES_ONCE)
    with running(config) as exe:
        first = exe.submit(record, str(state / "lines"), 0)
        held = exe.submit(record, str(state / "lines"), 1, 60)
        pending = exe.submit(follow, held)
        assert first.result(30) == 0
        while not held.running():
            time.sleep(0.1)
        slurm_cluster.cancel_all()
        exc = held.exception(30)
        assert type(exc) is errors.TaskCancelled
        assert pending.exception(30) is exc
    assert executions(state / "lines") == Counter(range(2))


def test_a_squeue_that_fails_every_second_time_mixes_up_no_answers_of_pilots(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    config, state = with_wrappers(slurm_cluster, slurm_config, squeue=FAILS_EVERY_SECOND_TIME)
    with running(replace(config, poll_s=0.5), block_allocation=True, max_workers=2) as exe:
        futures = [exe.submit(record, str(state / "lines"), n, 0.3) for n in range(12)]
        assert [future.result(30) for future in futures] == list(range(12))
    assert executions(state / "lines") == Counter(range(12))


def test_pilots_that_cannot_start_fail_their_tasks_with_the_reason(slurm_config: ClusterConfig) -> None:
    template = {"submission_template": "#!/bin/bash\nexec /no/such/python {{ command }}\n"}
    with running(slurm_config, block_allocation=True, max_workers=1, resource_dict=template) as exe:
        exc = exe.submit(follow, 1).exception(60)
    assert isinstance(exc, errors.TaskLost)
    assert "/no/such/python: No such file or directory" in str(exc)


def test_a_controller_that_is_away_for_a_while_delays_submits_and_openings_and_loses_nothing(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"away-{time.time_ns()}") / "lines"
    with running(slurm_config) as exe:
        running_now = exe.submit(record, str(path), 0, 1.0)
        while not running_now.running():
            time.sleep(0.05)
        slurm_cluster.stop_controller()
        while_away = [exe.submit(record, str(path), n) for n in range(1, 4)]
        dependant = exe.submit(sum, [running_now, *while_away])
        assert running_now.result(20) == 0  # jobs go on, and their results come
        began = time.monotonic()
        with running(slurm_config) as second:  # opened while it is away: its questions take SLURM's MessageTimeout
            assert time.monotonic() - began > 5
            late = second.submit(record, str(path), 4)
            assert not any(future.done() for future in [*while_away, late])
            slurm_cluster.start_controller()
            assert (dependant.result(60), late.result(60)) == (6, 4)
    assert executions(path) == Counter(range(5))


@pytest.mark.timeout(240)
def test_a_controller_that_is_away_for_a_minute_delays_what_is_submitted_and_what_waits(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"minute-{time.time_ns()}") / "lines"
    with running(slurm_config) as exe, running(slurm_config, block_allocation=True, max_workers=1) as pilots:
        assert pilots.submit(record, str(path), 0).result(30) == 0  # there is a pilot that needs no controller
        held = exe.submit(record, str(path), 1, 65.0)
        waiting = exe.submit(follow, held)  # its job waits for the other's end, which the controller alone tells
        while not held.running():
            time.sleep(0.05)
        assert exe._driver.wait_sent(20)
        slurm_cluster.stop_controller()
        began = time.monotonic()
        late = [exe.submit(record, str(path), n, 0.1) for n in range(2, 5)]
        total = exe.submit(sum, [*late, held])
        in_pilot = pilots.submit(record, str(path), 5)
        assert in_pilot.result(30) == 5
        time.sleep(60 - (time.monotonic() - began))
        assert not any(future.done() for future in (held, waiting, total, *late))
        slurm_cluster.start_controller()
        assert (total.result(90), waiting.result(30)) == (10, 1)
    assert executions(path) == Counter(range(6))


def test_a_call_that_sbatch_has_refused_runs_when_it_is_submitted_again(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, tmp_path: Path
) -> None:
    path = slurm_cluster.make_directory(f"refused-{time.time_ns()}") / "lines"
    kept: dict[str, Any] = {"cache_directory": tmp_path}
    with running(slurm_config) as exe:
        refused = exe.submit(record, str(path), 0, resource_dict={**kept, "partition": "nowhere"})
        after = exe.submit(follow, refused, resource_dict=kept)
        assert type(refused.exception(30)) is errors.SubmitRejected
        assert after.exception(30) is refused.exception()
        again = exe.submit(record, str(path), 0, resource_dict=kept)
        assert exe.submit(follow, again, resource_dict=kept).result(30) == 0
        assert again.cache_key == refused.cache_key
    assert executions(path) == Counter([0])


# ---- cancelling and leaving ----


def test_a_future_is_cancelled_before_its_task_starts_and_all_that_waits_for_it_fails(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    for node in slurm_cluster.nodes:
        slurm_cluster.drain(node)
    path = slurm_cluster.make_directory(f"cancel-{time.time_ns()}") / "lines"
    with running(slurm_config) as exe:
        first, other = exe.submit(record, str(path), 0), exe.submit(record, str(path), 1)
        second = exe.submit(follow, [first])
        third = exe.submit(follow, second)
        assert exe._driver.wait_sent(20)
        assert first.cancel()
        assert first.cancelled()
        assert concurrent.futures.wait([first, second, third], 10).not_done == set()
        later = exe.submit(follow, first)
        kinds = [type(future.exception(10)) for future in (second, third, later)]
        assert kinds == [concurrent.futures.CancelledError] * 3
        slurm_cluster.wait(
            lambda: len(slurm_cluster.run(["squeue", "-h", "--array"]).stdout.splitlines()) == 1,
            "cancelled tasks are still in the queue",
        )
        slurm_cluster.resume(*slurm_cluster.nodes)
        assert other.result(20) == 1
        assert not other.cancel()
    assert executions(path) == Counter([1])


def test_shutdown_with_cancel_futures_ends_what_waits_and_lets_finish_what_runs(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"shutdown-{time.time_ns()}") / "lines"
    with running(slurm_config) as exe:
        runs = exe.submit(record, str(path), 0, 1.5)
        while not runs.running():
            time.sleep(0.05)
        for node in slurm_cluster.nodes:
            slurm_cluster.drain(node)
        waits = [exe.submit(record, str(path), n) for n in range(1, 4)]
        waits.append(exe.submit(follow, runs))
        assert exe._driver.wait_sent(20)
        exe.shutdown(cancel_futures=True)
        assert [future.cancelled() for future in waits] == [True] * 4
        assert runs.result(0) == 0
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            exe.submit(follow, 1)
    assert executions(path) == Counter([0])
    assert slurm_cluster.run(["squeue", "--noheader"]).stdout == ""


def write_config(config: ClusterConfig) -> str:
    """Python text that makes this configuration."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    return f"ClusterConfig(**{values!r})"


SCRIPT = """
import sys, time
from remoteexec import RemoteExecutor
from remoteexec.config.model import ClusterConfig

def record(path, number, seconds):
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(f"{{number}}\\n")
    return number

exe = RemoteExecutor({config})
futures = [exe.submit(record, {path!r}, n, 1.0) for n in range(3)]
futures.append(exe.submit(sum, futures))
{end}
"""


def run_script(config: ClusterConfig, path: Path, end: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds it took, and what it said."""
    began = time.monotonic()
    text = SCRIPT.format(config=write_config(config), path=str(path), end=end)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    return time.monotonic() - began, done


def test_a_submit_while_the_interpreter_exits_is_refused_or_runs_and_never_hangs(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"late-{time.time_ns()}") / "lines"
    late = """
import atexit

def at_exit():
    try:
        print(exe.submit(abs, -1).result(20))
    except RuntimeError as exc:
        print("refused", exc)

atexit.register(at_exit)
"""
    took, done = run_script(slurm_config, path, late)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1\n" or done.stdout.startswith("refused")
    assert took < 40


@pytest.mark.parametrize(
    ("end", "said", "code"),
    [
        ("futures[3].add_done_callback(lambda future: print('sum', future.result()))", "sum 3\n", 0),
        ("futures[3].add_done_callback(lambda future: print('sum', future.result())); sys.exit(5)", "sum 3\n", 5),
    ],
    ids=["end of the script", "sys.exit"],
)
def test_a_script_that_ends_without_shutdown_waits_for_its_tasks(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, end: str, said: str, code: int
) -> None:
    path = slurm_cluster.make_directory(f"exit-{time.time_ns()}") / "lines"
    _, done = run_script(slurm_config, path, end)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")
    assert executions(path) == Counter(range(3))


def test_a_script_that_ends_after_shutdown_without_waiting_leaves_its_jobs_to_go_on(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"leave-{time.time_ns()}") / "lines"
    config = replace(slurm_config, resources={"run_time_max": 120})
    leave = f"futures.append(exe.submit(record, {str(path)!r}, 3, 4.0)); exe.shutdown(wait=False)"
    _, done = run_script(config, path, leave)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not path.exists() or 3 not in executions(path)
    slurm_cluster.wait(
        lambda: path.exists() and executions(path) == Counter(range(4)), "the jobs did not go on", deadline_s=30
    )


def test_a_script_that_dies_leaves_its_jobs_to_go_on(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> None:
    path = slurm_cluster.make_directory(f"die-{time.time_ns()}") / "lines"
    _, done = run_script(slurm_config, path, "exe._driver.wait_sent(20); import os; os.kill(os.getpid(), 9)")
    assert done.returncode == -9
    slurm_cluster.wait(
        lambda: path.exists() and executions(path) == Counter(range(3)), "the jobs did not go on", deadline_s=30
    )
