"""The spool directory of the embedded scheduler: what its clients and the scheduler write for each other.

    lock            held by the one scheduler for its life
    wake            FIFO; a byte in it says "look into in/". It has a reader while a scheduler lives
    next            number of the next job
    in/             requests of clients, by rename: <job>.json and <unique>.cancel
    jobs/           jobs taken by the scheduler, until all their elements have ended
    events.jsonl    what happened, appended by the scheduler alone; events.1.jsonl is the one before
    scheduler.log   complaints

A request is durable once it is renamed into in/, and is taken whether a scheduler lives at that moment or is started
later.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .base import JobFacts, JobId, JobRef, JobState, least_advanced
from .slurm_text import array_expression, indices

__all__ = ["Fold", "Job", "Process", "Record", "Spool"]


@dataclass(frozen=True)
class Job:
    """A job as a client hands it over.

    Attributes:
        cores: of the machine, for each element.
        walltime_s: for each element.
        after: jobs and elements, as text, that have to end before.
        environment: the submitter's.
    """

    job: JobId
    name: str
    directory: str
    command: tuple[str, ...]
    count: int
    cores: int
    walltime_s: float | None
    after: tuple[str, ...]
    environment: Mapping[str, str]

    def ref(self, index: int) -> JobRef:
        """How the scheduler's clients call an element."""
        return JobRef(self.job, index if self.count > 1 else None)


@dataclass(frozen=True)
class Process:
    """A process that runs an element; `born` tells it from a later one of the same number."""

    pid: int
    born: str
    started_at: float


@dataclass
class Record:
    """What is known of one job."""

    name: str
    count: int
    facts: dict[int, JobFacts] = field(default_factory=dict)
    processes: dict[int, Process] = field(default_factory=dict)

    def of(self, index: int | None) -> JobFacts | None:
        """Facts of an element; without an index, of the least advanced one."""
        if index is None:
            return least_advanced(self.facts.get(i, _PENDING) for i in range(self.count))
        return self.facts.get(index, _PENDING) if 0 <= index < self.count else None


_PENDING = JobFacts(JobState.PENDING)


class Fold:
    """Events folded into records. Fed with bytes of the journal, whole lines or not."""

    def __init__(self) -> None:
        self.records: dict[JobId, Record] = {}
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes; a line that is not an event of ours (a crash cut it short) is passed over."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue

    def _take(self, event: Mapping[str, Any]) -> None:
        if event["e"] == "job":
            self.records[JobId(event["job"])] = Record(event["name"], event["count"])
            return
        record = self.records[JobId(event["job"])]
        for index in indices(event["i"]):
            match event["e"]:
                case "start":
                    record.facts[index] = JobFacts(JobState.RUNNING, node=event["node"])
                case "run":
                    record.processes[index] = Process(event["pid"], event["born"], event["t"])
                case "end":
                    record.processes.pop(index, None)
                    record.facts[index] = JobFacts(
                        JobState(event["state"]), event["reason"], event["node"], event["exit"], event["signal"]
                    )


def job_event(job: Job) -> str:
    """A job was taken."""
    return _line(e="job", job=job.job, name=job.name, count=job.count)


def start_event(job: JobId, elements: Iterable[int], node: str) -> str:
    """Elements are about to be started: written before, so that none is started twice."""
    return _line(e="start", job=job, i=array_expression(elements), node=node)


def run_event(job: JobId, index: int, process: Process) -> str:
    """An element runs as this process."""
    return _line(e="run", job=job, i=str(index), pid=process.pid, born=process.born, t=process.started_at)


def end_event(job: JobId, elements: Iterable[int], facts: JobFacts) -> str:
    """Elements have ended."""
    return _line(
        e="end",
        job=job,
        i=array_expression(elements),
        state=facts.state.value,
        reason=facts.reason,
        node=facts.node,
        exit=facts.exit_code,
        signal=facts.signal,
    )


def _line(**event: object) -> str:
    return json.dumps(event, separators=(",", ":")) + "\n"


class Spool:
    """Names in the spool, and what both sides do with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inbox = path / "in"
        self.jobs = path / "jobs"
        self.events = path / "events.jsonl"
        self.events_before = path / "events.1.jsonl"
        self.lock = path / "lock"
        self.log = path / "scheduler.log"
        self._wake = path / "wake"
        self._unique = 0

    def make(self) -> None:
        """Make what is missing, for the user alone."""
        for directory in (self.path, self.inbox, self.jobs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.mkfifo(self._wake, 0o600)
        except FileExistsError:
            pass

    def next_job(self) -> JobId:
        """A number that no other job of this spool has."""
        import fcntl  # not at import: a Windows client imports what stands above

        descriptor = os.open(self.path / "next", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, 32, 0)
            number = int(text) if text.strip().isdigit() else self._largest_seen() + 1
            os.pwrite(descriptor, b"%012d\n" % (number + 1), 0)
        finally:
            os.close(descriptor)
        return JobId(str(number))

    def _largest_seen(self) -> int:
        fold = Fold()
        for file in (self.events_before, self.events):
            fold.feed(file.read_bytes() if file.exists() else b"")
        return max([0, *map(int, fold.records), *(int(job.job) for job in self.waiting())])

    def hand_over(self, job: Job) -> None:
        """Put a job into the scheduler's in-tray."""
        self._publish(f"{job.job}.json", json.dumps(asdict(job)))

    def hand_over_cancel(self, refs: Iterable[JobRef]) -> None:
        """Put a cancellation there."""
        self._unique += 1
        self._publish(f"{time.time_ns()}-{os.getpid()}-{self._unique}.cancel", json.dumps([str(ref) for ref in refs]))

    def _publish(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.rename(self.inbox / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def waiting(self) -> Iterator[Job]:
        """Jobs in the in-tray and those taken but not ended.

        In this order, so that none is missed that the scheduler takes at this moment.
        """
        for directory in (self.inbox, self.jobs):
            for name in os.listdir(directory):
                if not name.endswith(".json"):
                    continue
                try:
                    yield read_job(directory / name)
                except FileNotFoundError:
                    continue  # taken, or ended, meanwhile

    def has_work(self) -> bool:
        """Whether there are jobs that have not ended."""
        try:
            return bool(os.listdir(self.jobs) or os.listdir(self.inbox))
        except FileNotFoundError:
            return False

    def wake(self) -> bool:
        """Tell the scheduler to look. Returns whether there is one."""
        return self._touch(b"!")

    def served(self) -> bool:
        """Whether a scheduler lives."""
        return self._touch(b"")

    def _touch(self, data: bytes) -> bool:
        try:
            descriptor = os.open(self._wake, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno in (errno.ENXIO, errno.ENOENT):  # nobody reads; no FIFO
                return False
            raise
        try:
            os.write(descriptor, data) if data else None
        except BlockingIOError:
            pass  # full of calls to wake up
        finally:
            os.close(descriptor)
        return True

    def open_wake(self) -> int:
        """The scheduler's end. Open for writing too: without a writer, the end of file would wake it all the time."""
        return os.open(self._wake, os.O_RDWR | os.O_NONBLOCK)


def read_job(path: Path) -> Job:
    """A job that `hand_over` wrote.

    Raises:
        FileNotFoundError: it is not there any more.
        ValueError: it is no job.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Job(**{**plain, "command": tuple(plain["command"]), "after": tuple(plain["after"])})
    except (TypeError, KeyError) as exc:
        raise ValueError(f"{path} is no job: {exc}") from exc
