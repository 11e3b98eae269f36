"""What a pilot decides: what fits, what it starts next, what it gives back, when it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remoteexec_server.pilot import plan
from remoteexec_server.pilot.hand import Hand
from remoteexec_server.pilot.plan import Grant, Ledger
from remoteexec_server.pilot.worker import END, ORDER, Order, unpacked
from remoteexec_server.store.tickets import Piece, Ticket
from remoteexec_server.wire.messages import BurstId, TaskKey
from remoteexec_server.wire.pilots import Pilots, check_fits, pilot_resources
from remoteexec_server.wire.resources import ResourceError, Resources

BURST = BurstId("c-1")
WORKER = Resources(cores=2, threads_per_core=2, memory_max_gb=1.0, run_time_max_s=3600.0)
PILOTS = Pilots(3, WORKER, workers=4)


def test_a_pilot_is_one_node_with_room_for_its_workers_that_is_warned_before_its_end() -> None:
    assert pilot_resources(PILOTS, "slurm") == replace(
        WORKER, cores=8, memory_max_gb=4.0, num_nodes=1, slurm_cmd_args=("--signal=B:USR1@60",)
    )


def test_only_slurm_is_asked_for_a_warning() -> None:
    assert pilot_resources(PILOTS, "flux").slurm_cmd_args == ()


@pytest.mark.parametrize(
    "worker", [replace(WORKER, run_time_max_s=120.0), replace(WORKER, slurm_cmd_args=("--signal=B:TERM@300",))]
)
def test_a_short_pilot_and_one_with_a_signal_of_its_own_are_not_warned(worker: Resources) -> None:
    assert pilot_resources(replace(PILOTS, resources=worker), "slurm").slurm_cmd_args == worker.slurm_cmd_args


@pytest.mark.parametrize(
    "resources",
    [
        WORKER,
        Resources(),
        Resources(cores=4, threads_per_core=4, memory_max_gb=4.0),
        Resources(cwd="/tmp", environment={"A": "1"}, run_time_max_s=60.0),
    ],
)
def test_what_fits_is_taken(resources: Resources) -> None:
    check_fits(resources, PILOTS)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(cores=17), "cores=17: .* room for 8 MPI ranks"),
        (Resources(cores=8, threads_per_core=3), "24 CPUs .* has 16"),
        (Resources(memory_max_gb=4.5), "4.5 GB of memory .* has 4"),
        (Resources(gpus_per_core=1), "GPU|gpus"),
        (Resources(run_time_max_s=4000.0), "4000 seconds .* has 3600"),
        (Resources(partition="gpu"), "partition='gpu': with block_allocation"),
        (Resources(extra={"x": 1}), "extra="),
    ],
)
def test_what_no_pilot_could_run_is_refused_with_the_reason(resources: Resources, words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        check_fits(resources, PILOTS)


def test_the_ledger_gives_what_there_is_and_takes_it_back() -> None:
    ledger = Ledger(4, ["0", "1"], 2.0)
    one = Resources(gpus_per_core=1, memory_max_gb=1.5)

    first = ledger.take(one)
    assert first == Grant(1, ("0",), 1.5)
    assert ledger.take(one) is None  # memory
    second = ledger.take(Resources(cores=3))
    assert second == Grant(3)
    assert ledger.take(Resources()) is None  # CPUs
    assert first is not None
    assert second is not None
    ledger.give(second)
    ledger.give(first)
    assert ledger == Ledger(4, ["0", "1"], 2.0)
    assert not ledger.has_room(Resources(cores=3, gpus_per_core=1))


@pytest.mark.parametrize(
    ("length_s", "takes_until", "gives_at"), [(100.0, 90.0, 95.0), (86_400.0, 86_280.0, 86_340.0), (0.0, 0.0, 0.0)]
)
def test_the_last_twentieth_of_a_pilots_time_belongs_to_its_ending_but_at_most_a_minute(
    length_s: float, takes_until: float, gives_at: float
) -> None:
    ending = plan.ending(1000.0, 1000.0 + length_s)

    assert (ending.takes_until, ending.gives_at) == (1000.0 + takes_until, 1000.0 + gives_at)
    assert ending.allows(ending.gives_at - 10.0, 9.0)
    assert not ending.allows(ending.gives_at - 10.0, 11.0)


def test_the_last_task_is_started_while_there_is_time_for_one_that_takes_longer_than_the_others() -> None:
    ending = plan.ending(1000.0, 1100.0)

    assert [ending.left_s(1085.0, mean_s) for mean_s in (None, 2.0, 10.0)] == [10.0, 7.0, -5.0]


def test_a_pilot_without_a_limit_never_ends() -> None:
    assert plan.ending(1000.0, float("inf")).allows(1e12, 1e6)


@pytest.mark.parametrize(
    ("waiting", "hungry", "mean_s", "expected"),
    [
        (100, 0, 1.0, 0),
        (100, 1, 1.0, 50),
        (100, 3, 1.0, 75),
        (100, 1, 0.001, 0),  # done sooner than given away
        (1, 1, 60.0, 1),  # its worker is busy, the other has none
        (2, 1, None, 1),
    ],
)
def test_a_pilot_shares_what_it_has_not_started_if_that_takes_long(
    waiting: int, hungry: int, mean_s: float | None, expected: int
) -> None:
    assert plan.share(waiting, hungry, mean_s, 1) == expected


def test_a_pilot_shares_quick_tasks_that_wait_behind_a_long_one() -> None:
    assert [plan.share(waiting, 1, 0.001, 2, busy_s=60.0) for waiting in (1, 10)] == [1, 5]


def test_things_are_cut_into_parts_of_about_the_same_size() -> None:
    assert list(plan.parts(7, 3)) == [(0, 2), (2, 4), (4, 7)]
    assert list(plan.parts(2, 5)) == [(0, 1), (1, 2)]


def test_an_order_has_one_length_and_is_read_as_it_was_written() -> None:
    order = Order(BurstId("b" * 100), 10**6, TaskKey("k" * 100))

    assert (len(order.packed()), unpacked(order.packed()), unpacked(END)) == (ORDER, order, None)


# ---- the hand ----


def key(number: int) -> TaskKey:
    return TaskKey(f"t{number}")


def ticket(*pieces: tuple[int, list[int]]) -> Ticket:
    return Ticket(BURST, tuple(Piece(n, key(n), tuple(map(key, needs))) for n, needs in pieces))


def nothing(_: TaskKey) -> bool:
    return False


def keys(hand: Hand) -> list[str]:
    return [item.key for item in hand.ready]


def test_a_chain_is_run_link_by_link() -> None:
    hand = Hand()
    hand.add("x", ticket((0, []), (1, [0]), (2, [1]), (5, [])), nothing)

    started = []
    while hand.ready:
        item = hand.ready.popleft()
        started.append(item.key)
        hand.over(item)
    assert started == ["t0", "t5", "t1", "t2"]
    assert (hand.finished(), hand.finished(), hand.empty, hand.waits) == (["x"], [], True, False)


def test_what_others_have_ended_is_not_run_and_does_not_hold_up() -> None:
    hand = Hand()
    over = {key(0)}
    hand.add("x", ticket((0, []), (1, [0]), (2, [1]), (3, [9])), over.__contains__)
    assert (keys(hand), len(hand), hand.waits) == (["t1"], 3, True)
    over |= {key(1), key(3)}
    hand.drop(over.__contains__)
    assert (keys(hand), len(hand), hand.waits) == (["t2"], 1, False)


def test_what_is_given_is_what_would_be_started_last_and_the_rest_stays() -> None:
    hand = Hand()
    hand.add("x", ticket(*((n, []) for n in range(4))), nothing)
    hand.add("y", ticket((4, []), (5, [])), nothing)
    running = hand.ready.popleft()

    given = hand.give(3)

    assert given == [
        ("x", ticket((0, []), (1, []), (2, [])), ticket((3, []))),
        ("y", ticket(), ticket((4, []), (5, []))),
    ]
    assert keys(hand) == ["t1", "t2"]
    assert hand.give(None) == [("x", ticket((0, [])), ticket((1, []), (2, [])))]
    hand.over(running)
    assert (hand.finished(), hand.empty) == (["x"], True)


def test_links_of_a_chain_that_are_given_wait_for_what_is_kept() -> None:
    hand = Hand()
    hand.add("x", ticket((0, []), (1, [0]), (2, [1])), nothing)
    hand.ready.popleft()

    assert hand.give(None) == [("x", ticket((0, [])), ticket((1, [0]), (2, [1])))]
    assert (len(hand), hand.waits) == (0, False)


def test_what_a_worker_gives_back_comes_first_again() -> None:
    hand = Hand()
    hand.add("x", ticket(*((n, []) for n in range(4))), nothing)
    taken = [hand.ready.popleft(), hand.ready.popleft()]
    hand.put_back(taken)

    assert keys(hand) == ["t0", "t1", "t2", "t3"]
