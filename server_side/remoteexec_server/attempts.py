"""The end of an attempt, as the runner's supervisor tells it: a loss, or a death and the next attempt.

While a service works for the session, it submits the next attempt: those that die together become one array. With
nobody logged in the supervisor submits it itself, from the compute node. A service that was killed counts as alive for
`SILENT_S`; a supervisor that may stay for so long waits to see whether the job appears.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from . import retrying
from .store.session import SILENT_S, Job, Session, log_tail
from .wire.records import Loss
from .wire.resources import Resources

__all__ = ["LAST_S", "end", "end_by_scheduler", "submit"]

LAST_S = 10
"""How long a task may go on after SIGTERM where another attempt may follow: SLURM's KillWait is 30 s, and the next
attempt is submitted within it. Picked, not measured."""
FLUX_LAST_S = 2
"""The same after SIGALRM, by which Flux says that the time is up: it kills 5 s later."""
_SIGNALLED_S = 2.0
"""How long the scheduler may take to say in the log why it has sent SIGTERM; it says so before, or at once."""
_LOOK_S = 3.0
_PATIENCE_S = SILENT_S + 30.0


def end(session: Session, job: Job, index: int, loss: Loss) -> None:
    """The attempt has ended without an outcome, for a reason that the supervisor knows.

    Raises:
        OSError: the store cannot be written.
    """
    task = job.tasks[index]
    resources = retrying.next_attempt(job.resources, loss, job.attempt)
    if resources is None:
        session.publish_loss(task.key, retrying.told(loss, session.deaths(task.key)))
        return
    session.publish_death(task.key, job.attempt, loss)
    if not _is_cared_for(session, job, index):
        submit(session, job, index, resources)


def end_by_scheduler(session: Session, job: Job, index: int, timed_out: bool) -> None:
    """The same where the scheduler ends the job: only what its own words in the log explain, or its signal, and only if
    no service is there, which knows more."""
    if job.resources.retry is None or not runner_job() or session.alive():
        return
    log = session.log(job.name, index)
    loss = time_is_up(log) if timed_out else ended_by_scheduler(log, job.resources)
    if loss is None:
        return
    resources = retrying.next_attempt(job.resources, loss, job.attempt)
    if resources is not None:
        session.publish_death(job.tasks[index].key, job.attempt, loss)
        submit(session, job, index, resources)


def time_is_up(log: Path) -> Loss:
    """Why a job ends to which Flux has sent SIGALRM."""
    text = f"its job reached its time limit (SIGALRM from Flux); its log is {log}"
    return Loss("timeout", text, job=runner_job(), node=socket.gethostname(), log_path=str(log))


def ended_by_scheduler(log: Path, resources: Resources) -> Loss | None:
    """Why the scheduler ends this job, if its own words in the job's log say that it is no fault of the task's."""
    from .batch import diagnose
    from .batch.base import JobFacts, JobRef, JobState

    name = runner_job()
    if not name:
        return None
    facts, deadline = JobFacts(JobState.FAILED, node=socket.gethostname()), time.monotonic() + _SIGNALLED_S
    while True:
        loss = diagnose.loss(facts, JobRef.parse(name), log_tail(log), str(log), resources)
        if loss is not None and loss.reason in ("timeout", "preempted"):
            return loss
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def runner_job() -> str:
    """What the scheduler calls this job."""
    from .runner import job_id  # which imports this module

    return job_id()


def _is_cared_for(session: Session, job: Job, index: int) -> bool:
    """Whether somebody else has described the next attempt, or ended the task; waits for a service that seems alive."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the death is told: who is ended while it waits has lost nothing
    deadline, key = time.monotonic() + _PATIENCE_S, job.tasks[index].key
    while True:
        names = os.listdir(session.outcomes)
        if any(f"{key}.{end}" in names for end in ("h5", "lost", "link", "running")) or _is_described(
            session, job, index
        ):
            return True
        if not session.alive() or time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)


def _is_described(session: Session, job: Job, index: int) -> bool:
    return session.find_task(job.tasks[index].key, f"-r{job.attempt + 1}-") is not None


def submit(session: Session, job: Job, index: int, resources: Resources) -> None:
    """Submit the attempt after that of `job`, unless somebody is at it. What cannot be submitted from here waits for a
    service."""
    from .batch import here
    from .batch.base import QueueError

    task, attempt = job.tasks[index], job.attempt + 1
    name = retrying.job_name(job.name, attempt, task.position)
    following = replace(job, name=name, tasks=(task,), resources=resources, attempt=attempt, move=0)
    try:
        session.job_directory(name).mkdir(mode=0o700)  # several runners may come to this at once
    except OSError:
        return
    try:
        number = here.submit(session, following)
        text = f"attempt {attempt} is job {number}"
    except (QueueError, ValueError, OSError) as exc:
        text = f"attempt {attempt} cannot be submitted from here, and waits for the next use of the session: {exc}"
    with contextlib.suppress(Exception):  # the log may be on the disk that is full
        print(f"remoteexec: {text}", file=sys.stderr)
