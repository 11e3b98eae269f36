"""What a script decorates with functools runs on every executor, and from the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import functools
from remoteexec import SingleNodeExecutor
from remoteexec.api import TestClusterExecutor

@functools.cache
def table(n):
    return 2 * n

def work(n):
    return table(n) + 1

class Box:
    @functools.cached_property
    def two(self):
        return 2

    @functools.lru_cache
    def plus(self, n):
        return self.two + n

@functools.singledispatch
def kind(x):
    return "any"

@kind.register
def _(x: Box):
    return "box"

def use(box):
    return box.two, box.plus(3), kind(box)

if __name__ == "__main__":
    for options in ({}, {"block_allocation": True}, {"cache_directory": "cache"}):
        with SingleNodeExecutor(1, **options) as exe:
            print(exe.submit(table, 3).result(), exe.submit(work, 3).result(), *exe.submit(use, Box()).result())
    with SingleNodeExecutor(1, cache_directory="cache") as exe:
        print([exe.submit(work, 3).task.pid, exe.submit(kind, Box()).result()])
    with TestClusterExecutor() as exe:
        print(exe.submit(work, 3).result(), *exe.submit(use, Box()).result())
"""


def test_a_script_with_functions_that_remember_and_dispatch(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout.splitlines(), done.returncode) == (
        ["6 7 2 5 box"] * 3 + ["[None, 'box']", "7 2 5 box"],
        0,
    ), done.stderr
