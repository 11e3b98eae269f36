"""Executors whose tasks are jobs with files: the contract over a driver and a batch service."""

from __future__ import annotations

import concurrent.futures
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from remoteexec_server.wire import header
from remoteexec_server.wire.messages import Hello, Terms
from remoteexec_server.wire.pilots import check_fits
from remoteexec_server.wire.resources import Resources

from .._version import __version__
from ..engine.caching import CachedCall, Caching
from ..engine.client import ServiceClient
from ..engine.driver import Driver
from ..futures import TaskFuture
from ..resources import ResourceError, read_resources, resource_names
from .base import BaseExecutor, finish_at_exit, leave_first, refuse_own_parameter
from .pilots import PilotWish

R = TypeVar("R")


class BatchExecutor(BaseExecutor):
    """An executor whose tasks are jobs with files; made by its subclasses.

    Args:
        client: makes the way to the service, told who we are.
        resource_dict: what every call asks for unless it says otherwise; see `read_resources`.
        poll_s: seconds between questions to the scheduler.
        wait: whether leaving the `with` block waits for all tasks.
        caching: what is kept here of the results; see docs/cache.md.
        pilots: which jobs host workers, if any do.
    """

    def __init__(
        self,
        client: Callable[[Hello], ServiceClient],
        resource_dict: Mapping[str, Any] | Resources | None = None,
        poll_s: float = 30.0,
        wait: bool = True,
        caching: Caching | None = None,
        pilots: PilotWish | None = None,
    ) -> None:
        super().__init__(wait)
        self._caching = caching or Caching(None)
        resource_dict = self._caching.take_defaults(resource_dict)
        self._defaults = _one_rank(read_resources(resource_dict))
        session_key = secrets.token_bytes(32)
        name = secrets.token_hex(4)
        self._pilots = (pilots or PilotWish()).read(self._defaults, name, session_key)
        terms = Terms(poll_s=poll_s, pilots=self._pilots)
        hello = Hello(header.PROTOCOL, header.PYTHON, __version__, name, f"s-{name}", session_key.hex(), terms)
        self._driver = Driver(client(hello), session_key, name)
        weakref.finalize(self, self._driver.stop).atexit = False  # an executor nobody holds takes no more calls
        finish_at_exit(self._driver)
        finish_at_exit(self._caching, last=True)

    def submit(  # type: ignore[override]  # the argument types of fn cannot be kept beside resource_dict
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **kwargs: Any,
    ) -> TaskFuture[R]:
        """See BaseExecutor."""
        refuse_own_parameter(fn)
        resource_dict, wish = self._caching.split(resource_dict)
        resources = self._defaults
        if resource_dict is not None:
            resources = _one_rank(read_resources(resource_dict, self._defaults))
            if self._pilots is not None:
                check_fits(resources, self._pilots)
        self.reach()
        if wish is not None:
            call = CachedCall(fn, args, kwargs, resource_names(resources))
            return self._caching.submit(wish, call, lambda _: self._driver.submit(fn, args, kwargs, resources))
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
        self.reach()
        mapped = _Mapped(self, self._driver.pickle_function(fn))
        with self._driver.gathering():
            results = mapped.map(fn, *iterables, timeout=timeout, chunksize=chunksize, **more)
        return _held(results, mapped)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See BaseExecutor; with `wait=False` what was submitted is handed to the scheduler, and runs on."""
        self._driver.stop(cancel=cancel_futures)
        if wait:
            self._driver.join()
            self._caching.wait()

    def reach(self) -> None:
        """See BaseExecutor."""
        if self._driver.start():
            leave_first()

    def __len__(self) -> int:
        """Calls that have not ended."""
        return self._driver.pending


def _one_rank(resources: Resources) -> Resources:
    if resources.cores > 1:
        raise ResourceError(
            f"cores={resources.cores}: functions that run on several MPI ranks are not supported on clusters yet; "
            "use threads_per_core for threads"
        )
    return resources


class _Mapped(concurrent.futures.Executor):
    """The executor as `Executor.map` sees it: submits one function, pickled once."""

    def __init__(self, executor: BatchExecutor, function: Any) -> None:
        self._executor, self._function = executor, function

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        if self._executor._caching.on:
            return self._executor.submit(fn, *args, **kwargs)
        return self._executor._driver.submit(fn, args, kwargs, self._executor._defaults, self._function)


def _held(results: Iterator[R], executor: _Mapped) -> Iterator[R]:
    """The same results; from Python 3.14 on the calls beyond a `buffersize` are made by them, if the executor lives."""
    yield from results
