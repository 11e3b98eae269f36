"""Reads what Flux's commands print: pure functions over text, tested with recorded outputs.

Free text (an exception's note, which may hold anything) comes last in a line, so that a separator in it does no harm;
a line break in it makes a line that is none of ours.

Source: flux-jobs(1), flux-submit(1), RFC 21 (states and exceptions of jobs), RFC 22 and the code of 0.88; outputs
recorded from 0.88.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import flux_script
from .base import JobFacts, JobId, JobRef, JobState, least_advanced

__all__ = [
    "JOBS_FORMAT",
    "Line",
    "by_ref",
    "complaints",
    "parse_ids",
    "parse_jobs",
    "parse_queues",
]

JOBS_FORMAT = (
    "{id.f58}|{state}|{result}|{waitstatus}|{exception.severity}|{exception.type}|{urgency}|{nodelist}|{name}"
    "|{exception.note}"
)

_ENDS = {
    "COMPLETED": JobState.COMPLETED,
    "CANCELED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
}
"""Results that say everything; FAILED is looked at more closely."""

_EXCEPTIONS = {
    "node-failure": JobState.NODE_FAIL,
    "preempt": JobState.PREEMPTED,
    "preempted": JobState.PREEMPTED,
    "timeout": JobState.TIMEOUT,
    "cancel": JobState.CANCELLED,
}
"""What a fatal exception makes of a job that FAILED; others leave it FAILED, with type and note as the reason. Flux
itself raises none for preemption: these are the words that whoever does it may be expected to use."""

_WORDS = {"alloc": "BadConstraints"}
"""SLURM's words, which `diagnose` knows, for Flux's types of exceptions: here that no node has what was asked for."""

_LOST_NODE = re.compile(r"\bnode failure\b|\blost contact\b", re.IGNORECASE)
"""Notes of an exception `exec`, which otherwise says that the command could not be started."""


@dataclass(frozen=True)
class Line:
    """One of our jobs, as `flux jobs` shows it.

    Attributes:
        id: Flux's number in ASCII: "f2bCF6aJ7".
    """

    id: str
    element: flux_script.Element
    facts: JobFacts

    @property
    def ref(self) -> JobRef:
        """What it is to us: a job by its number, an element of an array by the array's name and its index."""
        if self.element.count == 1:
            return JobRef(JobId(self.id))
        return JobRef(JobId(self.element.name), self.element.index)


def parse_ids(output: str) -> list[str]:
    """The numbers in what a submission printed, one a line ("ƒ2bC" or "f2bC"); what is none is passed over."""
    found = (re.fullmatch(r"[ƒf]([1-9A-HJ-NP-Za-km-z]+)", line.strip()) for line in output.splitlines())
    return [f"f{match[1]}" for match in found if match is not None]


def parse_jobs(output: str) -> list[Line]:
    """Our jobs among the lines of `flux jobs -n -o JOBS_FORMAT`; others are passed over."""
    lines = []
    for text in output.splitlines():
        fields = text.split("|", 9)
        ids = parse_ids(fields[0])
        if len(fields) != 10 or not ids:
            continue
        state, result, status, severity, kind, urgency, node, name, note = fields[1:]
        element = flux_script.element(name)
        if element is not None:
            facts = _facts(state, result, status, (severity, kind, note), urgency, node)
            lines.append(Line(ids[0], element, facts))
    return lines


def by_ref(lines: Iterable[Line]) -> dict[JobRef, JobFacts]:
    """Facts for every job and element; an array as a whole is where its least advanced element is.

    An element that was submitted twice is where the less advanced of the two is.
    """
    found: dict[JobRef, JobFacts] = {}
    for line in lines:
        for ref in {line.ref, JobRef(line.ref.job)}:
            found[ref] = least_advanced((line.facts, found.get(ref, line.facts)))
    return found


def parse_queues(output: str) -> list[str]:
    """Names in the lines of `flux queue list -n -o '{queuem}'`, the default first (it is marked "batch*").

    An instance without queues prints an empty line.
    """
    names = [name for name in (line.strip() for line in output.splitlines()) if name]
    return [name.removesuffix("*") for name in sorted(names, key=lambda name: not name.endswith("*"))]


def complaints(errors: str) -> list[str]:
    """The lines of stderr that say something, without the command's name: "flux-cancel: ERROR: "."""
    stripped = (re.sub(r"^flux[- ]\w+: (ERROR: |error: )?", "", line.strip()) for line in errors.splitlines())
    return [line for line in stripped if line]


def _facts(state: str, result: str, status: str, exception: tuple[str, str, str], urgency: str, node: str) -> JobFacts:
    if state in ("RUN", "CLEANUP"):
        return JobFacts(JobState.RUNNING, node=node or None)
    if state != "INACTIVE":
        reason = "Dependency" if state == "DEPEND" else "JobHeldUser" if urgency == "0" else ""
        return JobFacts(JobState.PENDING, reason)
    severity, kind, note = exception
    fatal = severity == "0"
    if result in _ENDS:
        return _ended_as(_ENDS[result], status, note, node)
    if fatal and kind in _EXCEPTIONS:
        return JobFacts(_EXCEPTIONS[kind], note, node or None)
    code, signal = _exit(status)
    if fatal and kind == "exec" and _LOST_NODE.search(note):
        return JobFacts(JobState.NODE_FAIL, note, node or None)
    reason = f"{_WORDS.get(kind, kind)}: {note}" if fatal and kind else "NonZeroExitCode"
    return JobFacts(JobState.FAILED, reason, node or None, code, signal)


def _ended_as(state: JobState, status: str, note: str, node: str) -> JobFacts:
    if state is JobState.COMPLETED:
        return JobFacts(state, node=node or None, exit_code=0)
    if state is JobState.TIMEOUT:
        return JobFacts(state, "TimeLimit", node or None)
    return JobFacts(state, note, node or None)


def _exit(status: str) -> tuple[int | None, int | None]:
    """Exit code and signal of a wait status.

    The status is the job shell's, which says 128 + n for a task that signal n has ended.
    """
    if not status.isdigit():
        return None, None
    code = os.waitstatus_to_exitcode(int(status))
    if code < 0 or code > 128:
        return None, -code if code < 0 else code - 128
    return code, None
