"""What the agent of this node was told that its workers need, too, to reach other nodes: forks inherit it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LOCALHOST", "RANKS_OF", "FarSession", "current", "remember"]

LOCALHOST = "127.0.0.1"
RANKS_OF = "REMOTEEXEC_RANKS_OF"


class FarSession(NamedTuple):
    """An executor's connections between the nodes of its allocation.

    Attributes:
        name: of the session.
        certificate: of the session, with its key, as PEM: whoever has it belongs to the session.
        local: all is on this machine, and nobody else is to connect.
    """

    name: str
    certificate: str
    local: bool

    def ranks_of(self, node: str) -> str:
        """What ranks have in their environment, as it is in /proc, whose worker is on this node."""
        return f"{RANKS_OF}={self.name}:{node}"


_current: FarSession | None = None


def remember(session: FarSession) -> None:
    """In the agent, before it forks."""
    global _current
    _current = session


def current() -> FarSession | None:
    """None outside of an allocation."""
    return _current
