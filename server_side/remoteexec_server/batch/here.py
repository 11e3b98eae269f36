"""Submits jobs from where a task runs, with nobody logged in: next attempts, and what goes behind other jobs.

As everywhere, a job's description is in the store before it is submitted, under a name by which it can be found.
"""

from __future__ import annotations

from dataclasses import replace

from ..store.session import Job, Journal, Session
from . import queues
from .base import JobId, JobRef, JobSpec, Queue

__all__ = ["connect", "submit"]


def connect(session: Session, job: Job) -> Queue:
    """The queue that a job came from.

    Raises:
        QueueError, PysqaConfigError, ValueError: it cannot be reached from here.
    """
    return queues.connect(job.scheduler, session.path.parent.parent, job.terms.pysqa_config_directory)


def submit(session: Session, job: Job, after: tuple[JobRef, ...] = ()) -> JobId:
    """Submit a job of one or several tasks, and note it for all services.

    Args:
        after: jobs that have to end before.

    Raises:
        QueueError, PysqaConfigError, ValueError: it is not submitted, or may be; a service looks for it by its name.
        OSError: the store cannot be written.
    """
    queue = connect(session, job)
    journal = Journal(session)
    try:
        if job.attempt > 1:
            from . import limits

            job = replace(job, resources=limits.within(queue, job.resources))
        directory = session.add_job(job)
        command = (*job.command, str(directory))
        number = queue.submit(JobSpec(job.name, directory, command, len(job.tasks), job.resources, after))
        journal.append({"job": number, "name": job.name, "tasks": len(job.tasks), "again": True})
    finally:
        journal.close()
        queue.close()
    return number
