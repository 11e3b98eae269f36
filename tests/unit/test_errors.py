"""The error tree: drawn as it is, and every member survives a process boundary."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from remoteexec import errors
from remoteexec_server.wire.evidence import Evidence, Usage

CLASSES = [
    value
    for name, value in sorted(vars(errors).items())
    if inspect.isclass(value) and issubclass(value, errors.RemoteExecError)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: str(cls.__name__))
@pytest.mark.parametrize("protocol", [2, 5])
def test_every_error_is_the_same_after_pickling(cls: type[errors.RemoteExecError], protocol: int) -> None:
    error = cls("what happened\nnext step")
    for index, attribute in enumerate(sorted(vars(error))):
        setattr(error, attribute, f"value {index}")

    loaded = pickle.loads(pickle.dumps(error, protocol))

    assert (type(loaded), loaded.args, vars(loaded)) == (cls, ("what happened\nnext step",), vars(error))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: list[tuple[str, str, bool]] = []
    ancestors: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"([ │├└─]*)([A-Z]\w+) +(\(t\))? ?\S", line)
        if not match or not line.startswith("    "):
            continue
        column, name = len(match[1]), match[2]
        ancestors = [entry for entry in ancestors if entry[0] < column]
        drawn.append((name, ancestors[-1][1] if ancestors else "Exception", bool(match[3])))
        ancestors.append((column, name))

    real = [(cls.__name__, cls.__mro__[1].__name__, cls.transient) for cls in CLASSES]

    assert sorted(drawn) == sorted(real)


def test_pickling_errors_are_also_those_of_the_standard_library() -> None:
    with pytest.raises(pickle.PicklingError, match="the lock"):
        raise errors.CallNotPicklable("the lock cannot be pickled")
    assert issubclass(errors.ResultNotPicklable, pickle.PicklingError)


@pytest.mark.parametrize(
    ("reason", "cls"),
    [
        ("timeout", errors.TaskTimeout),
        ("out_of_memory", errors.TaskOutOfMemory),
        ("node_failure", errors.TaskNodeFailure),
        ("cancelled", errors.TaskCancelled),
        ("preempted", errors.TaskPreempted),
        ("killed", errors.TaskKilled),
        ("rejected", errors.TaskRejected),
        ("quota", errors.TaskOverQuota),
        ("never_started", errors.TaskNeverStarted),
        ("python_missing", errors.TaskPythonMissing),
        ("store", errors.TaskStoreUnreachable),
        ("unknown", errors.TaskUnknownLoss),
        ("a reason of tomorrow", errors.TaskUnknownLoss),
    ],
)
def test_a_loss_is_of_the_class_that_its_reason_names(reason: str, cls: type[errors.TaskLost]) -> None:
    facts = {
        "task": "k",
        "job": "12_3",
        "node": "n1",
        "exit_code": 1,
        "signal": 9,
        "log_tail": "end",
        "log_path": "/x/0.log",
        "evidence": Evidence("FAILED", "NonZeroExitCode", usage=Usage(time_s=3.0), suggestion="less"),
    }

    error = errors.task_lost(reason, "text", **facts)

    assert (type(error), error.args, vars(error)) == (cls, ("text",), {"reason": reason, **facts})


def test_a_module_that_is_missing_is_a_loss_and_an_error_of_the_call() -> None:
    error = errors.task_lost("import_error", "text", task="k")

    assert isinstance(error, errors.TaskImportError)
    assert issubclass(errors.TaskImportError, errors.RemoteTaskError)
    assert (error.reason, error.task, error.type_name) == ("import_error", "k", "")


def test_what_can_never_start_is_caught_as_what_is_refused() -> None:
    assert issubclass(errors.TaskOverQuota, errors.TaskRejected)
    assert issubclass(errors.TaskRejected, errors.SubmitRejected)


def test_all_is_sorted_and_complete() -> None:
    names = [cls.__name__ for cls in CLASSES] + ["task_lost"]
    assert sorted(names) == errors.__all__ == sorted(errors.__all__)
