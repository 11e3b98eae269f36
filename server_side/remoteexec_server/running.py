"""Which task of a job this process runs: what `current_executor()` has to know there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .growing_jobs import JobGrowth
    from .store.session import Job, Session


@dataclass
class Running:
    """A task of a job.

    Attributes:
        environment: of the process before the task changed anything.
        growth: what the task has submitted, if it has asked for its executor.
    """

    session: Session
    job: Job
    environment: Mapping[str, str]
    pid: int = field(default_factory=os.getpid)
    growth: JobGrowth | None = None


task: Running | None = None
"""None where nothing can be submitted: outside of tasks, and on MPI ranks."""
