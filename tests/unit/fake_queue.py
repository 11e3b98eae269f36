"""A queue without a scheduler: jobs do what the test says, and every call can be made to fail."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from remoteexec_server.batch.base import (
    JobFacts,
    JobId,
    JobRef,
    JobSpec,
    JobState,
    SchedulerUnavailable,
    SubmitRejected,
    least_advanced,
)
from remoteexec_server.wire.resources import Resources

PENDING = JobFacts(JobState.PENDING)
LIE = SchedulerUnavailable("sbatch: error: Socket timed out, though the job is there")


class Crash(BaseException):
    """The process ends here, as by SIGKILL."""


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeQueue:
    """See batch.base.Queue.

    Attributes:
        array: MaxArraySize.
        jobs: what was submitted, by number, in order.
        facts: what is said of each element; absent: not known (any more).
        troubles: raised by the next calls, by name of the method; `LIE` at "submit" takes the job all the same, and
            `Crash` at "submit" ends the service after it was taken.
        calls: names of the methods called.
    """

    name: str = "fake 1.0"
    array: int = 1000
    jobs: dict[JobId, JobSpec] = field(default_factory=dict)
    facts: dict[JobRef, JobFacts] = field(default_factory=dict)
    troubles: dict[str, list[BaseException]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    cancelled: list[JobRef] = field(default_factory=list)

    def max_array(self) -> int:
        self._called("max_array")
        return self.array

    def prewarm(self) -> None:
        pass

    def submit(self, spec: JobSpec) -> JobId:
        assert os.listdir(spec.directory) == ["job.json"], "the intent is in the store before the job is submitted"
        trouble = self._trouble("submit")
        if trouble is not None and trouble is not LIE and not isinstance(trouble, Crash):
            raise trouble
        unknown = [str(ref) for ref in spec.after if self.state(ref).state is JobState.GONE]
        if unknown:
            raise SubmitRejected(f"Job dependency problem: {unknown}", dependency=True)
        job = JobId(str(100 + len(self.jobs)))
        self.jobs[job] = spec
        self.facts.update(dict.fromkeys(refs(job, spec.count), PENDING))
        if trouble is not None:
            raise trouble
        return job

    def unheeded(self, resources: Resources) -> list[str]:
        return [] if resources.qos is None else [f"qos={resources.qos!r} has no effect: this queue has none"]

    def script(self, spec: JobSpec) -> str:
        self._called("script")
        return f"#!/bin/sh\n{' '.join(spec.command)}\n"

    def find(self, name: str) -> JobId | None:
        self._called("find")
        return next((job for job, spec in self.jobs.items() if spec.name == name), None)

    def cancel(self, refs: Sequence[JobRef]) -> None:
        self._called("cancel")
        for ref in refs:
            self.cancelled.append(ref)
            if not self.facts.get(ref, JobFacts(JobState.GONE)).state.ended:
                self.facts[ref] = JobFacts(JobState.CANCELLED)

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        self._called("states")
        return {ref: self.state(ref) for ref in refs}

    def close(self) -> None:
        self.calls.append("close")

    # ---- for tests ----

    def end(self, ref: JobRef, state: JobState = JobState.COMPLETED, **facts: int | str) -> None:
        """What the scheduler says of an element from now on."""
        self.facts[ref] = JobFacts(state, **facts)  # type: ignore[arg-type]

    def forget(self, job: JobId) -> None:
        """The scheduler does not know the job any more."""
        self.facts = {ref: facts for ref, facts in self.facts.items() if ref.job != job}

    def state(self, ref: JobRef) -> JobFacts:
        if ref in self.facts or ref.index is not None:
            return self.facts.get(ref, JobFacts(JobState.GONE))
        elements = [facts for known, facts in self.facts.items() if known.job == ref.job]
        return least_advanced(elements) if elements else JobFacts(JobState.GONE)

    def _trouble(self, method: str) -> BaseException | None:
        self.calls.append(method)
        waiting = self.troubles.get(method)
        return waiting.pop(0) if waiting else None

    def _called(self, method: str) -> None:
        trouble = self._trouble(method)
        if trouble is not None:
            raise trouble


def refs(job: JobId, count: int) -> list[JobRef]:
    """The elements of a job."""
    return [JobRef(job)] if count == 1 else [JobRef(job, index) for index in range(count)]
