"""The ranks of MPI functions: started with mpiexec or, over an allocation's nodes, by its scheduler; told what to run.

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

import contextlib
import json
import os
import re
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

from . import failure, far_session, mpi_watch, rank_links
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
_NO_BATCH_SYSTEM = "^slurm,tm,lsf,gridengine,alps,flux,pbs"
_FOREIGN = (
    "PMI_",
    "PMIX_",
    "OMPI_COMM_WORLD_",
    "OMPI_UNIVERSE_SIZE",
    "OMPI_MCA_ess",
    "OMPI_MCA_orte",
    "OMPI_MCA_pmix",
    "MPI_LOCAL",
    "PRTE_LAUNCHED",
)
"""Variables of a rank that we may be running in: they would confuse a further mpiexec."""
_BATCH = "SLURM_"
"""Variables of a job that we may be running in: mpiexec would start ranks by srun. The ranks see them."""

Answer = tuple[bool, bytes, "tuple[memoryview, ...]"]
"""Whether there is a result, that or a `failure`, and its buffers."""
Launch = tuple[int, list[str], bool, bool]
"""How many ranks, mpiexec with its options, and whether they may be more than there are cores; and whether it is one
process without MPI, which another command starts, whose result is then that of the call."""
_HERE = "{node}"
"""In that command: which node this is, as the agent knows it."""
_HOSTS, _NODES, _R = "{hosts}", "{nodes}", "{R}"
"""In a way of a step: a file that has the node of each rank, in their order; how many nodes these are; what Flux calls
R, with a core for each rank."""
Way = tuple[str, list[str]]
"""How errors call it, and a command that starts the ranks on several nodes."""
Share = tuple[str, str, int, "list[dict[str, str | None]]", "tuple[tuple[int, ...], int]"]
"""A node, its number where the scheduler has one, how many ranks it gets, what more each of these has in its
environment, and their cores: see `affinity`."""
Step = tuple[list[Way], list[Share]]
"""Ways to start ranks, tried one after the other; on which nodes, all on this one if none is named."""
_STEPS_OWN = ("SLURM_CONF", "SLURM_JWT")
"""What srun needs of the variables of the step that we are in: others are options for that one, not for the ranks'."""
_JOBS_OF_FLUX = ("FLUX_JOB_", "FLUX_TASK_", "FLUX_KVS_NAMESPACE")
_NODE_FAILED = re.compile(r"Node failure on (\S+)")


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


class Ranks:
    """Runs each call on all ranks, which stay from call to call.

    Args:
        setup: what each is made to be; its `launch` says how they are started.
        pool: the worker's socket, watched for its end.
        worker: number of the worker, if it is kept, which each rank's code sees as its own.
    """

    def __init__(self, setup: pooled.Setup, pool: socket.socket, worker: int | None) -> None:
        self._setup, self._pool, self._worker = setup, pool, worker
        self._program: _Program | None = None
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

    def _started(self) -> _Program:
        """In the first way that works: where the ranks do not start, no function has run."""
        step = self._setup.get("step")
        if step is None:
            return _started(_Program(self._setup, self._pool, self._worker))
        tried = []
        for name, argv in step[0]:
            try:
                return _started(_FarProgram(self._setup, self._pool, self._worker, (name, argv)))
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
        except _Failed as exc:
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


class _Failed(Exception):
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


def _started(program: _Program) -> _Program:
    program.start()
    return program


class _Program:
    """One mpiexec and its ranks."""

    _alike = "that mpiexec"
    _which = _WHICH
    _silent_s = _EXPLAIN_S
    _aborts_are_told = True  # in the launcher's exit code

    def __init__(self, setup: pooled.Setup, pool: socket.socket, worker: int | None) -> None:
        self.size, command, self._oversubscribe, self.alone = setup["launch"]
        node = os.environ.get(names.NODE, "")
        self._command = [part.replace(_HERE, node) for part in command]
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
        return launcher_environment(self._sweeper.directory, self._oversubscribe)

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
        environment: dict[str, str | None] = {n: value for n, value in os.environ.items() if n.startswith(_BATCH)}
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
            _Failed: the first rank that answered with a failure.
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
            raise _Failed(rank.number, bytes(data))
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
        named = _aborting_rank_in(text) if word is None or word.abort is None else None
        if named is None and word is None:
            named = _blamed_rank_in(text)
        if named != rank.number:
            rank, word = next(((one, None) for one in self._ranks if one.number == named), (rank, word))
        did, facts = _how(word, text, launcher_code)
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
            **_lost_node_in(text),
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


class _FarProgram(_Program):
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
        host = socket.gethostname() if any(_R in part for part in self._command) else here
        self._shares: list[Share] = setup["step"][1] or [(host, here, self.size, [], ((), 0))]

    def _new_links(self) -> Links:
        from .rank_far import FarLinks  # late: it brings TLS

        session = far_session.current()
        assert session is not None  # steps are those of an allocation
        return FarLinks(session, self.size)

    def _launcher(self) -> list[str]:
        hosts = os.path.join(self._sweeper.directory, "hosts")
        with open(hosts, "w", encoding="utf-8") as file:
            file.writelines(f"{node}\n" for node, _, count, *_ in self._shares for _ in range(count))
        told = {_HOSTS: hosts, _NODES: str(len(self._shares)), _R: _r_of(self._shares)}
        return [_filled(part, told) for part in self._command]

    def _environment(self) -> dict[str, str]:
        return step_environment(self._oversubscribe)

    def _note_launcher(self, pid: int) -> None:
        self._sweeper.note_launcher(pid)

    def _name(self) -> str:
        return self._launcher_name

    def _gather(self, links: Links) -> None:
        super()._gather(links)
        if not any(_HOSTS in part for part in self._command):  # the launcher has no options of the user's
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
        """See _Program: the watches do it, and srun ends with them."""
        if self._links is not None:
            self._links.close()
        super().kill()


