"""What cannot travel to a task or back is refused with what to do instead; paths are read as users write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor, TestClusterExecutor, current_executor, errors
from tests.integration.pool_tools import add_one, both_modes, executor


@both_modes
def test_a_task_that_takes_its_executor_along_is_told_what_to_use(kept: bool) -> None:
    with executor(kept) as exe:

        def grow() -> Any:
            return exe.submit(add_one, 1)

        for call in ((grow,), (add_one, exe), (add_one, {"exe": [exe]})):
            with pytest.raises(errors.CallNotPicklable, match=r"current_executor\(\) is the one it runs in"):
                exe.submit(*call)


def test_an_executor_of_a_cluster_does_not_travel_either() -> None:
    with TestClusterExecutor() as exe, pytest.raises(errors.CallNotPicklable, match=r"current_executor\(\)"):
        exe.submit(add_one, exe)


def children() -> Any:
    return [current_executor().submit(add_one, 1)]


@both_modes
def test_a_list_of_futures_is_no_result(kept: bool) -> None:
    with executor(kept) as exe:
        exc = exe.submit(children).exception()
    assert isinstance(exc, errors.ResultNotPicklable)
    assert "inside of a list or the like its result() has to be returned" in str(exc)


def here() -> str:
    return os.getcwd()


@both_modes
def test_a_directory_is_read_as_a_shell_would(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PART", "a part")
    wanted = str(tmp_path / "runs" / "a part")
    with executor(kept, resource_dict={"cwd": "~/runs/$PART"}) as exe:
        assert exe.submit(here).result() == wanted
    with SingleNodeExecutor(1, debug=True, resource_dict={"cwd": "~/runs/$PART"}) as exe:
        assert exe.submit(here).result() == wanted


@both_modes
def test_calls_run_where_the_working_directory_is_gone(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.syspath_prepend("")
    (tmp_path / "gone").rmdir()
    with executor(kept) as exe:
        assert exe.submit(add_one, 1).result(20) == 2


@both_modes
def test_a_cache_directory_that_is_no_path_is_refused_by_its_value(kept: bool) -> None:
    rule = "cache_directory must be a path, not 5: pass a text or a pathlib.Path"
    with pytest.raises(TypeError, match=rule):
        SingleNodeExecutor(cache_directory=5, block_allocation=kept)  # type: ignore[arg-type]
    with executor(kept) as exe, pytest.raises(TypeError, match=rule):
        exe.submit(add_one, 1, resource_dict={"cache_directory": 5})


def a_list() -> Any:
    return ["a", "b"]


@pytest.mark.parametrize("debug", [False, True])
def test_an_init_function_that_returns_no_dictionary_is_named_with_what_it_returned(debug: bool) -> None:
    rule = r"init_function returned \['a', 'b'\], of type list: it must return a dictionary"
    with pytest.raises(TypeError, match=rule):
        SingleNodeExecutor(1, block_allocation=True, init_function=a_list, debug=debug).submit(add_one, 1).result()


def test_what_only_a_job_can_have_is_named_once_and_the_call_runs(caplog: pytest.LogCaptureFixture) -> None:
    asked = {"num_nodes": 2, "partition": "long", "cores": 1}
    with SingleNodeExecutor(1, resource_dict={"num_nodes": 1, "priority": 3}) as exe:
        results = [exe.submit(add_one, n, resource_dict=asked).result() for n in range(2)]
    assert results == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "priority=3 has no effect: SingleNodeExecutor starts processes, and no jobs",
        "num_nodes=2 has no effect: SingleNodeExecutor starts processes, and no jobs",
        "partition='long' has no effect: SingleNodeExecutor starts processes, and no jobs",
    ]
