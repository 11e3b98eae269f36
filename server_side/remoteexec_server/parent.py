"""What a process has to do with the one that forked it."""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["end_with"]

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Be killed when the parent is: who has lost its supervisor is lost, and must not go on unseen (Linux only)."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
