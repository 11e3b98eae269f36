"""PBS Professional and OpenPBS, and Torque, which has grown apart from them.

The number of an array is "123[]", as qsub prints it without the server's name.

Source: Altair PBS Professional 2022.1 User's Guide and Reference Guide (qsub, qstat, qselect, qdel, job attributes);
Torque Resource Manager 6.1 Administrator Guide (qsub, qstat, qdel, job arrays).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...wire.resources import ResourceError, Resources
from ..base import JobFacts, JobId, JobRef, JobSpec, JobState, by_job
from ..slurm_text import Line, array_expression
from ..variables import memory_mb
from . import base
from .base import Question

__all__ = ["Pbs", "Torque", "check_priority", "nodes", "parse_ids", "parse_jobs", "parse_submitted"]

TEMPLATE = """\
#!/bin/bash
#PBS -N {{ job_name }}
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /dev/null
#PBS -r n
#PBS -V
%(request)s
{%%- if run_time_max %%}
#PBS -l walltime={{ run_time_max }}
{%%- endif %%}
{%%- if account %%}
#PBS -A {{ account }}
{%%- endif %%}
{%%- if destination %%}
#PBS -q {{ destination }}
{%%- endif %%}
{%%- if priority is not none %%}
#PBS -p {{ priority }}
{%%- endif %%}
{%%- if array %%}
#PBS %(array)s {{ array }}
{%%- endif %%}
{%%- if dependency_list %%}
#PBS -W depend={{ depend }}
{%%- endif %%}
cd {{ directory }} || exit 74
exec {{ command }}
"""

_PBS_REQUEST = """\
#PBS -l select={{ select }}
{%- if place %}
#PBS -l place={{ place }}
{%- endif %}"""

_TORQUE_REQUEST = """\
#PBS -l nodes={{ nodes }}
{%- if memory_total_mb %}
#PBS -l mem={{ memory_total_mb }}mb
{%- endif %}
{%- if exclusive %}
#PBS -l naccesspolicy=singlejob
{%- endif %}
{%- if qos %}
#PBS -l qos={{ qos }}
{%- endif %}
{%- if reservation %}
#PBS -l advres={{ reservation }}
{%- endif %}"""

_ENDS_OTHERWISE = ("-I*", "-z*", "-J*", "-t*", "-Wblock*", "-Wdepend*", "block=*", "depend=*", "--*")

_STATES = {
    "Q": JobState.PENDING,
    "H": JobState.PENDING,
    "W": JobState.PENDING,
    "T": JobState.PENDING,
    "M": JobState.GONE,
    "F": JobState.COMPLETED,
    "X": JobState.COMPLETED,
    "C": JobState.COMPLETED,
}
"""B, E, R, S and U count as running: nothing is decided about them. How a job ended is in its Exit_status."""

_REASONS = (
    (re.compile(r"walltime.*exceeded|exceeded.*walltime|\bTIMEOUT\b", re.IGNORECASE), JobState.TIMEOUT, "TimeLimit"),
    (re.compile(r"\b(mem|vmem|memory)\b.*exceeded|exceeded.*\bmem", re.IGNORECASE), JobState.OUT_OF_MEMORY, "memory"),
    (re.compile(r"node (down|fail)|lost contact", re.IGNORECASE), JobState.NODE_FAIL, "node failure"),
    (re.compile(r"\b(terminated|deleted) by|qdel", re.IGNORECASE), JobState.CANCELLED, "deleted"),
)
"""What a job's comment tells of a bad end."""

_EXITS = {
    -29: (JobState.TIMEOUT, "TimeLimit"),  # JOB_EXEC_KILL_WALLTIME
    -27: (JobState.OUT_OF_MEMORY, "mem"),  # JOB_EXEC_KILL_MEM
    -26: (JobState.OUT_OF_MEMORY, "vmem"),  # JOB_EXEC_KILL_VMEM
}
_TORQUE_EXITS = {
    -10: (JobState.OUT_OF_MEMORY, "mem"),  # JOB_EXEC_OVERLIMIT_MEM
    -11: (JobState.TIMEOUT, "TimeLimit"),  # JOB_EXEC_OVERLIMIT_WT
}
_Exits = Mapping[int, tuple[JobState, str]]


