"""Jobs whose inputs come later than the scheduler was told: they make room, and are submitted again behind them.

A task that returns the future of one it has submitted ends much later than its job. What waits for it starts at the end
of that job: sitting in its allocation until the other has run could keep that one from ever starting. So the runner,
before it takes its task, submits the same task as a new job behind the other's, writes that down in the journal, and
ends. It does so anew until all inputs have ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from ..store import links
from ..store.session import Job, Journal, Session, read_job
from ..wire.messages import TaskKey
from . import queues
from .base import JobId, JobRef, JobSpec, Queue, QueueError, SubmitRejected
from .following import client_of

_SHORT_S = 1.0
"""For how long it is cheaper to wait than to make room; picked, not measured."""
_LOOK_S = 0.05


def put_off(session: Session, job: Job, index: int, environment: Mapping[str, str]) -> bool:
    """Submit element `index` again if it would have to wait for long; whether that was done.

    Args:
        environment: of this process before any task's; see `JobSpec`.
    """
    waiting = _missing(session, job)
    until = time.monotonic() + _SHORT_S
    while waiting and time.monotonic() < until:
        time.sleep(_LOOK_S)
        waiting = _missing(session, job)
    refs = {key: job_of(session, key) for key in waiting}
    if not any(refs.values()):
        return False  # none is in the queue yet: whoever waits here sees it come
    outer = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)  # which the queue gives to the job
    try:
        queue = queues.connect(job.scheduler, session.path.parent.parent, job.terms.pysqa_config_directory)
        with contextlib.closing(queue):
            facts = queue.states([ref for ref in refs.values() if ref is not None])
            after = tuple(ref for ref, fact in facts.items() if not fact.state.ended)
            if after:
                _submit(session, job, index, queue, after)
            return bool(after)
    except (QueueError, OSError, ValueError) as exc:
        print(f"remoteexec: waiting here for tasks {', '.join(waiting)}: {exc}", file=sys.stderr)
        return False
    finally:
        os.environ.clear()
        os.environ.update(outer)


def job_of(session: Session, key: TaskKey) -> JobRef | None:
    """The job that was submitted last for a task, as the store says; None if none was."""
    numbers: dict[str, JobId] = {}
    again: JobId | None = None
    journal = Journal(session)
    for note in journal.notes():
        if note.get("again") == key:
            again = JobId(note["job"])
        elif "name" in note:
            numbers[note["name"]] = JobId(note["job"])
    if again is not None:
        return JobRef(again)
    for path in (session.path / "jobs").glob(f"rx-{client_of(key)}-*/job.json"):
        _, job = read_job(path.parent)
        keys = [task.key for task in job.tasks]
        if key in keys and job.name in numbers:
            return JobRef(numbers[job.name], keys.index(key) if len(keys) > 1 else None)
    return None


def _missing(session: Session, job: Job) -> list[TaskKey]:
    """Tasks that have to end first: those at the end of links, and those that were themselves submitted again."""
    names = frozenset(os.listdir(session.outcomes))
    ends = {key: links.followed(session, key, names) for key in map(TaskKey, job.upstream)}
    late = {key: end for key, end in ends.items() if not links.has_end(end, names)}
    if not late:
        return []
    return [end for key, end in late.items() if end != key or str(job_of(session, key) or "") != job.upstream[key]]


def _submit(session: Session, job: Job, index: int, queue: Queue, after: tuple[JobRef, ...]) -> None:
    task = job.tasks[index]
    name = f"rx-{job.burst}-again-{secrets.token_hex(4)}"
    directory = session.add_job(replace(job, name=name, tasks=(task,)))
    spec = JobSpec(name, directory, (*job.command, str(directory)), 1, job.resources, after)
    try:
        number = queue.submit(spec)
    except SubmitRejected as exc:
        if not exc.dependency:
            raise
        number = queue.submit(replace(spec, after=()))  # they have ended meanwhile
    journal = Journal(session)
    with contextlib.closing(journal):
        journal.append({"job": number, "name": name, "tasks": 1, "again": task.key})
    print(f"remoteexec: submitted again as job {number}, behind {', '.join(map(str, after))}", file=sys.stderr)
