"""What workers are told of GPUs and threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from remoteexec.pool import machine, zygote_client
from remoteexec.pool.tasks import visible
from remoteexec.resources import says_threads
from remoteexec_server.wire.resources import Resources

CUDA, ROCR = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_amd", lambda: 0)
    monkeypatch.delenv(CUDA, raising=False)
    monkeypatch.delenv(ROCR, raising=False)


@pytest.mark.parametrize(
    ("listed", "names"),
    [("2,-1,3", ["2"]), ("0,0,1", ["0", "1"]), ("-1", []), ("", []), (" 1, GPU-8a ", ["1", "GPU-8a"])],
)
def test_a_list_is_read_as_cuda_reads_it(monkeypatch: pytest.MonkeyPatch, listed: str, names: list[str]) -> None:
    monkeypatch.setenv(CUDA, listed)
    assert machine.gpus()[0] == names


def test_a_working_directory_that_is_gone_is_no_place_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "path", ["", "/kept"])
    assert machine.places() == [str(tmp_path / "gone"), "/kept"]
    (tmp_path / "gone").rmdir()
    assert (machine.places(), zygote_client.path()) == (["/kept"], "/kept")


def test_a_gpu_that_has_two_names_is_shown_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA, "0,1")
    monkeypatch.setenv(ROCR, "2,3")
    names, variables = machine.gpus()
    assert [visible([name], variables) for name in names] == [{CUDA: "0", ROCR: "2"}, {CUDA: "1", ROCR: "3"}]


def test_rocm_is_told_the_outer_of_two_lists_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_amd", lambda: 4)
    monkeypatch.setenv(CUDA, "1,0")
    monkeypatch.setenv(ROCR, "2,3")
    names, variables = machine.gpus()
    assert [visible([name], variables) for name in names] == [{ROCR: "3", CUDA: None}, {ROCR: "2", CUDA: None}]


def threads(given: Any) -> dict[str, str | None]:
    resources = given if isinstance(given, Resources) else Resources(**given)
    environment = machine.setup(resources, None, os.environ, False, says_threads(given))["environment"]
    return {name: environment.get(name) for name in machine.THREADS[:2]}


def test_threads_are_what_the_call_says_or_the_users_environment_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    said = [threads({}), threads({"threads_per_core": 1}), threads(Resources(threads_per_core=2))]
    assert said == [
        {"OMP_NUM_THREADS": None, "MKL_NUM_THREADS": "1"},  # None: it stays what it is
        {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    ]
