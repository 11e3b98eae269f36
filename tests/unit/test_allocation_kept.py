"""Where kept workers may be on many nodes."""

from __future__ import annotations

import pytest

from remoteexec.allocation.base import Node
from remoteexec.allocation.kept import places, room_for
from remoteexec.pool.ledger import Need


@pytest.mark.parametrize(
    ("need", "room"),
    [
        (Need(), 8),
        (Need(3), 2),
        (Need(9), 0),
        (Need(1, 1), 3),
        (Need(1, 2), 1),
        (Need(1, 0, 30), 3),
        (Need(2, 1, 60), 1),
    ],
)
def test_a_node_has_room_for_as_many_as_all_it_has_is_enough_for(need: Need, room: int) -> None:
    assert room_for(Node("a", 8, 100, ("0", "1", "2")), need) == room


def test_memory_is_no_limit_where_the_scheduler_gives_no_share_of_it() -> None:
    assert room_for(Node("a", 8), Need(1, 0, 60)) == 8


def test_workers_are_spread_over_nodes_and_share_no_gpu() -> None:
    nodes = [Node("a", 8, gpus=("0", "1", "2")), Node("b", 8), Node("c", 2, gpus=("4", "5", "6", "7"))]
    assert [(place.node, *place) for place in places(nodes, Need(1, 1))] == [
        *((0, "0"), (2, "4"), (0, "1"), (2, "5"), (0, "2")),
    ]
    assert [(place.node, *place) for place in places(nodes, Need(2, 2))] == [(0, "0", "1"), (2, "4", "5")]
