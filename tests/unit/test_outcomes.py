"""A task's end becomes a result, the user's own exception with its remote traceback, or an error of ours."""

from __future__ import annotations

import sys
import traceback
import types
from typing import Any

import pytest

from remoteexec import errors
from remoteexec.engine import outcomes
from remoteexec.engine.outcomes import RemoteTraceback
from remoteexec_server import runner
from remoteexec_server.store import hdf5
from remoteexec_server.store.hdf5 import Outcome
from remoteexec_server.wire import payload
from remoteexec_server.wire.evidence import Evidence, Usage
from remoteexec_server.wire.header import HeaderError, PythonMismatchError
from remoteexec_server.wire.messages import Loss, TaskKey

KEY = bytes(range(32))
T = TaskKey("x-t1")


def loaded(outcome: Outcome) -> tuple[Any, BaseException | None]:
    return outcomes.load(hdf5.write_outcome(T, outcome, KEY), T, KEY)[:2]


def raised(exc: BaseException) -> BaseException:
    """What the caller gets for an exception of the user's function."""
    try:
        raise exc
    except BaseException as caught:
        result, got = loaded(runner._failed(caught, "raised"))
    assert result is None
    assert got is not None
    return got


class WithState(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


class Unpicklable(ValueError):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.frame = sys._getframe()


class BrokenText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_result_is_the_result() -> None:
    assert loaded(Outcome(True, payload.dumps({"a": (1, None)}), {})) == ({"a": (1, None)}, None)


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("no", 3),
        KeyError("k"),
        OSError(2, "No such file", "x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        Exception(),
    ],
    ids=repr,
)
def test_an_exception_comes_back_as_itself_with_the_remote_traceback(exc: BaseException) -> None:
    got = raised(exc)

    assert (type(got), got.args, str(got)) == (type(exc), exc.args, str(exc))
    assert isinstance(got.__cause__, RemoteTraceback)
    assert got.__cause__.text.startswith("Traceback (most recent call last):\n")
    assert "raise exc" in "".join(traceback.format_exception(got))


def test_a_constructor_of_its_own_kind_and_attributes_survive() -> None:
    got = raised(WithState(3, hint="try x"))

    assert isinstance(got, WithState)
    assert (str(got), got.code, got.hint) == ("code 3", 3, "try x")


def test_an_exception_that_cannot_be_pickled_is_stood_in_for_by_its_name_text_and_builtin_bases() -> None:
    got = raised(Unpicklable("too big"))

    assert isinstance(got, errors.RemoteTaskError)
    assert isinstance(got, ValueError)
    name = f"{__name__}.Unpicklable"
    assert (type(got).__qualname__, got.type_name, got.text, got.task) == ("Unpicklable", name, "too big", T)
    assert str(got) == f"{name}: too big"


def test_an_exception_without_a_text_is_told_all_the_same() -> None:
    got = raised(BrokenText(sys._getframe()))

    assert isinstance(got, errors.RemoteTaskError)
    assert got.text == "<no text: BrokenText.__str__ failed>"


def test_an_exception_whose_class_exists_only_there_is_caught_by_its_builtin_base() -> None:
    module = types.ModuleType("only_on_the_cluster")
    exec("class Strange(LookupError): pass", module.__dict__)
    sys.modules["only_on_the_cluster"] = module
    try:
        try:
            raise module.Strange("where?")
        except LookupError as exc:
            outcome = runner._failed(exc, "raised")
    finally:
        del sys.modules["only_on_the_cluster"]

    result, got = loaded(outcome)

    assert isinstance(got, (errors.RemoteTaskError, LookupError))
    assert (result, str(got)) == (None, "only_on_the_cluster.Strange: where?")


@pytest.mark.parametrize(
    ("kind", "exc", "error", "says"),
    [
        (
            "result_not_picklable",
            TypeError("a lock"),
            errors.ResultNotPicklable,
            "returned a x.Y that cannot be pickled",
        ),
        ("refused", PythonMismatchError("3.7"), errors.PythonMismatch, "^3.7$"),
        ("refused", HeaderError("digest"), errors.CorruptOutcome, "refused the call of task x-t1: digest"),
        (
            "call_not_loadable",
            ModuleNotFoundError("No module named 'm'"),
            errors.TaskImportError,
            "install NAME --with",
        ),
        ("call_not_loadable", AttributeError("gone"), errors.RemoteTaskError, "cannot be loaded on the cluster: Attr"),
    ],
)
def test_what_went_wrong_around_the_function_has_an_error_of_ours(
    kind: str, exc: BaseException, error: type[Exception], says: str
) -> None:
    result, got = loaded(runner._failed(exc, kind, "x.Y"))

    assert (result, type(got)) == (None, error)
    with pytest.raises(error, match=says):
        raise got if got is not None else AssertionError


def test_a_result_that_cannot_be_loaded_here_is_an_error_and_not_a_crash() -> None:
    class Explosive:
        def __reduce__(self) -> Any:
            return divmod, (1, 0)

    result, got = loaded(Outcome(True, payload.dumps(Explosive()), {}))

    assert (result, type(got)) == (None, errors.RemoteTaskError)
    assert str(got).startswith("the result of task x-t1 cannot be loaded here: ZeroDivisionError")


def test_a_loss_has_all_its_evidence() -> None:
    evidence = Evidence("TIMEOUT", "TimeLimit", usage=Usage(61.0, 60.0), suggestion="run_time_max=60 -> try 120")
    got = outcomes.lost(T, Loss("timeout", "m", "7_1", "n1", 1, 9, "tail", "/log", evidence=evidence))

    assert (type(got), str(got), vars(got)) == (
        errors.TaskTimeout,
        "m",
        {
            "reason": "timeout",
            "task": T,
            "job": "7_1",
            "node": "n1",
            "exit_code": 1,
            "signal": 9,
            "log_tail": "tail",
            "log_path": "/log",
            "evidence": evidence,
        },
    )


def test_a_call_whose_module_is_missing_says_which_and_keeps_its_text() -> None:
    got = loaded(runner._failed(ModuleNotFoundError("No module named 'm'"), "call_not_loadable"))[1]

    assert isinstance(got, errors.TaskImportError)
    assert (got.reason, got.task, got.type_name, got.text) == (
        "import_error",
        T,
        "builtins.ModuleNotFoundError",
        "No module named 'm'",
    )


def test_a_rejection_told_as_a_loss_is_a_rejection() -> None:
    got = outcomes.lost(T, Loss("rejected", "sbatch: error: invalid partition"))

    assert (type(got), str(got)) == (errors.SubmitRejected, "sbatch: error: invalid partition")


def test_a_rejection_of_a_job_that_the_scheduler_took_has_its_evidence() -> None:
    got = outcomes.lost(T, Loss("rejected", "m", job="7", evidence=Evidence("PENDING", "PartitionTimeLimit")))

    assert isinstance(got, errors.TaskRejected)
    assert (got.job, got.evidence.reason) == ("7", "PartitionTimeLimit")
