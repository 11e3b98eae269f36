"""Processes that multiprocessing has started for a script use executors as the script itself does."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from remoteexec import SingleNodeExecutor, errors

SCRIPT = """
import multiprocessing, sys
from remoteexec import SingleNodeExecutor

class Point:
    def __init__(self, x):
        self.x = x

class Bad(Exception):
    pass

def move(point):
    if point.x < 0:
        raise Bad(point.x)
    return Point(point.x + 1)

def child():
    for kept in (False, True):
        for settings in ({}, {"cache_directory": sys.argv[1]}):
            with SingleNodeExecutor(1, block_allocation=kept, **settings) as exe:
                moved, bad = exe.submit(move, Point(3)).result(), exe.submit(move, Point(-1)).exception()
                print(isinstance(moved, Point), moved.x, isinstance(bad, Bad), bad, flush=True)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[2]).Process(target=child)
    process.start()
    process.join()
    print(process.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_of_multiprocessing_calls_functions_of_its_script(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    told = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path / "cache"), method],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (told.stdout.splitlines(), told.stderr) == (["True 4 True -1"] * 4 + ["0"], "")


def test_a_module_that_only_this_process_has_is_said_to_be_missing_here_and_not_on_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("made_here")
    exec("def f():\n    return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", module)
    with SingleNodeExecutor(1) as exe:
        exc = exe.submit(module.f).exception()
    assert isinstance(exc, errors.RemoteTaskError)
    assert "cannot be loaded in the process that was to run it: ModuleNotFoundError" in str(exc)
    assert "register_pickle_by_value" in str(exc)
    assert "cluster" not in str(exc)
