"""What the allocation has in which this process runs, as SLURM says it."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Mapping

from remoteexec_server import slurm_clock

from .base import Allocation, NoAllocation, Node
from .lists import hostnames, indices

_ASK_S = 30.0
_MIB = 2**20
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


def _gpus(gres: str) -> tuple[str, ...]:
    return tuple(str(index) for listed in _GPUS.findall(gres) for index in indices(listed) if listed != "N/A")
