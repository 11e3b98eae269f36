"""A worker: runs calls from a pool's socket, one after the other; forked by the zygote.

It reads a token before each call (see `wire.pooled`), and sends each result at once: the next call may take long. It
ends when the pool closes its socket; a worker without tokens ends after one call.

Tokens are written before their calls. So one that has nothing waits for its socket alone, which wakes it once for a
call, and a call without a token was taken back.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import reprlib
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import affinity, failure
from .wire import payload, pooled

if TYPE_CHECKING:
    from . import growing, mpi

_MEASURED_S = 0.01
"""Peak memory is read no more often than this: reading it takes as long as an empty call."""
_NUMBER_PARAMETER = "executorlib_worker_id"

_number: int | None = None


def worker_id() -> int | None:
    """Number of the kept worker this code runs in, from 0; None elsewhere. In pilots: of the worker in its pilot."""
    return _number


def take_number(number: int) -> None:
    """This process is that kept worker from now on."""
    global _number
    _number = number


_started = 0.0


def started() -> float:
    """When this process began to be a worker, in Unix time; 0 if it never did."""
    return _started


_current: Worker | None = None


def current() -> Worker | None:
    """The worker this process is, if its tasks can submit others."""
    return _current


class Worker:
    """State of one worker process.

    Args:
        sock: to the pool.
        tokens: read end of the token pipe, not blocking; None for a worker that gets one call.
        number: which worker of the pool it is.

    Attributes:
        task: the call that runs.
    """

    def __init__(self, sock: socket.socket, tokens: int | None, number: int) -> None:
        global _number, _started
        _number, _started = number if tokens is not None else None, time.time()
        self._sock, self._tokens = sock, tokens
        self._stream = pooled.Stream(sock)
        self._functions: dict[int, Function] = {}
        self._pickled: dict[int, tuple[Any, Sequence[Any]]] = {}
        self._large: set[int] = set()  # functions that are not kept for later calls
        self._calls: deque[tuple[pooled.Call, Sequence[Any]]] = deque()
        self._last: tuple[int, bytes] | None = None  # task and result that a call may inherit
        self._pid = os.getpid()
        self._measured_at = 0.0
        self._sending = threading.Lock()  # guards writing to the socket
        self._max_rss_bytes = 0
        self._mark: bytes | None = None
        self.task = -1
        self._callee: Callable[..., Any] | None = None  # the function that runs
        self._callee_number = -1
        self._altered: Sequence[str] | None = None  # modules of the function that runs, if it is not the client's
        self._growth: growing.Growth | None = None  # reads the socket from then on
        self._growing = threading.Lock()  # guards that there is one: the user's threads ask for it
        self._error_log: str | None = None
        self._defaults: Mapping[str, Any] = {}
        self._ranks: mpi.Ranks | None = None  # of a worker for MPI functions
        self._broken: bytes | None = None  # what setting up raised: every call's answer

    def serve(self) -> None:
        """Run calls until the pool is gone."""
        global _current
        _current = self
        with contextlib.suppress(EOFError, ConnectionError):
            self._receive()
            _standard.update({handle: os.dup(handle) for handle in (1, 2) if _is_open(handle)})
            self._send([])  # nothing: told to be ready
            while (task := self._next_task()) is not None:
                self._run(*task)
                for handle in _standard:  # the caller has his result, and does not wait for this
                    _restored(handle)

    def serve_one(self) -> None:
        """Run one call."""
        global _current
        _current = self
        with contextlib.suppress(EOFError, ConnectionError):
            self._receive()
            self._run(*self._calls.popleft())

    def serve_as_told(self, number: int | None) -> None:
        """Run calls as they come, without tokens, as one of the ranks that are this worker."""
        global _number
        _number = number
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._receive()
                while self._calls:
                    self._run(*self._calls.popleft())
                self._forget_large()

    def _next_task(self) -> tuple[pooled.Call, Sequence[Any]] | None:
        """The call of the next token; None when the pool is gone."""
        assert self._tokens is not None
        while True:
            if not self._calls:
                if self._large:
                    self._forget_large()
                if self._growth is None:
                    self._hear()
            try:
                token = os.read(self._tokens, pooled.TOKEN.size)
                break
            except BlockingIOError:
                self._wait(self._tokens)
        if not token:
            return None
        (number,) = pooled.TOKEN.unpack(token)
        while True:
            while self._calls:
                call = self._calls.popleft()
                if call[0][0] == number:
                    return call
                # else the pool took its token back
            self._hear()

    def _wait(self, tokens: int) -> None:
        """Wait for a token alone.

        That is for two cases: what is here was taken back, of which the pool may give one again and not send it again;
        or another thread reads the socket, and would read all of a large call that may be taken back and is not copied.
        """
        poll = select.poll()
        poll.register(tokens, select.POLLIN)
        poll.register(self._sock.fileno(), select.POLLHUP)
        for fd, event in poll.poll():
            if fd != tokens or event & ~select.POLLIN:
                raise EOFError

    def growth(self) -> growing.Growth:
        """What the tasks of this worker submit."""
        if self._growth is None:
            from . import growing  # late: few tasks need it

            with self._growing:
                if self._growth is None:
                    self._growth = growing.Growth(self)
        return self._growth

    def read(self) -> tuple[Any, Sequence[Any]]:
        """The next batch from the pool."""
        return self._stream.next()

    def number_of(self, fn: Callable[..., Any]) -> int | None:
        """Number of the function that runs, if it is this one."""
        return self._callee_number if fn is self._callee else None

    def say(self, ask: pooled.Ask, buffers: Sequence[memoryview] = ()) -> None:
        """Ask the pool for something."""
        with self._sending:
            pooled.send(self._sock, ask, buffers)

    def _receive(self) -> None:
        self._take_in(*self.read())

    def _hear(self) -> None:
        """Wait for something, and read once: of a large call no more than `pooled.CHUNK` before its token is read."""
        if self._growth is not None:
            self._take_in(*self._growth.next_calls())
            return
        for said, buffers in self._stream.some():
            self._take_in(said, buffers)

    def _take_in(self, said: Any, buffers: Sequence[Any]) -> None:
        setup, functions, calls = said
        at = 0
        if setup is not None:
            self._set_up(setup)
        for number, data, count in functions:
            if count == pooled.FORGET:
                self._forget(number)
                continue
            its = buffers[at : at + count]
            self._pickled[number] = pooled.joined(data, its)
            if pooled.is_large(data, its):
                self._large.add(number)
            at += count
        for call in calls:
            self._calls.append((call, buffers[at : at + call[3]] if call[3] else ()))
            at += call[3]

    def _forget(self, number: int) -> None:
        self._functions.pop(number, None)
        self._pickled.pop(number, None)
        if self._ranks is not None:
            self._ranks.forget(number)

    def _forget_large(self) -> None:
        """Those that were sent for calls that have run."""
        self._callee = None
        while self._large:
            self._forget(self._large.pop())

    def _set_up(self, setup: pooled.Setup) -> None:
        if "cores" in setup:
            affinity.pin(*setup.pop("cores"))  # ranks inherit them, and do not know of the node's others
        if setup.get("launch") is not None:
            from . import mpi  # late: few workers need it

            self._ranks = mpi.Ranks(setup, self._sock, _number)
            if self._tokens is not None:
                self._broken = self._ranks.start()
            return
        path = setup.get("path")
        if path is not None:
            sys.path[:] = path
        for name, value in setup.get("environment", {}).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._error_log = setup.get("error_log")
        self._mark = setup.get("mark")
        try:
            _limit_memory(setup.get("memory_bytes"))
            cwd = setup.get("cwd")
            if cwd is not None:
                _go_to(cwd)
            init = setup.get("init")
            if init is not None:
                self._defaults = initialised(payload.loads(init), _number)
        except BaseException as exc:  # the process edge: told to every call
            self._broken = failure.packed(exc, "raised")

    def _function(self, number: int) -> Function:
        pickled = self._pickled.pop(number, None)
        if pickled is not None:
            loaded = payload.loads(*pickled)
            altered = loaded.modules if type(loaded) is payload.Altered else None
            self._functions[number] = Function(loaded if altered is None else loaded.function, self._defaults, altered)
        return self._functions[number]

    def _run(self, call: pooled.Call, buffers: Sequence[Any]) -> None:
        task, number, data, _, inputs = call
        self.task, self._altered = task, None
        if self._mark is not None:
            _print_mark(self._mark + pooled.TOKEN.pack(task))
        started = time.time()
        if self._broken is not None:
            self._answer(task, False, self._broken, started)
            return
        if self._ranks is not None:
            self._run_on_ranks(self._ranks, call, buffers, started)
            return
        args: Any = ()
        kwargs: Any = {}
        if inputs and inputs[0][1] == pooled.INHERITED:
            assert inputs[0][0] is not None
            if self._last is None or self._last[0] != pooled.TOKEN.unpack(inputs[0][0])[0]:
                self._answer(task, None, None, started)
                return
            inputs = ((self._last[1], 0),)
        try:
            function = self._functions.get(number) or self._function(number)
            args, kwargs = _load(data, buffers, inputs)
            kwargs = function.filled(args, kwargs)
            self._altered = function.altered
        except payload.SelectionError as exc:
            self._answer(task, False, failure.packed(exc.__cause__ or exc, "raised"), started)
            return
        except BaseException as exc:  # whatever the user's objects raise while they are loaded
            self._answer(task, False, failure.packed(exc, "call_not_loadable"), started)
            return
        del buffers, call, data, inputs
        self._callee, self._callee_number = function.call, number
        if function.main:
            vars(sys.modules["__main__"]).update(function.main)
        try:
            result = function.call(*args, **kwargs)
        except BaseException as exc:  # SystemExit and KeyboardInterrupt are the user's, too
            failure.log(self._error_log, function.call, args, kwargs, exc)
            self._answer(task, False, failure.packed(exc, "raised"), started)
            return
        del args, kwargs
        if self._growth is not None and (child := self._growth.number_of(result)) is not None:
            self._answer(task, None, pooled.TOKEN.pack(child), started)
            return
        try:
            pickled = payload.dumps_here(result)
        except BaseException as exc:
            name = f"{type(result).__module__}.{type(result).__qualname__}"
            self._answer(task, False, failure.packed(exc, "result_not_picklable", name), started)
            return
        self._answer(task, True, pickled.data, started, pickled.buffers)

    def _run_on_ranks(self, ranks: mpi.Ranks, call: pooled.Call, buffers: Sequence[Any], started: float) -> None:
        ok, data, out = ranks.run(call, buffers, self._pickled[call[1]])
        if self._tokens is None:
            ranks.end()
        self._answer(call[0], ok, data, started, out)
        if ranks.broken:
            raise EOFError("a rank has ended: this worker counts as one that died")

    def _answer(
        self, task: int, ok: bool | None, data: bytes | None, started: float, buffers: Sequence[memoryview] = ()
    ) -> None:
        now = time.time()
        rest, buffers = pooled.split(data, buffers) if data is not None else (None, buffers)
        if now - self._measured_at > _MEASURED_S:
            self._max_rss_bytes, self._measured_at = _max_rss_bytes(), now
        if self._altered is not None:
            self.say((pooled.ALTERED, task, list(self._altered)))
        # at once, and not with the next ones: nobody knows how long the next call takes
        result = (task, ok, rest, len(buffers), started, now, self._max_rss_bytes, self._pid)
        self._last = (task, rest) if rest is not None and pooled.inheritable(result) else None
        self._send([result], buffers)

    def _send(self, results: Sequence[pooled.Result], buffers: Sequence[memoryview] = ()) -> None:
        """Send results, and before them what was printed: they may be the last that is heard of this process."""
        _flush_output()
        with self._sending:
            pooled.send(self._sock, results, buffers)


def _print_mark(mark: bytes) -> None:
    """What is printed from here on belongs to another task."""
    _flush_output()
    try:
        os.write(1, mark)
    except OSError:  # the user's function has closed it
        if _restored(1):
            os.write(1, mark)


def _max_rss_bytes() -> int:
    """The most memory this process has had resident."""
    import resource  # late: Windows has none, and the client imports this module

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_standard: dict[int, int] = {}
"""What 1 and 2 were at first, in a worker that is kept: the next call shall print, though one has closed them."""


def _flush_output() -> None:
    for handle, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, full, or replaced by the user
            if not _restored(handle):
                continue
            if stream is None or getattr(stream, "closed", False):
                text = os.fdopen(handle, "w", 1, "utf-8", "backslashreplace", closefd=False)
                setattr(sys, name, text)
                setattr(sys, f"__{name}__", text)
            else:
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()  # what was printed since


def _is_open(handle: int) -> bool:
    try:
        os.get_inheritable(handle)  # the fastest question
    except OSError:
        return False
    return True


def _restored(handle: int) -> bool:
    """Whether it is open, again if need be; False in a worker that is not kept."""
    if handle not in _standard:
        return False
    if not _is_open(handle):
        os.dup2(_standard[handle], handle)
    return True


def initialised(init: Callable[..., Any], number: int | None) -> Mapping[str, Any]:
    """What an `init_function` returns: values of parameters, by their names.

    Args:
        number: of the worker; it is told that if it has a parameter for it, as later calls are.

    Raises:
        TypeError: it returned no dictionary.
    """
    found = init(**filled(init, {}, number))
    if found is not None and not isinstance(found, Mapping):
        raise TypeError(
            f"init_function returned {reprlib.repr(found)}, of type {type(found).__qualname__}: it must return a "
            "dictionary that has the names of parameters, or None"
        )
    return dict(found or {})


def _go_to(cwd: str) -> None:
    try:
        os.makedirs(cwd, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:
        raise NotADirectoryError(f"cwd={cwd!r}: {exc.filename} is a file, not a directory; name another") from exc
    os.chdir(cwd)


def _limit_memory(size: int | None) -> None:
    """Let allocations beyond it fail: a MemoryError in the user's function.

    RLIMIT_DATA counts what a process can write to and nobody else can, in memory or not; RLIMIT_AS would count
    libraries and what graphics drivers reserve, too.
    """
    if size is not None:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (size if most < 0 else min(size, most), most))


class Function:
    """A function of the user's, and which of its parameters this worker fills.

    Args:
        call: the function.
        defaults: what `init_function` returned.
        altered: see `payload.Altered`: its modules.

    Attributes:
        main: functions and classes of the user's script that it uses. They are to be found in `__main__` while it runs:
            what forks of this process are sent by `multiprocessing` says their names only.
    """

    def __init__(
        self, call: Callable[..., Any], defaults: Mapping[str, Any], altered: Sequence[str] | None = None
    ) -> None:
        self.call, self.altered = call, altered
        self.main = _of_main(call)
        self._fill = filled(call, defaults, _number)

    def filled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments, with those added that the caller did not give."""
        if not self._fill:
            return kwargs
        given = set(_parameters(self.call)[: len(args)])
        return {**{name: value for name, value in self._fill.items() if name not in given}, **kwargs}


