"""Which tasks go first where tasks submit tasks, and what those that wait give up and take again."""

from __future__ import annotations

from dataclasses import dataclass

from remoteexec.pool.ledger import Ledger, Need

CORE, GPU = Need(), Need(1, 1)


@dataclass
class Task:
    name: str
    depth: int = 0
    need: Need = CORE


def started(ledger: Ledger[Task]) -> list[str]:
    names = []
    while (found := ledger.next()) is not None:
        names.append(found[0].name)
    return names


def test_deeper_tasks_go_first_and_those_of_one_depth_in_order() -> None:
    ledger: Ledger[Task] = Ledger(None)
    for task in (Task("a"), Task("b1", 1), Task("c1", 2), Task("b2", 1), Task("c2", 2), Task("d")):
        ledger.add(task)
    assert started(ledger) == ["c1", "c2", "b1", "b2", "a", "d"]


def test_deeper_tasks_go_first_among_different_needs() -> None:
    ledger: Ledger[Task] = Ledger(None, ["0"])
    for task in (Task("a"), Task("b", 1, GPU), Task("c", 2)):
        ledger.add(task)
    assert started(ledger) == ["c", "b", "a"]


def test_a_task_that_waits_gives_its_cores_and_gpus_to_others_and_gets_the_same_back() -> None:
    ledger: Ledger[Task] = Ledger(1, ["0"])
    ledger.add(Task("parent", 0, GPU))
    parent = ledger.next()
    ledger.add(Task("child", 1, GPU))
    assert ledger.next() is None
    assert parent is not None
    ledger.end(GPU, parent[1])
    child = ledger.next()
    assert child is not None
    assert ledger.take(GPU, parent[1]) is False
    ledger.end(GPU, child[1])
    assert ledger.take(GPU, parent[1]) is True
    assert ledger.take(GPU, parent[1]) is False


def test_a_task_gets_no_place_back_while_there_is_none() -> None:
    ledger: Ledger[Task] = Ledger(None, tasks=1)
    ledger.add(Task("other"))
    assert started(ledger) == ["other"]
    assert ledger.take(CORE, ()) is False
    ledger.end(CORE, ())
    assert ledger.take(CORE, ()) is True
