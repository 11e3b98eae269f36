"""Submits, cancels and watches the jobs of one session, for a user's process on the login node and, in the gateway, for
a laptop.

    request ─ handle ─┐   book: tasks         ┌─ events for the client
                      ├─ submitter: bursts ───┤
    time ──── step ───┘   outcomes: listings  └─ Accepted Rejected Started OutcomeReady Lost Problem

One thread calls it (`loop`). `handle` never asks the scheduler; `step` does one thing that is due: submit the next
job, list the outcomes, or ask about all jobs in one command.

Several services may work for one session: each submits the bursts of its own client, and follows the others' tasks.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..store.outcomes import Outcomes
from ..store.session import Session, StoreError, client_of, large_log, log_tail
from ..wire import header
from ..wire.messages import (
    Cancel,
    Entry,
    Event,
    Known,
    Leave,
    Left,
    Loss,
    Lost,
    OutcomeReady,
    Problem,
    Rejected,
    Resize,
    Started,
    Submit,
    TaskKey,
    Tell,
    Watch,
)
from ..wire.resources import Resources
from . import diagnose
from .again import Again
from .base import JobFacts, JobId, JobRef, Queue, SchedulerUnavailable
from .book import Book
from .crews import Crews
from .following import Followers
from .notes import Notes
from .records import Burst, Task, cut, refusal
from .stuck import Stuck
from .submitter import Jobs, Submitter, accepted
from .unheeded import Notices

_BEAT_S = 30.0
_LEARN_S = 1.0
_STRANGE_S = 30.0
"""For how long, and how often, a task is looked for that another client is said to have submitted."""
_STRANGE_HERE_S = 5.0
"""The same in a session without any: it was removed when its last task had ended, and made anew to look there."""
_AGAIN_S = 5.0
"""Between attempts to end jobs."""
_APART = 0.2
"""Of the time between questions: by up to so much later ask those of tasks, which may all have begun at once, so that
the first to ask does so for all."""
_PACE_S = 5.0
"""How long a client that leaves waits for the pace of submissions; picked, not measured."""


class Service:
    """The tasks of one session and the queue that runs them.

    Args:
        session: the store.
        queue: SLURM, or the embedded scheduler.
        jobs: see Jobs.
        client: begins the ids of the bursts that are this service's to submit.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        session: Session,
        queue: Queue,
        jobs: Jobs,
        client: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session, self.queue, self._client, self.clock = session, queue, client, clock
        self._terms, self.command = jobs.terms, jobs.command
        self._notices = Notices(queue)
        self._clients = {client} if jobs.alone else None  # whose bursts are looked at
        self._bursts: dict[str, Burst] = {}
        self._book = Book(session)
        self._outcomes = Outcomes(session, clock)
        self._followers = Followers(session, self._book, self._outcomes)
        self._name = secrets.token_hex(8)
        self._submitter = Submitter(self._book, queue, jobs, self._name, clock)
        self._crews = Crews(self._book, queue, jobs, client, self._name, self._submitter.pace)
        self._again = Again(self._book, clock)
        self._beat_at = clock()
        self._strangers: dict[TaskKey, float] = {}  # waited for and not known: until when
        self._learn_at = 0.0
        self._doom_at = 0.0
        self._ask_at = clock() + self._terms.poll_s * (1 + _APART * random.random() * jobs.alone)
        self._stuck = Stuck(queue)
        self._leaving = False
        self._told_left: int | None = None
        self._waits: set[tuple[JobId, str]] = set()  # why jobs wait, as it was said
        self._learn()
        if self._book.tasks:
            self._look_at_all()

    # ---- what the client asks ----

    def handle(self, request: Submit | Cancel | Watch | Tell | Resize | Leave, bundle: bytes = b"") -> list[Event]:
        """Take a request; what follows from it comes from here and from later `step`s."""
        match request:
            case Submit():
                self._take(request, bundle)
            case Cancel():
                self._cancel(request.keys)
            case Watch():
                self._watch(request.keys)
            case Leave():
                self.leave()
            case Resize():
                self._crews.resize(request.pilots)
            case Tell():
                self._learn()
                tasks = self._book.tasks.values()
                entries = tuple(Entry(task.entry.key, name=task.entry.name) for task in tasks)
                self._book.events.append(Known(entries, tuple(str(task.ref or "") for task in tasks)))
        return self._book.drain()

    def step(self) -> list[Event]:
        """Do the most urgent thing that is due, if any."""
        now = self.clock()
        self._beat(now)
        if self._book.doomed and now >= self._doom_at:
            self._end_jobs()
        due_at = self._submitter.due_at()
        if due_at is not None and now >= due_at:
            self._submitter.step()
            self._outcomes.hurry()
        pilots_at = self._crews.due_at()
        if pilots_at is not None and now >= pilots_at:
            self._crews.step()
        if self._strangers and now >= self._learn_at:
            self._expect(now)
        if self._again.due_at is not None and now >= self._again.due_at:
            self._try_again()
        if self._book.open and now >= self._outcomes.due_at:
            self._look()
        if self._book.open and now >= self._ask_at:
            self._ask()
        if self._leaving:
            self._tell_left()
        return self._book.drain()

    @property
    def submitting(self) -> bool:
        """The scheduler has not been told yet of something that was asked for: jobs to be run, or to be ended."""
        return self._submitter.busy or self._again.busy or self._crews.busy or bool(self._book.doomed)

    def leave(self) -> None:
        """Nobody may be there from now on: hand over to the scheduler what can be, and say what cannot."""
        if not self._leaving:
            self._submitter.leave()
        self._leaving, self._told_left = True, None

    def left(self, patience_s: float = float("inf")) -> int | None:
        """Tasks that stay in the store; None while there is something that may be handed over yet.

        Args:
            patience_s: for the pace of submissions.
        """
        parts = (self._submitter.left(patience_s), self._crews.left(patience_s))
        if self._again.busy or self._book.doomed or None in parts:
            return None
        return sum(part for part in parts if part is not None)

    def _tell_left(self) -> None:
        left = self.left(_PACE_S)
        if left is not None and left != self._told_left:
            if left:
                why = self._submitter.refusal or self._crews.refusal or "submits_per_minute allows no more now"
                name = self.session.path.name
                self._book.say(f"{why}; {left} tasks stay in the store until somebody uses session={name!r} again")
                self.session.end_beat(self._name)  # who does need not wait for this one to fall silent
                self._beat_at = self.clock() + _BEAT_S
            self._book.events.append(Left(left))
        self._told_left = left

    def wait_s(self) -> float | None:
        """Seconds until `step` has something to do; None: only after a request."""
        if self._book.pushed:
            return 0.0
        due = [at for at in (self._submitter.due_at(), self._crews.due_at()) if at is not None]
        if self._book.doomed:
            due.append(self._doom_at)
        if self._book.open:
            due += [self._outcomes.due_at, self._ask_at]
        if self._strangers:
            due.append(self._learn_at)
        if self._again.due_at is not None:
            due.append(self._again.due_at)
        if self._book.open or self._submitter.busy or self._strangers:
            due.append(self._beat_at)
        return max(0.0, min(due) - self.clock()) if due else None

    def next_outcome(self) -> tuple[OutcomeReady, bytes] | None:
        """The next outcome to be told, with its file; the loop asks after each `step`, so none waits in memory."""
        while self._book.pushed:
            key = self._book.pushed.popleft()
            try:
                data = self._outcomes.outcome(key)
            except OSError as exc:
                self._unread(key, exc)
                continue
            self._book.tasks[key].wanted = False
            return OutcomeReady(key, len(data)), data
        return None

    def close(self, discard: bool) -> None:
        """End; with `discard`, remove the session's files, unless something of it runs or somebody works for it."""
        if discard and self._unknown_bursts():  # of tasks that have ended, and whose own tasks may run
            self._learn()
            self._look()
        self._submitter.close()
        if not self._book.open:
            self._crews.end()
        self._crews.close()
        self.queue.close()
        self.session.end_beat(self._name)
        followed = any(burst.followed and not burst.accepted for burst in self._bursts.values())
        if discard and not (self._book.open or self._submitter.busy or followed or self.session.alive()):
            self.session.remove()

    def _beat(self, now: float) -> None:
        """Say that this service is alive, while it has something that another could take over, or waits for files."""
        if now >= self._beat_at and (self._book.open or self._submitter.busy or self._strangers):
            self._beat_at = now + _BEAT_S
            try:
                self.session.beat(self._name)
            except OSError as exc:
                self._book.say(f"the store cannot be written: {exc}")

    def _take(self, submit: Submit, bundle: bytes) -> None:
        known = self._bursts.get(submit.burst)
        if known is not None:
            if known.accepted:
                self._book.events.append(accepted(known, self._book))
            self._outcomes.hurry()
            return
        problem = refusal(submit, bundle, self.session.key, self._book.tasks)
        if problem is None:
            try:
                self.session.own(submit.burst, self._name)  # first: a burst without an owner would be an orphan
                self.session.add_burst(submit, bundle)
                self._book.events += self._notices.new(submit.resources)
                self._add(self._adopt(submit))
                self._beat(self.clock())
            except OSError as exc:
                problem = ("StoreError", f"the store on the cluster cannot be written: {exc}")
        if problem is not None:
            keys = tuple(entry.key for entry in submit.tasks)
            self._book.events.append(Rejected(submit.burst, keys, *problem))
        self._outcomes.hurry()

    def _adopt(self, submit: Submit) -> Burst:
        """Make records of a burst."""
        for position, entry in enumerate(submit.tasks):
            self._book.add(entry, submit.burst, submit.resources[entry.resources], position)
        burst = self._bursts[submit.burst] = Burst(submit, own=submit.burst.startswith(f"{self._client}-"))
        return burst

    def _add(self, burst: Burst) -> None:
        """A burst that this service sees to."""
        if self._crews.of(burst.submit.burst) is None:
            self._submitter.add(burst)
        else:
            self._crews.add(burst)
            self._book.events.append(accepted(burst, self._book))

    def _cancel(self, keys: Sequence[TaskKey]) -> None:
        for key in keys:
            task = self._book.tasks.get(key)
            if task is None or task.over:
                continue
            if task.ref is not None:
                self._book.doomed.append(task.ref)
            self._book.publish_loss(task, Loss("cancelled", "cancelled by its submitter", job=str(task.ref or "")))

    def _watch(self, keys: Sequence[TaskKey]) -> None:
        """Tell about these tasks again, whatever was told before a disconnection."""
        if any(key not in self._book.tasks for key in keys):
            self._learn()
        for key in keys:
            task = self._book.tasks.get(key)
            if task is not None:
                task.wanted, task.over, task.started = True, False, False
                elsewhere = self._bursts[task.burst].followed or self._crews.of(task.burst)
                if task.ref is not None or task.waits_again or elsewhere:
                    self._book.open[key] = None
            else:  # whoever said that there is such a task may be about to submit it
                self._strangers[key] = self.clock() + (_STRANGE_S if self._bursts else _STRANGE_HERE_S)
                self._learn_at = self.clock() + _LEARN_S
        self._look_at_all()
        for key in keys:
            task = self._book.tasks.get(key)
            if task is None or task.over or task.waits_again or self._crews.of(task.burst):
                continue
            if task.ref is None and self._bursts[task.burst].accepted:
                loss = Loss("store", "its job could not be described: the store was full at that time")
                self._book.tell_loss(task, loss)

    def _expect(self, now: float) -> None:
        """Look for tasks that are waited for and were not there."""
        self._learn_at = now + _LEARN_S
        self._learn()
        found = [key for key in self._strangers if key in self._book.tasks]
        for key, until in list(self._strangers.items()):
            if key in found or now >= until:
                del self._strangers[key]
                if key not in found:
                    loss = Loss("unknown", f"session {self.session.path.name} has no such task")
                    self._book.events.append(Lost(key, loss))
        if found:
            self._watch(found)

    # ---- what the store says ----

    def _unknown_bursts(self) -> bool:
        """Whether tasks have submitted some, too, that nobody has told us about."""
        return len(self.session.manifests(self._clients)) > len(self._bursts)

    def _learn(self, clients: set[str] | None = None) -> None:
        """Bursts and jobs that the store knows and we do not, of these clients; those of our own are ours to submit."""
        notes = self._submitter.notes()
        for submit in self.session.bursts(clients or self._clients):
            burst = self._bursts.get(submit.burst)
            if burst is not None and not burst.followed:
                continue
            if burst is None:
                burst = self._adopt(submit)
                burst.followed = not burst.own
                for entry in submit.tasks:
                    self._book.tasks[entry.key].wanted = False  # until the client says that it waits for it
                    self._outcomes.forget(_names_of(entry, submit.resources[entry.resources]))
            if submit.burst in notes.most and not self._crews.of(submit.burst):  # else nothing of it was submitted
                self._learn_jobs(burst, notes)
            try:
                self._take_over(burst)
            except OSError as exc:
                self._put_off(burst, exc)
        self._again.learn(notes.again)

    def _take_over(self, burst: Burst) -> None:
        """Submit what nobody else does of a burst of the store."""
        if self._crews.of(burst.submit.burst):
            self._crews.learn(burst)
        elif not burst.accepted and (not burst.followed or self._submitter.orphaned(burst)):
            self._submitter.add(burst)

    def _put_off(self, burst: Burst, exc: OSError) -> None:
        """A burst that cannot be taken over now, as the store cannot be written: it is looked at again."""
        self._book.say(f"the store cannot be written: {exc}")
        burst.followed = True
        self._book.follow(entry.key for entry in burst.submit.tasks)

    def _learn_jobs(self, burst: Burst, notes: Notes) -> None:
        name = burst.submit.burst
        if burst.groups is None or burst.followed:  # whoever submits it may have halved an array since
            burst.groups = cut(burst.submit, notes.most[name], notes.halved.get(name, ()))
        for group in list(burst.groups):
            if group.name in notes.jobs:
                keys = [burst.submit.tasks[position].key for position in group.positions]
                if not self._book.tasks[keys[0]].job_name:  # else it was learned before
                    self._book.assign(group.name, keys, notes.jobs[group.name])
                burst.groups.remove(group)
        if not burst.groups:
            burst.accepted, burst.followed = True, False
            if burst.taken:
                self._book.events.append(accepted(burst, self._book))

    def _look(self) -> None:
        """List the outcomes once, for all tasks."""
        try:
            self._tell(list(self._outcomes.look()))
        except OSError as exc:
            self._book.say(f"the store cannot be listed: {exc}")

    def _tell(self, names: list[str]) -> None:
        while names:
            self._read(names)
            names = self._followers.settle()

    def _look_at_all(self) -> None:
        """The same for what was seen before, too."""
        self._outcomes.forget_all()
        self._look()

    def _read(self, names: Iterable[str]) -> None:
        for name in sorted(
            names, key=lambda name: (len(name), name)
        ):  # .h5 before .link before .lost, .died-2 before .died-10
            stem, _, suffix = name.rpartition(".")
            task = self._book.tasks.get(TaskKey(stem))
            if task is None or name.startswith("."):
                continue
            if suffix == "running":
                self._note_start(task)
            elif suffix.startswith("died-") and suffix[5:].isdigit():
                if self._crews.of(task.burst) is not None:
                    task.started = False  # whoever saw it has put it into a ticket again
                else:
                    self._again.note(task, int(suffix[5:]))
            elif suffix == "h5" and not task.over:
                self._note_outcome(task)
            elif suffix == "link" and not task.over:
                self._note_link(task)
            elif suffix == "lost" and not task.over:
                self._note_loss(task)

    def _note_start(self, task: Task) -> None:
        if task.started or task.over:
            return
        claim = self._outcomes.claim(task.entry.key)
        if claim is None:
            self._outcomes.forget([f"{task.entry.key}.running"])
            return
        task.started = True
        if task.wanted:
            self._book.events.append(Started(task.entry.key, claim.job, claim.host))

    def _note_outcome(self, task: Task) -> None:
        key = task.entry.key
        try:
            failed = header.read(self._outcomes.outcome(key, header.BLOCK)).status != "ok"
        except header.HeaderError:
            failed = True  # the client says what is wrong with it
        except OSError as exc:
            self._unread(key, exc)
            return
        if task.wanted:
            self._book.pushed.append(key)
        self._book.over(task, failed)

    def _unread(self, key: TaskKey, exc: OSError) -> None:
        """The next look tries again."""
        self._book.unread(key, exc)
        self._outcomes.forget([f"{key}.h5"])

    def _note_link(self, task: Task) -> None:
        """It ends as one of its own tasks does, which is looked for from now on."""
        key = task.entry.key
        try:
            child = self._followers.add(task)
            if child not in self._book.tasks:
                if self._clients is not None:
                    self._clients.add(client_of(child))
                self._learn({client_of(child)})
        except (OSError, ValueError, StoreError) as exc:
            self._book.say(f"whose future task {key} has returned cannot be read: {exc}")
            self._outcomes.forget([f"{key}.link"])
            return
        if child not in self._book.tasks:
            self._outcomes.forget([f"{key}.link"])
        elif not self._book.tasks[child].over:
            self._book.open[child] = None
            self._outcomes.hurry()

    def _note_loss(self, task: Task) -> None:
        key = task.entry.key
        try:
            loss = self._outcomes.loss(key)
        except (OSError, ValueError) as exc:
            self._book.say(f"loss of task {key} cannot be read: {exc}")
            self._outcomes.forget([f"{key}.lost"])
            return
        self._book.tell_loss(task, loss)

    # ---- what the scheduler says ----

    def _end_jobs(self) -> None:
        """End the jobs of tasks that are over, in one command."""
        try:
            self.queue.cancel(self._book.doomed)
            self._book.doomed.clear()
        except SchedulerUnavailable as exc:
            self._doom_at = self.clock() + _AGAIN_S
            self._book.say(f"{exc}; cancelling again in {_AGAIN_S:.0f} s")

    def _ask(self) -> None:
        """Ask once for all jobs; a job that ended without an outcome is explained, or waited for."""
        self._ask_at = self.clock() + self._terms.poll_s
        if any(burst.followed for burst in self._bursts.values()) or self._unknown_bursts():
            self._learn()
        open_tasks = [self._book.tasks[key] for key in self._book.open if self._book.tasks[key].follows is None]
        refs = {task.ref: task for task in open_tasks if task.ref is not None}
        pilots = self._crews.refs()
        if not refs and not pilots:
            return
        try:
            facts = self.queue.states([*refs, *pilots])
        except SchedulerUnavailable as exc:
            self._book.say(f"{exc}; asking again in {self._terms.poll_s:.0f} s")
            return
        self._book.no_problem()
        self._refuse_stuck(refs, facts)
        self._tell_waiting(refs, facts)
        ended = [ref for ref in refs if facts[ref].state.ended]
        if ended or any(facts[ref].state.ended for ref in pilots):
            self._again.learn(self._submitter.notes().again)  # jobs that went behind others, or were tried again
            self._look_at_all()
        self._crews.heard(facts, self._outcomes)
        for ref in ended:
            if not refs[ref].over and refs[ref].follows is None and refs[ref].ref == ref:
                self._explain(refs[ref], ref, facts[ref])

    def _explain(self, task: Task, ref: JobRef, facts: JobFacts) -> None:
        """The task's job has ended, and there is no outcome."""
        claim = self.session.read_claim(task.entry.key)
        if claim is not None and claim.job not in ("", str(ref)):
            task.ref = JobRef.parse(claim.job)  # submitted twice, in spite of all; that one was first and has it
            return
        now = self.clock()
        task.ended_at = task.ended_at or now
        log = self.session.log(task.job_name, task.index)
        loss = diagnose.loss(facts, ref, log_tail(log), str(log), task.resources)
        if loss is None and now - task.ended_at >= self._terms.grace_s:
            loss = diagnose.unexplained(facts, ref, self._terms.grace_s, log_tail(log), str(log))
        if loss is not None and not self._has_hidden_end(task):
            self._again.lose(task, replace(loss, message=loss.message + large_log(log)))

    def _has_hidden_end(self, task: Task) -> bool:
        """Whether there is an end that the listing does not show yet; it is told."""
        found = self.session.ends(task.entry.key, task.attempt)
        self._tell(found)
        return bool(found)

    def _try_again(self) -> None:
        """Submit further attempts of this service's bursts, and of those that nobody has any more."""
        self._learn()  # a supervisor may have submitted them
        for name, group in list(self._again.groups()):
            burst = self._bursts[name]
            keys = [burst.submit.tasks[position].key for position in group.positions]
            try:
                if self._submitter.owns(burst):
                    self._submitter.add_group(burst, group)
                else:
                    self._again.put_off(keys, self._terms.poll_s)
            except OSError as exc:
                self._book.say(f"the store cannot be written: {exc}")
                self._again.put_off(keys, self._terms.poll_s)

    def _refuse_stuck(self, refs: Mapping[JobRef, Task], facts: Mapping[JobRef, JobFacts]) -> None:
        """A job that waits for what will never come is lost now; the scheduler would keep it for ever."""
        for ref, task in refs.items():
            loss = None if facts[ref].state.ended else self._stuck.loss(facts[ref], ref, task.resources)
            if loss is not None and not task.started:
                self._book.doomed.append(ref)
                self._book.publish_loss(task, loss)

    def _tell_waiting(self, refs: Mapping[JobRef, Task], facts: Mapping[JobRef, JobFacts]) -> None:
        """Say what may keep a job waiting for long, once for each job and text."""
        for ref, task in refs.items():
            text = None if task.over else diagnose.waiting(facts[ref], JobRef(ref.job))
            if text is not None and (ref.job, text) not in self._waits:
                self._waits.add((ref.job, text))
                self._book.events.append(Problem(text))


def _names_of(entry: Entry, resources: Resources) -> Iterator[str]:
    """What may be among the outcomes of a task."""
    times = resources.retry.times if resources.retry is not None else 0
    for suffix in ("running", "h5", "link", "lost", *(f"died-{number}" for number in range(1, times + 1))):
        yield f"{entry.key}.{suffix}"
