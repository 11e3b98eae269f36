"""What `remoteexec check` wants to know of a cluster: `probe --root ROOT --scheduler NAME [--sentinel HEX] [--mpi]`.

Prints one JSON object in one line and exits with 0 whatever it finds: each finding is a fact or the text of what is
wrong. The sentinel comes back in it, so that the line is known from whatever a noisy login shell prints.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from . import __version__, mpi_facts
from .store.root import UnsafeRootError, open_root
from .wire.header import PROTOCOL
from .wire.resources import Resources

__all__ = ["Facts", "main"]


@dataclass
class Facts:
    """The line. A package that is missing or cannot be imported is None and named in `problem`.

    Attributes:
        root: absolute; as it was given, if it has a `root_problem`.
        scheduler: as the queue calls itself: "slurm 22.05.8", "flux 0.88.0", "local"; None where it does not answer.
        partitions: of SLURM, the usable ones, the default first; Flux's queues.
        mpi: if asked for: which MPI functions on several ranks would use, and by what, or why there is none.
        problem: everything else that will keep tasks from running.
    """

    sentinel: str
    python: str = platform.python_version()
    protocol: int = PROTOCOL
    version: str = __version__
    root: str = ""
    root_problem: str | None = None
    pysqa: str | None = None
    h5py: str | None = None
    cloudpickle: str | None = None
    scheduler: str | None = None
    partitions: tuple[str, ...] = ()
    mpi: str = ""
    problem: str | None = None


def main(argv: list[str]) -> int:
    """Print the facts."""
    parser = argparse.ArgumentParser(prog="probe")
    parser.add_argument("--root", required=True)
    parser.add_argument("--scheduler", default="slurm")
    parser.add_argument("--sentinel", default="")
    parser.add_argument("--mpi", action="store_true")
    options = parser.parse_args(argv)
    facts = Facts(options.sentinel)
    problems: list[str] = []
    _look_at_root(facts, options.root)
    _look_at_packages(facts, options.scheduler, problems)
    _look_at_scheduler(facts, options.scheduler, problems)
    if options.mpi:
        facts.mpi = _mpi(options.scheduler)
    facts.problem = "; ".join(problems) or None
    print(json.dumps(asdict(facts)), flush=True)
    return 0


def _look_at_root(facts: Facts, root: str) -> None:
    try:
        facts.root = str(open_root(root))
    except UnsafeRootError as exc:
        facts.root = root
        facts.root_problem = str(exc)


def _look_at_packages(facts: Facts, scheduler: str, problems: list[str]) -> None:
    """They are imported: a compiled library that does not fit this system is only noticed then."""
    for name in ("cloudpickle", "h5py", "pysqa"):
        try:
            found = importlib.metadata.version(name)
            importlib.import_module(name)
            setattr(facts, name, found)
        except importlib.metadata.PackageNotFoundError:
            if name != "pysqa" or scheduler != "local":
                problems.append(f"{name} is not installed for {sys.executable}")
        except Exception as exc:
            problems.append(f"{name} cannot be imported by {sys.executable}: {exc}")


def _look_at_scheduler(facts: Facts, scheduler: str, problems: list[str]) -> None:
    from .batch import queues
    from .batch.base import SchedulerUnavailable

    if scheduler not in queues.NAMES:
        problems.append(f"scheduler {scheduler!r}: must be one of {', '.join(queues.NAMES)}")
        return
    asked: dict[str, Callable[[Facts], None]] = {"slurm": _ask_slurm, "flux": _ask_flux, "local": _ask_local}
    try:
        asked.get(scheduler, functools.partial(_ask_dialect, scheduler))(facts)
    except SchedulerUnavailable as exc:
        problems.append(str(exc))


def _mpi(scheduler: str) -> str:
    """Of this machine: the compute nodes may differ, and are looked at again by the jobs that need it."""
    found = mpi_facts.look(scheduler, os.environ)
    if found.problem:
        return f"none: {found.problem}"
    ways = mpi_facts.ways(found, scheduler, Resources(cores=2))
    return f"{found.library}, mpi4py {found.mpi4py}, {ways[0].name if ways else 'nothing that starts its ranks'}"


def _ask_slurm(facts: Facts) -> None:
    from .batch.pysqa_queue import SlurmQueue

    queue = SlurmQueue()
    facts.scheduler = f"slurm {queue.config().version}".strip()
    usable = sorted((p for p in queue.partitions() if p.available), key=lambda p: not p.default)
    facts.partitions = tuple(partition.name for partition in usable)


def _ask_flux(facts: Facts) -> None:
    from .batch.flux_queue import FluxQueue

    queue = FluxQueue()
    facts.scheduler = f"flux {queue.version()}"
    facts.partitions = tuple(queue.queues())


def _ask_dialect(scheduler: str, facts: Facts) -> None:
    """Whether its command answers when asked for the user's jobs; not all of them tell a version."""
    from .batch import queues

    queue = queues.connect(scheduler, Path(facts.root))
    queue.find("rx-none")
    facts.scheduler = queue.name


def _ask_local(facts: Facts) -> None:
    facts.scheduler = "local"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
