"""Calls that are looked up before they run, and kept when they have: the same for every kind of executor.

    submit ─ key ─┬ an entry has it ─────────────▶ a future that is done
                  ├ the same call is running ────▶ one more future of that execution
                  └ neither ─ the executor runs it ─ it ends ─▶ keeper thread ─ entry written ─▶ its futures are done

What the executor runs has a future of its own, which no user sees; users have `CachedFuture`s, one for each `submit`.
So cancelling one does not take the result from another, and when a future is done its entry can be found. The keeper
thread lives while something runs. `_lock` guards what runs; entries are looked up under it, so that of two equal calls
one is first.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from remoteexec_server import failure
from remoteexec_server.wire import payload
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.wire.resources import Resources

from .. import errors
from ..futures import TaskFuture, function_name
from ..selections import Selection

if TYPE_CHECKING:
    from remoteexec_server.contents.checked import Check

    from .cache import CacheDirectory, Hit, Pointer  # late, as the next: few executors keep results
    from .keys import CallKey  # late: it takes a third of the time that `import remoteexec` may take

log = logging.getLogger("remoteexec")
R = TypeVar("R")
Before = Callable[[], "Hit | None"]
Start = Callable[["Before | None", "Check | None"], TaskFuture[Any]]
"""Runs the call. If told to, it asks when the call's inputs are done, just before it would run: a hit is its end. If
there is something to compare, and the process that runs it imports the user's modules, it sees to that: a future that
is `altered` has no result for this key."""
Resume = Callable[["Pointer", str], "TaskFuture[Any] | None"]
"""The future of a task that another process has submitted, given its function's name; None: it is not to be had."""
Point = Callable[["TaskFuture[Any]"], "Pointer"]
"""Where another process finds the task of a future."""

_LARGEST_CALL = 1 << 24
"""Bytes from which the arguments are not kept with the result: they are in the key, and may be the same a hundred
times. Picked, not measured."""


class Wish(NamedTuple):
    """Where a call is to be cached, and under which name if that is the user's own."""

    directory: str
    name: str | None = None


