"""Names of things that travel: apart from the messages, which pools and their workers have no use for."""

from __future__ import annotations

from typing import NewType

TaskKey = NewType("TaskKey", str)
"""Name of a task, unique in its session: letters, digits and dashes."""
