"""Whether a task of a pool is tried again: how an attempt has ended, in the words of `Retry`.

Pure: `remoteexec_server.retrying` decides, as for jobs. A pool knows less than a scheduler: of a process that SIGKILL
has ended nobody says whether memory was short, and what a node can be lost to is all one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from remoteexec_server import failure, retrying
from remoteexec_server.wire import pooled
from remoteexec_server.wire.records import Loss
from remoteexec_server.wire.resources import Resources

from ..pool.tasks import Answered, Broken, Died, End, PoolTask, how_ended


class Next(NamedTuple):
    """Another attempt.

    Attributes:
        resources: what it asks for.
        loss: why the one before has ended.
    """

    resources: Resources
    loss: Loss


def following(task: PoolTask, end: End) -> Next | None:
    """The attempt that follows this end of a task, if there is one. What was cancelled or could not run has none."""
    if task.resources is None or isinstance(end, Broken) or task.future.cancelled():
        return None
    for loss in _losses(end, task.resources):
        resources = retrying.next_attempt(task.resources, loss, len(task.deaths) + 1)
        if resources is not None:
            return Next(resources, loss)
    return None


def with_deaths(task: PoolTask, end: End) -> End:
    """The last end of a task, which says how earlier attempts have ended."""
    if not task.deaths or isinstance(end, Answered):
        return end
    return end._replace(deaths=(*task.deaths, *end.deaths))


def loss_of(died: Died) -> Loss:
    """Why a process has ended, as `Retry` names it."""
    if died.timed_out:
        return Loss("timeout", "it took longer than its run_time_max")
    if died.node is not None:
        return Loss("node_failure", f"node {died.node} was lost", node=died.node)
    code = os.waitstatus_to_exitcode(died.status)
    how = how_ended(died.status) if died.why is None else f"was ended: {died.why}"
    return Loss("killed", f"its process {how}", signal=-code if code < 0 else None)


def _losses(end: Died | Answered, resources: Resources) -> Iterator[Loss]:
    """What an end may count as, the most particular first."""
    if isinstance(end, Died):
        yield loss_of(end)
    elif end.result[1] is False:
        facts, _ = failure.unpacked(pooled.joined(end.result[2], end.buffers)[0])
        if facts["kind"] != "raised":
            return
        text = f"the function raised {facts['type']}: {facts['message']}"
        if resources.memory_max_gb is not None and "MemoryError" in facts["bases"]:
            yield Loss("out_of_memory", text)
        yield Loss("error", text)
