"""MPI functions: a call runs on all ranks, started with mpiexec or, over an allocation's nodes, by its scheduler.

    pool ── worker ─┬─ mpiexec ─┬─ watch ── rank 0      each rank connects back to the worker by a socket of its own;
                    │           ├─ watch ── rank 1      what proves that both ends are ours, and how far that reaches,
                    │           └─ ...                  is the business of `rank_links`
                    └─ sweeper

To the pool this is a worker like any other. It sends each call to all ranks as it came, unopened, and answers with the
list of their results, unopened too. The first rank that raises or ends ends them all: others may wait for it inside
MPI for ever. Which that was, and how it ended, is told by its parent, the watch: see `mpi_watch`.

What mpiexec, the ranks and what they started use is found and taken away by the sweeper, a process that waits for the
worker's end, however that comes: neither Open MPI nor MPICH clean up after they were killed.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from . import failure
from .mpi_program import Answer, Failed, FarProgram, Program, RankEnded, RanksDidNotStart
from .wire import pooled


class Ranks:
    """Runs each call on all ranks, which stay from call to call.

    Args:
        setup: what each is made to be; its `launch` says how they are started.
        pool: the worker's socket, watched for its end.
        worker: number of the worker, if it is kept, which each rank's code sees as its own.
    """

    def __init__(self, setup: pooled.Setup, pool: socket.socket, worker: int | None) -> None:
        self._setup, self._pool, self._worker = setup, pool, worker
        self._program: Program | None = None
        self._sent: set[int] = set()  # functions the present ranks know
        self._forgotten: list[pooled.Function] = []  # to be told with the next call
        self.broken = False

    def start(self) -> bytes | None:
        """Start the ranks if they are not there: at first, after a failure, or when one ended while it had no call.

        Returns:
            The `failure` if there is no starting them.
        """
        if self._program is not None and not self._program.whole():
            self._program.kill()
            self._program = None
        if self._program is None:
            self._sent.clear()
            try:
                self._program = self._started()
            except RanksDidNotStart as exc:
                return failure.amended(failure.packed(exc, "ranks_not_started"), traceback="")
        return None

    def _started(self) -> Program:
        """In the first way that works: where the ranks do not start, no function has run."""
        step = self._setup.get("step")
        if step is None:
            return _started(Program(self._setup, self._pool, self._worker))
        tried = []
        for name, argv in step[0]:
            try:
                return _started(FarProgram(self._setup, self._pool, self._worker, (name, argv)))
            except RanksDidNotStart as exc:
                tried.append(f"{name}: {exc}")
                if exc.final:
                    break
        raise RanksDidNotStart("\n".join(tried))

    def run(self, call: pooled.Call, buffers: Sequence[Any], function: tuple[Any, Sequence[Any]]) -> Answer:
        """Run one call on all ranks.

        Args:
            call: as it came, with its buffers.
            function: pickled, and its buffers.

        Returns:
            The list of results by rank, or the first failure. After a failure the next call has new ranks: messages
            that the failed one left under way could reach it otherwise. After the end of a rank `broken` is True.
        """
        if (failed := self.start()) is not None:
            return False, failed, ()
        assert self._program is not None
        program = self._program
        number = call[1]
        functions, self._forgotten = self._forgotten, []
        views = [memoryview(buffer) for buffer in buffers]
        if number not in self._sent:
            self._sent.add(number)
            data, its = pooled.split(function[0], [memoryview(buffer) for buffer in function[1]])
            functions.append((number, data, len(its)))
            views = [*its, *views]
        try:
            program.tell(functions, call, views)
            return program.results(call[0])
        except Failed as exc:
            text = f"MPI rank {exc.rank} of {program.size}:\n"
            self._program = None
            program.kill()
            if program.alone:
                return False, exc.data, ()
            return False, failure.amended(exc.data, text, rank=exc.rank, ranks=program.size), ()
        except RankEnded as exc:
            self.broken, self._program = True, None
            message, facts = program.explain(exc)
            packed = failure.packed(exc, "rank_ended")
            return False, failure.amended(packed, message=message, traceback="", **facts), ()

    def forget(self, number: int) -> None:
        """No later call has this function, unless it is given anew."""
        self._sent.discard(number)
        self._forgotten.append((number, None, pooled.FORGET))

    def end(self) -> None:
        """Let the ranks finalise MPI and end."""
        if self._program is not None:
            self._program.end()
            self._program = None


def _started(program: Program) -> Program:
    program.start()
    return program
