"""How each rank ended, and which ended first: told by its parent, before anybody else can know.

    mpiexec ─ watch ─ rank          the watch is the process that mpiexec started; the rank is its fork
                 └ datagram ─▶ worker: pid, wait status

mpiexec ends all ranks when one ends, so whose connection is seen to end first does not say who began. The watch waits
for its rank, tells, and only then ends in the same way: until then mpiexec sees a process that is there, and no file of
it closed. So the first that was told is the first that ended: all tell by one socket, whose messages stay in order.

Where mpiexec learns it otherwise, this does not hold: Open MPI 4 and 5 and MPICH's hydra were seen to keep still for
seconds while a rank's own connections were closed. A watch that is killed with its rank tells nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from typing import NamedTuple

_MESSAGE = struct.Struct("<cii")
_WAITED, _ABORT = b"W", b"A"


class Word(NamedTuple):
    """What is told of a rank.

    Attributes:
        ident: of the rank: on one machine its pid.
        status: as `os.waitpid` says; None: it called MPI_Abort.
        abort: the error code of that; None, too: its watch is gone, and nobody knows how it ended.
    """

    ident: int
    status: int | None
    abort: int | None

    @property
    def ended(self) -> bool:
        """Whether the rank is over; otherwise it was stopped or goes on."""
        return self.status is None or os.WIFEXITED(self.status) or os.WIFSIGNALED(self.status)

    @property
    def halted(self) -> bool:
        """Whether it was stopped by a signal."""
        return self.status is not None and os.WIFSTOPPED(self.status)


class Words:
    """Where all ranks' ends are told, in the order they happen.

    Args:
        address: in a directory that is the user's alone; nobody else can write there.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)

    def fileno(self) -> int:
        """Can be read when something is told."""
        return self._socket.fileno()

    def take(self, patience_s: float = 0.0) -> Word | None:
        """The next that was told; None if nothing is in this time."""
        if not select.select([self._socket], [], [], patience_s)[0]:
            return None
        kind, pid, value = _MESSAGE.unpack(self._socket.recv(_MESSAGE.size))
        return Word(pid, None, value) if kind == _ABORT else Word(pid, value, None)

    def close(self) -> None:
        """Nothing is told any more."""
        self._socket.close()


def tell_abort(address: str, code: int) -> None:
    """In a rank: it calls MPI_Abort."""
    _tell(address, _MESSAGE.pack(_ABORT, os.getpid(), code))


def watched(address: str) -> None:
    """Become the rank: returns in a fork of this process, which stays and tells how the fork ends."""
    pid = os.fork()
    if pid == 0:
        return
    code = 1
    try:
        code = end_like(_wait(pid, address))
    finally:
        os._exit(code)


def _wait(pid: int, address: str) -> int:
    # What mpiexec sends to end the rank ends the rank; this one has to outlive it.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED | getattr(os, "WCONTINUED", 0))
        _tell(address, _MESSAGE.pack(_WAITED, pid, status))
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return status


def _tell(address: str, message: bytes) -> None:
    """Never waits: when more were told than are kept, this is not the first, and the worker is about to end all."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(message, address)


def end_like(status: int) -> int:
    """End by the same signal, so that mpiexec says so; or the exit code to end with."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    import resource  # late: Windows has none, and the client imports this package

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank has written one, if that was wanted
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    return 128 - code


def how_it_ended(code: int) -> str:
    """In words, of what `os.waitstatus_to_exitcode` says."""
    return f"was ended by {signal_name(-code)}" if code < 0 else f"ended itself with exit code {code}"


def signal_name(number: int) -> str:
    """SIGKILL, say; real-time signals have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
