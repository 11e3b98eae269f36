"""One rank of an MPI function in a job: `job-rank JOBDIR INDEX ATTEMPT`, started by `job_ranks`' launcher.

    watch ── rank: initialise MPI ─ [rank 0: read the call] ─ get it ─ call ─ [rank 0: gather results, publish] ─ end
      └ the rank ended without a word?  publish that

The watch is the process that the launcher started, the rank its fork. It sees how the rank ends, whatever it ends by,
and says so before it ends itself: only then do srun or mpiexec see an end, and end all other ranks. So whoever began
is named. The first outcome that is published is the one that counts; see `publish_first`.

Exit codes: 0 all is well, or somebody else has told; 70 a failure is published; 74 the store cannot be written;
otherwise as the rank ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import failure, runner
from .aborts import tell_aborts
from .mpi_watch import how_it_ended
from .parent import end_with
from .rank_exchange import Exchange, NotOurs
from .store.session import Job, Session, read_job
from .sweeper import shared_memory
from .wire.messages import Loss, Submit, TaskKey, from_json

if TYPE_CHECKING:
    from .store.hdf5 import Outcome
    from .wire.payload import Pickled

EX_TOLD = 70
_FINALIZE_S = 10
"""For MPI to finalise after the result is published; a function may have left it in a state in which it never does."""
_OVER, _FILE = b"over", b"file "
"""What a rank tells its watch: that from here on its end says nothing about the task; a file of MPI in its memory."""
FAILED = b"remoteexec: an MPI rank has failed"
"""In the log, and seen there by the launcher."""
HIDDEN = "REMOTEEXEC_HIDDEN"
"""Variable with variables (JSON) that mpiexec must not see, and the function does."""
_NUMBERS = ("SLURM_PROCID", "FLUX_TASK_RANK", "PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")


class RanksDidNotStart(Exception):
    """There is no MPI program, for the reason it says."""


class RankEnded(Exception):
    """A rank has ended, in a way that it says."""


def published(session: Session, job: Job, index: int, attempt: int) -> Path:
    """Where the ranks of one attempt publish how it went."""
    return session.job_directory(job.name) / f"{index}-{attempt}.ranks"


def started(session: Session, job: Job, index: int, attempt: int) -> Path:
    """What is there once all ranks of one attempt have initialised MPI."""
    return session.job_directory(job.name) / f"{index}-{attempt}.started"


def publish_first(path: Path, data: bytes) -> bool:
    """Publish a file that nobody else has published; whether that was so. Safe on NFS, over several nodes."""
    if path.exists():
        return False
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return True


def main(argv: list[str]) -> NoReturn:
    """Fork the rank, and see that its end is told."""
    os.umask(0o077)
    session, job = read_job(Path(argv[0]))
    index, attempt = int(argv[1]), int(argv[2])
    told, tell = os.pipe()
    watch = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(told)
        end_with(watch)
        Rank(session, job, index, attempt, tell).run()
    os.close(tell)
    runner.end_process(_watch(child, told, _Teller(session, job, index, attempt)))


def _watch(child: int, told: int, teller: _Teller) -> int:
    """Wait for the rank; returns the exit code to end with."""
    terminated = False

    def on_sigterm(number: int, frame: object) -> None:
        nonlocal terminated
        terminated = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    with open(told, "rb") as file:
        said = file.read().split(b"\n")
    if _OVER in said:
        return 0
    for line in said:  # MPI removes them when it finalises
        if line.startswith(_FILE):
            with contextlib.suppress(OSError):
                os.unlink(line.removeprefix(_FILE))
    exit_code = code if code > 0 else 128 - code if code else 1
    if terminated or code in (-signal.SIGTERM, EX_TOLD, runner.EX_IOERR):  # who sends SIGTERM knows why
        return exit_code
    try:
        if said[0]:
            teller.ended(int(said[0]), child, code)
        else:
            teller.not_started(f"a rank{_number()} ended before it had initialised MPI: it {how_it_ended(code)}")
    except OSError as exc:
        print(f"remoteexec: cannot write to the store: {exc}", file=sys.stderr)
        return runner.EX_IOERR
    return exit_code


def _number() -> str:
    """What a launcher calls this rank, before MPI has said so."""
    found = next((os.environ[name] for name in _NUMBERS if name in os.environ), None)
    return f" (number {found} on {socket.gethostname()})" if found else f" on {socket.gethostname()}"


class _Teller:
    """Publishes how the ranks fared, for the launcher."""

    def __init__(self, session: Session, job: Job, index: int, attempt: int) -> None:
        self._path = published(session, job, index, attempt)
        self._session, self._task, self._ranks = session, job.tasks[index].key, job.resources.cores
        self._began = time.time()

    def outcome(self, outcome: Outcome) -> None:
        """A result, or a failure."""
        from .store import hdf5

        if not outcome.ok and self._path.exists():
            return  # another rank was first; importing, packing and writing would be for nothing
        outcome = hdf5.Outcome(outcome.ok, outcome.value, {**outcome.facts, **runner.facts(self._began)})
        data = hdf5.write_outcome(self._task, outcome, self._session.key)
        if publish_first(self._path, data) and not outcome.ok:
            with contextlib.suppress(OSError):
                os.write(2, FAILED + b"; all of them are ended\n")

    def failed(self, outcome: Outcome, rank: int) -> None:
        """A rank has no result."""
        from .store import hdf5

        facts = dict(outcome.facts)
        if facts.get("traceback"):
            facts["traceback"] = f"MPI rank {rank} of {self._ranks}:\n{facts['traceback']}"
        self.outcome(hdf5.Outcome(False, outcome.value, {**facts, "rank": rank, "ranks": self._ranks}))

    def ended(self, rank: int, pid: int, code: int) -> None:
        """A rank has ended, with this code or by this signal."""
        self._rank_ended(rank, f"{_name(rank, self._ranks, pid)} {how_it_ended(code)}", code)

    def aborts(self, rank: int, abort: int) -> None:
        """A rank calls MPI_Abort."""
        text = f"{_name(rank, self._ranks, os.getpid())} called MPI_Abort with error code {abort}"
        self._rank_ended(rank, text, abort & 0xFF)

    def not_started(self, why: str) -> None:
        """There is no MPI here."""
        from .store import hdf5

        facts = failure.facts(RanksDidNotStart(why), "ranks_not_started")
        self.outcome(hdf5.Outcome(False, None, {**facts, "traceback": ""}))

    def _rank_ended(self, rank: int, text: str, code: int) -> None:
        from .store import hdf5

        facts = failure.facts(RankEnded(text), "rank_ended")
        more = {"exit_code": code if code >= 0 else None, "signal": -code if code < 0 else None, "traceback": ""}
        self.failed(hdf5.Outcome(False, None, {**facts, **more}), rank)


def _name(rank: int, ranks: int, pid: int) -> str:
    return f"MPI rank {rank} of {ranks} (pid {pid} on {socket.gethostname()})"


class Rank:
    """One rank, in a process of its own.

    Args:
        tell: pipe to the watch: the rank's number once MPI is there, and what `_OVER` and `_FILE` mean.
    """

    def __init__(self, session: Session, job: Job, index: int, attempt: int, tell: int) -> None:
        self._session, self._job, self._task, self._tell = session, job, job.tasks[index], tell
        self._teller = _Teller(session, job, index, attempt)
        self._started = started(session, job, index, attempt)
        self._mpi: Any = None

    def run(self) -> NoReturn:
        """Take part, and end this process."""
        code = 1
        try:
            code = self._run()
        except OSError as exc:
            code = runner.EX_IOERR
            print(f"remoteexec: cannot write to the store: {exc}", file=sys.stderr)
        except BaseException:  # the process edge
            traceback.print_exc()
        finally:
            runner.end_process(code)

    def _run(self) -> int:
        exchange = self._begin()
        if exchange is None:
            return EX_TOLD
        try:
            outcome = self._take_part(exchange)
        except runner.InputLostError as lost:
            loss = Loss("upstream", str(lost), job=runner.job_id(), upstream=lost.key)
            self._session.publish_loss(self._task.key, loss)
            return EX_TOLD
        if outcome is not None:
            self._teller.failed(outcome, exchange.rank)
            return EX_TOLD
        os.write(self._tell, _OVER + b"\n")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_FINALIZE_S)
        self._mpi.Finalize()
        return 0

    def _begin(self) -> Exchange | None:
        """Initialise MPI with all other ranks; None after a failure that is told."""
        ranks = self._job.resources.cores
        try:
            from mpi4py import MPI  # which initialises it

            self._mpi = MPI
            world = MPI.COMM_WORLD
            rank, size = world.Get_rank(), world.Get_size()
        except BaseException:  # whatever a library says that does not fit
            self._teller.not_started(
                f"a rank{_number()} cannot initialise MPI: {traceback.format_exc(limit=0).strip()}"
            )
            return None
        if size != ranks:
            library = " ".join(MPI.Get_library_version().splitlines()[0].strip("\0 ").split())
            self._teller.not_started(f"{ranks} ranks were started, and MPI counts {size}; mpi4py uses {library}")
            return None
        tell_aborts(MPI, lambda code: self._teller.aborts(rank, code))
        self._own = world.Dup()  # what the function sends and does not receive must not reach us
        os.environ.update(json.loads(os.environ.pop(HIDDEN, "{}")))
        os.write(self._tell, b"%d\n" % rank)
        self._own.Barrier()
        for path in shared_memory(os.getpid()):
            os.write(self._tell, _FILE + os.fsencode(path) + b"\n")
        if rank == 0:
            publish_first(self._started, b"")
        return Exchange(self._own, MPI, self._session.key, self._task.key)

    def _take_part(self, exchange: Exchange) -> Outcome | None:
        """Run the call with the others; None once the result of all is published, else the failure of this rank."""
        from .store import hdf5
        from .wire.header import HeaderError

        try:
            named, function, arguments, *inputs = exchange.share(self._read() if exchange.rank == 0 else None)
        except (HeaderError, NotOurs) as exc:
            return hdf5.Outcome(False, None, failure.facts(exc, "refused"))
        values = _Values(dict(zip(json.loads(named.data), inputs, strict=True)), self._inputs())
        process = os.getpid()
        outcome = runner.called(self._job, function, arguments, values)
        if os.getpid() != process:
            runner.end_process(0)  # the function has forked, and this is its child: the parent goes on
        if not outcome.ok or outcome.value is None:
            return outcome
        if self._mpi.Is_finalized():
            ended = RuntimeError("the function has finalised MPI, by which its results were to be gathered")
            return hdf5.Outcome(False, failure.pickled(ended), failure.facts(ended, "raised"))
        try:
            self._gather(exchange, outcome.value)
        except NotOurs as exc:
            return hdf5.Outcome(False, None, failure.facts(exc, "refused"))
        return None

    def _gather(self, exchange: Exchange, result: Pickled) -> None:
        """Publish what all ranks have returned."""
        from .store import hdf5
        from .wire import payload

        results = exchange.collect(result)
        if results is not None:
            whole = payload.dumps([payload.Filled(each, ()) for each in results])
            self._teller.outcome(hdf5.Outcome(True, whole, {"ranks": exchange.size}))
        self._own.Barrier()  # until rank 0 has published, the end of any other rank is one of the task

    def _read(self) -> list[Pickled]:
        """Function, arguments, and the results that these refer to, behind a list of the tasks they come from."""
        from .store import hdf5
        from .wire.payload import Pickled

        session, job = self._session, self._job
        call = hdf5.read_call(session.bundle(job.burst).read_bytes(), job.burst, self._task.position, session.key)
        submit = from_json(session.bundle(job.burst).with_suffix(".json").read_bytes())
        assert isinstance(submit, Submit)
        keys = submit.tasks[self._task.position].upstream
        inputs = self._inputs()
        return [Pickled(json.dumps(keys).encode()), *call, *map(inputs.pickled, keys)]

    def _inputs(self) -> runner.Inputs:
        return runner.Inputs(self._session, self._job, self._session.key)


class _Values:
    """Results of other tasks, as rank 0 has passed them on; what it has not, from the store."""

    def __init__(self, shared: dict[TaskKey, Pickled], inputs: runner.Inputs) -> None:
        self._shared, self._inputs = shared, inputs
        self._loaded: dict[TaskKey, Any] = {}

    def __call__(self, key: TaskKey) -> Any:
        from .wire import payload

        if key not in self._shared:
            return self._inputs(key)
        if key not in self._loaded:
            pickled = self._shared[key]
            self._loaded[key] = payload.loads(pickled.data, pickled.buffers)
        return self._loaded[key]
