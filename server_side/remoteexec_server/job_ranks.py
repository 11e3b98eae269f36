"""The launcher of an MPI function in a job: starts its ranks over the job's nodes, and says how they fared.

    runner ── launcher ─┬─ srun | flux run | mpiexec ─┬─ watch ── rank 0     each on a node of the job;
                        │                             ├─ watch ── rank 1     see `job_rank`
                        └─ sweeper (on one machine)   └─ ...

The launcher has the runner's claim of the task, and waits. The ranks publish beside the job's logs how it went, first
come, first served; the launcher makes that the task's outcome once all of them have ended. So whoever sees the outcome
finds no rank any more. What ends all ranks at once, a time limit, a cancellation or a dead node, leaves no word of
theirs: the launcher then ends by SIGTERM, which leaves the explanation to the scheduler, as the runner does.

Where ranks do not start in the way that should fit, the next is tried (`mpi_facts.ways`): no function has run by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from . import failure, job_rank, mpi_facts, mpi_launch, runner
from .mpi_facts import MpiFacts, Way
from .store import hdf5
from .store.session import Job, JobTask, Session, log_tail, publish
from .sweeper import Sweeper
from .wire import header

__all__ = ["ended_all_at_once", "rank_named_in", "run"]

_PACKAGE = str(Path(__file__).parent)
_START_S = 120.0
"""For all interpreters to start and initialise MPI; picked, not measured: 0.5 s here, many on a slow disk take long."""
_WAIT_S = 5.0
"""For the scheduler to end this process, too, when it has ended the ranks."""
_LOOK_S = 30.0
"""Between two looks for what the ranks have told, where their words do not come through the launcher."""
_FAIL_S = 5.0
"""For a launcher to end all ranks and itself after one has failed; 1 s to 2 s were seen."""
_FINISH_S = 20.0
"""The same after the result of all is published: longer than the ranks have to finalise MPI."""
_TAIL = 8192
_MARK = "REMOTEEXEC_RANKS"
_FOREIGN = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "HYDI_", "HYDRA_LAUNCHER_")
"""Variables of a rank that the job may have been submitted from."""
_OVERSUBSCRIBE = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":OVERSUBSCRIBE"}

_ALL_AT_ONCE = re.compile(
    r"DUE TO (TIME LIMIT|PREEMPTION|NODE FAILURE|JOB REQUEUE)|\*\*\* JOB \S+ ON \S+ CANCELLED|Node failure on"
)
_ENDS_OTHERS = re.compile(r"Job step aborted|Terminating StepId")
"""srun ends all ranks; those that it says ended before have ended by themselves."""


def run(session: Session, job: Job, task: JobTask) -> int:
    """Run a task that this process has claimed; returns its exit code, or ends by SIGTERM.

    Raises:
        OSError: the store cannot be written.
    """
    launcher = _Launcher(session, job, job.tasks.index(task))
    try:
        code = launcher.run()
    finally:
        launcher.clean_up()
    if code == 0:  # else the claim says whose failure it is
        session.running(task.key).unlink(missing_ok=True)
    return code


class _NotStarted(Exception):
    """The ranks did not start in one way, for the reason it says.

    Attributes:
        final: other ways would fare no better.
    """

    def __init__(self, text: str, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class _Launcher:
    """See `run`."""

    def __init__(self, session: Session, job: Job, index: int) -> None:
        self._session, self._job, self._index = session, job, index
        self._task, self._log = job.tasks[index].key, session.log(job.name, index)
        self._began = time.time()
        self._attempts = 0
        self._environment = _environment(job)

    def run(self) -> int:
        facts = self._facts()
        ways = mpi_facts.ways(facts, self._job.scheduler, self._job.resources, _nodes(self._job.scheduler))
        tried: list[str] = []
        for way in ways if not facts.problem else ():
            try:
                code = self._attempt(way)
            except _NotStarted as exc:
                tried.append(f"{way.name}: {exc}")
                if exc.final:
                    break
                continue
            if way is not ways[0]:
                self._remember(replace(facts, fits=way.name))
            return code
        self._publish(_not_started(facts, self._job, tried))
        return 0

    def clean_up(self) -> None:
        """Remove what only the ranks and this process need."""
        for attempt in range(self._attempts):
            for path in (job_rank.started, job_rank.published):
                with contextlib.suppress(OSError):
                    path(self._session, self._job, self._index, attempt).unlink()

    # ---- one attempt ----

    def _attempt(self, way: Way) -> int:
        """Start the ranks in one way and wait for their end; the exit code, once an outcome is published.

        Raises:
            _NotStarted: no rank has run the function.
        """
        attempt, self._attempts = self._attempts, self._attempts + 1
        directory = str(self._session.job_directory(self._job.name))
        argv = [*way.argv, sys.executable, _PACKAGE, "job-rank", directory, str(self._index), str(attempt)]
        with _Swept(way, self._job) as environment:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, bufsize=0
                )
            except OSError as exc:
                raise _NotStarted(f"{argv[0]} cannot be started: {exc}") from exc
            said = _Said(process)
            ready = job_rank.started(self._session, self._job, self._index, attempt)
            has_started = _wait_for_start(process, said, ready)
            if not has_started and not said.failed and process.poll() is None:
                _end(process, 0.0)
                raise _NotStarted(f"after {_START_S:.0f} s not all ranks had initialised MPI", final=True)
            code = _wait_for_end(process, said, job_rank.published(self._session, self._job, self._index, attempt))
        return self._ended(attempt, code, said.text(), has_started)

    def _ended(self, attempt: int, code: int, said: str, has_started: bool) -> int:
        """Say how it went, once all ranks have ended."""
        path = job_rank.published(self._session, self._job, self._index, attempt)
        with contextlib.suppress(FileNotFoundError):
            with path.open("rb") as file:
                head = file.read(header.BLOCK)
            if header.read(head).status == "ok":
                os.replace(path, self._session.outcome(self._task))
                return 0
            outcome = hdf5.read_outcome(path.read_bytes(), self._task, self._session.key)
            return self._failed(outcome, said)
        if f"{self._task}.lost" in os.listdir(self._session.outcomes):
            return 0
        if code == runner.EX_IOERR:
            return runner.EX_IOERR
        if ended_all_at_once(said):
            _leave_to_the_scheduler()
        if not has_started and not job_rank.started(self._session, self._job, self._index, attempt).exists():
            raise _NotStarted(f"it ended with exit code {code}{_last_lines(said)}")
        return self._unexplained(code, said)

    def _failed(self, outcome: hdf5.Outcome, said: str) -> int:
        kind = outcome.facts.get("kind")
        if kind == "ranks_not_started":
            raise _NotStarted(f"{outcome.facts['message']}{_last_lines(said)}")
        if kind == "rank_ended":
            if ended_all_at_once(said):  # some may have ended by the end of others, before they were ended, too
                _leave_to_the_scheduler()
            if outcome.facts.get("signal") == signal.SIGKILL and self._ran_out_of_memory(
                outcome.facts["message"], said
            ):
                return 0
            message = f"{outcome.facts['message']}; all ranks were ended{_last_lines(said)}; its log is {self._log}"
            more = {"message": message, "log_tail": log_tail(self._log), "log_path": str(self._log)}
            outcome = hdf5.Outcome(False, None, {**outcome.facts, **more})
        self._publish(outcome)
        return 0

    def _unexplained(self, code: int, said: str) -> int:
        """The ranks ended, and none said why: their watches have ended with them."""
        rank, ranks = rank_named_in(said), self._job.resources.cores
        who = f"MPI rank {rank} of {ranks}" if rank is not None else f"one of {ranks} MPI ranks"
        if self._ran_out_of_memory(f"{who} was killed", said):
            return 0
        text = f"{who} ended; the launcher of the ranks ended with exit code {code}{_last_lines(said)}"
        facts = failure.facts(job_rank.RankEnded(f"{text}; its log is {self._log}"), "rank_ended")
        facts |= {"traceback": "", "exit_code": code if code >= 0 else None, "log_tail": log_tail(self._log)}
        facts |= {"log_path": str(self._log), "ranks": ranks} | ({"rank": rank} if rank is not None else {})
        self._publish(hdf5.Outcome(False, None, facts))
        return 0

    def _ran_out_of_memory(self, who: str, said: str) -> bool:
        """Whether the scheduler has killed a rank for its memory; published then."""
        from .batch import diagnose
        from .batch.base import JobFacts, JobRef, JobState

        facts = JobFacts(JobState.FAILED, node=socket.gethostname(), signal=signal.SIGKILL)
        ref = JobRef.parse(runner.job_id() or "0")
        loss = diagnose.loss(facts, ref, said, str(self._log), self._job.resources)
        if loss is None or loss.reason != "out_of_memory":
            return False
        self._session.publish_loss(self._task, replace(loss, message=f"{who}: {loss.message}"))
        return True

    def _publish(self, outcome: hdf5.Outcome) -> None:
        outcome = hdf5.Outcome(outcome.ok, outcome.value, {**runner.facts(self._began), **outcome.facts})
        self._session.publish_outcome(self._task, hdf5.write_outcome(self._task, outcome, self._session.key))

    # ---- what there is here ----

    def _facts(self) -> MpiFacts:
        """What was found out, now or by an earlier job of the session."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return mpi_facts.from_json(self._known().read_bytes())
        facts = mpi_facts.look(self._job.scheduler, self._environment)
        if not facts.problem:
            self._remember(facts)
        return facts

    def _remember(self, facts: MpiFacts) -> None:
        with contextlib.suppress(OSError):  # then the next one looks again
            publish(self._known(), mpi_facts.to_json(facts))

    def _known(self) -> Path:
        return self._session.path / f"mpi-{mpi_facts.digest(self._job.scheduler, self._environment)}.json"


