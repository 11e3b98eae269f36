"""How what runs on this machine is typed. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

from typing_extensions import assert_type

from remoteexec import (
    Shared,
    SingleNodeExecutor,
    TaskFuture,
    TaskInfo,
    current_executor,
    get_item_from_future,
    split_future,
)
from remoteexec.futures import AwaitableFuture


def energy(metal: str, strain: float = 1.0) -> float:
    return strain * len(metal)


def executors_are_executors() -> list[Executor]:
    return [
        SingleNodeExecutor(),
        SingleNodeExecutor(2, resource_dict={"cores": 1}, block_allocation=True, show_output="prefix"),
        SingleNodeExecutor(plot_dependency_graph="after", plot_dependency_graph_filename="graph.svg", debug=True),
        current_executor(),
    ]


def submit_and_map_know_what_the_function_returns(exe: SingleNodeExecutor) -> None:
    with exe as same:
        assert_type(same, SingleNodeExecutor)
    assert_type(exe.submit(energy, "Ag"), TaskFuture[float])
    assert_type(exe.submit(energy, "Ag").result(), float)
    assert_type(exe.submit(energy, "Ag", strain=1.0).task, TaskInfo)
    assert_type(exe.map(energy, ["Ag", "Cu"]), Iterator[float])
    assert_type(exe.info, dict[str, Any])


def batches_know_what_their_futures_return(exe: SingleNodeExecutor, futures: list[Future[int]]) -> None:
    assert_type(exe.batched(futures, 3), list[AwaitableFuture[list[int]]])


def a_task_knows_what_its_children_return() -> None:
    assert_type(current_executor().submit(energy, "Ag").result(), float)


def items_of_futures_are_futures(exe: SingleNodeExecutor) -> None:
    first: Future[Any] = split_future(exe.submit(divmod, 7, 2), 2)[0]
    exe.submit(energy, "Ag", get_item_from_future(first, 0))


async def asyncio_knows_what_the_function_returns(exe: SingleNodeExecutor) -> None:
    assert_type(await exe.submit(energy, "Ag"), float)


def mistakes_are_found(exe: SingleNodeExecutor) -> None:
    exe.submit()  # type: ignore[call-arg]
    exe.batched([1], 2)  # type: ignore[arg-type]
    SingleNodeExecutor(show_output="all")  # type: ignore[arg-type]
    SingleNodeExecutor(plot_dependency_graph="before")  # type: ignore[arg-type]


def energies(strains: list[float], metal: str) -> float:
    return sum(strains) * len(metal)


def what_is_shared_is_submitted_by_its_handle(exe: SingleNodeExecutor) -> None:
    shared = exe.share([0.1, 0.2])
    assert_type(shared, Shared[list[float]])
    assert_type(shared.value, list[float])
    assert_type(exe.submit(energies, shared, "Ag"), TaskFuture[float])
