"""Whether a task that died is tried again, and with what. Pure: whoever learns of a death asks here.

The service, the runner's supervisor and runners that wait for an input all come to the same answer, from what the store
says: the resources of the attempt that died, its number, and why.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace

from .wire.records import Loss
from .wire.resources import Resources

__all__ = ["first_name", "job_name", "next_attempt", "told"]

_GB = 1 << 30


def next_attempt(resources: Resources, loss: Loss, attempt: int) -> Resources | None:
    """What the next attempt of a task asks for; None if there is none.

    Args:
        resources: of the attempt that died, scaled already if it was not the first.
        loss: why it died.
        attempt: its number, from 1.
    """
    retry = resources.retry
    if retry is None or attempt > retry.times or loss.reason not in retry.on:
        return None
    usage = loss.evidence.usage
    if _was_memory(loss) and "memory" in retry.scale:
        asked = resources.memory_max_gb
        if asked is None and usage.memory_limit_bytes is not None:
            asked = usage.memory_limit_bytes / _GB
        if asked is not None:
            return replace(resources, memory_max_gb=asked * retry.scale["memory"])
    if loss.reason == "timeout" and "time" in retry.scale:
        limit = resources.run_time_max_s if resources.run_time_max_s is not None else usage.time_limit_s
        if limit is not None:
            return replace(resources, run_time_max_s=limit * retry.scale["time"])
    return resources


def told(loss: Loss, deaths: Sequence[Loss]) -> Loss:
    """The loss that ends a task, with all attempts.

    Args:
        deaths: why earlier attempts died, the first first.
    """
    if not deaths or loss.attempts:
        return loss
    reasons = (*(death.reason for death in deaths), loss.reason)
    return replace(loss, message=f"{len(reasons)} attempts: {', '.join(reasons)}; {loss.message}", attempts=reasons)


def job_name(name: str, attempt: int, position: int) -> str:
    """What the job of a further attempt is called.

    Args:
        name: of the job of the attempt before.
        attempt: the number of the new one, from 2.
        position: the least in the burst of the tasks that it runs.
    """
    return f"{first_name(name)}-r{attempt}-{position}"


def first_name(name: str) -> str:
    """What the job of the first attempt was called."""
    return re.sub(r"-r\d+(w\d+)?-\d+(-[ab])*$", "", name)


def _was_memory(loss: Loss) -> bool:
    """Some clusters only kill, and do not say why."""
    return loss.reason == "out_of_memory" or (loss.reason == "killed" and loss.signal == signal.SIGKILL)
