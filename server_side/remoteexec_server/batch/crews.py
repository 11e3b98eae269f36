"""Bursts whose tasks run in pilots: cuts them into tickets, keeps as many pilots as there is work for, and sees to what
dead ones had in hand.

    add ─▶ tickets in the store ◀─ pilots take them ─▶ outcomes
    step ─▶ more tickets than pilots? submit pilots (one array)
    heard ─▶ a pilot's job has ended? what it had started is lost, the rest is for others

Nothing of it needs a service to be alive: pilots that are there go on, submit their successors, and look after each
other. Whatever is missing (a crash between two files, a damaged ticket) is made again from the bursts.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..store.crew import BadTicket, CrewStore, Spec, crews, owner_of, without_init
from ..store.outcomes import Outcomes, log_path
from ..store.segments import Kind, LogWriter
from ..store.session import Job, Journal, Session, log_tail
from ..store.tickets import cut, enough
from ..wire import messages
from ..wire.messages import BurstId, Loss, TaskKey
from ..wire.pilots import pilot_resources
from ..wire.resources import Resources
from . import diagnose
from .base import (
    JobFacts,
    JobId,
    JobRef,
    JobSpec,
    Queue,
    QueueError,
    QuotaReached,
    SchedulerUnavailable,
    SubmitRejected,
)
from .book import Book
from .records import Burst, Task
from .recovery import recover, writers_of
from .submitter import Jobs, Pace

_CHECK_S, _REST_S = 2.0, 10.0
"""Between looks at the tickets while there are some that nobody has taken, and while there are none."""
_AGAIN_S = (1.0, 5.0, 15.0, 30.0)
"""Before pilots are submitted again; the last one for ever."""
_BARREN = 3
"""Submissions in a row whose pilots all ended before they ran a task, after which no more are submitted."""


def pilot_command(runner: tuple[str, ...]) -> tuple[str, ...]:
    """How a job starts a pilot, from how it starts a runner."""
    return (*runner[:-1], "pilot")


def pilot_name(job_name: str, index: int) -> str:
    """What a pilot is called: an element of a job."""
    return f"{job_name}-{index}"


def reserve_name(session: Session, client: str, resources: Resources, spec: Spec) -> str:
    """Describe one more job of pilots, under a name that nobody else has."""
    number = len(list((session.path / "jobs").glob(f"rx-{client}-p*")))
    while True:
        name = f"rx-{client}-p{number}"
        try:
            session.job_directory(name).mkdir(mode=0o700)
            break
        except FileExistsError:
            number += 1
    session.add_job(Job(name, BurstId(""), (), resources, scheduler=spec.scheduler, grace_s=spec.grace_s))
    return name


def intent(name: str, count: int) -> dict[str, object]:
    """What is noted before so many pilots are submitted; the number of their job is noted afterwards."""
    return {"job": "", "name": name, "tasks": count}


def submit_pilots(store: CrewStore, spec: Spec, queue: Queue, name: str, count: int) -> JobId:
    """Submit a job of so many pilots, under a reserved name.

    Raises:
        QueueError: see Queue.submit.
    """
    return queue.submit(job_of_pilots(store.session, store.client, spec, name, count))


def job_of_pilots(session: Session, client: str, spec: Spec, name: str, count: int) -> JobSpec:
    """What is submitted for so many pilots of a client."""
    directory = session.job_directory(name)
    resources = pilot_resources(spec.pilots, spec.scheduler)
    return JobSpec(name, directory, (*spec.command, str(directory), client), count, resources)


class Crew:
    """The pilots of one client, as its service sees them.

    Args:
        store: their files.
        pace: of all that the service submits.
    """

    def __init__(self, store: CrewStore, spec: Spec, book: Book, queue: Queue, journal: Journal, pace: Pace) -> None:
        self.store, self._spec, self._book, self._queue = store, spec, book, queue
        self._journal, self._pace, self._clock = journal, pace, pace.clock
        self._pilots: dict[str, JobRef] = {}  # whose jobs have not ended, as far as is known
        self._gone: set[str] = set()
        self._dismissed: set[str] = set()
        self._intents: dict[str, int] = {}  # jobs somebody was about to submit, with their numbers of pilots; 0: known
        self._ended_at: dict[str, float] = {}
        self._bursts: dict[BurstId, Burst] = {}
        self._hiring: tuple[str, int] | None = None  # name and number of what is being submitted
        self._attempt = 0
        self._hire_at = 0.0
        self._check_at = self._clock()
        self._barren: dict[str, Loss | None] = {}
        self._missing: set[tuple[BurstId, int]] = set()
        self._seizures: set[str] = set()
        self._needs: dict[str, frozenset[TaskKey]] = {}  # what tickets take from tasks that are not in them
        self._due = True  # there may be work for more pilots
        self.adopted = False

    @property
    def busy(self) -> bool:
        """Pilots that are needed are not in the queue yet."""
        return self.adopted and bool(self._book.open) and (self._hiring is not None or self._due)

    def add(self, burst: Burst) -> None:
        """Let pilots run a burst.

        Raises:
            OSError: the store cannot be written.
        """
        self.follow(burst)
        workers = self._spec.pilots.count * self._spec.pilots.workers
        coarse = enough(len(self.store.tickets()), workers)
        tickets = cut(burst.submit, self._is_open, workers, self._spec.pilots.resources, coarse=coarse)
        self.store.add(tickets, time.time_ns() // 1_000_000)
        self._journal.append({"burst": burst.submit.burst, "most": 0})
        self._hire_at = min(self._hire_at, self._clock())
        self._check_at, self._due = self._clock(), True
        self._queue.prewarm()

    def follow(self, burst: Burst) -> None:
        """A burst is in tickets."""
        self._bursts[burst.submit.burst] = burst
        burst.accepted, burst.followed = True, False
        for entry in burst.submit.tasks:
            if not self._book.tasks[entry.key].over:
                self._book.open[entry.key] = None

    def read_notes(self) -> None:
        """Jobs of pilots that somebody has submitted, or was about to."""
        for note in self._journal.notes():
            name = str(note.get("name", ""))
            if name.rpartition("-p")[0] != f"rx-{self.store.client}":
                continue
            if note["job"]:
                self._note(name, JobId(note["job"]), note["tasks"])
                self._intents[name] = 0
            elif self._intents.get(name) != 0:
                self._intents[name] = note["tasks"]

    def _note(self, name: str, job: JobId, count: int) -> None:
        for index in range(count):
            pilot = pilot_name(name, index)
            if pilot not in self._gone:
                self._pilots[pilot] = JobRef(job, index if count > 1 else None)

    def due_at(self) -> float | None:
        """When `step` has something to do."""
        if not self.adopted or not self._book.open:
            return None
        return max(self._hire_at, self._pace.due_at) if self._hiring is not None else self._check_at

    def step(self) -> None:
        """Submit pilots, or see whether more are needed."""
        now = self._clock()
        if self._hiring is not None:
            if now >= max(self._hire_at, self._pace.due_at):
                self._hire(*self._hiring)
        elif now >= self._check_at:
            self._check(now)

    def refs(self) -> Iterator[JobRef]:
        """Jobs the scheduler is to be asked about."""
        return iter(self._pilots.values())

    def heard(self, facts: Mapping[JobRef, JobFacts], outcomes: Outcomes) -> None:
        """What the scheduler says of them."""
        self._find_again()
        for pilot, ref in list(self._pilots.items()):
            if ref in facts and facts[ref].state.ended:
                self._see_to(pilot, ref, facts[ref], outcomes)
            elif ref in facts and (loss := diagnose.loss(facts[ref], ref, "", None, self._spec.pilots.resources)):
                self._book.doomed.append(ref)  # it will never start
                self._dismiss(pilot, loss, barren=True)
        self._finish_seizures(outcomes)
        self._fill_gaps()
        self._check_at = min(self._check_at, self._clock())

    def resize(self, count: int) -> None:
        """So many pilots from now on: more are submitted while there is work for them, those that are too many end when
        what they run has ended.

        Raises:
            OSError: the store cannot be written.
        """
        self._spec = replace(self._spec, pilots=replace(self._spec.pilots, count=count))
        self.store.change(self._spec)
        self._trim()
        self._check_at, self._due = self._clock(), True

    def _trim(self) -> None:
        """Dismiss pilots that are too many, those that have not begun and those that have nothing first."""
        there = [pilot for pilot in self._pilots if pilot not in self._dismissed]
        surplus = len(there) - self._spec.pilots.count
        if surplus <= 0:
            return
        waiting = [pilot for pilot in there if self.store.read_beat(pilot) is None]
        hungry = set(self.store.hungry())
        for pilot in sorted(there, key=lambda pilot: (pilot not in waiting, pilot not in hungry))[:surplus]:
            self.store.dismiss(pilot)
            self._dismissed.add(pilot)
            if pilot in waiting:
                self._book.doomed.append(self._pilots[pilot])
                self._dismiss(pilot, None, barren=False)

    def end(self) -> list[JobRef]:
        """No more tasks will come. Returns the jobs of pilots that have not begun, as far as is known."""
        self.store.stop()
        return [ref for pilot, ref in self._pilots.items() if self.store.read_beat(pilot) is None]

    # ---- as many pilots as there is work for ----

    def _find_intended(self) -> bool:
        """Look for jobs whose submission was begun, and by whom who knows; False: the scheduler does not answer."""
        for name, count in self._intents.items():
            if count:
                try:
                    job = self._queue.find(name)
                except SchedulerUnavailable as exc:
                    self._book.say(f"{exc}; looking for pilots again in {_AGAIN_S[1]:.0f} s")
                    return False
                self._intents[name] = 0
                if job is not None:
                    self._note(name, job, count)
        return True

    def _check(self, now: float) -> None:
        if not self._find_intended():
            self._check_at = now + _AGAIN_S[1]
            return
        waiting = len(self.store.tickets())
        for pilot in list(self._pilots):
            beat = self.store.read_beat(pilot) if waiting else None
            if beat is not None and beat.left:
                self._dismiss(pilot, None, barren=False)
                if beat.successor:
                    self.read_notes()
        self._trim()
        alive = len(self._pilots)
        hungry = {pilot for pilot in self.store.hungry() if pilot in self._pilots} if waiting else set()
        starting = {pilot for pilot in self._pilots if waiting and self.store.read_beat(pilot) is None}
        room = self._spec.pilots.count - alive
        wanted = min(room, self._count_runnable(room + len(hungry | starting)) - len(hungry | starting))
        self._due = False
        self._check_at = now + (_CHECK_S if waiting else _REST_S)
        if wanted > 0 and now >= self._hire_at:
            try:
                wanted = min(wanted, max(1, self._queue.max_array())) if wanted > 1 else 1
            except SchedulerUnavailable as exc:
                self._book.say(f"{exc}; submitting pilots again in {_AGAIN_S[1]:.0f} s")
                self._check_at, self._due = now + _AGAIN_S[1], True
                return
            try:
                resources = self._spec.pilots.resources
                name = reserve_name(self.store.session, self.store.client, resources, self._spec)
                self._intents[name] = 0
                self._journal.append(intent(name, wanted))
            except OSError as exc:
                self._book.say(f"the store on the cluster cannot be written: {exc}")
                return
            self._hiring, self._attempt = (name, wanted), 0
            if now >= self._pace.due_at:
                self._hire(name, wanted)

    def _count_runnable(self, most: int) -> int:
        """Tickets, up to so many, that a pilot could take now: one whose inputs others compute would leave it idle."""
        names = self.store.tickets()
        self._needs = {name: self._needs[name] for name in names if name in self._needs}
        count = 0
        for name in names:
            if count >= most:
                break
            if name not in self._needs:
                with contextlib.suppress(BadTicket):  # which is put into another: see _held
                    ticket = self.store.read(name)
                    self._needs[name] = ticket.outside if ticket is not None else frozenset()
            needs = self._needs.get(name, frozenset())
            count += not any(self._is_open(key) for key in needs)
        return count

    def _hire(self, name: str, count: int) -> None:
        """Submit a job, or find it if an answer was lost."""
        try:
            job = self._queue.find(name) if self._attempt else None
            if job is None:
                self._pace.count()
                job = submit_pilots(self.store, self._spec, self._queue, name, count)
        except SubmitRejected as exc:
            self._hiring = None
            self._lose_all(Loss("rejected", f"pilots cannot be submitted: {exc}"))
            return
        except (QuotaReached, SchedulerUnavailable) as exc:
            pause = _AGAIN_S[min(self._attempt, len(_AGAIN_S) - 1)]
            self._attempt += 1
            self._hire_at = self._clock() + pause
            if isinstance(exc, QuotaReached) and count > 1:
                self._hire_fewer(name, count // 2)
            self._book.say(f"{exc}; submitting pilots again in {pause:.0f} s")
            return
        self._hiring = None
        self._hire_at = self._clock() + _AGAIN_S[min(len(self._barren), len(_AGAIN_S) - 1)]
        try:
            self._journal.append({"job": job, "name": name, "tasks": count})
        except OSError as exc:
            self._book.say(f"the journal cannot be written: {exc}")
        self._note(name, job, count)

    def _hire_fewer(self, name: str, count: int) -> None:
        """There may be room for some, though not for all at once; the others are submitted when there is room."""
        try:
            self._journal.append(intent(name, count))
        except OSError as exc:
            self._book.say(f"the journal cannot be written: {exc}")
        else:
            self._hiring = (name, count)

    # ---- pilots that have ended ----

    def _see_to(self, pilot: str, ref: JobRef, facts: JobFacts, outcomes: Outcomes) -> None:
        name, _, index = pilot.rpartition("-")
        log = self.store.session.log(name, int(index))
        tail = log_tail(log)
        loss = diagnose.loss(facts, ref, tail, str(log), self._spec.pilots.resources)
        beat = self.store.read_beat(pilot)
        has_left = beat is not None and bool(beat.left)
        if loss is None and not has_left:
            since = self._ended_at.setdefault(pilot, self._clock())
            if self._clock() - since < self._spec.grace_s:
                return  # NFS may still hide what it has said and done
        why = loss or diagnose.unexplained(facts, ref, self._spec.grace_s, tail, str(log))
        recover(self.store, outcomes, pilot, why, self._lose)
        worked = outcomes.has_writer(writers_of(pilot))
        self._dismiss(pilot, why, barren=not worked and not has_left)

    def _dismiss(self, pilot: str, loss: Loss | None, barren: bool) -> None:
        """A pilot is gone; if many are without having run a task, no more are submitted."""
        self._pilots.pop(pilot, None)
        self._gone.add(pilot)
        self.store.leave(pilot)
        if not barren:
            self._barren.clear()
            return
        self._barren[pilot.rpartition("-")[0]] = loss
        if len(self._barren) >= _BARREN and not self._pilots and loss is not None:
            self._barren.clear()
            message = f"{_BARREN} times in a row pilots ended before they ran a task; the last time: {loss.message}"
            self._lose_all(replace(loss, message=message))

    def _find_again(self) -> None:
        """A pilot that had said it leaves may have found a ticket at the last moment."""
        for pilot in self._gone.intersection(self.store.members()):
            beat = self.store.read_beat(pilot)
            if beat is not None and not beat.left and beat.job:
                self._gone.discard(pilot)
                self._pilots[pilot] = JobRef.parse(beat.job)

    def _lose(self, key: TaskKey, loss: Loss) -> None:
        task = self._book.tasks.get(key)
        if task is not None and not task.over:
            self._book.publish_loss(task, loss)
        elif task is None:
            self._book.write_loss(key, loss)

    def _lose_all(self, loss: Loss) -> None:
        for name in self.store.tickets():
            self.store.remove(name)
        for task in self._tasks():
            if not task.over and not task.started:
                self._book.publish_loss(task, loss)

    # ---- what is missing ----

    def _finish_seizures(self, outcomes: Outcomes) -> None:
        """Who has seized a dead pilot's tickets may have died, too."""
        found = {name for name in self.store.members() if owner_of(name) != name}
        for name in found & self._seizures:
            why = Loss("unknown", f"pilot {owner_of(name)} has ended, and so has who was to find out why")
            recover(self.store, outcomes, name, why, self._lose)
        self._seizures = found

    def _fill_gaps(self) -> None:
        """Tasks that are in no ticket, at two looks in a row, get into new ones."""
        held = self._held()
        missing = {
            (burst.submit.burst, position)
            for burst in self._bursts.values()
            for position, entry in enumerate(burst.submit.tasks)
            if self._is_open(entry.key)
            and self._book.tasks[entry.key].follows is None
            and (burst.submit.burst, position) not in held
        }
        again = missing & self._missing
        for burst in {burst for burst, _ in again}:
            positions = {position for other, position in again if other == burst}
            submit, pilots = self._bursts[burst].submit, self._spec.pilots
            self.store.add(cut(submit, self._is_open, pilots.count * pilots.workers, pilots.resources, positions), 0)
        self._missing = missing - self._missing

    def _held(self) -> set[tuple[BurstId, int]]:
        """Tasks in tickets, in whosever hand; looked for twice, since a pilot may give one back meanwhile."""
        held: set[tuple[BurstId, int]] = set()
        for again in (False, True):
            for name in self.store.tickets():
                try:
                    ticket = self.store.read(name)
                except BadTicket as exc:
                    self._book.say(f"{exc}; what it held is put into another")
                    self.store.remove(name)
                    continue
                if ticket is not None:
                    held |= {(ticket.burst, piece.position) for piece in ticket.pieces}
            if not again:
                for tickets in self.store.in_hand().values():
                    held |= {(ticket.burst, piece.position) for ticket in tickets for piece in ticket.pieces}
        return held

    def _is_open(self, key: TaskKey) -> bool:
        return key in self._book.tasks and not self._book.tasks[key].over

    def _tasks(self) -> Iterator[Task]:
        for burst in self._bursts.values():
            for entry in burst.submit.tasks:
                yield self._book.tasks[entry.key]


