"""Moab Workload Manager, in front of whichever resource manager. Each task is a job of its own.

Its arrays have numbers that differ with the resource manager behind it, so none are used.

Source: Moab Workload Manager 9.1 Administrator Guide (msub, mjobctl, showq, job dependencies).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence

from ..base import JobFacts, JobId, JobRef, JobSpec, JobState
from ..slurm_text import Line
from ..variables import memory_mb
from . import base
from .base import Question
from .pbs import check_priority, nodes

__all__ = ["Moab", "parse_showq", "parse_submitted"]

TEMPLATE = """\
#!/bin/bash
#MSUB -N {{ job_name }}
#MSUB -S /bin/bash
#MSUB -j oe
#MSUB -o /dev/null
#MSUB -r n
#MSUB -V
#MSUB -l nodes={{ nodes }}
{%- if memory_total_mb %}
#MSUB -l mem={{ memory_total_mb }}mb
{%- endif %}
{%- if run_time_max %}
#MSUB -l walltime={{ run_time_max }}
{%- endif %}
{%- if exclusive %}
#MSUB -l naccesspolicy=singlejob
{%- endif %}
{%- if qos %}
#MSUB -l qos={{ qos }}
{%- endif %}
{%- if reservation %}
#MSUB -l advres={{ reservation }}
{%- endif %}
{%- if partition %}
#MSUB -q {{ partition }}
{%- endif %}
{%- if account %}
#MSUB -A {{ account }}
{%- endif %}
{%- if priority is not none %}
#MSUB -p {{ priority }}
{%- endif %}
{%- if dependency_list %}
#MSUB -l depend=afterany:{{ dependency_list | join(':') }}
{%- endif %}
cd {{ directory }} || exit 74
exec {{ command }}
"""

_ENDS_OTHERWISE = ("-I*", "-t*", "-z*", "-K*", "depend=*", "-Wdepend*", "--*")

_STATES = {
    "Idle": JobState.PENDING,
    "Deferred": JobState.PENDING,
    "Hold": JobState.PENDING,
    "BatchHold": JobState.PENDING,
    "SystemHold": JobState.PENDING,
    "UserHold": JobState.PENDING,
    "Staging": JobState.PENDING,
    "NotQueued": JobState.PENDING,
    "Blocked": JobState.PENDING,
    "Completed": JobState.COMPLETED,
    "Removed": JobState.CANCELLED,
    "Vacated": JobState.PREEMPTED,
}
"""Starting, Running, Suspended and what later versions may add count as running: nothing is decided about them."""


class Moab:
    """See Dialect."""

    name, queue_type, submits = "moab", "MOAB", "msub"
    max_array = 1
    by_stdin = False
    template = TEMPLATE
    unheeded: Mapping[str, str] = {}
    busy = re.compile(
        r"cannot connect|unable to connect|timed? ?out|lost connection|communication|server.*(busy|down)|temporar"
        r"|connection refused",
        re.IGNORECASE,
    )
    unknown = re.compile(r"cannot locate job|invalid job|not found|already complete|unknown job", re.IGNORECASE)

    def variables(self, spec: JobSpec) -> dict[str, object]:
        """See Dialect."""
        base.refuse_arguments(spec.resources, _ENDS_OTHERWISE, "msub")
        check_priority(spec.resources)
        command = base.command(spec, "0", "${MOAB_JOBID:-}")
        return {
            **base.variables(spec, self.options(spec), command, [str(job) for job in base.whole_jobs(spec.after)]),
            "nodes": nodes(spec),
            "memory_total_mb": memory_mb(spec.resources, 1),
        }

    def options(self, spec: JobSpec) -> list[str]:
        """See Dialect."""
        found = [*spec.resources.slurm_cmd_args, "-N", base.job_name(spec), "-j", "oe", "-o", "/dev/null", "-r", "n"]
        if spec.after:
            found += ["-l", "depend=afterany:" + ":".join(base.whole_jobs(spec.after))]
        return found

    def parse_submitted(self, output: str) -> JobId | None:
        """See Dialect."""
        return parse_submitted(output)

    def cancel_arguments(self, refs: Sequence[JobRef]) -> list[list[str]]:
        """See Dialect: mjobctl takes one job, or an expression."""
        return [[job] for job in base.whole_jobs(refs)]

    def own(self, user: str) -> Question | None:
        """See Dialect."""
        return None

    def ask(self, jobs: Sequence[JobId], user: str) -> list[Question]:
        """See Dialect: what waits and runs, and what has completed, are two lists."""
        who = ("-w", f"user={user}")
        return [Question(("showq", "--xml", *who), parse_showq), Question(("showq", "-c", "--xml", *who), parse_showq)]

    def ask_ended(self, job: JobId) -> Question | None:
        """See Dialect."""
        return None


def parse_submitted(output: str) -> JobId | None:
    """The word in what msub printed, "Moab.123" or "123", below an empty line; "123.server" without the server."""
    for line in reversed(output.splitlines()):
        match = re.fullmatch(r"((?:[A-Za-z][\w-]*\.)?\d+)(?:\.[\w.-]+)?", line.strip())
        if match is not None and "_" not in match[1]:
            return JobId(match[1])
    return None


def parse_showq(output: str) -> list[Line]:
    """Jobs of `showq --xml` and `showq -c --xml`.

    Raises:
        ValueError: not XML.
    """
    try:
        tree = ElementTree.fromstring(output)
    except ElementTree.ParseError as exc:
        raise ValueError(f"not the XML of showq: {exc}") from exc
    return [
        Line(JobId(job.get("JobID", "")), None, _facts(job.attrib), job.get("JobName", ""))
        for job in tree.iter("job")
        if job.get("JobID")
    ]


def _facts(job: Mapping[str, str]) -> JobFacts:
    word = job.get("State", "")
    state = _STATES.get(word, JobState.RUNNING)
    node = job.get("MasterHost") or None
    told = job.get("CompletionCode", "")
    if not state.ended:
        return JobFacts(state, word if state is JobState.PENDING and word != "Idle" else "", node)
    if told.startswith("CNCLD") or word == "Removed":
        seconds = re.search(r"\bWCLIMIT\b|wallclock", told, re.IGNORECASE)
        return JobFacts(JobState.TIMEOUT, "TimeLimit", node) if seconds else JobFacts(JobState.CANCELLED, told, node)
    code = int(told) if re.fullmatch(r"-?\d+", told) else None
    if code == 0:
        return JobFacts(JobState.COMPLETED, "", node, 0)
    if code is None:
        return JobFacts(state, told, node)
    return JobFacts(JobState.FAILED, "", node, *base.by_signal(code))
