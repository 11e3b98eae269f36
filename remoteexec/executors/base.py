"""What all executors share: the contract, and what happens when the interpreter exits."""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, TracebackType
from typing import Any, NoReturn, Protocol, TypeVar

from remoteexec_server.wire.resources import Resources

from .. import selections
from ..engine.sharing import Shared
from ..futures import AwaitableFuture, TaskFuture
from ..resources import resource_names

R = TypeVar("R")
T = TypeVar("T")
Self = TypeVar("Self", bound="BaseExecutor")


class FutureQueue:
    """How many calls wait, by the names that a `queue.Queue` has: what there is of executorlib's `future_queue`.

    Calls are in no queue that could be taken from or added to: `submit` adds, and cancelling a future takes away.

    Args:
        executor: whose calls.
    """

    def __init__(self, executor: BaseExecutor) -> None:
        self._executor = executor

    def qsize(self) -> int:
        """`len` of the executor."""
        return len(self._executor)

    def empty(self) -> bool:
        """Whether none waits."""
        return not len(self._executor)

    def full(self) -> bool:
        """False: there is no limit."""
        return False

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> NoReturn:
        """Refused.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("future_queue only counts calls: submit() adds one, shutdown() ends the executor")

    def get(self, block: bool = True, timeout: float | None = None) -> NoReturn:
        """Refused.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("future_queue only counts calls: cancel() of its future takes one away")

    def put_nowait(self, item: object) -> NoReturn:
        """See `put`."""
        self.put(item)

    def get_nowait(self) -> NoReturn:
        """See `get`."""
        self.get()


_LEAVE_S = 60.0
"""How long an exiting interpreter waits for its last submits to reach the scheduler."""


class BaseExecutor(concurrent.futures.Executor):
    """A `concurrent.futures.Executor` of ours; made by its subclasses.

    Args:
        wait: whether leaving the `with` block waits for all tasks.
    """

    _defaults: Resources

    def __init__(self, wait: bool) -> None:
        self._wait = wait
        self._made_in = os.getpid()

    @property
    def _forked(self) -> bool:
        """Whether this is a fork of the process that made the executor: its tasks are that one's, and end there."""
        return os.getpid() != self._made_in

    @abstractmethod
    def submit(  # type: ignore[override]  # the argument types of fn cannot be kept beside resource_dict
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | Resources | None = None,
        **kwargs: Any,
    ) -> TaskFuture[R]:
        """Run `fn(*args, **kwargs)` as a task.

        Futures of this executor, anywhere in the arguments, stand for their results: the task waits for them where
        it runs. Futures of other executors are waited for here.

        Args:
            resource_dict: what this call asks for; see `read_resources`.

        Raises:
            CallNotPicklable: the function or an argument cannot travel.
            ResourceError: the resources cannot be right; a ValueError.
            RemoteExecError: the cluster cannot be used; from the first call that needs it.
            RuntimeError: after `shutdown`.
        """

    def batched(
        self, list_of_futures: Sequence[concurrent.futures.Future[R]], n: int
    ) -> list[AwaitableFuture[list[R]]]:
        """See remoteexec_server.batches.batched; the futures may be of any executor."""
        return selections.batched(list_of_futures, n)

    def share(self, obj: T) -> Shared[T]:
        """Share an object with many calls: it is pickled once, and is in memory once for all of them on a machine.

        Returns:
            A handle; calls of this executor receive the object where it stands in their arguments, at any depth.
            numpy arrays in it are read-only and lie in the shared memory; all else each call has for itself.

        Raises:
            NotImplementedError: this executor cannot; says what to do instead.
            RuntimeError: after `shutdown`.
            Whatever the object's own pickling raises.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot share objects: pass the object itself to submit, or, if it is large, write "
            "it to a file that the nodes can read, and pass its path"
        )

    @property
    def info(self) -> dict[str, Any]:
        """The executor's settings, by the names they have in its constructor and in `resource_dict`."""
        return {**resource_names(self._defaults), "wait": self._wait}

    @abstractmethod
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: return when every task has ended; else return at once, the tasks go on.
            cancel_futures: cancel what has not started.
        """

    def reach(self) -> None:
        """Get ready, so that what is wrong is said now; the first `submit` does it otherwise."""

    def __enter__(self: Self) -> Self:
        """Get ready; see `reach`."""
        self.reach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Shut down; see the constructor's `wait`. Nothing happens in a fork of the process that made it."""
        if self._forked:
            return None
        self.shutdown(wait=self._wait)
        return None

    @property
    def future_queue(self) -> FutureQueue | None:
        """The calls that wait, to be counted; None after `shutdown`."""
        return FutureQueue(self) if self._takes_calls else None

    @property
    @abstractmethod
    def _takes_calls(self) -> bool:
        """Whether it was not shut down."""

    @abstractmethod
    def __len__(self) -> int:
        """Calls that wait, or have not ended: its subclasses say which."""

    def __reduce__(self) -> NoReturn:
        """Refused.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "an executor cannot travel to its tasks: inside a task, remoteexec.current_executor() is the one it runs in"
        )

    def __bool__(self) -> bool:
        """An executor is true, also while nothing is pending."""
        return True


def refuse_own_parameter(fn: Callable[..., Any]) -> None:
    """Refuse a function that wants `resource_dict` for itself."""
    if isinstance(fn, FunctionType):
        code = fn.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    else:
        import inspect  # late: most functions are plain ones

        try:
            names = tuple(inspect.signature(fn).parameters)
        except Exception:  # a builtin without one; from Python 3.14 on, whatever an annotation raises
            return
    if "resource_dict" in names:
        raise ValueError(f"{fn!r} has a parameter resource_dict, which submit takes for itself: rename the parameter")


def came_of_interrupt(exc: BaseException | None) -> bool:
    """Whether this is Ctrl-C, or was raised while that was handled."""
    while exc is not None and not isinstance(exc, KeyboardInterrupt):
        exc = exc.__context__
    return exc is not None


class Leaving(Protocol):
    """What wants to finish before the interpreter is gone."""

    def leave(self, timeout_s: float) -> None:
        """Finish, in at most `timeout_s` if nobody asked to wait."""


_live: weakref.WeakSet[Leaving] = weakref.WeakSet()
_last: weakref.WeakSet[Leaving] = weakref.WeakSet()


def finish_at_exit(what: Leaving, last: bool = False) -> None:
    """Let it finish when the interpreter exits, if it still lives; `last`: when all others have."""
    (_last if last else _live).add(what)


def _forget_all() -> None:
    """In a fork: what lives is the parent's, and would be waited for in vain here."""
    _live.clear()
    _last.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)


@atexit.register
def _leave() -> None:
    """The interpreter exits: executors nobody shut down finish their tasks, the others at least submit them."""
    for what in [*list(_live), *list(_last)]:
        what.leave(_LEAVE_S)


def leave_first() -> None:
    """Finish before the exit handlers that were registered until now: paramiko's ends all connections."""
    atexit.unregister(_leave)
    atexit.register(_leave)  # last in, first out
