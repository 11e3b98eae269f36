"""A pilot: a job that hosts workers; `start` makes one.

    pilot (one thread)
      ├─ takes tickets, gives orders to workers, gives back what it has not started
      ├─ fork ─ kept workers: tasks that ask for what the workers are made for, one after the other
      ├─ fork ─ a worker for each task that asks for something else, once there is room for it
      ├─ fork ─ a kept worker more for each task that waits for its own children, whose place is free meanwhile
      └─ fork ─ now and then: submits a successor, asks the scheduler about pilots that have fallen silent (`aside`)

It needs nobody: it takes tickets from the store as long as there are any, and what its workers write there is the
outcome. All it knows can be read there, so a pilot that is killed has lost what it was running and nothing else.

Exit codes: 0 nothing was left to do, or its time was nearly up; 128 + n for signal n.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from .. import attempts, runner
from ..store.crew import Beat, CrewStore, Spec
from ..store.links import is_linked
from ..store.outcomes import Outcomes
from ..store.tickets import Ticket
from ..tried_again import following, told
from ..wire.messages import Loss, TaskKey
from ..wire.pilots import gpus
from ..wire.resources import Resources
from . import aside, plan
from .growth import OVERTAKE, REST, WAKE
from .hand import Hand, Item
from .linked import Linked
from .losses import Losses
from .shelf import Shelf
from .staff import Hired, Staff, import_all
from .worker import AGAIN, FAILED, LINKED

_TICK_S = 1.0
_BEAT_S = 20.0
_LOOKOUT_S = 60.0
_SYNC_S = 0.25
"""What was written is on the disk so soon at the latest; picked: one flush takes some milliseconds."""
_LEAST_S, _LATE = 0.02, 0.1
"""Between two looks for tickets: a tenth of the time for which there was none, a tick at most."""
_LONG_S = 0.5
"""A task that runs for so long does not keep others waiting behind it."""
_UNCERTAIN_S = 1.0
"""How long a worker's end by a signal may turn out to be the end of the whole job."""
_BACK_OFF_S = 1.0
_DEADLY = (-signal.SIGKILL, -signal.SIGTERM)


class _Gone(Exception):
    """The session is not there any more, or somebody else has what was this pilot's."""


