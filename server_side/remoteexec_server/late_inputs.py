"""Inputs whose job has ended and left nothing: are they lost, or is there another job to wait for?

A dependant starts when its input's job has ended, however that ended. There is another job where the input is tried
again, where it has itself made room, and where its function has returned the future of a task that it had submitted
(`store.links`). Sitting in an allocation until the other has run could keep that one from ever starting. So the
dependant goes behind it, as a job of its own, and ends; it does so anew until all inputs have ended.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from . import attempts, retrying
from .store import links
from .store.outcomes import Outcomes
from .store.session import Job, Journal, Session, client_of, log_tail
from .wire.names import TaskKey
from .wire.records import Loss

__all__ = ["Fate", "ask", "go_behind", "last_job", "make_room"]

_SHORT_S = 1.0
"""For how long it is cheaper to wait than to make room; picked, not measured."""
_LOOK_S = 0.05


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


def make_room(session: Session, job: Job, index: int) -> bool:
    """Go behind the jobs that now compute inputs, if that would take long; whether that was done.

    It is asked before the task is claimed: dying halfway leaves a job too many, and the claim lets one through.
    """
    from .batch import here
    from .batch.base import JobRef, QueueError

    outcomes = Outcomes(session)
    waiting = _elsewhere(session, job, outcomes)
    until = time.monotonic() + _SHORT_S
    while waiting and time.monotonic() < until:
        time.sleep(_LOOK_S)
        waiting = _elsewhere(session, job, outcomes)
    names = [name for key in waiting if (name := last_job(session, key)) is not None]
    if not names:
        return False  # none is in the queue yet: whoever waits here sees it come
    try:
        with contextlib.closing(here.connect(session, job)) as queue:
            facts = queue.states([JobRef.parse(name) for name in names])
    except (QueueError, ValueError, OSError) as exc:
        _print(f"tasks {', '.join(waiting)} are waited for here: {exc}")
        return False
    behind = [str(ref) for ref, fact in facts.items() if not fact.state.ended]
    return bool(behind) and go_behind(session, job, index, behind)


def ask(session: Session, job: Job, key: TaskKey, linked: bool = False) -> Fate:
    """Ask the scheduler about an input, and see to its next attempt if nobody else does.

    Args:
        job: of the dependant.
        key: the input, or the task that it has become.
        linked: it is that one, which may have no job yet.

    Raises:
        QueueError: the scheduler does not answer.
        OSError: the store cannot be written.
    """
    from .batch import diagnose, here
    from .batch.base import JobRef

    deaths = session.deaths(key)
    if deaths:
        name = _job_of(session, key, len(deaths) + 1)
    else:
        name = last_job(session, key) if linked or _moved_to(session, key) else job.upstream.get(key)
    if name is None:
        return Fate(ended=not deaths and not linked, soon=bool(deaths))
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
    if loss is not None and session.ends(key, upstream.attempt):
        return Fate(True, soon=True)  # the listing does not show it yet
    if loss is None or retrying.next_attempt(upstream.resources, loss, upstream.attempt) is None:
        return Fate(True, None if loss is None else retrying.told(loss, deaths))
    session.publish_death(key, upstream.attempt, loss)
    return Fate(behind=_job_of(session, key, upstream.attempt + 1), soon=True)


def go_behind(session: Session, job: Job, index: int, behind: Sequence[str]) -> bool:
    """Submit a dependant again, after those jobs; whether that was possible. A claim is the caller's to give up."""
    from .batch import here
    from .batch.base import JobRef, QueueError

    task, move = job.tasks[index], job.move + 1
    name = f"{retrying.first_name(job.name)}-r{job.attempt}w{move}-{task.position}"
    after, those = tuple(JobRef.parse(one) for one in behind), ", ".join(behind)
    try:
        number = here.submit(session, replace(job, name=name, tasks=(task,), move=move), after)
    except (QueueError, ValueError, OSError) as exc:
        _print(f"inputs are computed by job {those}, which is waited for here: {exc}")
        return False
    _print(f"inputs are computed by job {those}; job {number} waits for it in the place of this one")
    return True


def last_job(session: Session, key: TaskKey) -> str | None:
    """The job that was submitted last for a task, as the store says: "12", "12_3"; None if none was."""
    from .batch import notes

    found = notes.read(Journal(session).notes())
    client = client_of(key)
    last = _last(session, key, {**found.jobs, **found.again}, f"-{client}-" if client else "")
    return last.name if last is not None else None


class _Last(NamedTuple):
    attempt: int
    name: str


def _moved_to(session: Session, key: TaskKey) -> _Last | None:
    """The last job that was submitted for a task after its first; far fewer descriptions are read."""
    from .batch import notes

    return _last(session, key, notes.read(Journal(session).notes()).again)


def _last(session: Session, key: TaskKey, numbers: Mapping[str, str], named: str = "") -> _Last | None:
    found = session.find_task(key, named, numbers) if numbers else None
    if found is None:
        return None
    job, index = found
    number = numbers[job.name]
    return _Last(job.attempt, f"{number}_{index}" if len(job.tasks) > 1 else number)


def _elsewhere(session: Session, job: Job, outcomes: Outcomes) -> list[TaskKey]:
    """Tasks without an end that are to be waited for in other jobs than those which had to end before this one."""
    outcomes.look()
    found: list[TaskKey] = []
    for key in map(TaskKey, job.upstream):
        end = links.followed(session, key, outcomes)
        if outcomes.ended(end):
            continue
        moved = _moved_to(session, key) if end == key else None
        if end != key or (moved is not None and moved.name != job.upstream[key]):
            found.append(end)
    return found


def _job_of(session: Session, key: TaskKey, attempt: int) -> str | None:
    """The job of an attempt, submitted now if no service is there that will; None while it is not known."""
    found = session.find_task(key)
    if found is not None and found[0].attempt < attempt and not session.alive():
        loss = session.deaths(key)[-1]
        resources = retrying.next_attempt(found[0].resources, loss, found[0].attempt)
        if resources is not None:
            attempts.submit(session, *found, resources)
    moved = _moved_to(session, key)
    return moved.name if moved is not None and moved.attempt == attempt else None


def _print(text: str) -> None:
    with contextlib.suppress(Exception):  # the log may be on the disk that is full
        print(f"remoteexec: {text}", file=sys.stderr)
