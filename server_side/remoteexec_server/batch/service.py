"""Submits, cancels and watches the jobs of one session, for a user's process on the login node and, in the gateway, for
a laptop.

    request ─ handle ─┐                      ┌─ events for the client
                      ├─ records, store, queue ┤
    time ──── step ───┘                      └─ Accepted Rejected Started OutcomeReady Lost Problem

One thread calls it (`loop`). `handle` never asks the scheduler; `step` does one thing that is due: submit the next
job, list the outcomes, or ask about all jobs in one command. A job is submitted once: its name is written to the
store before, and looked up by that name whenever an answer is missing, after a crash of this process too.

State of one task is one `Task`; of one burst, one `Burst` (`records`). All of it can be rebuilt from the store.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..store.session import Job, JobTask, Journal, Session, log_tail
from ..store.watching import Watcher
from ..wire import header
from ..wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Entry,
    Event,
    Loss,
    Lost,
    OutcomeReady,
    Problem,
    Rejected,
    Started,
    Submit,
    TaskKey,
    Watch,
)
from ..wire.resources import Resources
from . import diagnose
from .base import JobFacts, JobId, JobRef, JobSpec, Queue, SchedulerUnavailable, SubmitRejected
from .records import Burst, Group, Task, cut, refusal
from .unheeded import Notices


class Superseded(Exception):
    """Another service works for the session now; this one has to end, and may submit nothing more."""


_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between attempts to submit while the scheduler does not answer; the last one for ever."""


@dataclass(frozen=True)
class Polling:
    """When to ask the scheduler, and how long to believe that an outcome is only late.

    Attributes:
        poll_s: seconds between questions, for all jobs at once.
        grace_s: seconds after the end of a job without an outcome; NFS may hide a file for 60.
    """

    poll_s: float = 30.0
    grace_s: float = 90.0


