"""What becomes of the tasks that a dead pilot had in hand; for services and for other pilots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..store.crew import CrewStore, owner_of, regroup
from ..store.outcomes import Outcomes
from ..tried_again import following, told
from ..wire.messages import Loss, TaskKey

__all__ = ["recover", "writers_of"]


def writers_of(pilot: str) -> str:
    """What the names of the logs of a pilot's workers begin with."""
    return f"{pilot}-w"


def recover(store: CrewStore, outcomes: Outcomes, pilot: str, why: Loss, lose: Callable[[TaskKey, Loss], None]) -> bool:
    """See to what a dead pilot had in hand: what it has started is lost, the rest is for others.

    Args:
        pilot: its name, or that of a seizure that was not ended.

    Returns:
        Whether there was something, and nobody else was first.
    """
    if pilot not in store.members():
        return False
    seized = store.seize(pilot)
    if seized is None:
        return False
    outcomes.look()
    owner, spec = owner_of(pilot), store.spec()
    pilots = spec.pilots if spec is not None else None
    started = outcomes.started_in(writers_of(owner))
    damaged = any(name.startswith(f"{owner}-") for name in outcomes.damaged)
    back = []
    for piece, ticket in store.pieces(seized).values():
        if outcomes.ended(piece.key) or outcomes.has(piece.key, "link"):
            continue
        if damaged:
            lose(piece.key, replace(why, reason="store", message=f"{why.message}; its log is damaged"))
        elif piece.key in started:
            again = following(store, pilots, piece, ticket, why) if pilots is not None else None
            if again is not None:
                back.append((again.pieces[0], again))
            else:
                lose(piece.key, told(store.session, piece.key, why))
        else:
            back.append((piece, ticket))
    ended = frozenset(key for piece, _ in back for key in piece.needs if outcomes.ended(key))
    store.release(seized, regroup(back, ended), 0)
    return True
