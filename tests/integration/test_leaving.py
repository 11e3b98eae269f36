"""Whoever submits may leave at once: limits hold with nobody logged in, and what stays in the store is said."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import executions

CHECKOUT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.timeout(180)

BEGIN = """
import os, sys, time
from remoteexec import SlurmClusterExecutor

def record(path, number, seconds):
    import time
    with open(path + ".times", "a") as file:
        file.write(f"{number} {time.time()} ")
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(f"{number}\\n")
    with open(path + ".times", "a") as file:
        file.write(f"{number} {time.time()} ")
    return number

def kinds(n):
    return {"run_time_max": 60 + 60 * n}

path = sys.argv[1]
"""
FEW_JOBS = """
exe = SlurmClusterExecutor(max_workers=1)
for n in range(3):
    exe.submit(record, path, n, 1.0, resource_dict=kinds(n))
exe.shutdown(wait=False)
"""
FEW_CORES = """
exe = SlurmClusterExecutor(max_cores=2)
for n in range(8):
    exe.submit(record, path, n, 0.5, resource_dict={**kinds(n // 4), "cores": 1})
exe.shutdown(wait=False)
"""
REFUSED = """
exe = SlurmClusterExecutor(session="sweep", max_workers=1)
for n in range(3):
    exe.submit(record, path, n, 0.5, resource_dict=kinds(n))
exe.shutdown(wait=False)
"""
AGAIN = """
exe = SlurmClusterExecutor(session="sweep", poll_s=1.0)
print([future.result(150) for future in exe.futures()])
"""
FULL_AFTER_ONE = """
if [ -e $state/full ] && ! mkdir $state/one 2>/dev/null; then
    echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2
    echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)' >&2
    exit 1
fi
exec "$real" "$@"
"""


@dataclass
class LoginNode:
    """Runs scripts as the cluster's user, whose `sbatch` may be one of ours."""

    cluster: SlurmCluster
    home: Path

    def wrap(self, command: str, text: str) -> Path:
        """Put a command before SLURM's own; returns where it keeps its state."""
        bin_directory, state = self.home / "bin", self.home / "state"
        for directory in (bin_directory, state):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o777)
        (bin_directory / command).write_text(f"#!/bin/bash\nstate={state}\nreal=/usr/bin/{command}\n{text}\n")
        (bin_directory / command).chmod(0o755)
        return state

    def run(self, script: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        """Seconds it took, and what it said."""
        (self.home / "script.py").write_text(BEGIN + script)
        (self.home / "script.py").chmod(0o644)
        began = time.monotonic()
        search = f"{self.home / 'bin'}:/usr/bin:/bin:/usr/local/bin"
        argv = ["env", f"PATH={search}", f"PYTHONPATH={self.home}", str(self.cluster.python), "-W", "error"]
        done = self.cluster.run([*argv, str(self.home / "script.py"), str(self.lines)], check=False, timeout_s=170)
        assert done.returncode == 0, done.stderr
        return time.monotonic() - began, done

    @property
    def lines(self) -> Path:
        """Where tasks write their numbers."""
        return self.home / "lines"

    def ran(self, count: int) -> None:
        """So many tasks run, each once."""
        self.cluster.wait(
            lambda: self.lines.exists() and executions(self.lines) == Counter(range(count)), "they do not run", 60
        )

    def most_at_once(self) -> int:
        """How many tasks ran at the same time."""
        words = Path(f"{self.lines}.times").read_text().split()
        times: dict[str, list[float]] = {}
        for number, at in zip(words[::2], words[1::2], strict=True):
            times.setdefault(number, []).append(float(at))
        return max(sum(a <= begin < b for a, b in times.values()) for begin, _ in times.values())


@pytest.fixture
def login_node(slurm_cluster: SlurmCluster) -> LoginNode:
    home = slurm_cluster.make_directory(f"leaving-{time.time_ns()}")
    for package in ("remoteexec", "server_side/remoteexec_server"):
        shutil.copytree(
            CHECKOUT / package, home / Path(package).name, ignore=shutil.ignore_patterns("__pycache__")
        )  # the cluster's user may not be able to read the checkout
    subprocess.run(["chmod", "-R", "a+rX", home], check=True)
    return LoginNode(slurm_cluster, home)


@pytest.mark.parametrize(("script", "count", "most"), [(FEW_JOBS, 3, 1), (FEW_CORES, 8, 2)], ids=["jobs", "cores"])
def test_what_waits_for_room_runs_with_nobody_logged_in_and_the_limit_holds(
    login_node: LoginNode, script: str, count: int, most: int
) -> None:
    took, done = login_node.run(script)
    assert (done.stdout, done.stderr) == ("", "")
    assert took < 20
    login_node.ran(count)
    assert login_node.most_at_once() == most


def test_what_a_quota_keeps_back_is_named_in_one_warning_and_submitted_when_the_session_is_used_again(
    login_node: LoginNode,
) -> None:
    state = login_node.wrap("sbatch", FULL_AFTER_ONE)
    (state / "full").touch()
    took, done = login_node.run(REFUSED)
    assert took < 20
    [warning] = done.stderr.splitlines()
    assert "QOSMaxSubmitJobPerUserLimit" in warning
    assert "; 2 tasks stay in the store until somebody uses session='sweep' again" in warning
    (state / "full").unlink()
    _, done = login_node.run(AGAIN)
    assert done.stdout == "[0, 1, 2]\n"
    login_node.ran(3)
