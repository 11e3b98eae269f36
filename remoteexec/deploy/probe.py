"""What the cluster side says of itself: asked through the very command line that later starts the gateway."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config.model import ClusterConfig
from ..errors import RunnerMissing
from ..ssh.base import Link
from .launch import missing, start_argv
from .package import package_files

__all__ = ["Facts", "probe"]


@dataclass(frozen=True)
class Facts:
    """The answer of `remoteexec_server probe`.

    Attributes:
        python: "3.11.2".
        protocol: Number of the wire.
        version: Of remoteexec_server.
        root: Absolute path.
        root_problem: None if the root can be used.
        pysqa: Version, None if it cannot be imported; h5py and cloudpickle alike.
        scheduler: "slurm 22.05.8"; None if it does not answer.
        partitions: Names, the default first.
        mpi: What MPI functions would use, or why there is nothing.
        problem: What else is wrong, None if nothing is.
    """

    python: str
    protocol: int
    version: str
    root: str
    root_problem: str | None
    pysqa: str | None
    h5py: str | None
    cloudpickle: str | None
    scheduler: str | None
    partitions: tuple[str, ...]
    mpi: str
    problem: str | None


def probe(link: Link, config: ClusterConfig, timeout_s: float = 60.0) -> Facts:
    """Start our package on the cluster and have it look around.

    Raises:
        RunnerMissing: It is not installed, or it does not start.
        TransportError: The connection, or no answer within `timeout_s`.
    """
    sentinel = secrets.token_hex(16)
    argv = start_argv(
        config, package_files().digest, "probe", "--scheduler", config.scheduler, "--sentinel", sentinel, "--mpi"
    )
    done = link.run(argv, timeout_s=timeout_s)
    facts = _find(done.stdout, sentinel)
    if facts is None:
        stderr = done.stderr.decode("utf-8", "replace")
        known = missing(done.exit_code, stderr, config)
        if known is not None:
            raise known
        words = "\n".join(stderr.strip().splitlines()[-12:])
        raise RunnerMissing(
            f"The cluster side on {config.name!r} does not start (exit code {done.exit_code}):\n{words}\n"
            f"Run `remoteexec install {config.name}`."
        )
    return Facts(
        python=str(facts.get("python", "")),
        protocol=int(facts.get("protocol", 0)),
        version=str(facts.get("version", "")),
        root=str(facts.get("root", "")),
        root_problem=facts.get("root_problem"),
        pysqa=facts.get("pysqa"),
        h5py=facts.get("h5py"),
        cloudpickle=facts.get("cloudpickle"),
        scheduler=facts.get("scheduler"),
        partitions=tuple(facts.get("partitions") or ()),
        mpi=str(facts.get("mpi", "")),
        problem=facts.get("problem"),
    )


def _find(output: bytes, sentinel: str) -> Mapping[str, Any] | None:
    """The JSON object that carries the sentinel, among whatever a .bashrc prints."""
    for line in output.decode("utf-8", "replace").splitlines():
        for start in re.finditer("{", line[: line.find(sentinel) + 1]):  # noise may hold braces, and lack a line break
            try:
                found, _ = json.JSONDecoder().raw_decode(line, start.start())
            except ValueError:
                continue
            if isinstance(found, dict) and found.get("sentinel") == sentinel:
                return found
    return None
