"""Waits for many files at once: `selectors` without what it does on the way, which is half of it for one event.

A file that another thread adds or changes while one waits is seen at once.
"""

from __future__ import annotations

import select
import selectors
from typing import Any, Protocol

READ, WRITE = 1, 4
_BUT_READ, _BUT_WRITE = ~READ, ~WRITE


class File(Protocol):
    """A socket, say."""

    def fileno(self) -> int:
        """Its number; negative when it is closed."""


class Poller:
    """See above. Anything that is not there is a KeyError."""

    def __init__(self) -> None:
        self._data: dict[int, Any] = {}
        self._poll = select.epoll() if hasattr(select, "epoll") else _Selector()

    def add(self, file: File | int, data: Any) -> None:
        """Wait for what can be read from it, too; `data` says that."""
        number = _number(file)
        self._poll.register(number, READ)
        self._data[number] = data

    def want(self, file: File | int, events: int) -> None:
        """Wait for these from now on."""
        number = _number(file)
        if number not in self._data:
            raise KeyError(number)
        self._poll.modify(number, events)

    def drop(self, file: File | int) -> None:
        """Wait for it no more."""
        number = _number(file)
        del self._data[number]
        self._poll.unregister(number)

    def wait(self, timeout_s: float | None) -> list[tuple[Any, bool, bool]]:
        """What has happened: data, whether it can be read (to the end, perhaps), whether it takes bytes."""
        found = self._data
        return [
            (found[number], bool(events & _BUT_WRITE), bool(events & _BUT_READ))
            for number, events in self._poll.poll(timeout_s)
            if number in found
        ]

    def close(self) -> None:
        """Let go of all."""
        self._data.clear()
        self._poll.close()


class _Selector:
    """The same events where there is no epoll (macOS)."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, number: int, events: int) -> None:
        self._selector.register(number, _named(events))

    def modify(self, number: int, events: int) -> None:
        self._selector.modify(number, _named(events))

    def unregister(self, number: int) -> None:
        self._selector.unregister(number)

    def poll(self, timeout_s: float | None) -> list[tuple[int, int]]:
        return [
            (key.fd, READ * bool(events & selectors.EVENT_READ) + WRITE * bool(events & selectors.EVENT_WRITE))
            for key, events in self._selector.select(timeout_s)
        ]

    def close(self) -> None:
        self._selector.close()


def _named(events: int) -> int:
    return (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)


def _number(file: File | int) -> int:
    return file if isinstance(file, int) else file.fileno()
