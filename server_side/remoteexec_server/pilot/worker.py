"""A worker of a pilot: runs tasks one after the other; forked by the pilot.

    pilot ─ orders (pipe) ─▶ worker ─ started, outcome ─▶ outcomes/<writer>.log
          ◀─ keys of tasks, with what there is to say of each (pipe) ─┘
          ─ go (pipe) ─▶ a task that waited for its children may go on

An order is a record of fixed length, so that the pilot can take back what the worker has not read, from the same pipe.
The pilot also sees to it that the log gets onto the disk: this process may be in the user's function for long.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import socket
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from .. import checkpoint, retrying, runner, running
from ..parent import end_with
from ..store import links
from ..store.crew import CrewStore
from ..store.outcomes import Outcomes
from ..store.segments import Kind, LogWriter
from ..store.session import Claim, Job, JobTask, Session
from ..wire import messages, payload
from ..wire.messages import BurstId, Loss, TaskKey
from ..wire.resources import Resources
from ..worker import Function, initialised, take_number

if TYPE_CHECKING:
    from ..store.hdf5 import Bundle, Outcome

ORDER = 512
"""Bytes: what one `write` puts into a pipe, and one `read` takes out, whole."""
_BUNDLES = 4
"""Bundles kept open, with their functions."""
_STORE_S = 60.0
"""How long a result waits for a full disk to be free."""
_INPUT_S = 90.0
"""How long an input that has ended may be hidden by NFS."""
DONE, FAILED, LINKED, AGAIN = b"", b"!", b">", b"~"
"""Before the key of a task that is over here: its outcome is written; it could not be; it is that of another task;
another attempt follows. Not what task keys begin with, as little as `growth.REST` and `growth.WAKE`."""


@dataclass(frozen=True)
class Order:
    """One task to be run."""

    burst: BurstId
    position: int
    key: TaskKey

    def packed(self) -> bytes:
        """As it stands in the pipe."""
        return json.dumps([self.burst, self.position, self.key]).encode().ljust(ORDER)


END = b"null".ljust(ORDER)
"""The order to end."""


def unpacked(record: bytes) -> Order | None:
    """What `packed` made; None: `END`."""
    plain = json.loads(record)
    return None if plain is None else Order(BurstId(plain[0]), int(plain[1]), TaskKey(plain[2]))


@dataclass(frozen=True)
class Pipes:
    """A worker's ends of what it talks to its pilot through.

    Attributes:
        orders: read end, not blocking.
        done: write end.
        go: read end.
    """

    orders: int
    done: int
    go: int


class PilotWorker:
    """State of one worker process.

    Args:
        crew: whose tasks it runs.
        name: of the pilot.
        log: of its own.
        pipes: the ends that are the worker's.
        resources: of all tasks it runs.
        number: which worker of its pilot it is.
    """

    def __init__(
        self, crew: CrewStore, name: str, log: LogWriter, pipes: Pipes, resources: Resources, number: int
    ) -> None:
        self._session, self._crew, self._name, self._log = crew.session, crew, name, log
        self._orders, self._done, self._go = pipes.orders, pipes.done, pipes.go
        self._resources, self._number = resources, number
        self._key = self._session.key
        self._calls = _Calls(self._session, self._key)
        self._inputs = _Inputs(self._session, self._key)
        self._broken: Outcome | None = None  # what setting up raised: every task's outcome
        self._pid = os.getpid()
        self._poll = select.poll()
        self._poll.register(self._orders, select.POLLIN)

    def serve(self) -> None:
        """Run tasks until told to end."""
        self._set_up()
        while (order := self._next()) is not None:
            try:
                mark = self._run(order)
            except OSError as exc:
                _print(f"task {order.key}: cannot write to the store: {exc}")
                mark = FAILED
            running.task = None
            self._say(order.key, mark)

    def _say(self, key: TaskKey, mark: bytes) -> None:
        os.write(self._done, mark + key.encode() + b"\n")

    def _next(self) -> Order | None:
        while True:
            try:
                record = os.read(self._orders, ORDER)
            except BlockingIOError:
                self._poll.poll()
                continue
            return unpacked(record) if record else None

    def _set_up(self) -> None:
        take_number(self._number)
        try:
            runner._prepare(Job("", BurstId(""), (), self._resources))
            init = self._crew.init()
            if init:
                self._calls.defaults = initialised(payload.loads(init), self._number)
        except BaseException as exc:  # the process edge: told to every task
            self._broken = runner._failed(exc, "raised")

    def _run(self, order: Order) -> bytes:
        """Run a task; returns what is to be said of it."""
        started, key = time.time(), order.key
        claim = Claim(runner.job_id(), socket.gethostname(), self._pid, started)
        self._append(Kind.STARTED, key, messages.to_json(claim).encode())
        if self._resources.cores > 1:
            self._run_on_ranks(order, claim)
            return DONE
        attempt = self._begin(order)
        becomes = None
        try:
            outcome = self._broken or runner.computed(lambda: self._load(order), self._resources.error_log_file)
        except runner.InputLostError as lost:
            loss = Loss("upstream", str(lost), job=runner.job_id(), upstream=lost.key)
            self._append(Kind.LOST, key, messages.to_json(loss).encode())
            return DONE
        except runner.BecomesError as exc:
            becomes = exc.key
        if os.getpid() != self._pid:
            os._exit(0)  # the user's function has forked, and this is its child
        if running.task is not None and running.task.growth is not None:
            running.task.growth.finish()  # first: who hears of the outcome may discard what is not in the store
        _flush()
        if becomes is not None:
            links.publish_link(self._session, key, becomes)
            return LINKED
        if self._is_tried_again(key, outcome, attempt):
            return AGAIN
        from ..store import hdf5

        facts = {**outcome.facts, **runner.facts(started), "attempts": attempt}
        self._append(Kind.OUTCOME, key, hdf5.write_outcome(key, replace(outcome, facts=facts), self._key))
        if self._resources.retry is not None:
            checkpoint.forget(self._session, key)
        return DONE

    def _begin(self, order: Order) -> int:
        """Let the task submit others, and find its state where there may be one. Returns the attempt's number."""
        from .growth import grown_by

        tasks = (JobTask(order.position, order.key),)
        job = Job(self._name, order.burst, tasks, self._resources)
        grow = grown_by(self._crew, self._say, self._go)
        running.task = running.Running(self._session, job, os.environ, self._pid, grow=grow)
        if self._resources.retry is None:
            return 1
        attempt = 1 + len(self._session.deaths(order.key))
        checkpoint.begin(self._session, order.key, attempt)
        return attempt

    def _is_tried_again(self, key: TaskKey, outcome: Outcome, attempt: int) -> bool:
        """Whether another attempt follows because the function raised; then this one's end was told."""
        raised = runner.raised(outcome)
        if raised is None or retrying.next_attempt(self._resources, raised, attempt) is None:
            return False
        self._session.publish_death(key, attempt, raised)
        return True

    def _load(self, order: Order) -> tuple[Callable[..., Any], Any, Any]:
        function, (args, kwargs) = self._calls.load(order, self._inputs)
        return function.call, args, function.filled(args, kwargs)

    def _run_on_ranks(self, order: Order, claim: Claim) -> None:
        """Start MPI ranks beside this process; they publish the outcome as a file."""
        from .. import job_ranks

        spec = self._crew.spec()
        name = f"{self._name}-m{secrets.token_hex(4)}"
        tasks = (JobTask(order.position, order.key),)
        scheduler, grace_s = (spec.scheduler, spec.grace_s) if spec is not None else ("", _INPUT_S)
        job = Job(name, order.burst, tasks, self._resources, scheduler=scheduler, grace_s=grace_s)
        directory = self._session.add_job(job)
        try:
            if self._session.claim(order.key, claim):
                job_ranks.run(self._session, job, job.tasks[0])
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _append(self, kind: Kind, key: TaskKey, body: bytes) -> None:
        """Write to the log; a disk that is full may be free again soon."""
        deadline = time.monotonic() + _STORE_S
        while True:
            try:
                self._log.append(kind, key, body)
                return
            except OSError as exc:
                if time.monotonic() > deadline:
                    raise
                _print(f"task {key}: cannot write to the store: {exc}; trying again")
                time.sleep(2.0)


