"""What the service takes and remembers: one record for each task, burst and job to be."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..store.session import StoreError, checked
from ..wire import header
from ..wire.messages import BurstId, Entry, Submit, TaskKey
from ..wire.resources import ResourceError, Resources
from .base import JobRef


@dataclass
class Task:
    """What the service knows of one task."""

    entry: Entry
    burst: BurstId
    resources: Resources
    ref: JobRef | None = None
    job_name: str = ""
    index: int = 0
    started: bool = False
    over: bool = False  # an outcome or a loss is in the store
    failed: bool = False  # and it is an error or a loss
    ended_at: float | None = None  # when the scheduler first said that the job has ended
    wanted: bool = True  # the client has not been told how it ended
    follows: TaskKey | None = None  # it ends as that one, whose future it has returned
    position: int = 0  # in the burst
    attempt: int = 1
    move: int = 0  # see Job

    @property
    def waits_again(self) -> bool:
        """An attempt has died, and the job of the next is not known yet."""
        return self.attempt > 1 and self.ref is None


@dataclass
class Burst:
    """A burst on its way into the queue.

    Attributes:
        own: it is of the service's own client, which waits for `Accepted` and `Rejected`.
        groups: jobs still to be submitted; None before the burst was cut into jobs.
        accepted: every job was submitted, or refused.
        followed: another service submits it.
        taken: that service has taken it from this one, whose client still waits to hear of it.
        attempt: questions for the longest array that got no answer.
        due_at: not before.
    """

    submit: Submit
    own: bool = True
    groups: deque[Group] | None = None
    accepted: bool = False
    followed: bool = False
    taken: bool = False
    attempt: int = 0
    due_at: float = 0.0

    @property
    def next_at(self) -> float:
        """When its next job is to be submitted."""
        return self.groups[0].due_at if self.groups else self.due_at


@dataclass
class Group:
    """Tasks that become one job: equal resources, the same jobs to wait for.

    Attributes:
        attempt: submissions that got no answer.
        due_at: not before.
        number: which attempt of the tasks it is, from 1.
        resources: those of that attempt; None: those of the burst.
        refused: a quota was full the last time.
    """

    name: str
    positions: list[int]
    attempt: int = 0
    due_at: float = 0.0
    number: int = 1
    resources: Resources | None = None
    refused: bool = False


def cut(submit: Submit, most: int, halved: Sequence[str] = ()) -> deque[Group]:
    """A burst cut into jobs of at most `most` tasks; always in the same way.

    Args:
        halved: names of those that were halved since, in that order.
    """
    cuts: dict[tuple[int, tuple[TaskKey, ...]], list[int]] = {}
    for position, entry in enumerate(submit.tasks):
        cuts.setdefault((entry.resources, tuple(sorted(set(entry.upstream)))), []).append(position)
    pieces = [
        positions[start : start + most] for positions in cuts.values() for start in range(0, len(positions), most)
    ]
    pieces.sort(key=lambda piece: piece[0])  # inputs are submitted before what needs them
    groups = [Group(f"rx-{submit.burst}-{n}", piece) for n, piece in enumerate(pieces)]
    for name in halved:
        groups = [part for group in groups for part in (halves(group) if group.name == name else [group])]
    return deque(groups)


def halves(group: Group) -> list[Group]:
    """Two groups in the place of one of at least two tasks."""
    middle = (len(group.positions) + 1) // 2
    return [
        Group(f"{group.name}-{half}", positions, number=group.number, resources=group.resources)
        for half, positions in (("a", group.positions[:middle]), ("b", group.positions[middle:]))
    ]


def refusal(submit: Submit, bundle: bytes, key: bytes, known: Collection[TaskKey]) -> tuple[str, str] | None:
    """Why a burst is not taken: the client's error class, and what it says.

    Args:
        key: the session's.
        known: tasks that were taken before.
    """
    try:
        for name in (submit.burst, *(entry.key for entry in submit.tasks)):
            checked(name)
        for resources in submit.resources:
            resources.validate()
        header.check(bundle, key, "bundle", submit.burst)
    except ResourceError as exc:
        return "SubmitRejected", str(exc)
    except (StoreError, header.HeaderError) as exc:
        return "ProtocolMismatch", f"bundle refused: {exc}"
    if not submit.tasks or len({entry.key for entry in submit.tasks}) < len(submit.tasks):
        return "ProtocolMismatch", "bundle refused: it has no tasks, or one of them twice"
    if any(not 0 <= entry.resources < len(submit.resources) for entry in submit.tasks):
        return "ProtocolMismatch", "bundle refused: a task names resources that are not there"
    twice = [entry.key for entry in submit.tasks if entry.key in known]
    return ("SubmitRejected", f"tasks {twice[:3]} were submitted before") if twice else None