class CachedCall(NamedTuple):
    """A call, as its key and its entry need it.

    Attributes:
        resources: as `resource_names` has them.
        beside: what the result depends on besides the call.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    resources: Mapping[str, Any]
    beside: tuple[object, ...] = ()


def beside(ranks: int, environment: Mapping[str, str], init: Callable[..., Any] | None) -> tuple[object, ...]:
    """What a result depends on besides the call: one function for all executors, so that equal calls have equal keys.

    Args:
        ranks: MPI ranks that run the function.
        environment: as `resource_dict` names it; what a process has anyway is not part of a call.
        init: the `init_function`.
    """
    found: list[object] = [("ranks", ranks)] if ranks > 1 else []
    if environment:
        found.append(("environment", dict(environment)))
    if init is not None:
        found.append(("init", init))
    return tuple(found)


@dataclass(eq=False, repr=False)
class _Execution:
    """One execution and the futures that wait for it.

    Attributes:
        name: of its entry; None while that depends on futures.
        token: what calls that take its futures have for it in their keys.
        inner: what the executor runs.
        call: pickled, for the entry.
        inputs: futures among its arguments.
        found: its entry, if that was found after all.
        pointed: a file says where it runs.
        altered: modules of which it, or one of its inputs, was computed with other code than its key was made from.
        otherwise: runs it here; where it was taken up from another process.
    """

    directory: CacheDirectory
    name: str | None
    token: str | None
    function: str
    inner: TaskFuture[Any] = field(init=False)
    call: Pickled = field(init=False)
    inputs: tuple[concurrent.futures.Future[Any], ...] = ()
    futures: list[CachedFuture[Any]] = field(default_factory=list)
    found: Hit | None = None
    pointed: bool = False
    altered: Sequence[str] = ()
    otherwise: Callable[[], TaskFuture[Any]] | None = None

    def another(self) -> CachedFuture[Any]:
        """One more future of it."""
        future: CachedFuture[Any] = CachedFuture(self)
        self.futures.append(future)
        return future


class CachedFuture(TaskFuture[R]):
    """A future of a call that is cached; others may wait for the same execution."""

    def __init__(self, execution: _Execution) -> None:
        inner = execution.inner
        super().__init__(inner.key, inner.owner, lambda _: None, execution.function)
        self._execution: _Execution | None = execution
        self.cache_key, self.cache_token = execution.name, execution.token

    def cancel(self) -> bool:
        """Cancel the call if nobody else waits for it, and it has not started; see concurrent.futures.Future.cancel."""
        execution = self._execution
        if execution is not None and not self.done():
            others = any(not future.done() for future in execution.futures if future is not self)
            if not others and not execution.inner.cancel():
                return False
        cancelled = super().cancel()
        if cancelled:
            self.show_running()
            self._execution = None
        return cancelled

    def running(self) -> bool:
        """Whether the call is running."""
        execution = self._execution
        return super().running() or (execution is not None and not self.done() and execution.inner.running())

    @property
    def task(self) -> Any:
        """See TaskFuture.task."""
        self._look()
        return super().task

    def show_running(self) -> bool:
        """See TaskFuture.show_running; here any thread may ask."""
        with self._condition:
            return super().show_running()

    def end(self, result: R, exc: BaseException | None) -> None:
        """The call has ended; said once."""
        execution = self._look()
        if execution is not None:
            self.cache_key, self.cache_token = execution.name, execution.token
            if execution.altered and execution.found is None:  # its result is not what the token stands for
                self.altered, self.cache_token = execution.altered, None
        self._execution = None
        if not self.show_running():
            return
        if exc is not None:
            self.set_exception(exc)
        else:
            self.set_result(result)

    def _look(self) -> _Execution | None:
        execution = self._execution
        if execution is not None:
            self.ran, self.output = execution.inner.ran, execution.inner.output
        return execution


class Caching:
    """What one executor caches.

    Args:
        directory: where, unless a call says otherwise; None: only calls that say so are cached.
        keep_errors: cache calls that raised, too.
        otherwise: where calls are cached that have a `cache_key` and no directory.
        asks_late: whether the executor asks `Before`; if not, calls with futures that no key stands for are not cached.

    Attributes:
        directory: see Args; may come from the executor's `resource_dict`.
        on: whether calls are cached that say nothing of it.
        keep_errors: see Args.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        keep_errors: bool = False,
        otherwise: str | None = None,
        asks_late: bool = False,
    ) -> None:
        self.directory, self.on = _path(directory), directory is not None
        self.keep_errors = keep_errors
        self._otherwise, self._asks_late = otherwise, asks_late
        self._lock = threading.RLock()  # guards all below
        self._idle = threading.Condition(self._lock)
        self._directories: dict[str, CacheDirectory] = {}
        self._running: dict[tuple[CacheDirectory, str], _Execution] = {}
        self._open: set[_Execution] = set()  # whose futures have not been told of the end
        self._busy = False
        self._ended: deque[_Execution] = deque()
        self._some_ended = threading.Semaphore(0)
        self._keeper: threading.Thread | None = None

    def take_defaults(self, given: Mapping[str, Any] | Resources | None) -> Mapping[str, Any] | Resources | None:
        """The executor's `resource_dict` without its `cache_directory`, which holds from now on.

        Raises:
            ValueError: it names a `cache_key`.
        """
        rest, wish = self.split(given)
        if wish is not None and wish.name is not None:
            raise ValueError("cache_key in an executor's resource_dict: all its calls would be one; give it to submit")
        if wish is not None:
            self.directory, self.on = wish.directory, True
        return rest

    def split(
        self, given: Mapping[str, Any] | Resources | None
    ) -> tuple[Mapping[str, Any] | Resources | None, Wish | None]:
        """A call's `resource_dict` without what it says of the cache, and that; None if it is not to be cached.

        Raises:
            TypeError: the directory is no path.
            ValueError: the cache key cannot be one, or there is no directory for it.
        """
        name, directory = None, self.directory
        if isinstance(given, Mapping) and ("cache_key" in given or "cache_directory" in given):
            name = given.get("cache_key")
            directory = _path(given.get("cache_directory")) or directory or self._otherwise
            given = {key: value for key, value in given.items() if key not in ("cache_key", "cache_directory")} or None
        if name is not None:
            from .cache import checked_name

            checked_name(name)
            if directory is None:
                raise ValueError(f"cache_key={name!r} needs a cache_directory, of the executor or of the call")
        return given, Wish(directory, name) if directory is not None else None

    def submit(
        self, wish: Wish, call: CachedCall, start: Start, resume: Resume | None = None, point: Point | None = None
    ) -> TaskFuture[Any]:
        """Find a call's end, share its execution, or start it.

        Args:
            resume, point: for calls that outlive this process.

        Raises:
            errors.UnsafeRoot: the directory cannot be used.
            Whatever `start` raises.
        """
        key, why = _key(call)
        token = key.name() if key is not None and key.known else None
        name = wish.name or token
        if wish.name is not None:  # what is kept under it need not be this call's: others take its result, not its key
            token = None
        if name is None and (key is None or not self._asks_late):
            uncached = start(None, None)  # first: it may say what is wrong with the call
            if why:
                from .cache import CacheWarning

                text = f"a call of {function_name(call.fn)} is not cached, it has no key: {why}; name it with cache_key"
                warnings.warn(text, CacheWarning, stacklevel=4)
            return uncached
        with self._lock:
            directory = self._directory(wish.directory)
            if name is not None:
                running = self._running.get((directory, name))
                if running is not None and not running.inner.cancelled():
                    return running.another()
                if running is not None and running.pointed:  # to what nobody is to take up
                    running.pointed = False
                    directory.forget(name)
                hit = self._usable(directory.find(name))
                if hit is not None:
                    return _done(hit, name, token, function_name(call.fn))
            execution = _Execution(directory, name, token, function_name(call.fn))
            late = key if name is None else None
            pointer = directory.pointer(name) if resume is not None and name is not None else None
            resumed = resume(pointer, execution.function) if resume is not None and pointer is not None else None
            check = key.check if key is not None and wish.name is None else None
            before = None if late is None else lambda: self._usable(_find_late(execution, late))
            execution.inner = resumed or start(before, check)
            if resumed is not None:
                execution.otherwise = lambda: start(before, check)
            if point is not None and name is not None:
                execution.pointed = True
                if resumed is None:
                    directory.point(name, point(execution.inner))
            execution.call, execution.inputs = _pickled_call(call)
            if name is not None:
                self._running[directory, name] = execution
            future = execution.another()
            self._open.add(execution)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_all, name="remoteexec-cache", daemon=True)
                self._keeper.start()
        self._follow(execution)
        return future

    def _follow(self, execution: _Execution) -> None:
        """Hear of its end."""
        once = [execution]  # emptied by the callback, which the inner future keeps: no cycle holds its result
        execution.inner.add_done_callback(lambda _: self._has_ended(once.pop()))

    def _usable(self, hit: Hit | None) -> Hit | None:
        """An entry, if it is to be taken: what failed elsewhere runs again here, unless failures are kept here too."""
        return None if hit is not None and hit.exception is not None and not self.keep_errors else hit

    def pass_on_cancels(self) -> None:
        """Cancel the futures of executions that the executor has cancelled now, not when the keeper comes to it."""
        with self._lock:
            cancelled = [execution for execution in self._open if execution.inner.cancelled()]
        for execution in cancelled:
            for future in list(execution.futures):
                future.cancel()

    def wait(self) -> None:
        """Wait until all that was submitted has ended, is kept, and its futures are done."""
        with self._idle:
            if threading.current_thread() is not self._keeper:
                self._idle.wait_for(lambda: not self._open)

    def leave(self, timeout_s: float) -> None:
        """The interpreter exits: wait until what has ended is kept; what has not runs on without us."""
        with self._idle:
            self._idle.wait_for(lambda: not self._ended and not self._busy, timeout_s)

    def _directory(self, path: str) -> CacheDirectory:
        from .cache import CacheDirectory

        known = self._directories.get(path)
        if known is None:
            known = self._directories[path] = CacheDirectory(path)
        return known

    def _has_ended(self, execution: _Execution) -> None:
        self._ended.append(execution)
        self._some_ended.release()

    # ---- the keeper thread ----

    def _keep_all(self) -> None:
        while True:
            self._some_ended.acquire()
            self._busy = True  # first: `leave` must not find neither
            execution = self._ended.popleft()
            if self._runs_after_all(execution):
                del execution
                with self._idle:
                    self._busy = False
                    self._idle.notify_all()
                continue
            pickled = None
            try:
                pickled = self._keep(execution)
            except BaseException as exc:  # the thread's edge: the result is there, whatever became of its entry
                log.warning("the result of %s was not cached: %s: %s", execution.function, type(exc).__name__, exc)
            with self._lock:
                if execution.name is not None and execution.pointed:
                    execution.directory.forget(execution.name)
                if execution.name is not None and self._running.get((execution.directory, execution.name)) is execution:
                    del self._running[execution.directory, execution.name]
            self._tell(execution, pickled)
            with self._idle:
                self._open.discard(execution)
                del execution, pickled
                self._busy = False
                self._idle.notify_all()
                if not self._open:
                    self._keeper = None
                    return

    def _runs_after_all(self, execution: _Execution) -> bool:
        """Where another process ran it that has removed its session before we looked there: then its entry is here by
        now, or it runs again."""
        otherwise, execution.otherwise = execution.otherwise, None
        exc = None if execution.inner.cancelled() else execution.inner.exception()
        if otherwise is None or execution.name is None or not isinstance(exc, errors.TaskUnknownLoss) or exc.job:
            return False
        with self._lock:
            try:
                hit = self._usable(execution.directory.find(execution.name))
                inner = otherwise() if hit is None else None
            except Exception as why:  # it is shut down: then the loss stays what is told
                log.warning("%s is not run again: %s", execution.function, why)
                return False
            if hit is not None:
                execution.found, execution.inner = hit, _done(hit, execution.name, execution.token, execution.function)
            if inner is not None:
                execution.inner = inner
        if inner is not None:
            self._follow(execution)
        return inner is not None

    def _keep(self, execution: _Execution) -> Pickled | None:
        """Write the entry; the pickled result."""
        from remoteexec_server.store.hdf5 import Outcome

        inner = execution.inner
        if inner.cancelled() or execution.name is None:
            return None
        exc = inner.exception()
        execution.altered = _altered(execution)
        if execution.altered and execution.found is None:
            _warn_of_other_code(execution.function, execution.altered)
            return payload.dumps_for_later(inner.result()) if exc is None else None
        facts = {name: value for name, value in inner.ran._asdict().items() if value is not None}
        if inner.ran.started is not None and inner.ran.ended is not None:
            facts["runtime_s"] = inner.ran.ended - inner.ran.started
        if exc is None:
            value = payload.dumps_for_later(inner.result())
            if execution.found is None:
                execution.directory.write(execution.name, Outcome(True, value, facts), execution.call)
            return value
        if execution.found is None and self.keep_errors and _is_own(exc, execution.inputs):
            facts |= failure.facts(exc, "raised")
            facts["traceback"] = getattr(exc.__cause__, "text", facts["traceback"])
            execution.directory.write(
                execution.name, Outcome(False, failure.pickled(exc, for_later=True), facts), execution.call
            )
        return None

    def _tell(self, execution: _Execution, pickled: Pickled | None) -> None:
        """Each future gets a result of its own, as if it had run."""
        inner = execution.inner
        if inner.cancelled():
            for future in execution.futures:
                future.cancel()
            return
        result, exc = (None, inner.exception()) if inner.exception() is not None else (inner.result(), None)
        first = True
        for future in execution.futures:
            if not first and pickled is not None and exc is None:
                result = payload.loads(pickled.data, [bytearray(view) for view in pickled.buffers])
            future.end(result, exc)
            first = first and future.cancelled()


