"""What sbatch is given: the script's template, its variables, the options beside it, the environment. Pure.

A job is described twice. The script says everything, to be read and submitted again by hand. What has to hold whatever
a user's template, `slurm_cmd_args` or SBATCH_* variable says (name, array, dependencies, log, no requeue) is repeated
on sbatch's command line, which wins over all of them.

Source: https://slurm.schedmd.com/sbatch.html, tried with 22.05.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from ..wire.resources import ResourceError, Resources
from .base import JobSpec
from .variables import common, full_name, is_named

__all__ = ["TEMPLATE", "environment", "full_name", "is_named", "options", "template", "variables"]

TEMPLATE = """\
#!/bin/bash
#SBATCH --ntasks={{ ntasks }}
#SBATCH --cpus-per-task={{ threads_per_core }}
{%- if gpus_per_core %}
#SBATCH --gpus-per-task={{ gpus_per_core }}
{%- endif %}
{%- if num_nodes %}
#SBATCH --nodes={{ num_nodes }}
{%- endif %}
{%- if exclusive %}
#SBATCH --exclusive
{%- endif %}
{%- if run_time_minutes %}
#SBATCH --time={{ run_time_minutes }}
{%- endif %}
{%- if memory_mb %}
#SBATCH --mem={{ memory_mb }}M
{%- endif %}
{%- if partition %}
#SBATCH --partition={{ partition }}
{%- endif %}
{%- if account %}
#SBATCH --account={{ account }}
{%- endif %}
{%- if qos %}
#SBATCH --qos={{ qos }}
{%- endif %}
{%- if reservation %}
#SBATCH --reservation={{ reservation }}
{%- endif %}
{%- if constraint %}
#SBATCH --constraint={{ constraint }}
{%- endif %}
{%- if priority is not none %}
#SBATCH --priority={{ priority }}
{%- endif %}
{%- if warn_time %}
#SBATCH --signal=B:USR1@{{ warn_time }}
{%- endif %}
{%- if sbatch_arguments %}
#SBATCH {{ sbatch_arguments }}
{%- endif %}
{%- for line in options %}
#SBATCH {{ line }}
{%- endfor %}
{%- if warn_time %}
trap '' USR1
{%- endif %}
exec {{ command }}
"""
"""The warning is ignored until the runner takes it: near a short limit it comes at once.

bash, not sh: dash drops exported functions (`module`) from the environment. `exec`: one process less to signal."""

_ENDS_OTHERWISE = {
    "wait": (4, "-W"),
    "test-only": (2, ""),
    "wrap": (2, ""),
    "version": (4, "-V"),
    "help": (2, "-h"),
    "usage": (3, ""),
    "parsable": (4, ""),
    "quiet": (2, "-Q"),
}
"""Options that make sbatch wait, print something else than a job's number, or submit nothing; and how many of their
letters sbatch needs to take a shorter word for them."""

_ELSEWHERE = {"array": (2, "-a"), "clusters": (8, "-M"), "cluster": (7, ""), "cluster-constraint": (9, "")}
"""Options that make several jobs of one, or put it where we do not look."""

_OURS = {"job-name": (1, "-J"), "output": (1, "-o"), "error": (2, "-e"), "requeue": (3, ""), "no-requeue": (6, "")}
"""Options that sbatch's command line repeats; see `options`."""

_OVERRIDING = {
    "partition": ("SBATCH_PARTITION",),
    "account": ("SBATCH_ACCOUNT",),
    "qos": ("SBATCH_QOS",),
    "reservation": ("SBATCH_RESERVATION",),
    "constraint": ("SBATCH_CONSTRAINT",),
    "run_time_max_s": ("SBATCH_TIMELIMIT",),
    "memory_max_gb": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "gpus_per_core": ("SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK"),
    "exclusive": ("SBATCH_EXCLUSIVE",),
}
"""Variables that sbatch believes more than its script."""


def options(spec: JobSpec) -> list[str]:
    """The options that always hold, one argument each."""
    log = _output(spec)  # named twice: SLURM gives both streams one file then, whatever else says --error
    found = [f"--job-name={full_name(spec)}", f"--output={log}", f"--error={log}", "--no-requeue"]
    if spec.count > 1:
        found.append(f"--array={_array(spec)}")
    if spec.after:
        found.append("--dependency=afterany:" + ":".join(_dependencies(spec)))
    return found


