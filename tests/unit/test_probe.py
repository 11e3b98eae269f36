"""`probe` answers in one line whatever it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remoteexec_server import __version__, mpi_facts, probe
from remoteexec_server.mpi_facts import MpiFacts


def ask(capsys: pytest.CaptureFixture[str], root: str, scheduler: str, *more: str) -> dict[str, Any]:
    assert probe.main(["--root", root, "--scheduler", scheduler, "--sentinel", "abc123", *more]) == 0
    [line] = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_usable_place(capsys: pytest.CaptureFixture[str], tmp_root: Path) -> None:
    facts = ask(capsys, str(tmp_root), "local")
    assert (facts["sentinel"], facts["version"], facts["protocol"]) == ("abc123", __version__, 1)
    assert (facts["root"], facts["root_problem"]) == (str(tmp_root), None)
    assert (facts["scheduler"], facts["partitions"], facts["problem"]) == ("local", [], None)
    assert all(facts[name] for name in ("python", "cloudpickle", "h5py", "pysqa"))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            MpiFacts("MPICH Version: 5.0.2", "4.1.2", mpiexec=("/m/mpiexec",)),
            "MPICH Version: 5.0.2, mpi4py 4.1.2, /m/mpiexec",
        ),
        (
            MpiFacts("MPICH Version: 5.0.2", "4.1.2"),
            "MPICH Version: 5.0.2, mpi4py 4.1.2, nothing that starts its ranks",
        ),
        (MpiFacts(problem="mpi4py is not installed for python"), "none: mpi4py is not installed for python"),
    ],
)
def test_the_mpi_is_named_if_asked_for_and_is_no_problem_if_missing(
    capsys: pytest.CaptureFixture[str], tmp_root: Path, monkeypatch: pytest.MonkeyPatch, found: MpiFacts, said: str
) -> None:
    monkeypatch.setattr(mpi_facts, "look", lambda scheduler, environment: found)

    facts = ask(capsys, str(tmp_root), "local", "--mpi")

    assert (facts["mpi"], facts["problem"]) == (said, None)


def test_a_root_that_others_can_read(capsys: pytest.CaptureFixture[str], tmp_root: Path) -> None:
    tmp_root.mkdir(mode=0o755)
    facts = ask(capsys, str(tmp_root), "local")
    assert facts["root"] == str(tmp_root)
    assert "chmod 700" in facts["root_problem"]


def test_no_slurm(capsys: pytest.CaptureFixture[str], tmp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    facts = ask(capsys, str(tmp_root), "slurm")
    assert facts["scheduler"] is None
    assert facts["problem"] == (
        "scontrol cannot be run: [Errno 2] No such file or directory: 'scontrol'; PATH is /nowhere"
    )


def test_an_unknown_scheduler(capsys: pytest.CaptureFixture[str], tmp_root: Path) -> None:
    facts = ask(capsys, str(tmp_root), "abacus")
    assert facts["problem"] == "scheduler 'abacus': must be one of slurm, flux, pbs, torque, lsf, sge, moab, local"
