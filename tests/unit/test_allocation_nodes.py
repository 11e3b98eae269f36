"""Room on many nodes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from remoteexec.allocation.base import Node
from remoteexec.allocation.nodes import ManyNodes, Place
from remoteexec.pool.ledger import Ledger, Need, TooLarge

CORE = Need()


@dataclass
class Task:
    name: str
    need: Need = CORE
    depth: int = 0


def ledger_of(*nodes: Node, cores: int | None = None) -> Ledger[Task]:
    return Ledger(None, room=ManyNodes(nodes, cores))


def started(ledger: Ledger[Task]) -> list[tuple[str, int, tuple[str, ...]]]:
    """Name, node and GPUs of all that start now."""
    found = []
    while (one := ledger.next()) is not None:
        task, place = one
        assert isinstance(place, Place)
        found.append((task.name, place.node, tuple(place)))
    return found


def on(node: int, *gpus: str) -> Place:
    place = Place(gpus)
    place.node = node
    return place


def test_small_tasks_fill_nodes_up_so_that_a_large_one_finds_an_empty_one() -> None:
    ledger = ledger_of(Node("a", 4), Node("b", 4))
    for name, cores in (("one", 1), ("two", 2), ("large", 4), ("last", 1), ("waits", 1)):
        ledger.add(Task(name, Need(cores)))

    assert started(ledger) == [("one", 0, ()), ("two", 0, ()), ("large", 1, ()), ("last", 0, ())]
    ledger.end(Need(4), on(1))
    assert started(ledger) == [("waits", 1, ())]


def test_gpus_have_identities_and_are_left_to_tasks_that_want_them() -> None:
    ledger = ledger_of(Node("a", 4, gpus=("0", "1")), Node("b", 4))
    for name, need in (("cpu", Need(1)), ("gpu", Need(1, 1)), ("both", Need(1, 2)), ("other", Need(1, 1))):
        ledger.add(Task(name, need))

    assert started(ledger) == [("cpu", 1, ()), ("gpu", 0, ("0",)), ("other", 0, ("1",))]
    ledger.end(Need(1, 1), on(0, "0"))
    ledger.end(Need(1, 1), on(0, "1"))
    assert started(ledger) == [("both", 0, ("0", "1"))]


def test_memory_is_counted_node_by_node() -> None:
    ledger = ledger_of(Node("a", 4, 100), Node("b", 4, 100))
    for name in ("one", "two", "three"):
        ledger.add(Task(name, Need(1, 0, 60)))

    assert started(ledger) == [("one", 0, ()), ("two", 1, ())]
    ledger.end(Need(1, 0, 60), on(0))
    assert started(ledger) == [("three", 0, ())]


def test_fewer_cores_than_there_are_may_be_used_at_once() -> None:
    ledger = ledger_of(Node("a", 2), Node("b", 2), cores=3)
    for name in "uvwx":
        ledger.add(Task(name))

    assert [name for name, _, _ in started(ledger)] == ["u", "v", "w"]
    ledger.end(Need(), on(0))
    assert started(ledger) == [("x", 1, ())]


def test_a_large_task_gets_a_node_of_its_own_while_small_ones_go_on_elsewhere() -> None:
    ledger = ledger_of(Node("a", 2), Node("b", 2))
    running = []
    for n in range(100):
        ledger.add(Task(f"small {n}"))
        if n == 4:
            ledger.add(Task("large", Need(2)))
    names = []
    for _ in range(30):
        while (one := ledger.next()) is not None:
            names.append(one[0].name)
            running.append(one)
        task, place = running.pop(0)
        ledger.end(task.need, place)

    assert "large" in names[: 4 + 2 * 4 + 4]
    assert len(names) > 25


def test_what_no_node_can_ever_hold_is_refused() -> None:
    ledger = ledger_of(Node("a", 2, 100, ("0",)), Node("b", 4))
    ledger.check(Need(4))
    ledger.check(Need(2, 1))
    for need in (Need(5), Need(4, 1), Need(1, 2), Need(2, 1, 101)):
        with pytest.raises(TooLarge, match="no node of the allocation has all of that"):
            ledger.check(need)


def test_a_lost_node_gets_no_tasks_and_what_only_it_could_hold_is_hopeless() -> None:
    room = ManyNodes([Node("a", 1), Node("b", 4)])
    ledger: Ledger[Task] = Ledger(None, room=room)
    ledger.add(Task("first", Need(4)))
    assert started(ledger) == [("first", 1, ())]
    for task in (Task("large", Need(4)), Task("small"), Task("next")):
        ledger.add(task)

    room.lose(1)
    assert ledger.clear_hopeless() == [Task("large", Need(4))]
    ledger.end(Need(4), on(1))
    assert started(ledger) == [("small", 0, ())]
    ledger.end(Need(), on(0))
    assert started(ledger) == [("next", 0, ())]
    assert len(ledger) == 0
