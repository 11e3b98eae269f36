"""What `concurrent.futures` promises, as CPython's own tests say it, asked of our executors.

The tests are the running interpreter's: subclasses of its classes, as the subclasses for its own pools are. Debian has
them in libpython3-testsuite.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
from pathlib import Path
from typing import Any

import pytest

import remoteexec
import remoteexec_server
from tests.clusters.rootless import SlurmCluster
from tests.contract import cpython_executors
from tests.contract.cpython_executors import Files, Fresh, Kept, Slurm
from tests.contract.login_node import LOGIN_NODE, run_there

pytestmark = pytest.mark.usefixtures("process_mark")

_ROOTS = [str(Path(path).parent) for module in (remoteexec, remoteexec_server) for path in module.__path__]
_NAMES = ("ExecutorTest", "AsCompletedTests", "WaitTests", "ExecutorShutdownTest")
_MODULES = ("executor", "test_as_completed", "test_wait", "test_shutdown")  # from Python 3.12 on
_PREAMBLE = f"import sys; sys.path[:0] = {_ROOTS}; from tests.contract.cpython_executors import"


def _find() -> dict[str, tuple[type, Any]]:
    """The interpreter's test classes by name, each with its module."""
    package = "test.test_concurrent_futures"
    try:
        if sys.version_info < (3, 12):
            modules = [importlib.import_module(package)] * len(_NAMES)
        else:
            modules = [importlib.import_module(f"{package}.{name}") for name in _MODULES]
    except ImportError as exc:
        pytest.skip(f"this Python comes without its tests: {exc}", allow_module_level=True)
    return {name: (getattr(module, name), module) for name, module in zip(_NAMES, modules, strict=True)}


class _Case(unittest.TestCase):
    """What CPython's mixins expect of a test case, as its `ExecutorMixin` gives it to its own pools."""

    worker_count = 5
    executor_type: type
    executor: Any
    ctx = ""  # what CPython says of thread pools: none of its ways to start processes

    def setUp(self) -> None:
        self.executor = self.executor_type(max_workers=self.worker_count)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        del self.executor

    def get_context(self) -> Any:
        return None


def _case(executor: type, name: str, skipped: dict[str, str]) -> type[unittest.TestCase]:
    base, _ = _TESTS[name]
    found: Any = type(f"Test{executor.__name__}{name}", (base, _Case), {"executor_type": executor})
    for test, reason in skipped.items():
        if hasattr(found, test):
            setattr(found, test, unittest.skip(reason)(getattr(found, test)))
    return found  # type: ignore[no-any-return]


_TESTS = _find()
_FILES_SKIPPED = {
    "test_max_workers_negative": "has no number of workers",
    "test_map_timeout": "a job takes longer to start than the test waits for two",
    "test_hang_issue12364": "50 jobs, a process and files for each: the cluster tests have such numbers",
    "test_interpreter_shutdown": "what a job prints is in its log, and the interpreter does not wait for jobs",
    "test_hang_gh83386": "what a job prints is in its log, and the interpreter does not wait for jobs",
    "test_cancel_futures": "has no number of workers: all jobs run at once",
}

if LOGIN_NODE in os.environ:
    _EXECUTORS: list[tuple[type, dict[str, str]]] = [(Slurm, _FILES_SKIPPED)]
else:
    _EXECUTORS = [(Fresh, {}), (Kept, {}), (Files, _FILES_SKIPPED)]
for _executor, _skipped in _EXECUTORS:
    for _name in _NAMES:
        globals()[f"Test{_executor.__name__}{_name}"] = _case(_executor, _name, _skipped)


@pytest.mark.skipif(LOGIN_NODE in os.environ, reason="this is that run")
def test_they_pass_on_the_login_node(slurm_cluster: SlurmCluster) -> None:
    run_there(slurm_cluster, Path(__file__), "cpython-login")


@pytest.fixture(autouse=True)
def _scripts_find_our_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that the tests run import the class under test from `concurrent.futures`: they find it in our module."""
    _, module = _TESTS["ExecutorShutdownTest"]
    run = module.assert_python_ok

    def run_ours(option: str, script: str, **environment: Any) -> Any:
        names = [name for name in vars(cpython_executors) if f"from concurrent.futures import {name}\n" in script]
        for name in names:
            script = script.replace(f"from concurrent.futures import {name}", f"{_PREAMBLE} {name}")
        assert names, f"nothing of ours in {script}"
        return run(option, script, __isolated=False, **environment)

    monkeypatch.setattr(module, "assert_python_ok", run_ours)
