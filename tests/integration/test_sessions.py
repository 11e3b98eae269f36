"""The process that submits may end: the tasks go on, and another process has their futures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import remoteexec
from remoteexec import (
    RemoteExecutor,
    TestClusterExecutor,
    errors,
    get_cache_data_queue,
    terminate_task_in_cache,
    terminate_tasks_in_cache,
)
from remoteexec.config.file import save_cluster
from remoteexec.config.model import ClusterConfig
from remoteexec.engine.cache import CachedInput, CacheWarning
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.rootless import SlurmCluster
from tests.integration.conftest import installed

pytestmark = pytest.mark.timeout(120)

SUBMITS = """
import os, sys, time
from pathlib import Path
from remoteexec import TestClusterExecutor

here = Path(sys.argv[1])

def count(path, seconds, value):
    import time
    with open(path, "a") as file:
        file.write(".")
    time.sleep(seconds)
    return value

def add(a, b):
    return a + b

exe = TestClusterExecutor(cache_directory=str(here / "root"), session=sys.argv[2] or None)
first = exe.submit(count, str(here / "ran"), 2.0, 20)
second = exe.submit(add, first, 1)
"""
LEAVES = SUBMITS + "exe.shutdown(wait=False)\n"
DIES = SUBMITS + "exe._driver.wait_sent(30.0)\nos.kill(os.getpid(), 9)\n"
RETURNS = SUBMITS + "print(first.result(60), second.result(60))\nexe.shutdown()\n"
LOOKS = """
import sys
from remoteexec import TestClusterExecutor
with TestClusterExecutor(cache_directory=sys.argv[1] + "/root", session=sys.argv[2]) as exe:
    futures = exe.futures()
    print([(future.task.function, future.result(60)) for future in futures])
"""


def script(code: str, *argv: object, returncode: int = 0) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, argv)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == returncode, done.stderr
    return done.stdout.strip()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.mark.parametrize(("leave", "code"), [(LEAVES, 0), (DIES, -signal.SIGKILL)], ids=["shutdown", "SIGKILL"])
def test_another_process_has_the_futures_of_a_named_session(here: Path, leave: str, code: int) -> None:
    script(leave, here, "sweep-3", returncode=code)

    assert script(LOOKS, here, "sweep-3") == "[('count', 20), ('add', 21)]"
    assert (here / "ran").read_text() == "."
    assert script(LOOKS, here, "sweep-3") == "[('count', 20), ('add', 21)]"  # and later, too


def test_futures_of_ended_tasks_are_done_at_once(here: Path) -> None:
    with TestClusterExecutor(cache_directory=here / "root", session="done") as exe:
        assert list(exe.map(abs, range(20))) == list(range(20))
        again = exe.futures()
        assert [future.task.state for future in again] == ["done"] * 20
    with TestClusterExecutor(cache_directory=here / "root", session="done") as exe:
        assert [future.done() for future in exe.futures()] == [True] * 20


@pytest.mark.parametrize(("leave", "code"), [(LEAVES, 0), (DIES, -signal.SIGKILL)], ids=["shutdown", "SIGKILL"])
def test_the_same_submits_with_the_same_cache_take_up_what_runs(here: Path, leave: str, code: int) -> None:
    script(leave, here, "", returncode=code)

    assert script(RETURNS, here, "") == "20 21"
    assert (here / "ran").read_text() == "."
    assert script(RETURNS, here, "") == "20 21"
    assert (here / "ran").read_text() == "."
    assert list((here / "root" / "cache").glob("*.running")) == []


def test_a_call_whose_session_was_removed_runs_again(here: Path) -> None:
    script(DIES, here, "", returncode=-signal.SIGKILL)
    time.sleep(3.0)
    for session in (here / "root" / "sessions").iterdir():
        subprocess.run(["rm", "-r", str(session)], check=True)

    assert script(RETURNS, here, "") == "20 21"
    assert (here / "ran").read_text() == ".."


def test_two_processes_work_in_one_session_at_the_same_time(here: Path) -> None:
    argv = [
        sys.executable,
        "-c",
        textwrap.dedent(RETURNS.replace("session=", "poll_s=0.5, session=")),
        str(here),
        "both",
    ]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=90)[0].strip() for process in both]

    assert said == ["20 21", "20 21"]
    ran = len((here / "ran").read_text())
    assert ran in (1, 2)  # 2: each submitted before the other had said that it did
    assert script(LOOKS, here, "both").count("('count', 20)") == ran


def test_calls_that_run_are_listed_with_their_status_and_ended_by_name(here: Path) -> None:
    root = here / "root"
    with TestClusterExecutor(cache_directory=root) as exe:
        running = exe.submit(sleep_and_tell, str(here / "told"), 60.0)
        waiting = exe.submit(max, running, 2)
        done = exe.submit(max, 3, 4)
        assert done.result(60) == 4
        deadline = time.monotonic() + 30.0
        while not running.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        found = {entry["status"]: entry for entry in get_cache_data_queue(root)}

        assert [found["finished"]["output"], found["running"]["input_args"], found["pending"]["input_args"]] == [
            4, (str(here / "told"), 60.0), (CachedInput(running.cache_key), 2)
        ]  # fmt: skip
        assert found["running"]["queue_id"] == running.task.job
        terminate_task_in_cache(root, str(running.cache_key))
        with pytest.raises(errors.TaskLost, match="cancelled by its submitter"):
            running.result(60)
        with pytest.raises(errors.TaskLost):
            waiting.result(60)


def test_all_calls_that_a_dead_process_has_left_are_ended(here: Path) -> None:
    script(DIES.replace("2.0", "60.0"), here, "", returncode=-signal.SIGKILL)
    statuses = [entry["status"] for entry in get_cache_data_queue(here / "root")]
    assert set(statuses) <= {"running", "pending"}
    assert len(statuses) == 2

    terminate_tasks_in_cache(here / "root")
    assert get_cache_data_queue(here / "root") == []
    terminate_tasks_in_cache(here / "root")  # nothing is left to do


def test_a_running_task_is_ended_by_cancel(here: Path) -> None:
    with TestClusterExecutor(cache_directory=str(here / "root")) as exe:
        future = exe.submit(sleep_and_tell, str(here / "told"), 30.0)
        deadline = time.monotonic() + 30.0
        while not (here / "told").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        while not future.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        process = int((here / "told").read_text())
        assert (future.cancel(), future.cancelled()) == (True, True)
        while os.path.exists(f"/proc/{process}") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{process}")


GIVES_UP = """
import os, sys, time
from pathlib import Path
from remoteexec import TestClusterExecutor

