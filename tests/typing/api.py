"""How the public names are typed. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

from typing_extensions import assert_type

from remoteexec import (
    BaseExecutor,
    RemoteExecutor,
    ResourceError,
    Resources,
    SlurmClusterExecutor,
    TaskFuture,
    TestClusterExecutor,
)
from remoteexec.config import ClusterConfig
from remoteexec.errors import RemoteExecError, TaskLost
from remoteexec_server.wire.messages import TaskKey


def energy(metal: str, strain: float = 1.0) -> float:
    return strain * len(metal)


def fit(strains: list[float], energies: list[float]) -> tuple[float, float]:
    return strains[0], energies[0]


def nothing() -> None: ...


def submit_knows_what_the_function_returns(exe: BaseExecutor, run: Future[float]) -> None:
    assert_type(exe.submit(energy, "Ag"), TaskFuture[float])
    assert_type(exe.submit(energy, "Ag").result(), float)
    assert_type(exe.submit(energy, "Ag", strain=1.0).result(timeout=5), float)
    assert_type(exe.submit(nothing).result(), None)
    assert_type(exe.submit(lambda: 3).result(), int)
    assert_type(exe.submit(energy, "Ag").exception(), BaseException | None)
    # futures stand for their results wherever the function takes them
    assert_type(exe.submit(fit, [1.0], [run]).result(), tuple[float, float])
    assert_type(exe.submit(energy, "Ag", resource_dict={"cores": 1, "run_time_max": 600}), TaskFuture[float])
    assert_type(exe.submit(energy, "Ag", resource_dict=Resources(partition="long")), TaskFuture[float])


def map_knows_what_the_function_returns(exe: BaseExecutor) -> None:
    assert_type(exe.map(energy, ["Ag", "Cu"]), Iterator[float])
    assert_type(list(exe.map(energy, ["Ag"], [1.0], timeout=5, chunksize=1)), list[float])


def executors_are_executors() -> list[Executor]:
    config = ClusterConfig("mine", "login.example.org")
    return [
        RemoteExecutor("mycluster"),
        RemoteExecutor(config, {"cores": 1}, wait=False, password=lambda: None, config_file=Path("clusters.toml")),
        SlurmClusterExecutor(),
        SlurmClusterExecutor(resource_dict={"cores": 1}, cache_directory="/scratch/me", poll_s=60.0, wait=False),
        TestClusterExecutor(resource_dict=Resources()),
    ]


def a_with_block_gives_the_executor_itself() -> None:
    with RemoteExecutor("mycluster") as remote:
        assert_type(remote, RemoteExecutor)
    with TestClusterExecutor() as local:
        assert_type(local, TestClusterExecutor)
        assert_type(len(local), int)
        assert_type(local.shutdown(wait=True, cancel_futures=True), None)


def futures_are_futures(future: TaskFuture[int]) -> Future[int]:
    assert_type(future.key, TaskKey)
    assert_type(future.cancel(), bool)
    return future


def errors_are_caught_by_their_root(error: RemoteExecError, lost: TaskLost, resource: ResourceError) -> None:
    assert_type(error.transient, bool)
    assert_type(lost.job, str | None)
    assert_type(lost.reason, str)
    root: RemoteExecError = lost
    wrong_value: ValueError = resource
    del root, wrong_value


def mistakes_are_found(exe: BaseExecutor) -> None:
    exe.submit()  # type: ignore[call-arg]
    exe.submit(3)  # type: ignore[arg-type]
    exe.map(energy, 3)  # type: ignore[arg-type]
    RemoteExecutor()  # type: ignore[call-arg]
    RemoteExecutor("mycluster", wiat=True)  # type: ignore[call-arg]
    Resources(core=1)  # type: ignore[call-arg]
