"""What a pilot says of tasks that have ended their workers, or whose outcomes could not be written."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from .. import runner
from ..store.crew import Beat
from ..store.outcomes import log_path
from ..store.segments import Kind, LogWriter
from ..store.session import Session, log_tail
from ..wire import messages
from ..wire.messages import Loss, TaskKey
from .staff import Hired


class Losses:
    """Losses of one pilot's tasks, which wait until the disk takes them.

    Args:
        name: of the pilot.
        log: what its job prints.
        beat: says which job it is, and where.
    """

    def __init__(self, session: Session, name: str, log: Path, beat: Beat) -> None:
        self._session, self._name, self._log, self._beat = session, name, log, beat
        self._unwritten: list[tuple[TaskKey, Loss]] = []
        self._writer: LogWriter | None = None

    @property
    def waiting(self) -> bool:
        """Something is not written yet."""
        return bool(self._unwritten)

    def lose(self, key: TaskKey, loss: Loss) -> None:
        """Say that a task is lost, now or when the disk takes it."""
        self._unwritten.append((key, loss))

    def write(self) -> None:
        """Write what waits.

        Raises:
            FileNotFoundError: the session is gone.
        """
        try:
            if self._unwritten and self._writer is None:
                self._writer = LogWriter(Path(log_path(self._session, self._name)))
            while self._unwritten and self._writer is not None:
                key, loss = self._unwritten[0]
                self._writer.append(Kind.LOST, key, messages.to_json(loss).encode())
                self._writer.sync()
                self._unwritten.pop(0)
        except FileNotFoundError:
            raise
        except OSError as exc:
            runner._print(f"cannot write to the store: {exc}")

    def why(self, hired: Hired, code: int) -> Loss:
        """Why a worker has died."""
        from ..batch import diagnose

        tail = log_tail(self._log)
        if hired.limit_at is not None and time.monotonic() >= hired.limit_at:
            return self.described("timeout", "it reached its time limit (run_time_max)", code)
        if code == -signal.SIGKILL and diagnose.names_memory(tail):
            return self.described("out_of_memory", "its worker ran out of memory. Ask for more with memory_max", code)
        if code < 0:
            name = signal.Signals(-code).name
            return self.described("killed", f"its worker was ended by signal {-code} ({name})", code)
        return self.described("killed", f"it ended its worker with exit code {code} (os._exit, or compiled code)", code)

    def described(self, reason: str, what: str, code: int | None = None) -> Loss:
        """A loss of this pilot's.

        Args:
            code: of the worker's end; negative: by that signal.
        """
        return Loss(
            reason,
            f"{what}; the log of its pilot is {self._log}",
            job=self._beat.job,
            node=self._beat.host,
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            log_tail=log_tail(self._log),
            log_path=str(self._log),
        )
