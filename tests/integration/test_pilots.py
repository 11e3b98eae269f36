"""Tasks in pilots on a real SLURM: many of them, in graphs, with workers and pilots that die under them."""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from remoteexec import TestClusterExecutor, errors, worker_id
from remoteexec.config.model import ClusterConfig
from remoteexec.resources import ResourceError
from remoteexec_server.pilot import aside
from remoteexec_server.store import hdf5
from remoteexec_server.store.crew import Beat, CrewStore, Spec
from remoteexec_server.store.outcomes import Outcomes, log_path
from remoteexec_server.store.segments import Kind, LogWriter
from remoteexec_server.store.session import Session
from remoteexec_server.store.tickets import Piece, Ticket
from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import BurstId, Pilots, TaskKey
from remoteexec_server.wire.resources import Resources
from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import PROMPT_S, Place, outcome_within, placed
from tests.integration.pool_tools import alive
from tests.integration.running import running

MANY = 2_000
CHECKOUT = Path(__file__).parent.parent.parent


def same(value: Any) -> Any:
    return value


def add(a: int, b: int) -> int:
    return a + b


def total(values: list[int]) -> int:
    return sum(values)


def fail(text: str) -> None:
    raise KeyError(text)


def who() -> tuple[str, int, int | None]:
    return os.environ["SLURM_JOB_ID"], os.getpid(), worker_id()


