"""When SLURM will end a job, on hosts whose clocks do not agree with its controller's.

`scontrol` prints times of the controller's clock; RunTime, and the time that `squeue` says is left, are counted by the
clock of the host they run on. munge accepts hosts that are five minutes apart, which is more than a pilot keeps for its
ending; so the controller is asked what time it has.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence

__all__ = ["PLAIN", "ahead_s", "controllers_time", "job_times", "left_s"]

PLAIN = {"SLURM_TIME_FORMAT": "standard"}
"""What a user may have set otherwise: the times that are read here are then words like "Tomorr 12:00"."""
_ASK_S = 20.0
_STAMP = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)"


def left_s(ran_s: float, environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds until SLURM ends the job in which this process runs; None: there is no such job, or nobody says.

    Args:
        ran_s: since when this process runs; it stands for the job where the controller does not say what time it has.

    Source: https://slurm.schedmd.com/sbatch.html (SLURM_JOB_END_TIME), https://slurm.schedmd.com/scontrol.html
    """
    job = environment.get("SLURM_JOB_ID")
    times = None if not job else _told(environment) or job_times(_ask(["show", "job", "-o", job], environment))
    if times is None:
        return None
    started_at, ends_at = times
    ahead = ahead_s(environment)
    return ends_at - started_at - ran_s if ahead is None else ends_at + ahead - time.time()


def ahead_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """By how much this host's clock is ahead of the controller's, at least; None: it does not say.

    It tells whole seconds, so this may be a second too little: things end early rather than late.
    """
    before = time.time()
    there = controllers_time(_ask(["show", "config"], environment))
    return None if there is None else before - there - 1


def controllers_time(output: str) -> float | None:
    """The time at which the controller answered `scontrol show config`, in Unix time of its clock."""
    return _unix_time(re.match(rf"\s*Configuration data as of {_STAMP}", output))


def job_times(output: str) -> tuple[float, float] | None:
    """Start and end of a job as `scontrol show job` prints them, in Unix time of the controller's clock.

    None: it has no time limit, or has not started.
    """
    started_at = _unix_time(re.search(rf"\bStartTime={_STAMP}", output))
    ends_at = _unix_time(re.search(rf"\bEndTime={_STAMP}", output))
    return None if started_at is None or ends_at is None else (started_at, ends_at)


def _told(environment: Mapping[str, str]) -> tuple[float, float] | None:
    """From SLURM 23.02 on."""
    try:
        return float(environment["SLURM_JOB_START_TIME"]), float(environment["SLURM_JOB_END_TIME"])
    except (KeyError, ValueError):
        return None


def _ask(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """What `scontrol` prints; nothing where it cannot be run or does not answer."""
    try:
        return subprocess.run(
            ["scontrol", *words],
            env={**environment, **PLAIN},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ASK_S,
            stdin=subprocess.DEVNULL,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _unix_time(found: re.Match[str] | None) -> float | None:
    """In this host's time zone, as SLURM's commands write it."""
    return datetime.datetime.fromisoformat(found[1]).timestamp() if found else None
