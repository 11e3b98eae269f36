"""Runs one task: `runner JOBDIR [INDEX]`, what a job's script starts.

    supervisor (standard library only)
      └─ fork ─ child: claim ─ read call ─ wait for inputs ─ call the function ─ publish the outcome
    child ended without an outcome?  publish why (.lost), unless only the scheduler can know

The supervisor sees every way a process can end (a signal, os._exit, a crashed interpreter), so most losses are known
the moment they happen, with nobody logged in. What it leaves to the scheduler: SIGKILL (out of memory? cancelled?)
and SIGTERM, which it sends first (time limit, cancelled, preempted). Flux says by SIGALRM that the time is up.

Exit codes: 0 an outcome or a loss is published, or another runner has the task; 74 it could not be written; 78 a module
of ours is missing; 128 + n for signal n; else that of a child that did not get as far as the claim.
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

from . import attempts, checkpoint, retrying, running
from .exits import Exit
from .parent import end_with
from .store import links
from .store.outcomes import Outcomes
from .store.session import Claim, Job, JobTask, Session, large_log, log_tail, read_job
from .wire.evidence import Evidence
from .wire.names import TaskKey
from .wire.records import Loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import late_inputs
    from .store.hdf5 import Outcome
    from .wire.payload import Pickled

EX_IOERR, EX_CONFIG = 74, 78
_SOON_S = 2.0
"""Between questions for an input whose next attempt is about to be submitted; picked, not measured."""
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class BecomesError(Exception):
    """The task ends as another one does, whose future its function has returned; `key` names that one."""

    def __init__(self, key: TaskKey) -> None:
        super().__init__(f"ends as task {key}")
        self.key = key


class InputLostError(Exception):
    """An input of the task failed or is lost; `key` names the task it came from."""

    def __init__(self, key: TaskKey) -> None:
        super().__init__(f"input {key} has failed")
        self.key = key


class InputLateError(InputLostError):
    """An input of the task is tried again, and another job waits for it in the place of this one."""


def main(argv: list[str]) -> NoReturn:
    """Run element INDEX (default 0) of the job described in JOBDIR."""
    os.umask(0o077)
    session, job = read_job(Path(argv[0]).resolve())
    index = int(argv[1]) if len(argv) > 1 and argv[1] else 0
    end_process(supervise(session, job, index))


def supervise(session: Session, job: Job, index: int) -> int:
    """Fork the child that runs the task, and see that its end leaves a trace. Returns the job's exit code."""
    terminated = timed_out = False

    def on_sigterm(number: int, frame: object) -> None:
        nonlocal terminated
        terminated = True
        pass_on(signal.SIGTERM)
        if job.resources.retry is not None:
            signal.alarm(attempts.LAST_S)  # to tell how it ended while there is time

    def on_sigalrm(number: int, frame: object) -> None:
        nonlocal terminated, timed_out
        if terminated:  # the alarm is our own
            pass_on(signal.SIGKILL)
            return
        terminated = timed_out = True
        pass_on(signal.SIGTERM)
        signal.alarm(attempts.FLUX_LAST_S)

    def pass_on(number: int, frame: object = None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    warned = job.resources.warning_s is not None
    if warned:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # in the child, until it has something to save
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        spare_from_alarms()
        end_with(supervisor)
        _child(session, job, index)
    signal.signal(signal.SIGTERM, on_sigterm)
    if warned:
        signal.signal(signal.SIGUSR1, pass_on)
    signal.signal(signal.SIGALRM, on_sigalrm)
    began = time.monotonic()
    _, status, used = os.wait4(child, 0)
    signal.alarm(0)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)  # the child's number may be another's by now
    end = Exit(os.waitstatus_to_exitcode(status), time.monotonic() - began, used.ru_maxrss * 1024)
    code = end.code
    task = job.tasks[index]
    try:
        names = os.listdir(session.outcomes)
    except FileNotFoundError:
        return 0  # the client has the outcome, and has discarded the session
    if any(f"{task.key}{suffix}" in names for suffix in (".h5", ".lost", ".link")):
        return 0
    if terminated or code in (-signal.SIGKILL, -signal.SIGTERM):  # of one SIGTERM to all, the child's may come first
        _print(str(end))  # diagnose reads it
        if code != -signal.SIGKILL or terminated:
            with contextlib.suppress(OSError):  # a service will find out
                attempts.end_by_scheduler(session, job, index, timed_out)
        return 128 + (-code if code < 0 else signal.SIGTERM)
    claim = session.read_claim(task.key)
    if claim is not None and claim.pid == child and claim.host == socket.gethostname():
        loss = _why(session, job, index, end)
    elif claim is not None and code == 0 and _is_run_again(session, job, task, claim):
        loss = _run_again(claim)
    else:
        return code if code >= 0 else 128 - code  # 0: another runner has the task
    try:
        attempts.end(session, job, index, loss)
    except OSError as exc:
        _print(f"cannot write to the store: {exc}")
        return EX_IOERR
    return 0


