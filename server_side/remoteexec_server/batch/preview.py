"""What would be submitted: the answer to `JobScript`. Nothing is written and nothing submitted."""

from __future__ import annotations

from ..store.crew import Spec
from ..store.session import Session
from ..wire.messages import JobScript, Script
from .base import JobSpec, Queue, SchedulerUnavailable, SubmitRejected
from .crews import job_of_pilots, pilot_command
from .submitter import Jobs

__all__ = ["preview"]

_NAME = "rx-preview-0"
"""Stands for the name that a job gets when it is submitted."""


def preview(queue: Queue, session: Session, jobs: Jobs, client: str, request: JobScript) -> Script:
    """The script of a job that waits for no other; for a client with pilots, which run all its tasks, that of a pilot.

    Args:
        jobs: what was agreed with the client.
    """
    spec = _job(session, jobs, client, request)
    try:
        return Script(request.number, queue.script(spec))
    except SubmitRejected as exc:
        return Script(request.number, str(exc), "SubmitRejected")
    except SchedulerUnavailable as exc:
        return Script(request.number, str(exc), "SchedulerUnavailable")


def _job(session: Session, jobs: Jobs, client: str, request: JobScript) -> JobSpec:
    pilots = jobs.terms.pilots
    if pilots is not None:
        spec = Spec(pilots, pilot_command(jobs.command), jobs.scheduler, jobs.terms.grace_s)
        return job_of_pilots(session, client, spec, _NAME, request.count)
    directory = session.job_directory(_NAME)
    return JobSpec(_NAME, directory, (*jobs.command, str(directory)), request.count, request.resources)
