"""What a pilot asks of the scheduler: when its time is up, a successor, what became of pilots that are silent.

Questions that may take long are asked by a forked child, so that the pilot's workers need not wait for the answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable

from .. import runner, slurm_clock
from ..parent import end_with
from ..store.crew import CrewStore, Spec, owner_of
from ..store.outcomes import Outcomes, log_path
from ..store.segments import Kind, LogWriter
from ..store.session import Journal, log_tail
from ..wire import messages
from ..wire.messages import Loss, TaskKey

_SILENT_S = 120.0
"""A pilot that has said nothing for so long may be dead; NFS may hide what it says for 60."""
_PAUSES_S = (1.0, 5.0, 10.0)
"""Between attempts to submit a successor."""

_children: list[int] = []


def left_s(run_time_s: float | None, ran_s: float) -> float:
    """Seconds until the scheduler will end this job.

    Args:
        run_time_s: what it was asked for, which counts where the scheduler does not say.
        ran_s: since when the job runs.
    """
    told = slurm_clock.left_s(ran_s)
    if told is not None:
        return told
    return float("inf") if run_time_s is None else run_time_s - ran_s


def submit_successor(store: CrewStore) -> str:
    """Have a pilot submitted that takes this one's place; returns the name of its job."""
    from ..batch import crews

    spec = store.spec()
    assert spec is not None  # this pilot has read it
    name = crews.reserve_name(store.session, store.client, spec.pilots.resources, spec)
    _fork(lambda: _submit(store, spec, name))
    return name


def look_out(store: CrewStore, pilot: str) -> None:
    """Have it seen to what silent pilots have in hand."""
    beats = dict(store.beats())
    now = beats.get(pilot)  # by the clock of the file system, which all hosts share
    spec = store.spec()
    if now is None or spec is None:
        return
    having = set(store.members())
    silent = [name for name, at in beats.items() if now - at > _SILENT_S and name in having and name != pilot]
    if silent:
        _fork(lambda: _see_to(store, spec, silent, pilot))


def wait_for_children() -> None:
    """Return when all that was asked is answered."""
    for pid in _children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    _children.clear()


def _fork(action: Callable[[], None]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        _children.append(pid)
        return
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        end_with(parent)
        action()
        code = 0
    except BaseException:  # the process edge
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        runner.end_process(code)


def _submit(store: CrewStore, spec: Spec, name: str) -> None:
    from ..batch import crews, queues
    from ..batch.base import QueueError, SubmitRejected

    queue = queues.connect(spec.scheduler, store.session.path.parent.parent)
    journal = Journal(store.session)
    journal.append(crews.intent(name, 1))
    for attempt, pause_s in enumerate((*_PAUSES_S, 0.0)):
        try:
            job = queue.find(name) if attempt else None
            job = job or crews.submit_pilots(store, spec, queue, name, 1)
            journal.append({"job": job, "name": name, "tasks": 1})
            runner._print(f"job {job} is to take this pilot's place")
            break
        except SubmitRejected as exc:
            runner._print(f"no successor: {exc}")
            break
        except QueueError as exc:
            runner._print(f"no successor yet: {exc}")
            time.sleep(pause_s)
    journal.close()
    queue.close()


def _see_to(store: CrewStore, spec: Spec, silent: list[str], pilot: str) -> None:
    from ..batch import crews, diagnose, queues, recovery
    from ..batch.base import JobRef

    queue = queues.connect(spec.scheduler, store.session.path.parent.parent)
    beats = {name: store.read_beat(name) for name in silent}
    refs = {name: JobRef.parse(beat.job) for name, beat in beats.items() if beat is not None and beat.job}
    facts = queue.states(list(refs.values()))
    queue.close()
    log: list[LogWriter] = []

    def lose(key: TaskKey, loss: Loss) -> None:
        if not log:
            log.append(LogWriter(type(store.path)(log_path(store.session, f"{pilot}-x{os.getpid()}"))))
        log[0].append(Kind.LOST, key, messages.to_json(loss).encode())
        log[0].sync()

    outcomes, lost = Outcomes(store.session), 0
    for name, ref in refs.items():
        if facts[ref].state.ended:
            job_name, _, index = owner_of(name).rpartition("-")
            path = store.session.log(job_name, int(index))
            tail = log_tail(path)
            why = diagnose.loss(facts[ref], ref, tail, str(path), spec.pilots.resources)
            why = why or diagnose.unexplained(facts[ref], ref, _SILENT_S, tail, str(path))
            runner._print(f"pilot {name} is gone: {why.message}")
            lost += recovery.recover(store, outcomes, name, why, lose)
    for _ in range(min(lost, len(store.tickets())) if not store.session.alive() else 0):  # a service does so itself
        _submit(store, spec, crews.reserve_name(store.session, store.client, spec.pilots.resources, spec))
