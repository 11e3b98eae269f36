"""What the allocation has in which this process runs, as SLURM says it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
from collections.abc import Mapping

from remoteexec_server import slurm_clock

from .base import Allocation, NoAllocation, Node

_ASK_S = 30.0
_MIB = 2**20
_PART = re.compile(r"[^,\[]*(?:\[[^\]]*\][^,\[]*)*")
_BRACKETS = re.compile(r"\[([^\]]*)\]")
_GPUS = re.compile(r"gpu(?::[^:(,]+)?:\d+\(IDX:([^)]*)\)")
_DETAIL = re.compile(r"^\s+Nodes=(\S+) CPU_IDs=(\S+) Mem=(\d+)(?: GRES=(\S*))?", re.MULTILINE)


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """Ask SLURM what this job has.

    Raises:
        NoAllocation: says what is missing.

    Source: https://slurm.schedmd.com/scontrol.html (show job --details)
    """
    job = environment.get("SLURM_JOB_ID")
    if not job:
        raise NoAllocation(
            "SLURM_JOB_ID is not set, so this is not inside an allocation: start the script with `salloc` or `sbatch`, "
            "or use SlurmClusterExecutor, which submits jobs"
        )
    argv = ["scontrol", "show", "job", "--details", job]
    try:
        asked = subprocess.run(
            argv,
            env={**environment, **slurm_clock.PLAIN},
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NoAllocation(f"`{' '.join(argv)}` cannot be run: {exc}") from exc
    if asked.returncode:
        raise NoAllocation(f"`{' '.join(argv)}` ended with exit code {asked.returncode}: {asked.stderr.strip()}")
    found = parse_allocation(job, asked.stdout)
    ahead_s = slurm_clock.ahead_s(environment)
    if found.ends_at is None or ahead_s is None:
        return found
    return dataclasses.replace(found, ends_at=found.ends_at + ahead_s)


def parse_allocation(job: str, output: str) -> Allocation:
    """What `scontrol show job --details` says of one running job; its end is one of the controller's clock.

    Raises:
        NoAllocation: it names no nodes.
    """
    nodes = [
        Node(name, len(indices(cpus)), int(memory) * _MIB or None, _gpus(gres))
        for names, cpus, memory, gres in _DETAIL.findall(output)
        for name in hostnames(names)
    ]
    if not nodes:
        raise NoAllocation(f"job {job} has no nodes: it has ended, or not begun")
    times = slurm_clock.job_times(output)
    return Allocation(job, tuple(nodes), times[1] if times else None)


def hostnames(expression: str) -> list[str]:
    """The names that a list of SLURM's stands for: "n[1-2,7],login" are n1, n2, n7 and login."""
    return [name for part in _PART.findall(expression) if part for name in _expanded(part)]


def indices(expression: str) -> list[int]:
    """Numbers of a list like "0-3,8"."""
    return [int(number) for number in _numbers(expression)] if expression else []


def _expanded(part: str) -> list[str]:
    texts = _BRACKETS.split(part)  # every second one was in brackets
    choices = [_numbers(text) if at % 2 else [text] for at, text in enumerate(texts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _numbers(expression: str) -> list[str]:
    """As they are written: "08-10" are 08, 09 and 10."""
    found: list[str] = []
    for part in expression.split(","):
        first, _, last = part.partition("-")
        found += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return found


def _gpus(gres: str) -> tuple[str, ...]:
    return tuple(str(index) for listed in _GPUS.findall(gres) for index in indices(listed) if listed != "N/A")
