"""Scripts of the cluster's user on the login node, whose commands may be ours."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import executions

CHECKOUT = Path(__file__).parent.parent.parent

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


def login_node(cluster: SlurmCluster) -> LoginNode:
    """A directory of its own, with a copy of the package: the cluster's user may not be able to read the checkout."""
    home = cluster.make_directory(f"login-{time.time_ns()}")
    for package in ("remoteexec", "server_side/remoteexec_server"):
        shutil.copytree(CHECKOUT / package, home / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", home], check=True)
    return LoginNode(cluster, home)
