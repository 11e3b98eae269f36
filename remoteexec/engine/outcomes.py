"""How a task ended, as the caller sees it: a result, the user's own exception, or one of ours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remoteexec_server.wire import payload
from remoteexec_server.wire.evidence import Evidence
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.payload import Pickled

from .. import errors

if TYPE_CHECKING:
    from remoteexec_server.wire.messages import Loss


_INSTALL_THERE = "install the module there: `remoteexec install NAME --with PACKAGE`"
_INSTALL_HERE = (
    "that process imports from the directories that were in sys.path here when it was started; a module that was made "
    "by the program itself can be sent by value: cloudpickle.register_pickle_by_value(module)"
)
_FOUND_BY_NAME = "an object of the script that says no more of itself than its name has to be in {}"


class RemoteTraceback(Exception):
    """The traceback of an exception on the cluster, shown as the cause of the exception here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}\n"""'


def load(data: bytes, task: TaskKey, key: bytes) -> tuple[Any, BaseException | None, Mapping[str, Any]]:
    """What an outcome file says: result and exception, of which the exception counts if it is not None, and facts."""
    from remoteexec_server.store import hdf5
    from remoteexec_server.wire.header import HeaderError, ProtocolMismatchError, PythonMismatchError

    try:
        outcome = hdf5.read_outcome(data, task, key)
    except PythonMismatchError as exc:
        return None, errors.PythonMismatch(str(exc)), {}
    except ProtocolMismatchError as exc:
        return None, errors.ProtocolMismatch(str(exc)), {}
    except (HeaderError, OSError, KeyError, ValueError) as exc:
        return None, errors.CorruptOutcome(f"outcome of task {task} was not loaded: {exc}", task=task), {}
    if outcome.ok and outcome.value is not None:
        return *result(outcome.value.data, outcome.value.buffers, task), outcome.facts
    return None, exception(outcome.facts, outcome.value, task), outcome.facts


def result(data: bytes, buffers: Sequence[Any], task: TaskKey) -> tuple[Any, BaseException | None]:
    """A pickled result, or the error that says that it cannot be loaded here."""
    try:
        return payload.loads(data, buffers), None
    except BaseException as exc:  # whatever the user's objects raise
        error = errors.RemoteTaskError(
            f"the result of task {task} cannot be loaded here: {type(exc).__name__}: {exc}",
            task=task,
            type_name=type(exc).__qualname__,
            text=str(exc),
        )
        error.__cause__ = exc
        return None, error


def lost(task: TaskKey, loss: Loss) -> errors.TaskLost | errors.SubmitRejected:
    """The error that says why a task will never have an outcome."""
    if loss.reason == "rejected" and loss.job is None:  # there never was a job to be lost
        return errors.SubmitRejected(loss.message)
    return errors.task_lost(
        loss.reason,
        loss.message,
        task=task,
        job=loss.job,
        node=loss.node,
        exit_code=loss.exit_code,
        signal=loss.signal,
        log_tail=loss.log_tail,
        log_path=loss.log_path,
        evidence=loss.evidence,
    )


def exception(facts: Mapping[str, Any], value: Pickled | None, task: TaskKey, *, here: bool = False) -> BaseException:
    """The exception a task failed with.

    Args:
        facts: see `remoteexec_server.failure`.
        value: the pickled exception, if it could be pickled.
        here: it ran on this machine, in a process of ours.
    """
    exc: BaseException | None = None
    if value is not None:
        try:
            exc = payload.loads(value.data, value.buffers)
        except BaseException:  # its class is not to be had here: the text has to do
            exc = None
    if not isinstance(exc, BaseException):
        exc = _ours(task, facts, here)
    if facts.get("traceback"):
        with contextlib.suppress(Exception):  # a class of the user's that does not let itself be changed
            exc.__cause__ = RemoteTraceback(facts["traceback"])
    if "rank" in facts:
        _name_rank(exc, facts["rank"], facts["ranks"])
    return exc


def _name_rank(exc: BaseException, rank: int, ranks: int) -> None:
    """Say which MPI rank it comes from: as `mpi_rank`, and in a note from Python 3.11 on; the traceback says it too."""
    with contextlib.suppress(Exception):  # a class of the user's that does not let itself be changed
        exc.mpi_rank = rank  # type: ignore[attr-defined]
        if sys.version_info >= (3, 11):
            exc.add_note(f"on MPI rank {rank} of {ranks}")


def _ours(task: TaskKey, facts: Any, here: bool) -> BaseException:
    """The error for an exception that could not come as itself."""
    name, text, kind = facts.get("type", "?"), facts.get("message", ""), facts.get("kind")
    match kind:
        case "result_not_picklable":
            return errors.ResultNotPicklable(
                f"task {task} returned a {facts.get('subject')} that cannot be pickled: {text}", task=task
            )
        case "ranks_not_started":
            return errors.RunnerMissing(f"task {task} cannot run: {text}")
        case "node_lost":
            return errors.TaskNodeFailure(f"task {task}: {text}", task=task, node=facts.get("host"))
        case "rank_ended":
            return errors.TaskKilled(
                f"task {task}: {text}",
                task=task,
                job=facts.get("job"),
                node=facts.get("host"),
                exit_code=facts.get("exit_code"),
                signal=facts.get("signal"),
                log_tail=facts.get("log_tail", ""),
                log_path=facts.get("log_path"),
            )
        case "refused":
            if name.endswith("PythonMismatchError"):
                return errors.PythonMismatch(text)
            return errors.CorruptOutcome(f"the cluster refused the call of task {task}: {text}", task=task)
        case "call_not_loadable":
            where = "in the process that was to run it" if here else "on the cluster"
            message = f"the call of task {task} cannot be loaded {where}: {name.removeprefix('builtins.')}: {text}"
            if "ImportError" in facts.get("bases", ()):
                if here:
                    return errors.RemoteTaskError(f"{message}; {_INSTALL_HERE}", task=task, type_name=name, text=text)
                return _import_error(task, message, name, text)
            if text.startswith("Can't get attribute") and "'__main__'" in text:
                message += f"; {_FOUND_BY_NAME.format('a module beside it' if here else 'a package installed there')}"
            return errors.RemoteTaskError(message, task=task, type_name=name, text=text)
    return _stand_in(task, name, text, facts.get("bases", ()))


def _import_error(task: TaskKey, message: str, name: str, text: str) -> errors.TaskImportError:
    """The call needs a module that is not there, or is there in another version."""
    error = errors.TaskImportError(
        f"{message}; {_INSTALL_THERE}", task=task, evidence=Evidence(suggestion=_INSTALL_THERE)
    )
    error.type_name, error.text = name, text
    return error


def _stand_in(task: TaskKey, name: str, text: str, bases: Any) -> errors.RemoteTaskError:
    """An error named like the class that cannot be loaded, and caught by `except` of its built-in bases."""
    import builtins

    message = f"{name}: {text}"
    for base in (getattr(builtins, b, None) for b in bases):
        if isinstance(base, type) and issubclass(base, Exception) and base is not Exception:
            try:
                kind = type(
                    name.rpartition(".")[2], (errors.RemoteTaskError, base), {"__module__": name.rpartition(".")[0]}
                )
                return kind(message, task=task, type_name=name, text=text)  # type: ignore[no-any-return]
            except TypeError:  # a base whose constructor wants more than a text
                continue
    return errors.RemoteTaskError(message, task=task, type_name=name, text=text)
