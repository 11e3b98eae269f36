"""What the service remembers: one record for each task, burst and job to be."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..wire.messages import BurstId, Entry, Submit, TaskKey
from .base import JobRef


@dataclass
class Task:
    """What the service knows of one task."""

    entry: Entry
    burst: BurstId
    ref: JobRef | None = None
    job_name: str = ""
    index: int = 0
    started: bool = False
    over: bool = False  # an outcome or a loss is in the store
    failed: bool = False  # and it is an error or a loss
    ended_at: float | None = None  # when the scheduler first said that the job has ended
    wanted: bool = True  # the client has not been told how it ended


@dataclass
class Burst:
    """A burst on its way into the queue.

    Attributes:
        groups: jobs still to be submitted; None before the burst was cut into jobs.
        accepted: every job was submitted, or refused.
        attempt: questions for the longest array that got no answer.
        due_at: not before.
    """

    submit: Submit
    groups: deque[Group] | None = None
    accepted: bool = False
    attempt: int = 0
    due_at: float = 0.0


@dataclass
class Group:
    """Tasks that become one job: equal resources, the same jobs to wait for.

    Attributes:
        attempt: submissions that got no answer.
        due_at: not before.
    """

    name: str
    positions: list[int]
    attempt: int = 0
    due_at: float = 0.0


def cut(submit: Submit, most: int) -> deque[Group]:
    """A burst cut into jobs of at most `most` tasks; always in the same way."""
    cuts: dict[tuple[int, tuple[TaskKey, ...]], list[int]] = {}
    for position, entry in enumerate(submit.tasks):
        cuts.setdefault((entry.resources, tuple(sorted(set(entry.upstream)))), []).append(position)
    pieces = [
        positions[start : start + most] for positions in cuts.values() for start in range(0, len(positions), most)
    ]
    pieces.sort(key=lambda piece: piece[0])  # inputs are submitted before what needs them
    return deque(Group(f"rx-{submit.burst}-{n}", piece) for n, piece in enumerate(pieces))