class _Common:
    """What the two have in common."""

    queue_type = "TORQUE"
    submits = "qsub"
    by_stdin = False
    busy = re.compile(
        r"cannot connect|connection refused|timed? ?out|server (is )?(busy|shut)|try again|communication failure"
        r"|end of file|no (permission|route)? ?to host|pbs_iff|munge|temporar",
        re.IGNORECASE,
    )
    unknown = re.compile(r"unknown job id|has finished|completed|invalid state|not found", re.IGNORECASE)

    _index: str  # variable with the index of an element
    _array: str  # option that makes an array

    def options(self, spec: JobSpec) -> list[str]:
        """See Dialect."""
        found = [*spec.resources.slurm_cmd_args, "-N", base.job_name(spec), "-j", "oe", "-o", "/dev/null", "-r", "n"]
        if spec.count > 1:
            found += [self._array, _array(spec)]
        if spec.after:
            found += ["-W", f"depend={self._depend(spec.after)}"]
        return found

    def _variables(self, spec: JobSpec, destination: str | None) -> dict[str, object]:
        base.refuse_arguments(spec.resources, _ENDS_OTHERWISE, "qsub")
        check_priority(spec.resources)
        array = spec.count > 1
        number = "${PBS_JOBID%%[!0-9]*}"
        job = f"{number}[]_${self._index}" if array else number
        command = base.command(spec, f'"${self._index}"', job)
        return {
            **base.variables(spec, self.options(spec), command, [str(job) for job in base.whole_jobs(spec.after)]),
            "destination": destination,
            "array": _array(spec) if array else None,
            "depend": self._depend(spec.after),
        }

    def parse_submitted(self, output: str) -> JobId | None:
        """See Dialect."""
        return parse_submitted(output)

    def cancel_arguments(self, refs: Sequence[JobRef]) -> list[list[str]]:
        """See Dialect."""
        return [self._deletion(refs)] if refs else []

    def own(self, user: str) -> Question | None:
        """See Dialect."""
        return Question(("qselect", *self._history, "-u", user), parse_ids)

    def ask(self, jobs: Sequence[JobId], user: str) -> list[Question]:
        """See Dialect; without numbers, qstat would list everybody's jobs."""
        return [Question(("qstat", *self._history, "-t", "-f", *jobs), self._read)] if jobs else []

    def ask_ended(self, job: JobId) -> Question | None:
        """See Dialect: what they remember is in `ask`."""
        return None

    _history: tuple[str, ...]

    def _read(self, output: str) -> list[Line]:
        raise NotImplementedError

    def _depend(self, after: Sequence[JobRef]) -> str:
        raise NotImplementedError

    def _deletion(self, refs: Sequence[JobRef]) -> list[str]:
        raise NotImplementedError


class Pbs(_Common):
    """PBS Professional and OpenPBS."""

    name = "pbs"
    max_array = 1000  # max_array_size is 10,000 by default; sites lower it
    template = TEMPLATE % {"request": _PBS_REQUEST, "array": "-J"}
    unheeded: Mapping[str, str] = {
        "qos": "PBS has none",
        "constraint": "PBS has resources of the site's own instead; name them in slurm_cmd_args or a template",
    }
    _index, _array, _history = "PBS_ARRAY_INDEX", "-J", ("-x",)

    def variables(self, spec: JobSpec) -> dict[str, object]:
        """See Dialect. A reservation of PBS is a queue."""
        r = spec.resources
        if r.partition and r.reservation:
            raise ResourceError(f"reservation={r.reservation!r}: it is the queue; leave partition={r.partition!r} out")
        place = [word for word, wanted in (("scatter", r.num_nodes), ("exclhost", r.exclusive)) if wanted]
        return {
            **self._variables(spec, r.reservation or r.partition),
            "select": _select(spec),
            "place": ":".join(["free", *place] if place == ["exclhost"] else place),
        }

    def _depend(self, after: Sequence[JobRef]) -> str:
        return "afterany:" + ":".join(base.whole_jobs(after))

    def _deletion(self, refs: Sequence[JobRef]) -> list[str]:
        """ "12", "13[]", "14[0-3]" and "14[7]"."""
        arguments = []
        for job, chosen in by_job(refs).items():
            ranges = [] if chosen is None else array_expression(chosen).split(",")
            arguments += [f"{job.removesuffix('[]')}[{each}]" for each in ranges] or [str(job)]
        return arguments

    def _read(self, output: str) -> list[Line]:
        return parse_jobs(output, _EXITS)


