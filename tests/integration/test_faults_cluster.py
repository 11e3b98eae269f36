"""What can happen to a whole cluster, or to many jobs at once, on a real SLURM: power, preemption, disks, clocks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from remoteexec import Retry, errors
from remoteexec.config.model import ClusterConfig
from remoteexec_server.store.session import Claim, Job, JobTask, Session
from remoteexec_server.wire import header
from remoteexec_server.wire.messages import BurstId, TaskKey
from remoteexec_server.wire.resources import Resources
from tests.clusters.rootless import SlurmCluster
from tests.integration.conftest import installed
from tests.integration.faults import PROMPT_S, executions, outcome_within, placed, with_wrappers
from tests.integration.running import running
from tests.integration.test_faults_reasons import follow, hold, lost, record

pytestmark = pytest.mark.timeout(180)


def hold_at_first(path: str) -> str:
    """Stay, unless that was done before; then say which job this is."""
    if not Path(path).exists():
        hold(path)
    return os.environ["SLURM_JOB_ID"]


# ---- power ----


def test_the_whole_cluster_is_restarted_while_tasks_run_wait_and_are_queued(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    """With the login node, and so the gateway."""
    here = slurm_cluster.make_directory(f"power-{time.time_ns()}")
    small = {"memory_max": 0.2}
    with running(slurm_config) as exe:
        runs = exe.submit(hold, str(here / "runs"), resource_dict=small)
        again = exe.submit(hold_at_first, str(here / "again"), resource_dict={**small, "retries": Retry(1)})
        behind_runs, behind_again = exe.submit(follow, runs), exe.submit(follow, again)
        places = [placed(here / "runs"), placed(here / "again")]
        for node in slurm_cluster.nodes:
            slurm_cluster.drain(node)
        queued = [exe.submit(record, str(here / "lines"), n) for n in range(3)]
        behind_queued = exe.submit(sum, queued)
        assert exe._driver.wait_sent(20)
        slurm_cluster.cut_power()
        slurm_cluster.restore_power()
        exc = lost(outcome_within(runs, 60))
        assert (type(exc), exc.job) == (errors.TaskNodeFailure, places[0].job)
        assert behind_runs.exception(PROMPT_S) is exc
        assert again.result(60) == behind_again.result(60) != places[1].job
        assert behind_queued.result(60) == 3
    assert executions(here / "lines") == Counter(range(3))


def test_a_job_that_the_scheduler_starts_again_is_told_as_lost_and_its_task_runs_once(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    """As a controller does that has forgotten what it did last, and administrators do."""
    here = slurm_cluster.make_directory(f"requeue-{time.time_ns()}")
    with running(slurm_config) as exe:
        once = exe.submit(hold, str(here / "once"))
        again = exe.submit(hold_at_first, str(here / "again"), resource_dict={"retries": Retry(1)})
        places = [placed(here / "once"), placed(here / "again")]
        (here / "once").unlink()
        for place in places:
            slurm_cluster.run(["scontrol", "update", f"job={place.job}", "requeue=1"])
            slurm_cluster.run(["scontrol", "requeue", place.job])
        queue = ["squeue", "-h", "-o", "%t"]
        slurm_cluster.wait(lambda: slurm_cluster.run(queue).stdout == "PD\n" * 2, "they are not queued again")
        for place in places:
            slurm_cluster.run(["scontrol", "update", f"job={place.job}", "starttime=now"])  # else in two minutes
        exc = lost(outcome_within(once, 30))
        assert (type(exc), exc.job) == (errors.TaskNodeFailure, places[0].job)
        assert "The task itself is not to blame" in str(exc)
        assert again.result(30) != places[1].job
        assert not (here / "once").exists()


def test_a_runner_that_finds_its_own_jobs_claim_says_that_the_job_was_started_before(tmp_path: Path) -> None:
    session = Session.create(tmp_path, "s", (b"k" * 32).hex())
    directory = session.add_job(Job("rx-b-0", BurstId("b"), (JobTask(0, TaskKey("t")),), Resources()))
    assert session.claim(TaskKey("t"), Claim("77", "n1", 1, 0.0))
    argv = [sys.executable, str(Path(header.__file__).parent.parent), "runner", str(directory)]
    for job, ends in (("78", []), ("77", ["t.lost"])):  # 78: submitted twice in spite of all, the other has it
        environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": job}
        assert subprocess.run(argv, env=environment, check=True).returncode == 0
        assert session.ends(TaskKey("t"), 1) == ends
    loss = session.read_loss(TaskKey("t"))
    assert (loss.reason, loss.job, loss.node) == ("node_failure", "77", "n1")
    assert loss.message.startswith("the scheduler has started job 77 again: its first run, on n1, left no outcome")


# ---- somebody else's jobs, and hands ----


@pytest.mark.parametrize("partition", ["cheap", "again"], ids=["cancelled", "requeued"])
def test_a_task_that_makes_room_for_another_is_preempted_and_may_be_tried_again(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, partition: str
) -> None:
    here = slurm_cluster.make_directory(f"preempt-{time.time_ns()}")
    with running(slurm_config) as exe:
        given = {"partition": partition, "memory_max": 0.2}
        once = exe.submit(hold, str(here / "once"), resource_dict=given)
        again = exe.submit(hold_at_first, str(here / "again"), resource_dict={**given, "retries": Retry(1)})
        pending = exe.submit(follow, once)
        places = [placed(here / "once"), placed(here / "again")]
        urgent = ["sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        slurm_cluster.run(urgent)
        exc = lost(outcome_within(once, PROMPT_S))
        assert (type(exc), exc.reason, exc.job) == (errors.TaskPreempted, "preempted", places[0].job)
        assert pending.exception(PROMPT_S) is exc
        assert again.result(60) != places[1].job


COUNTED = 'echo "$(basename $0)" >>$state/asked; exec "$real" "$@"'


def test_fifty_jobs_that_are_cancelled_from_outside_are_told_soon_with_few_questions(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    counted = dict.fromkeys(("squeue", "scontrol", "sacct"), COUNTED)
    config, state = with_wrappers(slurm_cluster, slurm_config, **counted)
    with running(config) as exe:
        futures = [
            exe.submit(hold, str(state / f"place-{n}"), resource_dict={"environment": {"N": str(n)}}) for n in range(50)
        ]
        assert exe._driver.wait_sent(60)
        slurm_cluster.wait(lambda: len(list(state.glob("place-*"))) >= 8, "they do not start")
        before = len((state / "asked").read_text().split())
        slurm_cluster.cancel_all()
        began = time.monotonic()
        assert not wait(futures, PROMPT_S).not_done
        took = time.monotonic() - began
        asked = Counter((state / "asked").read_text().split()[before:])
        assert Counter(type(future.exception()) for future in futures) == {errors.TaskCancelled: 50}
        assert len({lost(future.exception()).job for future in futures}) == 50
        assert asked["squeue"] <= took + 2
        assert asked["scontrol"] + asked["sacct"] <= 21, asked


# ---- logs and disks ----


def shout(gigabytes: int, end: int) -> None:
    """Fill the log, and end the process."""
    block = (b"x" * 99 + b"\n") * 84_000
    for _ in range(gigabytes * 128):
        os.write(1, block)
    for line in range(30):
        os.write(2, b"line %d\n" % line)
    os._exit(end)


def test_a_log_of_a_gigabyte_is_told_by_its_last_lines_and_its_size_and_fills_no_memory(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    with running(slurm_config) as exe:
        assert exe.submit(follow, 1).result(20) == 1
        before = peak_bytes()
        assert len(before) > 1
        exc = lost(outcome_within(exe.submit(shout, 1, 3), 60))
        assert exc.log_path is not None
        size = Path(exc.log_path).stat().st_size
        Path(exc.log_path).unlink()
        assert (type(exc), size > 1e9) == (errors.TaskKilled, True)
        assert exc.log_tail.splitlines() == [f"line {n}" for n in range(10, 30)]
        assert "log is " in str(exc)
        assert "1.1 GB" in str(exc)
        assert len(str(exc)) < 4000
        assert max(after - before.get(pid, 0) for pid, after in peak_bytes().items() if pid in before) < 30e6


def peak_bytes() -> dict[str, int]:
    """The most memory that this process and the gateways have ever had, by process."""
    found: dict[str, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = path.name == str(os.getpid()) or b"gateway" in (path / "cmdline").read_bytes()
            lines = (path / "status").read_text().splitlines()
        except OSError:
            continue
        if ours:
            found[path.name] = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return found


@pytest.fixture
def small_disk(slurm_cluster: SlurmCluster) -> Iterator[Path]:
    """A file system of 6 MB that belongs to the cluster's user; our side takes half of it."""
    path = slurm_cluster.make_directory(f"disk-{time.time_ns()}")
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    options = f"size=6m,mode=700,uid={slurm_cluster.account.uid},gid={slurm_cluster.account.gid}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def wait_for(path: str) -> str:
    """Say that this runs, and wait for a file."""
    Path(f"{path}.runs").touch()
    while not Path(path).exists():
        time.sleep(0.05)
    return path


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


