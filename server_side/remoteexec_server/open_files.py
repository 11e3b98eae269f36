"""How many files a process may have open: those that carry the bytes of many workers have some for each."""

from __future__ import annotations

import contextlib
import math
import resource

UNLIMITED = resource.RLIM_INFINITY


def raise_limit(wanted: int = UNLIMITED) -> None:
    """Raise the soft limit to what is wanted, as far as the hard one lets us; it is never lowered.

    Processes that are started later have the higher limit, too: who starts workers does that first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == UNLIMITED:
        return
    new = hard if wanted == UNLIMITED else wanted if hard == UNLIMITED else min(wanted, hard)
    if new == UNLIMITED or new > soft:
        with contextlib.suppress(ValueError, OSError):  # "unlimited" is more than the kernel gives
            resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))


def limit() -> float:
    """How many this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == UNLIMITED else soft
