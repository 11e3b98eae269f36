"""`python <this directory> <command> ...`: what runs on the cluster, installed or copied there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "gateway": "gateway",
    "runner": "runner",
    "pilot": "pilot.start",
    "probe": "probe",
    "pysqa-submit": "batch.pysqa_helper",
    "zygote": "zygote",
    "relay": "relay",
    "agent": "agent",
    "mpi-rank": "mpi_rank",
    "mpi-library": "mpi_facts",
    "job-rank": "job_rank",
    "local-scheduler": "batch.local_scheduler",
}


def main() -> int:
    """Run the command named first; the rest are its arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(f"unknown command {name!r}: one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if not __package__:  # run as a directory: Python put the package itself on the path, not what holds it
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    module = importlib.import_module(f"remoteexec_server.{COMMANDS[name]}")
    return int(module.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
