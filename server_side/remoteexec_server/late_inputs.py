"""Inputs whose job has ended and left nothing: are they lost, or is there another attempt to wait for?

A dependant starts when its input's job has ended, however that ended. Where the input is tried again, the dependant
must not hold its allocation until then: it goes behind the new job, as a job of its own, and ends.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import NamedTuple

from . import attempts, retrying
from .store.session import Job, Journal, Session, log_tail
from .wire.messages import Loss, TaskKey

__all__ = ["Fate", "ask", "go_behind"]


class Fate(NamedTuple):
    """What is known of an input.

    Attributes:
        ended: its job has.
        loss: why it will never come.
        behind: the job of a further attempt, which runs or waits: "12", "12_3".
        soon: that job will be known soon.
    """

    ended: bool = False
    loss: Loss | None = None
    behind: str | None = None
    soon: bool = False


def ask(session: Session, job: Job, key: TaskKey) -> Fate:
    """Ask the scheduler about an input, and see to its next attempt if nobody else does.

    Args:
        job: of the dependant.

    Raises:
        QueueError: the scheduler does not answer.
        OSError: the store cannot be written.
    """
    from .batch import diagnose, here
    from .batch.base import JobRef

    deaths = session.deaths(key)
    name = job.upstream.get(key) if not deaths else _job_of(session, key, len(deaths) + 1)
    if name is None:
        return Fate(ended=not deaths, soon=bool(deaths))
    queue = here.connect(session, job)
    try:
        ref = JobRef.parse(name)
        facts = queue.states([ref])[ref]
    finally:
        queue.close()
    found = session.find_task(key) if facts.state.ended else None
    if found is None:
        return Fate(facts.state.ended, diagnose.loss(facts, ref, "", None), name if deaths else None)
    upstream, index = found
    log = session.log(upstream.name, index)
    loss = diagnose.loss(facts, ref, log_tail(log), str(log), upstream.resources)
    if loss is None or retrying.next_attempt(upstream.resources, loss, upstream.attempt) is None:
        return Fate(True, None if loss is None else retrying.told(loss, deaths))
    session.publish_death(key, upstream.attempt, loss)
    return Fate(behind=_job_of(session, key, upstream.attempt + 1), soon=True)


def go_behind(session: Session, job: Job, index: int, behind: str) -> bool:
    """Submit a dependant again, after that job; whether that was possible. The claim is the caller's to give up."""
    from .batch import here
    from .batch.base import JobRef, QueueError

    task, move = job.tasks[index], job.move + 1
    name = f"{retrying.first_name(job.name)}-r{job.attempt}w{move}-{task.position}"
    try:
        number = here.submit(session, replace(job, name=name, tasks=(task,), move=move), (JobRef.parse(behind),))
        text = f"an input is tried again as job {behind}; job {number} waits for it in the place of this one"
    except (QueueError, ValueError, OSError) as exc:
        number, text = None, f"an input is tried again as job {behind}, which is waited for here: {exc}"
    with contextlib.suppress(Exception):  # the log may be on the disk that is full
        print(f"remoteexec: {text}", file=sys.stderr)
    return number is not None


def _job_of(session: Session, key: TaskKey, attempt: int) -> str | None:
    """The job of an attempt, submitted now if no service is there that will; None while it is not known."""
    from .batch import notes

    found = session.find_task(key)
    if found is not None and found[0].attempt < attempt:
        if not session.alive():
            loss = session.deaths(key)[-1]
            resources = retrying.next_attempt(found[0].resources, loss, found[0].attempt)
            if resources is not None:
                attempts.submit(session, *found, resources)
        found = session.find_task(key)
    if found is None or found[0].attempt != attempt:
        return None
    upstream, index = found
    number = notes.read(Journal(session).notes()).again.get(upstream.name)
    if number is None:
        return None
    return f"{number}_{index}" if len(upstream.tasks) > 1 else str(number)