def filled(call: Callable[..., Any], defaults: Mapping[str, Any], number: int | None, given: int = 0) -> dict[str, Any]:
    """Those parameters of a function that a worker fills, with what it fills them.

    Args:
        defaults: what `init_function` returned.
        number: of the worker; None: it has none.
        given: so many parameters, the first ones, are not to be filled.
    """
    mine = {**defaults, **({_NUMBER_PARAMETER: number} if number is not None else {})}
    return {name: mine[name] for name in (_parameters(call)[given:] if mine else ()) if name in mine}


def _of_main(call: Callable[..., Any]) -> dict[str, Any]:
    if getattr(call, "__module__", None) != "__main__" or not inspect.isfunction(call):
        return {}
    found = {call.__name__: call, **call.__globals__}
    return {name: value for name, value in found.items() if _is_of_main(name, value)}


def _is_of_main(name: str, value: Any) -> bool:
    is_code = inspect.isfunction(value) or inspect.isclass(value)
    return is_code and value.__module__ == "__main__" and value.__qualname__ == name


def _parameters(call: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # a builtin without a signature
        return []


def _load(data: bytes | None, buffers: Sequence[Any], inputs: tuple[pooled.Input, ...] | None) -> Any:
    """Arguments of a call; `inputs` are results of other tasks that they refer to, by position."""
    if not inputs:
        return payload.loads(*pooled.joined(data, buffers))
    left = list(buffers)
    given: dict[str, Any] = {}
    for position in range(len(inputs) - 1, -1, -1):
        pickled, count = inputs[position]
        mine = left[len(left) - count :]
        del left[len(left) - count :]
        given[str(position)] = payload.loads(*pooled.joined(pickled, mine))
    return payload.loads(*pooled.joined(data, left), given.__getitem__)
