"""Room on many nodes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from remoteexec.allocation.base import Node
from remoteexec.allocation.nodes import ManyNodes, Place
from remoteexec.allocation.spread import spread
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


def test_nodes_take_nothing_until_they_are_open() -> None:
    room = ManyNodes([Node("a", 2), Node("b", 2), Node("c", 2)], is_open=False)
    ledger: Ledger[Task] = Ledger(None, room=room)
    room.check(Need(2))
    for name in "xyz":
        ledger.add(Task(name, Need(2)))
    assert started(ledger) == []
    ledger.open(1)
    ledger.lose(2)
    ledger.open(2)
    assert [(name, node) for name, node, _ in started(ledger)] == [("x", 1)]
    assert len(ledger) == 2


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

    assert ledger.lose(1) == [Task("large", Need(4))]
    ledger.end(Need(4), on(1))
    assert started(ledger) == [("small", 0, ())]
    ledger.end(Need(), on(0))
    assert started(ledger) == [("next", 0, ())]
    assert len(ledger) == 0


def parts(ledger: Ledger[Task]) -> list[tuple[str, list[tuple[str, int, tuple[str, ...]]]]]:
    """Name, and of each part its node, how many are there, and their GPUs, of all that start now."""
    found = []
    while (one := ledger.next()) is not None:
        task, place = one
        assert isinstance(place, Place)
        found.append((task.name, [(part.name, part.ranks, part.gpus) for part in place.parts]))
    return found


def test_ranks_are_on_the_first_of_nodes_with_as_much_room_whichever_got_ready_first() -> None:
    room = ManyNodes([Node(name, 4) for name in "abc"], is_open=False)
    ledger: Ledger[Task] = Ledger(None, room=room)
    for node in (2, 1, 0):
        ledger.open(node)
    ledger.add(Task("large", Need(6, parts=6)))
    assert parts(ledger) == [("large", [("a", 4, ()), ("b", 2, ())])]


def test_ranks_that_fit_on_one_node_wait_for_one_and_others_are_spread() -> None:
    ledger = ledger_of(Node("a", 4), Node("b", 4))
    for task in (Task("one"), Task("large", Need(6, parts=6)), Task("small", Need(2, parts=2))):
        ledger.add(task)

    assert parts(ledger) == [("one", []), ("large", [("a", 2, ()), ("b", 4, ())])]
    ledger.end(CORE, on(0))
    assert parts(ledger) == [("small", [("a", 2, ())])]


def test_all_that_ranks_took_is_free_again() -> None:
    ledger = ledger_of(Node("a", 4), Node("b", 4), Node("c", 4))
    large = Task("large", Need(10, parts=10))
    ledger.add(large)
    one = ledger.next()
    assert one is not None
    ledger.end(large.need, one[1])
    for name in "xyz":
        ledger.add(Task(name, Need(4)))
    assert sorted(node for _, node, _ in started(ledger)) == [0, 1, 2]


def test_who_names_nodes_gets_as_many_evenly_and_those_with_the_least_room() -> None:
    ledger = ledger_of(Node("a", 8), Node("b", 2), Node("c", 4))
    ledger.add(Task("two", Need(3, parts=3, nodes=2)))
    ledger.add(Task("one", Need(2, parts=2, nodes=1)))

    assert parts(ledger) == [("two", [("b", 2, ()), ("c", 1, ())]), ("one", [("c", 2, ())])]


def test_each_rank_has_its_threads_gpus_and_memory_where_it_is() -> None:
    ledger = ledger_of(Node("a", 4, 100, ("0", "1")), Node("b", 8, 100, ("0", "1")))
    ledger.add(Task("gpus", Need(6, 3, 90, parts=3)))
    ledger.add(Task("gpu", Need(1, 1)))

    assert parts(ledger) == [("gpus", [("a", 2, ("0", "1")), ("b", 1, ("0",))]), ("gpu", [])]


def test_ranks_over_nodes_are_held_several_and_never_exceed_what_may_be_used() -> None:
    draw = random.Random(5)
    nodes = [Node(f"n{number}", 4, 400, ("0", "1")) for number in range(5)]
    for limit in (None, 13):
        ledger = ledger_of(*nodes, cores=limit)
        waiting = [
            Task(f"{number}", draw.choice([CORE, Need(2), Need(1, 1, 50), Need(12, 6, 600, parts=6), Need(8, parts=8)]))
            for number in range(300)
        ] + [Task("two", Need(6, parts=3, nodes=3)), Task("all", Need(13, parts=13))]
        draw.shuffle(waiting)
        for task in waiting:
            ledger.add(task)
        running: list[tuple[Task, tuple[str, ...]]] = []
        begun = 0
        while len(ledger) or running:
            while (one := ledger.next()) is not None:
                begun += 1
                running.append(one)
            assert running, "nothing runs, and something waits"
            used = Counter[str]()
            for task, place in running:
                assert isinstance(place, Place)
                for part in place.parts:
                    used[part.name] += part.need.cores
                    assert len(set(part.gpus)) == part.need.gpus
                if not place.parts:
                    used[nodes[place.node].name] += task.need.cores
            assert max(used.values()) <= 4
            assert sum(used.values()) <= (limit or 20)
            task, place = running.pop(draw.randrange(len(running)))
            ledger.end(task.need, place)
        assert begun == 302


def test_ranks_over_nodes_are_not_starved_by_small_tasks() -> None:
    ledger = ledger_of(Node("a", 2), Node("b", 2), Node("c", 2))
    for number in range(8):
        ledger.add(Task(f"small {number}"))
    ledger.add(Task("large", Need(4, parts=4)))
    running, names = [], list[str]()
    for number in range(40):
        ledger.add(Task(f"more {number}"))
        while (one := ledger.next()) is not None:
            running.append(one)
            names.append(one[0].name)
        task, place = running.pop(0)
        ledger.end(task.need, place)

    assert "large" in names[: 6 + 2 * 6 + 8]


def test_ranks_that_no_nodes_can_ever_hold_are_refused() -> None:
    ledger = ledger_of(Node("a", 4), Node("b", 4), cores=7)
    ledger.check(Need(7, parts=7))
    for need in (Need(8, parts=8), Need(6, parts=2, nodes=3), Need(6, parts=6, nodes=3), Need(5, parts=1, nodes=1)):
        with pytest.raises(TooLarge):
            ledger.check(need)
    with pytest.raises(TooLarge, match="3 ranks, each of 2 cores, 1 GPUs"):
        ledger.check(Need(6, 3, parts=3))


def test_a_lost_node_takes_its_part_of_the_ranks_and_the_rest_is_free_once() -> None:
    room = ManyNodes([Node("a", 4), Node("b", 4), Node("c", 4)])
    ledger: Ledger[Task] = Ledger(None, room=room)
    large = Task("large", Need(8, parts=8))
    ledger.add(large)
    one = ledger.next()
    assert one is not None
    ledger.lose(0)
    ledger.end(large.need, one[1])
    ledger.add(large)
    ledger.add(Task("late"))
    assert parts(ledger) == [("large", [("b", 4, ()), ("c", 4, ())])]
    assert ledger.lose(1) == []
    with pytest.raises(TooLarge):
        ledger.check(large.need)


@pytest.mark.parametrize(
    ("count", "nodes", "room", "found"),
    [
        (6, 0, [(0, 4), (1, 4)], [(0, 4), (1, 2)]),
        (9, 0, [(0, 4), (1, 4)], None),
        (6, 2, [(0, 4), (1, 4)], [(0, 3), (1, 3)]),
        (5, 2, [(0, 2), (1, 8), (2, 3)], [(2, 3), (0, 2)]),
        (5, 2, [(0, 2), (1, 2)], None),
        (2, 3, [(0, 2), (1, 2), (2, 2)], None),
    ],
)
def test_parts_are_shared_out_among_nodes(
    count: int, nodes: int, room: list[tuple[int, int]], found: list[tuple[int, int]] | None
) -> None:
    assert spread(count, nodes, room) == found
