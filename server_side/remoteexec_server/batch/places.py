"""Who comes after whom within a limit, where nobody will be there to count. Pure.

    place 1   12_0 ── 14 ── 17          each arrow is an `afterany`
    place 2   12_1 ── 15_[0-9%1]

A job takes the places that it needs and waits for those that had them last, so that never more run than there are
places. Places are jobs, or CPUs, or both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .base import JobId, JobRef

__all__ = ["Handover", "Holder", "Plan"]


@dataclass(frozen=True)
class Holder:
    """A job that is in the queue.

    Attributes:
        elements: of it, or the job itself, that have not ended.
        at_once: how many of them may run at the same time.
        cpus: of each.
    """

    job: JobId
    elements: Sequence[JobRef]
    at_once: int
    cpus: int


@dataclass(frozen=True)
class Plan:
    """Where a job is to go.

    Attributes:
        at_once: how many of its elements may run at the same time.
        after: what has to end before.
        positions: of its places, for each kind of places.
    """

    at_once: int
    after: tuple[JobRef, ...]
    positions: tuple[tuple[int, ...], ...]


class Handover:
    """Puts jobs behind those that fill a limit.

    Args:
        jobs: how many may run at the same time; None: any number.
        cores: how many CPUs these may have; None: any number.
        holders: what is in the queue.
    """

    def __init__(self, jobs: int | None, cores: int | None, holders: Sequence[Holder]) -> None:
        self._jobs = None if jobs is None else _Places(jobs)
        self._cores = None if cores is None else _Places(cores)
        for places, per_cpu in self._kinds():
            if sum(_each(per_cpu, holder.cpus) * holder.at_once for holder in holders) > places.count:
                places.fill(JobRef(holder.job) for holder in holders)  # who may run is not known so well
                continue
            for holder in holders:
                each = _each(per_cpu, holder.cpus)
                places.hold(places.soonest(holder.at_once * each), _refs(holder.job, holder.elements, holder.at_once))

    def plan(self, count: int, cpus: int) -> Plan:
        """Where a job of `count` elements with so many CPUs each goes; one of them has room within the limits."""
        at_once = count
        for places, per_cpu in self._kinds():
            at_once = min(at_once, places.count // _each(per_cpu, cpus))
        chosen = [(places, places.soonest(at_once * _each(per_cpu, cpus))) for places, per_cpu in self._kinds()]
        after = {ref for places, positions in chosen for ref in places.last(positions)}
        return Plan(at_once, tuple(sorted(after, key=str)), tuple(positions for _, positions in chosen))

    def hold(self, plan: Plan, job: JobId, count: int) -> None:
        """The job was submitted as planned."""
        elements = [JobRef(job)] if count == 1 else [JobRef(job, index) for index in range(count)]
        for (places, _), positions in zip(self._kinds(), plan.positions, strict=True):
            places.hold(positions, _refs(job, elements, plan.at_once))

    def _kinds(self) -> list[tuple[_Places, bool]]:
        """The places there are, and whether an element needs one for each of its CPUs."""
        return [(places, per) for places, per in ((self._jobs, False), (self._cores, True)) if places is not None]


class _Places:
    """Places of one kind, each with those who have it last, and how many have had it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._last: list[frozenset[JobRef]] = [frozenset()] * count
        self._turns = [0] * count

    def soonest(self, count: int) -> tuple[int, ...]:
        """Those that the fewest have had; how long each takes nobody knows."""
        return tuple(sorted(range(self.count), key=self._turns.__getitem__)[:count])

    def last(self, positions: Iterable[int]) -> frozenset[JobRef]:
        """Who has to end before these are free."""
        return frozenset().union(*(self._last[position] for position in positions))

    def hold(self, positions: Sequence[int], refs: Sequence[JobRef]) -> None:
        """These are the last to have the places: each the same number of them."""
        turn = 1 + max(self._turns[position] for position in positions)
        for number, position in enumerate(positions):
            self._last[position] = frozenset((refs[number * len(refs) // len(positions)],))
            self._turns[position] = turn

    def fill(self, refs: Iterable[JobRef]) -> None:
        """All of these have to end before any place is free."""
        self._last, self._turns = [frozenset(refs)] * self.count, [1] * self.count


def _each(per_cpu: bool, cpus: int) -> int:
    return cpus if per_cpu else 1


def _refs(job: JobId, elements: Sequence[JobRef], at_once: int) -> Sequence[JobRef]:
    """Who has the places of a job: each element its own, or all elements in turn all of them."""
    return elements if len(elements) == at_once else [JobRef(job)]
