"""What the agent of this node was told that its workers need, too, to reach other nodes: forks inherit it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LOCALHOST", "FarSession", "current", "remember"]

LOCALHOST = "127.0.0.1"


class FarSession(NamedTuple):
    """An executor's connections between the nodes of its allocation.

    Attributes:
        certificate: of the session, with its key, as PEM: whoever has it belongs to the session.
        local: all is on this machine, and nobody else is to connect.
    """

    certificate: str
    local: bool


_current: FarSession | None = None


def remember(session: FarSession) -> None:
    """In the agent, before it forks."""
    global _current
    _current = session


def current() -> FarSession | None:
    """None outside of an allocation."""
    return _current
