"""What the service knows of the tasks of its session: which job has each, what waits for it, how it ended.

Everything here can be rebuilt from the store. What the client is to be told is gathered in `events` and `pushed`, what
the scheduler is to end in `doomed`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from ..store.session import Session
from ..wire.messages import BurstId, Entry, Event, Loss, Lost, Problem, TaskKey
from ..wire.resources import Resources
from .base import JobId, JobRef
from .records import Task


class Book:
    """The tasks of one session.

    Attributes:
        tasks: all that were ever taken.
        open: those with a job, or with somebody else's promise of one, and no end; in order of submission.
        pushed: those that ended with an outcome, to be told.
        doomed: jobs to be ended by the scheduler.
        write_loss: puts a loss into the store.
        lengths: tasks of each job.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tasks: dict[TaskKey, Task] = {}
        self.open: dict[TaskKey, None] = {}
        self.pushed: deque[TaskKey] = deque()
        self.events: list[Event] = []
        self.doomed: list[JobRef] = []
        self.write_loss: Callable[[TaskKey, Loss], None] = session.publish_loss
        self.lengths: dict[JobId, int] = {}
        self._dependants: dict[TaskKey, list[TaskKey]] = {}
        self._problem = ""

    def add(self, entry: Entry, burst: BurstId, resources: Resources, position: int = 0) -> None:
        """One more task."""
        self.tasks[entry.key] = Task(entry, burst, resources, position=position)
        for upstream in entry.upstream:
            self._dependants.setdefault(upstream, []).append(entry.key)

    def assign(self, name: str, keys: Sequence[TaskKey], job: JobId, attempt: int = 1) -> None:
        """These tasks are the elements of that job, except those that are beyond that attempt."""
        self.lengths[job] = len(keys)
        for index, key in enumerate(keys):
            task = self.tasks[key]
            if task.attempt <= attempt:
                self.place(task, name, index, JobRef(job, index if len(keys) > 1 else None))
            elif not task.job_name:
                task.job_name = name

    def place(self, task: Task, name: str, index: int, ref: JobRef) -> None:
        """A task is that element of that job."""
        task.ref, task.job_name, task.index = ref, name, index
        if not task.over:
            self.open[task.entry.key] = None
        else:  # cancelled while the scheduler was asked
            self.doomed.append(ref)

    def follow(self, keys: Iterable[TaskKey]) -> None:
        """Look for the ends of these, though their jobs are not known."""
        self.open.update((key, None) for key in keys if not self.tasks[key].over)

    def followed(self, task: Task) -> Task:
        """Whose job has to end before the task does."""
        while task.follows is not None and task.follows in self.tasks:
            task = self.tasks[task.follows]
        return task

    def whole_arrays(self, refs: Sequence[JobRef]) -> tuple[JobRef, ...]:
        """The same jobs, an array that is waited for in all its elements named once."""
        length: dict[JobId, int] = {}
        for ref in refs:
            length[ref.job] = length.get(ref.job, 0) + 1
        whole = {job for job, count in length.items() if count > 1 and count == self.lengths.get(job)}
        shorter = [ref if ref.job not in whole else JobRef(ref.job) for ref in refs]
        return tuple(dict.fromkeys(shorter))

    # ---- how tasks end ----

    def over(self, task: Task, failed: bool) -> None:
        """A task has ended; if it failed, so have all that wait for it, now and not when their turn comes."""
        self._finish(task, failed)
        ended = [task.entry.key]
        while ended:
            upstream = ended.pop()
            for key in self._dependants.pop(upstream, ()):
                if failed and self.inherit(key, upstream):
                    ended.append(key)

    def has_failed(self, key: TaskKey) -> bool:
        """Whether a task has ended without a result."""
        return key in self.tasks and self.tasks[key].failed

    def inherit(self, key: TaskKey, upstream: TaskKey) -> bool:
        """Fail a task whose input failed, unless it has started: then its runner sees to it. Returns whether it did.

        What waits for this task in turn is the caller's.
        """
        task = self.tasks[key]
        if task.over or task.started:
            return False
        if task.ref is not None:
            self.doomed.append(task.ref)
        loss = Loss("upstream", f"input {upstream} has failed", upstream=upstream)
        self._write_loss(task, loss)
        self._tell(task, loss)
        self._finish(task, failed=True)
        return True

    def publish_loss(self, task: Task, loss: Loss) -> None:
        """The task will have no outcome: for all to see, and told."""
        self._write_loss(task, loss)
        self.tell_loss(task, loss)

    def tell_loss(self, task: Task, loss: Loss) -> None:
        """The task will have no outcome, as the store says already."""
        self._tell(task, loss)
        self.over(task, failed=True)

    def lose(self, entries: Iterable[Entry], loss: Loss) -> None:
        """The same for tasks whose client is told in another way."""
        for entry in entries:
            task = self.tasks[entry.key]
            task.wanted = False
            self.publish_loss(task, loss)

    def unread(self, key: TaskKey, exc: OSError) -> None:
        """An outcome is there and cannot be read now."""
        self.say(f"outcome of task {key} cannot be read: {exc}")
        self.tasks[key].over = False
        self.open[key] = None

    # ---- what the client is told ----

    def say(self, message: str) -> None:
        """A problem that ends nothing; the same one is said once in a row."""
        if message != self._problem:
            self._problem = message
            self.events.append(Problem(message))

    def no_problem(self) -> None:
        """What was said last is over: if it comes again, it is said again."""
        self._problem = ""

    def drain(self) -> list[Event]:
        """What was gathered for the client."""
        events, self.events = self.events, []
        return events

    def _finish(self, task: Task, failed: bool) -> None:
        task.over, task.failed = True, failed
        self.open.pop(task.entry.key, None)

    def _tell(self, task: Task, loss: Loss) -> None:
        if task.wanted:
            task.wanted = False
            self.events.append(Lost(task.entry.key, loss))

    def _write_loss(self, task: Task, loss: Loss) -> None:
        try:
            self.write_loss(task.entry.key, loss)
        except OSError as exc:
            self.say(f"loss of task {task.entry.key} cannot be written: {exc}")
