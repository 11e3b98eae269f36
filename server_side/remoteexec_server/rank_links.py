"""How MPI ranks and their worker reach each other; and on one machine, by sockets in a directory of the user's alone.

near   rank ── AF_UNIX, both prove that they know a secret ──▶ worker ◀── datagrams ── watch
far    rank ── TLS, both show the session's certificate ─────▶ worker ◀── the same ─── watch     see `rank_far`
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from . import mpi_watch
from .mpi_watch import Word
from .sweeper import Sweeper

__all__ = ["SECRET", "Arrival", "Links", "NearLinks", "NearRank", "RankEnd"]

SECRET = "REMOTEEXEC_MPI_SECRET"
"""Name of the variable with what a rank has to know."""
_WORDS = ".words"
"""After the socket's address: where the ranks' watches tell how they ended."""
_HANDSHAKE_S = 30.0


class Arrival(NamedTuple):
    """A rank has connected and is one of ours.

    Attributes:
        sock: blocks.
        ident: what its watch calls it.
        pid: on its node.
        node: which that is; "": this one.
    """

    sock: socket.socket
    ident: int
    pid: int
    node: str = ""


class Links(Protocol):
    """The worker's end.

    Attributes:
        address: as a rank takes it.
        secret: the value of `SECRET`.
    """

    address: str
    secret: str

    def fileno(self) -> int:
        """Can be read when somebody has connected, or something is told."""

    def arrivals(self) -> list[Arrival]:
        """Who has arrived; others are turned away. Waits for nobody who is not ours."""

    def shut(self) -> None:
        """All ranks are here: nobody is let in any more."""

    def words(self) -> int:
        """Can be read when something is told, once it is shut."""

    def take(self, patience_s: float = 0.0) -> Word | None:
        """The next that was told; None if nothing is in this time."""

    def close(self) -> None:
        """Nothing is told any more. Far away, this ends the ranks."""


class RankEnd(Protocol):
    """A rank's end."""

    def watched(self) -> None:
        """Become the rank: returns in a fork of this process, which stays and tells how the fork ends."""

    def connect(self) -> socket.socket:
        """To the worker, which is ours.

        Raises:
            OSError, handshake.NotOurs: it is not to be had.
        """

    def tell_abort(self, code: int) -> None:
        """It calls MPI_Abort."""

    def tell_files(self, paths: Iterable[str]) -> None:
        """These are to be removed when it is killed."""


class NearLinks:
    """See Links.

    Args:
        sweeper: its directory has the sockets; it is told of the ranks' processes.
        size: ranks.
    """

    def __init__(self, sweeper: Sweeper, size: int) -> None:
        self._sweeper, self._known = sweeper, os.urandom(32)
        self.address, self.secret = os.path.join(sweeper.directory, "s"), self._known.hex()
        self._words = mpi_watch.Words(self.address + _WORDS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(size)

    def fileno(self) -> int:
        """See Links."""
        return self._listener.fileno()

    def arrivals(self) -> list[Arrival]:
        """See Links: nobody else can connect here."""
        from .wire import handshake  # late: ranks that are far do without

        sock, _ = self._listener.accept()
        sock.settimeout(_HANDSHAKE_S)
        try:
            handshake.accepted(sock, self._known)
        except (handshake.NotOurs, OSError):
            sock.close()
            return []
        sock.settimeout(None)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        self._sweeper.note_group(pid)
        with contextlib.suppress(OSError):
            self._sweeper.note_group(os.getpgid(pid))  # its watch leads it
        return [Arrival(sock, pid, pid)]

    def shut(self) -> None:
        """See Links."""
        self._listener.close()

    def words(self) -> int:
        """See Links."""
        return self._words.fileno()

    def take(self, patience_s: float = 0.0) -> Word | None:
        """See Links."""
        return self._words.take(patience_s)

    def close(self) -> None:
        """See Links: the sweeper ends the ranks."""
        self._listener.close()
        self._words.close()


class NearRank:
    """See RankEnd."""

    def __init__(self, address: str) -> None:
        self._address = address

    def watched(self) -> None:
        """See RankEnd."""
        mpi_watch.watched(self._address + _WORDS)

    def connect(self) -> socket.socket:
        """See RankEnd."""
        from .wire import handshake

        secret = bytes.fromhex(os.environ.pop(SECRET))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self._address)
        handshake.connected(sock, secret)
        return sock

    def tell_abort(self, code: int) -> None:
        """See RankEnd."""
        mpi_watch.tell_abort(self._address + _WORDS, code)

    def tell_files(self, paths: Iterable[str]) -> None:
        """See RankEnd: the worker tells the sweeper."""