def _path(directory: Any) -> str | None:
    if directory is not None and not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"cache_directory must be a path, not {directory!r}: pass a text or a pathlib.Path")
    return None if directory is None else os.fspath(directory)


def _key(call: CachedCall) -> tuple[CallKey | None, str]:
    """The call's key, or why there is none."""
    from .keys import NoContent, call_key

    try:
        return call_key(call.fn, call.args, call.kwargs, _name_future, call.beside), ""
    except NoContent as exc:
        return None, str(exc)


def _name_future(future: concurrent.futures.Future[Any]) -> str | None:
    if isinstance(future, TaskFuture):
        return future.cache_token
    if isinstance(future, Selection):
        source = _name_future(future.source)
        if source is not None:
            import hashlib  # late: see `keys` above

            from remoteexec_server.contents.objects import Contents

            return f"{source}[{hashlib.blake2b(Contents().digest(future.key), digest_size=16).hexdigest()}]"
    return None


def _warn_of_other_code(function: str, modules: Sequence[str]) -> None:
    from .cache import CacheWarning

    warnings.warn(
        f"a result of {function} is not cached, since its process has imported {', '.join(modules)} and found other "
        "code or values there than this process has: a file was edited, a module reloaded, or something in it set. "
        "Start again, with a new executor, or pass what is set as an argument",
        CacheWarning,
        stacklevel=2,
    )


