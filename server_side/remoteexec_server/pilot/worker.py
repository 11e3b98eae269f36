"""A worker of a pilot: runs tasks one after the other; forked by the pilot.

    pilot ─ orders (pipe) ─▶ worker ─ started, outcome ─▶ outcomes/<writer>.log
          ◀─ keys of tasks that are done (pipe) ─┘

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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from .. import runner
from ..store.crew import CrewStore
from ..store.outcomes import Outcomes
from ..store.segments import Kind, LogWriter
from ..store.session import Claim, Job, JobTask, Session
from ..wire import messages, payload
from ..wire.header import HeaderError
from ..wire.messages import BurstId, Loss, TaskKey
from ..wire.resources import Resources
from ..worker import Function, take_number

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
FAILED = b"!"
"""Before the key of a task whose outcome could not be written."""


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


class PilotWorker:
    """State of one worker process.

    Args:
        crew: whose tasks it runs.
        name: of the pilot.
        log: of its own.
        orders: read end, not blocking.
        done: write end.
        resources: of all tasks it runs.
        number: which worker of its pilot it is.
    """

    def __init__(
        self, crew: CrewStore, name: str, log: LogWriter, orders: int, done: int, resources: Resources, number: int
    ) -> None:
        self._session, self._crew, self._name, self._log = crew.session, crew, name, log
        self._orders, self._done = orders, done
        self._resources, self._number = resources, number
        self._key = self._session.key
        self._calls = _Calls(self._session, self._key)
        self._inputs = _Inputs(self._session, self._key)
        self._broken: Outcome | None = None  # what setting up raised: every task's outcome
        self._pid = os.getpid()
        self._poll = select.poll()
        self._poll.register(orders, select.POLLIN)

    def serve(self) -> None:
        """Run tasks until told to end."""
        self._set_up()
        while (order := self._next()) is not None:
            try:
                self._run(order)
                said = order.key.encode()
            except OSError as exc:
                _print(f"task {order.key}: cannot write to the store: {exc}")
                said = FAILED + order.key.encode()
            os.write(self._done, said + b"\n")

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
                self._calls.defaults = dict(payload.loads(init)() or {})
        except BaseException as exc:  # the process edge: told to every task
            self._broken = runner._failed(exc, "raised")

    def _run(self, order: Order) -> None:
        started = time.time()
        claim = Claim(runner.job_id(), socket.gethostname(), self._pid, started)
        self._append(Kind.STARTED, order.key, messages.to_json(claim).encode())
        if self._resources.cores > 1:
            self._run_on_ranks(order, claim)
            return
        try:
            outcome = self._broken or self._compute(order)
        except runner.InputLostError as lost:
            loss = Loss("upstream", str(lost), job=runner.job_id(), upstream=lost.key)
            self._append(Kind.LOST, order.key, messages.to_json(loss).encode())
            return
        if os.getpid() != self._pid:
            os._exit(0)  # the user's function has forked, and this is its child
        from ..store import hdf5

        outcome = hdf5.Outcome(outcome.ok, outcome.value, {**outcome.facts, **runner.facts(started)})
        self._append(Kind.OUTCOME, order.key, hdf5.write_outcome(order.key, outcome, self._key))
        _flush()

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

    def _compute(self, order: Order) -> Outcome:
        """Load the call, call it, and say how that went."""
        from ..store import hdf5

        try:
            function, (args, kwargs) = self._calls.load(order, self._inputs)
            kwargs = function.filled(args, kwargs)
        except runner.InputLostError:
            raise
        except HeaderError as exc:
            return runner._failed(exc, "refused")
        except payload.SelectionError as exc:
            return runner._failed(exc.__cause__ or exc, "raised")
        except BaseException as exc:  # whatever the user's objects raise while they are loaded
            return runner._failed(exc, "call_not_loadable")
        try:
            result = function.call(*args, **kwargs)
        except runner.InputLostError:
            raise
        except BaseException as exc:  # SystemExit and KeyboardInterrupt are the user's, too
            from .. import failure

            failure.log(self._resources.error_log_file, function.call, args, kwargs, exc)
            return runner._failed(exc, "raised")
        try:
            return hdf5.Outcome(True, payload.dumps(result), {})
        except BaseException as exc:
            return runner._failed(exc, "result_not_picklable", f"{type(result).__module__}.{type(result).__qualname__}")

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
        runner.end_with(parent)
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
