"""How the rank of an MPI function has ended, by its own status and by what its launcher says. Pure."""

from __future__ import annotations

import os
import re

from . import mpi_watch

_NODE_FAILED = re.compile(r"Node failure on (\S+)")


def lost_node_in(text: str) -> dict[str, str]:
    """Of a rank that ended since its node did, as srun says it."""
    found = _NODE_FAILED.search(text)
    return {"kind": "node_lost", "host": found[1].rstrip(",")} if found else {}


def how(word: mpi_watch.Word | None, text: str, launcher_code: int | None) -> tuple[str, dict[str, int | None]]:
    """How a rank ended, in words, and exit code and signal; mpiexec's where its own are not known."""
    if word is None:
        found = re.search(r"\bsignal (\d+)", text)
        return "ended", {"exit_code": launcher_code, "signal": int(found[1]) if found else None}
    if word.status is None:
        return f"called MPI_Abort with error code {word.abort}", {"exit_code": launcher_code, "signal": None}
    code = os.waitstatus_to_exitcode(word.status)
    return mpi_watch.how_it_ended(code), {
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
    }


def aborting_rank_in(text: str) -> int | None:
    """The rank that called MPI_Abort, if Open MPI or MPICH say so: it may be the last to end."""
    return _first_number(
        text,
        r"MPI_ABORT was invoked on rank (\d+) in communicator MPI_COMM_WORLD",  # Open MPI
        r"^Abort\(\d+\) on node (\d+) ",  # MPICH
    )


def blamed_rank_in(text: str) -> int | None:
    """The rank that Open MPI holds to be the first that ended."""
    return _first_number(
        text,
        r"noticed that process rank (\d+)",
        r"due to process rank (\d+)",
        r"Process name: \[\[\d+,\d+\],(\d+)\]",
    )


def _first_number(text: str, *patterns: str) -> int | None:
    found = [match for pattern in patterns if (match := re.search(pattern, text, re.MULTILINE))]
    return int(found[0][1]) if found else None