def run(path):
    Path(path + ".partial").write_text(str(os.getpid()))
    os.rename(path + ".partial", path)
    time.sleep(300)

here = Path(sys.argv[1])
pilots = {"block_allocation": True, "max_workers": 1} if sys.argv[2] == "pilots" else {}
exe = TestClusterExecutor(cache_directory=here / "root", **pilots)
futures = [exe.submit(run, str(here / f"told-{n}")) for n in range(2)]
while not (futures[0].running() and (here / "told-0").exists()):
    time.sleep(0.05)
exe.shutdown(wait=False, cancel_futures=True)
"""


@pytest.mark.parametrize("kind", ["jobs", "pilots"])
def test_nothing_runs_on_after_a_shutdown_that_neither_waits_nor_leaves(here: Path, kind: str) -> None:
    script(GIVES_UP, here, kind)
    processes = [int(path.read_text()) for path in here.glob("told-?")]
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{process}") for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert processes
    assert [process for process in processes if os.path.exists(f"/proc/{process}")] == []
    assert get_cache_data_queue(here / "root") == []


def test_a_call_that_was_cancelled_runs_when_it_is_submitted_again(here: Path) -> None:
    with TestClusterExecutor(cache_directory=here / "root") as exe:
        for number in range(5):
            told = str(here / f"told-{number}")
            first = exe.submit(sleep_and_tell, told, 0.3)
            assert first.cancel()
            assert exe.submit(sleep_and_tell, told, 0.3).result(60) is None


def sleep_and_tell(path: str, seconds: float) -> None:
    partial = Path(path + ".partial")
    partial.write_text(str(os.getpid()))
    partial.rename(path)
    time.sleep(seconds)


def test_nothing_runs_where_the_graph_is_only_drawn(here: Path) -> None:
    with TestClusterExecutor(
        cache_directory=str(here / "root"),
        plot_dependency_graph_filename=here / "graph.svg",
        export_workflow_filename=here / "graph.json",
    ) as exe:
        one = exe.submit(sleep_and_tell, str(here / "told"), 0.0)
        two = exe.submit(max, one, 2)
        assert (one.result(1), two.result(1)) == (None, None)

    assert sorted(path.name for path in here.iterdir()) == ["graph.json", "graph.svg"]
    assert "sleep_and_tell" in (here / "graph.svg").read_text()


def test_the_graph_of_calls_that_ran_is_drawn_after(here: Path) -> None:
    with TestClusterExecutor(
        cache_directory=str(here / "root"), plot_dependency_graph="after", plot_dependency_graph_filename=here / "g.svg"
    ) as exe:
        assert exe.submit(max, exe.submit(min, 3, 4), 2).result(60) == 3

    assert "done" in (here / "g.svg").read_text()


def test_parameters_that_cannot_be_are_refused_with_their_rule(here: Path) -> None:
    def refused(**parameters: Any) -> str:
        with pytest.raises(ValueError) as caught:
            TestClusterExecutor(**parameters)
        return str(caught.value)

    assert refused(max_workers=0) == "max_workers must be greater than 0, not 0"
    assert refused(max_cores=-1) == "max_cores must be greater than 0, not -1"
    assert refused(session="../x").startswith("session='../x': letters, digits and . _ - only")
    assert refused(pmi_mode="pmi9") == "pmi_mode='pmi9': must be one of pmi1, pmi2, pmix"
    assert refused(pmi_mode="pmix", resource_dict={"pmi_mode": "pmi2"}) == (
        "pmi_mode='pmix', and resource_dict says 'pmi2': say it once"
    )
    with TestClusterExecutor(cache_directory=str(here / "root"), disable_dependencies=True) as exe:
        future = exe.submit(max, 1, 2)
        with pytest.raises(ValueError, match="disable_dependencies=True: pass its result"):
            exe.submit(max, future, 2)


def test_no_more_calls_than_max_workers_run_at_once(here: Path) -> None:
    with TestClusterExecutor(2, cache_directory=str(here / "root")) as exe:
        spans = list(exe.map(span, range(5)))

    most = max(sum(start <= at < end for start, end in spans) for at, _ in spans)
    assert most == 2


def span(_: int) -> tuple[float, float]:
    started = time.time()
    time.sleep(0.3)
    return started, time.time()


@pytest.fixture(scope="module")
def embedded(embedded_cluster: EmbeddedTestCluster) -> ClusterConfig:
    return installed(embedded_cluster, "left")


def test_calls_of_a_laptops_cache_are_listed_and_ended_on_their_cluster(
    embedded: ClusterConfig, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTEEXEC_CONFIG", str(here / "clusters.toml"))
    save_cluster(embedded)
    cache = here / "cache"
    exe = RemoteExecutor("left", cache_directory=cache)
    assert exe.submit(max, 3, 4).result(60) == 4
    running = exe.submit(time.sleep, 60.0)
    waiting = exe.submit(repr, running)
    deadline = time.monotonic() + 30.0
    while not running.running() and time.monotonic() < deadline:
        time.sleep(0.05)

    found = {entry["status"]: (entry["output"], entry["queue_id"] is None) for entry in get_cache_data_queue(cache)}
    assert found == {"finished": (4, False), "running": (None, False), "pending": (None, False)}
    save_cluster(replace(embedded, host="elsewhere"))
    told = r"calls that have not ended run where no entry .* leads: 2 on local 127\.0\.0\.1:.*remoteexec config add-"
    with pytest.warns(CacheWarning, match=told):
        assert [entry["status"] for entry in get_cache_data_queue(cache)] == ["finished"]
    with pytest.raises(errors.ConfigError, match=told):
        terminate_tasks_in_cache(cache)
    save_cluster(embedded)
    terminate_tasks_in_cache(cache)
    for future in (running, waiting):
        with pytest.raises(errors.TaskLost):
            future.result(30)
    exe.shutdown()
    assert [entry["status"] for entry in get_cache_data_queue(cache)] == ["finished"]


def test_calls_of_one_cache_and_another_root_are_listed_and_taken_up(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(here))
    with TestClusterExecutor() as exe:
        asked = {"cache_directory": here / "cache"}
        running = exe.submit(sleep_and_tell, str(here / "told"), 3.0, resource_dict=asked)
        deadline = time.monotonic() + 30.0
        while not (here / "told").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [entry["status"] for entry in get_cache_data_queue(here / "cache")] == ["running"]
        with TestClusterExecutor() as other:
            again = other.submit(sleep_and_tell, str(here / "told"), 3.0, resource_dict=asked)
            assert again.task.key == running.task.key
            assert (running.result(60), again.result(60)) == (None, None)


@pytest.fixture(scope="module")
def far(slurm_cluster: SlurmCluster) -> ClusterConfig:
    return installed(slurm_cluster, "sessions")


def test_a_laptop_comes_back_to_its_session(far: ClusterConfig) -> None:
    name = f"sweep-{os.getpid()}"
    exe = RemoteExecutor(far, session=name)
    first = exe.submit(time.sleep, 2.0)
    second = exe.submit(repr, first)
    exe.shutdown(wait=False)
    exe._driver.wait_sent(60.0)
    exe._driver._client.close()

    with RemoteExecutor(far, session=name) as again:
        futures = again.futures()
        assert [future.key for future in futures] == [first.key, second.key]
        assert [future.result(60) for future in futures] == [None, "None"]
    assert remoteexec.BaseExecutor in type(again).__mro__
