"""A queue for the schedulers that pysqa submits to and whose words are in `dialects`.

    DialectQueue ─┬─ pysqa_helper (pipes, JSON lines) ─ pysqa ─> qsub, bsub, msub; qdel, bkill, mjobctl
                  └─ qstat, bjobs, showq, qacct

Written after the manuals, and but for Grid Engine not run by us; what the commands print is read by pure functions of
the dialect.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..wire.resources import ResourceError, Resources
from . import commands
from .base import (
    JobFacts,
    JobId,
    JobRef,
    JobSpec,
    JobState,
    SchedulerUnavailable,
    SubmitRejected,
    least_advanced,
)
from .dialects.base import Dialect, Question
from .pysqa_client import HelperSettings, PysqaHelper, Unnumbered, not_submitted, refused, words
from .slurm_text import Line
from .unheeded import by_template, notices
from .variables import is_named

__all__ = ["DialectQueue"]

_DETAILED = 20
"""Ended jobs asked about one by one in one call of `states`; picked, not measured."""

_ENDING = re.compile(r"being terminated|has (registered|deleted)|cancelled", re.IGNORECASE)
"""What is said of jobs that are being ended, beside complaints about those that are over."""


class DialectQueue:
    """See Queue."""

    def __init__(self, dialect: Dialect, settings: HelperSettings | None = None) -> None:
        self._dialect = dialect
        self._settings = settings or HelperSettings()
        self._helper = PysqaHelper(dialect.queue_type, self._settings)
        self._unnumbered = Unnumbered()

    @property
    def name(self) -> str:
        """That of the dialect: not all of these schedulers tell their version."""
        return self._dialect.name

    def max_array(self) -> int:
        """See Queue.max_array."""
        return self._dialect.max_array

    def prewarm(self) -> None:
        """See Queue.prewarm."""
        self._helper.prewarm()

    def submit(self, spec: JobSpec) -> JobId:
        """See Queue.submit. The rendered script stays in the job's directory as `run_queue.sh`."""
        answer = self._helper.request({"do": "submit", **self._described(spec)})
        if "failed" in answer:
            raise self._refusal(spec, answer)
        job = self._dialect.parse_submitted(answer["output"])
        if job is None:
            raise self._unnumbered.refusal(self._dialect.submits, spec, answer)
        return job

    def unheeded(self, resources: Resources) -> list[str]:
        """See Queue.unheeded."""
        if resources.submission_template is not None:
            return by_template(resources)
        return notices(resources, self._dialect.unheeded)

    def script(self, spec: JobSpec) -> str:
        """See Queue.script."""
        return self._helper.script(self._dialect.submits, spec, self._described(spec))

    def find(self, name: str) -> JobId | None:
        """See Queue.find."""
        user = getpass.getuser()
        question = self._dialect.own(user)
        own = [] if question is None else [line.job for line in self._ask(question)]
        lines = [line for each in self._dialect.ask(own, user) for line in self._ask(each)]
        return next((line.job for line in lines if is_named(line.name, name)), None)

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """See Queue.cancel."""
        arguments = self._dialect.cancel_arguments(list(dict.fromkeys(refs)))
        for each in arguments:
            # a command for each, as the first job that is over would keep a command from the others
            self._cancel(each)

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        """See Queue.states; some of these schedulers have to be asked about each ended job by itself."""
        wanted = list(dict.fromkeys(refs))
        if not wanted:
            return {}
        jobs = list(dict.fromkeys(ref.job for ref in wanted))
        lines = [line for each in self._dialect.ask(jobs, getpass.getuser()) for line in self._ask(each)]
        facts = _facts(lines, wanted)
        gone = dict.fromkeys(ref.job for ref, fact in facts.items() if fact.state is JobState.GONE)
        for job in list(gone)[:_DETAILED]:
            question = self._dialect.ask_ended(job)
            lines += [] if question is None else self._ask(question)
        return _facts(lines, wanted)

    def close(self) -> None:
        """See Queue.close."""
        self._helper.end()

    def _described(self, spec: JobSpec) -> dict[str, Any]:
        """A job as the helper is told of it."""
        try:
            spec.resources.validate()
            return {
                "directory": str(spec.directory),
                "template": spec.resources.submission_template or self._dialect.template,
                "variables": self._dialect.variables(spec),
                "options": self._dialect.options(spec),
                "environment": {k: v for k, v in os.environ.items() if k != "REMOTEEXEC_JOB_ID"},
                "by_stdin": self._dialect.by_stdin,
            }
        except ResourceError as exc:
            raise SubmitRejected(str(exc)) from exc

    def _cancel(self, arguments: list[str]) -> None:
        answer = self._helper.request({"do": "cancel", "jobs": [arguments], "environment": _environment()})
        if "done" in answer:
            return
        said = f"{answer.get('errors', '')}\n{answer.get('output', '')}"
        lines = [line for line in said.splitlines() if line.strip() and not _ENDING.search(line)]
        unknown = lines and all(self._dialect.unknown.search(line) for line in lines)
        if answer["failed"] == "command" and unknown and not self._dialect.busy.search(said):
            return
        raise SchedulerUnavailable(f"jobs {', '.join(arguments)[:200]} may not be cancelled: {words(answer)}")

    def _refusal(self, spec: JobSpec, answer: Mapping[str, Any]) -> SubmitRejected | SchedulerUnavailable:
        """The error for an answer without a job."""
        program = self._dialect.submits
        if answer["failed"] == "command" and answer["exit_code"] > 0:
            said = f"{answer['errors']}\n{answer['output']}"
            if said.strip() and not self._dialect.busy.search(said):
                on_others = "depend" in said.lower() or self._dialect.unknown.search(said) is not None
                return refused(program, spec, words(answer), dependency=bool(spec.after) and on_others)
        return not_submitted(program, spec, answer)

    def _ask(self, question: Question) -> list[Line]:
        """What it answers; a command that fails only because it does not know some of the jobs has answered, too."""
        done = commands.run(question.argv, self._settings.timeout_s, _environment())
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        if done.returncode != 0 and not (complaints and all(self._dialect.unknown.search(line) for line in complaints)):
            said = " / ".join((complaints or done.stdout.strip().splitlines())[:5])
            raise SchedulerUnavailable(f"{question.argv[0]} failed with exit code {done.returncode}: {said}")
        if not done.stdout.strip():
            return []
        try:
            return question.read(done.stdout)
        except ValueError as exc:
            raise SchedulerUnavailable(f"{question.argv[0]} printed something else: {exc}") from exc


def _environment() -> dict[str, str]:
    """For commands that only ask, and for those that end jobs."""
    return {**os.environ, "LC_ALL": "C"}


def _facts(lines: Sequence[Line], wanted: Sequence[JobRef]) -> dict[JobRef, JobFacts]:
    """Facts of each ref; an array as a whole is where its least advanced element is."""
    found: dict[JobRef, JobFacts] = {}
    for line in lines:
        for ref in line.refs():
            found.setdefault(ref, line.facts)
        if line.elements is not None:
            whole = JobRef(line.job)
            found[whole] = least_advanced((found.get(whole, line.facts), line.facts))
    return {ref: found.get(ref, JobFacts(JobState.GONE)) for ref in wanted}
