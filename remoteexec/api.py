"""What executorlib has in a module of this name, for its scripts; all else is in `remoteexec` itself."""

from __future__ import annotations

import sys

from .errors import TaskLost
from .executors.cluster import TestClusterExecutor

__all__ = ["ExecutorlibSocketError", "TestClusterExecutor", "cloudpickle_register"]

ExecutorlibSocketError = TaskLost
"""What is raised where a worker has died; ours says how. The rest of that module is executorlib's inside."""


def cloudpickle_register(ind: int = 2) -> None:
    """Let the module that calls this travel by value, as modules of the user's own do anyway.

    Args:
        ind: 1 is the module of the caller, 2 that of the caller's caller, and so on; the outermost if there are not as
            many. One that is installed, or the script itself, is left as it is.
    """
    import cloudpickle  # late: it takes as long to import as all else of ours

    from remoteexec_server.wire.by_value import is_users_own

    frame = sys._getframe(1)
    for _ in range(ind - 1):
        frame = frame.f_back or frame
    module = sys.modules.get(frame.f_globals.get("__name__", ""))
    if module is not None and module.__name__ != "__main__" and is_users_own(module):
        cloudpickle.register_pickle_by_value(module)
