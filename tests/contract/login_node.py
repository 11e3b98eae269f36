"""A test file once more, in a process of the cluster's user: for executors that submit from a login node."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.clusters.rootless import SlurmCluster

LOGIN_NODE = "REMOTEEXEC_TEST_ON_LOGIN_NODE"
"""In the environment of the second run: a directory that the compute nodes share."""


def run_there(cluster: SlurmCluster, file: Path, name: str, *more: str) -> None:
    """Run a test file; all its tests have to pass.

    Args:
        name: of the shared directory.
        more: options of pytest.
    """
    checkout = file.parent.parent.parent
    probe = cluster.run([sys.executable, "-c", f"import pytest, remoteexec; open({str(file)!r})"], check=False)
    if probe.returncode != 0:
        pytest.skip(f"the cluster's user cannot use {sys.executable} or read {checkout}: {probe.stderr[-200:]}")
    home = cluster.make_directory(name)
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(home / "tmp"), "-c", str(checkout / "pyproject.toml")]
    given = {
        LOGIN_NODE: str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{checkout}:{checkout}/server_side",
    }
    python = [sys.executable, "-m", "pytest", *options, *more, str(file)]
    done = cluster.run(
        [*["env", "-C", str(home)], *[f"{key}={value}" for key, value in given.items()], *python],
        timeout_s=150,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
