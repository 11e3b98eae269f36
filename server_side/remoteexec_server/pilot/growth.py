"""Calls that a task of a pilot submits: they go into tickets, for this pilot as for all others of its client.

    task ─ submit ─▶ StoreGrowth ─▶ burst, tickets in the store, before those that nobody waits for
    task ─ result() ─ REST ─▶ pilot: its place is free; another worker takes tickets meanwhile
                    ─ WAKE ─▶ pilot ─ go ─▶ it goes on, as soon as there is a place again
                    ─ OVERTAKE ─▶ pilot ─ go ─▶ its time to wait is over: it goes on without a place
    futures ◀─ a thread that looks at outcomes

The bursts are those of the pilots' client, so that whoever keeps its pilots, now or later, sees to these, too. Nothing
but the store is needed: a graph grows with nobody logged in.
"""

from __future__ import annotations

import math
import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import running
from ..growing_store import StoreGrowth
from ..store import links
from ..store.crew import CrewStore
from ..store.outcomes import Outcomes
from ..store.session import StoreError
from ..store.tickets import cut
from ..wire import asked
from ..wire.messages import Loss, Submit, TaskKey
from ..wire.pilots import Pilots, check_fits
from ..wire.resources import Resources

__all__ = ["OVERTAKE", "REST", "WAKE", "PilotGrowth"]

REST, WAKE, OVERTAKE = b"-", b"+", b"^"
"""Before the key of a task that waits for its children, that would go on, and that will not wait for a place."""
_LATEST_MS = 1 << 41
"""Beyond all times in milliseconds until 2039: the later a task submits, the sooner it is its children's turn. So what
is begun ends before more is begun, and as few tasks as can be wait for their children at one time."""
_FLUSH_S = 60.0
_LONGEST_S = 1e6
"""What is longer is no limit: `poll` takes 24 days at most."""


class PilotGrowth(StoreGrowth):
    """What a task of a pilot has submitted.

    Args:
        crew: whose pilot it is.
        pilots: what they are like.
        say: tells the pilot something about the task.
        go: end of a pipe from which a byte can be read when the task may go on.
    """

    def __init__(self, crew: CrewStore, pilots: Pilots, say: Callable[[bytes], None], go: int) -> None:
        super().__init__(crew.session, f"{crew.client}-{secrets.token_hex(4)}")
        self._crew, self._pilots, self._say, self._go = crew, pilots, say, go
        self._resters = 0
        self._rests = threading.Lock()  # guards their number, and is held until they may go on
        self._closing = False
        self._news = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="remoteexec-news", daemon=True)
        self._sender.start()
        self._watcher.start()

    @contextmanager
    def resting(self, done: Callable[[], bool], timeout: float | None = None) -> Iterator[None]:
        """See growing.Growth.resting."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        with self._rests:
            self._resters += 1
            if self._resters == 1:
                self._flush(_FLUSH_S)  # first: who takes its place is to find the children
                self._say(REST)
        try:
            yield
        finally:
            with self._rests:
                self._resters -= 1
                if not self._resters:
                    self._wake(until - time.monotonic() if done() else 0.0)

    def _wake(self, patience_s: float) -> None:
        """Wait for a place, but no longer than this; the pilot answers once, whatever it is asked meanwhile."""
        self._say(WAKE)
        poll = select.poll()
        poll.register(self._go, select.POLLIN)
        if not poll.poll(None if patience_s > _LONGEST_S else max(0.0, patience_s) * 1000):
            self._say(OVERTAKE)
        os.read(self._go, 1)

    def finish(self) -> None:
        """See StoreGrowth."""
        self._send_rest(_FLUSH_S)
        self._closing = True
        self._news.set()
        self._watcher.join()

    def _read_resources(self, resources: Mapping[str, Any] | None) -> Resources:
        wanted = asked.read_resources(resources, self._pilots.resources)
        check_fits(wanted, self._pilots)
        return wanted

    def _is_heard(self) -> bool:
        return self._watcher.is_alive()

    # ---- the sender thread ----

    def _send(self, submit: Submit, data: bytes) -> None:
        with self._lock:
            open_ = set(self._open)
        workers = self._pilots.count * self._pilots.workers
        tickets = cut(submit, open_.__contains__, workers, self._pilots.resources)
        try:
            self._session.add_burst(submit, data)
            self._crew.add(tickets, max(0, _LATEST_MS - time.time_ns() // 1_000_000))
        except OSError as exc:
            self._fail([entry.key for entry in submit.tasks], f"the store cannot be written: {exc}")
        self._news.set()

    def _cancel(self, key: TaskKey) -> None:
        self._session.publish_loss(key, Loss("cancelled", "cancelled by the task that has submitted it"))

    def _close(self) -> None:
        """What is in the store needs no further word."""

    # ---- the watching thread ----

    def _watch(self) -> None:
        outcomes = Outcomes(self._session)
        while not self._closing:
            with self._lock:
                waiting = list(self._open)
            pause_s = max(0.0, outcomes.due_at - time.monotonic()) if waiting else None
            if self._news.wait(pause_s):
                self._news.clear()
                outcomes.hurry()
                continue
            try:
                outcomes.look()
                for key in waiting:
                    self._look_for(key, outcomes)
            except (OSError, ValueError, StoreError):
                time.sleep(1.0)  # the store may be there again soon

    def _look_for(self, key: TaskKey, outcomes: Outcomes) -> None:
        end = links.followed(self._session, key, outcomes)
        if outcomes.has(end, "h5"):
            self._complete(key, outcomes.outcome(end), end)
        elif outcomes.has(end, "lost"):
            self._lose(key, outcomes.loss(end))


def grown_by(
    crew: CrewStore, say: Callable[[TaskKey, bytes], None], go: int
) -> Callable[[running.Running], StoreGrowth]:
    """How tasks of a worker get what they can submit by; see `PilotGrowth`."""

    def grow(task: running.Running) -> StoreGrowth:
        spec = crew.spec()
        if spec is None:
            raise RuntimeError("current_executor(): the session of this task is gone")
        key = task.job.tasks[0].key
        return PilotGrowth(crew, spec.pilots, lambda mark: say(key, mark), go)

    return grow
