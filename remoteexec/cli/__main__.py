"""`python -m remoteexec.cli`, where the command itself is not on PATH."""

from __future__ import annotations

from .app import main

main()
