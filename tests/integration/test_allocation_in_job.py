"""SlurmJobExecutor in a task that is a job: of RemoteExecutor, and of SlurmClusterExecutor on the login node."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from remoteexec.config.model import ClusterConfig
from tests.clusters.rootless import SlurmCluster
from tests.integration.running import running

WHOLE_NODES = {"num_nodes": 2, "exclusive": True}


@pytest.fixture
def config(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> ClusterConfig:
    """The jobs need a Python that has remoteexec itself: this one."""
    probe = slurm_cluster.run([sys.executable, "-c", "import remoteexec, cryptography"], check=False)
    if probe.returncode != 0:
        pytest.skip(f"the cluster's user cannot import remoteexec by {sys.executable}: {probe.stderr[-200:]}")
    return replace(slurm_config, python=sys.executable)


def node(n: int) -> str:
    time.sleep(0.3)
    return os.environ["SLURMD_NODENAME"]


def spread(kept: bool, calls: int) -> tuple[list[tuple[str, int]], list[str]]:
    """What the job has, and where calls have run."""
    from remoteexec import SlurmJobExecutor

    with SlurmJobExecutor(block_allocation=kept) as exe:
        return [(node.name, node.cores) for node in exe.allocation.nodes], sorted(exe.map(node, range(calls)))


def grow(n: int) -> Any:
    """Children of the job's task, which are jobs, beside calls of its own allocation."""
    from remoteexec import SlurmJobExecutor, current_executor

    child = current_executor().submit(abs, -n)
    with SlurmJobExecutor() as exe:
        return sum(exe.map(abs, range(-n, 0))), child.result()


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_a_task_of_a_laptop_uses_all_nodes_of_its_job(config: ClusterConfig, kept: bool) -> None:
    with running(config, resource_dict=WHOLE_NODES) as exe:
        nodes, used = exe.submit(spread, kept, 8).result(60)
    assert (nodes, used) == ([("n1", 4), ("n2", 4)], ["n1"] * 4 + ["n2"] * 4)


def test_a_task_has_what_its_job_has_and_no_more(config: ClusterConfig) -> None:
    with running(config, resource_dict={"threads_per_core": 3}) as exe:
        [(name, cores)], used = exe.submit(spread, False, 3).result(60)
    assert (cores, used) == (3, [name] * 3)


def test_a_task_may_submit_jobs_and_use_its_own_allocation(config: ClusterConfig) -> None:
    with running(config) as exe:
        assert exe.submit(grow, 4).result(60) == (10, 4)


def test_a_worker_of_a_pilot_opens_one_too(config: ClusterConfig) -> None:
    with running(config, max_workers=1, resource_dict={"threads_per_core": 2}, block_allocation=True) as exe:
        [(name, cores)], used = exe.submit(spread, False, 2).result(60)
    assert (cores, used) == (2, [name] * 2)


@pytest.mark.usefixtures("config")
def test_a_task_of_a_login_node_uses_all_nodes_of_its_job(slurm_cluster: SlurmCluster) -> None:
    script = f"""
import os, time
from remoteexec import SlurmClusterExecutor, SlurmJobExecutor

def node(n):
    time.sleep(0.3)
    return os.environ["SLURMD_NODENAME"]

def spread():
    with SlurmJobExecutor() as exe:
        return sorted(exe.map(node, range(8)))

with SlurmClusterExecutor(resource_dict={WHOLE_NODES!r}, poll_s=1) as exe:
    print(exe.submit(spread).result(60))
"""
    file = slurm_cluster.make_directory("in-job") / "script.py"
    file.write_text(script, encoding="utf-8")
    environment = ["env", "PYTHONDONTWRITEBYTECODE=1", f"PATH={os.environ['PATH']}"]
    done = slurm_cluster.run([*environment, sys.executable, str(file)], timeout_s=90, check=False)
    assert done.stdout == f"{['n1'] * 4 + ['n2'] * 4}\n", done.stderr