class Crews:
    """All crews of a session; nothing where none is wanted.

    Args:
        client: whose crew this service keeps; the others' only if their service is gone.
        owner: name of the service.
        pace: of all that it submits.
    """

    def __init__(self, book: Book, queue: Queue, jobs: Jobs, client: str, owner: str, pace: Pace) -> None:
        self._book, self._queue, self._client, self._owner, self._pace = book, queue, client, owner, pace
        self._session = book.session
        self._journal = Journal(self._session)
        self._crews: dict[str, Crew] = {}
        self._losses: LogWriter | None = None
        self._unsynced = False
        if jobs.terms.pilots is not None:
            spec = Spec(
                without_init(jobs.terms.pilots), pilot_command(jobs.command), jobs.scheduler, jobs.terms.grace_s
            )
            store = CrewStore(self._session, client)
            store.create(spec, base64.b64decode(jobs.terms.pilots.init))
            self._crews[client] = self._made(store, spec)
            self._crews[client].adopted = True
            self._book.write_loss = self._write_loss
        for name in crews(self._session):
            store = CrewStore(self._session, name)
            found = store.spec()
            if found is not None:
                self._crews.setdefault(name, self._made(store, found))
        for crew in self._crews.values():
            crew.read_notes()

    def of(self, burst: BurstId) -> Crew | None:
        """Whose pilots run a burst's tasks; None: they are jobs of their own."""
        return next((crew for name, crew in self._crews.items() if burst.startswith(f"{name}-")), None)

    def add(self, burst: Burst) -> None:
        """Let pilots run a burst.

        Raises:
            OSError: the store cannot be written.
        """
        crew = self.of(burst.submit.burst)
        assert crew is not None
        self._session.beat(self._owner)
        self._session.own(burst.submit.burst, self._owner)
        crew.add(burst)

    def resize(self, count: int) -> None:
        """So many pilots of our client's from now on; nothing where its tasks are jobs."""
        crew = self._crews.get(self._client)
        if crew is not None and crew.adopted:
            try:
                crew.resize(count)
            except OSError as exc:
                self._book.say(f"the store on the cluster cannot be written: {exc}")

    def learn(self, burst: Burst) -> None:
        """A burst of the store that pilots run; what is in no ticket is for us, if its service is gone."""
        crew = self.of(burst.submit.burst)
        assert crew is not None
        name = burst.submit.burst
        if not crew.adopted and self._session.alive(self._session.owner(name) or self._owner):
            return
        self._session.own(name, self._owner)
        crew.adopted = True
        crew.follow(burst)  # what is in no ticket is noticed soon

    @property
    def busy(self) -> bool:
        """Pilots that are needed are not in the queue yet."""
        return any(crew.busy for crew in self._crews.values())

    def due_at(self) -> float | None:
        """When `step` has something to do; None: nothing, for now."""
        if self._unsynced:
            return 0.0
        due = [at for crew in self._crews.values() if (at := crew.due_at()) is not None]
        return min(due) if due else None

    def step(self) -> None:
        """Do what is due."""
        self._sync()
        for crew in self._crews.values():
            at = crew.due_at()
            if at is not None and at <= self._pace.clock():
                crew.step()

    def refs(self) -> list[JobRef]:
        """Jobs of pilots the scheduler is to be asked about, those others have submitted, too."""
        if not self._crews:
            return []
        for crew in self._crews.values():
            crew.read_notes()
        return [ref for crew in self._crews.values() if crew.adopted for ref in crew.refs()]

    def heard(self, facts: Mapping[JobRef, JobFacts], outcomes: Outcomes) -> None:
        """What the scheduler says of them."""
        for crew in self._crews.values():
            if crew.adopted:
                crew.heard(facts, outcomes)

    def end(self) -> None:
        """Nothing is left to do: pilots that wait in the queue are of no use, those that run notice it."""
        waiting = [ref for crew in self._crews.values() if crew.adopted for ref in crew.end()]
        if waiting:
            with contextlib.suppress(QueueError):  # they end as soon as they begin
                self._queue.cancel(waiting)

    def close(self) -> None:
        """Close journal and log."""
        self._sync()
        self._journal.close()
        if self._losses is not None:
            self._losses.close()

    def _write_loss(self, key: TaskKey, loss: Loss) -> None:
        """In one log for all: cancelling 10,000 tasks makes no 10,000 files."""
        if self._losses is None:
            self._losses = LogWriter(Path(log_path(self._session, f"service-{self._owner}")))
        self._losses.append(Kind.LOST, key, messages.to_json(loss).encode())
        self._unsynced = True

    def _sync(self) -> None:
        if self._unsynced and self._losses is not None:
            self._unsynced = False
            try:
                self._losses.sync()
            except OSError as exc:
                self._book.say(f"losses of tasks cannot be written: {exc}")

    def _made(self, store: CrewStore, spec: Spec) -> Crew:
        return Crew(store, spec, self._book, self._queue, self._journal, self._pace)
