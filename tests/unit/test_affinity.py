"""Which cores of its node a worker has: their numbers here, and what these are there."""

from __future__ import annotations

import os

import pytest

from remoteexec.allocation.base import Node
from remoteexec.allocation.kept import places
from remoteexec.allocation.nodes import Place
from remoteexec.allocation.pinning import PinnedNodes, chosen
from remoteexec.pool.ledger import Ledger, Need
from remoteexec_server import affinity
from tests.unit.test_allocation_nodes import Task

THREADS = [(0, 4), (1, 5), (2, 6), (3, 7)]
"""Of four cores with two threads each."""


def cores_of(ledger: Ledger[Task]) -> list[tuple[int, ...]]:
    found = []
    while (started := ledger.next()) is not None:
        assert isinstance(started[1], Place)
        found.append(started[1].cores)
    return found


@pytest.mark.parametrize(
    ("free", "count", "cores"),
    [
        (0b1111, 1, (0,)),
        (0b1100, 1, (2,)),
        (0b1101, 2, (2, 3)),
        (0b0101, 2, (0, 2)),
        (0b11101111, 4, (0, 1, 2, 3)),
        (0b11101110, 4, (1, 2, 3, 5)),
        (0b1, 2, ()),
    ],
)
def test_neighbours_are_preferred(free: int, count: int, cores: tuple[int, ...]) -> None:
    assert chosen(free, count) == cores


def test_tasks_that_run_at_once_have_cores_of_their_own() -> None:
    ledger: Ledger[Task] = Ledger(None, room=PinnedNodes([Node("a", 4)]))
    for name, cores in (("one", 1), ("two", 2), ("three", 1), ("four", 2)):
        ledger.add(Task(name, Need(cores)))
    _, first = ledger.next() or (None, Place())
    assert cores_of(ledger) == [(1, 2), (3,)]
    ledger.end(Need(1), first)
    assert cores_of(ledger) == []
    second = Place()
    second.node, second.cores = 0, (1, 2)
    ledger.end(Need(2), second)
    assert cores_of(ledger) == [(0, 1)]


def test_a_task_that_rested_is_counted_on_cores_that_are_free() -> None:
    room = PinnedNodes([Node("a", 2), Node("b", 3)])
    first = room.take(Need())
    room.give(Need(), first)
    room.take(Need())
    assert room.retake(Need(), first)
    assert (first.node, first.cores) == (0, (1,))
    room.lose(0)
    room.give(Need(), first)
    assert [room.take(Need()).cores for _ in range(2)] == [(0,), (1,)]


def test_ranks_on_several_nodes_have_cores_of_their_own_on_each() -> None:
    room = PinnedNodes([Node("a", 4), Node("b", 4)])
    one, ranks = Need(), Need(6, parts=6)
    first = room.take(one)
    place = room.take(ranks)
    assert [(part.name, part.cores, part.of) for part in place.parts] == [("a", (1, 2), 4), ("b", (0, 1, 2, 3), 4)]
    assert place.cores == (1, 2)
    room.give(one, first)
    room.give(ranks, place)
    assert [room.take(Need(4)).cores for _ in range(2)] == [(0, 1, 2, 3)] * 2


def test_kept_workers_have_cores_beside_each_other() -> None:
    node = Node("a", 5, gpus=("0", "1", "2"))
    assert [place.cores for place in places([node], Need(2, 1))] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("indices", "count", "cpus"),
    [
        ((0,), 8, {0}),
        ((0, 1), 8, {0, 4}),
        ((0,), 4, {0, 4}),
        ((2, 3), 4, {2, 3, 6, 7}),
        ((0,), 16, set()),
        ((1,), 3, set()),
    ],
)
def test_numbers_mean_cpus_or_cores_or_nothing(indices: tuple[int, ...], count: int, cpus: set[int]) -> None:
    assert affinity.cpus(THREADS, indices, count) == cpus


def test_only_what_may_be_used_is_grouped() -> None:
    siblings = {cpu: set(group) for group in THREADS for cpu in group}
    assert affinity.grouped({0, 1, 4, 6}, siblings.__getitem__) == [(0, 4), (1,), (6,)]
    assert affinity.grouped({3, 1}, lambda cpu: set()) == [(1,), (3,)]


def test_what_this_machine_has_is_seen() -> None:
    usable = os.sched_getaffinity(0)
    found = affinity.grouped(usable, affinity._siblings)
    assert {cpu for group in found for cpu in group} == usable
