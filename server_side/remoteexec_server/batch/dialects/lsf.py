"""IBM Spectrum LSF. Elements of an array are counted from 1 there, from 0 by us.

`bsub run_queue.sh` would run the script without reading its #BSUB lines, unless the site has changed that: it is given
on stdin.

Source: IBM Spectrum LSF 10.1 Command Reference (bsub, bjobs, bkill), Administering (job arrays, dependency conditions,
termination reasons).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from ...wire.resources import ResourceError
from ..base import JobFacts, JobId, JobRef, JobSpec, JobState, by_job
from ..slurm_text import Line, array_expression
from . import base
from .base import Question

__all__ = ["BJOBS_FORMAT", "Lsf", "parse_bjobs", "parse_submitted"]

BJOBS_FORMAT = "jobid jobindex stat exit_code first_host exit_reason pend_reason job_name delimiter='|'"
"""Free text comes last, so that a separator in it does no harm; the reasons hold none."""

TEMPLATE = """\
#!/bin/bash
#BSUB -J "{{ array_name }}"
#BSUB -o /dev/null
#BSUB -n {{ cpus }}
{%- if span %}
#BSUB -R "span[{{ span }}]"
{%- endif %}
{%- if memory_mb %}
#BSUB -M {{ memory_mb }}MB
#BSUB -R "rusage[mem={{ memory_mb }}MB]"
{%- endif %}
{%- if select %}
#BSUB -R "select[{{ select }}]"
{%- endif %}
{%- if gpu %}
#BSUB -gpu "{{ gpu }}"
{%- endif %}
{%- if exclusive %}
#BSUB -x
{%- endif %}
{%- if run_time_minutes %}
#BSUB -W {{ run_time_minutes }}
{%- endif %}
{%- if partition %}
#BSUB -q {{ partition }}
{%- endif %}
{%- if account %}
#BSUB -P {{ account }}
{%- endif %}
{%- if reservation %}
#BSUB -U {{ reservation }}
{%- endif %}
{%- if priority is not none %}
#BSUB -sp {{ priority }}
{%- endif %}
{%- if condition %}
#BSUB -w "{{ condition }}"
{%- endif %}
cd {{ directory }} || exit 74
exec {{ command }}
"""

_ENDS_OTHERWISE = ("-I*", "-K", "-J", "-w", "-h", "-V", "-pack", "-json", "-yaml", "-jsdl*")

_STATES = {
    "PEND": JobState.PENDING,
    "PSUSP": JobState.PENDING,
    "WAIT": JobState.PENDING,
    "FWD_PEND": JobState.PENDING,
    "DONE": JobState.COMPLETED,
    "EXIT": JobState.FAILED,
}
"""RUN, PROV, USUSP, SSUSP, UNKWN and ZOMBI count as running: nothing is decided about them."""

_TERMINATIONS = {
    "TERM_RUNLIMIT": (JobState.TIMEOUT, "TimeLimit"),
    "TERM_DEADLINE": (JobState.TIMEOUT, "deadline"),
    "TERM_WINDOW": (JobState.TIMEOUT, "run window"),
    "TERM_MEMLIMIT": (JobState.OUT_OF_MEMORY, "memory limit"),
    "TERM_SWAP": (JobState.OUT_OF_MEMORY, "swap limit"),
    "TERM_SWAPLIMIT": (JobState.OUT_OF_MEMORY, "swap limit"),
    "TERM_PREEMPT": (JobState.PREEMPTED, "preempted"),
    "TERM_ZOMBIE": (JobState.NODE_FAIL, "host lost"),
    "TERM_RC": (JobState.NODE_FAIL, "host reclaimed"),
    "TERM_OWNER": (JobState.CANCELLED, "killed by its owner"),
    "TERM_FORCE_OWNER": (JobState.CANCELLED, "killed by its owner"),
    "TERM_ADMIN": (JobState.CANCELLED, "killed by an administrator"),
    "TERM_FORCE_ADMIN": (JobState.CANCELLED, "killed by an administrator"),
    "TERM_BUCKET_KILL": (JobState.CANCELLED, "killed"),
}


class Lsf:
    """See Dialect."""

    name, queue_type, submits = "lsf", "LSF", "bsub"
    max_array = 1000  # MAX_JOB_ARRAY_SIZE by default
    by_stdin = True
    template = TEMPLATE
    unheeded: Mapping[str, str] = {"qos": "LSF has service classes; name one in slurm_cmd_args: ['-sla', 'NAME']"}
    busy = re.compile(
        r"please wait|retry|mbatchd.*(down|not respond|restart)|LSF is down|timed? ?out|connection refused"
        r"|communication|not respond|overloaded|temporar",
        re.IGNORECASE,
    )
    unknown = re.compile(
        r"is not found|already finished|no (matching|unfinished)? ?job found|no .*job found", re.IGNORECASE
    )

    def variables(self, spec: JobSpec) -> dict[str, object]:
        """See Dialect."""
        r = spec.resources
        base.refuse_arguments(r, _ENDS_OTHERWISE, "bsub")
        index = '"$((LSB_JOBINDEX - 1))"'
        job = "${LSB_JOBID}_$((LSB_JOBINDEX - 1))" if spec.count > 1 else "$LSB_JOBID"
        waits_for = [str(ref) for ref in spec.after]
        return {
            **base.variables(spec, self.options(spec), base.command(spec, index, job), waits_for),
            "cpus": max(r.cores * r.threads_per_core, (r.num_nodes or 1) * r.threads_per_core, spec.least_cores),
            "array_name": _array_name(spec),
            "condition": _condition(spec.after),
            "span": _span(spec),
            "gpu": _gpu(spec),
            "select": _select(r.constraint),
        }

    def options(self, spec: JobSpec) -> list[str]:
        """See Dialect."""
        found = [*spec.resources.slurm_cmd_args, "-J", _array_name(spec), "-o", "/dev/null", "-rn"]
        return [*found, "-w", _condition(spec.after)] if spec.after else found

    def parse_submitted(self, output: str) -> JobId | None:
        """See Dialect."""
        return parse_submitted(output)

    def cancel_arguments(self, refs: Sequence[JobRef]) -> list[list[str]]:
        """See Dialect: "12", "13[1-3,8]"."""
        arguments = [
            str(job) if chosen is None else f"{job}[{array_expression(index + 1 for index in chosen)}]"
            for job, chosen in by_job(refs).items()
        ]
        return [arguments] if arguments else []

    def own(self, user: str) -> Question | None:
        """See Dialect."""
        return None

    def ask(self, jobs: Sequence[JobId], user: str) -> list[Question]:
        """See Dialect: all jobs of the user, also those that ended a while ago (CLEAN_PERIOD)."""
        return [Question(("bjobs", "-a", "-noheader", "-u", user, "-o", BJOBS_FORMAT), parse_bjobs)]

    def ask_ended(self, job: JobId) -> Question | None:
        """See Dialect."""
        return None


def parse_submitted(output: str) -> JobId | None:
    """The number in "Job <123> is submitted to queue <normal>."."""
    found = re.findall(r"^Job <(\d+)> is submitted", output, flags=re.MULTILINE)
    return JobId(found[-1]) if found else None


def parse_bjobs(output: str) -> list[Line]:
    """Lines of `bjobs -noheader -o BJOBS_FORMAT`; a job without an array has index 0."""
    lines = []
    for text in output.splitlines():
        fields = [field.strip() for field in text.split("|", 7)]
        if len(fields) != 8 or not (fields[0].isdigit() and fields[1].isdigit()):
            continue
        job, index, stat, code, host, ended_by, pending_for, name = fields
        elements = (int(index) - 1,) if int(index) else None
        facts = _facts(stat, code, host, ended_by, pending_for)
        lines.append(Line(JobId(job), elements, facts, name.partition("[")[0]))
    return lines


def _facts(stat: str, code: str, host: str, ended_by: str, pending_for: str) -> JobFacts:
    state = _STATES.get(stat, JobState.RUNNING)
    node = host if host not in ("", "-") else None
    if not state.ended:
        return JobFacts(state, pending_for.strip("-;. ") if state is JobState.PENDING else "", node)
    if state is JobState.COMPLETED:
        return JobFacts(state, "", node, 0)
    term = re.match(r"TERM_\w+", ended_by)
    number = int(code) if code.isdigit() else None
    if term is not None and term[0] in _TERMINATIONS:
        return JobFacts(*_TERMINATIONS[term[0]], node)
    if number is None and node is None:
        return JobFacts(JobState.CANCELLED, "ended before it started")
    return JobFacts(state, "" if ended_by == "-" else ended_by, node, *base.by_signal(number))


def _array_name(spec: JobSpec) -> str:
    if spec.count == 1:
        return base.job_name(spec)
    limit = f"%{spec.at_once}" if spec.at_once is not None and spec.at_once < spec.count else ""
    return f"{base.job_name(spec)}[1-{spec.count}]{limit}"


def _condition(after: Sequence[JobRef]) -> str:
    parts = [f"ended({ref.job})" if ref.index is None else f"ended({ref.job}[{ref.index + 1}])" for ref in after]
    return " && ".join(dict.fromkeys(parts))


def _span(spec: JobSpec) -> str:
    """How the slots lie: on so many hosts, or the threads of a rank together."""
    r = spec.resources
    if r.num_nodes is not None and r.num_nodes > 1:
        return f"ptile={math.ceil(max(r.cores, r.num_nodes) / r.num_nodes) * r.threads_per_core}"
    if r.num_nodes == 1 or (r.cores == 1 and r.threads_per_core > 1):
        return "hosts=1"
    return f"block={r.threads_per_core}" if r.threads_per_core > 1 else ""


def _gpu(spec: JobSpec) -> str:
    r = spec.resources
    if not r.gpus_per_core:
        return ""
    if r.num_nodes is None and r.cores > 1:
        raise ResourceError(
            f"gpus_per_core={r.gpus_per_core}: LSF counts GPUs for each host, so say num_nodes, too, with several cores"
        )
    return f"num={math.ceil(r.cores / (r.num_nodes or 1)) * r.gpus_per_core}/host"


def _select(constraint: str | None) -> str:
    if constraint is None:
        return ""
    if not re.fullmatch(r"[\w.=!&|()-]+", constraint):
        raise ResourceError(f"constraint={constraint!r}: in LSF resources joined by & | ( ) and ! can be asked for")
    return constraint.replace("&", " && ").replace("|", " || ")