def _find_late(execution: _Execution, key: CallKey) -> Hit | None:
    """The inputs are done: now the key is known."""
    from .cache import CacheWarning
    from .keys import NoContent

    if not key.known:
        return None
    try:
        execution.name = execution.token = key.name()
        execution.found = execution.directory.find(execution.name)
    except (NoContent, CacheWarning) as exc:  # the latter where warnings are errors: this is not the caller's thread
        log.warning("a call of %s is not cached: %s", execution.function, exc)
    return execution.found


def _done(hit: Hit, name: str, token: str | None, function: str) -> TaskFuture[Any]:
    """A future that nothing runs for."""
    future: TaskFuture[Any] = TaskFuture(TaskKey(name), None, lambda _: None, function)
    future.cache_key, future.cache_token = name, token
    future.show_running()
    if hit.exception is not None:
        future.set_exception(hit.exception)
    else:
        future.set_result(hit.result)
    return future


def _pickled_call(call: CachedCall) -> tuple[Pickled, tuple[concurrent.futures.Future[Any], ...]]:
    """The call as it is now, for `get_cache_data`, without arguments that are too large; and the futures in it."""
    futures: list[concurrent.futures.Future[Any]] = []

    def refer(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        if not isinstance(obj, concurrent.futures.Future):
            return None
        futures.append(obj)
        return payload.resolve, (getattr(obj, "cache_key", None) or "",)

    try:
        found = payload.dumps_here((call.fn, call.args, call.kwargs, dict(call.resources)), refer)
        if found.size > _LARGEST_CALL:
            found = payload.dumps_here((call.fn, None, None, dict(call.resources)), refer)
    except Exception as exc:  # whatever the arguments raise; the executor was able to pickle them in its own way
        log.warning("the call of %s is not kept with its result: %s", function_name(call.fn), exc)
        found = payload.dumps_here((None, None, None, dict(call.resources)))
    kept = Pickled(found.data, tuple(memoryview(bytes(view)) for view in found.buffers))
    return kept, tuple(futures)


def _altered(execution: _Execution) -> tuple[str, ...]:
    """See _Execution."""
    found = list(execution.inner.altered)
    for future in execution.inputs:
        while isinstance(future, Selection):
            future = future.source
        found += getattr(future, "altered", ())
    return tuple(dict.fromkeys(found))


def _is_own(exc: BaseException, inputs: tuple[concurrent.futures.Future[Any], ...]) -> bool:
    """Whether the function itself raised it: what happened to its process or its inputs is no answer."""
    if isinstance(exc, (errors.RemoteExecError, concurrent.futures.CancelledError)):
        return False
    return all(future.done() and not future.cancelled() and future.exception() is None for future in inputs)
