"""Further attempts of tasks in pilots: a task whose attempt has died goes into a ticket again.

Whoever sees it die says so in the store and makes the ticket: the worker whose function has raised together with its
pilot, the pilot whose worker has ended, or who sees to what a dead pilot had in hand. What the next attempt asks for is
scaled as for jobs, up to what a pilot has.
"""

from __future__ import annotations

from dataclasses import replace

from . import retrying
from .store.crew import CrewStore
from .store.session import Session
from .store.tickets import Piece, Ticket
from .wire.messages import Loss, Pilots, TaskKey
from .wire.pilots import within

__all__ = ["following", "told"]


def following(store: CrewStore, pilots: Pilots, piece: Piece, ticket: Ticket, loss: Loss | None) -> Ticket | None:
    """The ticket of a task's next attempt, once the end of this one is in the store; None: there is none.

    Args:
        loss: why this attempt has ended; None: the store says it already.

    Raises:
        OSError: the store cannot be written.
    """
    resources = ticket.resources or pilots.resources
    if resources.retry is None:
        return None
    deaths = store.session.deaths(piece.key)
    attempt = len(deaths) + (loss is not None)
    after = retrying.next_attempt(resources, loss or deaths[-1], attempt) if attempt else None
    if after is None:
        return None
    if loss is not None:
        store.session.publish_death(piece.key, attempt, loss)
    after = within(after, pilots)
    return Ticket(ticket.burst, (replace(piece, needs=()),), None if after == pilots.resources else after)


def told(session: Session, key: TaskKey, loss: Loss) -> Loss:
    """The loss that ends a task, with all its attempts."""
    return retrying.told(loss, session.deaths(key))
