"""What the Flux instance, or the job of one, has in which this process runs, as Flux says it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from remoteexec_server.mpi_launch import JOBS_OF_FLUX

from .base import Allocation, NoAllocation, Node
from .lists import hostnames, indices

log = logging.getLogger("remoteexec")
_ASK_S = 30.0
_INSTANCE = "instance"
_CURRENT = 2
"""FLUX_JOB_LOOKUP_CURRENT: with what has been changed since, as the time limit."""
SHELL_OPTIONS = {"exit-timeout": "none", "cpu-affinity": "off", "gpu-affinity": "off"}
"""Who counts the cores of a node is the executor; and that one process has ended is no reason to end others."""


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """Ask Flux what there is: what the job has, in a job that started no instance of its own, else all of the instance
    that is up and not drained.

    It is asked by its Python binding where that loads, else by its commands.

    Raises:
        NoAllocation: says what is missing.
    """
    if not environment.get("FLUX_URI"):
        raise NoAllocation(
            "FLUX_URI is not set, so this is not inside a Flux instance: start the script with `flux alloc`, "
            "`flux batch` or `flux start`, or use FluxClusterExecutor, which submits jobs"
        )
    job = job_of(environment)
    return parse_allocation(
        job or _INSTANCE, _by_binding(environment["FLUX_URI"], job) or _by_command(environment, job)
    )


def _by_binding(uri: str, job: str | None) -> str | None:
    """What Flux's own module says, without a process; None where it does not load here, or fails.

    It is built for one Python. Who asks then has the command, which says why it fails, too.
    """
    if not _is_there():
        return None
    try:
        flux, jobs, resource = map(importlib.import_module, ("flux", "flux.job", "flux.resource"))
        handle = flux.Flux(uri)
        if job is None:
            asked = resource.resource_list(handle)
        else:
            asked = handle.rpc("job-info.lookup", {"id": int(jobs.JobID(job)), "keys": ["R"], "flags": _CURRENT})
        asked.wait_for(_ASK_S)
        said = asked.get()
        return str(said.up.encode() if job is None else said["R"])
    except Exception as exc:  # whatever keeps it from loading
        log.debug("Flux is asked by its commands, since its Python binding fails: %r", exc)
        return None


def _is_there() -> bool:
    """Whether there is Flux's module, and not another of this name: a script of the user's own is not to run."""
    try:
        spec = importlib.util.find_spec("flux")
    except ValueError:  # somebody has put something else in its place
        return False
    places = spec.submodule_search_locations if spec is not None else None
    return any(os.path.isdir(os.path.join(place, "job")) for place in places or ())


def _by_command(environment: Mapping[str, str], job: str | None) -> str:
    argv = ["flux", "job", "info", job, "R"] if job is not None else ["flux", "resource", "R", "-s", "up"]
    try:
        asked = subprocess.run(
            argv, env=dict(environment), capture_output=True, text=True, timeout=_ASK_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NoAllocation(f"`{' '.join(argv)}` cannot be run: {exc}") from exc
    if asked.returncode:
        raise NoAllocation(f"`{' '.join(argv)}` ended with exit code {asked.returncode}: {asked.stderr.strip()}")
    return asked.stdout


def submit_agents(executor: Any, command: Sequence[str], count: int) -> str:
    """Submit agents as one job of so many nodes, each of them whole.

    Args:
        executor: a flux.job.FluxExecutor.

    Returns:
        The job's id.

    Raises:
        TimeoutError: it has not taken the job.
        Exception: whatever else keeps it from that.
    """
    specs = importlib.import_module("flux.job").JobspecV1
    spec = specs.from_command(list(command), num_tasks=count, num_nodes=count, exclusive=True)
    spec.cwd = os.getcwd()
    spec.environment = {name: value for name, value in os.environ.items() if not name.startswith(JOBS_OF_FLUX)}
    for option, value in SHELL_OPTIONS.items():
        spec.setattr_shell_option(option, value)
    future = executor.submit(spec)
    try:
        return str(future.jobid(timeout=_ASK_S))
    except concurrent.futures.TimeoutError:
        if not future.cancel():  # it is on its way
            future.add_jobid_callback(_cancel)
        raise


def _cancel(future: Any) -> None:
    """A job that came too late: nobody will tell its agents what for they are there."""
    argv = ["flux", "cancel", str(future.jobid(timeout=0))]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_S)


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