def _is_run_again(session: Session, job: Job, task: JobTask, claim: Claim) -> bool:
    """Whether the scheduler has started this very job before, and that run is gone."""
    return claim.job == job_id() != "" and not session.ends(task.key, job.attempt)


def _run_again(claim: Claim) -> Loss:
    what = f"the scheduler has started job {claim.job} again: its first run, on {claim.host}, left no outcome"
    return Loss("node_failure", f"{what}. The task itself is not to blame: submit it again", claim.job, claim.host)


def _print(text: str) -> None:
    """A line for the log, which may be on the disk that is full."""
    with contextlib.suppress(Exception):
        print(f"remoteexec: {text}", file=sys.stderr)


def end_process(code: int) -> NoReturn:
    """End this process with that code: Python's own way out makes it 120 where the log cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed or replaced by the user's function, or the disk is full
            stream.flush()
    os._exit(code)


def spare_from_alarms() -> None:
    """In Flux, which sends SIGALRM to all of a job when its time is up: the supervisor sees to what follows."""
    if "FLUX_URI" in os.environ:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _why(session: Session, job: Job, index: int, end: Exit) -> Loss:
    log, code = session.log(job.name, index), end.code
    reason = {EX_IOERR: "store", EX_CONFIG: "import_error"}.get(code, "killed")
    if code == EX_CONFIG:
        what = f"the runner cannot import what it needs; complete the environment of {sys.executable} on every node"
    elif code == EX_IOERR:
        what = "the outcome could not be written to the store; is the disk full, or a quota reached?"
    elif code < 0:
        name = signal.Signals(-code).name
        what = f"the process was ended by {name}; a crash in compiled code is the usual reason"
    else:
        what = f"the function ended its process with exit code {code} (os._exit, or an exit in compiled code)"
    return Loss(
        reason=reason,
        message=f"{what}; its log is {log}{large_log(log)}",
        job=job_id(),
        node=socket.gethostname(),
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        log_tail=log_tail(log),
        log_path=str(log),
        evidence=Evidence(usage=end.usage),
    )


def _child(session: Session, job: Job, index: int) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        code = _run(session, job, index)
    except OSError as exc:
        code = EX_IOERR
        _print(f"cannot write to the store: {exc}")
    except BaseException as exc:  # the process edge
        if isinstance(exc, ImportError):  # one of the user's is an outcome
            code = EX_CONFIG
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        end_process(code)  # threads and atexit hooks of the user's libraries must not hold the job's cores


def _run(session: Session, job: Job, index: int) -> int:
    task, environment = job.tasks[index], dict(os.environ)
    if not _has_inputs(session, job):
        from . import late_inputs

        if late_inputs.make_room(session, job, index):
            return 0
    started, process = time.time(), os.getpid()
    if not session.claim(task.key, Claim(job_id(), socket.gethostname(), process, started), job.attempt):
        return 0
    if job.resources.cores > 1:
        from . import job_ranks

        return job_ranks.run(session, job, task)
    from .store import hdf5

    key, becomes = session.key, None
    running.task = running.Running(session, job, environment)
    checkpoint.begin(session, task.key, job.attempt)
    try:
        outcome = _compute(session, job, task, key)
    except InputLateError:
        session.running(task.key).unlink(missing_ok=True)
        return 0
    except InputLostError as lost:
        session.publish_loss(task.key, Loss("upstream", str(lost), job=job_id(), upstream=lost.key))
        return 0
    except BecomesError as exc:
        becomes = exc.key
    if os.getpid() != process:
        return 0  # the user's function has forked, and this is its child: the outcome is the parent's to tell
    if running.task.growth is not None:
        running.task.growth.finish()  # first: who hears of the outcome may discard what is not in the store
    if becomes is not None:
        links.publish_link(session, task.key, becomes)
    elif not _is_tried_again(session, job, index, outcome):
        told = {**outcome.facts, **facts(started), "attempts": job.attempt}
        outcome = hdf5.Outcome(outcome.ok, outcome.value, told)
        session.publish_outcome(task.key, hdf5.write_outcome(task.key, outcome, key))
    else:
        return 0
    session.running(task.key).unlink(missing_ok=True)
    checkpoint.forget(session, task.key)
    return 0


def _has_inputs(session: Session, job: Job) -> bool:
    """Whether all inputs of a job have ends of their own."""
    if not job.upstream:
        return True
    outcomes = Outcomes(session)
    outcomes.look()
    return all(outcomes.ended(TaskKey(key)) for key in job.upstream)


def _is_tried_again(session: Session, job: Job, index: int, outcome: Outcome) -> bool:
    """Whether another attempt follows because the function raised; then this one's end was told."""
    loss = raised(outcome)
    if loss is None or retrying.next_attempt(job.resources, loss, job.attempt) is None:
        return False
    attempts.end(session, job, index, loss)
    return True


