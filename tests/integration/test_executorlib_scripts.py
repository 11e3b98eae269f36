"""Scripts as executorlib's README has them, with nothing but the import changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

SUBMIT = """
from remoteexec import SingleNodeExecutor

with SingleNodeExecutor() as exe:
    future_lst = [exe.submit(sum, [i, i]) for i in range(1, 5)]
    print([f.result() for f in future_lst])
"""
POSITIONAL = """
from remoteexec import SingleNodeExecutor, get_cache_data

def add(a, b):
    return a + b

with SingleNodeExecutor(2, "cache", None, {"cores": 1}, True, True) as exe:
    print(exe.submit(add, 1, b=2).result(), get_cache_data("cache")[0]["output"])
"""
CLUSTER = """
from remoteexec import get_future_from_cache, get_item_from_future, split_future
from remoteexec.api import TestClusterExecutor, cloudpickle_register

cloudpickle_register(ind=1)

def both(a, b):
    return a, b

def preset(executorlib_worker_id):
    return {"b": 7 + executorlib_worker_id}

def number(a, b, executorlib_worker_id):
    return a + b, executorlib_worker_id

with TestClusterExecutor(None, "cache", None, {"cores": 1}, True) as exe:
    future = exe.submit(both, 1, b=2, resource_dict={"cores": 1, "cwd": "work", "cache_key": "mine"})
    one, two = split_future(future=future, n=2)
    again = exe.submit(both, get_item_from_future(future=future, key=0), two)
    print(again.result(), get_future_from_cache(cache_directory="cache", cache_key="mine").result())

with TestClusterExecutor(1, "kept", None, None, None, True, preset) as exe:
    print(exe.submit(number, 1).result())
"""
MPI = """
from remoteexec import SingleNodeExecutor

def calc(i):
    from mpi4py import MPI
    return i, MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()

with SingleNodeExecutor(resource_dict={"openmpi_oversubscribe": True}) as exe:
    print(exe.submit(calc, 3, resource_dict={"cores": 2}).result())
"""


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        (SUBMIT, "[2, 4, 6, 8]"),
        (POSITIONAL, "3 3"),
        (CLUSTER, "(1, 2) (1, 2)\n(8, 0)"),
        (MPI, "[(3, 2, 0), (3, 2, 1)]"),
    ],
    ids=["submit", "positional", "cluster", "MPI"],
)
def test_a_script_runs_after_changing_the_import(script: str, printed: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == (printed, "", 0)
