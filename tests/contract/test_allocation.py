"""Graphs that grow, over SlurmJobExecutor: the suite of SingleNodeExecutor once more, inside `salloc`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.clusters.rootless import SlurmCluster

CHECKOUT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(200)
def test_graphs_grow_across_nodes(slurm_cluster: SlurmCluster) -> None:
    file = Path(__file__).with_name("test_growing.py")
    probe = slurm_cluster.run([sys.executable, "-c", f"open({str(file)!r})"], check=False)
    if probe.returncode != 0:
        pytest.skip(f"the cluster's user cannot use {sys.executable} or read {CHECKOUT}: {probe.stderr[-200:]}")
    home = slurm_cluster.make_directory("growing")
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "server_side"), os.environ.get("PYTHONPATH", "")])
    plain = ["-q", "-p", "no:cacheprovider", "-p", "tests.contract.in_allocation", "--basetemp", str(home / "tmp")]
    python = [sys.executable, "-m", "pytest", *plain, "-c", str(CHECKOUT / "pyproject.toml"), "-k", "fresh or kept"]
    allocate = ["salloc", "--quiet", "-N2", "-n8", *python, str(file)]
    variables = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1"]
    done = slurm_cluster.run(["env", "-C", str(home), *variables, *allocate], timeout_s=150, check=False)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
