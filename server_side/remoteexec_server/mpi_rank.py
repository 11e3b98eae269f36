"""One rank of an MPI function: a process that mpiexec started, and a worker that is told calls by `mpi`.

It shows that it is ours, initialises MPI, says which rank of how many it is, and runs calls until it is told no more.
"""

from __future__ import annotations

import contextlib
import os
import socket
import traceback

from . import mpi_watch
from .aborts import tell_aborts
from .sweeper import shared_memory
from .wire import handshake, pooled
from .worker import Worker

SECRET = "REMOTEEXEC_MPI_SECRET"  # the variable's name
WORDS = ".words"
"""After the socket's address: where the rank's watch tells how it ended."""


def main(argv: list[str]) -> int:
    """`mpi-rank SOCKET RANKS [WORKER]`: run calls until the socket ends; RANKS 0: without MPI."""
    mpi_watch.watched(argv[0] + WORDS)
    secret = bytes.fromhex(os.environ.pop(SECRET))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(argv[0])
    handshake.connected(sock, secret)
    if argv[1] == "0":  # a process all alone, which some other command started
        pooled.send(sock, (0, 1, "", []))
        Worker(sock, None, int(argv[2]) if len(argv) > 2 else 0).serve_as_told(int(argv[2]) if len(argv) > 2 else None)
        return 0
    try:
        # MPI is initialised by this import, and finalised when the interpreter exits
        from mpi4py import MPI

        tell_aborts(MPI, lambda code: mpi_watch.tell_abort(argv[0] + WORDS, code))
        library = MPI.Get_library_version().splitlines()[0].strip("\0 ")
        hello = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size(), library, shared_memory(os.getpid())
    except BaseException:  # the process edge: told to who waits
        pooled.send(sock, (None, traceback.format_exc(limit=0).strip()))
        return 1
    pooled.send(sock, hello)
    if hello[1] != int(argv[1]):  # an mpiexec of another MPI: each of us is all alone
        MPI.Finalize()
        for path in hello[3]:  # Open MPI 5.0 leaves it
            with contextlib.suppress(OSError):
                os.unlink(path)
        return 1
    number = int(argv[2]) if len(argv) > 2 else None
    Worker(sock, None, number or 0).serve_as_told(number)
    return 0
