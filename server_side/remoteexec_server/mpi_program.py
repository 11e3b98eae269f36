"""One MPI program: its launcher and the ranks that this started, on one node or on several."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import far_session, mpi_ends, mpi_launch, mpi_watch, rank_links
from .mpi_launch import Share, Way
from .rank_links import Arrival, Links, NearLinks
from .sweeper import Sweeper
from .wire import names, payload, pooled
from .wire.payload import Pickled

_START_S = 60.0
"""To start N interpreters and initialise MPI; picked, not measured: 0.5 s here, many ranks on a slow disk take long."""
_END_S = 5.0
"""For the ranks to finalise MPI and end after their last call."""
_TOLD_S = 2.0
"""For the watch of a rank whose connection has ended to tell how: it waits for the same end; picked, not measured."""
_EXPLAIN_S = 2.0
"""For mpiexec to say why a rank ended: Open MPI takes 1 s."""
_NODE_S = 5.0
"""For the pool to end us since a node is lost, or srun to say so, when a rank is gone without a word."""
_TICK_S = 1.0
"""How often mpiexec is looked at where the kernel cannot tell of its end (Linux before 5.3)."""
_TAIL = 4000
_WHICH = "put the mpiexec that belongs to mpi4py's first in PATH, or name it in REMOTEEXEC_MPIEXEC"
_PACKAGE = str(Path(__file__).parent)
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
Answer = tuple[bool, bytes, "tuple[memoryview, ...]"]
"""Whether there is a result, that or a `failure`, and its buffers."""


class RanksDidNotStart(Exception):
    """There is no MPI program, for the reason it says.

    Attributes:
        final: other ways would fare no better.
    """

    def __init__(self, text: str, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class RankEnded(Exception):
    """A rank ended while it had a call.

    Attributes:
        word: what its watch told; None if it could not.
    """

    def __init__(self, rank: _Rank, word: mpi_watch.Word | None) -> None:
        super().__init__(rank.number)
        self.rank, self.word = rank, word


class PoolGone(Exception):
    """Nobody waits for results any more."""


@dataclass
class _Rank:
    sock: socket.socket
    stream: pooled.Stream
    ident: int
    pid: int
    node: str
    number: int = -1

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.node}" if self.node else f"pid {self.pid}"


class Failed(Exception):
    """A rank answered with a failure."""

    def __init__(self, rank: int, data: bytes) -> None:
        super().__init__(rank)
        self.rank, self.data = rank, data


@dataclass
class _Tail:
    """Shows what mpiexec and the ranks write to stderr, and remembers the end of it.

    A thread reads it, since nobody else may be free to: who writes would wait.
    """

    handle: int
    data: bytes = b""
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._copy, name="remoteexec-mpi-stderr", daemon=True)
        self.thread.start()

    def _copy(self) -> None:
        with contextlib.closing(os.fdopen(self.handle, "rb", buffering=0)) as file:
            while piece := file.read(1 << 16):
                self.data = (self.data + piece)[-_TAIL:]
                with contextlib.suppress(OSError):
                    os.write(2, piece)

    def text(self) -> str:
        """What it said last, once it has ended or said nothing for long."""
        self.thread.join(1.0)
        lines = self.data.decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if line.strip(" -="))


class Program:
    """One mpiexec and its ranks."""

    _alike = "that mpiexec"
    _which = _WHICH
    _silent_s = _EXPLAIN_S
    _aborts_are_told = True  # in the launcher's exit code

    def __init__(self, setup: pooled.Setup, pool: socket.socket, worker: int | None) -> None:
        self.size, command, self._oversubscribe, self.alone = setup["launch"]
        node = os.environ.get(names.NODE, "")
        self._command = [part.replace(mpi_launch.HERE, node) for part in command]
        self._setup, self._pool, self._worker = setup, pool, worker
        self._told = False  # the ranks have their setup
        self._ranks: list[_Rank] = []
        self._links: Links | None = None
        self._files: set[str] = set()

    # ---- start ----

    def start(self) -> None:
        """Start the ranks and wait until all have initialised MPI.

        Raises:
            RanksDidNotStart: with what mpiexec said; in `_START_S` at most.
        """
        self._sweeper = Sweeper()
        self._links = links = self._new_links()
        argv = [*self._launcher(), sys.executable, _PACKAGE, "mpi-rank", links.address]
        argv += ["0" if self.alone else str(self.size), *([str(self._worker)] if self._worker is not None else [])]
        environment = self._environment() | {rank_links.SECRET: links.secret}
        for name, value in self._setup.get("environment", {}).items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                bufsize=0,
                start_new_session=True,  # the pool kills the worker's group: the sweeper has to be first here
            )
        except OSError as exc:
            links.close()
            self._sweeper.sweep()
            raise RanksDidNotStart(f"{self._command[0]} cannot be started: {exc}") from exc
        self._note_launcher(self._process.pid)
        assert self._process.stderr is not None
        self._tail = _Tail(os.dup(self._process.stderr.fileno()))
        self._process.stderr.close()
        try:
            self._gather(links)
        except BaseException as exc:
            self.kill()
            if isinstance(exc, RanksDidNotStart):
                said = self._tail.text()
                raise RanksDidNotStart(f"{exc}\n{said}" if said else str(exc), exc.final) from None
            raise
        links.shut()

    def _new_links(self) -> Links:
        return NearLinks(self._sweeper, self.size)

    def _launcher(self) -> list[str]:
        """All of the command but what each rank runs."""
        return [*self._command, *([] if self.alone else ["-n", str(self.size)])]

    def _environment(self) -> dict[str, str]:
        return mpi_launch.launcher_environment(self._sweeper.directory, self._oversubscribe)

    def _note_launcher(self, pid: int) -> None:
        self._sweeper.note_group(pid)

    def _gather(self, links: Links) -> None:
        """Take the ranks' connections, and hear from each that MPI is there."""
        deadline = time.monotonic() + _START_S
        poll = select.poll()
        poll.register(links.fileno(), select.POLLIN)
        poll.register(self._pool.fileno(), select.POLLHUP)
        waiting: dict[int, _Rank] = {}
        with _end_of(self._process.pid) as end:
            if end is not None:
                poll.register(end, select.POLLIN)
            while len(self._ranks) < self.size:
                for handle, event in poll.poll(_TICK_S * 1000):
                    if handle == links.fileno():
                        for arrival in links.arrivals():
                            rank = _rank_of(arrival)
                            waiting[rank.sock.fileno()] = rank
                            poll.register(rank.sock.fileno(), select.POLLIN)
                    elif handle in waiting:
                        poll.unregister(handle)
                        self._hear(waiting.pop(handle))
                    elif handle == self._pool.fileno() and event & select.POLLHUP:
                        raise PoolGone
                if self._process.poll() is not None:
                    raise RanksDidNotStart(f"{self._name()} {mpi_watch.how_it_ended(self._process.returncode)}")
                if time.monotonic() > deadline:
                    absent = self.size - len(self._ranks) - len(waiting)
                    raise RanksDidNotStart(
                        f"after {_START_S:.0f} s {absent} of {self.size} ranks that {self._name()} started have not "
                        f"connected, and {len(waiting)} have not initialised MPI",
                        final=True,
                    )
        self._ranks.sort(key=lambda rank: rank.number)

    def _hear(self, rank: _Rank) -> None:
        """A rank says who it is, or why it cannot be one."""
        try:
            (number, *said), _ = rank.stream.next()
        except (EOFError, ConnectionError):
            raise RanksDidNotStart(
                f"a rank ({rank}) ended before it had initialised MPI; if {self._name()} is not of "
                f"the MPI that mpi4py uses: {self._which}"
            ) from None
        if number is None:
            raise RanksDidNotStart(f"a rank cannot initialise MPI: {said[0]}")
        size, library, files = said
        if size != self.size:
            self._wait(_EXPLAIN_S)  # each ends by itself, and cleans up
            raise RanksDidNotStart(
                f"{self._name()} started {self.size} ranks, and MPI counts {size}: mpi4py uses "
                f"{library}, which is not the MPI of {self._alike}; {self._which}"
            )
        for file in set(files) - self._files:
            self._files.add(file)
            self._sweeper.note_file(file)
        rank.number = number
        self._ranks.append(rank)

    def _name(self) -> str:
        return " ".join(self._command)

    # ---- calls ----

    def whole(self) -> bool:
        """Whether all ranks are there."""
        poll = select.poll()
        for rank in self._ranks:
            poll.register(rank.sock.fileno(), select.POLLIN)
        return not poll.poll(0)  # between calls they say nothing: what is there to read is an end

    def tell(self, functions: Sequence[pooled.Function], call: pooled.Call, buffers: Sequence[memoryview]) -> None:
        """Send a call to all ranks, and functions that they do not know."""
        for rank in self._ranks:
            setup = None if self._told else self._setup_of(rank.number)
            with contextlib.suppress(OSError):  # that it has ended is found when its answer is read
                pooled.send(rank.sock, (setup, functions, [call]), buffers)
        self._told = True

    def _setup_of(self, rank: int) -> pooled.Setup:
        """The setup of one rank: of the task's GPUs and memory it has its share."""
        setup: pooled.Setup = {**self._setup, "launch": None}
        setup["environment"] = self._environment_of(rank)
        memory = setup.get("memory_bytes")
        setup["memory_bytes"] = memory // self.size if memory is not None else None
        return setup

    def _environment_of(self, rank: int) -> dict[str, str | None]:
        environment: dict[str, str | None] = {
            name: value for name, value in os.environ.items() if name.startswith(mpi_launch.BATCH)
        }
        return self._with_its_gpus(environment | self._setup.get("environment", {}), rank)

    def _with_its_gpus(self, environment: dict[str, str | None], rank: int) -> dict[str, str | None]:
        for name in _GPU_VARIABLES:
            gpus = (environment.get(name) or "").split(",")
            if len(gpus) >= self.size:
                each = len(gpus) // self.size
                environment[name] = ",".join(gpus[rank * each : (rank + 1) * each])
        return environment

    def results(self, task: int) -> Answer:
        """Wait for the results of all ranks; tell the pool if one is stopped meanwhile.

        Raises:
            Failed: the first rank that answered with a failure.
            RankEnded: the first that ended.
            PoolGone: nobody waits any more.
        """
        results: list[Pickled | None] = [None] * self.size
        by_handle = {rank.sock.fileno(): rank for rank in self._ranks}
        assert self._links is not None
        words = self._links.words()
        with select.epoll() as poll:
            poll.register(self._pool.fileno(), 0)  # its end alone
            for handle in (words, *by_handle):
                poll.register(handle, select.EPOLLIN)
            while by_handle:
                ready = [handle for handle, _ in poll.poll()]
                if self._pool.fileno() in ready:
                    raise PoolGone
                if words in ready:
                    self._heed(self._links.take(), task)
                for handle in ready:
                    if handle in by_handle:
                        rank = by_handle[handle]
                        results[rank.number] = self._result(rank)
                        poll.unregister(handle)
                        del by_handle[handle]
        if self.alone and results[0] is not None:
            return True, results[0].data, results[0].buffers
        whole = payload.dumps([payload.Filled(result, ()) for result in results if result is not None])
        return True, whole.data, whole.buffers

    def _result(self, rank: _Rank) -> Pickled:
        """What a rank answers to a call."""
        try:
            said, read = rank.stream.next()
            if type(said) is tuple:  # said before its answer, which follows at once
                pooled.send(self._pool, said)
                said, read = rank.stream.next()
        except (EOFError, ConnectionError):
            self._heed(self._next_end())
            raise RankEnded(rank, None) from None
        ((_, ok, rest, *_),) = said
        data, buffers = pooled.joined(rest, read)
        if not ok:
            raise Failed(rank.number, bytes(data))
        return Pickled(bytes(data), tuple(map(memoryview, buffers)))

    def _next_end(self) -> mpi_watch.Word | None:
        """The next end, whatever else is told before; None if nothing is soon."""
        assert self._links is not None
        deadline = time.monotonic() + _TOLD_S
        while (word := self._links.take(max(0.0, deadline - time.monotonic()))) is not None and not word.ended:
            pass
        return word

    def _heed(self, word: mpi_watch.Word | None, task: int | None = None) -> None:
        """Raises RankEnded if that is what was told."""
        rank = next((rank for rank in self._ranks if word is not None and rank.ident == word.ident), None)
        if rank is None or word is None:
            return
        if word.ended:
            raise RankEnded(rank, word if word.status is not None or word.abort is not None else None)
        if word.halted and task is not None:
            pooled.send(self._pool, (pooled.HALTED, task, rank.number, rank.pid))

    # ---- end ----

    def end(self) -> None:
        """Let the ranks end."""
        for rank in self._ranks:
            rank.sock.shutdown(socket.SHUT_WR)
        self._wait(_END_S)
        self.kill()

    def kill(self) -> None:
        """End all processes, whatever they do."""
        self._sweeper.sweep()
        self._process.kill()  # if somebody has killed the sweeper
        self._process.wait()
        for rank in self._ranks:
            rank.sock.close()
        if self._links is not None:
            self._links.close()

    def explain(self, end: RankEnded) -> tuple[str, dict[str, Any]]:
        """End all ranks after one has ended; what is known of it, in words and as facts."""
        ended_itself = self._wait(_EXPLAIN_S if end.word is not None else self._silent_s)
        self.kill()
        text = self._tail.text()
        launcher_code = self._process.returncode if ended_itself else None
        rank, word = end.rank, end.word
        named = mpi_ends.aborting_rank_in(text) if word is None or word.abort is None else None
        if named is None and word is None:
            named = mpi_ends.blamed_rank_in(text)
        if named != rank.number:
            rank, word = next(((one, None) for one in self._ranks if one.number == named), (rank, word))
        did, facts = mpi_ends.how(word, text, launcher_code)
        if not self._aborts_are_told and word is not None and word.abort is not None:
            facts["exit_code"] = word.abort & 0xFF
        who = "the process of the call" if self.alone else f"MPI rank {rank.number} of {self.size}"
        message = f"{who} ({rank}) {did}"
        if launcher_code is not None:
            message += f"; {self._name()} {mpi_watch.how_it_ended(launcher_code)}"
        return f"{message}\n{text}" if text else message, {
            "rank": rank.number,
            "ranks": self.size,
            "log_tail": text,
            **facts,
            **mpi_ends.lost_node_in(text),
        }

    def _wait(self, most_s: float) -> bool:
        """Wait for mpiexec's end; whether it came."""
        with _end_of(self._process.pid) as end:
            if end is not None:
                poll = select.poll()  # there may be more files than `select` takes
                poll.register(end, select.POLLIN)
                poll.poll(most_s * 1000)
                return self._process.poll() is not None
        try:
            self._process.wait(most_s)
        except subprocess.TimeoutExpired:
            return False
        return True


