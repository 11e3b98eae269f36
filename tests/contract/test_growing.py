"""What tasks can do with the executor they run in, in a pool of processes as in jobs of a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import (
    BaseExecutor,
    FluxClusterExecutor,
    SingleNodeExecutor,
    TestClusterExecutor,
    current_executor,
    errors,
    get_item_from_future,
    split_future,
)
from tests.integration.conftest import installed
from tests.integration.running import running

pytestmark = pytest.mark.timeout(180)
WAIT_S = 90.0


PLACES = [
    *("fresh", "kept", "local", "pilots"),
    pytest.param("SLURM", marks=pytest.mark.slurm),
    pytest.param("Flux", marks=pytest.mark.flux),
]


@pytest.fixture(scope="module", params=PLACES)
def exe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseExecutor]:
    """Pools, the embedded scheduler with a job for each task or one pilot for all, SLURM behind SSH, and Flux."""
    if request.param == "SLURM":
        with running(installed(request.getfixturevalue("slurm_cluster"), "growing")) as far:
            yield far
        return
    if request.param == "Flux":
        root = request.getfixturevalue("flux_instance").new_root()
        with FluxClusterExecutor(cache_directory=root, poll_s=1.0) as there:
            yield there
        return
    root = tmp_path_factory.mktemp("growing") / "root"
    with (
        TestClusterExecutor(cache_directory=str(root))
        if request.param == "local"
        else TestClusterExecutor(cache_directory=str(root), block_allocation=True, max_workers=1)
        if request.param == "pilots"
        else SingleNodeExecutor(max_workers=2, block_allocation=request.param == "kept")
    ) as near:
        yield near


def add(a: Any, b: Any) -> Any:
    return a + b


def fib(n: int) -> Any:
    """Waits for nothing: needs no more than one place."""
    if n < 2:
        return n
    exe = current_executor()
    return exe.submit(add, exe.submit(fib, n - 1), exe.submit(fib, n - 2))


def test_a_recursion_by_futures(exe: BaseExecutor) -> None:
    future = exe.submit(fib, 4)
    after = exe.submit(add, future, 100)
    assert (future.result(WAIT_S), after.result(WAIT_S)) == (3, 103)


def total(count: int) -> Any:
    exe = current_executor()
    return exe.submit(sum, [exe.submit(add, n, n) for n in range(count)])


def test_a_task_maps_and_returns_the_future_of_the_sum(exe: BaseExecutor) -> None:
    assert exe.submit(total, 5).result(WAIT_S) == 20


def down(n: int) -> Any:
    return current_executor().submit(down, n - 1) if n else "down"


def test_links_of_links_lead_to_the_end(exe: BaseExecutor) -> None:
    assert exe.submit(add, exe.submit(down, 3), "!").result(WAIT_S) == "down!"


def waited() -> tuple[list[int], int, int, int]:
    exe = current_executor()
    mapped = list(exe.map(add, range(3), range(3)))
    futures = [exe.submit(add, n, n) for n in range(3)]
    done, _ = wait(futures[:2], timeout=60)
    quotient, rest = split_future(exe.submit(divmod, 7, 2), 2)
    both = exe.submit(add, quotient, get_item_from_future(exe.submit(dict, x=6), "x"))
    return mapped, len(done), sum(future.result() for future in as_completed(futures)), both.result() + rest.result()


def test_children_are_mapped_waited_for_and_selected_from(exe: BaseExecutor) -> None:
    assert exe.submit(waited).result(WAIT_S) == ([0, 2, 4], 2, 6, 10)


def imported() -> tuple[int, int | None, bool]:
    from remoteexec import checkpoint, current_executor, errors, get_item_from_future, worker_id

    checkpoint(lambda: None)
    item = get_item_from_future(current_executor().submit(dict, x=6), "x")
    return item.result(), worker_id(), issubclass(errors.TaskTimeout, errors.RemoteExecError)


def test_a_task_imports_what_it_needs_of_us(exe: BaseExecutor) -> None:
    item, number, known = exe.submit(imported).result(WAIT_S)
    assert (item, number in (None, 0, 1), known) == (6, True, True)


def large(count: int) -> float:
    exe = current_executor()
    ones = np.ones(count)
    child: Future[Any] = exe.submit(add, exe.submit(np.ones, count), ones)
    ones[:] = 7  # what was submitted is what counts
    return float(exe.submit(np.sum, child).result())


def test_large_arrays_go_to_children_and_back(exe: BaseExecutor) -> None:
    assert exe.submit(large, 100_000).result(WAIT_S) == 200_000.0


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def odd() -> None:
    raise Odd(1, 2)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def lock() -> Any:
    import threading

    return threading.Lock()


def caught() -> list[tuple[str, str, bool]]:
    exe = current_executor()
    child: Future[Any] = exe.submit(odd)
    found = []
    for future in (child, exe.submit(add, child, 1), exe.submit(kill), exe.submit(lock)):
        try:
            future.result()
        except Exception as exc:
            found.append((type(exc).__name__, str(exc), "in odd" in str(exc.__cause__)))
    return found


def test_a_task_catches_what_its_children_raise(exe: BaseExecutor) -> None:
    one, two, killed, unpicklable = exe.submit(caught).result(WAIT_S)
    assert (one, two) == (("Odd", "1 2", True), ("Odd", "1 2", True))
    assert (killed[0] in ("ChildLost", "TaskKilled"), "SIGSEGV" in killed[1]) == (True, True)
    assert (unpicklable[0], "cannot pickle" in unpicklable[1]) == ("ChildLost", True)


def returned(what: str) -> Any:
    exe = current_executor()
    child: Future[Any] = exe.submit({"odd": odd, "kill": kill}[what])
    return exe.submit(add, child, 1)


def test_a_task_fails_like_the_child_whose_future_it_returned(exe: BaseExecutor) -> None:
    failing, killed = exe.submit(returned, "odd"), exe.submit(returned, "kill")
    after = exe.submit(add, failing, 1)
    with pytest.raises(Odd, match="1 2") as caught:
        failing.result(WAIT_S)
    assert "in odd" in str(caught.value.__cause__)
    with pytest.raises(Odd, match="1 2"):
        after.result(WAIT_S)
    with pytest.raises(errors.TaskKilled, match="SIGSEGV"):
        killed.result(WAIT_S)


def cancelling(path: str) -> tuple[bool, bool]:
    exe = current_executor()
    first: Future[Any] = exe.submit(time.sleep, 30)
    child: Future[Any] = exe.submit(lambda _: Path(path).touch(), first)
    cancelled = first.cancel()
    for future in (first, child):
        try:
            future.result(60)
        except CancelledError:
            continue
        return cancelled, False
    return cancelled, True


def test_a_task_cancels_its_child(exe: BaseExecutor, tmp_path: Path) -> None:
    assert exe.submit(cancelling, str(tmp_path / "touched")).result(WAIT_S) == (True, True)
    assert not (tmp_path / "touched").exists()


def not_waited_for(path: str) -> str:
    current_executor().submit(late, path)
    return "gone"


def late(path: str) -> None:
    time.sleep(1.0)
    Path(path).write_text("written")


def test_a_task_that_is_cancelled_before_it_runs_has_no_children(exe: BaseExecutor, tmp_path: Path) -> None:
    path = tmp_path / "never"
    first = exe.submit(time.sleep, 1.0)
    parent = exe.submit(lambda _: not_waited_for(str(path)), first)
    assert parent.cancel()
    assert exe.submit(add, first, [0]).exception(WAIT_S) is not None
    assert not path.exists()
