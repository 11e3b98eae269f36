"""What is still to be done in an allocation, and how long that lasts: reported before it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass

WARN_S = 60.0
"""How long before the end: a minute is enough to save what there is, and SLURM may end jobs up to 30 s late, but not
early. Picked, not measured."""


@dataclass(frozen=True)
class Remaining:
    """Calls of an executor that have not ended, and how much time is left for them.

    Attributes:
        left_s: seconds until the allocation ends, 0 if it should have; None: it has no end.
        running: calls that run.
        waiting: calls that wait for a worker, or for cores, GPUs or memory.
        waiting_for_inputs: calls whose arguments are not there yet.
        not_started: calls that failed since there was less time left than the `run_time_max` that they had said.
    """

    left_s: float | None
    running: int
    waiting: int
    waiting_for_inputs: int
    not_started: int

    @property
    def none(self) -> bool:
        """Whether nothing is left to be done, and nothing was left undone."""
        return not (self.running or self.waiting or self.waiting_for_inputs or self.not_started)

    def __str__(self) -> str:
        """For people."""
        left = "" if self.left_s is None else f"the allocation ends in {self.left_s:.0f} s: "
        return (
            f"{left}{self.running} calls run, {self.waiting} wait for a worker, {self.waiting_for_inputs} for their "
            f"inputs, and {self.not_started} were not started for want of time (run_time_max)"
        )


def left_s(ends_at: float | None) -> float | None:
    """Seconds until then."""
    return None if ends_at is None else max(0.0, ends_at - time.time())
