"""The command `remoteexec`: clusters are named, checked and installed with it; work is done from Python."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
