"""The composition root: the one place that names concrete queues."""

from __future__ import annotations

from pathlib import Path

from .base import Queue

NAMES = ("slurm", "flux", "local")


def connect(name: str, root: Path) -> Queue:
    """The queue a cluster's configuration names.

    Args:
        name: one of `NAMES`.
        root: our root directory, where the embedded scheduler keeps its spool.

    Raises:
        ValueError: no such queue.
    """
    if name == "slurm":
        from .pysqa_queue import SlurmQueue

        return SlurmQueue()
    if name == "flux":
        from .flux_queue import FluxQueue

        return FluxQueue()
    if name == "local":
        from .local_queue import LocalQueue

        return LocalQueue(root / "local")
    raise ValueError(f"scheduler {name!r}: must be one of {', '.join(NAMES)}")
