"""What Flux is given: the script's template, its variables, the command that submits it, the environment. Pure.

A job of one rank is `flux submit bash run_queue.sh`, an array of them one command with --cc, each element a job of its
own. A job of several ranks or nodes, and one with a template of the user's, is `flux batch run_queue.sh`: an instance
of its own, in which `flux run` can start the ranks, and whose directives (`# flux: ...`) are read by Flux. It costs a
broker on each node and a second or so, and there is a command for each element of an array.

Flux has no job arrays: an element is known by its job's name, `NAME.INDEX-COUNT`, behind another dot the user's name.

Source: https://flux-framework.readthedocs.io/projects/flux-core/, flux-submit(1), flux-batch(1), flux-bulksubmit(1),
and their code in 0.88; tried with 0.88.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..wire.resources import ResourceError, Resources
from .base import JobSpec
from .slurm_text import array_expression
from .unheeded import by_template, notices
from .variables import common

__all__ = [
    "TEMPLATE",
    "Element",
    "argv",
    "chained",
    "element",
    "environment",
    "is_nested",
    "submission",
    "template",
    "unheeded",
    "variables",
]

TEMPLATE = """\
#!/bin/bash
# {{ submission }}
{%- for line in options %}
# flux: {{ line }}
{%- endfor %}
exec {{ command }}
"""
"""bash, not sh: dash drops exported functions (`module`) from the environment. `exec`: one process less to signal."""

SCRIPT = "./run_queue.sh"
"""What pysqa writes into the job's directory, in which the command runs."""

_UNHEEDED = {
    "memory_max_gb": "Flux does not manage memory; exclusive=True keeps other jobs away",
    "qos": "Flux has no such thing; see partition, which is its queue, account, its bank, and priority, its urgency",
    "reservation": "Flux has no such thing; see partition, which is its queue",
    "slurm_cmd_args": "they are for sbatch; a submission_template may have lines `# flux: OPTION` for Flux",
}
"""What Flux has no word for, and what to do instead."""

_ELEMENT = re.compile(r"([a-z0-9-]+)\.(\d+)-(\d+)(?:\.|\Z)")


@dataclass(frozen=True)
class Element:
    """Which part of which of our jobs a job of Flux's is; `count` is 1 without an array."""

    name: str
    index: int
    count: int


def element(job_name: str) -> Element | None:
    """What the name of a job says; None: it is not one of ours."""
    match = _ELEMENT.match(job_name)
    return None if match is None else Element(match[1], int(match[2]), int(match[3]))


def is_nested(resources: Resources) -> bool:
    """Whether the job is an instance of its own, `flux batch`."""
    return resources.cores > 1 or (resources.num_nodes or 1) > 1 or resources.submission_template is not None


def submission(spec: JobSpec, indices: Sequence[int], after: Sequence[str] = ()) -> list[str | None]:
    """The command that submits some elements of a job, each with the same dependencies.

    Args:
        indices: n >= 1 elements; one where the job is nested.
        after: ids of jobs that have to end before.

    Returns:
        An argument list; None stands for the script.
    """
    always = [f"--dependency=afterany:{job}" for job in after]
    if is_nested(spec.resources):
        index = str(indices[0])
        own = [] if spec.resources.submission_template else _resources(spec.resources)
        marked = [f"--env=FLUX_JOB_CC={index}"]
        return ["flux", "batch", *own, *_identity(spec, index), *marked, *always, None]
    own = _resources(spec.resources)
    if spec.count == 1:
        return ["flux", "submit", *own, *_identity(spec, "0"), *always, "/bin/bash", None]
    many = [f"--cc={array_expression(indices)}"]
    return ["flux", "submit", *own, *_identity(spec, "{cc}"), *many, *always, "/bin/bash", None]


def chained(spec: JobSpec, indices: Sequence[int], before: Sequence[str], after: Sequence[str]) -> list[str | None]:
    """The command that submits as many plain elements as there are jobs in `before`, each to wait for one of those."""
    always = [f"--dependency=afterany:{job}" for job in after]
    each = ["--dependency=afterany:{1}", "--env=FLUX_JOB_CC={0}"]
    inputs = [":::", *map(str, indices), ":::+", *before]
    own = _resources(spec.resources)
    return ["flux", "bulksubmit", *own, *_identity(spec, "{0}"), *always, *each, "/bin/bash", None, *inputs]


def argv(parts: Sequence[str | None], script: str = SCRIPT) -> list[str]:
    """A submission with the script in its place."""
    return [script if part is None else part for part in parts]


