"""Reads what SLURM's commands print: pure functions over text, tested with recorded outputs.

Plain formats (`-o`, `--parsable2`) only: the shape of `--json` changes between versions. Free text (a job's name)
comes last in a line, so that a separator in it does no harm.

Source: https://slurm.schedmd.com/squeue.html, sacct.html, scontrol.html; outputs recorded from 22.05.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

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
    "state_of",
]

SQUEUE_FORMAT = "%i|%T|%r|%N|%j"
"""Job (with the elements of an array still pending as one expression), state, reason, nodes, name."""
SACCT_FORMAT = "JobID,State,ExitCode,DerivedExitCode,NodeList,Reason,JobName"
SINFO_FORMAT = "%P|%a|%l|%D|%T"

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
    """

    name: str
    available: bool
    time_limit: str
    nodes: int
    default: bool = False


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
    """Lines of `sacct -X --noheader --parsable2 -o SACCT_FORMAT`; steps ("12.batch") are passed over."""
    lines = []
    for text in output.splitlines():
        fields = text.split("|", 6)
        identity = _identity(fields[0])
        if len(fields) == 7 and identity is not None:
            word, code, derived, node, reason, name = fields[1:]
            exit_code, signal = _exit(word, code, derived)
            facts = JobFacts(state_of(word), _reason(word, reason), _value(node), exit_code, signal)
            lines.append(Line(*identity, facts, name))
    return lines


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
        facts = JobFacts(state_of(word), _reason(word, fields.get("Reason", "")), _value(node), exit_code, signal)
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
    """Lines of `sinfo -h -o SINFO_FORMAT`, one entry for each partition, in SLURM's order."""
    found: dict[str, Partition] = {}
    for text in output.splitlines():
        fields = text.split("|")
        if len(fields) != 5 or not fields[3].isdigit():
            continue
        marked, available, limit, nodes, _ = fields
        name = marked.removesuffix("*")
        before = found[name].nodes if name in found else 0
        found[name] = Partition(name, available == "up", limit, before + int(nodes), name != marked)
    return list(found.values())


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


def _number(values: Mapping[str, str], key: str, default: int) -> int:
    match = re.match(r"\d+", values.get(key, ""))
    return int(match[0]) if match is not None else default
