"""Which task of a job, or of a pilot, this process runs: what `current_executor()` has to know there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .growing_store import StoreGrowth
    from .store.session import Job, Session


@dataclass
class Running:
    """A task of a job.

    Attributes:
        environment: of the process before the task changed anything.
        growth: what the task has submitted, if it has asked for its executor.
        grow: how it gets one; None: as tasks of jobs do.
    """

    session: Session
    job: Job
    environment: Mapping[str, str]
    pid: int = field(default_factory=os.getpid)
    growth: StoreGrowth | None = None
    grow: Callable[[Running], StoreGrowth] | None = None


task: Running | None = None
"""None where nothing can be submitted: outside of tasks, and on MPI ranks."""


@contextlib.contextmanager
def outer_environment() -> Iterator[None]:
    """The process's environment is what it was before the task changed it: a queue may give it to the jobs that it is
    told to run."""
    if task is None:
        yield
        return
    inner = dict(os.environ)
    _become(task.environment)
    try:
        yield
    finally:
        _become(inner)


def _become(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
