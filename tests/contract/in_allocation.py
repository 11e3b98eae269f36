"""A test file once more, inside an allocation: there SingleNodeExecutor means SlurmJobExecutor, or FluxJobExecutor.

So a suite of the one runs over the other, as it is written. This module is the plugin of pytest that sees to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import remoteexec
from tests.clusters.flux import FluxInstance
from tests.clusters.rootless import SlurmCluster

_CHECKOUT = Path(__file__).parent.parent.parent
IN_ALLOCATION = "REMOTEEXEC_TEST_IN_ALLOCATION"
"""In the environment of that run: a directory that the nodes share."""
_EXECUTOR = "REMOTEEXEC_TEST_EXECUTOR"
"""Beside it: the name of the class."""

if IN_ALLOCATION in os.environ:
    _instead: Any = getattr(remoteexec, os.environ[_EXECUTOR])
    remoteexec.SingleNodeExecutor = _instead  # type: ignore[misc]


def run_in_allocation(cluster: SlurmCluster, file: Path, name: str, *options: str, timeout_s: float = 150) -> None:
    """Run a test file inside `salloc` of two nodes with four cores each; some of its tests have to pass, and none fail.

    Args:
        name: of the shared directory.
        options: of pytest.
    """
    probe = cluster.run([sys.executable, "-c", f"open({str(file)!r})"], check=False)
    if probe.returncode != 0:
        pytest.skip(f"the cluster's user cannot use {sys.executable} or read {_CHECKOUT}: {probe.stderr[-200:]}")
    _run(cluster, ["salloc", "--quiet", "-N2", "-n8"], "SlurmJobExecutor", file, name, options, timeout_s)


def run_in_instance(flux: FluxInstance, file: Path, name: str, *options: str, timeout_s: float = 150) -> None:
    """The same in a Flux instance of two nodes."""
    _run(flux, [], "FluxJobExecutor", file, name, options, timeout_s)


def _run(
    cluster: SlurmCluster | FluxInstance,
    allocate: Sequence[str],
    executor: str,
    file: Path,
    name: str,
    options: Sequence[str],
    timeout_s: float,
) -> None:
    home = cluster.make_directory(name)
    path = os.pathsep.join([str(_CHECKOUT), str(_CHECKOUT / "server_side"), os.environ.get("PYTHONPATH", "")])
    plain = ["-q", "-p", "no:cacheprovider", "-p", "tests.contract.in_allocation", "--basetemp", str(home / "tmp")]
    python = [sys.executable, "-m", "pytest", *plain, "-c", str(_CHECKOUT / "pyproject.toml"), *options]
    variables = [
        f"PYTHONPATH={path}",
        "PYTHONDONTWRITEBYTECODE=1",
        f"{IN_ALLOCATION}={home}",
        f"{_EXECUTOR}={executor}",
    ]
    command = ["env", "-C", str(home), *variables, *allocate, *python, str(file)]
    done = cluster.run(command, timeout_s=timeout_s, check=False)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
