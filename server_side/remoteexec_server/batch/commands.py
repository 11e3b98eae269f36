"""Runs the commands that ask a scheduler: bounded in time, in plain words, whatever the user's settings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from .base import SchedulerUnavailable

__all__ = ["run"]


def run(argv: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed, whatever its exit code.

    Raises:
        SchedulerUnavailable: it cannot be run, or takes longer.
    """
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise SchedulerUnavailable(f"{argv[0]} did not answer within {timeout_s:g} s") from exc
    except OSError as exc:
        raise SchedulerUnavailable(f"{argv[0]} cannot be run: {exc}; PATH is {os.environ.get('PATH', '')}") from exc
