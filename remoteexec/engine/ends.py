"""How a task of a pool has ended, as its future says it."""

from __future__ import annotations

import os
import socket
from typing import Any

from remoteexec_server import failure, retrying
from remoteexec_server.wire import pooled
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.records import Loss

from .. import errors
from ..futures import TaskFuture
from ..pool.tasks import Answered, Broken, Died, End, how_ended
from . import outcomes, tries

_TAIL = 20
"""Lines of what a task has printed that are told with its death."""
_HOST = socket.gethostname()


def outcome(future: TaskFuture[Any], end: End) -> tuple[Any, BaseException | None]:
    """Result and exception; exactly one of them counts, the exception if it is not None."""
    key = future.key
    match end:
        case Answered():
            _, ok, rest, _, started, ended, max_rss_bytes, pid = end.result
            host = end.node or _HOST
            future.ran = (host, pid, end.worker, None, started, ended, max_rss_bytes)  # a Ran takes longer to make
            data, buffers = pooled.joined(rest, end.buffers)
            if ok:
                return outcomes.result(data, buffers, key)
            return None, outcomes.exception(*failure.unpacked(data), key, here=True)
        case Died():
            return None, death(key, end, future.output)
        case Broken():
            return None, broken(key, end)


def broken(key: TaskKey, end: Broken) -> errors.RemoteExecError:
    """What is said of a task that could not be run."""
    after = f" again, after {', '.join(death.reason for death in end.deaths)}" if end.deaths else ""
    text = f"task {key} cannot run{after}: {end.reason}"
    return errors.RunnerMissing(text) if end.none_ran else errors.TaskKilled(text, task=key)


def death(key: TaskKey, died: Died, printed: object = None) -> errors.TaskLost:
    """What is said of a task whose process has ended, with the end of what it has printed."""
    log_tail = "\n".join(str(printed).splitlines()[-_TAIL:]) if printed is not None else ""
    if died.timed_out:
        text = f"task {key} took longer than its run_time_max and was ended"
        return errors.TaskTimeout(_told(text, died), task=key)
    if died.node is not None:
        why = died.why or (
            "that cannot be reached any more, or its agent has ended; submit the call again to run it on another node"
        )
        text = f"task {key} is lost with node {died.node}, on which it ran: {why}"
        return errors.TaskNodeFailure(_told(text, died), task=key, node=died.node)
    code = os.waitstatus_to_exitcode(died.status)
    how = how_ended(died.status) if died.why is None else f"was ended: {died.why}"
    return errors.TaskKilled(
        _told(f"the process of task {key} (pid {died.pid}) {how}", died),
        task=key,
        signal=-code if code < 0 else None,
        exit_code=code if code >= 0 else None,
        log_tail=log_tail,
    )


def _told(message: str, died: Died) -> str:
    """With all attempts, if it is not the first that has ended."""
    return retrying.told(Loss(tries.loss_of(died).reason, message), died.deaths).message
