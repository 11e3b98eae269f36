"""Where kept workers may be on many nodes, each on one, or each on several as its MPI ranks are. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..pool.ledger import Need
from .base import Node
from .nodes import ManyNodes, Place


def room_for(node: Node, need: Need) -> int:
    """How many workers a node has room for, if each takes this."""
    gpus = len(node.gpus) // need.gpus if need.gpus else math.inf
    memory = math.inf
    if need.memory_bytes and node.memory_bytes is not None:
        memory = node.memory_bytes // need.memory_bytes
    return int(min(node.cores // need.cores, gpus, memory))


def places(nodes: Sequence[Node], need: Need) -> list[Place]:
    """The GPUs of each worker there is room for: first one on each node, then a second, so that few are spread out."""
    rooms = [room_for(node, need) for node in nodes]
    turns = [(turn, at) for at, room in enumerate(rooms) for turn in range(room)]
    return [_place(nodes[at], at, turn, need) for turn, at in sorted(turns)]


def spread_places(room: ManyNodes, need: Need) -> list[Place]:
    """Of each worker on several nodes that there is room for; that takes it."""
    found = []
    while room.fits(need):
        found.append(room.take(need))
    return found


def nodes_of(place: tuple[str, ...]) -> set[int]:
    """All nodes of a place; none if it is not one of many nodes."""
    return {place.node, *[part.node for part in place.parts]} if isinstance(place, Place) else set()


def _place(node: Node, at: int, turn: int, need: Need) -> Place:
    place = Place(node.gpus[turn * need.gpus : (turn + 1) * need.gpus])
    place.node, place.cores = at, cores_of(turn, need.cores)
    return place


def cores_of(turn: int, count: int) -> tuple[int, ...]:
    """Which cores a worker has, by which one of its node it is."""
    return tuple(range(turn * count, (turn + 1) * count))
