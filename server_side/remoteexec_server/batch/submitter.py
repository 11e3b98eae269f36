"""Gets bursts into the queue, job by job: each once, in order, no faster and no more at once than was agreed.

    add ─▶ waiting bursts ─ step ─▶ intent in the store ─▶ queue.submit ─▶ journal, book

A job is submitted once: its name is written to the store before, and looked up by that name whenever an answer is
missing, after a crash of this process too. What a quota refuses, and what is more than may run at once, waits in the
store; when the client leaves, what is too much goes behind the jobs that fill the limit (`places`). A burst belongs to
the service that has written its name beside it last; another leaves it alone then.
"""

from __future__ import annotations

import re
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .. import retrying
from ..store.session import Job, JobTask, Journal
from ..wire.messages import Accepted, BurstId, Entry, Loss, Rejected, TaskKey, Terms
from ..wire.resources import Resources
from . import notes
from .base import JobId, JobRef, JobSpec, Queue, QuotaReached, SchedulerUnavailable, SubmitRejected
from .book import Book
from .notes import Notes
from .places import Handover, Holder, Plan
from .records import Burst, Group, Task, cut, halves

_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between attempts to submit while the scheduler does not answer; the last one for ever."""
_NOBODY = "nobody"
"""Owner of bursts that whoever can is to submit."""
_GIVE_UP = 3
"""Attempts after which a task's host is taken for one that cannot submit."""
_NOT_HERE = re.compile(
    r"permission denied|not (allowed|permitted|authorized)|submit host|cannot be run on this machine", re.IGNORECASE
)
"""Words of schedulers that let nobody submit from a compute node, and of those whose commands are not there."""
_AT_A_STRETCH = 60
"""Submissions that may follow each other at once after a pause, at most: no more than those of one minute."""


@dataclass(frozen=True)
class Jobs:
    """What all jobs of a service have in common.

    Attributes:
        command: how the runner is started, without the job directory and the index.
        scheduler: the queue's name in the configuration, for runners that have to ask it.
        terms: what was agreed with the client.
        alone: the client is a task. Nobody may be there to submit anything after its end, so a limit on how many run at
            once may hold back elements of arrays, but no job; and where its host may not submit, another has to.
    """

    command: tuple[str, ...]
    scheduler: str
    terms: Terms
    alone: bool = False


class Pace:
    """Sites ask for few submissions a minute, and those of a minute at once harm nobody.

    Args:
        a_minute: submissions, on average; after a pause so many, and at most 60, may follow each other at once.
        clock: seconds, monotonic.

    Attributes:
        due_at: when the next one is, or was, allowed.
    """

    def __init__(self, a_minute: float, clock: Callable[[], float]) -> None:
        self._interval_s, self.clock = 60.0 / a_minute, clock
        self._at_a_stretch = max(1, min(int(a_minute), _AT_A_STRETCH))
        self._paid_at = 0.0  # when all submissions until now will have had their time
        self.due_at = 0.0

    def count(self) -> None:
        """One submission."""
        self._paid_at = max(self._paid_at, self.clock()) + self._interval_s
        self.due_at = self._paid_at - (self._at_a_stretch - 1) * self._interval_s


