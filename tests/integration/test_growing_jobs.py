"""Graphs that grow on clusters: tasks that are jobs submit jobs, and return their futures, with nobody logged in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remoteexec import (
    TestClusterExecutor,
    current_executor,
)
from remoteexec.config.model import ClusterConfig
from remoteexec_server.batch import slurm_script
from remoteexec_server.store import hdf5, links
from remoteexec_server.store.session import Session
from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import TaskKey
from tests.clusters.rootless import SlurmCluster
from tests.integration.running import running

pytestmark = pytest.mark.timeout(180)
CHECKOUT = Path(__file__).parent.parent.parent
WAIT_S = 90.0


def near(directory: Path, resources: dict[str, Any] | None = None) -> TestClusterExecutor:
    directory.chmod(0o700)
    return TestClusterExecutor(cache_directory=str(directory / "root"), resource_dict=resources, poll_s=0.5)


def add(a: Any, b: Any) -> Any:
    return a + b


def with_resources(resources: dict[str, Any]) -> Any:
    return current_executor().submit(os.getenv, "OMP_NUM_THREADS", resource_dict=resources)


def test_children_have_resources_of_their_own_and_the_executors_where_they_say_nothing(tmp_path: Path) -> None:
    with near(tmp_path, {"environment": {"OF": "all"}}) as exe:
        assert exe.submit(with_resources, {"threads_per_core": 2}).result(WAIT_S) == "2"
        assert exe.submit(submits_getenv, "OF", resource_dict={"environment": {"OF": "parent"}}).result(WAIT_S) == "all"
        with pytest.raises(ValueError, match="threads_per_core=0: must be a whole number"):
            exe.submit(with_resources_waiting, {"threads_per_core": 0}).result(WAIT_S)


def submits_getenv(name: str) -> Any:
    return current_executor().submit(os.getenv, name)


def with_resources_waiting(resources: dict[str, Any]) -> Any:
    return current_executor().submit(os.getenv, "OMP_NUM_THREADS", resource_dict=resources).result()


def not_waited_for(path: str) -> str:
    current_executor().submit(late, path)
    return "gone"


def late(path: str) -> None:
    time.sleep(1.0)
    Path(path).write_text("written")


def test_children_nobody_waits_for_run_and_their_files_stay_until_then(tmp_path: Path) -> None:
    path = tmp_path / "late"
    with near(tmp_path) as exe:
        assert exe.submit(not_waited_for, str(path)).result(WAIT_S) == "gone"
    assert eventually(lambda: path.exists() and path.read_text() == "written")


def eventually(true: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What it returns as soon as that is true, or in the end."""
    deadline = time.monotonic() + timeout_s
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def forked() -> str:
    current_executor().submit(add, 1, 2).result()
    pid = os.fork()
    if pid == 0:
        try:
            current_executor()
        except RuntimeError as exc:
            os._exit("forked" in str(exc))
        os._exit(2)
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def test_a_process_that_the_task_has_forked_cannot_submit(tmp_path: Path) -> None:
    with near(tmp_path) as exe:
        assert exe.submit(forked).result(WAIT_S) == "1"


def slow(value: int) -> int:
    time.sleep(1.0)
    return value


def killed_gateway() -> list[int]:
    exe = current_executor()
    first = exe.submit(add, 1, 1)
    second = exe.submit(add, exe.submit(slow, 3), 1)
    first.result()
    growth: Any = first.growth
    os.kill(growth._process.pid, signal.SIGKILL)
    third = exe.submit(add, second, 1)
    return [first.result(), second.result(), third.result()]


def test_a_gateway_that_dies_has_a_successor(tmp_path: Path) -> None:
    with near(tmp_path) as exe:
        assert exe.submit(killed_gateway).result(WAIT_S) == [2, 4, 5]


@pytest.mark.slurm
def test_what_a_compute_node_cannot_submit_a_service_on_the_login_node_does(slurm_config: ClusterConfig) -> None:
    template = slurm_script.TEMPLATE.replace("exec {{", "export PATH=/nowhere\nexec {{")
    with running(slurm_config) as exe:
        parent = exe.submit(submits_getenv, "HOME", resource_dict={"submission_template": template})
        after = exe.submit(add, parent, "!")
        assert after.result(WAIT_S) == f"{parent.result(WAIT_S)}!"
        logs = Path(slurm_config.root, "sessions", exe.session, "jobs").glob("*/*.log")
        said = "".join(path.read_text() for path in logs)
    assert "1 tasks wait in the store until a service of the session can submit them" in said


# ---- with nobody logged in ----

