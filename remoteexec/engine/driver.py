"""The one thread of an executor that acts: it gathers bursts, talks to the service, and completes futures.

    submit (any thread) ─ pickled call ─┐                              ┌─▶ bundles, requests ─▶ ServiceClient
    Future.cancel (any thread) ─────────┼─▶ inbox ─▶ driver thread ────┤
    ServiceClient's thread ─ events ────┘      tracker decides         └─▶ futures: running, result, exception

The tracker and all that is said to be so belong to the driver thread alone. `_lock` makes "is it closed? then count
and put" one step; `_progress` guards the counts that others wait for. Futures are completed with no lock held.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from remoteexec_server.wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Close,
    Closed,
    Entry,
    Known,
    Leave,
    Left,
    Lost,
    OutcomeReady,
    Problem,
    Refused,
    Rejected,
    Resize,
    Script,
    Started,
    Submit,
    TaskKey,
    Tell,
    Watch,
)
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.wire.resources import Resources

from .. import errors
from ..futures import JobFuture, Ran, TaskFuture, function_name
from . import outcomes
from .calls import Call, ForeignFailed, Pickler, bundle
from .client import Failed, Heard, ServiceClient, refusal
from .inbox import Adopt, Ask, Flush, ForeignDone, New, Stop
from .scripts import Scripts
from .tracker import (
    Action,
    Added,
    Adopted,
    CancelAsked,
    Due,
    Ended,
    Fail,
    FailLike,
    InputFailed,
    InputReady,
    Linked,
    Release,
    Send,
    SendCancel,
    SendWatch,
    ShowRunning,
    Tracker,
    TrackerEvent,
    Unlinked,
)

R = TypeVar("R")
log = logging.getLogger("remoteexec")


Seen = Callable[[TaskFuture[Any], Call], None]


@dataclass(frozen=True)
class _Patience:
    """How long a burst is gathered; picked, not measured.

    Attributes:
        idle_s: it is sent when nothing came for so long ...
        most_s: ... or this long after its first task.
    """

    idle_s: float
    most_s: float


_SUBMITS = _Patience(0.005, 0.1)
_STATEMENT = _Patience(0.1, 5.0)
"""While a `map` runs, which is to be one burst; but what it iterates over may wait for a result."""
_LOOK_S = 30.0
"""How long `futures` waits for results that were there before; picked, not measured."""
_GOODBYE_S = 10.0
"""How long the service may take to remove its files."""
_MOST_NAMES = 5
"""Functions that are named where calls are lost."""
_SAY_S = 30.0
"""How often somebody who waits at shutdown is told what for, while the service cannot be reached."""


@dataclass
class _Task:
    """A task that has not ended.

    Attributes:
        call: its bytes, until a burst has them.
        inputs: futures of this executor among its arguments.
    """

    future: JobFuture[Any]
    call: Call | None
    inputs: Mapping[TaskKey, TaskFuture[Any]]


class Driver:
    """Everything between `submit` and the future. One per executor.

    Args:
        client: the service, not yet opened.
        name: unique; begins the keys of tasks and the ids of bursts.
        keep: the session has a name, and its files stay.
    """

    def __init__(self, client: ServiceClient, name: str, keep: bool = False) -> None:
        self._client, self._name = client, name
        self._session_key = b""  # the service says it
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pickler = Pickler(self)
        self._scripts = Scripts()
        self._lock = threading.RLock()  # the garbage collector may come to `stop` an executor while it is held
        self._closing: str | None = None
        self._gives_up = False  # nothing is to run on
        self._submitted = self._numbered = self._statements = 0
        self._thread: threading.Thread | None = None
        # written by the driver thread, read by all:
        self._progress = threading.Condition()  # guards the four counts
        self._taken = self._open = self._unsent = self._held = 0
        self._unreachable: str | None = None
        self._size: Resize | None = None
        self._ended = False
        self._left: int | None = None  # tasks that stay in the store; None: the service has not said so yet
        self._broken: BaseException | None = None
        # of the driver thread alone:
        self._leaving = False
        self._received = 0
        self._tracker = Tracker(name)
        self._tasks: dict[TaskKey, _Task] = {}
        self._bundles: dict[BurstId, tuple[Submit, bytes]] = {}  # sent, not accepted
        self._stopping = False
        self._keep = keep  # or something was lost, and its files may be wanted
        self._asked: deque[Ask] = deque()  # who waits for `Known`: for the tasks, and once more when they are adopted

    # ---- any thread ----

    def start(self) -> bool:
        """Open the service and start the thread, once; raises what keeps the service from being opened.

        Returns:
            Whether it was this call that did.

        Raises:
            RuntimeError: see `submit`.
        """
        self._check_open()  # first: where the interpreter exits, an import of h5py crashes it (Python 3.13)
        # imported now, if not before: h5py undoes its hooks in an exit handler, and crashes if it gets none
        importlib.import_module("remoteexec_server.store.library")
        with self._lock:
            self._check_open()
            if self._thread is not None:
                return False
            self._session_key = bytes.fromhex(self._client.open(self._inbox.put).session_key)
            self._thread = threading.Thread(target=self._run, name=f"remoteexec-{self._name}", daemon=True)
            self._thread.start()
            return True

    @property
    def pending(self) -> int:
        """Tasks that have not ended."""
        with self._progress:
            return self._submitted - self._taken + self._open

    @property
    def closing(self) -> bool:
        """Whether it takes no submit any more."""
        return self._closing is not None

    def submit(
        self,
        fn: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resources: Resources,
        function: Pickled | None = None,
        seen: Seen | None = None,
    ) -> TaskFuture[R]:
        """Take a call.

        Args:
            function: `fn` as `pickle_function` gave it, where one statement calls it many times.
            seen: told of the call before it is taken; may refuse it by raising.

        Raises:
            errors.CallNotPicklable: something of the call cannot travel.
            RuntimeError: after the shutdown, or after a failure that ended the executor.
        """
        with self._lock:
            self._check_open()
            self._numbered += 1
            key = TaskKey(f"{self._name}-t{self._numbered}")
        future = self._future(key, function_name(fn))
        try:
            call = self._pickler.pickle(fn, args, kwargs, resources, function)
        except ForeignFailed as exc:
            future.set_running_or_notify_cancel()
            future.set_exception(exc.__cause__)
            return future
        if seen is not None:
            seen(future, call)
        with self._lock:
            self._check_open()
            with self._progress:
                self._submitted += 1
            self._inbox.put(New(future, call))
        return future

    def draw(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], seen: Seen) -> TaskFuture[R]:
        """The same for a call that is not to run: its future has the result None."""
        with self._lock:
            self._check_open()
            self._numbered += 1
            future = self._future(TaskKey(f"{self._name}-t{self._numbered}"), function_name(fn))
        seen(future, self._pickler.pickle(fn, args, kwargs, Resources()))
        future.set_result(None)
        return future

    def adopt(self, key: TaskKey, name: str) -> TaskFuture[Any]:
        """The future of a task of the session that another process submitted."""
        answer: concurrent.futures.Future[list[TaskFuture[Any]]] = concurrent.futures.Future()
        self._post(Adopt((Entry(key, name=name),), answer))
        return answer.result()[0]

    def futures(self) -> list[TaskFuture[Any]]:
        """Of all tasks of the session, in the order of their submission; those that have ended are done.

        Where their results take longer than `_LOOK_S` to come, the last ones are not done yet.
        """
        ask = Ask(concurrent.futures.Future())
        self._post(ask)
        found = ask.answer.result()
        ask.looked.wait(_LOOK_S)
        return found

    def resize(self, pilots: int) -> None:
        """From now on so many pilots at the same time, at most."""
        self._post(Resize(pilots))

    def _post(self, item: Adopt | Ask | Resize) -> None:
        with self._lock:
            self._check_open()
            self._inbox.put(item)

    def _future(self, key: TaskKey, name: str) -> JobFuture[Any]:
        return JobFuture(key, self, lambda key: self._inbox.put(CancelAsked((key,))), name)

    def pickle_function(self, fn: Callable[..., Any]) -> Pickled:
        """See `submit`."""
        return self._pickler.pickle_function(fn)

    def job_script(self, resources: Resources) -> str:
        """What would be submitted for a task; see BatchExecutor.job_script."""
        with self._lock:
            self._check_open()
            if self._unreachable is not None:
                raise errors.ConnectionLost(self._unreachable)
            question, answer = self._scripts.new(resources)
        self._client.send(question)
        return answer.result()

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Submits within belong to one burst."""
        with self._lock:
            self._statements += 1
        try:
            yield
        finally:
            self._inbox.put(Flush())

    def stop(self, cancel: bool = False, running: bool = False) -> None:
        """Take no submit any more, and end when every task has ended.

        Args:
            cancel: cancel those that have not started ...
            running: ... and end those that have, with their jobs.
        """
        with self._lock:
            self._closing = "cannot schedule new futures after shutdown"
            self._gives_up = self._gives_up or (cancel and running)
        self._inbox.put(Stop(cancel, running))

    def leave(self, timeout_s: float) -> None:
        """The interpreter exits: wait for every task, or after a `stop` without `join` only until all are submitted.

        Those that wait for futures of other executors are waited for, too; what is not submitted in time is lost.
        """
        if self._closing is None:
            self.stop()
            self.join()
        elif self._thread is not None and self._thread.is_alive():
            if self._gives_up:
                self._thread.join(timeout_s)  # until the scheduler has been told what to end
                return
            self.hand_over()
            if not self._wait_left(timeout_s):
                self._tell_lost(timeout_s)

    def hand_over(self) -> None:
        """Have everything that was submitted handed to the scheduler, as this process may end."""
        if self._thread is not None:
            self._inbox.put(Leave())

    def _tell_lost(self, timeout_s: float) -> None:
        left = [call for task in tuple(self._tasks.values()) if (call := task.call) is not None]
        held = [call for call in left if call.foreign]
        if not held:
            why = self._unreachable or f"the scheduler was not reached within {timeout_s:.0f} s"
            what = f"{self._unsent} tasks" if self._unsent else "tasks that the scheduler has not got yet"
            log.warning("%s may not run until somebody uses the session again: %s", what, why)
            return
        names = ", ".join(sorted({call.name for call in left})[:_MOST_NAMES])
        log.warning(
            "the process ends, and %d calls were not submitted and are lost (%s); %d of them wait for futures of other "
            "executors: wait for those before you leave, or submit both calls to one executor",
            len(left), names, len(held),
        )  # fmt: skip

    def join(self) -> None:
        """Wait for the end after `stop`; says in the log what it waits for while the cluster cannot be reached."""
        thread = self._thread
        while thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(_SAY_S)
            if thread.is_alive() and self._unreachable is not None:
                log.warning("waiting for %d tasks; %s", self.pending, self._unreachable)

    def wait_sent(self, timeout_s: float) -> bool:
        """Wait until the scheduler has every task that waits for no other executor; False after the timeout."""
        with self._progress:
            return self._progress.wait_for(lambda: self._submitted == self._taken and not self._unsent, timeout_s)

    def _wait_left(self, timeout_s: float) -> bool:
        """Wait until the scheduler has all that it takes and no call waits for another executor; False after timeout_s.

        What it does not take, the service has said.
        """

        def is_over() -> bool:
            sent = self._submitted == self._taken and not self._held
            said = bool(self._left) or (self._left == 0 and not self._unsent)
            return (sent and (said or not self._open)) or self._ended

        with self._progress:
            return self._progress.wait_for(is_over, timeout_s)

    def _check_open(self) -> None:
        if self._broken is not None:
            raise RuntimeError(f"this executor has failed: {self._broken}") from self._broken
        if self._closing is not None:
            raise RuntimeError(self._closing)

    # ---- the driver thread ----

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as exc:  # the thread's edge: nobody may wait for ever
            log.exception("remoteexec: the driver failed")
            self._break(exc)
        finally:
            with self._progress:
                self._ended = True
                self._progress.notify_all()
            self._client.close()
            self._scripts.fail(RuntimeError("the executor has ended"))

    def _loop(self) -> None:
        began_at = 0.0  # when the burst that is being gathered began
        while not (self._stopping and self._submitted == self._received and not self._tracker.open and not self._asked):
            patience = _STATEMENT if self._statements else _SUBMITS
            gathering = self._tracker.gathering
            due = self._take_next(patience.idle_s if gathering else None)
            if self._broken is not None:
                return
            now = time.monotonic()
            if not gathering:
                began_at = now
            if due or (gathering and now - began_at > patience.most_s):
                self._do(Due())
            self._publish_progress()
        self._say_goodbye()

    def _take_next(self, idle_s: float | None) -> bool:
        """Wait for one item and see to it; it is not kept while the next is waited for. True: the burst is due."""
        try:
            item = self._inbox.get(timeout=idle_s)
        except queue.Empty:
            return True
        self._take(item)
        return isinstance(item, Flush)

    def _publish_progress(self) -> None:
        with self._progress:
            self._taken, self._open = self._received, self._tracker.open
            self._unsent, self._held = self._tracker.unsent, self._tracker.held
            self._progress.notify_all()

    def _take(self, item: Any) -> None:
        match item:
            case New():
                self._add(item)
            case ForeignDone():
                self._fill(item.key)
                if self._leaving:
                    self._left = None  # until that has been said anew
                    self._take(Leave())
            case CancelAsked():
                self._cancel(item.keys)
            case Adopt():
                self._adopt(item.entries, item.answer)
            case Ask():
                self._asked.append(item)
                self._client.send(Tell())
            case Resize():
                self._size = item
                self._client.send(item)
            case Leave():
                self._leaving = True
                self._do(Due())  # what is being gathered goes first
                self._client.send(item)
            case Flush():
                with self._lock:
                    self._statements -= 1
            case Stop():
                self._stopping = True
                if item.cancel:
                    self._cancel([key for key, task in self._tasks.items() if _give_up(task.future, item.running)])
            case (event, data):
                self._hear(event, data)

    def _add(self, new: New) -> None:
        key, call = new.future.key, new.call
        self._received += 1
        self._tasks[key] = _Task(new.future, call, call.inputs)
        self._do(Added(key, call.size, tuple(call.inputs), awaits=bool(call.foreign)))
        if call.foreign:
            self._await(key, call.foreign[0])

    def _answer(self, known: Known, ask: Ask) -> None:
        """Requests are seen to one by one: with the second answer, what had ended when it adopted has been told."""
        if ask.answer.done():
            ask.looked.set()
            return
        self._adopt(known.tasks, ask.answer)
        self._asked.append(ask)
        self._client.send(Tell())

    def _adopt(self, entries: Sequence[Entry], answer: concurrent.futures.Future[list[TaskFuture[Any]]]) -> None:
        """Wait for tasks that are not this executor's, or were and have ended."""
        new = [entry for entry in entries if entry.key not in self._tasks]
        for entry in new:
            self._tasks[entry.key] = _Task(self._future(entry.key, entry.name), None, {})
        answer.set_result([self._tasks[entry.key].future for entry in entries])
        self._do(Adopted(tuple(entry.key for entry in new)))

    def _cancel(self, keys: Sequence[TaskKey]) -> None:
        """The futures are cancelled already; see that nothing runs for them."""
        cancelled = tuple(key for key in keys if key in self._tasks)
        for key in cancelled:
            self._tasks[key].future.show_running()  # which tells who waits for it that it is cancelled
        if cancelled:
            self._do(CancelAsked(cancelled))
        for key in cancelled:
            self._tasks.pop(key, None)

    def _await(self, key: TaskKey, foreign: concurrent.futures.Future[Any]) -> None:
        """Come back when it is done, and see then what else is missing."""
        foreign.add_done_callback(lambda _: self._inbox.put(ForeignDone(key)))

    def _fill(self, key: TaskKey) -> None:
        task = self._tasks.get(key)
        if task is None or task.call is None:
            return
        try:
            call = self._pickler.fill(task.call)
        except BaseException as exc:  # whatever the user's objects raise; the future gets it
            error = exc.__cause__ if isinstance(exc, ForeignFailed) else exc
            self._do(InputFailed(key), error)
            return
        if call.foreign:
            self._await(key, call.foreign[0])
        else:
            task.call, task.inputs = call, call.inputs
            self._do(InputReady(key, call.size, tuple(call.inputs)))

    def _hear(self, event: Heard, data: bytes) -> None:
        """Something the service, or the way to it, said."""
        match event:
            case OutcomeReady():
                self._finish(event.key, data)
            case Lost():
                self._keep = self._keep or event.loss.reason not in ("upstream", "cancelled")
                self._note_loss(event)
                self._do(event, outcomes.lost(event.key, event.loss))
            case Rejected():
                self._do(event, refusal(Refused(event.kind, event.message)))
            case Accepted():
                self._note_jobs(event)
                self._do(event)
            case Started(key, job, host):
                if key in self._tasks:
                    self._tasks[key].future.ran = Ran(host=host, job=job)
                self._do(event)
            case Known():
                if self._asked:
                    self._answer(event, self._asked.popleft())
            case Linked():
                self._unreachable = None
                if self._size is not None:  # a service that is new knows what it was at first
                    self._client.send(self._size)
                self._do(event)
                for _ in self._asked:  # behind what is watched: see `_answer`
                    self._client.send(Tell())
                if self._leaving:
                    self._client.send(Leave())
            case Unlinked():
                self._unreachable = event.reason
                self._scripts.fail(errors.ConnectionLost(event.reason))
                log.warning("%s", event.reason)
                self._do(event)
            case Left():
                self._left = event.tasks
            case Script():
                self._scripts.answer(event)
            case Problem():
                log.warning("%s", event.message)
            case Failed():
                self._break(event.error)
            case Closed():
                self._break(errors.RunnerError("the service has ended, though nobody asked it to"))
            case _:
                log.debug("unexpected: %r", event)

    def _note_jobs(self, event: Accepted) -> None:
        bundle = self._bundles.get(event.burst)
        for entry, job in zip(bundle[0].tasks if bundle else (), event.jobs, strict=False):
            task = self._tasks.get(entry.key)
            if task is not None and task.future.ran.job is None:
                task.future.ran = Ran(job=job)

    def _note_loss(self, event: Lost) -> None:
        task = self._tasks.get(event.key)
        if task is not None:
            ran, loss = task.future.ran, event.loss
            task.future.ran = ran._replace(
                host=loss.node or ran.host,
                job=loss.job or ran.job,
                ended=time.time(),
                attempts=len(loss.attempts) or ran.attempts,
            )

    def _finish(self, key: TaskKey, data: bytes) -> None:
        if key not in self._tasks:  # cancelled meanwhile, or told twice
            self._do(Ended(key, ok=True))
            return
        result, exc, facts = outcomes.load(data, key, self._session_key)
        future = self._tasks[key].future
        known = {name: facts[name] for name in Ran._fields if facts.get(name) not in (None, "")}
        future.ran = future.ran._replace(**known)
        self._do(Ended(key, exc is None), exc)
        if exc is None:
            del self._tasks[key]
            if future.show_running():
                with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled at this moment
                    future.set_result(result)

    def _do(self, event: TrackerEvent, error: BaseException | None = None) -> None:
        """Let the tracker decide, and act; `error` is what `Fail` means here."""
        for action in self._tracker.handle(event):
            self._act(action, error)

    def _act(self, action: Action, error: BaseException | None) -> None:
        match action:
            case Send():
                self._send(action)
            case SendCancel():
                self._client.send(Cancel(action.keys))
            case SendWatch():
                self._client.send(Watch(action.keys))
            case Release():
                del self._bundles[action.burst]
            case ShowRunning():
                self._tasks[action.key].future.show_running()
            case Fail():
                _fail(self._tasks.pop(action.key).future, error)
            case FailLike():
                self._fail_like(action)

    def _send(self, action: Send) -> None:
        """Send a burst, for the first time or again; its bytes are kept until it is accepted."""
        known = self._bundles.get(action.burst)
        if known is None:
            calls = [self._take_call(key) for key in action.keys]
            known = self._bundles[action.burst] = bundle(action.burst, action.keys, calls, self._session_key)
        self._client.send(*known)

    def _take_call(self, key: TaskKey) -> Call:
        task = self._tasks[key]
        call, task.call = task.call, None
        assert call is not None  # a task is in one burst, once
        return call

    def _fail_like(self, action: FailLike) -> None:
        """A future fails with the exception of its input, which may be known a moment later."""
        task = self._tasks.pop(action.key, None)
        if task is not None:
            task.inputs[action.upstream].add_done_callback(lambda upstream: _fail(task.future, _exception(upstream)))

    def _break(self, error: BaseException) -> None:
        """Nothing can be waited for any more: every future fails with the reason."""
        with self._lock:
            self._broken = error  # no submit puts anything into the inbox from now on
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            _fail(task.future, error)
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, New):
                _fail(item.future, error)
            elif isinstance(item, Adopt):
                item.answer.set_exception(error)
            elif isinstance(item, Ask):
                self._asked.append(item)
        for ask in self._asked:
            if not ask.answer.done():
                ask.answer.set_exception(error)
            ask.looked.set()
        with self._progress:
            self._taken, self._open, self._unsent, self._held = self._submitted, 0, 0, 0
            self._progress.notify_all()

    def _say_goodbye(self) -> None:
        """Tell the service that its client is done; its files go unless something was lost."""
        if self._unreachable is not None:
            return
        self._client.send(Close(discard=not self._keep))
        deadline = time.monotonic() + _GOODBYE_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                item = self._inbox.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(item, tuple) and isinstance(item[0], (Closed, Unlinked, Failed)):
                return


def _give_up(future: JobFuture[Any], running: bool) -> bool:
    """Cancel a future whose task has not started, or is `running` and may be ended; whether it is cancelled now."""
    return future.cancel_waiting() or (running and future.end_cancelled())


def _fail(future: TaskFuture[Any], error: BaseException | None) -> None:
    if future.show_running():
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled at this moment
            future.set_exception(error)


def _exception(upstream: concurrent.futures.Future[Any]) -> BaseException:
    if upstream.cancelled():
        return concurrent.futures.CancelledError()
    return upstream.exception() or errors.TaskError("an input was lost")
