"""What starts next on one machine: pure decisions."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from remoteexec.pool.ledger import LOOK_AT, PATIENCE, Ledger, Need, TooLarge


@dataclass(frozen=True)
class Task:
    name: str
    need: Need = field(default_factory=Need)
    depth: int = 0


def ledger(cores: int | None = 4, gpus: tuple[str, ...] = (), tasks: int | None = None, *waiting: Task) -> Ledger[Task]:
    found: Ledger[Task] = Ledger(cores, gpus, tasks)
    for task in waiting:
        found.add(task)
    return found


def start_all(found: Ledger[Task]) -> list[str]:
    """Names of what starts now."""
    names = []
    while (started := found.next()) is not None:
        names.append(started[0].name)
    return names


def test_tasks_start_in_order_until_the_cores_are_taken() -> None:
    found = ledger(3, (), None, *[Task(name) for name in "abcde"])
    assert (start_all(found), len(found), [task.name for task in found]) == (["a", "b", "c"], 2, ["d", "e"])
    found.end(Need(), ())
    assert start_all(found) == ["d"]


def test_tasks_start_until_as_many_run_as_may() -> None:
    found = ledger(None, (), 2, *[Task(name) for name in "abc"])
    assert start_all(found) == ["a", "b"]
    found.end(Need(), ())
    assert start_all(found) == ["c"]


def test_a_task_that_fits_goes_past_one_that_does_not() -> None:
    found = ledger(4, (), None, Task("a", Need(3)), Task("large", Need(4)), Task("b"), Task("c"))
    assert start_all(found) == ["a", "b"]


@pytest.mark.parametrize(
    ("cores", "tasks", "gpus", "large", "small", "patience"),
    [
        (4, None, (), Need(4), Need(1), PATIENCE * 4),
        (None, 3, ("0", "1"), Need(1, 2), Need(1, 1), PATIENCE * 3),
    ],
)
def test_a_large_task_is_not_passed_by_for_ever(
    cores: int | None, tasks: int | None, gpus: tuple[str, ...], large: Need, small: Need, patience: int
) -> None:
    found = ledger(cores, gpus, tasks, Task("first", small))
    running = found.next()
    found.add(Task("large", large))
    passed_by = 0
    while running is not None:
        found.add(Task("small", small))
        started = found.next()
        found.end(running[0].need, running[1])
        if started is not None:
            passed_by += 1
            assert (started[0].name, passed_by <= patience) == ("small", True)
        running = started
    following = found.next()
    assert following is not None
    assert (passed_by, following[0].name) == (patience, "large")


def test_gpus_are_lent_to_one_task_at_a_time() -> None:
    found = ledger(8, ("0", "1", "2"), None, Task("a", Need(1, 2)), Task("b", Need(1, 1)), Task("c", Need(1, 1)))
    assert found.next() == (Task("a", Need(1, 2)), ("0", "1"))
    assert found.next() == (Task("b", Need(1, 1)), ("2",))
    assert found.next() is None
    found.end(Need(1, 2), ("0", "1"))
    assert found.next() == (Task("c", Need(1, 1)), ("0",))


@pytest.mark.parametrize(
    ("need", "text"),
    [(Need(5), "asks for 5 cores, and max_cores is 4"), (Need(1, 2), "asks for 2 GPUs, and 1 are known here")],
)
def test_what_can_never_start_is_refused(need: Need, text: str) -> None:
    found = ledger(4, ("0",))
    with pytest.raises(TooLarge, match=text):
        found.check(need)
    assert len(found) == 0
    found.check(Need(4, 1))


def test_a_task_that_could_not_be_started_is_the_first_again() -> None:
    found = ledger(2, ("0",), None, Task("a", Need(1, 1)), Task("b"))
    started = found.next()
    assert started is not None
    found.put_back(*started)
    assert ([task.name for task in found], start_all(found)) == (["a", "b"], ["a", "b"])


def test_the_line_can_be_emptied() -> None:
    found = ledger(1, (), None, *[Task(name, Need(1 + n % 2)) for n, name in enumerate("abcd")])
    assert [task.name for task in found.clear()] == ["a", "b", "c", "d"]
    assert (len(found), found.next()) == (0, None)


def test_what_runs_at_once_never_takes_more_than_there_is() -> None:
    dice = random.Random(5)
    found = ledger(6, ("0", "1"), 5)
    running: list[tuple[Task, tuple[str, ...]]] = []
    started = 0
    for number in range(2_000):
        found.add(Task(str(number), Need(dice.randint(1, 6), dice.randint(0, 2))))
        while (next_one := found.next()) is not None:
            running.append(next_one)
            started += 1
        lent = [gpu for _, gpus in running for gpu in gpus]
        assert sum(task.need.cores for task, _ in running) <= 6
        assert (len(running) <= 5, len(lent), all(len(gpus) == task.need.gpus for task, gpus in running)) == (
            True, len(set(lent)), True
        )  # fmt: skip
        for _ in range(dice.randint(0, len(running))):
            task, gpus = running.pop(dice.randrange(len(running)))
            found.end(task.need, gpus)
    assert started + len(found) == 2_000


@pytest.mark.parametrize("seed", range(20))
def test_what_starts_is_the_first_that_fits_of_as_many_kinds_as_are_looked_at(seed: int) -> None:
    """Against a plain list of all that wait, looked through from its beginning each time."""
    draw = random.Random(seed)
    found = ledger(8, ("0", "1"))
    running: list[tuple[Need, tuple[str, ...]]] = []
    line: list[tuple[int, Task]] = []
    free, passed_by = Need(8, 2), 0
    for number in range(1, 600):
        what = draw.random()
        if what < 0.5:
            need = Need(draw.randint(1, 8), draw.randint(0, 2), draw.choice((0, number)))
            task = Task(str(number), need, draw.choice((0, 0, 0, 1, 2)))
            found.add(task)
            line.append((number - 10_000 * task.depth, task))
        elif what < 0.55:
            task = Task(f"first {number}", Need(draw.randint(1, 8), 0, number))
            found.add_first(task)
            line.append((-number, task))
        elif running:
            need, place = running.pop(draw.randrange(len(running)))
            found.end(need, place)
            free = Need(free.cores + need.cores, free.gpus + need.gpus)
        line.sort(key=lambda waiting: waiting[0])
        while True:
            heads = list({task.need: (place, task) for place, task in reversed(line)}.values())
            heads = sorted(heads, key=lambda head: head[0])[: LOOK_AT if passed_by < PATIENCE * 8 else 1]
            fits = [head for head in heads if head[1].need.cores <= free.cores and head[1].need.gpus <= free.gpus]
            started = found.next()
            assert started is None if not fits else started is not None and started[0] == fits[0][1]
            if started is None:
                break
            need = started[0].need
            passed_by = 0 if fits[0] == heads[0] else passed_by + need.cores
            line.remove(fits[0])
            running.append((need, started[1]))
            free = Need(free.cores - need.cores, free.gpus - need.gpus)
    assert [task.name for task in found] == [task.name for _, task in line]


def test_a_task_that_is_the_first_of_its_line_again_stays_so() -> None:
    found = ledger(1, (), None, Task("child", depth=2), Task("sibling", depth=2))
    found.add_first(Task("again"))
    found.add(Task("cousin", depth=2))
    assert [task.name for task in found] == ["again", "child", "sibling", "cousin"]
