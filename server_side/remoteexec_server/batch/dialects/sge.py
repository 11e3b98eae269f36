"""Grid Engine: Sun's, Son of, Open, Univa's and Altair's. Elements of an array are counted from 1 there, from 0 by us.

Several slots need a parallel environment, whose name is the site's: resource_dict={"parallel_environment": "smp"}.

Tried by hand on Debian's Grid Engine 8.1.9: arrays, dependencies, limits, cancellations. Whoever deletes a running job
there is not told from who kills it. An element deleted before it starts leaves no trace.

Source: manual pages submit(1), qstat(1), qdel(1), qacct(1), sge_status(5) of Son of Grid Engine 8.1.9.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence

from ...wire.resources import ResourceError
from ..base import JobFacts, JobId, JobRef, JobSpec, JobState, by_job
from ..slurm_text import Line, array_expression
from ..variables import memory_mb
from . import base
from .base import Question
from .pbs import check_priority

__all__ = ["Sge", "parse_qacct", "parse_qstat", "parse_submitted"]

TEMPLATE = """\
#!/bin/bash
#$ -N {{ job_name }}
#$ -S /bin/bash
#$ -j y
#$ -o /dev/null
#$ -r n
#$ -V
{%- if cpus > 1 %}
#$ -pe {{ parallel_environment }} {{ cpus }}
{%- endif %}
{%- if memory_of_slot_mb %}
#$ -l h_vmem={{ memory_of_slot_mb }}M
{%- endif %}
{%- if run_time_max %}
#$ -l h_rt={{ run_time_max }}
{%- endif %}
{%- if features %}
#$ -l {{ features }}
{%- endif %}
{%- if exclusive %}
#$ -l exclusive=true
{%- endif %}
{%- if partition %}
#$ -q {{ partition }}
{%- endif %}
{%- if account %}
#$ -A {{ account }}
{%- endif %}
{%- if reservation %}
#$ -ar {{ reservation }}
{%- endif %}
{%- if priority is not none %}
#$ -p {{ priority }}
{%- endif %}
{%- if array %}
#$ -t {{ array }}
{%- endif %}
{%- if at_once %}
#$ -tc {{ at_once }}
{%- endif %}
{%- if dependency_list %}
#$ -hold_jid {{ dependency_list | join(',') }}
{%- endif %}
cd {{ directory }} || exit 74
exec {{ command }}
"""

_ENDS_OTHERWISE = ("-sync", "-now", "-verify", "-help", "-t", "-tc", "-hold_jid*", "-@")

_FAILURES = {
    "37": (JobState.TIMEOUT, "TimeLimit"),
}
"""37 stands for h_rt, h_cpu and h_vmem: nearly always the time, since the kernel enforces memory."""


class Sge:
    """See Dialect."""

    name, queue_type, submits = "sge", "SGE", "qsub"
    max_array = 1000  # max_aj_tasks is 75,000 by default; sites lower it
    by_stdin = False
    template = TEMPLATE
    unheeded: Mapping[str, str] = {
        "num_nodes": "the parallel environment spreads the slots",
        "qos": "Grid Engine has none",
    }
    busy = re.compile(
        r"unable to (contact|send message to) qmaster|commlib error|got (no|read) |timed? ?out|connection refused"
        r"|can.t (get|resolve)|temporar",
        re.IGNORECASE,
    )
    unknown = re.compile(r"does not exist|not found|no jobs|already in deletion", re.IGNORECASE)

    def variables(self, spec: JobSpec) -> dict[str, object]:
        """See Dialect."""
        r = spec.resources
        base.refuse_arguments(r, _ENDS_OTHERWISE, "qsub")
        check_priority(r)
        array = spec.count > 1
        index = '"$((SGE_TASK_ID - 1))"'
        job = "${JOB_ID}_$((SGE_TASK_ID - 1))" if array else "$JOB_ID"
        cpus = max(r.cores * r.threads_per_core, spec.least_cores)
        if r.submission_template is None:
            self._check(spec, cpus)
        return {
            **base.variables(
                spec, self.options(spec), base.command(spec, index, job), [str(j) for j in base.whole_jobs(spec.after)]
            ),
            "memory_of_slot_mb": memory_mb(r, cpus),
            "features": (r.constraint or "").replace("&", ","),
            "array": f"1-{spec.count}" if array else None,
            "at_once": _at_once(spec),
        }

    def options(self, spec: JobSpec) -> list[str]:
        """See Dialect."""
        found = [*spec.resources.slurm_cmd_args, "-N", base.job_name(spec), "-j", "y", "-o", "/dev/null", "-r", "n"]
        if spec.count > 1:
            found += ["-t", f"1-{spec.count}"]
        if _at_once(spec):
            found += ["-tc", str(_at_once(spec))]
        if spec.after:
            found += ["-hold_jid", ",".join(base.whole_jobs(spec.after))]
        return found

    def parse_submitted(self, output: str) -> JobId | None:
        """See Dialect."""
        return parse_submitted(output)

    def cancel_arguments(self, refs: Sequence[JobRef]) -> list[list[str]]:
        """See Dialect: "12", "13.1-3" and "13.8"."""
        arguments = []
        for job, chosen in by_job(refs).items():
            ranges = [] if chosen is None else array_expression(index + 1 for index in chosen).split(",")
            arguments += [f"{job}.{each}" for each in ranges] or [str(job)]
        return [arguments] if arguments else []

    def own(self, user: str) -> Question | None:
        """See Dialect."""
        return None

    def ask(self, jobs: Sequence[JobId], user: str) -> list[Question]:
        """See Dialect; what has ended is not in it."""
        return [Question(("qstat", "-u", user, "-xml"), parse_qstat)]

    def ask_ended(self, job: JobId) -> Question | None:
        """See Dialect: the accounting file, written some seconds after the end."""
        return Question(("qacct", "-j", job), parse_qacct)

    def _check(self, spec: JobSpec, cpus: int) -> None:
        r = spec.resources
        if cpus > 1 and not r.extra.get("parallel_environment"):
            raise ResourceError(
                f"cores={r.cores}, threads_per_core={r.threads_per_core}: Grid Engine gives several slots only in a "
                'parallel environment; say resource_dict={"parallel_environment": NAME}, `qconf -spl` lists the names'
            )
        if r.gpus_per_core:
            raise ResourceError(
                f"gpus_per_core={r.gpus_per_core}: each site has its own name for GPUs in Grid Engine; "
                "say it in slurm_cmd_args, for example ['-l', 'gpu=1'], or in a submission_template"
            )
        if r.constraint and not re.fullmatch(r"[\w.=-]+(&[\w.=-]+)*", r.constraint):
            raise ResourceError(f"constraint={r.constraint!r}: here only complexes joined by & can be asked for")


def parse_submitted(output: str) -> JobId | None:
    """The number in what `qsub -terse` printed: "123", or "123.1-10:1"."""
    for line in reversed(output.splitlines()):
        match = re.fullmatch(r"(\d+)(?:\.\d+-\d+:\d+)?", line.strip())
        if match is not None:
            return JobId(match[1])
    return None


def parse_qstat(output: str) -> list[Line]:
    """Jobs of `qstat -xml`: running elements one by one, waiting ones of an array as ranges.

    Raises:
        ValueError: not XML.
    """
    try:
        tree = ElementTree.fromstring(output)
    except ElementTree.ParseError as exc:
        raise ValueError(f"not the XML of qstat: {exc}") from exc
    lines = []
    for job in tree.iter("job_list"):
        number, word = job.findtext("JB_job_number", ""), job.findtext("state", "")
        if not number.isdigit():
            continue
        node = job.findtext("queue_name", "").partition("@")[2] or None
        tasks = job.findtext("tasks", "")
        elements = tuple(_elements(tasks)) if tasks else None
        lines.append(Line(JobId(number), elements, _live(word, node), job.findtext("JB_name", "")))
    return lines


def parse_qacct(output: str) -> list[Line]:
    """Records of `qacct -j`, one for each job or element that has ended."""
    lines = []
    for record in re.split(r"^=+\s*$", output, flags=re.MULTILINE):
        fields: dict[str, str] = {}
        for text in record.splitlines():
            key, _, value = text.strip().partition(" ")
            fields.setdefault(key, value.strip())
        if not fields.get("jobnumber", "").isdigit():
            continue
        task = fields.get("taskid", "undefined")
        elements = (int(task) - 1,) if task.isdigit() else None
        lines.append(Line(JobId(fields["jobnumber"]), elements, _ended(fields), fields.get("jobname", "")))
    return lines


def _live(word: str, node: str | None) -> JobFacts:
    """Of a state such as "r", "qw", "hqw", "Eqw", "dr"."""
    if "E" in word:
        return JobFacts(JobState.FAILED, f"error state {word}", node)
    if "w" in word or word == "Rq":
        return JobFacts(JobState.PENDING, "held" if "h" in word else "", node)
    return JobFacts(JobState.RUNNING, "", node)


def _ended(fields: Mapping[str, str]) -> JobFacts:
    node = fields.get("hostname") or None
    failed, _, words = fields.get("failed", "0").partition(":")
    status = re.match(r"\d+", fields.get("exit_status", ""))
    code = int(status[0]) if status is not None else None
    if failed.strip() in _FAILURES:
        return JobFacts(*_FAILURES[failed.strip()], node)
    if fields.get("deleted_by", "NONE") != "NONE":
        return JobFacts(JobState.CANCELLED, f"deleted by {fields['deleted_by']}", node)
    if failed.strip() == "0" and code == 0:
        return JobFacts(JobState.COMPLETED, "", node, 0)
    return JobFacts(JobState.FAILED, words.strip(), node, *base.by_signal(code))


def _elements(tasks: str) -> Iterator[int]:
    """Counted from 0: of "4", "1-10:1", "1-3:1,7"."""
    for part in tasks.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if match is not None:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            yield from (number - 1 for number in range(first, last + 1, max(step, 1)))


def _at_once(spec: JobSpec) -> int | None:
    return spec.at_once if spec.count > 1 and spec.at_once is not None and spec.at_once < spec.count else None
