"""A task on its way through a pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

from remoteexec_server.wire import pooled
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.wire.records import Loss
from remoteexec_server.wire.resources import Resources

from ..futures import Ran, TaskFuture, TaskInfo
from .ledger import Need

R = TypeVar("R")
_ONE_CORE = Need()


class Function:
    """A pickled function; equal ones are one object. `number` is its name on the wire."""

    __slots__ = ("__weakref__", "buffers", "data", "number")

    def __init__(self, number: int, data: bytes, buffers: tuple[memoryview, ...]) -> None:
        self.number, self.data, self.buffers = number, data, buffers


_NOTHING = Function(-1, b"", ())


class Owner(Protocol):
    """Who submits tasks to a pool."""

    def ended(self, task: PoolTask, end: End) -> None:
        """A task has ended; called on any thread."""

    def forget(self, key: TaskKey) -> None:
        """A future was cancelled whose task had not been begun."""

    def cancel_running(self, key: TaskKey) -> bool:
        """A future was cancelled whose task had been begun: end that. True."""

    def interrupted(self) -> None:
        """Ctrl-C came while somebody waited for a task's result."""

    def runs(self, key: TaskKey) -> Ran:
        """Where a task runs, as far as that is known."""

    def asked(self, pool: Any, worker: Any, task: PoolTask, ask: pooled.Ask, buffers: Sequence[Any]) -> None:
        """A running task asks for something; called on the pool thread."""


class PoolTask:
    """One call that is ready to run, and who is told how it ends.

    Attributes:
        number: its token.
        function: what it calls.
        buffers: out-of-band bytes of arguments and inputs, as the call has them.
        future: the user's.
        owner: told how it ended.
        need: what it takes while it runs.
        walltime_s: seconds after which it is ended; None: never.
        resources: what this attempt asks for, of a task that is tried again if it dies; None: it is not.
        deaths: why earlier attempts have ended.
        setup: of a fresh process for it.
        depth: how many tasks stand between it and the user.
        children: how many of those that it has submitted have not ended.
        watches: it has asked for the end of one of those, and so may be waiting.
        heir: a call that takes its result and waits for nothing else, and so may follow it on its worker.
        follower: the heir, while the same worker has both. This and what follows is guarded by the pool's lock.
        held: it was given to a worker as a follower, and is not yet a call like others: it has no input.
        inherited: it became that, or will, by what the task before it has returned; so nobody need submit it.
        stray: there was nothing to inherit; the worker has it still, and will not run it.
    """

    number: int
    function: Function
    future: PoolFuture[Any]
    owner: Owner
    size: int
    # most tasks do with these
    buffers: Sequence[memoryview] = ()
    need = _ONE_CORE
    walltime_s: float | None = None
    resources: Resources | None = None
    deaths: tuple[Loss, ...] = ()
    setup: pooled.Setup | None = None
    depth = 0
    children = 0
    watches = False
    heir: Heir | None = None
    follower: PoolTask | None = None
    held = inherited = stray = False
    _data: bytes | None = None
    _inputs: tuple[pooled.Input, ...] | None = None
    _begun: bool | None = None
    _kept = False

    def __init__(self, number: int, future: PoolFuture[Any], owner: Owner) -> None:
        self.number, self.future, self.owner = number, future, owner

    def fill(
        self,
        function: Function,
        data: bytes,
        buffers: Sequence[memoryview] = (),
        inputs: Sequence[tuple[bytes, Sequence[memoryview]]] | None = None,
    ) -> None:
        """What is called with what; once, before it is submitted.

        Args:
            inputs: results of other tasks that the arguments refer to by position: pickled, with their buffers.
        """
        rest, buffers = pooled.split(data, buffers)
        size = len(data) if rest is not None else 0
        if inputs is not None:
            given: list[pooled.Input] = []
            for value, its in inputs:
                value_rest, its = pooled.split(value, its)
                given.append((value_rest, len(its)))
                size += len(value) if value_rest is not None else 0
                if its:
                    buffers = [*buffers, *its]
            self._inputs = tuple(given)
        self.function, self._data, self.size = function, rest, size
        if buffers:
            self.buffers = buffers
            self.size += sum([buffer.nbytes for buffer in buffers])

    def bequeath(self) -> PoolTask | None:
        """The heir, to be given to the worker that has this task; None if there is none, or it is not that simple."""
        if self.heir is None or self.stray or self.walltime_s is not None:
            return None
        task, function, arguments = self.heir
        if task.walltime_s is not None or arguments.buffers or task.future.done() or self.future.done():
            return None
        self.heir, self.follower = None, task
        task.fill(function, arguments.data)
        task._inputs = ((pooled.TOKEN.pack(self.number), pooled.INHERITED),)
        task.held = task.inherited = True
        return task

    def pass_on(self, result: bytes) -> PoolTask | None:
        """The heir, as a call like others, now that there is this result; None as in `bequeath`."""
        task = self.bequeath()
        if task is not None:
            self.follower = None
            task.inherit(result)
        return task

    def inherit(self, result: bytes) -> None:
        """The task before it has this result: from now on it is a call like others."""
        self.held = False
        self._inputs = ((result, 0),)
        self.size += len(result)

    def on_wire(self) -> tuple[pooled.Call, Sequence[memoryview]]:
        """As it goes over the wire, with its buffers: as many as the call says, though it is given up meanwhile."""
        buffers = self.buffers
        return (self.number, self.function.number, self._data, len(buffers), self._inputs), buffers

    def begin(self) -> bool:
        """Whether it may run: it was not cancelled, and cannot be from now on. May be asked again."""
        if self._begun is None:
            self._begun = self.future.show_running()
        return self._begun

    def end(self, end: End) -> None:
        """Tell how it ended; once."""
        self.owner.ended(self, end)

    def keep_buffers(self) -> None:
        """Copy what the caller may change as soon as `submit` has returned; once."""
        if self.buffers and not self._kept:
            self._kept = True
            self.buffers = [view if view.readonly else memoryview(bytes(view)) for view in self.buffers]

    def give_up(self) -> None:
        """It was cancelled and may stand in a line still: what it was to be called with is not kept for that."""
        self.let_go()

    def let_go(self) -> None:
        """Hold nothing of what was called any more; it is over, or will never be."""
        self.function, self._data, self.buffers, self._inputs = _NOTHING, b"", (), None
        self._begun = False  # if it stands in a line still
        if self.heir is not None or self.follower is not None:
            self.heir = self.follower = None