class FarProgram(Program):
    """One srun or `flux run` and its ranks, on one or several nodes of the allocation.

    Args:
        way: how they are started.
    """

    _alike = "this PMI"
    _which = "name one that fits with pmi_mode, or another MPI in environment"
    _silent_s = _NODE_S
    _aborts_are_told = False

    def __init__(self, setup: pooled.Setup, pool: socket.socket, worker: int | None, way: Way) -> None:
        super().__init__(setup, pool, worker)
        name, self._command = way
        self._launcher_name = name.partition(" -")[0]
        here = os.environ.get(names.NODE, "")
        host = socket.gethostname() if any(mpi_launch.R in part for part in self._command) else here
        self._shares: list[Share] = setup["step"][1] or [(host, here, self.size, [], ((), 0))]

    def _new_links(self) -> Links:
        from .rank_far import FarLinks  # late: it brings TLS

        return FarLinks(_session(), self.size)

    def _launcher(self) -> list[str]:
        hosts = os.path.join(self._sweeper.directory, "hosts")
        with open(hosts, "w", encoding="utf-8") as file:
            file.writelines(f"{node}\n" for node, _, count, *_ in self._shares for _ in range(count))
        return mpi_launch.filled(self._command, hosts, self._shares)

    def _environment(self) -> dict[str, str]:
        name, _, mark = _session().ranks_of(os.environ.get(names.NODE, "")).partition("=")
        return {**mpi_launch.step_environment(self._oversubscribe), name: mark}

    def _note_launcher(self, pid: int) -> None:
        self._sweeper.note_launcher(pid)

    def _name(self) -> str:
        return self._launcher_name

    def _gather(self, links: Links) -> None:
        super()._gather(links)
        if not any(mpi_launch.HOSTS in part for part in self._command):  # the launcher has no options of the user's
            return
        there = Counter(rank.node for rank in self._ranks)
        wanted = {node: count for node, _, count, *_ in self._shares}
        if there != wanted:
            raise RanksDidNotStart(
                f"{self._name()} has started ranks on {dict(there)} and was to on {wanted}; leave what says where out "
                "of slurm_cmd_args"
            )

    def _share_of(self, rank: int) -> tuple[Share, int]:
        """Whose it is, and which of its ranks: nodes have theirs one after the other."""
        for share in self._shares:
            if rank < share[2]:
                break
            rank -= share[2]
        return share, rank

    def _setup_of(self, rank: int) -> pooled.Setup:
        (*_, cores), _ = self._share_of(rank)
        return {**super()._setup_of(rank), "cores": cores}

    def _environment_of(self, rank: int) -> dict[str, str | None]:
        environment = {**self._setup.get("environment", {})}
        (*_, each, _), at = self._share_of(rank)
        return environment | each[at] if each and each[at] else self._with_its_gpus(environment, rank)

    def kill(self) -> None:
        """See Program: the watches do it, and srun ends with them."""
        if self._links is not None:
            self._links.close()
        super().kill()


def _session() -> far_session.FarSession:
    found = far_session.current()
    assert found is not None  # steps are those of an allocation
    return found


def _rank_of(arrival: Arrival) -> _Rank:
    return _Rank(arrival.sock, pooled.Stream(arrival.sock), arrival.ident, arrival.pid, arrival.node)


@contextlib.contextmanager
def _end_of(pid: int) -> Iterator[int | None]:
    """A handle that can be read when a child has ended; None where there is no such thing."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        handle = None
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)
