"""What a pilot has in hand: tasks it has taken and not started, and how much of each ticket is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..store.tickets import Piece, Ticket
from ..wire.messages import TaskKey
from .worker import Order


@dataclass(eq=False)
class Item:
    """One task.

    Attributes:
        name: of its ticket.
        needs: inputs that have not ended, as far as is known.
    """

    name: str
    ticket: Ticket
    piece: Piece
    needs: set[TaskKey]

    @property
    def key(self) -> TaskKey:
        """Of the task."""
        return self.piece.key

    def order(self) -> Order:
        """What a worker is told."""
        return Order(self.ticket.burst, self.piece.position, self.piece.key)


class Hand:
    """Tasks that a pilot has and no worker has.

    Attributes:
        ready: those that can be started, in order.
    """

    def __init__(self) -> None:
        self.ready: deque[Item] = deque()
        self._waiting: dict[TaskKey, list[Item]] = {}  # by each input that is missing
        self._left: dict[str, tuple[Ticket, dict[TaskKey, Piece]]] = {}  # of each ticket what has not ended

    def __len__(self) -> int:
        """Tasks that no worker has."""
        return len(self.ready) + len(self._held_up())

    @property
    def waits(self) -> bool:
        """Something waits for an input."""
        return bool(self._waiting)

    @property
    def empty(self) -> bool:
        """All that was taken has ended, or was given back."""
        return not self._left

    def add(
        self,
        name: str,
        ticket: Ticket,
        ended: Callable[[TaskKey], bool],
        linked: Callable[[TaskKey], bool] = lambda key: False,
    ) -> None:
        """A ticket was taken.

        Args:
            linked: whether a task has run, and ends as another does.
        """
        left = {piece.key: piece for piece in ticket.pieces if not ended(piece.key) and not linked(piece.key)}
        self._left[name] = ticket, left
        for piece in left.values():
            item = Item(name, ticket, piece, {key for key in piece.needs if not ended(key)})
            if item.needs:
                for key in item.needs:
                    self._waiting.setdefault(key, []).append(item)
            else:
                self.ready.append(item)

    def put_back(self, items: Iterable[Item]) -> None:
        """Tasks that a worker had and has not started, in order."""
        self.ready.extendleft(reversed(list(items)))

    def input_ended(self, key: TaskKey) -> None:
        """Somebody's outcome is there."""
        for item in self._waiting.pop(key, ()):
            item.needs.discard(key)
            if not item.needs and item.key in self._left.get(item.name, (None, {}))[1]:
                self.ready.append(item)

    def over(self, item: Item) -> None:
        """A task has ended, in whatever way."""
        if item.name in self._left:
            self._left[item.name][1].pop(item.key, None)
        self.input_ended(item.key)

    def let_go(self, item: Item) -> None:
        """A task is over here, and ends later or elsewhere: what waits for it goes on waiting."""
        if item.name in self._left:
            self._left[item.name][1].pop(item.key, None)

    def drop(self, ended: Callable[[TaskKey], bool]) -> None:
        """Forget tasks that were ended by others: cancelled, or lost with an input."""
        for item in [item for item in (*self.ready, *self._held_up()) if ended(item.key)]:
            self._forget(item)
            self.over(item)

    def finished(self) -> list[str]:
        """Tickets of which nothing is left; each is told once."""
        names = [name for name, (_, left) in self._left.items() if not left]
        for name in names:
            del self._left[name]
        return names

    def give(self, count: int | None = None) -> list[tuple[str, Ticket, Ticket]]:
        """Let go of tasks that are to be started last; None: of all that no worker has.

        Returns:
            For each ticket concerned its name, what is left of it, and what is given.
        """
        if count is None:
            items = [*self.ready, *self._held_up()]
        else:
            items = [self.ready[k] for k in range(len(self.ready) - count, len(self.ready))] if count else []
        given: dict[str, list[Item]] = {}
        for item in items:
            self._forget(item)
            self._left[item.name][1].pop(item.key, None)
            given.setdefault(item.name, []).append(item)
        return [(name, *self._parted(name, members)) for name, members in given.items()]

    def _parted(self, name: str, items: list[Item]) -> tuple[Ticket, Ticket]:
        ticket, left = self._left[name]
        mine = replace(ticket, pieces=tuple(left.values()))
        self._left[name] = mine, left
        if not left:
            del self._left[name]
        pieces = tuple(replace(item.piece, needs=tuple(sorted(item.needs))) for item in items)
        return mine, replace(ticket, pieces=tuple(sorted(pieces, key=lambda piece: piece.position)))

    def _forget(self, item: Item) -> None:
        if item in self.ready:
            self.ready.remove(item)
        for key in item.needs:
            members = self._waiting.get(key, [])
            if item in members:
                members.remove(item)
            if not members:
                self._waiting.pop(key, None)

    def _held_up(self) -> list[Item]:
        found = {id(item): item for members in self._waiting.values() for item in members}
        return list(found.values())
