"""What MPI functions need on this machine: mpi4py, and the mpiexec that belongs to its library."""

from __future__ import annotations

import importlib.util
import os
import sys

from remoteexec_server.mpi_launch import Launch
from remoteexec_server.wire.resources import Resources

from .. import errors

__all__ = ["Launch", "launch", "mpiexec"]

_VARIABLE = "REMOTEEXEC_MPIEXEC"


def launch(resources: Resources) -> Launch | None:
    """How the ranks of a call are started; None for a call that is no MPI function.

    Raises:
        ImportError: mpi4py is not installed.
        errors.RunnerMissing: there is no mpiexec.
    """
    if resources.cores == 1:
        return None
    if importlib.util.find_spec("mpi4py") is None:  # not imported: that would initialise MPI in this process
        raise ImportError(
            f"cores={resources.cores} runs the function on that many MPI ranks, which needs mpi4py: "
            "pip install 'remoteexec[mpi]'; use threads_per_core for threads",
            name="mpi4py",
        )
    return resources.cores, mpiexec(), resources.openmpi_oversubscribe, False


def mpiexec() -> list[str]:
    """The command and its options: what REMOTEEXEC_MPIEXEC says, or the one beside this Python, or in PATH.

    An environment with mpi4py often has the MPI it belongs to.

    Raises:
        errors.RunnerMissing: there is none.
    """
    import shlex
    import shutil  # late: it brings what reads archives

    command = shlex.split(os.environ.get(_VARIABLE, ""))
    if command:
        found = shutil.which(command[0])
        if found is None:
            raise errors.RunnerMissing(f"{_VARIABLE} says {command[0]!r}, and there is no such program")
        return [found, *command[1:]]
    found = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")
    if found is None:
        raise errors.RunnerMissing(
            "there is no mpiexec, neither beside this Python nor in PATH: install MPICH or Open MPI "
            f"(pip install mpich), or name it in {_VARIABLE}"
        )
    return [found]
