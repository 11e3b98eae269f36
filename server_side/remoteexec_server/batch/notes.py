"""What the services of a session have written down for each other: which jobs there are, and how bursts were cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..wire.messages import BurstId
from .base import JobId

__all__ = ["Notes", "read"]


@dataclass
class Notes:
    """The journals of all services together.

    Attributes:
        jobs: the scheduler's numbers of the jobs of first attempts, by our names of them.
        most: the longest array that each burst was cut into.
        again: the same of further attempts.
        halved: names of arrays that were too long for a limit, in the order in which they were halved.
    """

    jobs: dict[str, JobId] = field(default_factory=dict)
    again: dict[str, JobId] = field(default_factory=dict)
    most: dict[BurstId, int] = field(default_factory=dict)
    halved: dict[BurstId, list[str]] = field(default_factory=dict)


def read(notes: Iterable[Mapping[str, Any]]) -> Notes:
    """Notes as `Journal.notes` gives them; of two cuts of one burst the first counts."""
    found = Notes()
    for note in notes:
        match note:
            case {"job": job, "name": name, "again": True}:
                found.again[name] = JobId(job)
            case {"job": job, "name": name}:
                found.jobs[name] = JobId(job)
            case {"burst": burst, "most": most}:
                found.most.setdefault(BurstId(burst), most)
            case {"burst": burst, "halved": name}:
                found.halved.setdefault(BurstId(burst), []).append(name)
    return found
