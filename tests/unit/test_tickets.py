"""How bursts are cut into tickets, and that tickets in the store hold each task once whatever crashes in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from remoteexec_server.store import crew as crew_module
from remoteexec_server.store.crew import BadTicket, Beat, CrewStore, Spec, owner_of, regroup
from remoteexec_server.store.session import Session
from remoteexec_server.store.tickets import Piece, Ticket, cut, enough, sizes
from remoteexec_server.wire.messages import BurstId, Entry, Pilots, Submit, TaskKey
from remoteexec_server.wire.resources import Resources

BURST = BurstId("c-1")
ONE, TWO = Resources(), Resources(threads_per_core=2)


def key(name: object) -> TaskKey:
    return TaskKey(f"t{name}")


def submit(*entries: Entry) -> Submit:
    return Submit(BURST, entries, (ONE, TWO), 1)


def entry(name: object, *needs: object, resources: int = 0) -> Entry:
    return Entry(key(name), resources, tuple(key(need) for need in needs))


def shapes(tickets: list[Ticket]) -> list[list[str]]:
    return [[piece.key for piece in ticket.pieces] for ticket in tickets]


def everything(_: TaskKey) -> bool:
    return True


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [
        (0, 4, []),
        (1, 4, [1]),
        (4, 4, [1, 1, 1, 1]),
        (20, 1, [5, 4, 3, 2, 2, 1, 1, 1, 1]),
    ],
)
def test_tickets_get_smaller(count: int, workers: int, expected: list[int]) -> None:
    assert list(sizes(count, workers)) == expected


@pytest.mark.parametrize(("count", "workers"), [(2_000, 4), (10_000, 4), (100_000, 4), (10_000, 100), (10_000, 1)])
def test_many_tasks_are_few_tickets_and_enough_for_all_workers(count: int, workers: int) -> None:
    found = list(sizes(count, workers))

    assert sum(found) == count
    assert found == sorted(found, reverse=True)
    assert workers <= len(found) <= max(128, 4 * workers) + 4 * workers


def test_while_there_are_enough_tickets_further_bursts_are_one_for_each_worker() -> None:
    assert list(sizes(100, 4, coarse=True)) == [25, 25, 25, 25]
    assert list(sizes(3, 4, coarse=True)) == [1, 1, 1]
    assert [enough(waiting, 4) for waiting in (0, 15, 16)] == [False, False, True]


def test_independent_tasks_of_equal_resources_share_tickets() -> None:
    tickets = cut(submit(*(entry(n, resources=n % 2) for n in range(6))), everything, 1, ONE)

    assert shapes(tickets) == [["t0"], ["t2"], ["t4"], ["t1"], ["t3"], ["t5"]]
    assert [ticket.resources for ticket in tickets] == [None] * 3 + [TWO] * 3


def test_a_chain_is_one_ticket_in_order() -> None:
    chain = [entry(0), *(entry(n, n - 1) for n in range(1, 5))]
    (ticket,) = cut(submit(*chain), everything, 4, ONE)

    assert [(piece.key, piece.needs) for piece in ticket.pieces] == [
        ("t0", ()),
        ("t1", ("t0",)),
        ("t2", ("t1",)),
        ("t3", ("t2",)),
        ("t4", ("t3",)),
    ]
    assert ticket.outside == frozenset()


def test_two_maps_one_after_the_other_are_as_few_tickets_as_one() -> None:
    count = 10_000
    first = [entry(n) for n in range(count)]
    second = [entry(count + n, n) for n in range(count)]

    tickets = cut(submit(*first, *second), everything, 4, ONE)

    assert len(tickets) <= 64
    assert all(ticket.outside == frozenset() for ticket in tickets)
    assert sorted(piece.position for ticket in tickets for piece in ticket.pieces) == list(range(2 * count))


def test_a_fan_in_waits_for_what_is_in_other_tickets() -> None:
    tickets = cut(submit(entry(0), entry(1), entry(2, 0, 1, 0), entry(3, 2)), everything, 4, ONE)

    assert shapes(tickets) == [["t0"], ["t1"], ["t2", "t3"]]
    assert [ticket.outside for ticket in tickets] == [frozenset(), frozenset(), {"t0", "t1"}]


def test_a_chain_whose_links_differ_in_resources_is_several_tickets() -> None:
    tickets = cut(submit(entry(0), entry(1, 0, resources=1), entry(2, 1, resources=1)), everything, 4, ONE)

    assert shapes(tickets) == [["t0"], ["t1", "t2"]]
    assert [ticket.outside for ticket in tickets] == [frozenset(), {"t0"}]


def test_what_has_ended_is_left_out_and_not_waited_for() -> None:
    over = {key(0)}
    tickets = cut(submit(entry(0), entry(1, 0), entry(2, 0, 1)), lambda task: task not in over, 4, ONE)

    assert shapes(tickets) == [["t1", "t2"]]
    assert tickets[0].pieces == (Piece(1, key(1)), Piece(2, key(2), (key(1),)))


def test_a_grid_of_tasks_is_few_tickets_none_of_which_waits_for_itself() -> None:
    width, depth = 300, 5
    entries = [entry(n) for n in range(width)]
    for row in range(1, depth):
        above = (row - 1) * width
        entries += [entry(row * width + n, above + n, above + (n + 1) % width) for n in range(width)]
    tickets = cut(submit(*entries), everything, 4, ONE)

    assert len(tickets) < 64 * depth
    done: set[TaskKey] = set()
    waiting = list(tickets)
    while waiting:
        possible = [ticket for ticket in waiting if ticket.outside <= done]
        assert possible, "tickets wait for each other"
        for ticket in possible:
            waiting.remove(ticket)
            done |= {piece.key for piece in ticket.pieces}
    assert len(done) == width * depth


def test_some_positions_alone_can_be_cut() -> None:
    tickets = cut(submit(entry(0), entry(1), entry(2, 0)), everything, 4, ONE, only={1, 2})

    assert shapes(tickets) == [["t1"], ["t2"]]
    assert tickets[1].outside == {"t0"}


# ---- in the store ----

PILOT = "rx-c-p0-0"


@pytest.fixture
def store(tmp_root: Path) -> CrewStore:
    tmp_root.mkdir(mode=0o700)
    store = CrewStore(Session.create(tmp_root, "s-1", "0f" * 32), "c")
    store.create(Spec(Pilots(2, ONE), ("python", "pilot"), "fake", 90.0), b"")
    store.join(PILOT)
    return store


TICKET = Ticket(BURST, tuple(Piece(n, key(n)) for n in range(6)))


def held(store: CrewStore) -> list[int]:
    """Positions in tickets and hands; in one hand each counts once."""
    found: list[int] = []
    for name in store.tickets():
        ticket = store.read(name)
        assert ticket is not None
        found += [piece.position for piece in ticket.pieces]
    for directory in store.members():
        found += [position for _, position in store.pieces(directory)]
    return sorted(found)


def test_what_was_written_is_read_and_taken_once(store: CrewStore) -> None:
    store.add([TICKET], 5)
    store.add([replace(TICKET, resources=TWO)], 3)
    second, first = store.tickets()

    assert (store.read(first), store.read(second)) == (TICKET, replace(TICKET, resources=TWO))
    store.join("rx-c-p0-1")
    assert (store.take(PILOT, first), store.take("rx-c-p0-1", first)) == (True, False)
    assert store.read(first) is None
    assert store.tickets() == [second]
    assert store.in_hand() == {PILOT: [TICKET], "rx-c-p0-1": []}
    store.finish(PILOT, first)
    assert store.in_hand() == {PILOT: [], "rx-c-p0-1": []}


class Crash(BaseException):
    """The process ends here."""


def crashing(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> bool:
    """Do something until its n-th change of the store; whether it got so far."""
    left = [step]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if not left[0]:
                raise Crash
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", counted(os.rename))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(crew_module, "_write", counted(crew_module._write))
        try:
            action()
        except Crash:
            return True
    return False


@pytest.mark.parametrize("kept", [0, 2])
def test_whatever_of_a_giving_back_is_done_each_task_is_held_once(
    store: CrewStore, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    for step in range(20):
        store.add([TICKET], 5)
        (name,) = store.tickets()
        assert store.take(PILOT, name)
        mine = replace(TICKET, pieces=TICKET.pieces[:kept])
        parts = [replace(TICKET, pieces=TICKET.pieces[kept:4]), replace(TICKET, pieces=TICKET.pieces[4:])]
        crashed = crashing(monkeypatch, step, partial(store.give_back, PILOT, name, mine, parts))
        assert held(store) == list(range(6))
        for path in (*(store.path / "tickets").iterdir(), *(store.path / "taken" / PILOT).iterdir()):
            path.unlink()
        if not crashed:
            assert step > 4
            return
    raise AssertionError("it never got to its end")


def test_whatever_of_a_release_is_done_each_task_is_held_once(
    store: CrewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = [replace(TICKET, pieces=TICKET.pieces[2:4]), replace(TICKET, pieces=TICKET.pieces[4:])]
    for step in range(20):
        store.join(PILOT)
        store.add([TICKET], 5)
        (name,) = store.tickets()
        assert store.take(PILOT, name)
        seized = store.seize(PILOT)
        assert seized == f"{PILOT}~"
        assert owner_of(seized) == PILOT
        crashed = crashing(monkeypatch, step, lambda: store.release(f"{PILOT}~", back, 0))
        assert [n for n in held(store) if n >= 2] == [2, 3, 4, 5]
        if not crashed:
            assert (held(store), store.members()) == ([2, 3, 4, 5], [])
            return
        store.release(f"{PILOT}~", [], 0)
        for path in (store.path / "tickets").iterdir():
            path.unlink()
    raise AssertionError("it never got to its end")


def test_one_of_several_seizes_what_a_dead_pilot_had(store: CrewStore) -> None:
    assert (store.seize(PILOT), store.seize(PILOT)) == (f"{PILOT}~", None)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"burst": 1, "pieces": []}', b"\xff\xfe", b'{"pieces": [[1]]}'])
def test_a_damaged_ticket_is_named(store: CrewStore, data: bytes) -> None:
    (store.path / "tickets" / "0-0-bad").write_bytes(data)

    with pytest.raises(BadTicket, match="0-0-bad"):
        store.read("0-0-bad")
    store.remove("0-0-bad")
    assert store.tickets() == []


def test_a_pilot_says_how_it_is(store: CrewStore) -> None:
    beat = Beat("7_1", "n1", 99, 1.5, ended=3)
    assert store.read_beat(PILOT) is None
    store.beat(PILOT, beat)
    assert store.read_beat(PILOT) == beat
    assert [name for name, _ in store.beats()] == [PILOT]
    store.hunger(PILOT, True)
    assert store.hungry() == [PILOT]
    store.hunger(PILOT, False)
    assert store.hungry() == []
    assert not store.stopped()
    store.stop()
    assert store.stopped()


def test_pieces_of_several_tickets_stay_apart_and_forget_ended_inputs() -> None:
    other = Ticket(BURST, (Piece(9, key(9), (key(1), key(2))),), TWO)
    pieces = [(TICKET.pieces[1], TICKET), (other.pieces[0], other), (TICKET.pieces[3], TICKET)]

    assert regroup(pieces, frozenset({key(1)})) == [
        replace(TICKET, pieces=(TICKET.pieces[1], TICKET.pieces[3])),
        replace(other, pieces=(Piece(9, key(9), (key(2),)),)),
    ]