def raised(outcome: Outcome) -> Loss | None:
    """Why an attempt has failed whose function has raised; None: it has not."""
    if outcome.ok or outcome.facts.get("kind") != "raised":
        return None
    text = f"the function raised {outcome.facts.get('type')}: {outcome.facts.get('message')}"
    return Loss("error", text, job=job_id(), node=socket.gethostname())


def facts(started: float) -> dict[str, Any]:
    """Who ran a task, and when."""
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
    from .wire.header import HeaderError

    os.environ.update(variables(job))  # now: arrays import numpy, which asks for its number of threads only then
    try:
        bundle = session.bundle(job.burst).read_bytes()
        function, arguments = hdf5.read_call(bundle, job.burst, task.position, key)
    except HeaderError as exc:
        return _failed(exc, "refused")
    return called(job, function, arguments, Inputs(session, job, key, job.tasks.index(task)))


def called(job: Job, function: Pickled, arguments: Pickled, inputs: Callable[[TaskKey], Any]) -> Outcome:
    """Call it, and say how that went.

    Args:
        inputs: the results that the arguments refer to.
    """
    from .wire import payload

    try:
        _prepare(job)
    except OSError as exc:  # the directory that the user named
        return _failed(exc, "raised")

    def load() -> tuple[Callable[..., Any], Any, Any]:
        fn = payload.loads(function.data, function.buffers)
        return fn, *payload.loads(arguments.data, arguments.buffers, inputs)

    return computed(load, job.resources.error_log_file)


def computed(load: Callable[[], tuple[Callable[..., Any], Any, Any]], error_log_file: str | None) -> Outcome:
    """Load a call and call it; the outcome of whatever that leads to.

    Args:
        load: gives the function with its positional and its named arguments.
        error_log_file: as in `Resources`.

    Raises:
        InputLostError: an input of the call failed.
        BecomesError: the task ends as one of its own does.
    """
    from .store import hdf5
    from .wire import payload
    from .wire.header import HeaderError

    try:
        fn, args, kwargs = load()
    except InputLostError:
        raise
    except HeaderError as exc:
        return _failed(exc, "refused")
    except payload.SelectionError as exc:
        return _failed(exc.__cause__ or exc, "raised")
    except BaseException as exc:  # whatever the user's objects raise while they are loaded
        return _failed(exc, "call_not_loadable")
    try:
        result = fn(*args, **kwargs)
    except InputLostError:
        raise
    except BaseException as exc:  # SystemExit and KeyboardInterrupt are the user's, too
        from . import failure

        failure.log(error_log_file, fn, args, kwargs, exc)
        return _failed(exc, "raised")
    becomes = _child_of(result)
    if becomes is not None:
        raise BecomesError(becomes)
    try:
        return hdf5.Outcome(True, payload.dumps(result), {})
    except BaseException as exc:
        return _failed(exc, "result_not_picklable", f"{type(result).__module__}.{type(result).__qualname__}")


