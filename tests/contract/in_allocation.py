"""A test file once more, inside an allocation: there SingleNodeExecutor means SlurmJobExecutor.

So a suite of the one runs over the other, as it is written. This module is the plugin of pytest that sees to it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import remoteexec
from tests.clusters.rootless import SlurmCluster

IN_ALLOCATION = "REMOTEEXEC_TEST_IN_ALLOCATION"
"""In the environment of that run: a directory that the nodes share."""

if IN_ALLOCATION in os.environ:
    _instead: Any = remoteexec.SlurmJobExecutor
    remoteexec.SingleNodeExecutor = _instead  # type: ignore[misc]


def run_in_allocation(cluster: SlurmCluster, file: Path, name: str, *options: str, timeout_s: float = 150) -> None:
    """Run a test file inside `salloc` of two nodes with four cores each; some of its tests have to pass, and none fail.

    Args:
        name: of the shared directory.
        options: of pytest.
    """
    checkout = Path(__file__).parent.parent.parent
    probe = cluster.run([sys.executable, "-c", f"open({str(file)!r})"], check=False)
    if probe.returncode != 0:
        pytest.skip(f"the cluster's user cannot use {sys.executable} or read {checkout}: {probe.stderr[-200:]}")
    home = cluster.make_directory(name)
    path = os.pathsep.join([str(checkout), str(checkout / "server_side"), os.environ.get("PYTHONPATH", "")])
    plain = ["-q", "-p", "no:cacheprovider", "-p", "tests.contract.in_allocation", "--basetemp", str(home / "tmp")]
    python = [sys.executable, "-m", "pytest", *plain, "-c", str(checkout / "pyproject.toml"), *options]
    allocate = ["salloc", "--quiet", "-N2", "-n8", *python, str(file)]
    variables = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1", f"{IN_ALLOCATION}={home}"]
    done = cluster.run(["env", "-C", str(home), *variables, *allocate], timeout_s=timeout_s, check=False)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
