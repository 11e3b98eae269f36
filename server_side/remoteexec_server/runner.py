"""Runs one task: `runner JOBDIR [INDEX]`, what a job's script starts.

    supervisor (standard library only)
      └─ fork ─ child: claim ─ read call ─ wait for inputs ─ call the function ─ publish the outcome
    child ended without an outcome?  publish why (.lost), unless only the scheduler can know

The supervisor sees every way a process can end (a signal, os._exit, a crashed interpreter), so most losses are known
the moment they happen, with nobody logged in. What it leaves to the scheduler: SIGKILL (out of memory? cancelled?)
and SIGTERM, which it sends first (time limit, cancelled, preempted).

Exit codes: 0 an outcome or a loss is published, or another runner has the task; 74 it could not be written; 128 + n for
signal n; else that of a child that did not get as far as the claim.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .store.session import Claim, Job, JobTask, Session, log_tail, read_job
from .wire.messages import Loss, TaskKey

if TYPE_CHECKING:
    from .store.hdf5 import Outcome

EX_IOERR = 74
_PR_SET_PDEATHSIG = 1
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class InputLostError(Exception):
    """An input of the task failed or is lost; `key` names the task it came from."""

    def __init__(self, key: TaskKey) -> None:
        super().__init__(f"input {key} has failed")
        self.key = key


def main(argv: list[str]) -> NoReturn:
    """Run element INDEX (default 0) of the job described in JOBDIR."""
    os.umask(0o077)
    session, job = read_job(Path(argv[0]).resolve())
    index = int(argv[1]) if len(argv) > 1 and argv[1] else 0
    _exit(supervise(session, job, index))


def supervise(session: Session, job: Job, index: int) -> int:
    """Fork the child that runs the task, and see that its end leaves a trace. Returns the job's exit code."""
    terminated = False

    def on_sigterm(number: int, frame: object) -> None:
        nonlocal terminated
        terminated = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(supervisor)
        _child(session, job, index)
    signal.signal(signal.SIGTERM, on_sigterm)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    task = job.tasks[index]
    try:
        names = os.listdir(session.outcomes)
    except FileNotFoundError:
        return 0  # the client has the outcome, and has discarded the session
    if f"{task.key}.h5" in names or f"{task.key}.lost" in names:
        return 0
    if terminated or code in (-signal.SIGKILL, -signal.SIGTERM):  # of one SIGTERM to all, the child's may come first
        return 128 + (-code if code < 0 else signal.SIGTERM)
    claim = session.read_claim(task.key)
    if claim is None or claim.pid != child or claim.host != socket.gethostname():
        return code if code >= 0 else 128 - code  # 0: another runner has the task
    try:
        session.publish_loss(task.key, _why(session, job, index, code))
    except OSError as exc:
        _print(f"cannot write to the store: {exc}")
        return EX_IOERR
    return 0


def _print(text: str) -> None:
    """A line for the log, which may be on the disk that is full."""
    with contextlib.suppress(Exception):
        print(f"remoteexec: {text}", file=sys.stderr)


def _exit(code: int) -> NoReturn:
    """End this process with that code: Python's own way out makes it 120 where the log cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed or replaced by the user's function, or the disk is full
            stream.flush()
    os._exit(code)


def _end_with(parent: int) -> None:
    """Be killed when the parent is: who has lost its supervisor is lost, and must not go on unseen (Linux only)."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _why(session: Session, job: Job, index: int, code: int) -> Loss:
    log = session.log(job.name, index)
    if code == EX_IOERR:
        what = "the outcome could not be written to the store; is the disk full, or a quota reached?"
    elif code < 0:
        name = signal.Signals(-code).name
        what = f"the process was ended by {name}; a crash in compiled code is the usual reason"
    else:
        what = f"the function ended its process with exit code {code} (os._exit, or an exit in compiled code)"
    return Loss(
        reason="store" if code == EX_IOERR else "killed",
        message=f"{what}; its log is {log}",
        job=job_id(),
        node=socket.gethostname(),
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        log_tail=log_tail(log),
        log_path=str(log),
    )


def _child(session: Session, job: Job, index: int) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        code = _run(session, job, job.tasks[index])
    except OSError as exc:
        code = EX_IOERR
        _print(f"cannot write to the store: {exc}")
    except BaseException:  # the process edge
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        _exit(code)  # threads and atexit hooks of the user's libraries must not hold the job's cores


def _run(session: Session, job: Job, task: JobTask) -> int:
    started, process = time.time(), os.getpid()
    if not session.claim(task.key, Claim(job_id(), socket.gethostname(), process, started)):
        return 0
    from .store import hdf5

    key = session.key
    try:
        outcome = _compute(session, job, task, key)
    except InputLostError as lost:
        session.publish_loss(task.key, Loss("upstream", str(lost), job=job_id(), upstream=lost.key))
        return 0
    if os.getpid() != process:
        return 0  # the user's function has forked, and this is its child: the outcome is the parent's to tell
    facts = {**outcome.facts, **_facts(started)}
    outcome = hdf5.Outcome(outcome.ok, outcome.value, facts)
    session.publish_outcome(task.key, hdf5.write_outcome(task.key, outcome, key))
    session.running(task.key).unlink(missing_ok=True)
    return 0