def nap(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def hold(path: str) -> None:
    """Say where this runs, and stay."""
    partial = Path(f"{path}.new")
    node = os.environ["SLURMD_NODENAME"]
    partial.write_text(json.dumps([os.environ["SLURM_JOB_ID"], node, os.getpid(), os.getppid()]))
    partial.rename(path)
    time.sleep(100)
    raise AssertionError("nobody ended this task")


def end_self(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGSEGV)


def session_of(config: ClusterConfig) -> Path:
    """The newest session."""
    return max((Path(str(config.root)) / "sessions").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def tickets_of(session: Path) -> list[Path]:
    """Tickets that nobody has taken, when there are some."""
    deadline = time.monotonic() + 20
    while not (found := sorted(path for path in session.glob("crews/*/tickets/*") if path.name[0] != ".")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_many_tasks_through_a_few_pilots_leave_few_files(slurm_config: ClusterConfig) -> None:
    with running(slurm_config, block_allocation=True, max_workers=4) as exe:
        futures = [exe.submit(add, n, 1) for n in range(MANY)]
        assert [future.result(60) for future in futures] == list(range(1, MANY + 1))
        session = session_of(slurm_config)
        assert len(list(session.rglob("*"))) <= 200
        assert 1 <= len(list((session / "jobs").iterdir())) <= 4
        workers = {(future.task.job, future.task.pid) for future in futures}
        assert 1 <= len(workers) <= 4
    deadline = time.monotonic() + 10
    while session.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not session.exists()


def test_the_job_script_of_a_call_is_that_of_the_pilot_that_would_run_it(slurm_config: ClusterConfig) -> None:
    asked = {"run_time_max": 3600, "job_name": "crew"}
    with running(slurm_config, block_allocation=True, max_workers=1, resource_dict=asked) as exe:
        shown = exe.job_script(add, 1, 2, resource_dict={"run_time_max": 60})
        exe.submit(add, 1, 2).result(30)
        submitted = next(session_of(slurm_config).glob("jobs/*/run_queue.sh")).read_text()
        with pytest.raises(ResourceError, match="cores=2: a pilot of this executor has room for 1 MPI ranks"):
            exe.job_script(add, 1, 2, resource_dict={"cores": 2})

    assert shown == re.sub(r"rx-[0-9a-f]+-p[0-9]+", "rx-preview-0", submitted)
    assert "--nodes=1" in shown
    assert "--signal=B:USR1@60" in shown


def test_graphs_run_in_pilots(slurm_config: ClusterConfig) -> None:
    with running(slurm_config, block_allocation=True, max_workers=2) as exe:
        chain = exe.submit(same, 0)
        for _ in range(30):
            chain = exe.submit(add, chain, 1)
        fan = [exe.submit(operator.mul, n, chain) for n in range(20)]
        tree = exe.submit(total, fan)
        late = exe.submit(add, tree, tree)
        assert (chain.result(60), tree.result(60), late.result(60)) == (30, 5700, 11400)
        broken = exe.submit(fail, "no")
        for _ in range(3):
            broken = exe.submit(same, [broken])
        assert isinstance(outcome_within(broken, 20), KeyError)
        assert exe.submit(add, late, 1).result(20) == 11401


def test_init_function_runs_once_in_each_worker_and_fills_parameters(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    traces = slurm_cluster.make_directory(f"init-{time.time_ns()}")

    def init(executorlib_worker_id: int) -> Mapping[str, Any]:
        (traces / str(os.getpid())).touch()
        return {"offset": 40 + executorlib_worker_id}

    def shifted(x: int, offset: int, executorlib_worker_id: int) -> tuple[int, int]:
        return x + offset, executorlib_worker_id

    with running(slurm_config, block_allocation=True, max_workers=1, init_function=init) as exe:
        assert [exe.submit(shifted, 2).result(30), exe.submit(shifted, 3).result(30)] == [(42, 0), (43, 0)]
        assert exe.submit(shifted, 2, offset=1).result(30) == (3, 0)
        assert len(list(traces.iterdir())) == 1


def test_an_init_function_that_fails_is_the_error_of_every_task(slurm_config: ClusterConfig) -> None:
    def init() -> None:
        raise LookupError("no licence")

    with running(slurm_config, block_allocation=True, max_workers=1, init_function=init) as exe:
        found = [outcome_within(exe.submit(same, n), 30) for n in range(2)]
        assert [(type(exc), str(exc)) for exc in found] == [(LookupError, "no licence")] * 2


@pytest.mark.parametrize("how", ["exit", "crash"])
def test_a_task_that_ends_its_worker_is_lost_and_no_other(slurm_config: ClusterConfig, how: str) -> None:
    with running(slurm_config, block_allocation=True, max_workers=1) as exe:
        before = exe.submit(who).result(30)
        futures = [exe.submit(same, n) for n in range(5)]
        bad = exe.submit(end_self, how)
        pending = exe.submit(same, bad)
        more = [exe.submit(same, n) for n in range(5)]
        exc = outcome_within(bad, 20)
        assert isinstance(exc, errors.TaskKilled)
        assert (exc.exit_code, exc.signal) == ((7, None) if how == "exit" else (None, signal.SIGSEGV))
        assert outcome_within(pending, 20) is exc
        assert [future.result(20) for future in (*futures, *more)] == [*range(5), *range(5)]
        after = exe.submit(who).result(30)
        assert (after[0], after[1] != before[1], after[2]) == (before[0], True, 0)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda cluster, place: cluster.run(["scancel", place.job]), errors.TaskCancelled),
        (lambda cluster, place: cluster.kill_node(place.node), errors.TaskNodeFailure),
    ],
    ids=["scancel", "node dies"],
)
def test_a_pilot_that_dies_loses_what_it_runs_and_the_rest_goes_on_elsewhere(
    slurm_cluster: SlurmCluster,
    slurm_config: ClusterConfig,
    end: Callable[[SlurmCluster, Place], Any],
    kind: type[errors.TaskLost],
) -> None:
    path = slurm_cluster.make_directory(f"pilot-{time.time_ns()}") / "place"
    with running(slurm_config, block_allocation=True, max_workers=1) as exe:
        futures = [exe.submit(hold, str(path)), *(exe.submit(same, n) for n in range(20))]
        pending = exe.submit(same, futures[0])
        place = placed(path)
        end(slurm_cluster, place)
        exc = outcome_within(futures[0], PROMPT_S)
        assert isinstance(exc, errors.TaskLost)
        assert (type(exc), exc.job, exc.node) == (kind, place.job, place.node)
        assert outcome_within(pending, PROMPT_S) is exc
        assert [future.result(30) for future in futures[1:]] == list(range(20))


def test_a_running_task_is_cancelled_and_its_pilot_goes_on(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"cancel-{time.time_ns()}") / "place"
    with running(slurm_config, block_allocation=True, max_workers=1) as exe:
        future = exe.submit(hold, str(path))
        behind = [exe.submit(same, n) for n in range(3)]
        place = placed(path)
        assert future.cancel()
        assert [each.result(20) for each in behind] == [0, 1, 2]
        assert exe.submit(who).result(20)[0] == place.job
        with pytest.raises(ProcessLookupError):
            os.kill(place.pid, 0)


def test_long_tasks_are_shared_between_pilots(slurm_config: ClusterConfig) -> None:
    with running(slurm_config, block_allocation=True, max_workers=4) as exe:
        list(exe.map(nap, [0.2] * 4))  # all pilots are there
        began = time.monotonic()
        futures = [exe.submit(nap, 1.0, n) for n in range(8)]
        assert [future.result(30) for future in futures] == list(range(8))
        assert time.monotonic() - began < 6.0, "one pilot ran most of them"


def test_tasks_that_ask_for_something_else_run_in_the_room_that_a_pilot_has(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    def threads() -> tuple[str, str, str]:
        return os.environ["SLURM_JOB_ID"], os.environ["OMP_NUM_THREADS"], os.environ.get("COLOUR", "")

    options: dict[str, Any] = {"resource_dict": {"threads_per_core": 2, "memory_max": 0.5, "run_time_max": 600}}
    with running(slurm_config, block_allocation=True, max_workers=1, **options) as exe:
        usual = exe.submit(threads)
        other = [
            exe.submit(threads, resource_dict={"threads_per_core": 1, "memory_max": 0.2, "environment": {"COLOUR": c}})
            for c in ("red", "blue")
        ]
        job = usual.result(30)[0]
        assert usual.result() == (job, "2", "")
        assert [future.result(30) for future in other] == [(job, "1", "red"), (job, "1", "blue")]
        late = exe.submit(nap, 60, resource_dict={"threads_per_core": 1, "run_time_max": 2})
        assert isinstance(outcome_within(late, 20), errors.TaskTimeout)
        for wish, words in (
            ({"threads_per_core": 3}, "3 CPUs"),
            ({"memory_max": 1}, "1 GB"),
            ({"partition": "other"}, "partition='other'"),
        ):
            with pytest.raises(ResourceError, match=words):
                exe.submit(same, 1, resource_dict=wish)


def test_mpi_functions_run_in_pilots(slurm_config: ClusterConfig) -> None:
    def ranks(x: int) -> tuple[str, int, int]:
        from mpi4py import MPI

        return os.environ["SLURM_JOB_ID"], MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(x)

    with running(slurm_config, block_allocation=True, max_workers=1, resource_dict={"cores": 2}) as exe:
        first = exe.submit(ranks, 4)
        then = exe.submit(operator.itemgetter(1), first, resource_dict={"cores": 1})
        found: Any = first.result(60)  # the list of what the ranks returned
        assert [rank[1:] for rank in found] == [(0, 8), (1, 8)]
        assert then.result(30) == found[1]
        again: Any = exe.submit(ranks, 5).result(60)
        assert again[0] == (found[0][0], 0, 10)


def test_pilots_end_when_idle_and_come_back_for_more(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> None:
    with running(slurm_config, block_allocation=True, max_workers=1, idle_time_s=0.5) as exe:
        first = exe.submit(who).result(30)[0]
        deadline = time.monotonic() + 15
        while first in slurm_cluster.run(["squeue", "-h", "-t", "R", "-o", "%A"]).stdout.split():
            assert time.monotonic() < deadline, "the pilot does not end"
            time.sleep(0.2)
        assert exe.submit(who).result(30)[0] != first


def test_a_damaged_ticket_costs_time_and_nothing_else(slurm_config: ClusterConfig) -> None:
    with running(slurm_config, block_allocation=True, max_workers=1) as exe:
        futures = [exe.submit(nap, 2.0, 0), *(exe.submit(same, n) for n in range(1, 9))]
        tickets_of(session_of(slurm_config))[-1].write_bytes(b'{"burst": 7}')
        assert [future.result(40) for future in futures] == list(range(9))


def test_a_pilot_that_is_warned_hands_over_to_another(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> None:
    options: dict[str, Any] = {"resource_dict": {"run_time_max": 900}}
    with running(slurm_config, block_allocation=True, max_workers=1, **options) as exe:
        futures = [exe.submit(nap_and_say, 0.3) for _ in range(20)]
        first = futures[0].result(30)
        slurm_cluster.run(["scancel", "--signal=USR1", "--batch", first])
        jobs = [future.result(60) for future in futures]
        assert set(jobs) == {first, jobs[-1]}
        assert jobs[-1] != first
        (script,) = session_of(slurm_config).glob("jobs/*-p0/run_queue.sh")
        assert "--signal=B:USR1@60" in script.read_text()


def nap_and_say(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ.get("SLURM_JOB_ID") or os.environ["REMOTEEXEC_JOB_ID"]


def test_pilots_follow_each_other_before_their_time_is_up_and_nothing_is_lost(tmp_root: Path) -> None:
    options: dict[str, Any] = {"resource_dict": {"run_time_max": 6}, "block_allocation": True, "max_workers": 1}
    with TestClusterExecutor(cache_directory=str(tmp_root), **options) as exe:
        futures = [exe.submit(nap_and_say, 0.5 + n / 1e6) for n in range(24)]  # not the same call
        jobs = [future.result(60) for future in futures]
        assert 3 <= len(set(jobs)) <= 6


SCRIPT = """
import os, sys, time
from remoteexec import SlurmClusterExecutor

def nap(n):
    import time
    time.sleep(0.1)
    return n

def total(values):
    return sum(values)

exe = SlurmClusterExecutor(block_allocation=True, max_workers=2, resource_dict={"run_time_max": 600})
futures = [exe.submit(nap, n) for n in range(100)]
last = exe.submit(total, futures)
futures[0].result()
print(exe._driver._name, last.key, sys.argv[1], flush=True)
os.kill(os.getpid(), 9)
"""


def test_pilots_finish_everything_with_nobody_logged_in(slurm_cluster: SlurmCluster) -> None:
    client = slurm_cluster.make_directory("lonely")
    for package in ("remoteexec", "server_side/remoteexec_server"):
        shutil.copytree(
            CHECKOUT / package, client / Path(package).name, ignore=shutil.ignore_patterns("__pycache__")
        )  # the cluster's user may not be able to read the checkout
    (client / "script.py").write_text(SCRIPT)
    subprocess.run(["chmod", "-R", "a+rX", client], check=True)
    argv = ["env", f"PYTHONPATH={client}", str(slurm_cluster.python), str(client / "script.py"), "x"]
    done = slurm_cluster.run(argv, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    name, last, _ = done.stdout.split()
    session = Session(slurm_cluster.home / ".remoteexec" / "sessions" / f"s-{name}")
    outcomes = Outcomes(session)
    deadline = time.monotonic() + 40
    while not outcomes.ended(TaskKey(last)):
        assert time.monotonic() < deadline, "nobody goes on"
        time.sleep(0.2)
        outcomes.look()
    outcome = hdf5.read_outcome(outcomes.outcome(TaskKey(last)), TaskKey(last), session.key)
    assert outcome.value is not None
    assert payload.loads(outcome.value.data) == sum(range(100))


@pytest.mark.parametrize("alone", [False, True], ids=["with a service", "with nobody logged in"])
def test_a_pilot_sees_to_the_tickets_of_one_that_has_fallen_silent(tmp_root: Path, alone: bool) -> None:
    """And submits another in its place, unless there is a service to do so."""
    tmp_root.mkdir(mode=0o700)
    session = Session.create(tmp_root, "s-1", "0f" * 32)
    store = CrewStore(session, "c")
    store.create(Spec(Pilots(2, Resources()), ("true",), "local", 90.0), b"")
    pieces = tuple(Piece(n, TaskKey(f"t{n}")) for n in range(3))
    store.add([Ticket(BurstId("c-1"), pieces)], 0)
    for pilot, job in (("rx-c-p0-0", "7"), ("rx-c-p1-0", "8")):
        store.join(pilot)
        store.beat(pilot, Beat(job, "n1", 99, 1.0))
    assert store.take("rx-c-p0-0", store.tickets()[0])
    log = LogWriter(Path(log_path(session, "rx-c-p0-0-w0")))
    log.append(Kind.STARTED, TaskKey("t0"), b"{}")
    log.close()
    path = store.path / "pilots" / "rx-c-p0-0"
    if not alone:
        session.beat("service")

    aside.look_out(store, "rx-c-p1-0")
    aside.wait_for_children()
    assert store.tickets() == []  # it may be busy
    os.utime(path, (time.time() - 150, time.time() - 150))
    aside.look_out(store, "rx-c-p1-0")
    aside.wait_for_children()

    outcomes = Outcomes(session)
    assert outcomes.look() == {"t0.running", "t0.lost"}
    assert "job 7 ended (GONE)" in outcomes.loss(TaskKey("t0")).message
    (name,) = store.tickets()
    assert store.read(name) == Ticket(BurstId("c-1"), pieces[1:])
    assert store.members() == ["rx-c-p1-0"]
    assert os.listdir(session.path / "jobs") == (["rx-c-p0"] if alone else [])


def test_a_task_that_outlasts_its_pilot_is_lost_to_the_time_limit_and_no_other(tmp_root: Path) -> None:
    options: dict[str, Any] = {"resource_dict": {"run_time_max": 4}, "block_allocation": True, "max_workers": 1}
    with TestClusterExecutor(cache_directory=str(tmp_root), **options) as exe:
        late = exe.submit(nap, 60.0)
        others = [exe.submit(same, n) for n in range(10)]
        assert [future.result(60) for future in others] == list(range(10))
        assert isinstance(outcome_within(late, 30), errors.TaskTimeout)


def test_a_pilot_that_is_killed_takes_its_workers_along(tmp_root: Path) -> None:
    with TestClusterExecutor(cache_directory=str(tmp_root), block_allocation=True, max_workers=1) as exe:
        path = tmp_root.parent / "place"
        future = exe.submit(stay, str(path))
        others = [exe.submit(same, n) for n in range(10)]
        end = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        pid, parent = json.loads(path.read_text())
        os.kill(parent, signal.SIGKILL)
        exc = outcome_within(future, 20)
        assert isinstance(exc, errors.TaskKilled)
        assert exc.signal == signal.SIGKILL
        assert [other.result(30) for other in others] == list(range(10))
        assert not alive(pid)


def stay(path: str) -> None:
    Path(f"{path}.new").write_text(json.dumps([os.getpid(), os.getppid()]))
    Path(f"{path}.new").rename(path)
    time.sleep(100)
