"""What to change after a loss, with numbers; and what to do about sbatch's refusals. Pure.

A limit that was reached is doubled; more where more than that was used already. Doubling is the usual advice of
computing centres and needs few attempts; the factor is picked, not measured.
"""

from __future__ import annotations

import math
import re

from ..wire.evidence import Usage
from ..wire.resources import Resources

__all__ = ["beyond_one_job", "full_for_now", "memory", "memory_used", "remedy", "time", "time_used"]

_GB = 1 << 30
_FACTOR = 2.0
_MARGIN = 1.25
"""More than what was seen to be used, which the scheduler measures now and then only."""

_POLICY = "accounting/qos policy"
_LIMIT = re.compile(r"\b(?:Assoc|QOS)?(?:Max|Grp|Min)[A-Z]\w*")
"""SLURM's names of limits: job_state_reason.c, 22.05 to 26.05."""

_REMEDIES = (
    (r"invalid partition", "partition=…: `sinfo` lists those there are"),
    (r"invalid account", "account=…: `sacctmgr show associations user=$USER` lists yours"),
    (r"invalid qos", "qos=…: `sacctmgr show associations user=$USER format=account,qos` lists yours"),
    (r"invalid feature", "constraint=…: `sinfo -o '%N %f'` lists the features of nodes"),
    (r"invalid generic resource", "gpus_per_core: `sinfo -o '%N %G'` lists what nodes have"),
    (r"reservation", "reservation=…: `scontrol show reservation` lists those there are"),
    (r"time limit|invalid --time", "run_time_max: `sinfo -o '%P %l'` lists the limits of partitions"),
    (r"memory (specification|required)", "memory_max: `sinfo -o '%N %m'` lists the memory of nodes in MB"),
    (
        r"node configuration is not available|more processors|count specification",
        "cores, threads_per_core, num_nodes, memory_max: `sinfo -o '%P %D %c %m'` lists what nodes have",
    ),
    (r"job array", "fewer tasks in one array: `scontrol show config` says MaxArraySize"),
    (r"accounting/QOS policy", "`sacctmgr show qos` and `sacctmgr show associations user=$USER` list your limits"),
    (r"permission denied|not permitted", "ask the site's staff who may use it"),
)


def memory(resources: Resources | None, usage: Usage) -> str:
    """ "memory_max=2 -> try 4": the option counts GB for the whole job."""
    asked = resources.memory_max_gb if resources is not None else None
    limit = asked if asked is not None else _gb(usage.memory_limit_bytes)
    used = _gb(usage.memory_bytes) or 0.0
    if limit is None and not used:
        return "try a larger memory_max"
    more = f"{_rounded(max((limit or 0.0) * _FACTOR, used * _MARGIN)):g}"
    return f"memory_max={asked:g} -> try {more}" if asked is not None else f"try memory_max={more}"


def time(resources: Resources | None, usage: Usage) -> str:
    """ "run_time_max=90 -> try 180": the option counts seconds."""
    asked = resources.run_time_max_s if resources is not None else None
    limit = asked if asked is not None else usage.time_limit_s
    if limit is None:
        return "try a larger run_time_max"
    more = f"{math.ceil(limit * _FACTOR)}"
    return f"run_time_max={asked:g} -> try {more}" if asked is not None else f"try run_time_max={more}"


def memory_used(resources: Resources | None, usage: Usage) -> str:
    """ " (memory_max 2 GB; used 1.98 GB)", as far as it is known."""
    asked = resources.memory_max_gb if resources is not None else None
    used = _gb(usage.memory_bytes)
    return _against(
        _allowed("memory_max", "GB", asked, _gb(usage.memory_limit_bytes), resources is not None),
        f"used {used:.3g} GB" if used is not None else "",
    )


def time_used(resources: Resources | None, usage: Usage) -> str:
    """ " (run_time_max 90 s; ran 121 s)", as far as it is known."""
    asked = resources.run_time_max_s if resources is not None else None
    return _against(
        _allowed("run_time_max", "s", asked, usage.time_limit_s, resources is not None),
        f"ran {usage.time_s:.0f} s" if usage.time_s is not None else "",
    )


def remedy(words: str) -> str:
    """What to look at when sbatch refuses with these words; "" where they speak for themselves."""
    return next((advice for pattern, advice in _REMEDIES if re.search(pattern, words, re.IGNORECASE)), "")


def full_for_now(words: str) -> str | None:
    """The limit that refuses a job now and may take it later, if that is what sbatch says.

    Refused are a job too many, and whatever is more by itself than a QOS with DenyOnLimit ever allows. Only the first
    has "Submit" in its name. Where no limit is named, it is taken for the first: a job that waits in the store can be
    cancelled, one that was given up is gone.

    Returns:
        The limit's name, "" where none is named; None: this is no such refusal.

    Source: _acct_policy_validate in acct_policy.c, SLURM 22.05 to 25.11.
    """
    if _POLICY not in words.lower():
        return None
    limit = _LIMIT.search(words)
    if limit is None:
        return ""
    return limit[0] if "Submit" in limit[0] else None


def beyond_one_job(reason: str) -> bool:
    """Whether a pending job's reason is a limit on one job by itself, so that no other job's end makes room."""
    return bool(_LIMIT.fullmatch(reason) and re.search(r"PerJob|PerNode|MinutesPer|^QOSMin|^MaxMemPerLimit$", reason))


def _gb(count: int | None) -> float | None:
    return None if count is None else count / _GB


def _rounded(number: float) -> float:
    """Up to two digits that count: 0.32 of 0.314, 4 of 4."""
    step = 10.0 ** (math.floor(math.log10(number)) - 1) if number > 0 else 1.0
    return round(math.ceil(round(number / step, 6)) * step, 6)


def _allowed(option: str, unit: str, asked: float | None, given: float | None, known: bool) -> str:
    """What was asked for, else what the cluster gave of itself."""
    if asked is not None:
        return f"{option} {asked:g} {unit}"
    amount = f", {given:.4g} {unit}," if given is not None else ""
    return f"it asked for no {option}, so the cluster's default{amount} held" if known else ""


def _against(*parts: str) -> str:
    said = "; ".join(part for part in parts if part)
    return f" ({said})" if said else ""
