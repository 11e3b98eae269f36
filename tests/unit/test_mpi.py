"""How MPI ranks are started and what is understood of their end, without starting any."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from remoteexec import errors
from remoteexec.engine import outcomes
from remoteexec.pool import mpi as client
from remoteexec_server import failure, mpi_ends, mpi_launch, mpi_program, mpi_watch
from remoteexec_server.wire.messages import TaskKey
from remoteexec_server.wire.resources import Resources


def program(path: Path) -> str:
    """Make an empty program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python in `env/bin` and a PATH of `bin`, both empty; mpi4py is installed."""
    monkeypatch.delenv("REMOTEEXEC_MPIEXEC", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return tmp_path


def test_a_call_on_one_core_is_started_without_mpi(places: Path) -> None:
    assert client.launch(Resources()) is None


def test_the_mpiexec_beside_this_python_goes_before_the_one_in_path(places: Path) -> None:
    program(places / "bin" / "mpiexec")
    beside = program(places / "env" / "bin" / "mpiexec")

    assert client.launch(Resources(cores=3, openmpi_oversubscribe=True)) == (3, [beside], True, False)


def test_the_mpiexec_in_path_is_found(places: Path) -> None:
    found = program(places / "bin" / "mpiexec")

    assert client.launch(Resources(cores=2)) == (2, [found], False, False)


def test_the_variable_names_the_mpiexec_and_its_options(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(places / "env" / "bin" / "mpiexec")
    named = program(places / "my mpi" / "mpirun")
    monkeypatch.setenv("REMOTEEXEC_MPIEXEC", f"'{named}' --mca btl self,vader")

    assert client.mpiexec() == [named, "--mca", "btl", "self,vader"]


def test_a_missing_mpiexec_is_named(places: Path) -> None:
    with pytest.raises(errors.RunnerMissing, match="there is no mpiexec, neither beside this Python nor in PATH"):
        client.launch(Resources(cores=2))


def test_a_variable_that_names_nothing_is_named(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTEEXEC_MPIEXEC", "/no/such/mpirun -v")

    with pytest.raises(errors.RunnerMissing, match="REMOTEEXEC_MPIEXEC says '/no/such/mpirun'"):
        client.launch(Resources(cores=2))


def test_missing_mpi4py_is_an_import_error(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ImportError, match=r"cores=2 .* needs mpi4py") as caught:
        client.launch(Resources(cores=2))
    assert caught.value.name == "mpi4py"


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD\nwith errorcode 7.", 2),
        ("Abort(7) on node 4 (rank 4 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 7) - process 4", 4),
        ("Abort(7) on node 2 (rank 1 in comm 480): application called MPI_Abort(comm=0x84000003, 7) - process 1", 2),
        ("MPI_ABORT was invoked on rank 1 in communicator MPI COMMUNICATOR 3 SPLIT FROM 0\nwith errorcode 7.", None),
        ("mpiexec noticed that process rank 1 with PID 0 on node n exited on signal 9 (Killed).", None),
        ("rank 5 of my own program says hello", None),
        ("", None),
    ],
)
def test_the_rank_that_aborted_is_understood(text: str, rank: int | None) -> None:
    assert mpi_ends.aborting_rank_in(text) == rank


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("mpiexec noticed that process rank 1 with PID 0 on node n exited on signal 9 (Killed).", 1),
        ("mpiexec has exited due to process rank 11 with PID 0 on\nnode n exiting improperly.", 11),
        ("The first process to do so was:\n\n  Process name: [[20466,1],3]\n  Exit code:    5", 3),
        ("rank 5 of my own program says hello", None),
        ("", None),
    ],
)
def test_the_rank_that_the_launcher_blames_is_understood(text: str, rank: int | None) -> None:
    assert mpi_ends.blamed_rank_in(text) == rank


@pytest.mark.parametrize(
    ("word", "did", "code", "number"),
    [
        (mpi_watch.Word(5, 9, None), "was ended by SIGKILL", None, 9),
        (mpi_watch.Word(5, 40, None), "was ended by signal 40", None, 40),
        (mpi_watch.Word(5, 0x300, None), "ended itself with exit code 3", 3, None),
        (mpi_watch.Word(5, 0, None), "ended itself with exit code 0", 0, None),
        (mpi_watch.Word(5, None, 7), "called MPI_Abort with error code 7", 137, None),
        (None, "ended", 137, 9),
    ],
)
def test_how_a_rank_ended_is_said_by_its_own_status_and_else_by_mpiexecs(
    word: mpi_watch.Word | None, did: str, code: int | None, number: int | None
) -> None:
    said = "process rank 1 exited on signal 9 (Killed)."

    assert mpi_ends.how(word, said, 137) == (did, {"exit_code": code, "signal": number})


def test_each_rank_has_its_share_of_gpus_and_memory() -> None:
    shown = {"CUDA_VISIBLE_DEVICES": "0,3,4,7", "ROCR_VISIBLE_DEVICES": None, "OMP_NUM_THREADS": "2"}
    setup: Any = {"launch": (2, ["mpiexec"], False, False), "environment": shown, "memory_bytes": 100, "cwd": "/x"}
    ranks = mpi_program.Program(setup, None, 0)  # type: ignore[arg-type]  # not started: it has no socket

    assert [ranks._setup_of(rank) for rank in (0, 1)] == [
        {"launch": None, "environment": {**shown, "CUDA_VISIBLE_DEVICES": gpus}, "memory_bytes": 50, "cwd": "/x"}
        for gpus in ("0,3", "4,7")
    ]


def test_the_batch_system_is_hidden_from_mpiexec_and_not_from_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    setup: Any = {"launch": (2, ["mpiexec"], False, False), "environment": {"A": "b"}}
    ranks = mpi_program.Program(setup, None, 0)  # type: ignore[arg-type]  # not started: it has no socket

    assert "SLURM_JOB_ID" not in mpi_launch.launcher_environment("/d", False)
    assert ranks._setup_of(0)["environment"] == {"SLURM_JOB_ID": "5", "A": "b"}


def test_a_program_inside_a_rank_is_not_taken_for_a_part_of_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALRANKID", "OMPI_MCA_ess"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMPI_MCA_btl", "self")

    told = mpi_launch.launcher_environment("/d", False)

    assert {name for name in told if name.startswith(("PMI", "OMPI_COMM", "MPI_"))} == set()
    assert (told["OMPI_MCA_btl"], "OMPI_MCA_ess" in told) == ("self", False)
    assert os.environ["PMI_RANK"] == "1"


def test_the_exception_of_a_rank_says_which() -> None:
    packed = failure.amended(failure.packed(KeyError("k"), "raised"), "MPI rank 1 of 4:\n", rank=1, ranks=4)

    exc: Any = outcomes.exception(*failure.unpacked(packed), TaskKey("t1"))

    assert (type(exc), exc.args, exc.mpi_rank) == (KeyError, ("k",), 1)
    assert str(exc.__cause__) == '\n"""\nMPI rank 1 of 4:\nKeyError: \'k\'\n"""'
    if sys.version_info >= (3, 11):
        assert exc.__notes__ == ["on MPI rank 1 of 4"]


