"""Tickets that nobody has taken, as a pilot sees them again and again: each is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .. import runner
from ..store.crew import BadTicket, CrewStore
from ..store.tickets import Ticket
from ..wire.messages import TaskKey


class Shelf:
    """What a pilot has seen of the tickets of its crew."""

    def __init__(self, store: CrewStore) -> None:
        self._store = store
        self._seen: dict[str, Ticket | None] = {}  # None: damaged

    def tickets(self) -> Iterator[tuple[str, Ticket]]:
        """Names and tickets, the oldest first; not those that are damaged, or that somebody takes meanwhile."""
        names = self._store.tickets()
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        for name in names:
            ticket = self._look_into(name)
            if ticket is not None:
                yield name, ticket

    def has_any(self, ended: Callable[[TaskKey], bool]) -> bool:
        """Whether there is one whose inputs are there, so that whoever has nothing to do may take it."""
        return any(all(ended(key) for key in ticket.outside) for _, ticket in self.tickets())

    def _look_into(self, name: str) -> Ticket | None:
        if name not in self._seen:
            try:
                found = self._store.read(name)
            except BadTicket as exc:
                runner._print(f"{exc}")
                self._seen[name] = None
                return None
            if found is None:
                return None
            self._seen[name] = found
        return self._seen[name]
