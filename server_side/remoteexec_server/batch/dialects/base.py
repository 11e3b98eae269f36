"""The seam to schedulers that pysqa submits to: the words of each, given and read. Pure.

Implementations: `pbs` (PBS Professional, OpenPBS; Torque), `lsf`, `sge`, `moab`. SLURM and Flux have queues of their
own.

A job is described twice, as for SLURM: in the script, to be read, and what must hold on the command line. The shell
writes the log, since no two of these schedulers agree on when and under which name they would.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...wire.resources import ResourceError, Resources
from ..base import JobId, JobRef, JobSpec
from ..slurm_text import Line
from ..variables import common, full_name

__all__ = ["Dialect", "Question", "by_signal", "command", "job_name", "refuse_arguments", "variables", "whole_jobs"]


@dataclass(frozen=True)
class Question:
    """A command that asks about jobs, and the function that reads its answer."""

    argv: tuple[str, ...]
    read: Callable[[str], list[Line]]


class Dialect(Protocol):
    """The words of one scheduler.

    Attributes:
        name: one of `queues.NAMES`.
        queue_type: pysqa's word for it.
        submits: the command that submits, for messages.
        max_array: the longest array; 1: it has none that we would use.
        by_stdin: the script is given on stdin.
        template: ours, Jinja2.
        unheeded: fields of `Resources` it has no word for, and what to do instead.
        busy: words of its commands that mean "not now".
        unknown: words of its commands about a job that is over or was never there.
    """

    name: str
    queue_type: str
    submits: str
    max_array: int
    by_stdin: bool
    template: str
    unheeded: Mapping[str, str]
    busy: re.Pattern[str]
    unknown: re.Pattern[str]

    def variables(self, spec: JobSpec) -> dict[str, object]:
        """What a template may use.

        Raises:
            ResourceError: it cannot give what is asked for.
        """

    def options(self, spec: JobSpec) -> list[str]:
        """What the command line says, whatever the script does."""

    def parse_submitted(self, output: str) -> JobId | None:
        """The job's number in what the submitting command printed."""

    def cancel_arguments(self, refs: Sequence[JobRef]) -> list[list[str]]:
        """The arguments of each command that is needed to end these jobs."""

    def own(self, user: str) -> Question | None:
        """Lists the numbers of the user's jobs (of each line only the job counts); None where `ask` needs none."""

    def ask(self, jobs: Sequence[JobId], user: str) -> list[Question]:
        """What is to be asked about jobs, all at once; answers may tell of others, too."""

    def ask_ended(self, job: JobId) -> Question | None:
        """What is to be asked about one job that `ask` did not find."""


def job_name(spec: JobSpec) -> str:
    """Our name of the job and the user's, in letters that every scheduler takes."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", full_name(spec))


def command(spec: JobSpec, index: str, job: str) -> str:
    """The command as shell text, with the index of the element as its last argument, and its log.

    Args:
        index: shell text for an element's index, counted from 0.
        job: shell text for what `JobRef` calls the job, inside double quotes.
    """
    index = index if spec.count > 1 else "0"
    log = f"{shlex.quote(str(spec.directory))}/{index}.log"
    return f'env REMOTEEXEC_JOB_ID="{job}" {shlex.join(spec.command)} {index} >>{log} 2>&1'


def variables(spec: JobSpec, options: Sequence[str], command: str, waits_for: Sequence[str]) -> dict[str, object]:
    """`variables.common`, and the job's own.

    Args:
        waits_for: what stands for the jobs to wait for in this scheduler's words.
    """
    r = spec.resources
    return {
        **common(spec),
        "job_name": job_name(spec),
        "options": [shlex.quote(option) for option in options],
        "directory": shlex.quote(str(spec.directory)),
        "cpus": max(r.cores * r.threads_per_core, spec.least_cores),
        "dependency_list": list(waits_for),
        "command": command,
    }


def refuse_arguments(resources: Resources, refused: Iterable[str], program: str) -> None:
    """Refuse options with which a command would wait, or submit nothing, or several jobs.

    Args:
        refused: they are; one that ends in a star with whatever follows.

    Raises:
        ResourceError: names the option.
    """
    patterns = list(refused)
    for argument in resources.slurm_cmd_args:
        if any(fnmatch.fnmatchcase(argument, pattern) for pattern in patterns):
            raise ResourceError(
                f"slurm_cmd_args={argument!r}: {program} would not submit one job and print its number; leave it out"
            )


def whole_jobs(refs: Iterable[JobRef]) -> list[JobId]:
    """Each job once, for schedulers in which nothing can wait for a single element of an array."""
    return list(dict.fromkeys(ref.job for ref in refs))


def by_signal(code: int | None) -> tuple[int | None, int | None]:
    """Exit code and signal of a number that stands for both: from 256 on the signal is added to it, and shells add it
    to 128; a negative one is the scheduler's own."""
    if code is None or code < 0:
        return None, None
    if code >= 256:
        return None, code - 256
    return (None, code - 128) if 128 < code < 160 else (code, None)