def _not_started(facts: MpiFacts, job: Job, tried: list[str]) -> hdf5.Outcome:
    """The failure that says what was tried, what there is, and what to do."""
    ranks, host = job.resources.cores, socket.gethostname()
    if facts.problem:
        text = f"{facts.problem}, on {host}; install mpi4py there: `remoteexec install NAME --with mpi4py`"
    elif not tried:
        text = f"there is nothing on {host} that starts ranks of {facts.library}"
        text += "" if facts.srun or job.scheduler != "slurm" else ", and no srun in PATH"
        text += "" if facts.mpiexec else ", nor an mpiexec: name it in REMOTEEXEC_MPIEXEC"
    else:
        text = "\n".join(tried) + f"\nmpi4py uses {facts.library} ({facts.path or 'path unknown'})"
    if facts.srun:
        text += f"; srun offers --mpi={', '.join(facts.pmi) or 'nothing'}: name the one that fits with pmi_mode"
    exc = job_rank.RanksDidNotStart(f"{ranks} MPI ranks were not started: {text}")
    return hdf5.Outcome(False, None, {**failure.facts(exc, "ranks_not_started"), "traceback": ""})


def _wait_for_start(process: subprocess.Popen[bytes], said: _Said, ready: Path) -> bool:
    """Whether all ranks have initialised MPI, before their end or `_START_S`.

    Rank 0, which says so, runs on this node: what it writes is seen at once, on NFS too.
    """
    deadline, pause = time.monotonic() + _START_S, 0.05
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if ready.name in os.listdir(ready.parent):
            return True
        if ended or said.failed:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(pause)
        pause = min(pause * 1.5, 1.0)
    return False


