"""What scheduler and runner say of a job that ended badly or cannot start: facts for the user's error, and for retries.

Standard library only: the client's errors carry it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOTHING", "UNKNOWN", "Evidence", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Time and memory of one job, used against allowed; None where nobody says.

    Attributes:
        time_s: seconds it ran.
        time_limit_s: seconds it was given.
        memory_bytes: the most that was seen. The scheduler looks now and then (every 30 s by default): a peak that
            ended the job may be missing from it.
        memory_limit_bytes: what it was given, all nodes together.
    """

    time_s: float | None = None
    time_limit_s: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None


UNKNOWN = Usage()


@dataclass(frozen=True)
class Evidence:
    """The scheduler's facts, in its own words.

    Attributes:
        state: "TIMEOUT", "PENDING" …; "" where the scheduler was not asked.
        reason: its word for why, "TimeLimit", "QOSMaxWallDurationPerJobLimit" …
        cancelled_by: "its owner", "root", the name of a user, or "uid N"; "" where it is not told.
        suggestion: what to change, with numbers where there are any: "memory_max=2 -> try 4".
    """

    state: str = ""
    reason: str = ""
    cancelled_by: str = ""
    usage: Usage = UNKNOWN
    suggestion: str = ""


NOTHING = Evidence()