def variables(spec: JobSpec) -> dict[str, object]:
    """What a template may use: see `variables.common`, and the job's own.

    `dependency_list` is empty: Flux adds up the dependencies of a script and of its command line, where ours are, and
    refuses the `afterok` of pysqa's template once a job has failed.
    """
    r = spec.resources
    shown = argv(submission(spec, range(1 if is_nested(r) else spec.count)), "run_queue.sh")
    return {
        **common(spec),
        "job_name": _job_name(spec, "0"),
        "run_time_max": _seconds(r),
        "submission": shlex.join(shown),
        "options": [shlex.quote(option) for option in _resources(r)],
        "dependency_list": [],
        "command": _command(spec),
    }


def template(resources: Resources) -> str:
    """The user's, or ours."""
    return resources.submission_template or TEMPLATE


def unheeded(resources: Resources) -> list[str]:
    """What is asked for and will not be seen to, a sentence each."""
    if resources.submission_template is not None:
        return by_template(resources)
    return notices(resources, _UNHEEDED)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment the command runs in, which is also what the job gets.

    Without what an outer job left: its number, its element, its process management.
    """
    outer = ("FLUX_JOB_", "FLUX_TASK_", "FLUX_KVS_NAMESPACE", "PMI_", "PMIX_")
    drop = {"REMOTEEXEC_JOB_ID", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"}
    return {name: value for name, value in environ.items() if name not in drop and not name.startswith(outer)}


def _resources(r: Resources) -> list[str]:
    """Options for what is asked for; -n and the like mean the same to `flux submit` and `flux batch`.

    Raises:
        ResourceError: Flux could not make sense of it.
    """
    if r.exclusive and r.num_nodes is None and r.cores > 1:
        raise ResourceError("exclusive=True: Flux gives away whole nodes by their number, so num_nodes has to be given")
    found = [f"-n{max(r.cores, r.num_nodes or 1)}", f"-c{r.threads_per_core}"]
    if r.gpus_per_core:
        found.append(f"-g{r.gpus_per_core}")
    if r.num_nodes or r.exclusive:
        found.append(f"-N{r.num_nodes or 1}")
    if r.exclusive:
        found.append("--exclusive")
    if r.run_time_max_s is not None:
        found.append(f"--time-limit={_seconds(r)}s")  # a bare number would be minutes
    named = {"queue": r.partition, "bank": r.account, "requires": r.constraint, "urgency": r.priority}
    return [*found, *(f"--{key}={value}" for key, value in named.items() if value is not None)]


def _identity(spec: JobSpec, index: str) -> list[str]:
    """Options that hold whatever a template says: by what the job is found again, and where Flux's own words go.

    They are added to the log that the command writes by itself.
    """
    name = f"--job-name={_job_name(spec, index)}"
    if not _is_plain(str(spec.directory)):
        return [name, "--output=/dev/null"]
    return [name, f"--output={spec.directory}/{index}.log", "--setopt=output.mode=append"]


def _job_name(spec: JobSpec, index: str) -> str:
    user = f".{spec.resources.job_name}" if spec.resources.job_name else ""
    return f"{spec.name}.{index}-{spec.count}{user}"


def _command(spec: JobSpec) -> str:
    """The command as shell text, with the index of the element as its last argument.

    The runner is told what its job is called. The shell opens the log: what goes through Flux comes out with stdout and
    stderr in another order.
    """
    index = '"$FLUX_JOB_CC"' if spec.count > 1 else "0"
    own = _NESTED_ID if is_nested(spec.resources) else _PLAIN_ID
    job = f"{spec.name}_{index}" if spec.count > 1 else own
    log = f"{shlex.quote(str(spec.directory))}/{index}.log"
    return f"env REMOTEEXEC_JOB_ID={job} {shlex.join(spec.command)} {index} >>{log} 2>&1"


_PLAIN_ID = '"${FLUX_JOB_ID/ƒ/f}"'
_NESTED_ID = '"$(flux getattr jobid | sed s/ƒ/f/)"'
"""The number of the job we run in; an instance of its own has to be asked what it is in the one around it."""


def _is_plain(path: str) -> bool:
    """Whether Flux opens a file of that path as it is: braces are replaced, by its commands and by its shell."""
    return not re.search(r"[{}\x00-\x1f]", path)


def _seconds(resources: Resources) -> int | None:
    return None if resources.run_time_max_s is None else max(1, math.ceil(resources.run_time_max_s))
