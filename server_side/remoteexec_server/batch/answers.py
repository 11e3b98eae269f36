"""What the scheduler said a moment ago, for all services of a session: one asks, the others read.

A file for each question, published by renaming it. How old it is says the file system's clock, the only one that all
hosts share. Whoever sees a new answer late, as NFS may have it, asks once more than was needed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from ..store.session import publish

__all__ = ["Answers"]


class Answers:
    """The answers of one session.

    Args:
        directory: of the files; made when there is one.
        recent_s: how old what others were told may be, where it changes from moment to moment.
    """

    def __init__(self, directory: Path, recent_s: float) -> None:
        self._directory, self.recent_s = directory, recent_s
        self._mine: dict[str, int] = {}  # when this service's own was written, in ns

    def read(self, question: str, seconds: float) -> str | None:
        """What another service was told less than so many seconds ago; None: nothing."""
        try:
            with open(self._directory / question, encoding="utf-8", errors="replace") as file:
                written = os.fstat(file.fileno()).st_mtime_ns
                text = file.read()
            if written == self._mine.get(question) or self._now() - written >= seconds * 1e9:
                return None
        except OSError:
            return None
        return text

    def keep(self, question: str, text: str) -> None:
        """What this service was told; where it cannot be written, the others ask for themselves."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            partial = self._written(text)
            self._mine[question] = partial.stat().st_mtime_ns
            partial.replace(self._directory / question)

    def _now(self) -> int:
        """The file system's time, in ns.

        Raises:
            OSError: nothing can be written there.
        """
        clock = self._written("")
        now = clock.stat().st_mtime_ns
        clock.unlink()
        return now

    def _written(self, text: str) -> Path:
        """A new file under a name that nobody else has."""
        path = self._directory / f".{secrets.token_hex(8)}"
        publish(path, text.encode())
        return path
