"""One rank of an MPI function: a process that mpiexec or srun started, and a worker that is told calls by `mpi`.

It shows that it is ours, initialises MPI, says which rank of how many it is, and runs calls until it is told no more.
"""

from __future__ import annotations

import contextlib
import os
import traceback

from .aborts import tell_aborts
from .rank_links import NearRank, RankEnd
from .sweeper import shared_memory
from .wire import pooled
from .worker import Worker


def main(argv: list[str]) -> int:
    """`mpi-rank ADDRESS RANKS [WORKER]`: run calls until the connection ends; RANKS 0: without MPI."""
    end = _end(argv[0])
    end.watched()
    sock = end.connect()
    if argv[1] == "0":  # a process all alone, which some other command started
        pooled.send(sock, (0, 1, "", []))
        Worker(sock, None, int(argv[2]) if len(argv) > 2 else 0).serve_as_told(int(argv[2]) if len(argv) > 2 else None)
        return 0
    try:
        # MPI is initialised by this import, and finalised when the interpreter exits
        from mpi4py import MPI

        tell_aborts(MPI, end.tell_abort)
        library = MPI.Get_library_version().splitlines()[0].strip("\0 ")
        hello = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size(), library, shared_memory(os.getpid())
    except BaseException:  # the process edge: told to who waits
        pooled.send(sock, (None, traceback.format_exc(limit=0).strip()))
        return 1
    end.tell_files(hello[3])
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


def _end(address: str) -> RankEnd:
    if os.path.isabs(address):
        return NearRank(address)
    from .rank_far import FarRank  # late: it brings TLS

    return FarRank(address)