def _child_of(result: Any) -> TaskKey | None:
    if running.task is None or running.task.growth is None:
        return None
    return running.task.growth.key_of(result)


def variables(job: Job) -> dict[str, str]:
    """What the function sees in its environment."""
    return {**dict.fromkeys(_THREADS, str(job.resources.threads_per_core)), **job.resources.environment}


def _prepare(job: Job) -> None:
    os.environ.update(variables(job))
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


class Inputs:
    """The results of other tasks, each read once, waited for if need be.

    Args:
        index: element of the job that needs them, which may go behind the job of an input that is tried again, with
            `InputLateError`; None: it stays.
    """

    def __init__(self, session: Session, job: Job, key: bytes, index: int | None = None) -> None:
        self._session, self._job, self._key, self._index = session, job, key, index
        self._values: dict[TaskKey, Any] = {}
        self._outcomes = Outcomes(session)

    def __call__(self, key: TaskKey) -> Any:
        from .wire import payload

        if key not in self._values:
            pickled = self.pickled(key)
            self._values[key] = payload.loads(pickled.data, pickled.buffers)
        return self._values[key]

    def pickled(self, key: TaskKey) -> Pickled:
        """One of them, not loaded."""
        from .store import hdf5

        end = self._wait(key)
        outcome = hdf5.read_outcome(self._outcomes.outcome(end), end, self._key)
        if not outcome.ok or outcome.value is None:
            raise InputLostError(key)
        return outcome.value

    def _wait(self, key: TaskKey) -> TaskKey:
        """Return whose outcome it is when that is there; an input that will never come raises `InputLostError`."""
        began, ask_at, pause = time.monotonic(), 0.0, 0.05
        ended_at: float | None = None
        end = key
        while True:
            self._outcomes.look()
            before, end = end, links.followed(self._session, key, self._outcomes)
            if self._outcomes.has(end, "h5"):
                return end
            if self._outcomes.has(end, "lost"):
                raise InputLostError(key)
            if end != before:
                ask_at, ended_at = 0.0, None
            waited = time.monotonic() - began
            if waited >= ask_at:
                fate = self._ask(end, linked=end != key)
                if fate.loss is not None:
                    self._session.publish_loss(end, fate.loss)
                    raise InputLostError(key)
                if fate.behind is not None and self._leave(fate.behind):
                    raise InputLateError(key)
                ended_at = (ended_at or time.monotonic()) if fate.ended else None
                ask_at = waited + (_SOON_S if fate.soon else 30.0)
            if ended_at is not None and time.monotonic() - ended_at > self._job.grace_s:
                self._session.publish_loss(end, Loss("unknown", f"task {end} ended without an outcome"))
                raise InputLostError(key)
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)

    def _ask(self, key: TaskKey, linked: bool) -> late_inputs.Fate:
        from . import late_inputs
        from .batch.base import QueueError

        try:
            with running.outer_environment():
                return late_inputs.ask(self._session, self._job, key, linked)
        except (QueueError, ValueError) as exc:  # ValueError: a configuration that cannot be read here
            _print(f"waiting for task {key}: {exc}")
            return late_inputs.Fate()

    def _leave(self, behind: str) -> bool:
        """Let another job wait for an input; once, and not where ranks of this one run."""
        from . import late_inputs

        index, self._index = self._index, None
        if index is None:
            return False
        with running.outer_environment():
            return late_inputs.go_behind(self._session, self._job, index, (behind,))