Heir = tuple[PoolTask, Function, Pickled]
"""A call, what it calls, and its arguments, which refer to one result."""


class PoolFuture(TaskFuture[R], PoolTask):
    """The future of a task in a pool: a running task can be cancelled, too.

    It can be its own task: of 100,000 pending calls, each object less makes `submit` and every collection of garbage
    faster.
    """

    owner: Owner

    def __init__(self, key: TaskKey, owner: Owner, function: str = "") -> None:
        super().__init__(key, owner, _nobody, function)

    @property
    def future(self) -> PoolFuture[R]:  # type: ignore[override]  # where PoolTask has another
        """Itself, as the task it is."""
        return self

    @property
    def task(self) -> TaskInfo:
        """See TaskFuture.task; of a task that runs the pool is asked."""
        info = super().task
        if info.state != "running" or info.pid is not None:
            return info
        ran = self.owner.runs(self.key)
        return replace(info, host=ran.host, pid=ran.pid, worker=ran.worker, started=ran.started)

    def result(self, timeout: float | None = None) -> R:
        """See concurrent.futures.Future.result."""
        try:
            return super().result(timeout)
        except KeyboardInterrupt:
            if not self.done():  # else the task has raised it
                self.owner.interrupted()
            raise

    def cancel(self) -> bool:
        """Cancel the task: one that waits does not start, one that runs is ended with its process."""
        return self.cancel_waiting() or (self.end_cancelled() and self.owner.cancel_running(self.key))

    def cancel_waiting(self) -> bool:
        """Cancel the task unless it has been begun."""
        before = self.cancelled()
        if not super().cancel():
            return False
        if not before:
            self.owner.forget(self.key)
        return True


