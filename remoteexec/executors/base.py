"""What all executors share: the `concurrent.futures.Executor` contract over a driver."""

from __future__ import annotations

import atexit
import concurrent.futures
import inspect
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

from remoteexec_server.wire import header
from remoteexec_server.wire.messages import Hello
from remoteexec_server.wire.resources import Resources

from .._version import __version__
from ..engine.client import ServiceClient
from ..engine.driver import Driver
from ..futures import TaskFuture
from ..resources import read_resources

R = TypeVar("R")
Self = TypeVar("Self", bound="BaseExecutor")

_LEAVE_S = 60.0
"""How long an exiting interpreter waits for its last submits to reach the scheduler."""


class BaseExecutor(concurrent.futures.Executor):
    """An executor whose tasks are jobs with files; made by its subclasses.

    Args:
        client: makes the way to the service, told who we are.
        resource_dict: what every call asks for unless it says otherwise; see `read_resources`.
        poll_s: seconds between questions to the scheduler.
        wait: whether leaving the `with` block waits for all tasks.
    """

    def __init__(
        self,
        client: Callable[[Hello], ServiceClient],
        resource_dict: Mapping[str, Any] | Resources | None = None,
        poll_s: float = 30.0,
        wait: bool = True,
    ) -> None:
        self._defaults = read_resources(resource_dict)
        self._wait = wait
        session_key = secrets.token_bytes(32)
        name = secrets.token_hex(4)
        hello = Hello(header.PROTOCOL, header.PYTHON, __version__, f"s-{name}", session_key.hex(), poll_s)
        self._driver = Driver(client(hello), session_key, name)
        weakref.finalize(self, self._driver.stop).atexit = False  # an executor nobody holds takes no more calls
        _live.add(self._driver)

    def submit(  # type: ignore[override]  # the argument types of fn cannot be kept beside resource_dict
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **kwargs: Any,
    ) -> TaskFuture[R]:
        """Run `fn(*args, **kwargs)` as a task.

        Futures of this executor, anywhere in the arguments, stand for their results: the task waits for them on the
        cluster. Futures of other executors are waited for here.

        Args:
            resource_dict: what this call asks for; see `read_resources`.

        Raises:
            CallNotPicklable: the function or an argument cannot travel.
            ResourceError: the resources cannot be right; a ValueError.
            RemoteExecError: the cluster cannot be used; from the first call that needs it.
            RuntimeError: after `shutdown`.
        """
        _refuse_own_parameter(fn)
        resources = self._defaults if resource_dict is None else read_resources(resource_dict, self._defaults)
        self._start()
        return self._driver.submit(fn, args, kwargs, resources)

    def map(  # type: ignore[override]  # fn is positional-only, as CPython has it from 3.14 on
        self,
        fn: Callable[..., R],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[R]:
        """See concurrent.futures.Executor.map; all calls go to the cluster as one burst, each a task of its own."""
        self._start()
        mapped = _Mapped(self, self._driver.pickle_function(fn))
        with self._driver.gathering():
            results = mapped.map(fn, *iterables, timeout=timeout, chunksize=chunksize, **more)
        return _held(results, mapped)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: return when every task has ended; else return at once, the tasks go on.
            cancel_futures: cancel what has not started.
        """
        self._driver.stop(cancel=cancel_futures)
        if wait:
            self._driver.join()

    def __enter__(self: Self) -> Self:
        """Reach the cluster now, so that what is wrong with it is said here."""
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Shut down; see the constructor's `wait`."""
        self.shutdown(wait=self._wait)
        return None

    def _start(self) -> None:
        """Reach the cluster, unless that has been done."""
        if self._driver.start():
            atexit.unregister(_leave)
            atexit.register(_leave)  # last in, first out: paramiko, imported by now, ends all connections at exit

    def __len__(self) -> int:
        """Calls that have not ended."""
        return self._driver.pending

    def __bool__(self) -> bool:
        """An executor is true, also while nothing is pending."""
        return True


class _Mapped(concurrent.futures.Executor):
    """The executor as `Executor.map` sees it: submits one function, pickled once."""

    def __init__(self, executor: BaseExecutor, function: Any) -> None:
        self._executor, self._function = executor, function

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        return self._executor._driver.submit(fn, args, kwargs, self._executor._defaults, self._function)


def _held(results: Iterator[R], executor: _Mapped) -> Iterator[R]:
    """The same results; from Python 3.14 on the calls beyond a `buffersize` are made by them, if the executor lives."""
    yield from results


def _refuse_own_parameter(fn: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(fn).parameters
    except Exception:  # a builtin without one; from Python 3.14 on, whatever an annotation raises
        return
    if "resource_dict" in parameters:
        raise ValueError(f"{fn!r} has a parameter resource_dict, which submit takes for itself: rename the parameter")


_live: weakref.WeakSet[Driver] = weakref.WeakSet()  # a driver lives as long as its thread


@atexit.register
def _leave() -> None:
    """The interpreter exits: executors nobody shut down finish their tasks, the others at least submit them."""
    for driver in list(_live):
        driver.leave(_LEAVE_S)
