"""How the ranks of an MPI function are started over nodes of an allocation: by a step of its own, a job to Flux."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from remoteexec_server import mpi_facts
from remoteexec_server.mpi_facts import MpiFacts
from remoteexec_server.mpi_launch import Way
from remoteexec_server.wire.resources import ResourceError, Resources

from .. import errors
from .base import Allocation
from .flux import SHELL_OPTIONS

__all__ = ["FluxSteps", "SlurmSteps", "Steps", "Way", "check_options"]

_ASK_S = 30.0
_BYPASS = "alloc-bypass.so"
_R = "system.alloc-bypass.R"


class Steps(ABC):
    """How a scheduler starts ranks. What MPI there is, is looked up once for each environment that calls name.

    Args:
        allocation: whose steps.
    """

    _scheduler: ClassVar[str]

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
            facts = self._look({**os.environ, **resources.environment})
            if facts.problem:
                raise errors.RunnerMissing(facts.problem)
            self._known[resources] = self._find(facts, resources)
        return self._known[resources]

    @abstractmethod
    def _find(self, facts: MpiFacts, resources: Resources) -> list[Way]:
        """See `ways`."""

    def _look(self, environment: Mapping[str, str]) -> MpiFacts:
        digest = mpi_facts.digest(self._scheduler, environment)
        if digest not in self._facts:
            self._facts[digest] = mpi_facts.look(self._scheduler, environment)
        return self._facts[digest]


class SlurmSteps(Steps):
    """Steps of `srun`."""

    _scheduler = "slurm"

    def _find(self, facts: MpiFacts, resources: Resources) -> list[Way]:
        if not facts.srun:
            raise errors.RunnerMissing("MPI ranks over several nodes are started by srun, and there is none in PATH")
        found = mpi_facts.pmi_of_slurm(facts, resources.pmi_mode)
        if not found:
            raise errors.RunnerMissing(
                f"srun offers --mpi={', '.join(facts.pmi) or 'nothing'}, of which none fits {facts.library}: name one "
                "with pmi_mode, or another MPI in environment"
            )
        return [(f"srun --mpi={pmi}", srun(self._job, pmi, resources)) for pmi in found]


class FluxSteps(Steps):
    """Jobs of `flux run`, which take what they are told and wait for nobody: who counts is the executor.

    The instance's own scheduler would place them elsewhere, and behind other jobs. To go past it is for the instance's
    owner alone, and for its plugin alloc-bypass.
    """

    _scheduler = "flux"

    def __init__(self, allocation: Allocation) -> None:
        super().__init__(allocation)
        self._is_loaded = False

    def _find(self, facts: MpiFacts, resources: Resources) -> list[Way]:
        self._load()
        found = []
        for pmi in mpi_facts.pmi_of_flux(facts, resources.pmi_mode):
            argv = ["flux", "run", f"--ntasks={resources.cores}", "--cores-per-task=1", f"--setattr={_R}={{R}}"]
            options = {**SHELL_OPTIONS, **({"pmi": pmi} if pmi else {})}
            argv += ["--setopt=exit-on-error", *[f"--setopt={name}={value}" for name, value in options.items()]]
            found.append((f"flux run{f' -o pmi={pmi}' if pmi else ''}", argv))
        return found

    def _load(self) -> None:
        if self._is_loaded:
            return
        loaded = _flux("jobtap", "load", _BYPASS)
        if loaded.returncode and _BYPASS not in _flux("jobtap", "list").stdout.split():
            raise errors.RunnerMissing(
                f"MPI ranks over several nodes are jobs of Flux that go past its scheduler, and `flux jobtap load "
                f"{_BYPASS}` failed: {loaded.stderr.strip()}; that is for the owner of an instance: start one, by "
                "`flux batch` or `flux alloc`, or with `flux start` in your job"
            )
        self._is_loaded = True


def _flux(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["flux", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise errors.RunnerMissing(f"`flux {' '.join(argv)}` cannot be run: {exc}") from exc


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
    """The command, with marks for what is known only when the call has its place: see `remoteexec_server.mpi_launch`.

    It shares all that the job has on these nodes with the agents and with other steps: who counts is the executor.
    Options of the user's may change how, and not where: what follows them counts.
    """
    return [
        *("srun", f"--mpi={pmi}", "--mem=0", "--export=ALL", *resources.slurm_cmd_args),
        *(f"--jobid={job}", "--overlap", "--overcommit", "--quiet", "--input=none", "--output=all", "--error=all"),
        *("--kill-on-bad-exit=1", "--wait=0", f"--ntasks={resources.cores}", "--nodes={nodes}"),
        *("--distribution=arbitrary", "--nodelist={hosts}"),
    ]