class _Calls:
    """Calls of bundles, each bundle read and checked once, each function loaded once.

    Attributes:
        defaults: what `init_function` returned.
    """

    def __init__(self, session: Session, key: bytes) -> None:
        self._session, self._key = session, key
        self._open: OrderedDict[BurstId, tuple[Bundle, dict[int, Function]]] = OrderedDict()
        self.defaults: Mapping[str, Any] = {}

    def load(self, order: Order, inputs: _Inputs) -> tuple[Function, Any]:
        """Function and arguments of a task."""
        from ..store import hdf5

        if order.burst not in self._open:
            data = self._session.bundle(order.burst).read_bytes()
            self._open[order.burst] = hdf5.Bundle(data, order.burst, self._key), {}
            if len(self._open) > _BUNDLES:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(order.burst)
        return self._load(*self._open[order.burst], order.position, inputs)

    def _load(
        self, bundle: Bundle, functions: dict[int, Function], position: int, inputs: _Inputs
    ) -> tuple[Function, Any]:
        number, arguments = bundle.call(position)
        if number not in functions:
            pickled = bundle.function(number)
            functions[number] = Function(payload.loads(pickled.data, pickled.buffers), self.defaults)
        return functions[number], payload.loads(arguments.data, arguments.buffers, inputs)


class _Inputs:
    """The results of other tasks, which have ended; each is loaded anew, as its taker may change it."""

    def __init__(self, session: Session, key: bytes) -> None:
        self._outcomes, self._key = Outcomes(session), key

    def __call__(self, key: TaskKey) -> Any:
        from ..store import hdf5

        deadline = time.monotonic() + _INPUT_S
        while not self._outcomes.ended(key):
            self._outcomes.look()
            if not self._outcomes.ended(key):
                if time.monotonic() > deadline:
                    raise runner.InputLostError(key)
                time.sleep(0.1)  # NFS: the pilot has seen it, this process does not yet
        if not self._outcomes.has(key, "h5"):
            raise runner.InputLostError(key)
        outcome = hdf5.read_outcome(self._outcomes.outcome(key), key, self._key)
        if not outcome.ok or outcome.value is None:
            raise runner.InputLostError(key)
        return payload.loads(outcome.value.data, outcome.value.buffers)


def run(parent: int, worker: PilotWorker) -> NoReturn:
    """What the forked process does: never returns."""
    code = 1
    try:
        end_with(parent)
        worker.serve()
        code = 0
    except BaseException:  # the process edge
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        runner.end_process(code)


def _print(text: str) -> None:
    with contextlib.suppress(Exception):
        print(f"remoteexec: {text}", file=sys.stderr)


def _flush() -> None:
    """What was printed may be the last that is heard of this process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed or replaced by the user's function
            stream.flush()
