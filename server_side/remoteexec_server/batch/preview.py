"""What would be submitted: the answer to `JobScript`. Nothing is written and nothing submitted."""

from __future__ import annotations

from ..store.session import Session
from ..wire.messages import JobScript, Script
from .base import JobSpec, Queue, SchedulerUnavailable, SubmitRejected

__all__ = ["preview"]

_NAME = "rx-preview-0"
"""Stands for the name that a job gets when it is submitted."""


def preview(queue: Queue, session: Session, command: tuple[str, ...], request: JobScript) -> Script:
    """The script of a job that waits for no other.

    Args:
        command: starts the runner, without its arguments.
    """
    directory = session.job_directory(_NAME)
    spec = JobSpec(_NAME, directory, (*command, str(directory)), request.count, request.resources)
    try:
        return Script(request.number, queue.script(spec))
    except SubmitRejected as exc:
        return Script(request.number, str(exc), "SubmitRejected")
    except SchedulerUnavailable as exc:
        return Script(request.number, str(exc), "SchedulerUnavailable")