def _r_of(shares: Sequence[Share]) -> str:
    """What Flux is to take for the resources of a job, with as many cores of each node as there are ranks.

    Source: https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_20.html
    """
    found = {
        "R_lite": [{"rank": at, "children": {"core": _first(count)}} for _, at, count, *_ in shares],
        "nodelist": [node for node, *_ in shares],
        "starttime": 0,
        "expiration": 0,
    }
    return json.dumps({"version": 1, "execution": found})


def _first(count: int) -> str:
    return f"0-{count - 1}" if count > 1 else "0"


def _filled(part: str, told: dict[str, str]) -> str:
    for name, value in told.items():
        part = part.replace(name, value)
    return part


def _rank_of(arrival: Arrival) -> _Rank:
    return _Rank(arrival.sock, pooled.Stream(arrival.sock), arrival.ident, arrival.pid, arrival.node)


def _lost_node_in(text: str) -> dict[str, str]:
    """Of a rank that ended since its node did, as srun says it."""
    found = _NODE_FAILED.search(text)
    return {"kind": "node_lost", "host": found[1].rstrip(",")} if found else {}


def _how(word: mpi_watch.Word | None, text: str, launcher_code: int | None) -> tuple[str, dict[str, int | None]]:
    """How a rank ended, in words, and exit code and signal; mpiexec's where its own are not known."""
    if word is None:
        found = re.search(r"\bsignal (\d+)", text)
        return "ended", {"exit_code": launcher_code, "signal": int(found[1]) if found else None}
    if word.status is None:
        return f"called MPI_Abort with error code {word.abort}", {"exit_code": launcher_code, "signal": None}
    code = os.waitstatus_to_exitcode(word.status)
    return mpi_watch.how_it_ended(code), {
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
    }


def _aborting_rank_in(text: str) -> int | None:
    """The rank that called MPI_Abort, if Open MPI or MPICH say so: it may be the last to end."""
    return _first_number(
        text,
        r"MPI_ABORT was invoked on rank (\d+) in communicator MPI_COMM_WORLD",  # Open MPI
        r"^Abort\(\d+\) on node (\d+) ",  # MPICH
    )


def _blamed_rank_in(text: str) -> int | None:
    """The rank that Open MPI holds to be the first that ended."""
    return _first_number(
        text,
        r"noticed that process rank (\d+)",
        r"due to process rank (\d+)",
        r"Process name: \[\[\d+,\d+\],(\d+)\]",
    )


def _first_number(text: str, *patterns: str) -> int | None:
    found = [match for pattern in patterns if (match := re.search(pattern, text, re.MULTILINE))]
    return int(found[0][1]) if found else None


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


def launcher_environment(directory: str, oversubscribe: bool) -> dict[str, str]:
    """What mpiexec is told. By variables, since Open MPI and MPICH have no options in common, and each ignores these.

    The pool has counted the cores: no rank is bound to one, or two programs would share the first; hardware threads
    count as cores, as they do in `sched_getaffinity`; and no batch system is asked, we stay on this machine.
    """
    told = {
        "HYDRA_LAUNCHER": "fork",
        "HYDRA_RMK": "user",
        "OMPI_MCA_plm": "isolated",
        "OMPI_MCA_ras": _NO_BATCH_SYSTEM,
        "PRTE_MCA_ras": _NO_BATCH_SYSTEM,
        "OMPI_MCA_orte_tmpdir_base": directory,
        "PRTE_MCA_prte_tmpdir_base": directory,
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMPI_MCA_hwloc_base_use_hwthreads_as_cpus": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":HWTCPUS",
    }
    if oversubscribe:
        told["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        told["PRTE_MCA_rmaps_default_mapping_policy"] = ":OVERSUBSCRIBE"
    if os.geteuid() == 0:  # Open MPI refuses root, who has asked for it by being root
        for prefix in ("OMPI", "PRTE"):
            told[f"{prefix}_ALLOW_RUN_AS_ROOT"] = told[f"{prefix}_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return {name: value for name, value in os.environ.items() if not name.startswith((*_FOREIGN, _BATCH))} | told


def step_environment(oversubscribe: bool) -> dict[str, str]:
    """What srun or Flux is told, and by it the ranks: the pool has counted the cores, so none is bound to some."""
    told = {"OMPI_MCA_hwloc_base_binding_policy": "none", "PRTE_MCA_hwloc_default_binding_policy": "none"}
    if oversubscribe:
        told["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    foreign = (*_FOREIGN, _BATCH, "SRUN_", *_JOBS_OF_FLUX)
    kept = {n: value for n, value in os.environ.items() if not n.startswith(foreign) or n in _STEPS_OWN}
    return kept | told
