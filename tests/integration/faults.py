"""What the tests of faults share: where a task runs, how it ended in time, commands of ours before SLURM's."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remoteexec.config.model import ClusterConfig
from tests.clusters.rootless import SlurmCluster

PROMPT_S = 15.0
"""A loss that the next question to the scheduler explains; it is asked every second here."""


FAILS_EVERY_SECOND_TIME = """
if mkdir $state/odd 2>/dev/null; then
    echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2
    exit 1
fi
rmdir $state/odd
exec "$real" "$@"
"""


@dataclass(frozen=True)
class Place:
    """Where a task runs, as it says itself."""

    job: str
    node: str
    pid: int
    parent: int


def placed(path: Path, deadline_s: float = 30.0) -> Place:
    """What `hold` says, once it runs."""
    end = time.monotonic() + deadline_s
    while not path.exists():
        assert time.monotonic() < end, "the task does not start"
        time.sleep(0.02)
    return Place(*json.loads(path.read_text()))


def outcome_within(future: concurrent.futures.Future[Any], seconds: float) -> BaseException | None:
    """The exception of a future that has to have one soon."""
    began = time.monotonic()
    exc = future.exception(seconds)
    assert time.monotonic() - began < seconds
    return exc


def executions(path: Path) -> Counter[int]:
    return Counter(map(int, path.read_text().split()))


def with_wrappers(cluster: SlurmCluster, config: ClusterConfig, **scripts: str) -> tuple[ClusterConfig, Path]:
    """The cluster with commands of ours before SLURM's own; in them `$real` is the real one, `$state` a directory."""
    directory = cluster.make_directory(f"wrappers-{time.time_ns()}")
    state = cluster.make_directory(f"{directory.name}/state")
    assert config.python is not None
    python = f'PATH={directory}:$PATH exec {config.python} "$@"'
    for name, text in {**scripts, "python-with-wrappers": python}.items():
        path = directory / name
        path.write_text(f"#!/bin/bash\nstate={state}\nreal=/usr/bin/{name}\n{text}\n")
        path.chmod(0o755)
    return replace(config, python=str(directory / "python-with-wrappers")), state
