"""Scripts of executorlib run after changing the import: its names, parameters and their order.

Recorded by `inspect.signature` from executorlib 1.11.0, which the tests do not need.
"""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import remoteexec
import remoteexec.api

_BEGIN = "max_workers cache_directory max_cores resource_dict"
_END = (
    "hostname_localhost block_allocation init_function disable_dependencies refresh_rate plot_dependency_graph "
    "plot_dependency_graph_filename export_workflow_filename log_obj_size wait"
)
_CLUSTER = f"{_BEGIN} pysqa_config_directory pmi_mode {_END} openmpi_oversubscribe"
EXECUTORS = {
    "SingleNodeExecutor": f"{_BEGIN} {_END} restart_limit openmpi_oversubscribe",
    "SlurmJobExecutor": f"{_BEGIN} pmi_mode {_END} restart_limit openmpi_oversubscribe",
    "FluxJobExecutor": (
        f"{_BEGIN} pmi_mode flux_executor flux_executor_nesting flux_log_files {_END} restart_limit "
        "openmpi_oversubscribe"
    ),
    "SlurmClusterExecutor": _CLUSTER,
    "FluxClusterExecutor": _CLUSTER,
    "TestClusterExecutor": f"{_BEGIN} {_END} openmpi_oversubscribe",
}
DEFAULTS = {"refresh_rate": 0.01, "wait": True, "restart_limit": 0} | dict.fromkeys(
    (
        "block_allocation",
        "disable_dependencies",
        "plot_dependency_graph",
        "log_obj_size",
        "openmpi_oversubscribe",
        "flux_executor_nesting",
        "flux_log_files",
    ),
    False,
)
"""None for all others."""
HELPERS = {
    "get_cache_data": "cache_directory",
    "get_future_from_cache": "cache_directory cache_key",
    "get_item_from_future": "future key",
    "split_future": "future n",
    "terminate_tasks_in_cache": "cache_directory pysqa_config_directory backend",
}


@pytest.mark.parametrize("name", EXECUTORS)
def test_constructors_take_its_parameters_by_position(name: str) -> None:
    parameters = list(inspect.signature(getattr(remoteexec, name)).parameters.values())
    its = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    ours = parameters[len(its) :]

    assert [each.name for each in its] == EXECUTORS[name].split()
    assert {each.name: each.default for each in its} == {each.name: DEFAULTS.get(each.name) for each in its}
    assert {each.kind for each in ours} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", HELPERS)
def test_helpers_take_its_parameters(name: str) -> None:
    assert list(inspect.signature(getattr(remoteexec, name)).parameters) == HELPERS[name].split()


def test_every_class_of_its_is_there() -> None:
    names = {*EXECUTORS, "BaseExecutor", *HELPERS}
    assert names - set(remoteexec.__all__) == set()


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module beside the user's script that registers itself."""
    (tmp_path / "of_the_user_registered.py").write_text(
        "from remoteexec.api import cloudpickle_register\ndef register(*ind):\n    cloudpickle_register(*ind)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("of_the_user_registered")
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def registered() -> set[str]:
    return set(cloudpickle.list_registry_pickle_by_value())


def test_a_module_can_ask_to_travel_by_value(users_module: Any) -> None:
    before = registered()
    users_module.register(1)
    assert registered() - before == {users_module.__name__}
    cloudpickle.unregister_pickle_by_value(users_module)
    before = registered()
    users_module.register(10_000)  # the outermost is the test runner, which is installed
    assert registered() == before


@pytest.mark.parametrize("executor", [remoteexec.SingleNodeExecutor, remoteexec.TestClusterExecutor])
def test_settings_without_effect_are_settings_too(executor: Any) -> None:
    exe = executor(max_workers=1, hostname_localhost=True, refresh_rate=0.5)
    assert (exe.info["hostname_localhost"], exe.info["refresh_rate"]) == (True, 0.5)
    assert exe.batched(list_of_futures=[], n=1) == []


def test_a_worker_that_died_is_what_its_scripts_catch() -> None:
    assert issubclass(remoteexec.errors.TaskKilled, remoteexec.api.ExecutorlibSocketError)
