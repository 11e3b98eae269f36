"""How a pilot begins: `pilot JOBDIR CLIENT INDEX`, what its script starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from .. import runner
from ..store.crew import CrewStore
from ..store.session import read_job
from .main import Pilot


def main(argv: list[str]) -> NoReturn:
    """Be element INDEX of the pilots described in JOBDIR."""
    os.umask(0o077)
    session, job = read_job(Path(argv[0]).resolve())
    store = CrewStore(session, argv[1])
    index = int(argv[2]) if len(argv) > 2 and argv[2] else 0
    spec = store.spec()
    if spec is None:
        runner.end_process(0)
    for name in runner._THREADS:  # before numpy is imported, which then makes its threads
        os.environ[name] = str(spec.pilots.resources.threads_per_core)
    runner.end_process(Pilot(store, spec, f"{job.name}-{index}", session.log(job.name, index)).run())
