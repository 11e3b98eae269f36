"""A queue whose jobs obey a site's pysqa configuration: its templates and limits, over any queue of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..wire.resources import ResourceError, Resources
from .base import JobFacts, JobId, JobRef, JobSpec, Queue, SubmitRejected
from .pysqa_config import PysqaConfig

__all__ = ["ConfiguredQueue"]


class ConfiguredQueue:
    """See Queue; the runner, and who asks for the task's resources, see what the user wrote."""

    def __init__(self, queue: Queue, config: PysqaConfig) -> None:
        self._queue, self._config = queue, config

    @property
    def inner(self) -> Queue:
        """The queue that gets the jobs."""
        return self._queue

    @property
    def name(self) -> str:
        return self._queue.name

    def max_array(self) -> int:
        return self._queue.max_array()

    def prewarm(self) -> None:
        self._queue.prewarm()

    def submit(self, spec: JobSpec) -> JobId:
        return self._queue.submit(self._configured(spec))

    def unheeded(self, resources: Resources) -> Sequence[str]:
        try:
            return self._queue.unheeded(self._config.applied(resources))
        except ResourceError:
            return []  # said when it is submitted

    def script(self, spec: JobSpec) -> str:
        return self._queue.script(self._configured(spec))

    def find(self, name: str) -> JobId | None:
        return self._queue.find(name)

    def cancel(self, refs: Sequence[JobRef]) -> None:
        self._queue.cancel(refs)

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        return self._queue.states(refs)

    def close(self) -> None:
        self._queue.close()

    def _configured(self, spec: JobSpec) -> JobSpec:
        try:
            resources = self._config.applied(spec.resources)
            least = self._config.queue(spec.resources).cores_min
        except ResourceError as exc:
            raise SubmitRejected(str(exc)) from exc
        return replace(spec, resources=resources, least_cores=max(spec.least_cores, least or 0))
