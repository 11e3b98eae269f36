"""Reads what SLURM's commands print: pure functions over text, tested with recorded outputs.

Plain formats (`-o`, `--parsable2`) only: the shape of `--json` changes between versions. Free text (a job's name)
comes last in a line, so that a separator in it does no harm.

Source: https://slurm.schedmd.com/squeue.html, sacct.html, scontrol.html; outputs recorded from 22.05 to 26.05
(tests/unit/recorded).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..wire.evidence import Usage
from .base import JobFacts, JobId, JobRef, JobState

__all__ = [
    "SACCT_FORMAT",
    "SINFO_FORMAT",
    "SQUEUE_FORMAT",
    "Config",
    "Line",
    "Partition",
    "array_expression",
    "indices",
    "parse_config",
    "parse_job_id",
    "parse_sacct",
    "parse_show_job",
    "parse_sinfo",
    "parse_squeue",
    "seconds",
    "state_of",
]

SQUEUE_FORMAT = "%i|%T|%r|%N|%j"
"""Job (with the elements of an array still pending as one expression), state, reason, nodes, name."""
SACCT_FORMAT = "JobID,State,ExitCode,DerivedExitCode,NodeList,Reason,ElapsedRaw,TimelimitRaw,ReqMem,MaxRSS,JobName"
"""The limit in minutes, what was used in seconds; MaxRSS stands in the lines of steps."""
SINFO_FORMAT = "%P|%a|%l|%D|%T|%C"
"""Partition, whether it is up, its time limit, nodes in a state, the state, their CPUs (allocated/idle/other/total)."""

_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "NODE_FAIL": JobState.NODE_FAIL,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "PREEMPTED": JobState.PREEMPTED,
}
"""Every state that is not RUNNING. COMPLETING, SUSPENDED, STOPPED, STAGE_OUT, SIGNALING and what later versions may add
count as running: nothing is decided about them."""

_TOLD_BY_STATE = ("DEADLINE", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""States that say more than ours: kept as the reason where SLURM names no other."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}

_BEYOND_128 = {9: 128 + 9, 15: 128 + 15}
"""sacct takes 128 off larger exit codes (print.c; seen in 22.05 to 24.11, gone in 25.11), scontrol does not. These two
are the runner's for SIGKILL and SIGTERM, and hardly anybody else's; of all others it is not said which they were."""

_NOTHING = frozenset(("", "None", "(null)", "None assigned", "N/A", "n/a", "Unknown"))


@dataclass(frozen=True)
class Line:
    """One line of squeue or sacct: a job or some elements of an array, all in the same state.

    Attributes:
        elements: None for a job without an array.
    """

    job: JobId
    elements: tuple[int, ...] | None
    facts: JobFacts
    name: str

    def refs(self) -> Iterator[JobRef]:
        """The job, or each element."""
        if self.elements is None:
            yield JobRef(self.job)
        else:
            for index in self.elements:
                yield JobRef(self.job, index)


@dataclass(frozen=True)
class Config:
    """What we need of `scontrol show config`.

    Attributes:
        max_array: length of the longest array: MaxArraySize (one more than the largest index), or less where
            SchedulerParameters=max_array_tasks says so.
        message_timeout_s: after which SLURM's own commands give up.
        min_job_age_s: how long at least an ended job is shown.
        accounting: sacct asks a database.
    """

    version: str
    max_array: int
    message_timeout_s: int
    min_job_age_s: int
    accounting: bool


@dataclass(frozen=True)
class Partition:
    """One partition, its nodes in all states added up.

    Attributes:
        time_limit: as SLURM prints it, "1-00:00:00" or "infinite".
        cpus: of its nodes; None: not said.
    """

    name: str
    available: bool
    time_limit: str
    nodes: int
    default: bool = False
    cpus: int | None = None


def state_of(word: str) -> JobState:
    """Our state for SLURM's word; "CANCELLED by 1000" and a trailing "+" are understood."""
    first = word.split()[0] if word.split() else ""
    return _STATES.get(first.rstrip("+"), JobState.RUNNING)


def indices(expression: str) -> tuple[int, ...]:
    """The elements an array expression names.

    Args:
        expression: what stands between the brackets: "5-10,12", "0-8:2", "1-9%4" (% is how many run at once).

    Raises:
        ValueError: cut short ("1-3,..."), or no expression.
    """
    found: list[int] = []
    for part in expression.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            raise ValueError(f"{part!r} in array expression {expression!r}")
        first, last, step = match.groups()
        found.extend(range(int(first), int(last or first) + 1, int(step or 1)))
    return tuple(found)


