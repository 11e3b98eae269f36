"""What an allocation has: nodes with cores, memory and GPUs, until it ends. Each scheduler has a module to find out."""

from __future__ import annotations

from dataclasses import dataclass


class NoAllocation(ValueError):
    """This process runs in no allocation, or the scheduler does not say what that has."""


@dataclass(frozen=True)
class Node:
    """What one node gives to the allocation.

    Attributes:
        cores: CPUs, as the scheduler counts them: to SLURM, hardware threads on most clusters.
        memory_bytes: None where the scheduler gives no share of the memory.
        gpus: their numbers on the node.
    """

    name: str
    cores: int
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Allocation:
    """A job of a scheduler.

    Attributes:
        job: its id.
        nodes: one or more.
        ends_at: Unix time of its time limit; None: it has none.
    """

    job: str
    nodes: tuple[Node, ...]
    ends_at: float | None = None

    @property
    def cores(self) -> int:
        """Of all nodes."""
        return sum(node.cores for node in self.nodes)
