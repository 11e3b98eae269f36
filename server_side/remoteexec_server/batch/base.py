"""The seam to a batch system: what a queue is asked to do, and what it answers.

Implementations: `pysqa_queue` (SLURM through pysqa), `local_queue` (an embedded scheduler for one machine). A queue
knows nothing of tasks, stores or sessions: a job is an argument list run `count` times, its last argument the index.
Every call ends in a bounded time or raises `SchedulerUnavailable`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, Protocol

from ..wire.evidence import UNKNOWN, Usage
from ..wire.resources import Resources

JobId = NewType("JobId", str)
"""The scheduler's number of a job, without an array index."""


@dataclass(frozen=True, order=True)
class JobRef:
    """One job, or one element of a job array."""

    job: JobId
    index: int | None = None

    def __str__(self) -> str:
        return self.job if self.index is None else f"{self.job}_{self.index}"

    @classmethod
    def parse(cls, text: str) -> JobRef:
        """The inverse of `str`: "123" or "123_4"."""
        job, _, index = text.partition("_")
        return cls(JobId(job), int(index) if index else None)


class JobState(enum.Enum):
    """States of a job, in SLURM's words (https://slurm.schedmd.com/squeue.html, job state codes)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    CANCELLED = "CANCELLED"
    PREEMPTED = "PREEMPTED"
    GONE = "GONE"
    """The scheduler does not know the job any more: not the same as COMPLETED."""

    @property
    def ended(self) -> bool:
        """Nothing of the job runs any more, nor will."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class JobFacts:
    """What the scheduler says of one job or array element.

    Attributes:
        reason: the scheduler's word for why, "TimeLimit", "NonZeroExitCode", "JobHeldUser" …
        exit_code: of the job script, where known.
        signal: that ended it, where known.
        cancelled_by: see `Evidence`.
        usage: see `Usage`.
    """

    state: JobState
    reason: str = ""
    node: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    cancelled_by: str = ""
    usage: Usage = UNKNOWN


def least_advanced(facts: Iterable[JobFacts]) -> JobFacts:
    """The state of an array as a whole: running, else pending, else ended badly, else completed. At least one."""
    order = {JobState.RUNNING: 0, JobState.PENDING: 1, JobState.COMPLETED: 3}
    return min(facts, key=lambda fact: order.get(fact.state, 2))


def by_job(refs: Iterable[JobRef]) -> dict[JobId, set[int] | None]:
    """The elements asked for of each job; None for the whole job, which includes them."""
    found: dict[JobId, set[int] | None] = {}
    for ref in refs:
        elements = found.setdefault(ref.job, set())
        if ref.index is None or elements is None:
            found[ref.job] = None
        else:
            elements.add(ref.index)
    return found


@dataclass(frozen=True)
class JobSpec:
    """One job to submit.

    Attributes:
        name: unique, `[a-z0-9-]+`; by it the job is found again when an answer got lost.
        directory: exists, 0700; `run_queue.sh` and `<index>.log` (index 0 for a job without an array) go there.
        command: argument list; the index (0 <= index < count) is appended as its last argument.
        count: 1, or the length of the array.
        at_once: how many elements of the array may run at once; None: all.
        least_cores: what the site's queue asks for at least, though the task needs fewer.
        after: jobs that have to end, however they end, before this one starts.
    """

    name: str
    directory: Path
    command: tuple[str, ...]
    count: int
    resources: Resources
    after: tuple[JobRef, ...] = ()
    at_once: int | None = None
    least_cores: int = 0


class QueueError(Exception):
    """Root of what a queue raises."""


class SubmitRejected(QueueError):
    """The scheduler refused the job for good; the message holds its own words.

    Attributes:
        dependency: it refused because of `JobSpec.after`.
    """

    def __init__(self, message: str, dependency: bool = False) -> None:
        super().__init__(message)
        self.dependency = dependency


class QuotaReached(QueueError):
    """A limit of the user's, the account's or the QOS refuses the job now; it may be taken when others have ended.

    Attributes:
        limit: the scheduler's name of the limit, "QOSMaxSubmitJobPerUserLimit"; "" where it names none.
    """

    def __init__(self, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class SchedulerUnavailable(QueueError):
    """The scheduler did not answer, or said so; the command may or may not have taken effect."""


class Queue(Protocol):
    """A batch system. One thread at a time."""

    @property
    def name(self) -> str:
        """What `check` shows: "slurm 22.05.8", "local"."""

    def max_array(self) -> int:
        """The longest array it takes, >= 1."""

    def prewarm(self) -> None:
        """Called when a submission is likely soon; returns at once."""

    def submit(self, spec: JobSpec) -> JobId:
        """Submit one job or array.

        Raises:
            SubmitRejected: for good.
            QuotaReached: for now.
            SchedulerUnavailable: look with `find` before submitting again.
        """

    def unheeded(self, resources: Resources) -> Sequence[str]:
        """What of these resources it will not honour, a sentence each; asked before tasks are submitted."""

    def script(self, spec: JobSpec) -> str:
        """What `submit` would hand to the scheduler, for people to read; `spec.directory` need not exist.

        Raises:
            SubmitRejected: the job could not be described.
            SchedulerUnavailable: the script cannot be rendered now.
        """

    def find(self, name: str) -> JobId | None:
        """The job of that name, also if it ended a short while ago."""

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """End jobs, running or not, in one command; jobs that have ended are passed over."""

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        """Ask for many jobs in one command: an entry for every ref, `GONE` for those it does not know."""

    def close(self) -> None:
        """End helper processes. Jobs go on."""
