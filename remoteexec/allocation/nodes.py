"""Room on many nodes: where a task goes. Pure, as the ledger that asks it.

A task goes to the node with the fewest free cores among those where it fits, and of these to one with few free GPUs:
small tasks fill nodes up, large ones find empty ones. Nodes with as many free cores and GPUs are one bucket, so the
choice looks at buckets, not at nodes, and within a bucket at steps of free memory; only the amounts of the step that a
need ends in are compared one by one. A need that did not fit is not looked for again until a node where it fits has got
free.

A need of several parts, the ranks of an MPI function, goes to one node if any can ever hold it; else to several, see
`spread`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..pool.ledger import Need, TooLarge
from .base import Node
from .spread import Shares, spread


class Part(NamedTuple):
    """What a task of several parts has of one node.

    Attributes:
        node: its position among the nodes.
        name: the node's.
        alias: see Node.
        ranks: parts that are there.
        need: what these take.
        of: how many cores the node has.
        cores: see Place.
    """

    node: int
    name: str
    alias: str
    ranks: int
    need: Need
    gpus: tuple[str, ...]
    of: int
    cores: tuple[int, ...] = ()


class Place(tuple[str, ...]):
    """The GPUs of a task, and its node.

    Attributes:
        node: its position among the nodes; of the first part, if there are several.
        parts: of a task of several.
        cores: which of the node's cores are its own, from 0; none where nobody is pinned.
    """

    node: int
    parts: tuple[Part, ...] = ()
    cores: tuple[int, ...] = ()


_STEPS = 64
"""Of the largest node's memory. Picked, not measured: a bit mask of as many is a small number."""
_ENDLESS = 2**62
_MOST_FULL = 1024
"""Needs that are known not to fit; more are those of tasks that have left the line."""


