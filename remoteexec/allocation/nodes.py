"""Room on many nodes: where a task goes. Pure, as the ledger that asks it.

A task goes to the node with the fewest free cores among those where it fits, and of these to one with few free GPUs:
small tasks fill nodes up, large ones find empty ones. Nodes with as many free cores and GPUs are one bucket, so the
choice looks at buckets, not at nodes; only memory is compared node by node within a bucket. A need that did not fit is
not looked for again until a node where it fits has got free.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..pool.ledger import Need, TooLarge
from .base import Node


class Place(tuple[str, ...]):
    """The GPUs of a task, and its node.

    Attributes:
        node: its position among the nodes.
        cores: which of the node's cores are its own, from 0; none where nobody is pinned.
    """

    node: int
    cores: tuple[int, ...] = ()


class _State:
    """What is free on a node."""

    def __init__(self, node: Node, cores: int) -> None:
        self.cores, self.gpus = cores, list(node.gpus)
        self.memory_bytes = node.memory_bytes
        self.all = Need(cores, len(node.gpus), node.memory_bytes or 0)

    def fits(self, need: Need) -> bool:
        memory = self.memory_bytes is None or need.memory_bytes <= self.memory_bytes
        return memory and need.cores <= self.cores and need.gpus <= len(self.gpus)

    def ever_fits(self, need: Need) -> bool:
        memory = self.memory_bytes is None or need.memory_bytes <= self.all.memory_bytes
        return memory and need.cores <= self.all.cores and need.gpus <= self.all.gpus


class ManyNodes:
    """See Room.

    Args:
        nodes: one or more.
        cores: that may be used at once, on all nodes; None: all.
    """

    def __init__(self, nodes: Sequence[Node], cores: int | None = None) -> None:
        self._names = [node.name for node in nodes]
        total = sum(node.cores for node in nodes)
        self._limit = cores if cores is not None else total
        self.capacity = min(self._limit, total)
        self._limited = self.capacity < total  # what fits on no node may fit when another gives something back
        self._used = 0
        self._nodes: dict[int, _State] = {at: _State(node, node.cores) for at, node in enumerate(nodes)}
        most = max(len(node.gpus) for node in nodes)
        self._buckets: list[dict[int, dict[int, None]]] = [{} for _ in range(most + 1)]  # by free GPUs, free cores
        self._masks = [0] * (most + 1)  # by free GPUs: a bit for each number of free cores that a node has
        self._full: set[Need] = set()  # what did not fit, since when no node got free where it would
        self._found: tuple[Need, int] | None = None
        self._held: tuple[Need, int] | None = None
        for at in self._nodes:
            self._put(at)

    def check(self, need: Need) -> None:
        """See Room."""
        if need.cores <= self.capacity and any(state.ever_fits(need) for state in self._nodes.values()):
            return
        most = [max((state.all[at] for state in self._nodes.values()), default=0) for at in range(3)]
        raise TooLarge(
            f"a task asks for {need.cores} cores, {need.gpus} GPUs and {need.memory_bytes} bytes of memory, "
            f"and no node of the allocation has all of that; the most that one has are {most[0]} cores, {most[1]} GPUs "
            f"and {most[2]} bytes, and {self.capacity} cores may be used at once: it could never start"
        )

    def fits(self, need: Need) -> bool:
        """See Room."""
        if need in self._full:
            return False
        at = self._find(need) if self._used + need.cores <= self.capacity else None
        if at is None:
            self._full.add(need)
            return False
        self._found = need, at
        return True

    def take(self, need: Need) -> Place:
        """See Room."""
        at = self._found[1] if self._found is not None and self._found[0] == need else self._find(need)
        assert at is not None  # it fits, who takes has asked
        held = self._held
        if held is not None and held[0] == need:
            self._held = None
            if held[1] != at:
                self._put(held[1])
        place = Place(self._nodes[at].gpus[: need.gpus])
        place.node = at
        self._occupy(need, place)
        return place

    def retake(self, need: Need, place: tuple[str, ...]) -> bool:
        """See Room."""
        assert isinstance(place, Place)
        state = self._nodes.get(place.node)
        if state is None or not state.fits(need) or not set(place) <= set(state.gpus):
            return False
        if self._used + need.cores > self.capacity:
            return False
        self._occupy(need, place)
        return True

    def give(self, need: Need, place: tuple[str, ...]) -> None:
        """See Room."""
        assert isinstance(place, Place)
        state = self._nodes.get(place.node)
        if state is None:  # it is gone, and its cores with it
            return
        self._used -= need.cores
        self._remove(place.node)
        state.cores += need.cores
        state.gpus += place
        if state.memory_bytes is not None:
            state.memory_bytes += need.memory_bytes
        self._put(place.node)
        held = self._held
        if self._limited:
            self._full.clear()
        elif held is not None and held[1] == place.node:
            if state.fits(held[0]):
                self._full.discard(held[0])
        elif self._full:
            cores, gpus, memory = state.cores, len(state.gpus), state.memory_bytes
            again = [
                need
                for need in self._full
                if need[0] <= cores and need[1] <= gpus and (memory is None or need[2] <= memory)
            ]
            self._full.difference_update(again)

    def hold(self, need: Need) -> bool:
        """See Room: one node is held for it, that with the most free cores where it can ever fit."""
        if self._limited:  # a node for it does not help while others take what may be used at once
            return False
        if self._held is None and len(self._nodes) > 1:
            able = [at for at, state in self._nodes.items() if state.ever_fits(need)]
            at = max(able, key=lambda at: self._nodes[at].cores)
            self._held = need, at
            self._remove(at)
            self._full.discard(need)
        return self._held is not None

    def lose(self, node: int) -> None:
        """See Room."""
        at = node
        if at not in self._nodes:
            return
        self._remove(at)
        if self._held is not None and self._held[1] == at:
            self._held = None
        self._found = None
        state = self._nodes.pop(at)
        self._used -= state.all.cores - state.cores
        self._full.clear()
        self.capacity = min(self._limit, sum(state.all.cores for state in self._nodes.values()))

    def _occupy(self, need: Need, place: Place) -> None:
        state = self._nodes[place.node]
        self._remove(place.node)
        self._used += need.cores
        state.cores -= need.cores
        if place:
            state.gpus = [gpu for gpu in state.gpus if gpu not in place]
        if state.memory_bytes is not None:
            state.memory_bytes -= need.memory_bytes
        self._found = None
        self._put(place.node)

    def _find(self, need: Need) -> int | None:
        held = self._held
        if held is not None and held[0] == need and self._nodes[held[1]].fits(need):
            return held[1]
        best: tuple[int, int] | None = None
        for gpus in range(need.gpus, len(self._masks)):
            cores = need.cores
            mask = self._masks[gpus] >> cores
            while mask:
                step = (mask & -mask).bit_length() - 1
                cores, mask = cores + step, mask >> step
                if best is not None and cores >= best[0]:
                    break
                at = self._in_bucket(self._buckets[gpus][cores], need.memory_bytes)
                if at is not None:
                    best = cores, at
                    break
                cores, mask = cores + 1, mask >> 1
        return best[1] if best is not None else None

    def _in_bucket(self, bucket: dict[int, None], memory_bytes: int) -> int | None:
        if not memory_bytes:
            return next(iter(bucket))
        for at in bucket:
            has = self._nodes[at].memory_bytes
            if has is None or memory_bytes <= has:
                return at
        return None

    def _put(self, at: int) -> None:
        if self._held is not None and self._held[1] == at:
            return
        state = self._nodes[at]
        gpus = len(state.gpus)
        self._buckets[gpus].setdefault(state.cores, {})[at] = None
        self._masks[gpus] |= 1 << state.cores

    def _remove(self, at: int) -> None:
        state = self._nodes[at]
        bucket = self._buckets[len(state.gpus)].get(state.cores)
        if bucket is None or at not in bucket:  # it is held
            return
        del bucket[at]
        if not bucket:
            self._masks[len(state.gpus)] &= ~(1 << state.cores)