def _wait_for_end(process: subprocess.Popen[bytes], said: _Said, published: Path) -> int:
    """Its exit code; a launcher that does not end once the ranks have told their outcome is ended.

    MPICH's mpiexec, started by SLURM on several nodes, does not notice that a rank on another one has ended.
    """

    def wake() -> None:
        process.wait()
        said.news.set()

    threading.Thread(target=wake, name="remoteexec-ranks-end", daemon=True).start()
    while not said.news.wait(_LOOK_S) and published.name not in os.listdir(published.parent):
        pass
    return _end(process, _FAIL_S if said.failed else _FINISH_S)


def _end(process: subprocess.Popen[bytes], patience_s: float) -> int:
    """The exit code of a launcher, which is ended if it does not end by itself in this time."""
    for most_s, end in ((patience_s, process.terminate), (_FAIL_S, process.kill)):
        try:
            return process.wait(most_s)
        except subprocess.TimeoutExpired:
            end()
    return process.wait()


def _leave_to_the_scheduler() -> NoReturn:
    """End as what the scheduler ends."""
    time.sleep(_WAIT_S)  # it mostly does
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("SIGTERM does not end this process")


def ended_all_at_once(said: str) -> bool:
    """Whether srun says that the scheduler, or a dead node, has ended all ranks."""
    return bool(_ALL_AT_ONCE.search(said))


