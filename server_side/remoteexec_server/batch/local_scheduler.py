"""The embedded scheduler of one machine, a process of its own: `local-scheduler SPOOL [--cores N] [--idle S]`.

    LocalQueue ── in/ ──┐                                   ┌── processes, one group for each element
    (any client) ─ wake ┴─> loop: take, reap, limit, start ─┴── events.jsonl ──> LocalQueue (any client)

One thread. It sleeps until a byte comes through the FIFO, a child ends or a deadline is due. It is started by whichever
client finds none, outlives it, and ends when there has been nothing to do for a while. Killed, it is followed by
another, which takes over the processes that still run; how those end is not known, as they are not its children.

Cores are accounted for, against the CPUs this process may use; memory is not limited. A process that leaves its session
escapes from the walltime and from cancellation.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import local_spool
from .base import JobFacts, JobId, JobRef, JobState, by_job
from .local_plan import Element, Plan
from .local_spool import Fold, Job, Process, Spool

KILL_WAIT_S = 2.0
"""Between SIGTERM and SIGKILL."""
LOCK_WAIT_S = 10.0
"""For a scheduler that is about to end."""
LARGE_JOURNAL = 4 << 20
"""Bytes; a larger one is put aside when nothing runs. About 30,000 elements."""
_ADOPTED_POLL_S = 1.0
"""Where the kernel has no pidfd (Linux before 5.3)."""


def main(argv: list[str]) -> int:
    """Start the scheduler and return once it serves; 0 also if another one does."""
    parser = argparse.ArgumentParser(prog="local-scheduler")
    parser.add_argument("spool", type=Path)
    parser.add_argument("--cores", type=int, default=None)
    parser.add_argument("--idle", type=float, default=5.0)
    options = parser.parse_args(argv)
    os.umask(0o077)
    spool = Spool(options.spool.absolute())
    spool.make()
    lock = os.open(spool.lock, os.O_RDWR | os.O_CREAT, 0o600)
    if not _acquire(lock, spool):
        if spool.served():
            return 0
        print(f"another scheduler holds {spool.lock} and does not listen", file=sys.stderr)
        return 1
    os.chdir("/")
    scheduler = Scheduler(spool, options.cores or machine_cores(), options.idle)
    scheduler.recover()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() > 0:  # whoever waits for us learns by our end that the scheduler listens
        os._exit(0)
    try:
        scheduler.serve()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def machine_cores() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _acquire(lock: int, spool: Spool) -> bool:
    """Take the lock, unless a scheduler that listens has it."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if spool.served() or time.monotonic() > deadline:
                return False
            time.sleep(0.02)  # it is between its last look and its end


@dataclass
class _Running:
    """One element that runs.

    Attributes:
        child: None for a process taken over from a scheduler that was killed.
        watch: pidfd of such a process, where there is one.
        ending: the state it will have ended in, once it has been told to end.
    """

    process: Process
    child: subprocess.Popen[bytes] | None = None
    watch: int | None = None
    ending: JobFacts | None = None


