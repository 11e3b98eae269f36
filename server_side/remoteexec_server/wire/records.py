"""What stands in files of the store as well as in messages: a runner needs these, and no other message.

To make the classes of all messages takes longer than all that a runner does for an empty task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType

from .evidence import NOTHING, Evidence
from .names import TaskKey
from .pilots import Pilots
from .resources import Resources

__all__ = ["BurstId", "Loss", "Terms"]

BurstId = NewType("BurstId", str)
"""Name of one burst of submits, chosen by the client; the same id twice is submitted once."""


@dataclass(frozen=True)
class Terms:
    """How jobs are submitted and asked about.

    Attributes:
        poll_s: seconds between questions to the scheduler, for all jobs at once.
        grace_s: seconds after a job's end before a missing outcome counts as lost; NFS may hide a file for 60.
        submits_per_minute: submissions, on average; see `batch.submitter.Pace`.
        jobs_at_once: jobs and elements of arrays that may run or wait in the queue at the same time; None: no limit.
        cores_at_once: the same, in CPUs.
        pilots: run tasks in these; None: each is a job.
        pysqa_config_directory: on the service's side, with the site's templates and limits.
        defaults: what calls that tasks submit ask for where they say nothing.
    """

    poll_s: float = 30.0
    grace_s: float = 90.0
    submits_per_minute: float = 60.0
    jobs_at_once: int | None = None
    cores_at_once: int | None = None
    pilots: Pilots | None = None
    pysqa_config_directory: str | None = None
    defaults: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Loss:
    """Why a task will never have an outcome; the content of a `.lost` file.

    Attributes:
        reason: "timeout", "out_of_memory", "node_failure", "cancelled", "preempted", "killed", "rejected", "quota",
            "never_started", "python_missing", "import_error", "store", "upstream" or "unknown".
        message: what happened, the evidence, the next step.
        log_tail: last lines the job printed.
        log_path: where the whole log lies on the cluster.
        upstream: with reason "upstream": the task whose failure this one inherits.
        evidence: the scheduler's facts, and what to change.
        attempts: why each attempt ended, this one last, where there were several.
    """

    reason: str
    message: str
    job: str | None = None
    node: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""
    log_path: str | None = None
    upstream: TaskKey | None = None
    evidence: Evidence = NOTHING
    attempts: tuple[str, ...] = ()
