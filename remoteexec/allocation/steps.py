"""How the ranks of an MPI function are started over nodes of an allocation: by a step of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from remoteexec_server import mpi_facts
from remoteexec_server.mpi_facts import MpiFacts
from remoteexec_server.wire.resources import ResourceError, Resources

from .. import errors
from .base import Allocation

__all__ = ["SlurmSteps", "check_options"]

Way = tuple[str, list[str]]
"""See `remoteexec_server.mpi.Way`."""


class SlurmSteps:
    """Steps of `srun`. What MPI there is, is looked up once for each environment that calls name.

    Args:
        allocation: whose steps.
    """

    def __init__(self, allocation: Allocation) -> None:
        self._job = allocation.job
        self._facts: dict[str, MpiFacts] = {}
        self._known: dict[Resources, list[Way]] = {}

    def ways(self, resources: Resources) -> list[Way]:
        """What starts the ranks, what fits best first. Asked once, they stay so, whatever becomes of the environment.

        Raises:
            errors.RunnerMissing: nothing does.
        """
        if resources not in self._known:
            self._known[resources] = self._find(resources)
        return self._known[resources]

    def _find(self, resources: Resources) -> list[Way]:
        facts = self._look({**os.environ, **resources.environment})
        found = mpi_facts.pmi_of_slurm(facts, resources.pmi_mode) if facts.srun and not facts.problem else []
        if not found:
            raise errors.RunnerMissing(_nothing(facts))
        return [(f"srun --mpi={pmi}", srun(self._job, pmi, resources)) for pmi in found]

    def _look(self, environment: Mapping[str, str]) -> MpiFacts:
        digest = mpi_facts.digest("slurm", environment)
        if digest not in self._facts:
            self._facts[digest] = mpi_facts.look("slurm", environment)
        return self._facts[digest]


def check_options(options: Sequence[str]) -> None:
    """Refuse what srun would take for the program that it is to start.

    Raises:
        ResourceError: names it.
    """
    for before, option in zip(("", *options), options, strict=False):
        if not option.startswith("-") and (not before.startswith("-") or "=" in before):
            raise ResourceError(
                f"slurm_cmd_args={option!r}: srun would start it as a program; options begin with a dash, and of two "
                "entries the second is the value of the first"
            )


def srun(job: str, pmi: str, resources: Resources) -> list[str]:
    """The command, with marks for what is known only when the call has its place: see `remoteexec_server.mpi`.

    It shares all that the job has on these nodes with the agents and with other steps: who counts is the executor.
    Options of the user's may change how, and not where: what follows them counts.
    """
    return [
        *("srun", f"--mpi={pmi}", "--mem=0", "--export=ALL", *resources.slurm_cmd_args),
        *(f"--jobid={job}", "--overlap", "--overcommit", "--quiet", "--input=none", "--output=all", "--error=all"),
        *("--kill-on-bad-exit=1", "--wait=0", f"--ntasks={resources.cores}", "--nodes={nodes}"),
        *("--distribution=arbitrary", "--nodelist={hosts}"),
    ]


def _nothing(facts: MpiFacts) -> str:
    if facts.problem:
        return facts.problem
    if not facts.srun:
        return "MPI ranks over several nodes are started by srun, and there is none in PATH"
    return (
        f"srun offers --mpi={', '.join(facts.pmi) or 'nothing'}, of which none fits {facts.library}: name one with "
        "pmi_mode, or another MPI in environment"
    )