def test_a_store_that_is_full_for_a_while_loses_what_ends_then_and_nothing_else(
    slurm_cluster: SlurmCluster, small_disk: Path
) -> None:
    config = installed(slurm_cluster, "small", str(small_disk / "root"))
    here = slurm_cluster.make_directory(f"full-{time.time_ns()}")
    go, later = str(here / "go"), str(here / "later")
    with running(config) as exe:
        once = exe.submit(wait_for, go)
        again = exe.submit(wait_for, go, resource_dict={"retries": Retry(9, on={"store"})})
        goes_on = exe.submit(wait_for, later)
        pending, pending_again = exe.submit(follow, once), exe.submit(follow, again)
        slurm_cluster.wait(lambda: len(list(here.glob("*.runs"))) == 2, "they do not start")
        while not all(future.running() for future in (once, again, goes_on)):
            time.sleep(0.05)
        fill(small_disk / "filler")
        slurm_cluster.run(["touch", go])
        exc = lost(outcome_within(once, 30))
        assert (type(exc), exc.reason) == (errors.TaskStoreUnreachable, "store")
        assert pending.exception(30) is exc
        assert type(exe.submit(abs, -1).exception(30)) is errors.StoreError
        (small_disk / "filler").unlink()
        assert again.result(60) == pending_again.result(60) == go
        slurm_cluster.run(["touch", later])
        assert goes_on.result(30) == later
        assert exe.submit(abs, -2).result(30) == 2
        assert exe.submit(follow, once).exception(30) is exc