def rank_named_in(said: str) -> int | None:
    """The rank that srun, Open MPI or MPICH hold to be the first that ended; None if they name none, or several."""
    for pattern in (
        r"MPI_ABORT was invoked on rank (\d+) in communicator MPI_COMM_WORLD",
        r"noticed that process rank (\d+)",
        r"due to process rank (\d+)",
        r"^Abort\(\d+\) on node (\d+) ",
    ):
        if found := re.search(pattern, said, re.MULTILINE):
            return int(found[1])
    found = re.search(r"^srun: error: \S+: task (\d+): ", _ENDS_OTHERS.split(said)[0], re.MULTILINE)
    return int(found[1]) if found else None


def _last_lines(said: str) -> str:
    """The end of what the launcher and the ranks said, without decoration, on lines of their own."""
    lines = [line for line in said.splitlines() if line.strip(" -=*")]
    return "".join(f"\n  {line}" for line in lines[-12:])


def _environment(job: Job) -> dict[str, str]:
    """What the launcher and, by it, the ranks see."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**kept, **_own(job)}


def _nodes(scheduler: str) -> int:
    """Of the job; 0 where that cannot be told."""
    number = os.environ.get("SLURM_JOB_NUM_NODES", "") if scheduler == "slurm" else ""
    return int(number) if number.isdigit() else 0


def _own(job: Job) -> dict[str, str]:
    return {**runner.variables(job), "REMOTEEXEC_JOB_ID": runner.job_id()}


class _Swept:
    """The environment of ranks, of which nothing is left afterwards: on one machine a sweeper sees to that, elsewhere
    the scheduler does.
    """

    def __init__(self, way: Way, job: Job) -> None:
        self._way, self._job = way, job
        self._sweeper: Sweeper | None = None

    def __enter__(self) -> dict[str, str]:
        seen, oversubscribe = _environment(self._job), self._job.resources.openmpi_oversubscribe
        if not self._way.alone:
            return {**(_OVERSUBSCRIBE if oversubscribe else {}), **seen, **self._way.variables}
        self._sweeper = Sweeper()
        mark = secrets.token_hex(16)
        self._sweeper.note_mark(f"{_MARK}={mark}")
        hidden = {name: value for name, value in seen.items() if name.startswith("SLURM")}
        told = mpi_launch.launcher_environment(self._sweeper.directory, oversubscribe)
        return {**told, **_own(self._job), job_rank.HIDDEN: json.dumps(hidden), _MARK: mark}

    def __exit__(self, *exc: object) -> None:
        if self._sweeper is not None:
            self._sweeper.sweep()


class _Said:
    """Shows what the launcher and the ranks write to stderr, and remembers the end of it.

    A thread reads it, since nobody else is free to: who writes would wait.

    Attributes:
        news: set when a rank says that it has failed; whoever waits for the launcher's end sets it then, too.
        failed: a rank has said so.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self._file, self._data, self._launchers = process.stderr, b"", b""
        self.news, self.failed = threading.Event(), False
        self._thread = threading.Thread(target=self._copy, name="remoteexec-ranks-stderr", daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        rest = b""
        while piece := self._file.read(1 << 16):
            with contextlib.suppress(OSError):  # a full disk
                os.write(2, piece)
            self._data = (self._data + piece)[-_TAIL:]
            *lines, rest = (rest + piece)[-_TAIL:].split(b"\n")
            if any(job_rank.FAILED in line for line in lines):
                self.failed = True
                self.news.set()
            own = [line for line in lines if line.startswith((b"srun: ", b"slurmstepd"))]
            self._launchers = b"\n".join([self._launchers, *own])[:_TAIL]  # the first says who began

    def text(self) -> str:
        """What it said, once it has ended or said nothing for long: srun's own words, and the last of all."""
        self._thread.join(1.0)
        last = self._data.decode(errors="replace")
        missing = [line for line in self._launchers.decode(errors="replace").splitlines() if line and line not in last]
        return "\n".join([*missing, last])