def variables(spec: JobSpec) -> dict[str, object]:
    """What a template may use: see `variables.common`, and the job's own."""
    r = spec.resources
    return {
        **common(spec),
        "job_name": full_name(spec),
        "ntasks": max(r.cores, r.num_nodes or 1),  # SLURM gives no more nodes than there are tasks, and does not say so
        "sbatch_arguments": _sbatch_arguments(r),
        "options": [shlex.quote(option) for option in options(spec)],
        "array": _array(spec) if spec.count > 1 else None,
        "dependency_list": _dependencies(spec),
        "command": _command(spec),
    }


def template(resources: Resources) -> str:
    """The user's, or ours."""
    return resources.submission_template or TEMPLATE


def environment(environ: Mapping[str, str], resources: Resources) -> dict[str, str]:
    """The environment sbatch runs in, which is also what the job gets.

    Without what would overrule the resources, and without what an outer job left: a job that believes it is element 7
    of another array, or has two memory limits, ends badly.
    """
    drop = {"SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_REQUEUE", "REMOTEEXEC_JOB_ID"}
    for key, names in _OVERRIDING.items():
        if getattr(resources, key):
            drop.update(names)
    inside = "SLURM_JOB_ID" in environ
    return {
        name: value
        for name, value in environ.items()
        if name not in drop
        and not (inside and name != "SLURM_CONF" and name.startswith(("SLURM_", "SLURMD_", "PMI_", "PMIX_")))
    }


def _command(spec: JobSpec) -> str:
    """The command as shell text, with the index of the element as its last argument.

    Where sbatch cannot write the log, the shell does.
    """
    index = '"$SLURM_ARRAY_TASK_ID"' if spec.count > 1 else "0"
    command = f"{shlex.join(spec.command)} {index}"
    if _is_plain(str(spec.directory)):
        return command
    return f"{command} >>{shlex.quote(str(spec.directory))}/{index}.log 2>&1"


def _output(spec: JobSpec) -> str:
    if not _is_plain(str(spec.directory)):
        return "/dev/null"
    return str(spec.directory / ("%a.log" if spec.count > 1 else "0.log"))


def _is_plain(path: str) -> bool:
    """Whether SLURM opens a file of that path as it is.

    It replaces %x and drops backslashes, also in a working directory that a relative path is put behind; how `%%` and
    `\\\\` are taken changes once an array's %a stands beside them.
    """
    return not re.search(r"[%\\\x00-\x1f]", path)


def _array(spec: JobSpec) -> str:
    limit = f"%{spec.at_once}" if spec.at_once is not None and spec.at_once < spec.count else ""
    return f"0-{spec.count - 1}{limit}"


def _dependencies(spec: JobSpec) -> list[str]:
    return [str(ref) for ref in dict.fromkeys(spec.after)]


def _sbatch_arguments(resources: Resources) -> str:
    for argument in resources.slurm_cmd_args:
        if _is_one_of(argument, _ENDS_OTHERWISE):
            raise ResourceError(
                f"slurm_cmd_args={argument!r}: sbatch would not submit the job and print its number; leave it out"
            )
        if _is_one_of(argument, _ELSEWHERE) or argument in ("hetjob", "packjob"):
            raise ResourceError(
                f"slurm_cmd_args={argument!r}: the jobs it makes would not be found again; leave it out"
            )
    return shlex.join(resources.slurm_cmd_args).replace("\\", "\\\\")  # sbatch takes one off, in quotes too


def overruled(resources: Resources) -> list[str]:
    """What of `slurm_cmd_args` our own options overrule, a sentence each."""
    return [
        f"slurm_cmd_args={argument!r} has no effect: jobs get a name, a log and a requeueing rule of ours; "
        "see job_name for the name"
        for argument in resources.slurm_cmd_args
        if _is_one_of(argument, _OURS)
    ]


def _is_one_of(argument: str, options: Mapping[str, tuple[int, str]]) -> bool:
    """Whether sbatch takes it for one of these: a long one however short it is written, "-x", "-xVALUE"."""
    if not argument.startswith("--"):
        return argument[:2] in {short for _, short in options.values() if short} and argument.startswith("-")
    word = argument[2:].partition("=")[0]
    return any(len(word) >= least and name.startswith(word) for name, (least, _) in options.items())