class Frozen(Exception):
    """An exception that cannot be changed once it is made."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("__"):
            raise AttributeError(name)
        super().__setattr__(name, value)


def test_an_exception_that_cannot_be_changed_comes_as_it_is() -> None:
    packed = failure.amended(failure.packed(Frozen("f"), "raised"), "MPI rank 0 of 2:\n", rank=0, ranks=2)

    exc = outcomes.exception(*failure.unpacked(packed), TaskKey("t1"))

    assert (type(exc).__name__, exc.args) == ("Frozen", ("f",))
    assert "MPI rank 0 of 2:" in str(exc.__cause__)


def test_the_end_of_a_rank_is_a_lost_task_with_what_the_launcher_said() -> None:
    facts: dict[str, Any] = {"rank": 1, "ranks": 3, "exit_code": 137, "signal": 9, "log_tail": "said"}
    packed = failure.amended(failure.packed(Exception(), "rank_ended"), message="rank 1 ended", traceback="", **facts)

    exc: Any = outcomes.exception(*failure.unpacked(packed), TaskKey("t1"))

    assert (type(exc), str(exc)) == (errors.TaskKilled, "task t1: rank 1 ended")
    assert (exc.task, exc.exit_code, exc.signal, exc.log_tail, exc.mpi_rank) == ("t1", 137, 9, "said", 1)
    assert exc.__cause__ is None
