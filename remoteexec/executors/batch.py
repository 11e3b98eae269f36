"""Executors whose tasks are jobs with files: the contract over a driver and a batch service."""

from __future__ import annotations

import concurrent.futures
import logging
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from remoteexec_server.store.session import NAME
from remoteexec_server.wire import header
from remoteexec_server.wire.messages import Hello, TaskKey, Terms
from remoteexec_server.wire.pilots import Pilots, check_fits, limited
from remoteexec_server.wire.resources import Resources

from .._version import __version__
from ..engine.cache import Pointer
from ..engine.caching import CachedCall, Caching, beside
from ..engine.calls import Call
from ..engine.client import ServiceClient
from ..engine.driver import Driver
from ..futures import TaskFuture, function_name
from ..resources import read_resources, resource_names
from ..views.views import Views
from .base import BaseExecutor, finish_at_exit, leave_first, refuse_own_parameter
from .checks import check_count, check_function, check_number, check_resources, check_room
from .pilots import PilotWish

R = TypeVar("R")
log = logging.getLogger("remoteexec")
Connect = Callable[[Hello], ServiceClient]
"""Makes the way to a service, told who we are; nothing is reached yet."""


@dataclass(frozen=True)
class Options:
    """What executors of clusters have in common, by the names of their parameters.

    Attributes:
        max_workers: jobs at once, in the queue or running; the rest waits in the store. None: no limit.
        max_cores: the same, in CPUs.
        session: name of the session, whose tasks are then kept, and found again by another process: see `futures`.
            None: one of its own, removed when all its tasks have ended here.
        submits_per_minute: submissions to the scheduler on average; after a pause those of a minute, sixty at most, may
            follow each other at once.
        poll_s: seconds between two questions to the scheduler, for all jobs at once, while results are missing.
        disable_dependencies: futures as arguments are a ValueError.
        pysqa_config_directory: on the cluster, with the site's templates and limits; see docs/configuration.md.
        views: see Views.
        wait: whether leaving the `with` block waits for all tasks.
        block_allocation: run tasks in at most `max_workers` jobs that keep a worker each, instead of one job for each;
            in as many as `max_cores` has CPUs for, if that are fewer or `max_workers` is None.
        init_function: runs once in each such worker; the dictionary it returns fills parameters of later calls that
            have those names and were not given.
        idle_time_s: seconds without anything to do after which such a job ends.
    """

    max_workers: int | None = None
    max_cores: int | None = None
    session: str | None = None
    submits_per_minute: float = 60.0
    poll_s: float = 30.0
    disable_dependencies: bool = False
    pysqa_config_directory: str | None = None
    views: Views = field(default_factory=Views)
    wait: bool = True
    block_allocation: bool = False
    init_function: Callable[..., Mapping[str, Any] | None] | None = None
    idle_time_s: float = 60.0

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: names parameter, value and rule.
            TypeError: the same, of what is of no use at all.
        """
        check_count("max_workers", self.max_workers)
        check_count("max_cores", self.max_cores)
        check_number("submits_per_minute", self.submits_per_minute)
        check_number("poll_s", self.poll_s)
        check_number("idle_time_s", self.idle_time_s, zero=True)
        check_function("init_function", self.init_function)
        if self.session is not None and not NAME.match(self.session):
            raise ValueError(
                f"session={self.session!r}: letters, digits and . _ - only, at most 100, not starting with . or -: "
                "it becomes a file name"
            )
        self.views.check(self.disable_dependencies)
        self.wish.check()

    @property
    def wish(self) -> PilotWish:
        """What of it concerns jobs that host workers."""
        return PilotWish(self.block_allocation, self.max_workers, self.init_function, self.idle_time_s, self.max_cores)

    def terms(self, defaults: Resources, pilots: Pilots | None) -> Terms:
        """The same for the service; `defaults` is what calls ask for where they say nothing."""
        return Terms(
            poll_s=self.poll_s,
            submits_per_minute=self.submits_per_minute,
            jobs_at_once=None if self.block_allocation else self.max_workers,
            cores_at_once=self.max_cores,
            pilots=pilots,
            pysqa_config_directory=self.pysqa_config_directory,
            defaults=defaults,
        )


class BatchExecutor(BaseExecutor):
    """An executor whose tasks are jobs with files; made by its subclasses.

    Args:
        connect: see Connect.
        resource_dict: what every call asks for unless it says otherwise; see `read_resources`.
        options: see Options.
        caching: what is kept here of the results; see docs/cache.md.
        place: names the cluster and our directory on it, so that a task submitted there is looked for there.
    """

    def __init__(
        self,
        connect: Connect,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        options: Options | None = None,
        caching: Caching | None = None,
        place: str = "",
    ) -> None:
        self._options = options or Options()
        self._options.check()
        check_resources(resource_dict)
        super().__init__(self._options.wait)
        self._caching = caching or Caching(None)
        resource_dict = self._caching.take_defaults(resource_dict)
        self._defaults = read_resources(resource_dict)
        check_room(self._defaults, self._options.max_cores)
        self._pilots = self._options.wish.read(self._defaults)
        if self._pilots is not None and self._options.max_workers is None:
            self._options = replace(self._options, max_workers=self._pilots.count)
        self._connect, self._place = connect, place
        self._recorder = self._options.views.recorder()
        self._lock = threading.Lock()  # guards the drivers of other sessions
        self._others: dict[str, Driver] = {}
        name = secrets.token_hex(4)
        self._session = self._options.session or f"s-{name}"
        keep = self._options.session is not None
        self._driver = self._make_driver(name, self._session, self._pilots, keep)
        finish_at_exit(self._caching, last=True)

    def _make_driver(self, name: str, session: str, pilots: Pilots | None = None, keep: bool = False) -> Driver:
        key = secrets.token_hex(32)
        terms = self._options.terms(self._defaults, pilots)
        hello = Hello(header.PROTOCOL, header.PYTHON, __version__, name, session, key, terms)
        driver = Driver(self._connect(hello), name, keep)
        weakref.finalize(self, driver.stop).atexit = False  # an executor nobody holds takes no more calls
        finish_at_exit(driver)
        return driver

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
        resources = self._asked(resource_dict)
        seen = self._inspector(fn, args, kwargs)
        if self._options.views.nothing_runs:
            return self._driver.draw(fn, args, kwargs, seen)
        self.reach()
        if wish is not None and self._recorder is None:
            depends = beside(resources.cores, resources.environment, self._options.init_function)
            call = CachedCall(fn, args, kwargs, resource_names(resources), depends)
            return self._caching.submit(
                wish,
                call,
                lambda *_: self._driver.submit(fn, args, kwargs, resources, seen=seen),
                self._resume,
                self._pointer,
            )
        return self._driver.submit(fn, args, kwargs, resources, seen=seen)

    def futures(self) -> list[TaskFuture[Any]]:
        """Of all tasks of the session, in the order of their submission: those that other processes have submitted, or
        an earlier one under the same `session`, too. Those that have ended are done, and have their results again.

        Raises:
            RemoteExecError: the cluster cannot be used.
            RuntimeError: after `shutdown`.
        """
        self.reach()
        return self._driver.futures()

    def job_script(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **kwargs: Any,
    ) -> str:
        """The job script that `submit` with the same arguments would submit, which it does not.

        The script depends on the resources alone; a real one names a directory of its own, an array where several calls
        are submitted at once, and the jobs that it waits for. With `block_allocation` it is that of a pilot.

        Raises:
            SubmitRejected: the resources, or the template, cannot be used.
            SchedulerUnavailable: the script cannot be rendered now.
            ConnectionLost: the connection broke before the answer.

        See `submit` for the arguments and other errors.
        """
        refuse_own_parameter(fn)
        resource_dict, _ = self._caching.split(resource_dict)
        resources = self._asked(resource_dict)
        self.reach()
        return self._driver.job_script(resources)

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
        mapped = _Mapped(self, self._driver.pickle_function(fn))
        self.reach()
        with self._driver.gathering():
            results = mapped.map(fn, *iterables, timeout=timeout, chunksize=chunksize, **more)
        return _held(results, mapped)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See BaseExecutor; with `wait=False` what was submitted is handed to the scheduler, and runs on.

        With `wait=False, cancel_futures=True` nothing runs on: tasks that run are cancelled, too, and their jobs ended.
        """
        with self._lock:
            drivers = [self._driver, *self._others.values()]
            recorder, self._recorder = self._recorder, None
        for driver in drivers:
            driver.stop(cancel=cancel_futures, running=not wait)
        if wait:
            for driver in drivers:
                driver.join()
            self._caching.wait()
        else:
            for driver in drivers:
                driver.hand_over()
        if recorder is not None:
            self._options.views.show(recorder.graph())

    def reach(self) -> None:
        """See BaseExecutor."""
        if not self._options.views.nothing_runs and self._driver.start():
            leave_first()

    @property
    def info(self) -> dict[str, Any]:
        """See BaseExecutor."""
        options = asdict(self._options)
        return {
            **super().info,
            **options.pop("views"),
            **options,
            "cache_directory": self._caching.directory,
            "cache_errors": self._caching.keep_errors,
        }

    @property
    def session(self) -> str:
        """Name of the session."""
        return self._session

    @property
    def max_workers(self) -> int | None:
        """Jobs at once.

        With `block_allocation` it can be set while tasks run: more jobs are submitted as long as there is work for
        them; those that are too many end when the tasks that they run have ended, the others going on elsewhere.
        There are never more than `max_cores` has CPUs for.

        Raises:
            NotImplementedError: set without `block_allocation`.
            ValueError: set to less than 1.
        """
        return self._options.max_workers

    @max_workers.setter
    def max_workers(self, size: int) -> None:
        if self._pilots is None:
            raise NotImplementedError("max_workers can only be changed with block_allocation=True")
        if size is None:
            raise TypeError("max_workers must be a whole number of at least 1, not None: pass an int")
        check_count("max_workers", size)
        self._options = replace(self._options, max_workers=size)
        self._pilots = limited(replace(self._pilots, count=size), self._options.max_cores)
        self._driver.resize(self._pilots.count)

    @property
    def _takes_calls(self) -> bool:
        return not self._driver.closing

    def __len__(self) -> int:
        """Calls that have not ended."""
        return self._driver.pending

    # ---- what is done with a call on its way ----

    def _asked(self, resource_dict: Mapping[str, Any] | Resources | None) -> Resources:
        """What a call asks for; with pilots it fits into one."""
        if resource_dict is None:
            return self._defaults
        resources = read_resources(resource_dict, self._defaults)
        check_room(resources, self._options.max_cores)
        if self._pilots is not None:
            check_fits(resources, self._pilots)
        return resources

    def _inspector(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[TaskFuture[Any], Call], None]:
        def inspect(future: TaskFuture[Any], call: Call) -> None:
            futures = [*call.inputs.values(), *call.slots]
            if futures and self._options.disable_dependencies:
                raise ValueError("an argument is a future, and disable_dependencies=True: pass its result()")
            if self._options.views.log_obj_size:
                size = call.function.size + call.arguments.size
                log.warning("a call of %s sends %d bytes", function_name(fn), size)
            if self._recorder is not None:
                self._recorder.add(future, fn, args, kwargs, futures)

        return inspect

    # ---- calls that are cached, and run already ----

    def _pointer(self, future: TaskFuture[Any]) -> Pointer:
        """Where another process finds a task that is not over when this one ends."""
        return Pointer(self._place, self._session, future.key)

    def _resume(self, pointer: Pointer, name: str) -> TaskFuture[Any] | None:
        """The future of a task that another process has submitted; None if it is not to be had here."""
        if pointer.place != self._place:
            return None
        driver = self._driver
        if pointer.session != self._session:
            with self._lock:
                if pointer.session not in self._others:
                    self._others[pointer.session] = self._make_driver(secrets.token_hex(4), pointer.session)
                driver = self._others[pointer.session]
            driver.start()
        return driver.adopt(TaskKey(pointer.task), name)


class _Mapped(concurrent.futures.Executor):
    """The executor as `Executor.map` sees it: submits one function, pickled once."""

    def __init__(self, executor: BatchExecutor, function: Any) -> None:
        self._executor, self._function = executor, function

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        executor = self._executor
        if executor._caching.on or executor._options.views.nothing_runs:
            return executor.submit(fn, *args, **kwargs)
        seen = executor._inspector(fn, args, kwargs)
        return executor._driver.submit(fn, args, kwargs, executor._defaults, self._function, seen)


def _held(results: Iterator[R], executor: _Mapped) -> Iterator[R]:
    """The same results; from Python 3.14 on the calls beyond a `buffersize` are made by them, if the executor lives."""
    yield from results
