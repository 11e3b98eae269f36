"""Calls that take one result and wait for nothing else: they follow the call that makes it, on the same worker."""

from __future__ import annotations

import concurrent.futures
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor, current_executor
from remoteexec.errors import TaskKilled

WAIT_S = 60


def plus(value: int, more: int = 1) -> int:
    return value + more


def fail(value: int) -> int:
    raise ValueError(f"no more than {value}")


def grown(value: int) -> Any:
    return current_executor().submit(plus, value)


def buffers(value: int) -> Any:
    """A result that no call inherits: it has buffers."""
    import numpy as np

    return np.full(2000, value)


def first(values: Any) -> int:
    return int(values[0])


def long_text(value: int) -> str:
    return f"{value:>100000}"


def die(value: int) -> int:
    os._exit(3)


def noted(value: int, path: str, seconds: float = 0.0) -> int:
    with open(path, "a") as file:
        file.write(f"{value}\n")
    time.sleep(seconds)
    return value + 1


@pytest.fixture(params=[1, 2])
def executor(request: pytest.FixtureRequest) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(request.param, block_allocation=True) as executor:
        for future in [executor.submit(plus, n) for n in range(200)]:  # short ones: workers are given some ahead
            future.result(WAIT_S)
        yield executor


def test_a_long_chain_gives_what_its_calls_give(executor: SingleNodeExecutor) -> None:
    links = [executor.submit(plus, 0)]
    for _ in range(500):
        links.append(executor.submit(plus, links[-1]))
    assert [link.result(WAIT_S) for link in links] == list(range(1, 502))


def test_a_failure_reaches_the_rest_of_a_chain_and_no_call_behind_it_runs(
    executor: SingleNodeExecutor, tmp_path: Path
) -> None:
    path = str(tmp_path / "seen")
    links = [executor.submit(plus, 0)]
    links += [executor.submit(plus, links[-1]) for _ in range(1)]
    for _ in range(100):
        links.append(executor.submit(plus, links[-1]))
    links.append(executor.submit(fail, links[-1]))
    for _ in range(100):
        links.append(executor.submit(noted, links[-1], path))
    errors = {(type(link.exception(WAIT_S)), str(link.exception(WAIT_S))) for link in links[102:]}
    executor.submit(plus, 1).result(WAIT_S)
    assert (errors, os.path.exists(path)) == ({(ValueError, "no more than 102")}, False)


@pytest.mark.parametrize(("odd", "back"), [(buffers, first), (long_text, int), (grown, plus)])
def test_results_that_cannot_be_inherited_arrive_all_the_same(
    executor: SingleNodeExecutor, odd: Any, back: Any
) -> None:
    link = executor.submit(plus, 0)
    for _ in range(100):
        link = executor.submit(plus, executor.submit(back, executor.submit(odd, link)))
    assert link.result(WAIT_S) == {first: 101, int: 101, plus: 301}[back]


def test_cancelling_the_executors_futures_cancels_the_chain(executor: SingleNodeExecutor, tmp_path: Path) -> None:
    path = str(tmp_path / "seen")
    links = [executor.submit(noted, 0, path, 1.0)]
    for _ in range(200):
        links.append(executor.submit(noted, links[-1], path))
    executor.shutdown(cancel_futures=True)
    ended = [link.cancelled() or link.result(0) for link in links]
    ran = len(Path(path).read_text().splitlines())
    assert (ended, ran) in [([1] + [True] * 200, 1), ([1, 2] + [True] * 199, 2)]


def test_a_link_that_is_cancelled_takes_the_rest_along_and_nothing_before(executor: SingleNodeExecutor) -> None:
    links = [executor.submit(plus, 0)]
    for _ in range(300):
        links.append(executor.submit(plus, links[-1]))
    was = links[250].cancel()
    ends = concurrent.futures.wait(links, WAIT_S)
    assert not ends.not_done
    if was:
        assert [links[249].result(), links[250].cancelled()] == [250, True]
        with pytest.raises(concurrent.futures.CancelledError):
            links[300].result()
    else:
        assert links[300].result() == 301


def test_a_worker_that_dies_in_a_chain_ends_the_rest_of_it_and_is_replaced() -> None:
    with SingleNodeExecutor(1, block_allocation=True, restart_limit=1) as executor:
        for future in [executor.submit(plus, n) for n in range(200)]:
            future.result(WAIT_S)
        links = [executor.submit(plus, 0)]
        for _ in range(100):
            links.append(executor.submit(plus, links[-1]))
        links.append(executor.submit(die, links[-1]))
        for _ in range(100):
            links.append(executor.submit(plus, links[-1]))
        kinds = {type(link.exception(WAIT_S)) for link in links[101:]}
        assert (links[100].result(WAIT_S), kinds, executor.submit(plus, 1).result(WAIT_S)) == (101, {TaskKilled}, 2)


def test_a_result_is_inherited_as_it_was_returned() -> None:
    """Not as another call, which runs between, has changed it."""
    with SingleNodeExecutor(1, block_allocation=True) as executor:
        for future in [executor.submit(plus, n) for n in range(200)]:
            future.result(WAIT_S)
        kept = executor.submit(_keep, [0])
        results = [executor.submit(_change, kept) for _ in range(3)]
        assert [result.result(WAIT_S) for result in results] == [[0, 1]] * 3


_kept: list[list[int]] = []


def _keep(values: list[int]) -> list[int]:
    _kept.append(values)
    return values


def _change(values: list[int]) -> list[int]:
    _kept.append(values)
    values.append(1)
    return values


@pytest.mark.parametrize("seed", range(3))
def test_chains_of_all_kinds_end_as_they_would_one_by_one(executor: SingleNodeExecutor, seed: int) -> None:
    """Results with buffers, growing calls and failures among short ones; others beside them, some of them cancelled."""
    chance = random.Random(seed)
    chains: list[tuple[Any, Any]] = []
    for _ in range(30):
        link: Any = executor.submit(plus, 0)
        expected: Any = 1
        for _ in range(chance.randrange(1, 40)):
            kind = chance.choices(["plus", "buffers", "grown", "fail", "beside", "cancel"], [60, 5, 5, 1, 20, 5])[0]
            if kind == "plus":
                link, expected = executor.submit(plus, link), expected if expected is None else expected + 1
            elif kind == "buffers":
                link = executor.submit(first, executor.submit(buffers, link))
            elif kind == "grown":
                link, expected = executor.submit(grown, link), expected if expected is None else expected + 1
            elif kind == "fail":
                link, expected = executor.submit(fail, link), None
            elif kind == "beside":
                executor.submit(plus, link)
            else:
                executor.submit(plus, link).cancel()
        chains.append((link, expected))
    ended = concurrent.futures.wait([link for link, _ in chains], WAIT_S)
    assert not ended.not_done
    found = [None if link.exception() is not None else link.result() for link, _ in chains]
    assert found == [expected for _, expected in chains]
