"""Names of things that travel: apart from the messages, which pools and their workers have no use for."""

from __future__ import annotations

from typing import NewType

TaskKey = NewType("TaskKey", str)
"""Name of a task, unique in its session: letters, digits and dashes."""
MAINS = frozenset(("__main__", "__mp_main__"))
"""Names of the module of the user's script: the second where multiprocessing has started a process for it."""

NODE = "REMOTEEXEC_NODE"
"""In the environment of what an agent starts: which node of the allocation this is."""
