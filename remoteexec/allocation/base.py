"""What an allocation has: nodes with cores, memory and GPUs, until it ends. Each scheduler has a module to find out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        alias: what `Step.identify` says there; None: its name.
    """

    name: str
    cores: int
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    alias: str | None = None


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


@dataclass(frozen=True)
class Step:
    """How the scheduler starts the agents.

    Attributes:
        argv: what runs the command after it once on each node, and hands its own stdin to each; or, if the agents are
            started already, what hands it to them.
        environment: variables that it is given besides; None: it is not to have that.
        identify: a command that says on a node which one it is; empty: the name of the host.
        started: they are.
        end: a command for when there shall be none any more, there or on their way; empty: they see by themselves.
        logs: files for what agents and workers write to stdout and stderr; None: this process's own.
    """

    argv: Sequence[str]
    environment: Mapping[str, str | None]
    identify: Sequence[str] = ()
    logs: tuple[str, str] | None = None
    started: bool = False
    end: Sequence[str] = ()