class _Bucket:
    """Nodes with as many free cores and GPUs, by steps of free memory, and on each by how much that is exactly.

    Where tasks are alike, so are the nodes that they leave: what is compared are amounts, not nodes.
    """

    def __init__(self, step_bytes: int) -> None:
        self._step_bytes = step_bytes
        self._steps: list[dict[int, dict[int, None]]] = [{} for _ in range(_STEPS + 1)]
        self._mask = 0  # a bit for each step that a node is on
        self.count = 0

    def put(self, at: int, memory_bytes: int) -> None:
        """A node comes."""
        step = min(_STEPS, memory_bytes // self._step_bytes)
        amounts = self._steps[step]
        if memory_bytes in amounts:
            amounts[memory_bytes][at] = None
        else:
            amounts[memory_bytes] = {at: None}
        self._mask |= 1 << step
        self.count += 1

    def remove(self, at: int, memory_bytes: int) -> bool:
        """It goes; False if it is not there."""
        step = min(_STEPS, memory_bytes // self._step_bytes)
        amounts = self._steps[step]
        nodes = amounts.get(memory_bytes)
        if nodes is None or at not in nodes:
            return False
        del nodes[at]
        if not nodes:
            del amounts[memory_bytes]
            if not amounts:
                self._mask &= ~(1 << step)
        self.count -= 1
        return True

    def find(self, memory_bytes: int) -> int | None:
        """A node with that much, and not much more than others that have it."""
        step = min(_STEPS, memory_bytes // self._step_bytes)
        for amount, nodes in self._steps[step].items():
            if memory_bytes <= amount:
                return next(iter(nodes))
        mask = self._mask >> (step + 1)
        if not mask:
            return None
        amounts = self._steps[step + (mask & -mask).bit_length()]
        return next(iter(next(iter(amounts.values()))))

    def nodes(self) -> list[int]:
        """All of them."""
        return [at for step in self._steps if step for nodes in step.values() for at in nodes]


class _State:
    """What is free on a node."""

    def __init__(self, node: Node, cores: int) -> None:
        self.cores, self.gpus = cores, list(node.gpus)
        self.memory_bytes = node.memory_bytes
        self.all = Need(cores, len(node.gpus), node.memory_bytes or 0)

    @property
    def free_bytes(self) -> int:
        """Of memory; as good as endless where it is not counted."""
        return _ENDLESS if self.memory_bytes is None else self.memory_bytes

    def fits(self, need: Need) -> bool:
        memory = self.memory_bytes is None or need.memory_bytes <= self.memory_bytes
        return memory and need.cores <= self.cores and need.gpus <= len(self.gpus)

    def ever_fits(self, need: Need) -> bool:
        memory = self.memory_bytes is None or need.memory_bytes <= self.all.memory_bytes
        return memory and need.cores <= self.all.cores and need.gpus <= self.all.gpus

    def room_for(self, part: Need) -> int:
        """How many tasks like this fit."""
        return _times(part, Need(self.cores, len(self.gpus), self.memory_bytes or 0), self.memory_bytes is not None)

    def ever_room_for(self, part: Need) -> int:
        """How many would fit on the empty node."""
        return _times(part, self.all, self.memory_bytes is not None)


def _times(part: Need, has: Need, counts_memory: bool) -> int:
    found = has.cores // part.cores
    if part.gpus:
        found = min(found, has.gpus // part.gpus)
    if part.memory_bytes and counts_memory:
        found = min(found, has.memory_bytes // part.memory_bytes)
    return found


class ManyNodes:
    """See Room.

    Args:
        nodes: one or more.
        cores: that may be used at once, on all nodes; None: all.
        is_open: nodes can be used from the first; else each when `open` says so, and until then tasks wait, as nobody
            knows when that is.
    """

    def __init__(self, nodes: Sequence[Node], cores: int | None = None, is_open: bool = True) -> None:
        self._names = [(node.name, node.alias or node.name) for node in nodes]
        total = sum(node.cores for node in nodes)
        self._limit = cores if cores is not None else total
        self.capacity = min(self._limit, total)
        self._limited = self.capacity < total  # what fits on no node may fit when another gives something back
        self._used = 0
        self._nodes: dict[int, _State] = {at: _State(node, node.cores) for at, node in enumerate(nodes)}
        most = max(len(node.gpus) for node in nodes)
        self._step_bytes = max(1, max(node.memory_bytes or 0 for node in nodes) // _STEPS)
        self._buckets: list[dict[int, _Bucket]] = [{} for _ in range(most + 1)]  # by free GPUs, free cores
        self._masks = [0] * (most + 1)  # by free GPUs: a bit for each number of free cores that a node has
        self._full: set[Need] = set()  # what did not fit, since when no node got free where it would
        self._found: tuple[Need, int | Shares] | None = None
        self._held: tuple[Need, frozenset[int]] | None = None
        self._of_one: dict[Need, bool] = {}  # whether one node can ever hold it
        self._closed = set() if is_open else set(self._nodes)
        for at in self._nodes:
            self._put(at)

    def may_spread(self, need: Need) -> bool:
        """Whether it may be on several nodes, now or when some are lost."""
        if need.parts == 1 or need.nodes == 1:
            return False
        return need.nodes > 1 or not all(state.ever_fits(need) for state in self._nodes.values())

    def spreads(self, need: Need) -> bool:
        """Whether it is to be on several nodes: who asks for none and can be on one is on one."""
        if need.parts == 1 or need.nodes == 1:
            return False
        if need.nodes:
            return True
        found = self._of_one.get(need)
        if found is None:
            found = self._of_one[need] = any(state.ever_fits(need) for state in self._nodes.values())
        return not found

    def check(self, need: Need) -> None:
        """See Room."""
        if need.cores <= self.capacity and self._ever_fits(need):
            return
        if need.parts > 1:
            raise TooLarge(self._never(need))
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
        at = self._search(need) if self._used + need.cores <= self.capacity else None
        if at is None:
            if len(self._full) > _MOST_FULL:
                self._full.clear()
            self._full.add(need)
            return False
        self._found = need, at
        return True

    def take(self, need: Need) -> Place:
        """See Room."""
        at = self._found[1] if self._found is not None and self._found[0] == need else self._search(need)
        assert at is not None  # it fits, who takes has asked
        held = self._held
        if held is not None and held[0] == need:
            self._held = None
            for node in held[1]:
                self._put(node)
        if not isinstance(at, int):
            return self._take_parts(need, at)
        place = Place(self._nodes[at].gpus[: need.gpus])
        place.node = at
        self._occupy(at, need, place)
        return place

    def retake(self, need: Need, place: tuple[str, ...]) -> bool:
        """See Room."""
        assert isinstance(place, Place)
        if self._used + need.cores > self.capacity:
            return False
        shares = [(part.node, part.need, part.gpus) for part in place.parts] or [(place.node, need, tuple(place))]
        for at, its, gpus in shares:
            state = self._nodes.get(at)
            if state is None or not state.fits(its) or not set(gpus) <= set(state.gpus):
                return False
        for share in shares:
            self._occupy(*share)
        return True

    def give(self, need: Need, place: tuple[str, ...]) -> None:
        """See Room."""
        assert isinstance(place, Place)
        if not place.parts:
            self._release(place.node, need, place)
        for part in place.parts:
            self._release(part.node, part.need, part.gpus)

    def _release(self, at: int, need: Need, gpus: Iterable[str]) -> None:
        state = self._nodes.get(at)
        if state is None:  # it is gone, and its cores with it
            return
        self._used -= need.cores
        self._remove(at)
        state.cores += need.cores
        state.gpus += gpus
        if state.memory_bytes is not None:
            state.memory_bytes += need.memory_bytes
        self._put(at)
        held = self._held
        if self._limited:
            self._full.clear()
        elif held is not None and at in held[1]:
            if held[0].parts > 1 or state.fits(held[0]):
                self._full.discard(held[0])
        elif self._full:
            cores, free_gpus, memory = state.cores, len(state.gpus), state.memory_bytes
            again = [
                need
                for need in self._full
                if need[3] > 1 or (need[0] <= cores and need[1] <= free_gpus and (memory is None or need[2] <= memory))
            ]
            self._full.difference_update(again)

    def hold(self, need: Need) -> bool:
        """See Room: one node is held for it, that with the most free cores where it can ever fit; or as many as it is
        to be spread over.
        """
        if self._limited:  # a node for it does not help while others take what may be used at once
            return False
        if self._held is None and len(self._nodes) > 1:
            nodes = self._to_hold(need)
            for at in nodes:
                self._remove(at)
            self._held = need, nodes
            self._full.discard(need)
        return self._held is not None

    def _to_hold(self, need: Need) -> frozenset[int]:
        freest = sorted(self._nodes, key=lambda at: (at in self._closed, -self._nodes[at].cores))
        if not self.spreads(need):
            return frozenset([next(at for at in freest if self._nodes[at].ever_fits(need))])
        part = need.part
        shares = spread(need.parts, need.nodes, [(at, self._nodes[at].ever_room_for(part)) for at in freest])
        assert shares is not None  # what never fits is not in line
        return frozenset(at for at, _ in shares)

    def open(self, node: int) -> None:
        """See Room."""
        if node in self._nodes and node in self._closed:
            self._closed.remove(node)
            self._full.clear()
            self._put(node)

    def lose(self, node: int) -> None:
        """See Room."""
        at = node
        if at not in self._nodes:
            return
        self._remove(at)
        if self._held is not None and at in self._held[1]:
            others, self._held = self._held[1] - {at}, None
            for other in others:
                self._put(other)
        self._found = None
        self._of_one.clear()
        state = self._nodes.pop(at)
        self._used -= state.all.cores - state.cores
        self._full.clear()
        self.capacity = min(self._limit, sum(state.all.cores for state in self._nodes.values()))

    def _occupy(self, at: int, need: Need, gpus: tuple[str, ...]) -> None:
        state = self._nodes[at]
        self._remove(at)
        self._used += need.cores
        state.cores -= need.cores
        if gpus:
            state.gpus = [gpu for gpu in state.gpus if gpu not in gpus]
        if state.memory_bytes is not None:
            state.memory_bytes -= need.memory_bytes
        self._found = None
        self._put(at)

    # ---- several parts ----

    def _ever_fits(self, need: Need) -> bool:
        if not self.spreads(need):
            return any(state.ever_fits(need) for state in self._nodes.values())
        part = need.part
        room = [(at, state.ever_room_for(part)) for at, state in self._nodes.items()]
        return spread(need.parts, need.nodes, room) is not None

    def _never(self, need: Need) -> str:
        part, on = need.part, f" on {need.nodes} nodes" if need.nodes else ""
        return (
            f"a task asks for {need.parts} ranks{on}, each of {part.cores} cores, {part.gpus} GPUs and "
            f"{part.memory_bytes} bytes of memory; that is more than the {len(self._nodes)} nodes of the allocation "
            f"have, or than the {self.capacity} cores that may be used at once: it could never start"
        )

    def _search(self, need: Need) -> int | Shares | None:
        if need.parts == 1:
            return self._find(need)
        if not self.spreads(need):
            one = self._find(need)
            return [(one, need.parts)] if one is not None else None
        part, held = need.part, self._held
        if held is not None and held[0] == need:
            found = spread(need.parts, need.nodes, [(at, self._nodes[at].room_for(part)) for at in sorted(held[1])])
            if found is not None:
                return found
        nodes = self._freest(part, need.parts)
        return spread(need.parts, need.nodes, [(at, self._nodes[at].room_for(part)) for at in nodes])

    def _freest(self, part: Need, count: int) -> list[int]:
        """Nodes with room for such parts, those with the most first, and neighbours together, in whatever order they
        got ready or free; none if they cannot have room for so many.
        """
        buckets = [
            (min(cores // part.cores, gpus // part.gpus if part.gpus else cores), bucket)
            for gpus in range(part.gpus, len(self._buckets))
            for cores, bucket in self._buckets[gpus].items()
            if cores >= part.cores and bucket.count
        ]
        if sum([room * bucket.count for room, bucket in buckets]) < count:
            return []
        buckets.sort(key=lambda found: -found[0])
        return [at for _, bucket in buckets for at in sorted(bucket.nodes())]

    def _take_parts(self, need: Need, shares: Shares) -> Place:
        part = need.part
        parts = []
        for at, count in sorted(shares):  # neighbours have neighbouring ranks
            its = part.times(count)
            gpus = tuple(self._nodes[at].gpus[: its.gpus])
            parts.append(Part(at, *self._names[at], count, its, gpus, self._nodes[at].all.cores))
            self._occupy(at, its, gpus)
        place = Place(gpu for each in parts for gpu in each.gpus)
        place.node, place.parts = parts[0].node, tuple(parts)
        return place

    # ---- one node ----

    def _find(self, need: Need) -> int | None:
        held = self._held
        if held is not None and held[0] == need and len(held[1]) == 1:
            (its,) = held[1]
            if self._nodes[its].fits(need):
                return its
        best: tuple[int, int] | None = None
        for gpus in range(need.gpus, len(self._masks)):
            cores = need.cores
            mask = self._masks[gpus] >> cores
            while mask:
                step = (mask & -mask).bit_length() - 1
                cores, mask = cores + step, mask >> step
                if best is not None and cores >= best[0]:
                    break
                at = self._buckets[gpus][cores].find(need.memory_bytes)
                if at is not None:
                    best = cores, at
                    break
                cores, mask = cores + 1, mask >> 1
        return best[1] if best is not None else None

    def _put(self, at: int) -> None:
        if at in self._closed or (self._held is not None and at in self._held[1]):
            return
        state = self._nodes[at]
        gpus = len(state.gpus)
        bucket = self._buckets[gpus].get(state.cores)
        if bucket is None:
            bucket = self._buckets[gpus][state.cores] = _Bucket(self._step_bytes)
        bucket.put(at, state.free_bytes)
        self._masks[gpus] |= 1 << state.cores

    def _remove(self, at: int) -> None:
        state = self._nodes[at]
        bucket = self._buckets[len(state.gpus)].get(state.cores)
        if bucket is None or not bucket.remove(at, state.free_bytes):  # it is held
            return
        if not bucket.count:
            self._masks[len(state.gpus)] &= ~(1 << state.cores)
