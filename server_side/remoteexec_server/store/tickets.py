"""Tickets: pieces of a burst that a pilot takes and runs. How a burst is cut into them is decided here, without I/O.

Their sizes decrease: large ones at first, so that 10,000 tasks are some dozens of files, small ones at last, so that
pilots end at about the same time. A chain, in which each task is the only one that waits for the one before, is in one
ticket, in order. What waits for tasks of other tickets is in tickets that nobody takes before those have ended, so no
pilot ever holds what it cannot run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ..wire.messages import BurstId, Submit, TaskKey
from ..wire.resources import Resources

_MANY = 128
"""Tickets of one burst, about; more make no pilot wait less, and each is a file. Picked, not measured."""
_SHARE = 4
"""A ticket is one worker's share of a quarter of what is left."""


@dataclass(frozen=True)
class Piece:
    """One task of a ticket.

    Attributes:
        position: of its call in the bundle.
        needs: inputs that had not ended when the ticket was made.
    """

    position: int
    key: TaskKey
    needs: tuple[TaskKey, ...] = ()


@dataclass(frozen=True)
class Ticket:
    """Tasks of one burst and of equal resources, inputs before what needs them.

    Attributes:
        resources: what each of them asks for; None: what the pilots' workers are made for.
    """

    burst: BurstId
    pieces: tuple[Piece, ...]
    resources: Resources | None = None

    @property
    def outside(self) -> frozenset[TaskKey]:
        """Inputs that are not in the ticket: it can be taken when they have ended."""
        inside = {piece.key for piece in self.pieces}
        return frozenset(key for piece in self.pieces for key in piece.needs if key not in inside)


def enough(waiting: int, workers: int) -> bool:
    """Whether so many tickets that nobody has taken keep all workers busy while further ones are made."""
    return waiting >= _SHARE * workers


def sizes(count: int, workers: int, coarse: bool = False) -> Iterator[int]:
    """Sizes of the tickets that `count` tasks are cut into for so many workers.

    Args:
        coarse: there are `enough` already: one for each worker.
    """
    least = max(1, math.ceil(count / (workers if coarse else max(_MANY, _SHARE * workers))))
    while count > 0:
        size = min(count, max(least, math.ceil(count / (_SHARE * workers))))
        yield size
        count -= size


def cut(
    submit: Submit,
    open_: Callable[[TaskKey], bool],
    workers: int,
    default: Resources,
    only: Collection[int] | None = None,
    coarse: bool = False,
) -> list[Ticket]:
    """The tickets of a burst, or of what is left of it.

    Args:
        open_: whether a task has not ended: only these get into tickets, and are waited for.
        workers: of all pilots together.
        default: what the workers are made for.
        only: positions that get into tickets; None: all.
        coarse: see `sizes`.
    """
    needs = {
        position: tuple(key for key in dict.fromkeys(entry.upstream) if open_(key))
        for position, entry in enumerate(submit.tasks)
        if open_(entry.key) and (only is None or position in only)
    }
    chains = _chains(submit, needs)
    kinds = {(submit.tasks[chain[0]].resources, needs[chain[0]]) for chain in chains if needs[chain[0]]}
    level = _levels(submit, needs, chains) if len(kinds) > _MANY else None
    groups: dict[tuple[int, object], list[list[int]]] = {}
    for chain in chains:
        head = chain[0]
        waits: object = needs[head] if level is None or not needs[head] else level[head]
        groups.setdefault((submit.tasks[head].resources, waits), []).append(chain)
    return [
        Ticket(
            submit.burst,
            tuple(Piece(position, submit.tasks[position].key, needs[position]) for position in positions),
            None if submit.resources[number] == default else submit.resources[number],
        )
        for (number, _), members in groups.items()
        for positions in _filled(members, workers, coarse)
    ]


def _filled(chains: Sequence[list[int]], workers: int, coarse: bool) -> Iterator[list[int]]:
    """Chains put together until they have the size that a ticket should have."""
    wanted = sizes(sum(map(len, chains)), workers, coarse)
    size, positions = next(wanted, 1), list[int]()
    for chain in chains:
        positions += chain
        if len(positions) >= size:
            yield positions
            size, positions = next(wanted, 1), []
    if positions:
        yield positions


def _chains(submit: Submit, needs: dict[int, tuple[TaskKey, ...]]) -> list[list[int]]:
    """Tasks that follow each other and nothing else, each chain in order; most are of one task."""
    position_of = {submit.tasks[position].key: position for position in needs}
    takers: dict[TaskKey, int] = {}
    for keys in needs.values():
        for key in keys:
            takers[key] = takers.get(key, 0) + 1
    chains: dict[int, list[int]] = {}  # by the last task of each
    for position, keys in needs.items():
        before = position_of.get(keys[0]) if len(keys) == 1 and takers[keys[0]] == 1 else None
        alike = before is not None and submit.tasks[before].resources == submit.tasks[position].resources
        chain = chains.pop(before, []) if before is not None and alike else []
        chain.append(position)
        chains[position] = chain
    return sorted(chains.values(), key=lambda chain: chain[0])


def _levels(submit: Submit, needs: dict[int, tuple[TaskKey, ...]], chains: Sequence[list[int]]) -> dict[int, int]:
    """How many chains have to end one after the other before one begins, by its first task."""
    head_of = {submit.tasks[position].key: chain[0] for chain in chains for position in chain}
    level: dict[int, int] = {}
    for chain in chains:  # inputs come first in a burst
        inputs = [level.get(head_of[key], 0) for key in needs[chain[0]] if key in head_of]
        level[chain[0]] = 1 + max(inputs, default=0)
    return level
