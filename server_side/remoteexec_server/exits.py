"""The runner's last words in the log: how its child ended, and what it had used.

The runner sees what the scheduler may not: the largest memory of every process it waited for, to the byte, also where
no accounting runs. `diagnose` reads it from the log's end when a job left no outcome.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .wire.evidence import Usage

_LINE = re.compile(
    r"^remoteexec: the task's process (?:ended with exit code (\d+)|was ended by signal (\d+)) "
    r"after (\d+(?:\.\d+)?) s, having used (\d+) bytes$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Exit:
    """How the process of a task ended.

    Attributes:
        code: its exit code, or the negative number of the signal that ended it.
        time_s: seconds it ran.
        memory_bytes: the largest resident memory of one process of the task.
    """

    code: int
    time_s: float
    memory_bytes: int

    @property
    def usage(self) -> Usage:
        """The same for a loss."""
        return Usage(time_s=self.time_s, memory_bytes=self.memory_bytes)

    def __str__(self) -> str:
        how = f"ended with exit code {self.code}" if self.code >= 0 else f"was ended by signal {-self.code}"
        return f"the task's process {how} after {self.time_s:.1f} s, having used {self.memory_bytes} bytes"


def parse(log: str) -> Exit | None:
    """The last such line of a log, after the runner's "remoteexec: "; None if there is none."""
    found = list(_LINE.finditer(log))
    if not found:
        return None
    code, signal, seconds, memory = found[-1].groups()
    return Exit(int(code) if code is not None else -int(signal), float(seconds), int(memory))