class Torque(_Common):
    """Torque, on its own or under Maui or Moab."""

    name = "torque"
    max_array = 1000
    template = TEMPLATE % {"request": _TORQUE_REQUEST, "array": "-t"}
    unheeded: Mapping[str, str] = {}
    _index, _array, _history = "PBS_ARRAYID", "-t", ()

    def variables(self, spec: JobSpec) -> dict[str, object]:
        """See Dialect."""
        return {
            **self._variables(spec, spec.resources.partition),
            "nodes": nodes(spec),
            "memory_total_mb": memory_mb(spec.resources, 1),
        }

    def _depend(self, after: Sequence[JobRef]) -> str:
        """Arrays are waited for by another word than jobs."""
        jobs = base.whole_jobs(after)
        arrays, single = [job for job in jobs if job.endswith("[]")], [job for job in jobs if not job.endswith("[]")]
        parts = [("afterany", single), ("afteranyarray", arrays)]
        return ",".join(f"{word}:{':'.join(these)}" for word, these in parts if these)

    def _deletion(self, refs: Sequence[JobRef]) -> list[str]:
        """ "12", "13[]", and "14[3]" for each element: its qdel takes ranges for one array at a time."""
        arguments = []
        for job, chosen in by_job(refs).items():
            single = [] if chosen is None else sorted(chosen)
            arguments += [f"{job.removesuffix('[]')}[{index}]" for index in single] or [str(job)]
        return arguments

    def _read(self, output: str) -> list[Line]:
        lines = parse_jobs(output, _TORQUE_EXITS)
        # elements of an array are called after their index, too
        return [
            line if line.elements is None else replace(line, name=line.name.removesuffix(f"-{line.elements[0]}"))
            for line in lines
        ]


def nodes(spec: JobSpec) -> str:
    """The value of Torque's and Moab's `-l nodes=`: ranks spread evenly, features of the nodes behind.

    Raises:
        ResourceError: features joined by something else than "&".
    """
    r = spec.resources
    if r.constraint and not re.fullmatch(r"[\w.=-]+(&[\w.=-]+)*", r.constraint):
        raise ResourceError(f"constraint={r.constraint!r}: here only features joined by & can be asked for")
    features = "".join(f":{feature}" for feature in (r.constraint or "").split("&") if feature)
    least = math.ceil(spec.least_cores / (r.num_nodes or 1))
    parts = []
    for count, ranks in _spread(r.cores, r.num_nodes or 1):
        gpus = f":gpus={ranks * r.gpus_per_core}" if r.gpus_per_core else ""
        parts.append(f"{count}:ppn={max(ranks * r.threads_per_core, least, 1)}{gpus}{features}")
    return "+".join(parts)


def parse_submitted(output: str) -> JobId | None:
    """The number in what qsub printed: "123.server" or "123[].server", warnings before it left aside."""
    for line in reversed(output.splitlines()):
        match = re.fullmatch(r"(\d+(?:\[\])?)(?:\.[\w.-]+)?", line.strip())
        if match is not None:
            return JobId(match[1])
    return None


