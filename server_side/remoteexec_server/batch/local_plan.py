"""Which element of which job starts next on one machine: a pure plan, told what ends and asked what may start.

Order: first come, first served. Smaller jobs may pass one that waits for cores, but only until they have taken
`PATIENCE` times the machine's cores before it; then cores are left free for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .base import JobId, JobRef
from .local_spool import Job

PATIENCE = 2
"""Picked, not measured: enough to fill gaps with short jobs, few enough not to starve a large one."""


class Element(NamedTuple):
    """One run of a job's command."""

    job: JobId
    at: int


@dataclass
class _Planned:
    """A job that is not over.

    Attributes:
        waiting: elements not started, in order.
        running: elements started.
        blockers: jobs and elements it waits for.
        passed_by: cores given to others while it was first in line.
    """

    job: Job
    waiting: deque[int]
    running: set[int] = field(default_factory=set)
    blockers: set[JobRef] = field(default_factory=set)
    passed_by: int = 0


class Plan:
    """The jobs of one machine. Holds nothing of jobs that are over."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._free = cores
        self._jobs: dict[JobId, _Planned] = {}
        self._line: dict[JobId, None] = {}  # jobs with elements that nothing but cores keeps from starting
        self._blocking: dict[JobRef, set[JobId]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: JobId) -> bool:
        return job in self._jobs

    def job(self, job: JobId) -> Job:
        """A job that is not over."""
        return self._jobs[job].job

    def add(self, job: Job, running: Collection[int] = (), ended: Collection[int] = ()) -> None:
        """A new job; after a restart of the scheduler, one of which some elements run or have ended."""
        waiting = deque(index for index in range(job.count) if index not in running and index not in ended)
        planned = _Planned(job, waiting, set(running))
        if not planned.waiting and not planned.running:
            return
        self._jobs[job.job] = planned
        self._free -= job.cores * len(planned.running)
        for ref in map(JobRef.parse, job.after):
            blocker = self._open(ref)
            if blocker is not None and ref.job != job.job:
                planned.blockers.add(blocker)
                self._blocking.setdefault(blocker, set()).add(job.job)
        self._queue_up(planned)

    def startable(self) -> list[Element]:
        """What starts now; counted as running from here on."""
        chosen: list[Element] = []
        first: _Planned | None = None
        for job in list(self._line):
            if self._free == 0:
                break
            if first is not None and first.passed_by >= PATIENCE * self.cores:
                break
            planned = self._jobs[job]
            cores = planned.job.cores
            while planned.waiting and cores <= self._free:
                if first is not None:
                    if first.passed_by >= PATIENCE * self.cores:
                        break
                    first.passed_by += cores
                index = planned.waiting.popleft()
                planned.running.add(index)
                self._free -= cores
                chosen.append(Element(job, index))
            if not planned.waiting:
                del self._line[job]
            elif first is None:
                first = planned
        return chosen

    def end(self, element: Element) -> bool:
        """A running element has ended. Returns whether its job is over."""
        planned = self._jobs[element.job]
        planned.running.remove(element.at)
        self._free += planned.job.cores
        return self._closed(planned, [element.at])

    def drop(self, job: JobId, elements: Iterable[int] | None = None) -> tuple[list[int], list[int], bool]:
        """Take elements (None: all) that have not started out of the plan.

        Returns:
            Those dropped, those that run (and stay), and whether the job is over.
        """
        planned = self._jobs[job]
        asked = set(elements) if elements is not None else {*planned.waiting, *planned.running}
        dropped = [index for index in planned.waiting if index in asked]
        planned.waiting = deque(index for index in planned.waiting if index not in asked)
        if not planned.waiting:
            self._line.pop(job, None)
        return dropped, sorted(asked & planned.running), self._closed(planned, dropped)

    def _open(self, ref: JobRef) -> JobRef | None:
        """What a dependency on `ref` waits for; None if that is over."""
        planned = self._jobs.get(ref.job)
        if planned is None:
            return None
        if ref.index is None or planned.job.count == 1:
            return JobRef(ref.job)
        return ref if ref.index in planned.running or ref.index in planned.waiting else None

    def _queue_up(self, planned: _Planned) -> None:
        if planned.waiting and not planned.blockers:
            self._line[planned.job.job] = None

    def _closed(self, planned: _Planned, elements: Iterable[int]) -> bool:
        """Let go what waited for these elements."""
        job = planned.job.job
        over = not planned.waiting and not planned.running
        if over:
            del self._jobs[job]
            self._release(JobRef(job))
        for index in elements:
            self._release(JobRef(job, index))
        return over

    def _release(self, ref: JobRef) -> None:
        for job in sorted(self._blocking.pop(ref, ()), key=int):
            planned = self._jobs.get(job)
            if planned is not None:
                planned.blockers.discard(ref)
                self._queue_up(planned)