class Pilot:
    """One pilot.

    Args:
        name: of the pilot.
        log: what this job prints.
    """

    def __init__(self, store: CrewStore, spec: Spec, name: str, log: Path) -> None:
        self._store, self._session, self._name, self._log = store, store.session, name, log
        self._pilots = spec.pilots
        self._worker = spec.pilots.resources
        devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
        asked = gpus(self._worker) * self._pilots.workers
        self._devices = devices[:asked] if len(devices) >= asked else [str(number) for number in range(asked)]
        memory = self._worker.memory_max_gb
        self._ledger = plan.Ledger(
            self._worker.cpus * self._pilots.workers,
            list(self._devices),
            None if memory is None else memory * self._pilots.workers,
        )
        self._kept = self._pilots.workers if self._worker.cores == 1 else 0  # MPI ranks are started for each task
        self._outcomes = Outcomes(self._session, without=f"{name}-w")
        self._own: set[TaskKey] = set()  # ended here
        self._hand = Hand()
        self._linked = Linked(self._session)
        self._staff = Staff(store, name)
        self._beat = Beat(runner.job_id(), socket.gethostname(), os.getpid(), time.time())
        self._losses = Losses(self._session, name, log, self._beat)
        self._uncertain: list[tuple[float, Hired, set[TaskKey], int]] = []
        self._shelf = Shelf(store)
        self._mean_s: float | None = None
        self._signals: set[int] = set()
        self._ending: plan.Ending | None = None
        self._winding_down = self._hungry = self._blocked = self._dismissed = False
        self._hire_at = 0.0
        self._began = now = time.monotonic()
        self._idle_since = self._look_at = self._tick_at = self._lookout_at = self._sync_at = self._beat_at = now

    def run(self) -> int:
        """Until there is nothing left to do. Returns the job's exit code."""
        wake = self._listen()
        try:
            self._store.join(self._name)
            import_all()
            self._store.beat(self._name, self._beat)
            self._beat_at = time.monotonic() + _BEAT_S
            self._staff_up()
            while True:
                self._feed()
                if (code := self._may_end()) is not None:
                    return code
                for handle, _ in self._staff.poll.poll(self._wait_s() * 1000):
                    if handle == wake:
                        os.read(wake, 4096)
                    elif (hired := self._staff.by_handle(handle)) is not None:
                        self._hear(hired)
                self._reap()
                if time.monotonic() >= self._tick_at:
                    self._tick()
                self._settle()
        except (_Gone, FileNotFoundError) as exc:
            runner._print(f"pilot {self._name} ends: {exc}")
            return 0
        finally:
            self._staff.kill()

    def _listen(self) -> int:
        """Let signals end a wait."""
        wake, end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.add(number)

        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, note)
        signal.set_wakeup_fd(end)
        self._staff.poll.register(wake, 1)  # POLLIN
        return wake

    def _wait_s(self) -> float:
        """Seconds until something is due that nobody tells."""
        now = time.monotonic()
        due = [self._tick_at, self._look_at if self._wants_more() else self._tick_at]
        if self._staff.dirty or not self._hand.empty:
            due.append(self._sync_at)
        if self._hand.waits or self._blocked:
            due.append(self._outcomes.due_at)
        if (linked_at := self._linked.due_at) is not None:
            due.append(linked_at)
        return max(0.0, min(due) - now)

    # ---- what runs ----

    def _staff_up(self) -> None:
        """As many kept workers as there are to be, and one more for each task whose place others have."""
        if time.monotonic() < self._hire_at:
            return
        there = {hired.number for hired in self._staff.hired.values() if hired.kept}
        resting = sum(hired.kept and hired.rests for hired in self._staff.hired.values())
        for number in range(self._kept + resting):
            if number not in there:
                self._staff.hire(self._worker, number, True, plan.share_of_gpus(self._devices, self._pilots, number))

    def _feed(self) -> None:
        """Give orders, and take tickets as long as somebody could do more; what was begun goes on first."""
        while self._staff.wake(self._ledger):
            while self._hand.ready and self._start(self._hand.ready[0]):
                self._hand.ready.popleft()
            if not (self._wants_more() and time.monotonic() >= self._look_at and self._take()):
                return

    def _wants_more(self) -> bool:
        if self._winding_down or self._hand.ready:
            return False
        return self._room() is not None if self._kept else self._ledger.has_room(self._worker)

    def _start(self, item: Item) -> bool:
        """Start a task, or have it started by a worker after what that has; False: not now."""
        now = time.monotonic()
        wanted = item.ticket.resources or self._worker
        if item.ticket.resources is None and self._kept:
            hired = self._room()
            if hired is None:
                return False
            if hired.grant is None:
                hired.grant = self._ledger.take(self._worker)
            hired.send(item, now)
            return True
        grant = self._ledger.take(wanted)
        if grant is None:
            return False
        number = self._pilots.workers + len(self._staff.hired)
        hired = self._staff.hire(wanted, number, False, grant.gpus if gpus(wanted) else None)
        hired.grant = grant
        limit_s = self._own_limit_s(wanted)
        if limit_s is not None:
            hired.limit_at = now + limit_s
        hired.send(item, now)
        hired.tell_end()
        return True

    def _room(self) -> Hired | None:
        """The kept worker that gets the next order, if one may."""
        now, most = time.monotonic(), plan.ahead(self._mean_s)
        best: Hired | None = None
        for hired in self._staff.hired.values():
            if not hired.kept or hired.rests or (best is not None and len(hired.sent) >= len(best.sent)):
                continue
            if not hired.sent:
                if self._ledger.has_room(self._worker):
                    best = hired
            elif len(hired.sent) < most and now - hired.since < _LONG_S:
                best = hired
        return best

    def _hear(self, hired: Hired) -> None:
        began, over = hired.since, 0
        said = list(hired.hear())
        if hired.silent:
            self._staff.overhear(hired)
        for item, mark in said:
            if mark == WAKE:
                hired.wakes = True
                continue
            if mark == OVERTAKE:
                hired.overtake()
                continue
            if mark == REST:
                self._make_room(hired)
                continue
            over += 1
            if mark == LINKED:
                self._linked.add(item.key)
                self._let_go(item)
            elif mark == AGAIN:
                self._try_again(item, None)
            else:
                self._ended(item)
            if mark == FAILED:
                message = "its outcome could not be written to the store; is the disk full, or a quota reached?"
                self._losses.lose(item.key, self._losses.described("store", message))
        if over:
            each = (time.monotonic() - began) / over
            self._mean_s = each if self._mean_s is None else 0.7 * self._mean_s + 0.3 * each
        if not hired.sent and hired.kept:
            self._free(hired)

    def _make_room(self, hired: Hired) -> None:
        """A task waits for its children: they are in tickets that come before all that was not started."""
        hired.rest()
        self._free(hired)
        if hired.kept:
            self._hand.put_back(hired.take_back())
        if len(self._hand):
            self._give(None)
        self._look_at = time.monotonic()
        if not self._winding_down:
            self._staff_up()

    def _free(self, hired: Hired) -> None:
        if hired.grant is not None:
            self._ledger.give(hired.grant)
            hired.grant = None

    def _ended(self, item: Item) -> None:
        self._own.add(item.key)
        self._hand.over(item)
        self._beat = replace(self._beat, ended=self._beat.ended + 1)
        self._idle_since = time.monotonic()

    def _let_go(self, item: Item) -> None:
        """A task is over here, and has not ended."""
        self._hand.let_go(item)
        self._beat = replace(self._beat, ended=self._beat.ended + 1)
        self._idle_since = time.monotonic()

    def _die(self, item: Item, loss: Loss) -> None:
        """An attempt has ended without an outcome: another follows, or the task is lost."""
        try:
            if self._try_again(item, loss):
                return
        except OSError as exc:
            runner._print(f"task {item.key} is not tried again, as the store cannot be written: {exc}")
        self._losses.lose(item.key, told(self._session, item.key, loss))
        self._ended(item)

    def _try_again(self, item: Item, loss: Loss | None) -> bool:
        """Have another attempt made of a task, by whatever pilot has room for it; False: none is left.

        Args:
            loss: why this one has ended; None: the store says it already.
        """
        ticket = following(self._store, self._pilots, item.piece, item.ticket, loss)
        if ticket is None:
            return False
        self._store.add([ticket], 0)
        self._look_at = time.monotonic()
        self._let_go(item)
        return True

    def _is_over(self, key: TaskKey) -> bool:
        return key in self._own or self._outcomes.ended(key)

    # ---- workers that have ended ----

    def _reap(self) -> None:
        if signal.SIGCHLD not in self._signals:
            return
        self._signals.discard(signal.SIGCHLD)
        for hired, code in self._staff.reap():
            if hired is None:
                continue
            self._hear(hired)
            if hired.sent or code:
                self._mourn(hired, code)
            self._free(hired)
            self._staff.dismiss(hired, clean=code == 0)
        if not self._is_ended and not self._winding_down:
            self._staff_up()

    def _mourn(self, hired: Hired, code: int) -> None:
        """A worker has died: what it had started is lost, the rest is for another."""
        unread = hired.take_back()
        started, ended = hired.begun()
        for key in ended:
            self._ended(hired.sent.pop(key))
        untouched = [hired.sent[key] for key in hired.sent if key not in started]
        self._hand.put_back([*untouched, *unread])
        if not started:
            self._hire_at = time.monotonic() + _BACK_OFF_S  # it dies by itself: not again and again at full speed
        self._uncertain.append((time.monotonic() + _UNCERTAIN_S * (code in _DEADLY), hired, started, code))

    def _judge(self) -> None:
        """Say why a worker has died, once it is clear that the job goes on."""
        now = time.monotonic()
        for verdict in [verdict for verdict in self._uncertain if verdict[0] <= now]:
            self._uncertain.remove(verdict)
            _, hired, started, code = verdict
            for key in started:
                item = hired.sent.pop(key)
                if self._is_over(key):
                    self._ended(item)
                elif is_linked(self._session, key):  # it had said so to all but this pilot
                    self._linked.add(key)
                    self._let_go(item)
                else:
                    self._die(item, self._losses.why(hired, code))

    # ---- tickets ----

    def _take(self) -> bool:
        """Take one ticket; False: there is none for this pilot now."""
        now = time.monotonic()
        self._blocked = False
        for name, ticket in self._shelf.tickets():
            if self._suits(ticket) and self._store.take(self._name, name):
                self._hand.add(name, ticket, self._is_over, lambda key: self._outcomes.has(key, "link"))
                self._set_hunger(False)
                self._idle_since = now
                return True
        idle = now - self._idle_since
        self._look_at = now + min(max(_LEAST_S, idle * _LATE), _TICK_S)
        if self._hand.empty:
            self._set_hunger(True)
        return False

    def _suits(self, ticket: Ticket) -> bool:
        if any(not self._is_over(key) for key in ticket.outside):
            self._blocked = True
            return False
        wanted = ticket.resources
        limit_s = self._own_limit_s(wanted)
        now = time.monotonic()
        if self._ending is not None and (now > self._ending.takes_until or not self._ending.allows(now, limit_s)):
            return False
        return wanted is None or self._ledger.has_room(wanted) or not any(h.sent for h in self._staff.hired.values())

    def _own_limit_s(self, wanted: Resources | None) -> float | None:
        """How long a task may take; None: it says no more than that it runs in a pilot."""
        if wanted is None or wanted.run_time_max_s == self._worker.run_time_max_s:
            return None
        return wanted.run_time_max_s

    def _set_hunger(self, hungry: bool) -> None:
        if hungry != self._hungry:
            self._hungry = hungry
            self._store.hunger(self._name, hungry)

    def _settle(self) -> None:
        """Put what was written onto the disk, and let go of tickets of which nothing is left."""
        now = time.monotonic()
        self._judge()
        try:
            self._losses.write()
        except FileNotFoundError as exc:
            raise _Gone("its session is gone") from exc
        idle = not any(hired.sent for hired in self._staff.hired.values())
        if self._staff.dirty and (idle or now >= self._sync_at):
            try:
                self._staff.sync()
            except OSError as exc:
                runner._print(f"cannot write to the store: {exc}")
            self._sync_at = time.monotonic() + _SYNC_S
        if not self._staff.dirty or now < self._sync_at:
            self._finish_tickets()
        if (self._hand.waits or self._blocked) and now >= self._outcomes.due_at:
            self._look()
        if (linked_at := self._linked.due_at) is not None and now >= linked_at:
            self._linked.settle()

    def _finish_tickets(self) -> None:
        names = self._hand.finished() if not self._losses.waiting else []
        if names and self._staff.dirty:
            self._staff.sync()
        for name in names:
            self._store.finish(self._name, name)

    def _give(self, count: int | None) -> None:
        """Let others have tasks that were not started; None: all."""
        self._staff.sync()
        for name, left, given in self._hand.give(count):
            cuts = plan.parts(len(given.pieces), 1 if count is None else max(1, len(self._store.hungry())))
            self._store.give_back(
                self._name, name, left, [replace(given, pieces=given.pieces[start:end]) for start, end in cuts]
            )

    # ---- now and then ----

    def _tick(self) -> None:
        now = time.monotonic()
        self._tick_at = now + _TICK_S
        if self._name not in self._store.members():
            raise _Gone("somebody else has taken over its tickets")
        self._look()
        self._hand.drop(self._is_over)
        self._end_cancelled(now)
        if not self._is_ended:
            self._staff_up()
        self._share(now)
        if now >= self._beat_at:
            self._beat_at = now + _BEAT_S
            self._store.beat(self._name, self._beat)
        if not self._winding_down and self._store.dismissed(self._name):
            self._dismissed = True
            self._wind_down()
        if now >= self._lookout_at + _LOOKOUT_S:
            self._lookout_at = now
            aside.look_out(self._store, self._name)
        self._mind_the_time()

    def _look(self) -> None:
        """See what others have ended."""
        for name in self._outcomes.look():
            stem, _, suffix = name.rpartition(".")
            if suffix == "link":
                self._linked.add(TaskKey(stem))
            if suffix in ("h5", "lost"):
                self._hand.input_ended(TaskKey(stem))
                self._look_at = min(self._look_at, time.monotonic()) if self._blocked else self._look_at

    def _end_cancelled(self, now: float) -> None:
        """End the workers of tasks that somebody has declared lost, or that have had their time."""
        for hired in self._staff.hired.values():
            doomed = [key for key in hired.sent if self._outcomes.ended(key)]
            if doomed:
                self._hand.put_back(hired.take_back())
                self._hand.drop(self._is_over)
            late = hired.limit_at is not None and now >= hired.limit_at
            if late or any(key in hired.sent for key in doomed):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(hired.pid, signal.SIGKILL)

    def _share(self, now: float) -> None:
        """See that nothing waits here that could run elsewhere."""
        for hired in self._staff.hired.values():
            if hired.kept and len(hired.sent) > 1 and now - hired.since > _LONG_S:
                self._hand.put_back(hired.take_back())
        if self._hand.ready and not self._shelf.has_any(self._is_over):
            hungry, busy_s = len(self._store.hungry()), self._staff.busy_s(now)
            if not hungry and busy_s > plan.STUCK_S:
                hungry = max(0, self._pilots.count - len(self._store.members()))
            count = plan.share(len(self._hand.ready), hungry, self._mean_s, self._pilots.workers, busy_s)
            if count:
                self._give(count)

    def _mind_the_time(self) -> None:
        if self._ending is None:
            left_s = aside.left_s(self._worker.run_time_max_s, time.monotonic() - self._began)
            self._ending = plan.ending(self._began, time.monotonic() + left_s)
        left_s = self._ending.left_s(time.monotonic(), self._mean_s)
        if (left_s <= 0 or signal.SIGUSR1 in self._signals) and not self._winding_down:
            self._wind_down()
        elif left_s > 0:
            self._tick_at = min(self._tick_at, time.monotonic() + left_s)
        if self._winding_down:
            self._succeed()  # what still runs may have submitted more

    def _wind_down(self) -> None:
        """Time is nearly up, or it is one too many: what is not started is for others, what is saves its state."""
        self._winding_down = True
        for hired in self._staff.hired.values():
            if hired.kept:
                self._hand.put_back(hired.take_back())
        self._give(None)
        self._staff.signal(signal.SIGUSR1)
        self._succeed()

    def _succeed(self) -> None:
        """Have another pilot take this one's place, if there is anything left for it to do."""
        if self._dismissed or self._beat.successor or not self._store.tickets():
            return
        self._beat = replace(self._beat, successor=aside.submit_successor(self._store))
        self._store.beat(self._name, self._beat)

    def _may_end(self) -> int | None:
        """The exit code, if it is time to end."""
        if self._is_ended:
            self._terminate()
            return 128 + signal.SIGTERM
        if any(hired.sent for hired in self._staff.hired.values()) or self._uncertain or self._losses.waiting:
            return None
        idle_s = time.monotonic() - self._idle_since
        left = "stopped" if self._store_stopped(idle_s) else ""
        if self._winding_down:
            left = "dismissed" if self._dismissed else "walltime"
        if not left and self._hand.empty and idle_s >= self._pilots.idle_time_s:
            left = "idle"
        return self._depart(left) if left else None

    @property
    def _timed_out(self) -> bool:
        """Flux says that the time is up."""
        return signal.SIGALRM in self._signals

    @property
    def _is_ended(self) -> bool:
        """The scheduler ends the job."""
        return self._timed_out or signal.SIGTERM in self._signals

    def _store_stopped(self, idle_s: float) -> bool:
        return idle_s > _LEAST_S and self._hand.empty and self._store.stopped()

    def _depart(self, left: str) -> int | None:
        """Say so, and look once more: whoever has put a ticket there before reads it afterwards."""
        self._staff.sync()
        self._finish_tickets()
        self._store.beat(self._name, replace(self._beat, left=left))
        if left == "idle" and self._take():
            self._store.beat(self._name, self._beat)
            return None
        aside.wait_for_children()
        self._store.leave(self._name)
        return 0

    def _terminate(self) -> None:
        """The job is being ended: what was not started is for others, what may be tried again saves its state."""
        near = self._timed_out or (self._ending is not None and time.monotonic() >= self._ending.takes_until)
        self._winding_down = True
        for hired in self._staff.hired.values():
            self._hand.put_back(hired.take_back())
        with contextlib.suppress(OSError):
            self._give(None)
            self._finish_tickets()
            self._save_states()
            self._finish_tickets()
            if near:
                self._succeed()
        self._staff.kill()
        aside.wait_for_children()

    def _save_states(self) -> None:
        """Give tasks that may be tried again the time to save their states; what the scheduler says in the log that it
        has ended is for another pilot, which nobody else may be there to see to."""
        busy = [hired for hired in self._staff.hired.values() if hired.sent and hired.resources.retry is not None]
        if not busy:
            return
        for hired in busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hired.pid, signal.SIGTERM)
        deadline = time.monotonic() + (attempts.FLUX_LAST_S if self._timed_out else attempts.LAST_S)
        while time.monotonic() < deadline and any(hired.sent for hired in busy):
            self._staff.poll.poll(200)
            for hired in busy:
                self._hear(hired)
            ended = [hired for hired, _ in self._staff.reap() if hired is not None]
            busy = [hired for hired in busy if hired not in ended or not self._end_attempts(hired)]
        self._staff.kill()
        for hired in busy:
            self._end_attempts(hired)

    def _end_attempts(self, hired: Hired) -> bool:
        """Say how the tasks of a worker have ended with the job, if that is clear. Returns True."""
        timed_out, log = self._timed_out, self._log
        loss = attempts.time_is_up(log) if timed_out else attempts.ended_by_scheduler(log, self._worker)
        for key in hired.begun()[0] if loss is not None else ():
            assert loss is not None
            self._die(hired.sent.pop(key), loss)
        hired.sent.clear()
        return True
