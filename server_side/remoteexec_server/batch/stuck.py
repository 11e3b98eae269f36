"""Which waiting jobs will never start: what their reason says, and what the cluster has."""

from __future__ import annotations

from ..wire.messages import Loss
from ..wire.resources import Resources
from . import diagnose
from .base import JobFacts, JobId, JobRef, JobState, Queue, SchedulerUnavailable

__all__ = ["Stuck"]


class Stuck:
    """Asks what the cluster has once for each job whose reason may mean that it is too large."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._lacking: dict[JobId, str | None] = {}

    def loss(self, facts: JobFacts, ref: JobRef, resources: Resources) -> Loss | None:
        """Why a job that has not ended will never start; None: it runs, or may yet."""
        if facts.state is JobState.PENDING and facts.reason == diagnose.TOO_MUCH_NOW:
            lacking = self._what_is_lacking(ref.job, resources)
            if lacking is not None:
                return diagnose.too_large(facts, ref, resources, lacking)
        return diagnose.loss(facts, ref, "", None, resources)

    def _what_is_lacking(self, job: JobId, resources: Resources) -> str | None:
        if job not in self._lacking:
            from . import limits  # few jobs have that reason

            try:
                self._lacking[job] = limits.lacking(self._queue, resources)
            except SchedulerUnavailable:
                return None  # the next answer about the job is time enough
        return self._lacking[job]
