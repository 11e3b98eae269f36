"""What tasks print: read from their processes while they run, kept with their futures, and shown.

A worker's stdout and stderr are one pipe, so that what C code and child processes print is in it, too, and in order.
Before each call the worker writes a mark into it: a secret of the pool and the number of the task. What follows belongs
to that task, and is still there when the process has died.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Mapping
from typing import Literal

from remoteexec_server.wire import pooled

from ..futures import TaskFuture
from .tasks import PoolTask

MOST_KEPT = 1 << 20
"""Bytes kept of what one task prints: the last ones."""
_CHUNK = 1 << 16


class Printed:
    """What one task has printed so far, or the last `MOST_KEPT` bytes of that; `str` of it is the text."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def add(self, data: bytes) -> None:
        """More of it."""
        self._pieces.append(data)
        self._size += len(data)
        while self._size > MOST_KEPT:
            first = self._pieces.popleft()
            less = first[self._size - MOST_KEPT :]
            self._size -= len(first) - len(less)
            if less:
                self._pieces.appendleft(less)

    def __str__(self) -> str:
        return b"".join(list(self._pieces)).decode(errors="replace")


class Output:
    """What an executor does with what its tasks print.

    Args:
        show: on this process's stdout; "prefix": each line with the task it is from.

    Attributes:
        shown: see `show`.
        secret: begins marks.
    """

    def __init__(self, show: bool | Literal["prefix"]) -> None:
        self.shown = show
        self.secret = b"\0" + os.urandom(15)

    def show(self, task: TaskFuture[object], data: bytes, line: bytes) -> bytes:
        """Show what a task has printed.

        Args:
            line: the line it has begun before, and not shown.

        Returns:
            The line that is begun now.
        """
        if self.shown != "prefix":
            if self.shown:
                _write(data.decode(errors="replace"))
            return b""
        *lines, rest = (line + data).split(b"\n")
        for each in lines:
            self.show_line(task, each)
        return rest

    def show_line(self, task: TaskFuture[object], line: bytes) -> None:
        """Show a line, with its prefix."""
        info = task.task
        _write(f"[{info.key} {info.function}] {line.decode(errors='replace')}\n")


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or there is none
        sys.stdout.write(text)
        sys.stdout.flush()


class OutputReader:
    """Reads what one worker's tasks print; of the pool thread alone.

    Args:
        handle: the pipe; does not block.
        has: the tasks of the worker, by number.
    """

    def __init__(self, handle: int, output: Output, has: Mapping[int, PoolTask]) -> None:
        self.handle, self._output, self._has = handle, output, has
        self._mark_size = len(output.secret) + pooled.TOKEN.size
        self._task: TaskFuture[object] | None = None
        self._printed: Printed | None = None
        self._kept = b""  # what may be the beginning of a mark
        self._line = b""

    def read(self) -> bool:
        """Take what is there; whether there can be more."""
        while True:
            try:
                data = os.read(self.handle, _CHUNK)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._take(self._kept + data)

    def close(self) -> None:
        """The worker is buried, and another's pipe may have its handle's number at once: nothing more is read."""
        self.handle = -1

    def end_line(self) -> None:
        """A task has ended: what it has not finished with a line break is shown."""
        if self._line and self._task is not None:
            self._output.show_line(self._task, self._line)
        self._line = b""

    def _take(self, data: bytes) -> None:
        secret = self._output.secret
        while (at := data.find(secret)) >= 0 and len(data) >= at + self._mark_size:
            self._print(data[:at])
            (number,) = pooled.TOKEN.unpack_from(data, at + len(secret))
            self._begin(number)
            data = data[at + self._mark_size :]
        if at < 0:
            at = data.find(secret[:1], max(0, len(data) - len(secret) + 1))
            while at >= 0 and not secret.startswith(data[at:]):
                at = data.find(secret[:1], at + 1)
        self._print(data if at < 0 else data[:at])
        self._kept = b"" if at < 0 else data[at:]

    def _begin(self, number: int) -> None:
        self.end_line()
        task = self._has.get(number)
        self._task = task.future if task is not None else None
        self._printed = Printed()
        if self._task is not None:
            self._task.output = self._printed

    def _print(self, data: bytes) -> None:
        if not data:
            return
        if self._task is None or self._printed is None:  # before its first call: said while it was set up
            _write(data.decode(errors="replace"))
            return
        self._printed.add(data)
        self._line = self._output.show(self._task, data, self._line)