# ---- clocks ----


@pytest.fixture(scope="module")
def skewed(slurm_cluster: SlurmCluster) -> Path:
    """A library that changes the time of day of processes."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to make a node's clock wrong with")
    library = slurm_cluster.directory / "skewed.so"
    source = Path(__file__).parent.parent / "clusters" / "skewed.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


def crash_once(path: str) -> float:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(3)
    return time.time()


def now_after(earlier: object, seconds: float = 0.0) -> float:
    time.sleep(seconds)
    return time.time()


def has_at_most(seconds: float) -> bool:
    from remoteexec_server import slurm_clock

    left_s = slurm_clock.left_s(0.0)
    return left_s is not None and 0 < left_s <= seconds


def test_nodes_whose_clocks_are_two_minutes_wrong_lose_nothing(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, skewed: Path
) -> None:
    here = slurm_cluster.make_directory(f"skew-{time.time_ns()}")

    def on(skew_s: int) -> dict[str, str]:
        environment = f"export LD_PRELOAD={skewed} CLOCK_SKEW_S={skew_s}"
        return {"submission_template": f"#!/bin/bash\n#SBATCH --time=2\n{environment}\nexec {{{{ command }}}}\n"}

    with running(slurm_config) as exe:
        pairs, left = [], []
        for skew_s in (120, -120):
            given = {**on(skew_s), "retries": Retry(1, on={"killed"})}
            first = exe.submit(crash_once, str(here / f"crashed{skew_s}"), resource_dict=given)
            left.append(exe.submit(has_at_most, 120, resource_dict=on(skew_s)))
            pairs += [(skew_s, first), (-skew_s, exe.submit(now_after, first, resource_dict=on(-skew_s)))]
        assert [round((future.result(60) - time.time()) / 120) * 120 for _, future in pairs] == [s for s, _ in pairs]
        assert [future.result(60) for future in left] == [True, True]
    pilots = {"block_allocation": True, "max_workers": 1}
    with running(slurm_config, **pilots, resource_dict={**on(120), "run_time_max": 100}) as exe:
        ends = [future.result(60) for future in [exe.submit(now_after, n, 0.6) for n in range(4)]]
        assert {round((end - time.time()) / 120) * 120 for end in ends} == {120}
        jobs = Path(slurm_config.root, "sessions", exe.session, "jobs")
        assert len(list(jobs.iterdir())) == 1  # the pilot does not believe that its time is up