def array_expression(elements: Iterable[int]) -> str:
    """The shortest plain expression for elements: "0-3,7"."""
    runs: list[list[int]] = []
    for index in sorted(set(elements)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_job_id(output: str) -> JobId | None:
    """The number in what `sbatch --parsable` printed ("123" or "123;cluster"), warnings before it left aside."""
    for line in reversed(output.splitlines()):
        match = re.fullmatch(r"(\d+)(;.*)?", line.strip())
        if match is not None:
            return JobId(match[1])
    return None


def parse_squeue(output: str) -> list[Line]:
    """Lines of `squeue -h -o SQUEUE_FORMAT`; what is not one of them is passed over."""
    lines = []
    for text in output.splitlines():
        fields = text.split("|", 4)
        identity = _identity(fields[0])
        if len(fields) == 5 and identity is not None:
            word, reason, node, name = fields[1:]
            facts = JobFacts(state_of(word), _reason(word, reason), _value(node))
            lines.append(Line(*identity, facts, name))
    return lines


def parse_sacct(output: str) -> list[Line]:
    """Lines of `sacct --noheader --parsable2 -o SACCT_FORMAT`, one for each job, with or without those of its steps.

    Of the steps ("12.batch", "12.0") the largest memory is kept. A line stands for the job even where the job's own
    state is out of date: a job that is queued again after a failed launch is PENDING here, too.
    """
    jobs: dict[str, Line] = {}
    largest: dict[str, int] = {}
    for text in output.splitlines():
        fields = text.split("|", 10)
        if len(fields) != 11:
            continue
        name, step = fields[0].partition(".")[::2]
        if step:
            largest[name] = max(largest.get(name, 0), _bytes(fields[9]) or 0)
            continue
        line = _sacct_job(fields)
        if line is not None:
            jobs[name] = line
    return [_with_memory(line, largest.get(name)) for name, line in jobs.items()]


def _sacct_job(fields: list[str]) -> Line | None:
    identity = _identity(fields[0])
    if identity is None:
        return None
    word, code, derived, node, reason, elapsed, limit, memory, peak, name = fields[1:]
    exit_code, signal = _exit(word, code, derived)
    exit_code = _BEYOND_128.get(exit_code or 0, exit_code)
    usage = Usage(
        time_s=_count(elapsed),
        time_limit_s=_times(_count(limit), 60),
        memory_bytes=_bytes(peak),
        memory_limit_bytes=_bytes(memory),
    )
    facts = JobFacts(
        state_of(word),
        _reason(word, reason),
        _value(node),
        exit_code,
        signal,
        _canceller(word),
        _of_an_end(word, usage),
    )
    return Line(*identity, facts, name)


def _with_memory(line: Line, peak: int | None) -> Line:
    if not peak or not line.facts.state.ended:
        return line
    return replace(line, facts=replace(line.facts, usage=replace(line.facts.usage, memory_bytes=peak)))


def parse_show_job(output: str) -> list[Line]:
    """Records of `scontrol -o show job ID`; an array has one for each element that has started.

    A record is found by its beginning, not by the end of the line: a path with a line break breaks the line.
    """
    lines = []
    for record in re.split(r"^(?=JobId=\d+ )", output, flags=re.MULTILINE):
        fields = _fields(record)
        job = fields.get("ArrayJobId") or fields.get("JobId")
        if job is None or "JobState" not in fields:
            continue
        elements = None
        if "ArrayTaskId" in fields:
            try:
                elements = indices(fields["ArrayTaskId"])
            except ValueError:
                continue
        word = fields["JobState"]
        exit_code, signal = _exit(word, fields.get("ExitCode", ""), fields.get("DerivedExitCode", ""))
        node = fields.get("BatchHost") or fields.get("NodeList", "")
        usage = Usage(
            time_s=seconds(fields.get("RunTime", "")),
            time_limit_s=seconds(fields.get("TimeLimit", "")),
            memory_limit_bytes=_tres_memory(fields),
        )
        reason = _reason(word, fields.get("Reason", ""))
        facts = JobFacts(state_of(word), reason, _value(node), exit_code, signal, usage=_of_an_end(word, usage))
        lines.append(Line(JobId(job), elements, facts, fields.get("JobName", "")))
    return lines


def parse_config(output: str) -> Config:
    """What `scontrol show config` says; SLURM's defaults for what it does not."""
    values: dict[str, str] = {}
    for text in output.splitlines():
        key, separator, value = text.partition(" = ")
        if separator:
            values[key.strip()] = value.strip()
    longest = _number(values, "MaxArraySize", 1001)
    fewer = re.search(r"\bmax_array_tasks=(\d+)", values.get("SchedulerParameters", ""))
    return Config(
        version=values.get("SLURM_VERSION", ""),
        max_array=max(1, min(longest, int(fewer[1])) if fewer is not None else longest),
        message_timeout_s=_number(values, "MessageTimeout", 10),
        min_job_age_s=_number(values, "MinJobAge", 300),
        accounting=values.get("AccountingStorageType", "accounting_storage/none")
        not in ("accounting_storage/none", "(null)", ""),
    )


def parse_sinfo(output: str) -> list[Partition]:
    """Lines of `sinfo -h -o SINFO_FORMAT`, with or without the CPUs; one entry for each partition, in SLURM's order."""
    found: dict[str, Partition] = {}
    for text in output.splitlines():
        fields = text.split("|")
        if len(fields) not in (5, 6) or not fields[3].isdigit():
            continue
        marked, available, limit, nodes, _, *cpus = fields
        name = marked.removesuffix("*")
        line = Partition(name, available == "up", limit, int(nodes), name != marked, _total(cpus))
        found[name] = _added(found[name], line) if name in found else line
    return list(found.values())


def _added(one: Partition, other: Partition) -> Partition:
    """The same partition with the nodes of two states."""
    cpus = None if one.cpus is None or other.cpus is None else one.cpus + other.cpus
    return replace(other, nodes=one.nodes + other.nodes, cpus=cpus)


def _total(cpus: list[str]) -> int | None:
    """The last number of "2/6/0/8", if it is there."""
    total = cpus[0].rpartition("/")[2] if cpus else ""
    return int(total) if total.isdigit() else None


def _identity(text: str) -> tuple[JobId, tuple[int, ...] | None] | None:
    """Job and elements of "12", "12_3" and "12_[3-5%2]"; of a part of a heterogeneous job, "12+1", the job."""
    match = re.fullmatch(r"(\d+)(?:\+\d+)?(?:_(?:(\d+)|\[([^]]*)\]))?", text.strip())
    if match is None:
        return None
    job, one, many = match.groups()
    if many is not None:
        try:
            return JobId(job), indices(many)
        except ValueError:
            return None
    return JobId(job), None if one is None else (int(one),)


def _exit(word: str, code: str, derived: str) -> tuple[int | None, int | None]:
    """Exit code and signal of "74:0" or "0:9", for jobs that have ended.

    SLURM's exit code of a job is its batch script's; the derived one is the worst of its steps, used only when the
    first says nothing. A cancelled job's 0 says nothing either.
    """
    state = state_of(word)
    if not state.ended:
        return None, None
    for text in (code, derived):
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is not None and (match[1] != "0" or match[2] != "0"):
            return int(match[1]) or None, int(match[2]) or None
    return (0, None) if state is JobState.COMPLETED and code else (None, None)


def _reason(word: str, reason: str) -> str:
    reason = _value(reason) or ""
    first = word.split()[0] if word.split() else ""
    if first in _TOLD_BY_STATE and not reason:
        return first
    return reason


def _value(text: str) -> str | None:
    text = text.strip()
    return None if text in _NOTHING else text


def _fields(record: str) -> dict[str, str]:
    """KEY=value pairs up to `Command=`, where paths begin that may hold anything.

    A name may hold blanks and equal signs, and a reason blanks: both end where the next field that always follows
    begins.
    """
    head = re.split(r"\sCommand=", record, maxsplit=1)[0]
    name = re.search(r"\sJobName=(.*?)\sUserId=", head, re.DOTALL)
    if name is not None:
        head = head[: name.start()] + " UserId=" + head[name.end() :]
    reason = re.search(r"\sReason=(.*?)\sDependency=", head, re.DOTALL)
    if reason is not None:
        head = head[: reason.start()] + " Dependency=" + head[reason.end() :]
    fields = {key: value for key, separator, value in (word.partition("=") for word in head.split()) if separator}
    if name is not None:
        fields["JobName"] = name[1]
    if reason is not None:
        fields["Reason"] = reason[1]
    return fields


def seconds(text: str) -> float | None:
    """Seconds of SLURM's "MM:SS", "HH:MM:SS" and "1-02:03:04"; None for "UNLIMITED" and all else."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def _tres_memory(fields: Mapping[str, str]) -> int | None:
    """What the job was given, else what it asked for; one field, named otherwise, until 22.05."""
    for key in ("AllocTRES", "ReqTRES", "TRES"):
        match = re.search(r"(?:^|,)mem=([^,]+)", fields.get(key, ""))
        if match is not None:
            return _bytes(match[1])
    return None


def _bytes(text: str) -> int | None:
    """Bytes of "200M", "3016K", "0.5G"; SLURM before 21.08 said "200Mc", for each CPU, which decides nothing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)", text.strip())
    return round(float(match[1]) * _UNITS[match[2]]) if match is not None else None


def _count(text: str) -> float | None:
    return float(text) if text.strip().isdigit() else None


def _times(number: float | None, factor: float) -> float | None:
    return None if number is None else number * factor


def _canceller(word: str) -> str:
    """ "uid 1000" of "CANCELLED by 1000"."""
    match = re.match(r"CANCELLED by (\d+)", word)
    return f"uid {match[1]}" if match is not None else ""


def _of_an_end(word: str, usage: Usage) -> Usage:
    """Usage of a job that has ended; of one that has not, what it may use."""
    return usage if state_of(word).ended else replace(usage, time_s=None, memory_bytes=None)


def _number(values: Mapping[str, str], key: str, default: int) -> int:
    match = re.match(r"\d+", values.get(key, ""))
    return int(match[0]) if match is not None else default