DIES = """
import os, sys, time
from remoteexec import {executor}, current_executor

def add(a, b):
    return a + b

def fib(n):
    if n < 2:
        return n
    exe = current_executor()
    return exe.submit(add, exe.submit(fib, n - 1), exe.submit(fib, n - 2))

def wait(path):
    open(path, "w").close()
    while os.path.exists(path):
        time.sleep(0.05)

def late(n, path):
    wait(path)
    return current_executor().submit(fib, n)

def wrong(path):
    wait(path)
    raise KeyError(path)

exe = {executor}(cache_directory=sys.argv[1] + "/root", session="alone")
if sys.argv[2] == "grows":
    first = exe.submit(late, 3, sys.argv[1] + "/started")
    second = exe.submit(add, first, 100)
    third = exe.submit(add, second, second)
else:
    last = exe.submit(wrong, sys.argv[1] + "/started")
    for _ in range(4):
        last = exe.submit(add, last, 1)
exe._driver.wait_sent(30.0)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(params=["TestClusterExecutor", pytest.param("SlurmClusterExecutor", marks=pytest.mark.slurm)])
def alone(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Session]:
    """Starts a process that submits and is killed; then the store is all there is."""
    code = textwrap.dedent(DIES).replace("{executor}", request.param)
    if request.param == "TestClusterExecutor":
        tmp_path.chmod(0o700)

        def near(what: str) -> Session:
            done = subprocess.run([sys.executable, "-c", code, str(tmp_path), what], timeout=100, check=False)
            assert done.returncode == -signal.SIGKILL
            return Session(tmp_path / "root" / "sessions" / "alone")

        return near
    cluster: SlurmCluster = request.getfixturevalue("slurm_cluster")
    environment = ["env", "PYTHONDONTWRITEBYTECODE=1", f"PYTHONPATH={CHECKOUT}:{CHECKOUT}/server_side"]

    def far(what: str) -> Session:
        home = cluster.make_directory(f"alone-{what}")
        done = cluster.run([*environment, str(cluster.python), "-c", code, str(home), what], check=False, timeout_s=100)
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        return Session(home / "root" / "sessions" / "alone")

    return far


def client(session: Session) -> str:
    """Whose burst was the first."""
    return min(session.manifests(), key=lambda path: path.stat().st_mtime_ns).name.split("-")[0]


def ends(session: Session) -> dict[str, str]:
    """How each task of the first client has ended."""
    prefix = f"{client(session)}-"
    stems = (name.rpartition(".") for name in os.listdir(session.outcomes) if name.startswith(prefix))
    return {stem.removeprefix(prefix): suffix for stem, _, suffix in stems if suffix != "running"}


def value(session: Session, task: str) -> Any:
    """The result of a task of the first client, found by following links."""
    end = links.followed(session, TaskKey(f"{client(session)}-{task}"), os.listdir(session.outcomes))
    outcome = hdf5.read_outcome(session.outcome(end).read_bytes(), end, session.key)
    assert outcome.value is not None
    return payload.loads(outcome.value.data, outcome.value.buffers)


def started(session: Session) -> Path:
    """Made by the first task, which ends when it is gone."""
    return session.path.parent.parent.parent / "started"


def go_on(session: Session) -> None:
    """Let the first task end, now that its client is gone."""
    assert eventually(started(session).exists)
    started(session).unlink()


def test_a_graph_grows_to_its_end_after_its_client_was_killed(alone: Callable[[str], Session]) -> None:
    session = alone("grows")
    go_on(session)

    assert eventually(lambda: ends(session) == {"t1": "link", "t2": "h5", "t3": "h5"}), ends(session)
    assert (value(session, "t1"), value(session, "t2"), value(session, "t3")) == (2, 102, 204)


def test_a_failure_frees_all_dependants_jobs_within_seconds(
    alone: Callable[[str], Session], request: pytest.FixtureRequest
) -> None:
    session = alone("fails")
    cluster: SlurmCluster | None = None
    if "SlurmClusterExecutor" in request.node.name:
        cluster = request.getfixturevalue("slurm_cluster")
        assert eventually(started(session).exists)
        assert sorted(queue(cluster)) == ["PD Dependency"] * 4 + ["R None"]
    go_on(session)
    began = time.monotonic()
    expected = {"t1": "h5", "t2": "lost", "t3": "lost", "t4": "lost", "t5": "lost"}
    assert eventually(lambda: ends(session) == expected), ends(session)
    losses = [session.read_loss(TaskKey(f"{client(session)}-t{n}")) for n in range(2, 6)]
    assert [(loss.reason, loss.upstream) for loss in losses] == [
        ("upstream", f"{client(session)}-t{n}") for n in range(1, 5)
    ]
    assert cluster is None or eventually(lambda: not queue(cluster))
    assert time.monotonic() - began < 30


def queue(cluster: SlurmCluster) -> list[str]:
    """State and reason of every job."""
    return cluster.run(["squeue", "--me", "-h", "-o", "%t %r"]).stdout.splitlines()