@dataclass
class Service:
    """The tasks of one session and the queue that runs them.

    Attributes:
        session: the store.
        queue: SLURM, or the embedded scheduler.
        scheduler: the queue's name in the configuration, for runners that have to ask it.
        command: how the runner is started, without the job directory and the index.
        polling: see Polling.
        clock: seconds, monotonic.
    """

    session: Session
    queue: Queue
    scheduler: str
    command: tuple[str, ...]
    polling: Polling = field(default_factory=Polling)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._tasks: dict[TaskKey, Task] = {}
        self._bursts: dict[BurstId, Burst] = {}
        self._submitting: deque[BurstId] = deque()
        self._dependants: dict[TaskKey, list[TaskKey]] = {}
        self._open: dict[TaskKey, None] = {}  # tasks with a job and no end, in order of submission
        self._pushed: deque[TaskKey] = deque()  # ended, to be told
        self._events: list[Event] = []
        self._watcher = Watcher(self.session.outcomes, self.clock)
        self._journal = Journal(self.session)
        self._lengths: dict[JobId, int] = {}  # tasks of each job
        self._doomed: list[JobRef] = []  # to be ended by the scheduler
        self._doom_at = 0.0
        self._ask_at = self.clock() + self.polling.poll_s
        self._problem = ""
        self._name = secrets.token_hex(8)
        self._notices = Notices(self.queue)
        self.session.take_over(self._name)
        self._recover()

    # ---- what the client asks ----

    def handle(self, request: Submit | Cancel | Watch, bundle: bytes = b"") -> list[Event]:
        """Take a request; what follows from it comes from here and from later `step`s."""
        match request:
            case Submit():
                self._take(request, bundle)
            case Cancel():
                self._cancel(request.keys)
            case Watch():
                self._watch(request.keys)
        return self._drain()

    def step(self) -> list[Event]:
        """Do the most urgent thing that is due, if any."""
        now = self.clock()
        if self._doomed and now >= self._doom_at:
            self._end_jobs()
        if self._submit_due(now):
            self._submit_next()
        if self._open and now >= self._watcher.due_at:
            self._look()
        if self._open and now >= self._ask_at:
            self._ask()
        return self._drain()

    @property
    def submitting(self) -> bool:
        """The scheduler has not been told yet of something that was asked for: jobs to be run, or to be ended."""
        return bool(self._submitting or self._doomed)

    def wait_s(self) -> float | None:
        """Seconds until `step` has something to do; None: only after a request."""
        if self._pushed:
            return 0.0
        due = [self._submit_at(self._submitting[0])] if self._submitting else []
        if self._doomed:
            due.append(self._doom_at)
        if self._open:
            due += [self._watcher.due_at, self._ask_at]
        return max(0.0, min(due) - self.clock()) if due else None

    def next_outcome(self) -> tuple[OutcomeReady, bytes] | None:
        """The next outcome to be told, with its file; the loop asks after each `step`, so none waits in memory."""
        while self._pushed:
            key = self._pushed.popleft()
            try:
                data = self.session.outcome(key).read_bytes()
            except OSError as exc:
                self._unread(key, exc)
                continue
            self._tasks[key].wanted = False
            return OutcomeReady(key, len(data)), data
        return None

    def close(self, discard: bool) -> None:
        """End; with `discard`, remove the session's files unless something of it still runs."""
        self._journal.close()
        self.queue.close()
        if discard and not self._open and not self._submitting:
            self.session.remove()

    # ---- submitting ----

    def _take(self, submit: Submit, bundle: bytes) -> None:
        known = self._bursts.get(submit.burst)
        if known is None:
            problem = refusal(submit, bundle, self.session.key, self._tasks)
            if problem is None:
                try:
                    self.session.add_burst(submit, bundle)
                except OSError as exc:
                    problem = ("StoreError", f"the store on the cluster cannot be written: {exc}")
            if problem is not None:
                keys = tuple(entry.key for entry in submit.tasks)
                self._events.append(Rejected(submit.burst, keys, *problem))
                return
            self._events += self._notices.new(submit.resources)
            self._adopt(submit)
        elif known.accepted:
            self._events.append(self._accepted(known))
        self._watcher.hurry()

    def _adopt(self, submit: Submit) -> Burst:
        """Make records of a burst; it waits for its turn to be submitted."""
        for entry in submit.tasks:
            self._tasks[entry.key] = Task(entry, submit.burst)
            for upstream in entry.upstream:
                self._dependants.setdefault(upstream, []).append(entry.key)
        burst = self._bursts[submit.burst] = Burst(submit)
        self._submitting.append(submit.burst)
        self.queue.prewarm()
        return burst

    def _cut(self, burst: Burst) -> deque[Group]:
        """Cut a burst into jobs. Noted before the first is submitted: whoever goes on has to cut it in the same way.

        Raises:
            SchedulerUnavailable: it does not say how long an array may be.
        """
        most = self.queue.max_array()
        self._journal.append({"burst": burst.submit.burst, "most": most})
        return cut(burst.submit, most)

    def _submit_at(self, name: BurstId) -> float:
        """When the next job of a burst is to be submitted."""
        burst = self._bursts[name]
        return burst.groups[0].due_at if burst.groups else burst.due_at

    def _submit_due(self, now: float) -> bool:
        return bool(self._submitting) and self._submit_at(self._submitting[0]) <= now

    def _submit_next(self) -> None:
        """Submit one job of the oldest burst; the burst is accepted when its last job is."""
        burst = self._bursts[self._submitting[0]]
        if burst.groups is None:
            try:
                burst.groups = self._cut(burst)
            except SchedulerUnavailable as exc:
                self._put_off(burst, exc)
                return
            except OSError as exc:
                burst.groups = deque()
                self._lose_unwritten(burst, burst.submit.tasks, exc)
                self._accept(burst)
                return
        group = burst.groups[0]
        entries = [burst.submit.tasks[position] for position in group.positions]
        upstream = entries[0].upstream
        if any(self._has_failed(key) for key in upstream):
            failed = next(key for key in upstream if self._has_failed(key))
            for entry in entries:
                self._inherit(entry.key, failed)
        elif not all(self._tasks[entry.key].over for entry in entries):  # not cancelled meanwhile
            try:
                self._place(group, entries, self._submitted(burst, group))
            except SubmitRejected as exc:
                left = [entry for entry in entries if not self._tasks[entry.key].over]
                self._lose(left, Loss("rejected", str(exc)))
                keys = tuple(entry.key for entry in left)
                self._events.append(Rejected(burst.submit.burst, keys, "SubmitRejected", str(exc)))
            except SchedulerUnavailable as exc:
                self._put_off(group, exc)
                return
            except OSError as exc:
                self._lose_unwritten(burst, [entry for entry in entries if not self._tasks[entry.key].over], exc)
        burst.groups.popleft()
        if not burst.groups:
            self._accept(burst)

    def _put_off(self, what: Burst | Group, exc: SchedulerUnavailable) -> None:
        pause = _RETRY_S[min(what.attempt, len(_RETRY_S) - 1)]
        what.attempt += 1
        what.due_at = self.clock() + pause
        self._say(f"{exc}; submitting again in {pause:.0f} s")

    def _accept(self, burst: Burst) -> None:
        self._submitting.remove(burst.submit.burst)
        burst.accepted = True
        self._events.append(self._accepted(burst))

    def _lose_unwritten(self, burst: Burst, entries: Sequence[Entry], exc: OSError) -> None:
        message = f"the store on the cluster cannot be written: {exc}"
        keys = tuple(entry.key for entry in entries)
        self._events.append(Rejected(burst.submit.burst, keys, "StoreError", message))
        try:
            for key in keys:
                self.session.publish_loss(key, Loss("store", message))
        except OSError:
            pass  # a service that takes over finds no loss, and runs what nobody waits for
        for key in keys:
            self._tasks[key].wanted = False
            self._over(self._tasks[key], failed=True)

    def _submitted(self, burst: Burst, group: Group) -> JobId:
        """The scheduler's number of a group's job, submitted only if it is not there yet."""
        submit = burst.submit
        entries = [submit.tasks[position] for position in group.positions]
        upstream = {key: self._tasks[key] for key in entries[0].upstream if key in self._tasks}
        after = [task.ref for task in upstream.values() if task.ref is not None and not task.over]
        job = Job(
            name=group.name,
            burst=submit.burst,
            tasks=tuple(JobTask(p, submit.tasks[p].key) for p in group.positions),
            resources=submit.resources[entries[0].resources],
            upstream={key: str(task.ref) for key, task in upstream.items() if task.ref is not None},
            scheduler=self.scheduler,
            grace_s=self.polling.grace_s,
        )
        directory = self.session.job_directory(group.name)
        if group.attempt or directory.exists():  # an attempt that got no answer, or one before a crash
            found = self.queue.find(group.name)
            if found is not None:
                return found
        self.session.add_job(job)
        spec = JobSpec(
            name=group.name,
            directory=directory,
            command=(*self.command, str(directory)),
            count=len(group.positions),
            resources=job.resources,
            after=self._whole_arrays(after),
        )
        if not self.session.owned_by(self._name):
            raise Superseded(f"another process works for session {self.session.path.name} now")
        try:
            return self.queue.submit(spec)
        except SubmitRejected as exc:
            if not exc.dependency or not after:
                raise
        facts = self.queue.states(after)  # it has forgotten a job that ended: the runner finds the outcome by itself
        alive = [ref for ref in after if not facts[ref].state.ended]
        return self.queue.submit(replace(spec, after=self._whole_arrays(alive)))

    def _whole_arrays(self, refs: Sequence[JobRef]) -> tuple[JobRef, ...]:
        """The same jobs, an array that is waited for in all its elements named once."""
        length: dict[JobId, int] = {}
        for ref in refs:
            length[ref.job] = length.get(ref.job, 0) + 1
        whole = {job for job, count in length.items() if count > 1 and count == self._lengths.get(job)}
        shorter = [ref if ref.job not in whole else JobRef(ref.job) for ref in refs]
        return tuple(dict.fromkeys(shorter))

    def _place(self, group: Group, entries: Sequence[Entry], job: JobId) -> None:
        """Remember which job runs these tasks, here and in the journal."""
        try:
            self._journal.append({"job": job, "name": group.name, "tasks": len(entries)})
        except OSError as exc:  # the job can still be found by its name
            self._say(f"the journal cannot be written: {exc}")
        self._assign(group.name, [entry.key for entry in entries], job)

    def _assign(self, name: str, keys: Sequence[TaskKey], job: JobId) -> None:
        self._lengths[job] = len(keys)
        for index, key in enumerate(keys):
            task = self._tasks[key]
            task.ref = JobRef(job, index if len(keys) > 1 else None)
            task.job_name, task.index = name, index
            if not task.over:
                self._open[key] = None
            else:  # cancelled while the scheduler was asked
                self._doomed.append(task.ref)
        self._watcher.hurry()

    def _accepted(self, burst: Burst) -> Accepted:
        tasks = (self._tasks[entry.key] for entry in burst.submit.tasks)
        return Accepted(burst.submit.burst, tuple(str(task.ref or "") for task in tasks))

    # ---- what happens to tasks ----

    def _look(self) -> None:
        """List the outcomes once, for all tasks."""
        try:
            names = list(self._watcher.look())
        except OSError as exc:
            self._say(f"the store cannot be listed: {exc}")
            return
        self._read(names)

    def _look_at_all(self) -> None:
        """The same for what was seen before, too."""
        self._watcher.forget_all()
        self._look()

    def _read(self, names: Iterable[str]) -> None:
        for name in sorted(names):  # .h5 before .lost
            stem, _, suffix = name.rpartition(".")
            task = self._tasks.get(TaskKey(stem))
            if task is None or name.startswith("."):
                continue
            if suffix == "running":
                self._note_start(task)
            elif suffix == "h5" and not task.over:
                self._note_outcome(task)
            elif suffix == "lost" and not task.over:
                self._note_loss(task)

    def _note_start(self, task: Task) -> None:
        if task.started or task.over:
            return
        claim = self.session.read_claim(task.entry.key)
        if claim is None:
            self._watcher.forget([f"{task.entry.key}.running"])
            return
        task.started = True
        self._events.append(Started(task.entry.key, claim.job, claim.host))

    def _note_outcome(self, task: Task) -> None:
        key = task.entry.key
        try:
            with self.session.outcome(key).open("rb") as file:
                failed = header.read(file.read(header.BLOCK)).status != "ok"
        except header.HeaderError:
            failed = True  # the client says what is wrong with it
        except OSError as exc:
            self._unread(key, exc)
            return
        if task.wanted:
            self._pushed.append(key)
        self._over(task, failed)

    def _unread(self, key: TaskKey, exc: OSError) -> None:
        """An outcome is there and cannot be read now: the next look tries again."""
        self._say(f"outcome of task {key} cannot be read: {exc}")
        self._tasks[key].over = False
        self._open[key] = None
        self._watcher.forget([f"{key}.h5"])

    def _note_loss(self, task: Task) -> None:
        key = task.entry.key
        try:
            loss = self.session.read_loss(key)
        except (OSError, ValueError) as exc:
            self._say(f"loss of task {key} cannot be read: {exc}")
            self._watcher.forget([f"{key}.lost"])
            return
        self._tell_loss(task, loss)

    def _tell_loss(self, task: Task, loss: Loss) -> None:
        self._tell(task, loss)
        self._over(task, failed=True)

    def _tell(self, task: Task, loss: Loss) -> None:
        if task.wanted:
            task.wanted = False
            self._events.append(Lost(task.entry.key, loss))

    def _over(self, task: Task, failed: bool) -> None:
        """A task has ended; if it failed, so have all that wait for it, now and not when their turn comes."""
        self._finish(task, failed)
        ended = [task.entry.key]
        while ended:
            upstream = ended.pop()
            for key in self._dependants.pop(upstream, ()):
                if failed and self._inherit(key, upstream):
                    ended.append(key)

    def _finish(self, task: Task, failed: bool) -> None:
        task.over, task.failed = True, failed
        self._open.pop(task.entry.key, None)

    def _has_failed(self, key: TaskKey) -> bool:
        return key in self._tasks and self._tasks[key].failed

    def _inherit(self, key: TaskKey, upstream: TaskKey) -> bool:
        """Fail a task whose input failed, unless it has started: then its runner sees to it. Returns whether it did.

        What waits for this task in turn is the caller's.
        """
        task = self._tasks[key]
        if task.over or task.started:
            return False
        if task.ref is not None:
            self._doomed.append(task.ref)
        loss = Loss("upstream", f"input {upstream} has failed", upstream=upstream)
        self._write_loss(task, loss)
        self._tell(task, loss)
        self._finish(task, failed=True)
        return True

    def _publish_loss(self, task: Task, loss: Loss) -> None:
        self._write_loss(task, loss)
        self._tell_loss(task, loss)

    def _write_loss(self, task: Task, loss: Loss) -> None:
        try:
            self.session.publish_loss(task.entry.key, loss)
        except OSError as exc:
            self._say(f"loss of task {task.entry.key} cannot be written: {exc}")

    def _lose(self, entries: Sequence[Entry], loss: Loss) -> None:
        for entry in entries:
            task = self._tasks[entry.key]
            task.wanted = False  # `Rejected` tells
            self._publish_loss(task, loss)

    def _cancel(self, keys: Sequence[TaskKey]) -> None:
        for key in keys:
            task = self._tasks.get(key)
            if task is None or task.over:
                continue
            if task.ref is not None:
                self._doomed.append(task.ref)
            self._publish_loss(task, Loss("cancelled", "cancelled by its submitter", job=str(task.ref or "")))

    def _watch(self, keys: Sequence[TaskKey]) -> None:
        """Tell about these tasks again, whatever was told before a disconnection."""
        for key in keys:
            task = self._tasks.get(key)
            if task is not None:
                task.wanted, task.over, task.started = True, False, False
                if task.ref is not None:
                    self._open[key] = None
        self._look_at_all()
        for key in keys:
            task = self._tasks.get(key)
            if task is not None and not task.over and task.ref is None and self._bursts[task.burst].accepted:
                self._tell_loss(task, Loss("store", "its job could not be described: the store was full at that time"))

    # ---- asking the scheduler ----

    def _end_jobs(self) -> None:
        """End the jobs of tasks that are over, in one command."""
        try:
            self.queue.cancel(self._doomed)
            self._doomed = []
        except SchedulerUnavailable as exc:
            self._doom_at = self.clock() + _RETRY_S[2]
            self._say(f"{exc}; cancelling again in {_RETRY_S[2]:.0f} s")

    def _ask(self) -> None:
        """Ask once for all jobs; a job that ended without an outcome is explained, or waited for."""
        self._ask_at = self.clock() + self.polling.poll_s
        refs = {task.ref: task for task in (self._tasks[key] for key in self._open) if task.ref is not None}
        try:
            facts = self.queue.states(list(refs))
        except SchedulerUnavailable as exc:
            self._say(f"{exc}; asking again in {self.polling.poll_s:.0f} s")
            return
        self._problem = ""
        self._refuse_stuck(refs, facts)
        ended = [ref for ref in refs if facts[ref].state.ended]
        if not ended:
            return
        self._look_at_all()
        now = self.clock()
        for ref in ended:
            task = refs[ref]
            if task.over:
                continue
            claim = self.session.read_claim(task.entry.key)
            if claim is not None and claim.job not in ("", str(ref)):
                task.ref = JobRef.parse(claim.job)  # submitted twice, in spite of all; that one was first and has it
                continue
            task.ended_at = task.ended_at or now
            log = self.session.log(task.job_name, task.index)
            loss = diagnose.loss(facts[ref], ref, log_tail(log), str(log), self._resources(task))
            if loss is None and now - task.ended_at >= self.polling.grace_s:
                loss = diagnose.unexplained(facts[ref], ref, self.polling.grace_s, log_tail(log), str(log))
            if loss is not None:
                self._publish_loss(task, loss)

    def _refuse_stuck(self, refs: Mapping[JobRef, Task], facts: Mapping[JobRef, JobFacts]) -> None:
        """A job that waits for what will never come is lost now; the scheduler would keep it for ever."""
        for ref, task in refs.items():
            loss = None if facts[ref].state.ended else diagnose.loss(facts[ref], ref, "", None, self._resources(task))
            if loss is not None and not task.started:
                self._doomed.append(ref)
                self._publish_loss(task, loss)

    def _resources(self, task: Task) -> Resources:
        return self._bursts[task.burst].submit.resources[task.entry.resources]

    # ---- the rest ----

    def _recover(self) -> None:
        """Rebuild everything from the store."""
        jobs: dict[str, JobId] = {}
        most: dict[BurstId, int] = {}
        for note in self._journal.notes():
            if "name" in note:
                jobs[note["name"]] = JobId(note["job"])
            else:
                most.setdefault(BurstId(note["burst"]), note["most"])
        for submit in self.session.bursts():
            burst = self._adopt(submit)
            if submit.burst not in most:
                continue  # nothing of it was submitted
            burst.groups = cut(submit, most[submit.burst])
            for group in list(burst.groups):
                if group.name in jobs:
                    keys = [submit.tasks[position].key for position in group.positions]
                    self._assign(group.name, keys, jobs[group.name])
                    burst.groups.remove(group)
            if not burst.groups:
                burst.accepted = True
                self._submitting.remove(submit.burst)
        for task in self._tasks.values():
            task.wanted = False  # until the client says that it waits for it
        if self._tasks:
            self._look_at_all()

    def _say(self, message: str) -> None:
        """A problem that ends nothing; the same one is said once in a row."""
        if message != self._problem:
            self._problem = message
            self._events.append(Problem(message))

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events