def _nobody(key: TaskKey) -> None:
    """The owner is told in another way: a bound method for each of 100,000 futures is memory."""


GpuVariables = Mapping[str, "Mapping[str, str] | None"]
"""By the name of a variable in the environment, what stands in it for each GPU; None: it must not be there."""


def visible(gpus: Sequence[str], variables: GpuVariables) -> Mapping[str, str | None]:
    """The environment that shows these GPUs and no others; nothing changes for who asked for none."""
    if not gpus:
        return {}
    return {name: None if own is None else ",".join([own[gpu] for gpu in gpus]) for name, own in variables.items()}


def with_environment(setup: pooled.Setup | None, more: Mapping[str, str | None]) -> pooled.Setup:
    """The same worker with more variables."""
    found: pooled.Setup = {**setup} if setup is not None else {}
    if more:
        found["environment"] = {**found.get("environment", {}), **more}
    return found


def placed(setup: pooled.Setup | None, place: Sequence[str], variables: GpuVariables) -> pooled.Setup:
    """The same worker at its place: with its GPUs; and if it has MPI ranks on several nodes, how many on which."""
    parts = getattr(place, "parts", ())
    step = setup.get("step") if setup is not None else None
    if setup is None or step is None or not parts:
        return with_environment(setup, visible(place, variables))
    ways, always = step
    if len(parts) == 1 and not always:
        return with_environment({**setup, "step": None}, visible(place, variables))
    return {**setup, "step": (ways, _shares(setup["launch"][0], parts, variables))}


def _shares(ranks: int, parts: Sequence[Any], variables: GpuVariables) -> list[Any]:
    """See `remoteexec_server.mpi_launch.Share`. Ranks that share cores are more than the parts that were counted."""
    counted = sum([part.ranks for part in parts])
    found, begun = [], 0
    for part in parts:
        its = [ranks // counted + (at < ranks % counted) for at in range(begun, begun + part.ranks)]
        begun += part.ranks
        each = len(part.gpus) // part.ranks
        gpus = [part.gpus[at * each : (at + 1) * each] for at, count in enumerate(its) for _ in range(count)]
        shown = [dict(visible(its_gpus, variables)) for its_gpus in gpus]
        found.append((part.name, part.alias, sum(its), shown, (part.cores, part.of)))
    return found


def nodes_beside(place: Sequence[str]) -> set[int]:
    """Nodes of a place besides that of its worker."""
    return {part.node for part in getattr(place, "parts", ())[1:]}


def how_ended(status: int) -> str:
    """The end of a process, as `os.waitpid` says it, in words."""
    return how_exited(os.waitstatus_to_exitcode(status))


def how_exited(code: int) -> str:
    """The same of its exit code, or of the signal as a negative number."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended itself with exit code {code}"


class Answered(NamedTuple):
    """The worker has answered; `node` is None on this machine."""

    result: pooled.Result
    buffers: Sequence[Any]
    worker: int | None = None
    node: str | None = None


class Died(NamedTuple):
    """The worker ended while it had the task.

    Attributes:
        status: as `os.waitpid` says.
        timed_out: we ended it, since it took longer than it had asked for.
        node: what was lost with it; then nothing else is known.
        why: what has ended it, or why the node was lost, if that is known otherwise than by `status`.
        deaths: why earlier attempts have ended; told when no other follows.
    """

    pid: int
    status: int
    timed_out: bool = False
    node: str | None = None
    why: str | None = None
    deaths: tuple[Loss, ...] = ()


class Broken(NamedTuple):
    """The task cannot be run: the pool has nothing left to run it.

    Attributes:
        deaths: see Died.
        none_ran: nor had it ever anything: what was to start that did not.
    """

    reason: str
    deaths: tuple[Loss, ...] = ()
    none_ran: bool = False


End = Answered | Died | Broken
