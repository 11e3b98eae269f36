"""How a job can end without an outcome, or never start, on a real SLURM; and what its future then says."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remoteexec import errors
from remoteexec.config.model import ClusterConfig
from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import PROMPT_S, Place, outcome_within, placed
from tests.integration.running import running


def hold(path: str, megabytes: int = 0) -> None:
    """Say where this runs, in a file and in the log, and stay."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    print(f"here is {job}", flush=True)
    partial = Path(f"{path}.new")
    partial.write_text(json.dumps([job, os.environ["SLURMD_NODENAME"], os.getpid(), os.getppid()]))
    partial.rename(path)
    block = b"x" * (megabytes << 20)
    time.sleep(100)
    raise AssertionError(f"nobody ended this task with {len(block)} bytes")  # an `assert` would take pytest along


def follow(value: Any) -> Any:
    return value


End = Callable[[SlurmCluster, Place], Any]


@pytest.mark.parametrize(
    ("end", "kind", "reason"),
    [
        (lambda cluster, place: cluster.run(["scancel", place.job]), errors.TaskCancelled, "cancelled"),
        (lambda cluster, place: cluster.kill_node(place.node), errors.TaskNodeFailure, "node_failure"),
        (lambda cluster, place: cluster.down(place.node), errors.TaskNodeFailure, "node_failure"),
    ],
    ids=["scancel", "node dies", "node set down"],
)
def test_a_job_that_the_scheduler_ends_is_lost_with_its_story_and_so_is_all_that_waits_for_it(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, end: End, kind: type[errors.TaskLost], reason: str
) -> None:
    path = slurm_cluster.make_directory(f"end-{time.time_ns()}") / "place"
    with running(slurm_config) as exe:
        future = exe.submit(hold, str(path))
        pending = exe.submit(follow, [future])
        pending_too = exe.submit(follow, {"x": pending})
        place = placed(path)
        end(slurm_cluster, place)
        exc = outcome_within(future, PROMPT_S)
        assert isinstance(exc, errors.TaskLost)
        assert (type(exc), exc.reason, exc.job, exc.node) == (kind, reason, place.job, place.node)
        assert exc.log_path is not None
        assert exc.log_tail.splitlines()[0] == f"here is {place.job}"
        assert exc.log_tail == Path(exc.log_path).read_text().rstrip("\n")
        assert place.job in str(exc)
        later = exe.submit(follow, future)
        assert [outcome_within(each, PROMPT_S) for each in (pending, pending_too, later)] == [exc] * 3
        assert exe.submit(follow, 3).result(PROMPT_S) == 3


@pytest.mark.parametrize("whom", [("pid",), ("parent",), ("pid", "parent")], ids=["child", "supervisor", "both"])
def test_a_runner_that_is_killed_is_lost_with_its_signal_and_does_not_go_on(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, whom: tuple[str, ...]
) -> None:
    path = slurm_cluster.make_directory(f"kill-{time.time_ns()}") / "place"
    with running(slurm_config) as exe:
        future = exe.submit(hold, str(path))
        pending = exe.submit(follow, [future])
        place = placed(path)
        for each in whom:
            os.kill(getattr(place, each), signal.SIGKILL)
        exc = outcome_within(future, PROMPT_S)
        assert isinstance(exc, errors.TaskLost)
        assert (type(exc), exc.reason, exc.job, exc.node) == (errors.TaskKilled, "killed", place.job, place.node)
        assert "signal 9 (SIGKILL)" in str(exc)
        assert exc.log_tail.splitlines()[0] == f"here is {place.job}"
        assert outcome_within(pending, PROMPT_S) is exc
    with pytest.raises(ProcessLookupError):
        os.kill(place.pid, 0)


def test_a_job_that_uses_more_memory_than_it_asked_for_is_lost_to_that(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"memory-{time.time_ns()}") / "place"
    with running(slurm_config) as exe:
        future = exe.submit(hold, str(path), 300, resource_dict={"memory_max": 0.1})
        pending = exe.submit(follow, [future])
        place = placed(path)
        exc = outcome_within(future, PROMPT_S)
        assert isinstance(exc, errors.TaskLost)
        assert (type(exc), exc.reason, exc.job, exc.node) == (
            errors.TaskOutOfMemory,
            "out_of_memory",
            place.job,
            place.node,
        )
        assert "memory_max 0.1 GB" in str(exc)
        assert "memory limit" in exc.log_tail
        assert outcome_within(pending, PROMPT_S) is exc


