"""Further attempts: tasks whose attempt has died, until the job of the next one is known.

    a loss ─ lose ─▶ outcomes/<task>.died-<n> ─ note ─▶ waiting ─ due ─▶ groups ─▶ Submitter, as any other job
                  └▶ outcomes/<task>.lost, where no attempt is left

Those that died at about the same time become one array where they came from the same one and ask for the same. The
service that has a burst submits its further attempts, or one that takes over from a service that is gone. A runner's
supervisor may have submitted one (`attempts`): the description of that job is in the store before, so it is found by
its name instead of being submitted again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from .. import retrying
from ..store.session import Job, read_job
from ..wire.messages import BurstId, Loss, TaskKey
from ..wire.resources import Resources
from .base import JobId, JobRef
from .book import Book
from .records import Group, Task

__all__ = ["Again"]

_GATHER_S = 0.5
"""How long others may die that can share an array; picked, not measured."""


class Again:
    """Further attempts of the tasks of one session.

    Args:
        clock: seconds, monotonic.

    Attributes:
        due_at: when there is something to submit; None: nothing waits.
    """

    def __init__(self, book: Book, clock: Callable[[], float]) -> None:
        self._book, self._session, self._clock = book, book.session, clock
        self._waiting: dict[TaskKey, None] = {}
        self._learned: set[str] = set()
        self._putting_off = False
        self.due_at: float | None = None

    @property
    def busy(self) -> bool:
        """Something waits that this service is to submit."""
        return self.due_at is not None and not self._putting_off

    def lose(self, task: Task, loss: Loss) -> None:
        """A task's attempt has ended without an outcome: another follows, or the task is lost."""
        key = task.entry.key
        if retrying.next_attempt(task.resources, loss, task.attempt) is None:
            self._book.publish_loss(task, retrying.told(loss, self._session.deaths(key)))
            return
        try:
            self._session.publish_death(key, task.attempt, loss)
        except OSError as exc:  # the next question to the scheduler comes to the same end
            self._book.say(f"the end of an attempt of task {key} cannot be written: {exc}")
            return
        self.note(task, task.attempt)

    def note(self, task: Task, attempt: int) -> None:
        """The store says that an attempt has died."""
        if task.over or attempt != task.attempt:  # noted before
            return
        deaths = self._session.deaths(task.entry.key)
        after = retrying.next_attempt(task.resources, deaths[attempt - 1], attempt) if len(deaths) >= attempt else None
        self._advance(task, attempt + 1, after or task.resources)
        self._waiting[task.entry.key] = None
        self._putting_off = False
        if self.due_at is None:
            self.due_at = self._clock() + _GATHER_S

    def learn(self, jobs: Mapping[str, JobId]) -> None:
        """Jobs of further attempts that some service or supervisor has submitted."""
        new: list[tuple[Job, JobId]] = []
        for name, number in jobs.items():
            if name not in self._learned:
                try:
                    new.append((read_job(self._session.job_directory(name))[1], number))
                except (OSError, ValueError):
                    continue  # removed by hand; or not seen yet: then next time
        known = [(job, number) for job, number in new if all(task.key in self._book.tasks for task in job.tasks)]
        self._learned.update(job.name for job, _ in known)  # the others' bursts may be learned of later
        for job, number in sorted(known, key=lambda one: (one[0].attempt, one[0].move)):
            self._assign(job, number)

    def groups(self) -> Iterator[tuple[BurstId, Group]]:
        """What is to be submitted now, and the burst it belongs to."""
        waiting = {key: task for key in self._waiting if not (task := self._book.tasks[key]).over and task.waits_again}
        self._waiting, self.due_at = {}, None
        for job in self._described(waiting):
            keys = [task.key for task in job.tasks if task.key in waiting]
            if keys:
                yield waiting[keys[0]].burst, _described_group(job)
            for key in keys:
                del waiting[key]
        alike: dict[tuple[str, int, Resources], list[Task]] = {}
        for task in waiting.values():
            alike.setdefault((task.job_name, task.attempt, task.resources), []).append(task)
        for (name, attempt, resources), tasks in alike.items():
            positions = sorted(task.position for task in tasks)
            new = retrying.job_name(name, attempt, positions[0])
            yield tasks[0].burst, Group(new, positions, number=attempt, resources=resources)

    def put_off(self, keys: Iterable[TaskKey], seconds: float) -> None:
        """These are another service's to submit: see later whether it has done so, or is gone."""
        self._waiting.update(dict.fromkeys(keys))
        self.due_at = self._clock() + seconds
        self._putting_off = True

    def _described(self, waiting: Mapping[TaskKey, Task]) -> Iterator[Job]:
        """Jobs that were described for attempts that wait; whether they were submitted has to be found out."""
        marks = {f"-r{task.attempt}-": task.attempt for task in waiting.values()}
        for name in sorted(os.listdir(self._session.path / "jobs")) if marks else ():
            if any(mark in name for mark in marks):
                try:
                    _, job = read_job(self._session.job_directory(name))
                except (OSError, ValueError):
                    continue  # not whole: its writer has died before it could submit it
                if any(task.key in waiting and waiting[task.key].attempt == job.attempt for task in job.tasks):
                    yield job

    def _assign(self, job: Job, number: JobId) -> None:
        """Elements that have died or been learned of before stay what they are."""
        self._book.lengths[number] = len(job.tasks)
        for index, element in enumerate(job.tasks):
            task = self._book.tasks.get(element.key)
            if task is None or (task.attempt, task.move) > (job.attempt, job.move):
                continue
            if (task.attempt, task.move) == (job.attempt, job.move) and task.ref is not None:
                continue
            self._advance(task, job.attempt, job.resources)
            task.move = job.move
            self._book.place(task, job.name, index, JobRef(number, index if len(job.tasks) > 1 else None))

    def _advance(self, task: Task, attempt: int, resources: Resources) -> None:
        task.attempt, task.move, task.resources = attempt, 0, resources
        task.ref, task.started, task.ended_at = None, False, None
        if not task.over:
            self._book.open[task.entry.key] = None


def _described_group(job: Job) -> Group:
    """The same job again: it is looked for by its name before it is submitted."""
    return Group(job.name, [task.position for task in job.tasks], number=job.attempt, resources=job.resources)
