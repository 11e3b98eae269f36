"""What the Flux instance, or the job of one, has in which this process runs, as Flux says it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping

from .base import Allocation, NoAllocation, Node
from .lists import hostnames, indices

_ASK_S = 30.0
_INSTANCE = "instance"


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """Ask Flux what there is: what the job has, in a job that started no instance of its own, else the instance's all.

    Raises:
        NoAllocation: says what is missing.
    """
    if not environment.get("FLUX_URI"):
        raise NoAllocation(
            "FLUX_URI is not set, so this is not inside a Flux instance: start the script with `flux alloc`, "
            "`flux batch` or `flux start`, or use FluxClusterExecutor, which submits jobs"
        )
    job = job_of(environment)
    argv = ["flux", "job", "info", job, "R"] if job is not None else ["flux", "resource", "R"]
    try:
        asked = subprocess.run(
            argv, env=dict(environment), capture_output=True, text=True, timeout=_ASK_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NoAllocation(f"`{' '.join(argv)}` cannot be run: {exc}") from exc
    if asked.returncode:
        raise NoAllocation(f"`{' '.join(argv)}` ended with exit code {asked.returncode}: {asked.stderr.strip()}")
    return parse_allocation(job or _INSTANCE, asked.stdout)


def job_of(environment: Mapping[str, str]) -> str | None:
    """The job that this process is a task of; None: it is of the instance itself, which `flux start` made."""
    return environment.get("FLUX_JOB_ID") or None


def parse_allocation(job: str, output: str) -> Allocation:
    """What an R says.

    Raises:
        NoAllocation: it is none, or names no nodes.

    Source: https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_20.html
    """
    try:
        execution = json.loads(output)["execution"]
        names = [name for part in execution["nodelist"] for name in hostnames(part)]
        shares = [(rank, share["children"]) for share in execution["R_lite"] for rank in indices(share["rank"])]
        nodes = tuple(
            Node(
                name,
                len(indices(children["core"])),
                gpus=tuple(str(gpu) for gpu in indices(children.get("gpu", ""))),
                alias=str(rank),
            )
            for name, (rank, children) in zip(names, sorted(shares, key=lambda share: share[0]), strict=True)
        )
        ends_at = float(execution.get("expiration") or 0.0)
    except (ValueError, KeyError, TypeError) as exc:
        raise NoAllocation(f"Flux does not say what {job} has, but {output[:200]!r}: {exc!r}") from exc
    if not nodes:
        raise NoAllocation(f"Flux names no nodes of {job}")
    return Allocation(job, nodes, ends_at or None)