def parse_ids(output: str) -> list[Line]:
    """Lines of qselect."""
    found = (parse_submitted(line) for line in output.splitlines())
    return [Line(job, None, JobFacts(JobState.PENDING), "") for job in found if job is not None]


def parse_jobs(output: str, exits: _Exits = _EXITS) -> list[Line]:
    """Records of `qstat -f`; long values are continued in lines that begin with a tab."""
    lines = []
    for record in re.split(r"^Job Id: ?", re.sub(r"\n\t", "", output), flags=re.MULTILINE)[1:]:
        head, _, body = record.partition("\n")
        identity = re.fullmatch(r"(\d+)(\[(\d*)\])?(?:\.[\w.-]+)?", head.strip())
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(" = ") for line in body.splitlines())}
        if identity is None or "job_state" not in fields:
            continue
        number, brackets, index = identity.groups()
        if brackets and not index:
            continue  # the array as a whole: its elements are listed, too
        job = JobId(f"{number}[]" if brackets else number)
        elements = (int(index),) if brackets else None
        lines.append(Line(job, elements, _facts(fields, exits), fields.get("Job_Name", "")))
    return lines


def _facts(fields: Mapping[str, str], exits: _Exits) -> JobFacts:
    state = _STATES.get(fields["job_state"], JobState.RUNNING)
    node = re.split(r"[/+(:]", fields.get("exec_host", "").lstrip("("))[0] or None
    comment = fields.get("comment", "")
    if not state.ended:
        return JobFacts(state, comment if state is JobState.PENDING else "", node)
    status = fields.get("Exit_status") or fields.get("exit_status")
    code = int(status) if status is not None and re.fullmatch(r"-?\d+", status) else None
    if code == 0:
        return JobFacts(JobState.COMPLETED, "", node, 0)
    if code is not None and code in exits:
        return JobFacts(*exits[code], node)
    for words, end, reason in _REASONS:
        if words.search(comment):
            return JobFacts(end, reason, node, *base.by_signal(code))
    if code is None:
        # ended without ever having run: nobody but a person, or a dependency, does that
        return JobFacts(JobState.CANCELLED if node is None else JobState.FAILED, comment, node)
    return JobFacts(JobState.FAILED, comment, node, *base.by_signal(code))


def _array(spec: JobSpec) -> str:
    limit = f"%{spec.at_once}" if spec.at_once is not None and spec.at_once < spec.count else ""
    return f"0-{spec.count - 1}{limit}"


def _select(spec: JobSpec) -> str:
    """Chunks: one for each rank, or for each node where their number is given."""
    r = spec.resources
    spread = _spread(r.cores, r.num_nodes) if r.num_nodes else [(r.cores, 1)]
    pieces = sum(count for count, _ in spread)
    memory, least = memory_mb(r, pieces), math.ceil(spec.least_cores / pieces)
    chunks = []
    for count, ranks in spread:
        chunk = [str(count), f"ncpus={max(ranks * r.threads_per_core, least, 1)}", f"mpiprocs={ranks}"]
        chunk += [f"ompthreads={r.threads_per_core}"]
        chunk += [f"mem={memory}mb"] if memory else []
        chunk += [f"ngpus={ranks * r.gpus_per_core}"] if r.gpus_per_core else []
        chunks.append(":".join(chunk))
    return "+".join(chunks)


def _spread(ranks: int, nodes: int) -> list[tuple[int, int]]:
    """Ranks over nodes as evenly as it goes: pairs of a number of nodes and the ranks on each."""
    each, more = divmod(ranks, nodes)
    return [(count, many) for count, many in ((more, each + 1), (nodes - more, each)) if count]


def check_priority(resources: Resources) -> None:
    """Refuse what qsub and msub would.

    Raises:
        ResourceError: names value and rule.
    """
    if resources.priority is not None and not -1024 <= resources.priority <= 1023:
        raise ResourceError(f"priority={resources.priority}: must be from -1024 to 1023 here")
