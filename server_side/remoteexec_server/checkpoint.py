"""States that a task saves before its job ends, for its next attempt.

    scheduler ─ SIGUSR1 before the time limit, SIGTERM ─▶ supervisor ─▶ the task's main thread: save() ─▶ store
    next attempt: checkpoint(save) returns the state

The state lies in `checkpoints/<task>.h5`, sealed like an outcome, and goes with the task's outcome.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store.session import Session
    from .wire.names import TaskKey

__all__ = ["begin", "checkpoint", "forget"]


@dataclass
class _Task:
    """The task of this process.

    Attributes:
        attempt: its number, from 1.
        state: of an earlier attempt, once it was read.
        save: what the task has registered.
        saving: the state is being saved: a further signal is for the same.
    """

    session: Session
    key: TaskKey
    attempt: int
    is_read: bool = False
    state: Any = None
    save: Callable[[], Any] | None = None
    saving: bool = False


_task: _Task | None = None


def checkpoint(save: Callable[[], Any]) -> Any:
    """Within a task: register what saves its state, and get the state that an earlier attempt has saved last.

    `save` is called in the main thread, between two steps of Python, when the job's time limit is near (`warn_time` in
    `resource_dict`), and when the scheduler ends the job otherwise; then the task goes on until it is ended. What it
    returns is pickled and kept for the next attempt: see `Retry`. An error in it is printed to the job's log, and
    changes nothing. A later call replaces `save`.

    Returns:
        What `save` of an earlier attempt returned last, or None. Where no attempt can follow (outside a task, in
        `SingleNodeExecutor`, on MPI ranks) it is None, and `save` is never called.
    """
    if _task is None:
        return None
    if not _task.is_read:
        _task.state, _task.is_read = _read(_task), True
    if _task.save is None:
        with contextlib.suppress(ValueError):  # not the main thread: nothing is saved, and the rest works
            signal.signal(signal.SIGUSR1, _on_signal)
            signal.signal(signal.SIGTERM, _on_signal)
    _task.save = save
    return _task.state


def begin(session: Session, key: TaskKey, attempt: int) -> None:
    """This process runs that task from now on."""
    global _task
    _task = _Task(session, key, attempt)


def forget(session: Session, key: TaskKey) -> None:
    """The task has an outcome: no attempt will ask for its state."""
    global _task
    _task = None
    with contextlib.suppress(OSError):
        session.checkpoint(key).unlink(missing_ok=True)


def _on_signal(number: int, frame: FrameType | None) -> None:
    task = _task
    if task is None or task.save is None or task.saving:
        return
    task.saving = True
    try:
        _write(task, task.save())
        print(f"remoteexec: the state was saved on {signal.Signals(number).name}", file=sys.stderr, flush=True)
    except BaseException:  # the user's code, at a moment that it has not chosen: the task goes on all the same
        with contextlib.suppress(Exception):
            print("remoteexec: the state could not be saved", file=sys.stderr)
            traceback.print_exc()
    finally:
        task.saving = False


def _write(task: _Task, state: Any) -> None:
    from .store import hdf5
    from .store.session import publish
    from .wire import payload

    outcome = hdf5.Outcome(True, payload.dumps(state), {"attempt": task.attempt})
    path = task.session.checkpoint(task.key)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    publish(path, hdf5.write_outcome(task.key, outcome, task.session.key))


def _read(task: _Task) -> Any:
    """The state, or None: one that cannot be read is as good as none, and is said in the log."""
    from .store import hdf5
    from .wire import payload

    try:
        outcome = hdf5.read_outcome(task.session.checkpoint(task.key).read_bytes(), task.key, task.session.key)
        if outcome.value is None or outcome.facts["attempt"] >= task.attempt:
            return None
        return payload.loads(outcome.value.data, outcome.value.buffers)
    except FileNotFoundError:
        return None
    except Exception:  # whatever loading the user's state raises
        print("remoteexec: the saved state cannot be read; the task starts anew", file=sys.stderr)
        traceback.print_exc()
        return None
