"""The composition root: the one place that names concrete queues."""

from __future__ import annotations

from pathlib import Path

from .answers import Answers
from .base import Queue
from .dialects.base import Dialect

NAMES = ("slurm", "flux", "pbs", "torque", "lsf", "sge", "moab", "local")


def connect(name: str, root: Path, pysqa_config_directory: str | None = None, answers: Answers | None = None) -> Queue:
    """The queue a cluster's configuration names.

    Args:
        name: one of `NAMES`.
        root: our root directory, where the embedded scheduler keeps its spool.
        pysqa_config_directory: with the site's templates and limits; see `pysqa_config`.
        answers: what the scheduler has told others who use it for the same session.

    Raises:
        PysqaConfigError: that directory cannot be used.
        ValueError: no such queue.
    """
    if pysqa_config_directory is not None:
        from . import pysqa_config
        from .configured import ConfiguredQueue

        config = pysqa_config.read(pysqa_config_directory, name)
        return ConfiguredQueue(connect(name, root, answers=answers), config)
    if name == "slurm":
        from .pysqa_queue import SlurmQueue

        return SlurmQueue(answers=answers)
    if name == "flux":
        from .flux_queue import FluxQueue

        return FluxQueue()
    if name == "local":
        from .local_queue import LocalQueue

        return LocalQueue(root / "local")
    if name in NAMES:
        from .dialect_queue import DialectQueue

        return DialectQueue(_dialect(name))
    raise ValueError(f"scheduler {name!r}: must be one of {', '.join(NAMES)}")


def _dialect(name: str) -> Dialect:
    match name:
        case "pbs":
            from .dialects.pbs import Pbs

            return Pbs()
        case "torque":
            from .dialects.pbs import Torque

            return Torque()
        case "lsf":
            from .dialects.lsf import Lsf

            return Lsf()
        case "sge":
            from .dialects.sge import Sge

            return Sge()
    from .dialects.moab import Moab

    return Moab()