class Scheduler:
    """See the head of this file."""

    def __init__(self, spool: Spool, cores: int, idle_s: float) -> None:
        self._spool = spool
        self._idle_s = idle_s
        self._plan = Plan(cores)
        self._running: dict[Element, _Running] = {}
        self._deadlines: list[tuple[float, Element, int]] = []  # when, whom to signal, with what
        self._node = socket.gethostname()
        self._unwritten: list[str] = []
        self._over: list[JobId] = []  # their files go once their last event is written
        self._journal = -1
        self._wake = -1

    # ---- before the first round ----

    def recover(self) -> None:
        """Take over what a scheduler before left, and begin to listen."""
        fold = Fold()
        for file in (self._spool.events_before, self._spool.events):
            fold.feed(file.read_bytes() if file.exists() else b"")
        numbers = _numbers(self._spool.jobs)
        size = self._spool.events.stat().st_size if self._spool.events.exists() else 0
        if not numbers and size > LARGE_JOURNAL:
            self._spool.events.rename(self._spool.events_before)
            size = 0
        self._journal = os.open(self._spool.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if size:
            self._unwritten.append("\n")  # ends a line that a crash cut short
        for number in sorted(numbers):
            path = self._spool.jobs / f"{number}.json"
            try:
                self._resume(local_spool.read_job(path), fold)
            except ValueError as exc:
                self._set_aside(path, exc)
        self._flush()
        self._wake = self._spool.open_wake()

    def _resume(self, job: Job, fold: Fold) -> None:
        record = fold.records.get(job.job)
        if record is None:  # it had been taken, but not noted
            self._unwritten.append(local_spool.job_event(job))
            self._plan.add(job)
            return
        ended = {index for index, facts in record.facts.items() if facts.state.ended}
        alive = {index: process for index, process in record.processes.items() if is_alive(process)}
        for index in record.facts.keys() - ended - record.processes.keys():  # killed between starting it and noting it
            process = _find_started(job, index, self._spool)
            if process is not None:
                alive[index] = process
                self._unwritten.append(local_spool.run_event(job.job, index, process))
        lost = {index for index in record.facts if index not in ended and index not in alive}
        for index in lost & record.processes.keys():
            _kill_group(record.processes[index].pid, signal.SIGKILL, only_orphans=True)
        if lost:
            facts = JobFacts(JobState.NODE_FAIL, "ended while no scheduler was there to see it", self._node)
            self._unwritten.append(local_spool.end_event(job.job, lost, facts))
        self._plan.add(job, running=alive.keys(), ended=ended | lost)
        for index, process in alive.items():
            element = Element(job.job, index)
            self._running[element] = _Running(process, watch=_pidfd(process.pid))
            if job.walltime_s is not None:
                left = process.started_at + job.walltime_s - time.time()
                heapq.heappush(self._deadlines, (time.monotonic() + left, element, signal.SIGTERM))
        if job.job not in self._plan:
            self._over.append(job.job)

    # ---- rounds ----

    def serve(self) -> None:
        """Work until there has been nothing to do for `idle_s`."""
        children, told = os.pipe()
        os.set_blocking(children, False)
        os.set_blocking(told, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        idle_since = time.monotonic()
        while True:
            self._take()
            self._reap()
            self._enforce()
            self._start()
            self._flush()
            if self._plan:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= self._idle_s and not self._unwritten and self._leave():
                return
            self._sleep(children, idle_since)

    def _sleep(self, children: int, idle_since: float) -> None:
        """Wait for a request, the end of a child, or the next deadline."""
        now = time.monotonic()
        until = [when for when, _, _ in self._deadlines[:1]]
        if not self._plan:
            until.append(idle_since + self._idle_s)
        if self._unwritten or any(r.child is None and r.watch is None for r in self._running.values()):
            until.append(now + _ADOPTED_POLL_S)
        watched = [r.watch for r in self._running.values() if r.watch is not None]
        timeout = max(0.0, min(until) - now) if until else None
        ready = select.select([self._wake, children, *watched], [], [], timeout)[0]
        for descriptor in {self._wake, children} & set(ready):
            try:
                os.read(descriptor, 1 << 16)
            except BlockingIOError:
                pass

    def _leave(self) -> bool:
        """Stop listening; but a request that came in before is still ours."""
        os.close(self._wake)
        if not os.listdir(self._spool.inbox):
            return True
        self._wake = self._spool.open_wake()
        return False

    def _take(self) -> None:
        """Take what lies in the in-tray: jobs in the order of their numbers, then cancellations."""
        for name in self._new_jobs():
            path = self._spool.inbox / name
            try:
                job = local_spool.read_job(path)
            except ValueError as exc:
                self._set_aside(path, exc)
                continue
            path.rename(self._spool.jobs / name)
            self._unwritten.append(local_spool.job_event(job))
            self._plan.add(job)
            if job.cores > self._plan.cores:  # its submitter believed the machine to be larger
                self._drop(
                    job.job, None, JobFacts(JobState.FAILED, f"larger than {self._plan.cores} cores", self._node)
                )
        for name in sorted(name for name in os.listdir(self._spool.inbox) if name.endswith(".cancel")):
            path = self._spool.inbox / name
            try:
                refs = [JobRef.parse(text) for text in json.loads(path.read_text())]
            except ValueError as exc:
                self._set_aside(path, exc)
                continue
            if any(f"{ref.job}.json" in os.listdir(self._spool.inbox) for ref in refs if ref.job not in self._plan):
                continue  # its job came in a moment ago: next round
            self._cancel(refs)
            path.unlink()

    def _new_jobs(self) -> list[str]:
        """Files of new jobs, oldest first, none of which depends on a newer file.

        One listing of a directory that changes may hold a job and lack an older one, which the second then has.
        """
        numbers = _numbers(self._spool.inbox)
        if not numbers:
            return []
        return [f"{n}.json" for n in sorted({*numbers, *_numbers(self._spool.inbox)}) if n <= max(numbers)]

    def _cancel(self, refs: Iterable[JobRef]) -> None:
        facts = JobFacts(JobState.CANCELLED, "cancelled by its user", self._node)
        for job, elements in by_job(refs).items():
            if job in self._plan:
                self._drop(job, elements, facts)

    def _drop(self, job: JobId, elements: set[int] | None, facts: JobFacts) -> None:
        dropped, running, over = self._plan.drop(job, elements)
        if dropped:
            never_started = JobFacts(facts.state, facts.reason)
            self._unwritten.append(local_spool.end_event(job, dropped, never_started))
        for index in running:
            self._tell_to_end(Element(job, index), facts)
        if over:
            self._over.append(job)

    def _tell_to_end(self, element: Element, facts: JobFacts) -> None:
        running = self._running[element]
        if running.ending is None:
            running.ending = facts
            _kill_group(running.process.pid, signal.SIGTERM)
            heapq.heappush(self._deadlines, (time.monotonic() + KILL_WAIT_S, element, signal.SIGKILL))

    def _enforce(self) -> None:
        """Walltimes, and SIGKILL for those that SIGTERM did not end."""
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, element, number = heapq.heappop(self._deadlines)
            if element not in self._running:
                continue
            if number == signal.SIGTERM:
                self._tell_to_end(element, JobFacts(JobState.TIMEOUT, "TimeLimit", self._node))
            else:
                _kill_group(self._running[element].process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        for element, running in list(self._running.items()):
            if running.child is None:
                if not is_alive(running.process):
                    self._end(element, JobFacts(JobState.COMPLETED, "exit code unknown", self._node))
            elif _has_ended(running.child):
                # while the leader is a zombie its number is not given away: the rest of its group is surely meant
                _kill_group(running.process.pid, signal.SIGKILL)
                self._end(element, self._facts(running.child.wait()))

    def _facts(self, code: int) -> JobFacts:
        if code < 0:
            return JobFacts(JobState.FAILED, "RaisedSignal", self._node, None, -code)
        if code > 0:
            return JobFacts(JobState.FAILED, "NonZeroExitCode", self._node, code)
        return JobFacts(JobState.COMPLETED, "", self._node, 0)

    def _end(self, element: Element, facts: JobFacts) -> None:
        running = self._running.pop(element)
        if running.watch is not None:
            os.close(running.watch)
        if running.ending is not None:
            ending = running.ending
            facts = JobFacts(ending.state, ending.reason, ending.node, facts.exit_code, facts.signal)
        self._unwritten.append(local_spool.end_event(element.job, [element.at], facts))
        if self._plan.end(element):
            self._over.append(element.job)

    def _start(self) -> None:
        """Start what the plan allows, noted before it is done; nothing, while the journal cannot be written."""
        if not self._flush():
            return
        while chosen := self._plan.startable():
            for job, group in _grouped(chosen).items():
                self._unwritten.append(local_spool.start_event(job, group, self._node))
            self._flush()
            failed = False
            for element in chosen:
                failed |= not self._launch(element)
            if not failed:
                return

    def _launch(self, element: Element) -> bool:
        job = self._plan.job(element.job)
        try:
            child = _spawn(job, element.at, self._spool)
        except (OSError, ValueError) as exc:
            facts = JobFacts(JobState.FAILED, f"launch failed: {exc}", self._node)
            self._unwritten.append(local_spool.end_event(job.job, [element.at], facts))
            if self._plan.end(element):
                self._over.append(job.job)
            return False
        process = Process(child.pid, born(child.pid), time.time())
        self._running[element] = _Running(process, child)
        self._unwritten.append(local_spool.run_event(job.job, element.at, process))
        if job.walltime_s is not None:
            heapq.heappush(self._deadlines, (time.monotonic() + job.walltime_s, element, signal.SIGTERM))
        return True

    # ---- files ----

    def _flush(self) -> bool:
        """Append what has happened. Returns whether it is all written; a full disk is tried again later."""
        while self._unwritten:
            data = "".join(self._unwritten).encode()
            try:
                written = os.write(self._journal, data)
            except OSError as exc:
                print(f"{self._spool.events}: {exc}", file=sys.stderr, flush=True)
                return False
            rest = data[written:]
            self._unwritten = [rest.decode()] if rest else []
        for job in self._over:
            (self._spool.jobs / f"{job}.json").unlink(missing_ok=True)
        self._over.clear()
        return True

    def _set_aside(self, path: Path, exc: Exception) -> None:
        print(f"{path} was set aside: {exc}", file=sys.stderr, flush=True)
        path.rename(self._spool.path / f"{path.name}.bad")


def is_alive(process: Process) -> bool:
    """Whether that very process runs (a zombie does not)."""
    return born(process.pid) == process.born != ""


def born(pid: int) -> str:
    """When a process was started, in clock ticks since boot; "" if it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _alive_without_proc(pid)
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold anything
    return "" if fields[0] in "ZX" else fields[19]


def _alive_without_proc(pid: int) -> str:
    """For systems without /proc: only whether any process has the number."""
    if os.path.isdir("/proc/self"):
        return ""
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return "alive"


def _marks(job: Job, index: int, spool: Spool) -> dict[str, str]:
    """Variables that say which element a process runs."""
    return {"REMOTEEXEC_JOB_ID": str(job.ref(index)), "REMOTEEXEC_SPOOL": str(spool.path)}


def _find_started(job: Job, index: int, spool: Spool) -> Process | None:
    """The leader of an element's process group, found by what we put into its environment."""
    marks = {f"{name}={value}".encode() for name, value in _marks(job, index, spool).items()}
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        try:
            if os.getsid(pid) == pid and marks <= set((directory / "environ").read_bytes().split(b"\0")):
                return Process(pid, born(pid), time.time())
        except OSError:
            continue
    return None


def _spawn(job: Job, index: int, spool: Spool) -> subprocess.Popen[bytes]:
    """Start an element as the leader of a session and process group of its own."""
    environment = {
        name: value
        for name, value in job.environment.items()
        if name not in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID")  # of a job around all this
    }
    environment.update(_marks(job, index, spool))
    log = os.open(Path(job.directory) / f"{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [*job.command, str(index)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=job.directory,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(log)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended; it stays a zombie where the system lets us look without reaping."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return child.poll() is not None


def _kill_group(pid: int, number: int, only_orphans: bool = False) -> None:
    """Signal a process group; with `only_orphans`, not if its leader's number belongs to a process again."""
    if only_orphans and born(pid):
        return
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _numbers(directory: Path) -> list[int]:
    return [int(name[:-5]) for name in os.listdir(directory) if name.endswith(".json") and name[:-5].isdigit()]


def _grouped(elements: Iterable[Element]) -> dict[JobId, list[int]]:
    groups: dict[JobId, list[int]] = {}
    for element in elements:
        groups.setdefault(element.job, []).append(element.at)
    return groups


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
