"""What is left to do when a worker for MPI functions has ended, however it ended: another process does it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import tempfile

from . import orphans

_SHARED = "/dev/shm"
_SEGMENTS = tuple(f"{_SHARED}/{name}" for name in ("mpich_shm_", "vader_segment.", "sm_segment."))
"""Files of MPICH and Open MPI, which each rank has in its memory and nobody removes if they are killed."""

_LAUNCHER_S = 2.0
"""For srun to end by itself, and once more when it was asked to; 0.1 s were seen."""
_ROUNDS = 10
"""Of looking for processes with a mark; picked, not measured: one is enough unless they start others."""


def shared_memory(pid: int) -> set[str]:
    """Files of MPI that a process has in its memory; none if it has ended."""
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as maps:
            paths = {line.rstrip("\n").split(None, 5)[-1] for line in maps if _SHARED in line}
    except OSError:
        return set()
    return {path for path in paths if path.startswith(_SEGMENTS) and not path.endswith(" (deleted)")}


class Sweeper:
    """A process that, when this one has ended or says so, kills process groups and removes what they left behind.

    Attributes:
        directory: the user's alone, removed in the end; in memory where there is some.
    """

    def __init__(self) -> None:
        place = _SHARED if os.access(_SHARED, os.W_OK | os.X_OK) else tempfile.gettempdir()
        self.directory = os.path.join(place, f"remoteexec-mpi-{os.urandom(8).hex()}")
        end, self._told = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _sweep(end, self.directory)
            finally:
                os._exit(0)
        os.close(end)
        os.mkdir(self.directory, 0o700)  # after the fork: from now on it is removed whatever happens

    def note_group(self, pid: int) -> None:
        """This process is killed in the end, with the group it leads and MPI's files in its memory."""
        self._tell(f"group {pid}")

    def note_launcher(self, pid: int) -> None:
        """This process is given time to end, which it does when those that it has started have ended; then as above."""
        self._tell(f"launcher {pid}")

    def note_file(self, path: str) -> None:
        """This file is removed in the end: who has it in memory may have ended before."""
        self._tell(f"file {path}")

    def note_mark(self, mark: str) -> None:
        """All processes with this text in their environment are killed in the end, with MPI's files in their memory."""
        self._tell(f"mark {mark}")

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # somebody killed it
            os.write(self._told, line.encode() + b"\0")

    def sweep(self) -> None:
        """Do it now; once."""
        os.close(self._told)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _sweep(end: int, directory: str) -> None:
    """In the sweeper."""
    os.setsid()  # the pool kills the worker's process group
    orphans.be_sweeper()  # and all other orphans
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    os.dup2(end, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # what it holds open would not be seen to end
    with open(3, "rb") as file:
        told = [line.decode().partition(" ") for line in file.read().split(b"\0")[:-1]]
    for pid in [int(what) for kind, _, what in told if kind == "launcher"]:
        _end_launcher(pid)
    groups = [int(what) for kind, _, what in told if kind == "group"]
    marks = [what for kind, _, what in told if kind == "mark"]
    groups += _marked(marks)
    files = {what for kind, _, what in told if kind == "file"}.union(*map(shared_memory, groups))
    for pid in groups:
        _kill(pid)
    kill_marked(marks)
    for path in files:
        with contextlib.suppress(OSError):
            os.unlink(path)
    shutil.rmtree(directory, ignore_errors=True)


def kill_marked(marks: list[str]) -> None:
    """Kill all processes of ours that have one of these texts in their environment, and what these have started."""
    for _ in range(_ROUNDS):  # what a process has started while it was looked for
        for pid in (found := _marked(marks)):
            _kill(pid)
        if not found:
            break


def _end_launcher(pid: int) -> None:
    """Without srun its step goes on, and nobody tells the scheduler to end that: so it is killed last."""
    try:
        end = os.pidfd_open(pid)
    except (AttributeError, OSError):  # it has ended; Linux before 5.3
        _kill(pid)
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        if select.select([end], [], [], _LAUNCHER_S)[0]:
            break
        with contextlib.suppress(OSError):
            os.kill(pid, number)
    os.close(end)
    _kill(pid)


def _marked(marks: list[str]) -> list[int]:
    found, texts = [], [mark.encode() for mark in marks]
    for name in os.listdir("/proc") if marks and os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{int(name)}/environ", "rb") as file:
                environment = file.read()
            if any(text in environment for text in texts):
                found.append(int(name))
    return found


def _kill(pid: int) -> None:
    """A process, which under Open MPI and MPICH leads a group of its own, and what it has started."""
    with contextlib.suppress(OSError):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)
