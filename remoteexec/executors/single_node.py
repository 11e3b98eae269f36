"""The executor of this machine: each call in a process of its own, or on workers that are kept."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from remoteexec_server.wire import payload, pooled
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.wire.resources import Resources, Retry

from ..engine.caching import Before, CachedCall, Caching, Wish, beside
from ..engine.graph import Functions, Held, pickle_call
from ..engine.growing import ChildTask, Growth
from ..engine.sharing import Shared, Sharing
from ..futures import TaskFuture, function_name
from ..pool import machine, mpi
from ..pool.fresh import FreshWorkers
from ..pool.kept import KeptWorkers, Places
from ..pool.ledger import Ledger, Need, TooLarge
from ..pool.output import Output
from ..pool.tasks import Broken, GpuVariables, PoolFuture, PoolTask
from ..pool.zygote_client import Launcher
from ..resources import (
    ResourceError,
    asked_of_process,
    asked_of_scheduler,
    check_names,
    read_resources,
    resource_names,
    says_threads,
    with_defaults,
)
from ..views.views import Views
from .base import came_of_interrupt, finish_at_exit, refuse_own_parameter
from .checks import check_count, check_function, check_number, check_resources, check_shown
from .checks import check_names as check_modules
from .pooled import AnyFuture, PooledExecutor

if TYPE_CHECKING:
    from pathlib import Path

    from remoteexec_server.contents.checked import Check

    from ..engine.in_caller import CallerAsWorker

__all__ = ["SingleNodeExecutor"]

log = logging.getLogger("remoteexec")
R = TypeVar("R")
T = TypeVar("T")


class SingleNodeExecutor(PooledExecutor):
    """Runs calls on this machine.

    The parameters that executorlib has, too, come first and in its order.

    Args:
        max_workers: calls at once; with `block_allocation` the number of workers.
        max_cores: cores used at once; all of this machine's if neither is given.
        cache_directory: keep results there, and look there before a call is run; see docs/cache.md.
        cache_errors: keep what calls raised, too.
        resource_dict: what every call asks for unless it says otherwise; see `read_resources`.
        block_allocation: keep workers and run all calls on them, with the executor's resources.
        init_function: runs once in each kept worker; the dictionary it returns fills parameters of later calls that
            have those names and were not given.
        restart_limit: how many kept workers that died are replaced.
        hostname_localhost: taken, and without effect: workers are connected by what no other machine can reach.
        disable_dependencies: futures as arguments are a ValueError.
        refresh_rate: taken, and without effect: nothing polls, a result is seen at once.
        plot_dependency_graph: see Views, as the next three.
        plot_dependency_graph_filename: see Views.
        export_workflow_filename: see Views.
        log_obj_size: see Views.
        openmpi_oversubscribe: as in `resource_dict`, for all calls.
        debug: run each call in this process, before `submit` returns, so that breakpoints work; one process is one
            rank, so calls with `cores` above 1 are a ValueError.
        show_output: what tasks print is kept, see TaskInfo, and shown while they run: with the task before each line
            ("prefix"), as it is (True), or not (False). None: it is not kept, and goes where this process's output
            goes.
        preload: modules that are imported once for all processes, which then need not import them.
        wait: whether leaving the `with` block waits for all calls.
        retries: a `Retry`, as `resource_dict["retries"]`, for all calls.

    Raises:
        ValueError: parameters that exclude each other, or numbers that cannot be; names parameter and rule.
    """

    _heeded: tuple[str, ...] = ()  # of what else only jobs can have
    _where = "this machine"

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | os.PathLike[str] | None = None,
        max_cores: int | None = None,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        hostname_localhost: bool | None = None,
        block_allocation: bool = False,
        init_function: Callable[..., Mapping[str, Any] | None] | None = None,
        disable_dependencies: bool = False,
        refresh_rate: float = 0.01,
        plot_dependency_graph: bool | Literal["after"] = False,
        plot_dependency_graph_filename: str | Path | None = None,
        export_workflow_filename: str | Path | None = None,
        log_obj_size: bool = False,
        wait: bool = True,
        restart_limit: int = 0,
        openmpi_oversubscribe: bool = False,
        *,
        cache_errors: bool = False,
        preload: Sequence[str] = (),
        debug: bool = False,
        show_output: bool | Literal["prefix"] | None = None,
        retries: Retry | None = None,
    ) -> None:
        check_count("max_workers", max_workers)
        check_count("max_cores", max_cores)
        check_count("restart_limit", restart_limit, least=0)
        check_resources(resource_dict)
        check_function("init_function", init_function)
        check_modules("preload", preload)
        if init_function is not None and not block_allocation:
            raise ValueError("init_function needs block_allocation=True: only kept workers are initialised")
        check_number("refresh_rate", refresh_rate)
        self._unheeded = {"hostname_localhost": hostname_localhost, "refresh_rate": refresh_rate}
        check_shown(show_output)
        self._views = Views(
            plot_dependency_graph, plot_dependency_graph_filename, export_workflow_filename, log_obj_size
        )
        self._views.check(disable_dependencies)
        super().__init__(wait)
        self._caching = Caching(cache_directory, cache_errors, asks_late=True)
        resource_dict = with_defaults(self._caching.take_defaults(resource_dict), retries=retries)
        self._defaults = _read(resource_dict, Resources(openmpi_oversubscribe=openmpi_oversubscribe))
        self._launch_of(self._defaults)  # said now if there is no MPI
        self._says_threads = says_threads(resource_dict)
        self._max_workers, self._max_cores = max_workers, max_cores
        self._need = self._takes(self._defaults)
        self._kept, self._init, self._restarts = block_allocation, init_function, restart_limit
        self._no_futures, self._preload = disable_dependencies, tuple(preload)
        self._recorder = self._views.recorder()
        self._debug, self._here = debug, debug or self._views.nothing_runs
        self._refuse_ranks_here(self._defaults)
        self._caller = _caller_as_worker(init_function, block_allocation) if debug else None
        self._functions = Functions()
        self._output = Output(show_output) if show_output is not None else None
        self._numbered = 0
        self._sharing: Sharing | None = None
        self._told = set(self._heeded)
        finish_at_exit(self)
        self._gpus, self._gpu_variables = self._find_gpus()
        self._ledger = self._new_ledger()
        self._check(self._need, self._defaults)
        if self._kept:
            workers = self._workers(max_workers)
            self._worker_gpus(workers)  # said now if it cannot be
            self._max_workers = min(workers, max_workers) if max_workers is not None else None

    def submit(  # type: ignore[override]  # see BaseExecutor
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **kwargs: Any,
    ) -> TaskFuture[R]:
        """See BaseExecutor."""
        refuse_own_parameter(fn)
        if resource_dict is not None or self._caching.on:
            resource_dict, wish = self._caching.split(resource_dict)
            if wish is not None and not self._here and self._recorder is None:
                return self._cached(wish, fn, args, kwargs, resource_dict)
        return self._run(fn, args, kwargs, resource_dict)

    def _cached(
        self,
        wish: Wish,
        fn: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resource_dict: Mapping[str, Any] | Resources | None,
    ) -> TaskFuture[R]:
        resources = self._defaults if resource_dict is None else self._needs(resource_dict)[1]
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        launch = self._launch_of(resources)  # `cores` are not ranks everywhere
        depends = beside(1 if launch is None else launch[0], resources.environment, self._init)
        call = CachedCall(fn, args, kwargs, resource_names(resources), depends)
        return self._caching.submit(
            wish, call, lambda before, check: self._run(fn, args, kwargs, resource_dict, before, check)
        )

    def _run(
        self,
        fn: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resource_dict: Mapping[str, Any] | Resources | None,
        before: Before | None = None,
        check: Check | None = None,
    ) -> TaskFuture[R]:
        need, resources = self._need, self._defaults
        if resource_dict is not None:
            need, resources = self._needs(resource_dict)
        if self._sharing is not None and self._closed:  # before a handle says that it is of no use any more
            raise RuntimeError("cannot schedule new futures after shutdown")
        function = self._functions.get(fn)
        if check is not None:
            function = self._functions.checked(function, check)
        lent = None
        if self._sharing is None:
            arguments, futures = pickle_call(fn, args, kwargs)
        else:
            with self._sharing.lend() as lent:
                arguments, futures = pickle_call(fn, args, kwargs)
        if futures and self._no_futures:
            raise ValueError("an argument is a future, and disable_dependencies=True: pass its result()")
        if self._views.log_obj_size:
            log.warning("a call of %s sends %d bytes", function_name(fn), len(function.data) + arguments.size)
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._numbered += 1
            self._interrupted = False
            number = self._numbered
            name = getattr(fn, "__qualname__", None) or function_name(fn)
            future: PoolFuture[R] = PoolFuture(TaskKey(f"t{number}"), self, name)
            task: PoolTask
            pool = None
            if not self._here:
                pool = self._pool or self._start()
                future.number = number
                task = self._open[number] = future
        if lent is not None:
            lent.until_done(future)
        if self._recorder is not None:
            self._recorder.add(future, fn, args, kwargs, futures)
        if pool is None:
            threads = self._says_threads or says_threads(resource_dict)
            self._run_here(future, fn, arguments, futures, machine.setup(resources, None, os.environ, False, threads))
            return future
        if need is not self._need or not self._kept:
            task.need = need
        if resources.run_time_max_s is not None:
            task.walltime_s = resources.run_time_max_s
        if resources.retry is not None:
            task.resources = resources
        if before is not None and futures:
            self._before[number] = before
        if not self._kept:
            task.setup = self._setup(resources, pool.environment, self._says_threads or says_threads(resource_dict))
        if futures:
            if self._kept and len(futures) == 1 and not self._caching.on:
                self._bequeath(futures[0], (task, function, arguments))
            Held(futures, (task, function, arguments, futures), self._later)
        else:
            task.fill(function, arguments.data, arguments.buffers)
            pool.submit(task)
        return future

    def share(self, obj: T) -> Shared[T]:
        """See BaseExecutor: in memory that workers map, without a name; it is gone with the last of these processes."""
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot share after shutdown")
            if self._sharing is None:
                self._sharing = self._new_sharing()
                weakref.finalize(self, self._sharing.close).atexit = False
        return self._sharing.share(obj)

    def _run_here(
        self,
        future: TaskFuture[Any],
        fn: Callable[..., Any],
        arguments: Pickled,
        futures: Sequence[AnyFuture],
        setup: pooled.Setup,
    ) -> None:
        """What needs no pool: debugging, and calls that are only drawn."""
        if self._caller is not None and not self._views.nothing_runs:
            self._caller.run(future, fn, arguments, futures, setup)
        else:
            future.set_result(None)

    @property
    def info(self) -> dict[str, Any]:
        """See BaseExecutor."""
        return {
            **super().info,
            **self._unheeded,
            "max_workers": self._max_workers,
            "max_cores": self._max_cores,
            "cache_directory": self._caching.directory,
            "cache_errors": self._caching.keep_errors,
            "block_allocation": self._kept,
            "init_function": self._init,
            "restart_limit": self._restarts,
            "disable_dependencies": self._no_futures,
            "preload": self._preload,
            "retries": self._defaults.retry,
            **asdict(self._views),
            "debug": self._debug,
            "show_output": self._output.shown if self._output is not None else None,
        }

    @property
    def max_workers(self) -> int | None:
        """Calls at once; may be set while running with `block_allocation`, and says then what `max_cores` leaves of it.

        Raises:
            ValueError: there are not as many GPUs; nothing is changed.
        """
        return self._max_workers

    @max_workers.setter
    def max_workers(self, size: int) -> None:
        if not self._kept:
            raise NotImplementedError("max_workers can only be changed with block_allocation=True")
        if size is None:
            raise TypeError("max_workers must be a whole number of at least 1, not None: pass an int")
        check_count("max_workers", size)
        workers = self._workers(size)
        self._worker_gpus(workers)
        with self._lock:
            self._max_workers = min(workers, size)
            pool = self._pool
        if isinstance(pool, KeptWorkers):
            pool.resize(workers)

    @property
    def _takes_calls(self) -> bool:
        return not self._closed

    def __len__(self) -> int:
        """Calls that wait for a worker; those that wait for futures among their arguments are not among them yet."""
        return self._pool.waiting if self._pool is not None else 0

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See BaseExecutor."""
        if self._forked:
            return
        with self._lock:
            self._closed = True
            pool = self._pool
            tasks = list(self._open.values()) if cancel_futures else []
        if self._sharing is not None:
            self._sharing.close()
        for task in reversed(tasks):  # those that wait for others before these
            task.future.cancel_waiting()
        if pool is not None:
            for task in pool.withdraw() if cancel_futures else ():
                self.end_cancelled(task)
            self._caching.pass_on_cancels()
            with self._none_open:
                if wait and not pool.on_own_thread:
                    self._none_open.wait_for(lambda: not self._open)
                idle = not self._open
            if idle:
                pool.stop()
        if wait and not (pool is not None and pool.on_own_thread):
            self._caching.wait()
        self._show()

    def abort(self) -> None:
        """Cancel everything, running calls too, and take no more."""
        if self._forked:
            return
        with self._lock:
            self._closed = True
            pool, tasks = self._pool, list(self._open.values())
        if self._sharing is not None:
            self._sharing.close()
        if pool is not None:
            pool.stop()
        for task in reversed(tasks):
            if not task.future.cancel_waiting():
                self.end_cancelled(task)
        self._caching.pass_on_cancels()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Shut down; see the constructor's `wait`. After Ctrl-C nothing is waited for: everything is ended.

        That holds for what comes of it, too: `sys.exit` in an `except KeyboardInterrupt`.
        """
        if came_of_interrupt(exc):
            self.abort()
            return None
        return super().__exit__(kind, exc, trace)

    def _show(self) -> None:
        """Draw and export what was asked for, once."""
        with self._lock:
            recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self._views.show(recorder.graph())

    def leave(self, timeout_s: float) -> None:
        """See BaseExecutor. After Ctrl-C everything is ended, though the script has caught it."""
        if self._interrupted or getattr(sys, "last_type", None) is KeyboardInterrupt:
            self.abort()
        else:
            self.shutdown(wait=True)

    # ---- what a call needs ----

    def _needs(self, given: Mapping[str, Any] | Resources) -> tuple[Need, Resources]:
        if self._kept and given:
            raise ValueError(
                f"resource_dict={given!r} of a call: with block_allocation=True all calls run with the executor's "
                "resources: give it to the executor, or leave block_allocation out"
            )
        resources = _read(given, self._defaults)
        self._launch_of(resources)  # said now if there is no MPI
        self._refuse_ranks_here(resources)
        need = self._takes(resources)
        self._check(need, resources)
        return need, resources

    def _launch_of(self, resources: Resources) -> mpi.Launch | None:
        """How the ranks of a call are started; None: it is no MPI function."""
        return mpi.launch(resources)

    def _takes(self, resources: Resources) -> Need:
        cores = resources.cores * resources.threads_per_core
        if resources.openmpi_oversubscribe and self._max_cores is None:
            cores = min(cores, self._all_cores())
        return Need(cores, resources.cores * resources.gpus_per_core)

    def _check(self, need: Need, resources: Resources) -> None:
        """Refuse what could never start, or only by having ranks wait for each other's cores; tell what is in vain."""
        self._tell_in_vain(resources)
        cores = self._all_cores()
        if self._max_cores is None and resources.cores > cores and not resources.openmpi_oversubscribe:
            raise TooLarge(
                f"cores={resources.cores}, and {self._where} has {cores}: ask for fewer, or say "
                "openmpi_oversubscribe=True to have ranks share cores"
            )
        if not self._kept:
            self._ledger.check(need)

    def _tell_in_vain(self, resources: Resources) -> None:
        """Each key once: a script that also runs on clusters says what it needs there in every call."""
        for name, value in asked_of_scheduler(resources).items():
            if name not in self._told:
                self._told.add(name)
                log.warning("%s=%r has no effect: %s starts processes, and no jobs", name, value, type(self).__name__)
        for name, value in asked_of_process(resources).items() if self._caller is not None else ():
            if name not in self._told:
                self._told.add(name)
                log.warning("%s=%r has no effect: debug=True runs calls in this process", name, value)

    def _refuse_ranks_here(self, resources: Resources) -> None:
        if self._debug and resources.cores > 1 and not self._views.nothing_runs:
            raise ValueError(
                f"cores={resources.cores} with debug=True: calls run in this process, which is a single MPI rank; "
                "leave out debug to run all ranks, or cores to debug the function as the only rank"
            )

    def _cores(self) -> int | None:
        if self._max_cores is not None or self._max_workers is not None:
            return self._max_cores
        return self._all_cores()

    # ---- what there is: of this machine, and other for executors of many ----

    def _all_cores(self) -> int:
        return machine.cores()

    def _find_gpus(self) -> tuple[list[str], GpuVariables]:
        return machine.gpus()

    def _new_ledger(self) -> Ledger[PoolTask]:
        return Ledger(self._cores(), self._gpus, self._max_workers)

    def _new_sharing(self) -> Sharing:
        return Sharing()

    def _launcher(self, preload: Sequence[str]) -> Launcher | None:
        """What starts workers; None: a zygote on this machine."""
        return None

    def _workers(self, most: int | None) -> int:
        each = self._need.cores
        if most is not None and self._max_cores is None:
            return most
        cores = self._max_cores or self._all_cores()
        size = min(cores // each, most or cores)
        if size < 1:
            raise ValueError(f"a worker takes {each} cores, and there are {cores}: none could start")
        return size

    # ---- running ----

    def _worker_gpus(self, workers: int) -> Sequence[tuple[str, ...]]:
        """The GPUs of each kept worker."""
        each = self._need.gpus
        if each * workers > len(self._gpus):
            raise ValueError(
                f"{workers} workers with gpus_per_core={self._defaults.gpus_per_core} take {each * workers} GPUs, and "
                f"{len(self._gpus)} are known here: set max_workers; CUDA_VISIBLE_DEVICES names those to use"
            )
        return [tuple(self._gpus[at : at + each]) for at in range(0, len(self._gpus) - each + 1, each)] if each else []

    def _start(self) -> FreshWorkers | KeptWorkers:
        pool: FreshWorkers | KeptWorkers
        # cached calls are compared where they run, see `checked`: not to be imported by each of their processes
        preload = (*self._preload, *(("remoteexec_server.contents.checked",) if self._caching.on else ()))
        if self._kept:
            size = self._workers(self._max_workers)
            setup = self._setup(self._defaults, os.environ, self._says_threads)
            self._error_log = setup["error_log"]
            if self._init is not None:
                setup["init"] = payload.dumps(self._init, in_band=True, by_value=False).data
            places = Places(size, self._restarts, self._worker_gpus(size), self._gpu_variables)
            pool = KeptWorkers(places, setup, preload, self._output, self._launcher(preload))
        else:
            launcher = self._launcher(preload)
            pool = FreshWorkers(self._ledger, preload, self._gpu_variables, self._output, launcher)
        self._pool = pool
        pool.on_failure = weakref.WeakMethod(self._pool_failed)
        weakref.finalize(self, pool.abandon).atexit = False  # nobody can submit or wait any more
        return pool

    def _pool_failed(self, reason: str) -> None:
        """The pool thread has ended by a fault of ours: nobody will tell how these end."""
        with self._lock:
            begun = [task for task in self._open.values() if task.future.running()]
        for task in begun:
            task.owner.ended(task, Broken(reason))

    def _setup(self, resources: Resources, before: Mapping[str, str], says_threads: bool) -> pooled.Setup:
        setup = machine.setup(
            resources, self._launch_of(resources), before, follow=not self._kept, threads=says_threads
        )
        if self._output is not None:
            setup["mark"] = self._output.secret
        return setup

    # ---- further attempts ----

    def _prepare(self, task: PoolTask, resources: Resources) -> None:
        """See PooledExecutor: more time, and for a process of its own more memory, if there is as much."""
        if not self._kept and task.setup is not None and resources != task.resources:
            resources = self._with_room(task, resources)
            task.need = self._takes(resources)
            task.setup = {**task.setup, "memory_bytes": machine.memory_bytes(resources)}
        task.resources, task.walltime_s = resources, resources.run_time_max_s

    def _with_room(self, task: PoolTask, resources: Resources) -> Resources:
        """The same with no more memory than there is; if that is not enough to know, with what the task had."""
        try:
            self._ledger.check(self._takes(resources))
        except TooLarge:
            assert task.resources is not None
            return replace(resources, memory_max_gb=task.resources.memory_max_gb)
        return resources

    # ---- tasks that tasks submit: see engine.growing.Host ----

    def asked(self, pool: Any, worker: Any, task: PoolTask, ask: pooled.Ask, buffers: Sequence[Any]) -> None:
        """See pool.tasks.Owner."""
        if ask[0] == pooled.ALTERED:
            task.future.altered = ask[2]
            return
        if self._growth is None:
            self._growth = Growth(self, self._functions.of_bytes)
        self._growth.asked(pool, worker, task, ask, buffers)

    def adopt(self, make: Callable[[int], ChildTask]) -> ChildTask:
        """See engine.growing.Host; after a shutdown too, as long as there are tasks that can grow."""
        with self._lock:
            self._numbered += 1
            task = make(self._numbered)
            self._open[self._numbered] = task
        return task

    def equip(self, task: ChildTask, given: Mapping[str, Any] | None) -> None:
        """See engine.growing.Host."""
        need, resources = (self._need, self._defaults) if given is None else self._needs(given)
        task.need, task.walltime_s = need, resources.run_time_max_s
        task.resources = resources if resources.retry is not None else None
        if not self._kept and self._pool is not None:
            task.setup = self._setup(resources, self._pool.environment, self._says_threads or says_threads(given))


def _caller_as_worker(init: Callable[..., Mapping[str, Any] | None] | None, kept: bool) -> CallerAsWorker:
    from ..engine.in_caller import CallerAsWorker  # late: for debugging only

    return CallerAsWorker(init, kept)


def _read(given: Mapping[str, Any] | Resources | None, defaults: Resources | None) -> Resources:
    """What is asked for; a key that nothing here can use is an error, since no submission template can either."""
    if given is not None and not isinstance(given, Resources):
        check_names(given)
    resources = read_resources(given, defaults)
    if resources.warn_time_s is not None:
        raise ResourceError(
            f"warn_time={resources.warn_time_s}: only tasks of an executor of a cluster are warned, where `checkpoint` "
            "saves their state; leave it out"
        )
    return resources