def test_every_loss_is_known_within_a_minute_at_the_default_pace(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    """The scheduler looks at time limits every 30 s itself, and is asked every 30 s."""
    directory = slurm_cluster.make_directory(f"pace-{time.time_ns()}")
    names = ("limit", "cancel", "kill")
    with running(replace(slurm_config, poll_s=ClusterConfig("x", "x").poll_s)) as exe:
        futures = {name: exe.submit(hold, str(directory / name)) for name in names}
        places = {name: placed(directory / name) for name in names}
        slurm_cluster.end_soon(places["limit"].job)
        slurm_cluster.run(["scancel", places["cancel"].job])
        os.kill(places["kill"].pid, signal.SIGKILL)
        excs = {name: outcome_within(futures[name], 30 + 60) for name in names}
        assert {name: (type(exc), getattr(exc, "job", None)) for name, exc in excs.items()} == {
            "limit": (errors.TaskTimeout, places["limit"].job),
            "cancel": (errors.TaskCancelled, places["cancel"].job),
            "kill": (errors.TaskKilled, places["kill"].job),
        }
        assert "DUE TO TIME LIMIT" in getattr(excs["limit"], "log_tail", "")


def test_a_job_that_is_cancelled_before_it_starts_is_lost_and_the_others_are_not(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    for node in slurm_cluster.nodes:
        slurm_cluster.drain(node)
    with running(slurm_config) as exe:
        single = exe.submit(follow, 1, resource_dict={"job_name": "single"})
        several = [exe.submit(follow, n, resource_dict={"job_name": "several"}) for n in range(4)]
        jobs = wait_for_jobs(slurm_cluster, "single", "several")
        slurm_cluster.run(["scancel", jobs["single"], f"{jobs['several']}_2"])
        for future, job in ((single, jobs["single"]), (several[2], f"{jobs['several']}_2")):
            exc = outcome_within(future, PROMPT_S)
            assert isinstance(exc, errors.TaskLost)
            assert (type(exc), exc.job, exc.node, exc.log_tail) == (errors.TaskCancelled, job, None, "")
        slurm_cluster.resume(*slurm_cluster.nodes)
        assert [several[n].result(20) for n in (0, 1, 3)] == [0, 1, 3]


def test_a_running_element_of_an_array_is_cancelled_and_its_siblings_stay(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    place = slurm_cluster.make_directory(f"siblings-{time.time_ns()}")

    def stay(n: int) -> int:
        (place / f"{n}").touch()
        while not (place / "go").exists():
            time.sleep(0.05)
        return n

    with running(slurm_config) as exe:
        futures = [exe.submit(stay, n) for n in range(3)]
        end = time.monotonic() + PROMPT_S
        while not all(future.running() for future in futures) and time.monotonic() < end:
            time.sleep(0.05)
        jobs = [str(future.task.job) for future in futures]
        assert len({job.partition("_")[0] for job in jobs}) == 1
        assert (futures[1].cancel(), futures[1].cancelled()) == (True, True)
        end = time.monotonic() + PROMPT_S
        while len(left := in_queue(slurm_cluster)) > 2 and time.monotonic() < end:
            time.sleep(0.1)
        assert left == {jobs[0]: "RUNNING", jobs[2]: "RUNNING"}
        slurm_cluster.run(["touch", str(place / "go")])
        assert [futures[n].result(30) for n in (0, 2)] == [0, 2]


def in_queue(cluster: SlurmCluster) -> dict[str, str]:
    """States of jobs that have not ended."""
    shown = cluster.run(["squeue", "--noheader", "--array", "--states=PENDING,RUNNING", "--format=%i %T"]).stdout
    return dict(line.split() for line in shown.splitlines())


def wait_for_jobs(cluster: SlurmCluster, *names: str) -> dict[str, str]:
    """The numbers of the jobs with these `job_name`s, once they are all in the queue."""
    end = time.monotonic() + 20
    while True:
        shown = cluster.run(["squeue", "--noheader", "--array-unique", "--format=%F %j"]).stdout.split("\n")
        jobs = {line.split()[1].rpartition(".")[2]: line.split()[0] for line in shown if line.strip()}
        if set(names) <= jobs.keys():
            return jobs
        assert time.monotonic() < end, shown
        time.sleep(0.05)


def test_a_job_that_sbatch_refuses_fails_with_sbatchs_own_words_and_the_rest_of_the_burst_runs(
    slurm_config: ClusterConfig,
) -> None:
    with running(slurm_config) as exe:
        with exe._driver.gathering():
            good = exe.submit(follow, 1)
            bad = [exe.submit(follow, n, resource_dict={"partition": "nowhere"}) for n in range(2)]
            dependant = exe.submit(follow, bad)
        exc = bad[0].exception(PROMPT_S)
        assert isinstance(exc, errors.SubmitRejected)
        assert "invalid partition specified: nowhere" in str(exc)
        assert [future.exception(PROMPT_S) for future in (bad[1], dependant)] == [exc, exc]
        assert exe.submit(follow, bad[0]).exception(PROMPT_S) is exc
        assert good.result(20) == 1


def test_a_job_that_can_never_start_is_refused_instead_of_waited_for(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    with running(slurm_config) as exe:
        future = exe.submit(follow, 1, resource_dict={"partition": "short", "run_time_max": 3000})
        exc = outcome_within(future, PROMPT_S)
    assert isinstance(exc, errors.SubmitRejected)
    assert slurm_cluster.run(["squeue", "--noheader"]).stdout == ""


def test_a_directory_that_cannot_be_made_is_the_tasks_error(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    with running(slurm_config) as exe:
        exc = exe.submit(follow, 1, resource_dict={"cwd": "/proc/nowhere"}).exception(20)
        here = exe.submit(os.getcwd, resource_dict={"cwd": str(slurm_cluster.home / "made" / "for it")}).result(20)
    assert isinstance(exc, OSError)
    assert (exc.filename, here) == ("/proc/nowhere", str(slurm_cluster.home / "made" / "for it"))


def test_the_failure_of_the_first_of_a_long_chain_reaches_the_last_in_seconds(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"chain-{time.time_ns()}") / "place"
    with running(slurm_config) as exe:
        with exe._driver.gathering():
            chain = [exe.submit(hold, str(path))]
            for _ in range(300):
                chain.append(exe.submit(follow, chain[-1]))
        place = placed(path)
        os.kill(place.pid, signal.SIGKILL)
        exc = outcome_within(chain[0], 60)
        assert isinstance(exc, errors.TaskKilled)
        concurrent.futures.wait(chain, 30)
        assert {future.exception(0) for future in chain} == {exc}


def test_an_array_is_split_where_the_cluster_allows_no_longer_one(
    small_array_cluster: SlurmCluster, small_array_config: ClusterConfig
) -> None:
    with running(small_array_config) as exe:
        assert list(exe.map(follow, range(12))) == list(range(12))
        with exe._driver.gathering():  # one burst, however busy the machine is
            parts = [exe.submit(follow, n) for n in range(7)]
            total = exe.submit(sum, parts)
        assert total.result(30) == 21
    shown = small_array_cluster.run(["squeue", "--noheader", "--states=all", "--array", "--format=%F %j"]).stdout
    ours = [job for job, name in map(str.split, shown.splitlines()) if name.startswith("rx-")]
    assert sorted(Counter(ours).values()) == [1, 2, 2, 5, 5, 5]


def test_a_thousand_calls_of_map_are_one_job_array_that_can_be_cancelled(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    for node in slurm_cluster.nodes:
        slurm_cluster.drain(node)
    with running(slurm_config) as exe:
        began = time.monotonic()
        exe.map(follow, range(1000))
        assert exe._driver.wait_sent(20)
        assert time.monotonic() - began < 10
        shown = slurm_cluster.run(["squeue", "--noheader", "--array", "--format=%F"]).stdout.split()
        assert (len(shown), len(set(shown))) == (1000, 1)
        began = time.monotonic()
        exe.shutdown(cancel_futures=True)
        assert time.monotonic() - began < 10
    assert slurm_cluster.run(["squeue", "--noheader"]).stdout == ""
