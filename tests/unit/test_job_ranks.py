"""What is understood of the end of srun, recorded, and of a rank; and how ranks publish, first come, first served."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.job_rank import publish_first
from remoteexec_server.job_ranks import ended_all_at_once, rank_named_in
from remoteexec_server.mpi_watch import how_it_ended

RECORDED = Path(__file__).parent / "recorded" / "slurm-22.05"


def recorded(name: str) -> str:
    return (RECORDED / f"ranks_{name}.txt").read_text()


@pytest.mark.parametrize("how", ["time_limit", "node_failure", "scancel"])
def test_what_ends_the_job_is_left_to_the_scheduler(how: str) -> None:
    assert ended_all_at_once(recorded(how))


@pytest.mark.parametrize(("how", "rank"), [("kill", 1), ("exit", 1), ("abort", 1), ("scancel_step", None)])
def test_srun_names_the_rank_that_ended_by_itself_if_one_did(how: str, rank: int | None) -> None:
    assert not ended_all_at_once(recorded(how))
    assert rank_named_in(recorded(how)) == rank


@pytest.mark.parametrize(
    "text",
    [
        "MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD\nwith errorcode 7.",
        "mpirun noticed that process rank 2 with PID 0 on node vm exited on signal 9 (Killed).",
        "Abort(7) on node 2 (rank 2 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 7) - process 2",
    ],
)
def test_so_do_open_mpi_and_mpich(text: str) -> None:
    assert rank_named_in(f"something\n{text}\nmore\n") == 2


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "ended itself with exit code 3"),
        (-9, "was ended by SIGKILL"),
        (-40, "was ended by signal 40"),
    ],
)
def test_an_end_is_put_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_the_first_that_publishes_is_the_one_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "0-0.ranks"

    assert publish_first(path, b"one")
    assert not publish_first(path, b"two")

    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("0-0.ranks", b"one")]


def test_one_that_comes_at_the_same_moment_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0-0.ranks"
    path.write_bytes(b"one")
    monkeypatch.setattr(Path, "exists", lambda self: False)

    assert not publish_first(path, b"two")

    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("0-0.ranks", b"one")]
