"""Calls run by the process that submits them, at `submit`: for a debugger.

Arguments are pickled and loaded as on the way to a worker, so that what a worker would not get is noticed, and what the
function changes in them is not seen by the caller. The function itself is the caller's own: breakpoints in it work.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from remoteexec_server import failure, growing
from remoteexec_server.wire import payload, pooled
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.worker import filled, initialised

from ..futures import Ran, TaskFuture
from . import graph

_FIRST = 0
"""Number of the only worker there is."""


class CallerAsWorker:
    """Runs calls.

    Args:
        init: see `init_function` of SingleNodeExecutor.
        kept: workers would be kept, and so have a number.
    """

    def __init__(self, init: Callable[..., Mapping[str, Any] | None] | None, kept: bool) -> None:
        self._number = _FIRST if kept else None
        self._defaults = initialised(init, self._number) if init is not None else {}

    def run(
        self,
        future: TaskFuture[Any],
        fn: Callable[..., Any],
        arguments: Pickled,
        inputs: Sequence[concurrent.futures.Future[Any]],
        setup: pooled.Setup,
    ) -> None:
        """Wait for the inputs, call, and complete the future.

        Args:
            setup: what a worker for it would be made to be; its directory, environment and `error_log` count.

        Raises:
            KeyboardInterrupt: the user's own Ctrl-C; the future has it, too.
        """
        concurrent.futures.wait(inputs, return_when=concurrent.futures.FIRST_EXCEPTION)
        failed = graph.failure_of(inputs)
        future.show_running()
        if failed is not None:
            future.set_exception(failed)
            return
        started = time.time()
        args: Any = ()
        kwargs: Any = {}
        try:
            values = {str(position): each.result() for position, each in enumerate(inputs)}
            buffers = [bytearray(view) for view in arguments.buffers]
            args, kwargs = payload.loads(arguments.data, buffers, values.__getitem__)
            kwargs = self._filled(fn, args, kwargs)
            with _directory(setup.get("cwd")), _environment(setup["environment"]):
                result = _call(fn, args, kwargs, future.owner)
        except BaseException as exc:  # SystemExit is the task's, as in a worker
            failure.log(setup.get("error_log"), fn, args, kwargs, exc)
            future.ran = self._ran(started)
            future.set_exception(exc)
            if isinstance(exc, KeyboardInterrupt):
                raise
        else:
            future.ran = self._ran(started)
            future.set_result(result)

    def _filled(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments, with what a worker would add."""
        return {**filled(fn, self._defaults, self._number, len(args)), **kwargs}

    def _ran(self, started: float) -> Ran:
        return Ran(pid=os.getpid(), worker=self._number, started=started, ended=time.time())


def _call(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], executor: Any) -> Any:
    """Call it as a task of this executor; the result of a future that it returns."""
    token = growing.in_caller.set(executor)
    try:
        result = fn(*args, **kwargs)
    finally:
        growing.in_caller.reset(token)
    return result.result() if isinstance(result, concurrent.futures.Future) else result


@contextmanager
def _directory(cwd: str | None) -> Iterator[None]:
    if cwd is None:
        yield
        return
    before = os.getcwd()
    os.makedirs(cwd, exist_ok=True)
    os.chdir(cwd)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _environment(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """These variables are so meanwhile; None: there is none."""
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
