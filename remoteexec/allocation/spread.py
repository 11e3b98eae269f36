"""How many of a task's equal parts, the ranks of an MPI function, go to which nodes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Shares = list[tuple[int, int]]
"""Nodes, and how many parts each gets; each at least one."""


def spread(parts: int, nodes: int, room: Sequence[tuple[int, int]]) -> Shares | None:
    """Share parts out among nodes; None if they have no room.

    Args:
        parts: n >= 1.
        nodes: as many get some, and none more than one above another, as `srun --nodes` has it; 0: as few as possible,
            if those with the most room come first.
        room: nodes, and how many parts each can take.
    """
    return _even(parts, nodes, room) if nodes else _filled(parts, room)


def _filled(parts: int, room: Sequence[tuple[int, int]]) -> Shares | None:
    found: Shares = []
    for node, most in room:
        count = min(most, parts)
        if count:
            found.append((node, count))
            parts -= count
        if not parts:
            return found
    return None


def _even(parts: int, nodes: int, room: Sequence[tuple[int, int]]) -> Shares | None:
    """Of those with enough room the ones with the least: a node that could take more is left to who needs it."""
    least, larger = divmod(parts, nodes)
    able = sorted([each for each in room if each[1] >= max(1, least)], key=lambda each: each[1])
    found = [(node, least + 1) for node, most in able if most > least][:larger] if larger else []
    taken = {node for node, _ in found}
    found += [(node, least) for node, _ in able if node not in taken][: nodes - larger]
    return found if least and len(found) == nodes else None