class Submitter:
    """The bursts of one service that are not in the queue yet.

    Args:
        owner: name of the service.
        clock: seconds, monotonic.

    Attributes:
        pace: of all that the service submits.
        refusal: what the scheduler said when a quota was full.
    """

    def __init__(self, book: Book, queue: Queue, jobs: Jobs, owner: str, clock: Callable[[], float]) -> None:
        self._book, self._queue, self._jobs, self._owner, self._clock = book, queue, jobs, owner, clock
        self._session = book.session
        self._journal = Journal(self._session)
        self._waiting: dict[BurstId, Burst] = {}
        self._widths: dict[JobId, int] = {}  # how many elements of a job may run at once
        self._leaving = False
        self._handover: Handover | None = None
        self.refusal = ""
        self.pace = Pace(jobs.terms.submits_per_minute, clock)

    @property
    def busy(self) -> bool:
        """Something is not in the queue yet."""
        return bool(self._waiting)

    def leave(self) -> None:
        """Nobody may be there from now on: what waits for room goes behind the jobs that fill it, a quota is tried."""
        self._leaving = True
        for burst in self._waiting.values():
            if burst.groups and burst.groups[0].refused:
                burst.groups[0].refused, burst.groups[0].due_at = False, 0.0

    def left(self, patience_s: float) -> int | None:
        """Tasks that a quota keeps back, or the pace for longer than that; None: some can be handed over yet."""
        slow = self.pace.due_at - self._clock() > patience_s
        if not all(slow or (burst.groups and burst.groups[0].refused) for burst in self._waiting.values()):
            return None
        return sum(len(self._left(_unsubmitted(burst))) for burst in self._waiting.values())

    def due_at(self) -> float | None:
        """When there is something to do, by the clock; None: nothing waits."""
        if not self._waiting:
            return None
        return max(min(burst.next_at for burst in self._waiting.values()), self.pace.due_at)

    def add(self, burst: Burst) -> None:
        """A burst that this service is to submit."""
        if self._session.owner(burst.submit.burst) != self._owner:
            self._session.own(burst.submit.burst, self._owner)
        burst.followed = False
        self._waiting[burst.submit.burst] = burst
        self._queue.prewarm()

    def add_group(self, burst: Burst, group: Group) -> None:
        """One more job of a burst, for a further attempt of some of its tasks."""
        if burst.groups is None:
            burst.groups = deque()
        if all(known.name != group.name for known in burst.groups):
            burst.groups.append(group)
        if burst.submit.burst not in self._waiting:
            self.add(burst)

    def owns(self, burst: Burst) -> bool:
        """Whether the burst is this service's, its client's earlier one's, or nobody's any more."""
        return burst.own or self._session.owner(burst.submit.burst) == self._owner or self.orphaned(burst)

    def step(self) -> None:
        """Submit one job of the first burst that is due, if any; the burst is accepted when its last job is."""
        now = self._clock()
        if self.pace.due_at > now:
            return
        burst = next((burst for burst in self._waiting.values() if burst.next_at <= now), None)
        if burst is None:
            return
        if self._session.owner(burst.submit.burst) != self._owner:
            self._follow(burst)
            return
        if burst.groups is None and not self._cut(burst):
            return
        assert burst.groups is not None
        if burst.groups and not self._submit(burst, burst.groups[0]):
            return
        if burst.groups:
            burst.groups.popleft()
        if not burst.groups:
            self._accept(burst)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def notes(self) -> Notes:
        """What all services of the session have written down."""
        return notes.read(self._journal.notes())

    # ---- one burst ----

    def _cut(self, burst: Burst) -> bool:
        """Cut a burst into jobs. Noted before the first is submitted: whoever goes on has to cut it in the same way."""
        try:
            most = self._queue.max_array()
            self._journal.append({"burst": burst.submit.burst, "most": most})
            burst.groups = cut(burst.submit, most)
        except SchedulerUnavailable as exc:
            if self._jobs.alone and burst.attempt >= _GIVE_UP:
                self._leave(burst, exc)
            else:
                self._put_off(burst, exc)
            return False
        except OSError as exc:
            burst.groups = deque()
            self._lose_unwritten(burst, burst.submit.tasks, exc)
        return True

    def _submit(self, burst: Burst, group: Group) -> bool:
        """Submit one job, unless its tasks have ended; False: it has to wait."""
        entries = [burst.submit.tasks[position] for position in group.positions]
        failed = next((key for key in entries[0].upstream if self._book.has_failed(key)), None)
        if failed is not None:
            for entry in entries:
                self._book.inherit(entry.key, failed)
            return True
        if all(self._is_past(self._book.tasks[entry.key], group) for entry in entries):
            return True
        upstream = [self._book.tasks[key] for key in entries[0].upstream if key in self._book.tasks]
        if any(self._book.followed(task).waits_again for task in upstream):
            group.due_at = self._clock() + _RETRY_S[0]  # it is to wait for the input's new job, not in one of its own
            return False
        try:
            plan = self._plan(burst, group)
            if plan.at_once == 0:
                group.due_at = self._clock() + _RETRY_S[0]
                return False
            job = self._submitted(burst, group, plan)
            self._widths[job] = plan.at_once
            self._place(group, entries, job)
            if self._handover is not None:
                self._handover.hold(plan, job, len(entries))
        except SubmitRejected as exc:
            if self._jobs.alone and _NOT_HERE.search(str(exc)):
                self._leave(burst, exc)
                return False
            self._refuse(burst, group, self._left(entries), Loss("rejected", str(exc)))
        except QuotaReached as exc:
            if self._halve(burst, group):
                return False
            group.due_at, group.refused = self._clock() + self._jobs.terms.poll_s, True
            self.refusal = str(exc)
            if not self._leaving:
                self._book.say(f"{exc}; {len(entries)} tasks wait in the store until there is room")
            return False
        except SchedulerUnavailable as exc:
            if self._jobs.alone and group.attempt >= _GIVE_UP:
                self._leave(burst, exc)
            else:
                self._put_off(group, exc)
            return False
        except OSError as exc:
            if group.number > 1 and group.attempt < len(
                _RETRY_S
            ):  # it may have died of that; the disk may soon be free
                self._put_off(group, exc)
                return False
            self._lose_unwritten(burst, self._left(entries), exc, group.number)
        return True

    def _is_past(self, task: Task, group: Group) -> bool:
        """Whether it was cancelled meanwhile, or the attempt has died."""
        if task.attempt > group.number and not task.job_name:
            task.job_name = group.name
        return task.over or task.attempt > group.number

    def _halve(self, burst: Burst, group: Group) -> bool:
        """Cut an array that is refused though nothing of ours is in the queue: no end of another job would help it.

        Noted before a half is submitted: whoever goes on has to cut it in the same way. Returns whether it was cut.
        """
        assert burst.groups is not None
        queued = any(self._book.tasks[key].ref is not None for key in self._book.open)
        if queued or len(group.positions) == 1:
            return False
        try:
            self._journal.append({"burst": burst.submit.burst, "halved": group.name})
        except OSError as exc:
            self._book.say(f"the journal cannot be written: {exc}")
            return False
        shutil.rmtree(self._session.job_directory(group.name), ignore_errors=True)  # no job will ever have this name
        burst.groups.popleft()
        burst.groups.extendleft(reversed(halves(group)))
        return True

    def _refuse(self, burst: Burst, group: Group, left: Sequence[Entry], loss: Loss) -> None:
        if burst.own and group.number == 1:
            self._book.lose(left, loss)
            keys = tuple(entry.key for entry in left)
            self._book.events.append(Rejected(burst.submit.burst, keys, "SubmitRejected", loss.message))
            return
        for entry in left:
            self._book.publish_loss(self._book.tasks[entry.key], retrying.told(loss, self._session.deaths(entry.key)))

    def _left(self, entries: Sequence[Entry]) -> list[Entry]:
        return [entry for entry in entries if not self._book.tasks[entry.key].over]

    def _plan(self, burst: Burst, group: Group) -> Plan:
        """How many of a group's tasks may run at once, and what has to end before: nothing, while somebody is there.

        Raises:
            SubmitRejected: one of them is more by itself than may run at once, and would wait for ever.
        """
        terms, resources, count = self._jobs.terms, _resources(burst, group), len(group.positions)
        if terms.jobs_at_once is None and terms.cores_at_once is None:
            return Plan(count, (), ())
        if terms.cores_at_once is not None and resources.cpus > terms.cores_at_once:
            raise SubmitRejected(
                f"a task asks for {resources.cpus} CPUs (cores x threads_per_core), and max_cores is "
                f"{terms.cores_at_once}: it could never start; raise max_cores, or ask for fewer"
            )
        if not self._leaving or self._jobs.alone:
            return Plan(self._room(count, resources), (), ())
        if self._handover is None:
            self._handover = Handover(terms.jobs_at_once, terms.cores_at_once, self._holders())
        return self._handover.plan(count, resources.cpus)

    def _holders(self) -> list[Holder]:
        """The jobs in the queue."""
        found: dict[JobId, list[Task]] = {}
        for task in self._queued():
            assert task.ref is not None
            found.setdefault(task.ref.job, []).append(task)
        return [
            Holder(
                job,
                [task.ref for task in tasks if task.ref is not None],
                min(len(tasks), self._widths.get(job, len(tasks))),
                max(task.resources.cpus for task in tasks),
            )
            for job, tasks in found.items()
        ]

    def _queued(self) -> list[Task]:
        return [task for task in map(self._book.tasks.__getitem__, self._book.open) if task.ref is not None]

    def _room(self, count: int, resources: Resources) -> int:
        """How many of so many tasks may run now."""
        terms, mine, room = self._jobs.terms, self._queued(), count
        if terms.jobs_at_once is not None:
            room = min(room, terms.jobs_at_once - len(mine))
        if terms.cores_at_once is not None:
            taken = sum(task.resources.cpus for task in mine)
            room = min(room, (terms.cores_at_once - taken) // resources.cpus)
        return max(room, 1 if self._jobs.alone else 0)

    def _put_off(self, what: Burst | Group, exc: SchedulerUnavailable | OSError) -> None:
        pause = _RETRY_S[min(what.attempt, len(_RETRY_S) - 1)]
        what.attempt += 1
        what.due_at = self._clock() + pause
        self._book.say(f"{exc}; submitting again in {pause:.0f} s")

    def _leave(self, burst: Burst, exc: Exception) -> None:
        """To a service on a host that may submit; this one tries again, too, as long as it is there."""
        self._follow(burst)
        try:
            self._session.own(burst.submit.burst, _NOBODY)
        except OSError as full:  # it stays this one's until this one is gone
            self._book.say(f"the store cannot be written: {full}")
        left = len(self._left(burst.submit.tasks))
        self._book.say(f"{exc}; {left} tasks wait in the store until a service of the session can submit them")

    def _follow(self, burst: Burst) -> None:
        """Another service submits the rest of it."""
        del self._waiting[burst.submit.burst]
        burst.followed, burst.taken = True, burst.own and not burst.accepted
        self._book.follow(entry.key for entry in burst.submit.tasks)

    def _accept(self, burst: Burst) -> None:
        del self._waiting[burst.submit.burst]
        before, burst.accepted = burst.accepted, True
        if burst.own and not before:
            self._book.events.append(accepted(burst, self._book))

    def _lose_unwritten(self, burst: Burst, entries: Sequence[Entry], exc: OSError, number: int = 1) -> None:
        message = f"the store on the cluster cannot be written: {exc}"
        keys = tuple(entry.key for entry in entries)
        if number > 1:  # the client knows its job
            for key in keys:
                self._book.publish_loss(self._book.tasks[key], Loss("store", message))
            return
        if burst.own:
            self._book.events.append(Rejected(burst.submit.burst, keys, "StoreError", message))
        try:
            for key in keys:
                self._session.publish_loss(key, Loss("store", message))
        except OSError:
            pass  # a service that takes over finds no loss, and runs what nobody waits for
        for key in keys:
            self._book.tasks[key].wanted = False
            self._book.over(self._book.tasks[key], failed=True)

    def _submitted(self, burst: Burst, group: Group, plan: Plan) -> JobId:
        """The scheduler's number of a group's job, submitted only if it is not there yet."""
        submit = burst.submit
        entries = [submit.tasks[position] for position in group.positions]
        upstream = {key: self._book.tasks[key] for key in entries[0].upstream if key in self._book.tasks}
        jobs = [self._book.followed(task).ref for task in upstream.values() if not task.over]
        after = [*(ref for ref in jobs if ref is not None), *self._alive(plan.after)]
        directory = self._session.job_directory(group.name)
        if group.attempt or directory.exists():  # an attempt that got no answer, or one before a crash
            found = self._queue.find(group.name)
            if found is not None:
                return found
        job = self._description(burst, group, upstream)
        self._session.add_job(job)
        spec = JobSpec(
            name=group.name,
            directory=directory,
            command=(*self._jobs.command, str(directory)),
            count=len(group.positions),
            resources=job.resources,
            after=self._book.whole_arrays(after),
            at_once=plan.at_once,
        )
        self.pace.count()
        try:
            return self._queue.submit(spec)
        except SubmitRejected as exc:
            if not exc.dependency or not after:
                raise
        facts = self._queue.states(after)  # it has forgotten a job that ended: the runner finds the outcome by itself
        alive = [ref for ref in after if not facts[ref].state.ended]
        return self._queue.submit(replace(spec, after=self._book.whole_arrays(alive)))

    def _alive(self, refs: Sequence[JobRef]) -> list[JobRef]:
        """Those that have not ended, as far as is known."""
        elements = {task.ref for task in self._queued()}
        jobs = {ref.job for ref in elements if ref is not None}
        return [ref for ref in refs if ref in elements or (ref.index is None and ref.job in jobs)]

    def _description(self, burst: Burst, group: Group, upstream: dict[TaskKey, Task]) -> Job:
        submit, resources = burst.submit, _resources(burst, group)
        if group.number > 1:
            from . import limits  # few attempts follow another

            resources = limits.within(self._queue, resources)
        return Job(
            name=group.name,
            burst=submit.burst,
            tasks=tuple(JobTask(p, submit.tasks[p].key) for p in group.positions),
            resources=resources,
            upstream={key: str(task.ref) for key, task in upstream.items() if task.ref is not None},
            scheduler=self._jobs.scheduler,
            grace_s=self._jobs.terms.grace_s,
            attempt=group.number,
            command=self._jobs.command,
            terms=self._jobs.terms,
        )

    def _place(self, group: Group, entries: Sequence[Entry], job: JobId) -> None:
        """Remember which job runs these tasks, here and in the journal."""
        try:
            again = {"again": True} if group.number > 1 else {}
            self._journal.append({"job": job, "name": group.name, "tasks": len(entries), **again})
        except OSError as exc:  # the job can still be found by its name
            self._book.say(f"the journal cannot be written: {exc}")
        self._book.assign(group.name, [entry.key for entry in entries], job, group.number)

    def orphaned(self, burst: Burst) -> bool:
        """Whether the service that was to submit a burst is gone."""
        return not self._session.alive(self._session.owner(burst.submit.burst) or self._owner)


def _resources(burst: Burst, group: Group) -> Resources:
    """What each task of a group asks for."""
    return group.resources or burst.submit.resources[burst.submit.tasks[group.positions[0]].resources]


def _unsubmitted(burst: Burst) -> list[Entry]:
    """Tasks that wait for their first job, or for another."""
    if burst.groups is None:
        return list(burst.submit.tasks)
    return [burst.submit.tasks[position] for group in burst.groups for position in group.positions]


def accepted(burst: Burst, book: Book) -> Accepted:
    """Which job runs each task of a burst."""
    tasks = (book.tasks[entry.key] for entry in burst.submit.tasks)
    return Accepted(burst.submit.burst, tuple(str(task.ref or "") for task in tasks))