def _facts(started: float) -> dict[str, Any]:
    import resource

    return {
        "job": job_id(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": started,
        "ended": time.time(),
        "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _compute(session: Session, job: Job, task: JobTask, key: bytes) -> Outcome:
    """Load the call, call it, and say how that went."""
    from .store import hdf5
    from .wire import payload
    from .wire.header import HeaderError

    try:
        bundle = session.bundle(job.burst).read_bytes()
        function, arguments = hdf5.read_call(bundle, job.burst, task.position, key)
    except HeaderError as exc:
        return _failed(exc, "refused")
    try:
        _prepare(job)
    except OSError as exc:  # the directory that the user named
        return _failed(exc, "raised")
    inputs = _Inputs(session, job, key)
    try:
        fn = payload.loads(function.data, function.buffers)
        args, kwargs = payload.loads(arguments.data, arguments.buffers, inputs)
    except InputLostError:
        raise
    except payload.SelectionError as exc:
        return _failed(exc.__cause__ or exc, "raised")
    except BaseException as exc:
        return _failed(exc, "call_not_loadable")
    try:
        result = fn(*args, **kwargs)
    except InputLostError:
        raise
    except BaseException as exc:  # SystemExit and KeyboardInterrupt are the user's, too
        from . import failure

        failure.log(job.resources.error_log_file, fn, args, kwargs, exc)
        return _failed(exc, "raised")
    try:
        return hdf5.Outcome(True, payload.dumps(result), {})
    except BaseException as exc:
        return _failed(exc, "result_not_picklable", f"{type(result).__module__}.{type(result).__qualname__}")


def _prepare(job: Job) -> None:
    for name in _THREADS:
        os.environ[name] = str(job.resources.threads_per_core)
    os.environ.update(job.resources.environment)
    if job.resources.cwd is not None:
        cwd = Path(os.path.expandvars(job.resources.cwd)).expanduser()
        cwd.mkdir(parents=True, exist_ok=True)
        os.chdir(cwd)


def _failed(exc: BaseException, kind: str, subject: str = "") -> Outcome:
    from . import failure
    from .store import hdf5

    return hdf5.Outcome(False, failure.pickled(exc) if kind == "raised" else None, failure.facts(exc, kind, subject))


def job_id() -> str:
    """What the scheduler calls the job we run in: "123", or "123_4" in an array; "" outside a job."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and index:
        return f"{array}_{index}"
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("REMOTEEXEC_JOB_ID", "")


class _Inputs:
    """The results of other tasks, each read once, waited for if need be."""

    def __init__(self, session: Session, job: Job, key: bytes) -> None:
        self._session, self._job, self._key = session, job, key
        self._values: dict[TaskKey, Any] = {}

    def __call__(self, key: TaskKey) -> Any:
        if key not in self._values:
            self._values[key] = self._read(key)
        return self._values[key]

    def _read(self, key: TaskKey) -> Any:
        from .store import hdf5
        from .wire import payload

        self._wait(key)
        outcome = hdf5.read_outcome(self._session.outcome(key).read_bytes(), key, self._key)
        if not outcome.ok or outcome.value is None:
            raise InputLostError(key)
        return payload.loads(outcome.value.data, outcome.value.buffers)

    def _wait(self, key: TaskKey) -> None:
        """Return when the outcome is there; an input that will never come raises `InputLostError`."""
        began, ask_at, pause = time.monotonic(), 0.0, 0.05
        ended_at: float | None = None
        while True:
            names = os.listdir(self._session.outcomes)
            if f"{key}.h5" in names:
                return
            if f"{key}.lost" in names:
                raise InputLostError(key)
            waited = time.monotonic() - began
            if waited >= ask_at:
                ended, loss = self._ask(key)
                if loss is not None:
                    self._session.publish_loss(key, loss)
                    raise InputLostError(key)
                ended_at = (ended_at or time.monotonic()) if ended else None
                ask_at = waited + 30.0
            if ended_at is not None and time.monotonic() - ended_at > self._job.grace_s:
                self._session.publish_loss(key, Loss("unknown", f"task {key} ended without an outcome"))
                raise InputLostError(key)
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)

    def _ask(self, key: TaskKey) -> tuple[bool, Loss | None]:
        """Whether the job of an input has ended, and why it left no outcome if that is known."""
        from .batch import diagnose, queues
        from .batch.base import JobRef, QueueError

        name = self._job.upstream.get(key)
        if name is None:
            return True, None
        try:
            queue = queues.connect(self._job.scheduler, self._session.path.parent.parent)
            ref = JobRef.parse(name)
            facts = queue.states([ref])[ref]
        except QueueError as exc:
            _print(f"waiting for task {key} of job {name}: {exc}")
            return False, None
        found = self._session.find_task(key) if facts.state.ended else None
        if found is None:
            return facts.state.ended, diagnose.loss(facts, ref, "", None)
        job, index = found
        log = self._session.log(job.name, index)
        return True, diagnose.loss(facts, ref, log_tail(log), str(log), job.resources)
