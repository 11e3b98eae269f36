"""Room on many nodes where each task has cores of its own, by their numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..pool.ledger import Need
from .base import Node
from .nodes import ManyNodes, Place


class PinnedNodes(ManyNodes):
    """See ManyNodes. Which cores of its node a task has stands in its place.

    A task that gave its place back and takes it again may find other cores free than it had: it runs on those it had,
    and these are counted. Waiting for the same ones would leave cores idle.

    Args:
        nodes: see ManyNodes.
        cores: see ManyNodes.
        is_open: see ManyNodes.
    """

    def __init__(self, nodes: Sequence[Node], cores: int | None = None, is_open: bool = True) -> None:
        super().__init__(nodes, cores, is_open)
        self._free = {at: (1 << node.cores) - 1 for at, node in enumerate(nodes)}  # a bit for each core

    def take(self, need: Need) -> Place:
        """See Room."""
        place = super().take(need)
        self._allot(need, place)
        return place

    def retake(self, need: Need, place: tuple[str, ...]) -> bool:
        """See Room."""
        if not super().retake(need, place):
            return False
        assert isinstance(place, Place)
        self._allot(need, place)
        return True

    def give(self, need: Need, place: tuple[str, ...]) -> None:
        """See Room."""
        assert isinstance(place, Place)
        for at, cores in [(part.node, part.cores) for part in place.parts] or [(place.node, place.cores)]:
            if at in self._free:
                self._free[at] |= sum(1 << core for core in cores)
        super().give(need, place)

    def lose(self, node: int) -> None:
        """See Room."""
        super().lose(node)
        self._free.pop(node, None)

    def _allot(self, need: Need, place: Place) -> None:
        place.parts = tuple(part._replace(cores=self._chosen(part.node, part.need.cores)) for part in place.parts)
        place.cores = place.parts[0].cores if place.parts else self._chosen(place.node, need.cores)

    def _chosen(self, at: int, count: int) -> tuple[int, ...]:
        cores = chosen(self._free[at], count)
        self._free[at] &= ~sum(1 << core for core in cores)
        return cores


def chosen(free: int, count: int) -> tuple[int, ...]:
    """So many of the cores whose bits are set: neighbours if there are, which often share a cache; else the first.

    None if there are too few.
    """
    if free.bit_count() < count:
        return ()
    if count == 1:
        return ((free & -free).bit_length() - 1,)
    starts = free
    for _ in range(count - 1):
        starts &= starts >> 1
    if starts:
        first = (starts & -starts).bit_length() - 1
        return tuple(range(first, first + count))
    return tuple([core for core in range(free.bit_length()) if free >> core & 1][:count])
