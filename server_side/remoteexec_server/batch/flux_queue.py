"""Flux: rendering, submission and deletion through pysqa in a helper process, questions by `flux jobs`.

    FluxQueue ─┬─ pysqa_helper (pipes, JSON lines) ─ pysqa ─> flux submit, flux batch, flux cancel
               └─ flux jobs, flux getattr, flux queue

Everything that waits has a deadline. What Flux prints is read by `flux_text`, what it is given is made by
`flux_script`.

Flux has no arrays: each element is a job of its own, and an array of ours is the jobs whose names say so. So an array
is never lost from sight, whoever asks, and however many of its elements Flux has forgotten; one that was submitted in
part (the command was killed, or the broker) is completed, not submitted again. A job without an array is known by
Flux's number.

`flux jobs` reads from a service that learns of a new job some milliseconds after the submission. So what was submitted
here a moment ago and is not shown yet is pending.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..wire.resources import ResourceError, Resources
from . import commands, flux_script, flux_text
from .base import JobFacts, JobId, JobRef, JobSpec, JobState, SchedulerUnavailable, SubmitRejected
from .pysqa_client import HelperSettings, PysqaHelper, Unnumbered, not_submitted, refused, words

__all__ = ["FluxQueue"]

_MAX_ARRAY = 2000
"""Elements submitted by one command: 6 s at the 3 ms each took on two busy cores, a fifth of its time limit."""

_MOST_CANCELLED = 5000
"""Jobs named in one command; a longer argument list may not be possible."""

_UNSEEN_S = 30.0
"""For which a job may be missing from `flux jobs` after its submission; picked, milliseconds were seen."""

_MARGIN_S = 600.0
"""Further back than the last question: clocks differ. Picked, not measured."""

_TRANSIENT = re.compile(
    r"unable to connect|broker socket|connection (refused|reset|closed)|timed out|no route to host"
    r"|host is unreachable|function not implemented|submission (is )?disabled|broken pipe|resource temporarily"
    r"|\berrno (110|111|113|104|38|11|32)\b",
    re.IGNORECASE,
)
"""Words of Flux's that mean "not now"; function not implemented: a service is not loaded yet, or no more."""

_OVER_ALREADY = re.compile(r"job is inactive|unknown job ?id", re.IGNORECASE)
_NUMBER = re.compile(r"f[1-9A-HJ-NP-Za-km-z]+|\d+")
"""How a job is known that is no array."""
_NO_UPSTREAM = re.compile(r"dependency: \w+: id \S+: job not found", re.IGNORECASE)


class FluxQueue:
    """The Flux instance that `flux` talks to here: FLUX_URI's, or the system's."""

    def __init__(self, settings: HelperSettings | None = None, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings or HelperSettings()
        self._clock = clock
        self._helper = PysqaHelper("FLUX", self._settings)
        self._unnumbered = Unnumbered()
        self._submitted: dict[JobId, tuple[float, list[str]]] = {}  # when, and Flux's numbers of all elements
        self._partial: dict[str, set[int]] = {}  # by name: elements of an array that are there, when not all are
        self._asked_at: float | None = None
        self._version = ""

    @property
    def name(self) -> str:
        """ "flux 0.88.0", or "flux" when it does not answer."""
        try:
            return f"flux {self.version()}"
        except SchedulerUnavailable:
            return "flux"

    def version(self) -> str:
        """Of the instance's broker, asked for once.

        Raises:
            SchedulerUnavailable: it does not answer.
        """
        if not self._version:
            self._version = self._ask(["flux", "getattr", "version"]).strip()
        return self._version

    def queues(self) -> list[str]:
        """For `check`: the named queues, the default first; none where the instance has only the one without a name."""
        return flux_text.parse_queues(self._ask(["flux", "queue", "list", "-n", "-o", "{queuem}"]))

    def max_array(self) -> int:
        """See Queue.max_array: Flux sets no limit, we do."""
        return _MAX_ARRAY

    def prewarm(self) -> None:
        """Start the helper, which then imports pysqa while the caller does something else."""
        self._helper.prewarm()

    def submit(self, spec: JobSpec) -> JobId:
        """See Queue.submit. The rendered script stays in the job's directory as `run_queue.sh`."""
        described = _described(spec)
        missing = [i for i in range(spec.count) if i not in self._partial.get(spec.name, ())]
        after = self._numbers(spec.after)
        try:
            ids = self._submit_elements(spec, described, missing, after)
        except SubmitRejected as exc:
            if not exc.dependency:
                raise
            ids = self._submit_elements(spec, described, missing, self._alive(after))
        self._partial.pop(spec.name, None)
        job = JobId(spec.name) if spec.count > 1 else JobId(ids[0])
        now = self._clock()
        self._submitted = {job: entry for job, entry in self._submitted.items() if now - entry[0] < _UNSEEN_S}
        if len(ids) == spec.count:
            self._submitted[job] = (now, ids)
        return job

    def unheeded(self, resources: Resources) -> list[str]:
        """See Queue.unheeded."""
        return flux_script.unheeded(resources)

    def script(self, spec: JobSpec) -> str:
        """See Queue.script."""
        return self._helper.script("flux", spec, _described(spec))

    def find(self, name: str) -> JobId | None:
        """See Queue.find. An array of which only some elements are there is not found: `submit` adds the others."""
        lines = [line for line in self._jobs(since=None) if line.element.name == name]
        if not lines:
            return None
        there = {line.element.index for line in lines}
        if len(there) < lines[0].element.count:
            self._partial[name] = there
            return None
        return lines[0].ref.job

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """See Queue.cancel: one `flux cancel`, for 5,000 jobs at most."""
        ids = self._numbers(refs)
        if not ids:
            return
        groups = [ids[first : first + _MOST_CANCELLED] for first in range(0, len(ids), _MOST_CANCELLED)]
        for group in groups:
            answer = self._helper.request({"do": "cancel", "jobs": [group], "environment": _environment()})
            if "done" in answer:
                continue
            said = flux_text.complaints(answer.get("errors", ""))
            if not (answer["failed"] == "command" and said and all(_OVER_ALREADY.search(line) for line in said)):
                raise SchedulerUnavailable(f"jobs {', '.join(group)[:200]} may not be cancelled: {words(answer)}")

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        """See Queue.states: one `flux jobs`, which leaves out what ended long before the last question.

        What is then not known is looked for once among all that Flux remembers.
        """
        wanted = list(dict.fromkeys(refs))
        if not wanted:
            return {}
        since = self._asked_at
        facts = self._facts(wanted, since)
        if since is not None and any(fact.state is JobState.GONE for fact in facts.values()):
            facts = self._facts(wanted, None)
        return facts

    def close(self) -> None:
        """End the helper."""
        self._helper.end()

    def _submit_elements(
        self, spec: JobSpec, described: Mapping[str, Any], indices: Sequence[int], after: Sequence[str]
    ) -> list[str]:
        """Flux's numbers of some elements of a job."""
        at_once = min(spec.at_once or len(indices), len(indices))
        nested = flux_script.is_nested(spec.resources)
        first = [indices[i : i + 1] for i in range(at_once)] if nested else [indices[:at_once]]
        ids: list[str] = []
        for some in first:
            ids += self._run(spec, described, flux_script.submission(spec, some, after), len(some), bool(ids))
        while len(ids) < len(indices):  # the rest waits, each for the one submitted `at_once` before it
            some = indices[len(ids) : len(ids) + (1 if nested else at_once)]
            before = ids[len(ids) - at_once : len(ids) - at_once + len(some)]
            if nested:
                command = flux_script.submission(spec, some, [*after, *before])
            else:
                command = flux_script.chained(spec, some, before, after)
            ids += self._run(spec, described, command, len(some), True)
        return ids

    def _run(
        self, spec: JobSpec, described: Mapping[str, Any], command: Sequence[str | None], count: int, partly: bool
    ) -> list[str]:
        """Flux's numbers of `count` elements.

        Args:
            partly: others were submitted already: a refusal is none of the whole job.
        """
        answer = self._helper.request({"do": "submit", **described, "argv": list(command)})
        if "failed" in answer:
            refusal = _refusal(spec, answer)
            raise SchedulerUnavailable(str(refusal)) if partly else refusal
        ids = flux_text.parse_ids(answer["output"])
        if len(ids) != count:
            raise self._unnumbered.refusal("flux", spec, answer)
        return ids

    def _numbers(self, refs: Sequence[JobRef]) -> list[str]:
        """Flux's numbers of jobs, elements and arrays, without elements that have ended or are not known."""
        found: list[str] = []
        parts = []
        for ref in refs:
            recent = self._recent(ref.job)
            if ref.index is None and _NUMBER.fullmatch(ref.job):
                found.append(ref.job)
            elif ref.index is None and recent:
                found += recent
            else:
                parts.append(ref)
        if parts:
            lines = self._jobs(self._asked_at)
            for ref in parts:
                found += self._numbers_of(ref, [line for line in lines if line.ref.job == ref.job])
        return list(dict.fromkeys(found))

    def _numbers_of(self, ref: JobRef, lines: Sequence[flux_text.Line]) -> list[str]:
        """Of an array or an element; one that is not shown yet may be any of those not shown.

        Args:
            lines: of that array.
        """
        shown = [line.id for line in lines if ref.index in (None, line.element.index)]
        if shown:
            return [line.id for line in lines if line.id in shown and not line.facts.state.ended]
        return [number for number in self._recent(ref.job) if number not in {line.id for line in lines}]

    def _recent(self, job: JobId) -> list[str]:
        """Flux's numbers of a job's elements, if it was submitted here a moment ago."""
        at, ids = self._submitted.get(job, (0.0, []))
        return ids if self._clock() - at < _UNSEEN_S else []

    def _alive(self, ids: Sequence[str]) -> list[str]:
        """Those that Flux knows and that have not ended; the runner finds the outcomes of the others by itself."""
        alive = {line.id for line in self._jobs(since=None) if not line.facts.state.ended}
        return [number for number in ids if number in alive]

    def _facts(self, wanted: Sequence[JobRef], since: float | None) -> dict[JobRef, JobFacts]:
        found = flux_text.by_ref(self._jobs(since))
        return {ref: found.get(ref) or self._not_shown(ref) for ref in wanted}

    def _not_shown(self, ref: JobRef) -> JobFacts:
        known = (ref.index or 0) < len(self._recent(ref.job))
        return JobFacts(JobState.PENDING if known else JobState.GONE)

    def _jobs(self, since: float | None) -> list[flux_text.Line]:
        """Our jobs that Flux shows.

        Args:
            since: leave out what had ended some time before that moment; None: ask for all that it remembers.
        """
        now = self._clock()
        argv = ["flux", "jobs", "-n", "-a", "-c", "0", "-o", flux_text.JOBS_FORMAT]
        if since is not None:
            argv.append(f"--since={since - _MARGIN_S:.3f}")
        lines = flux_text.parse_jobs(self._ask(argv))
        self._asked_at = now
        return lines

    def _ask(self, argv: list[str]) -> str:
        done = commands.run(argv, self._settings.timeout_s, _environment())
        if done.returncode != 0:
            said = " / ".join(flux_text.complaints(done.stderr)[:5])
            raise SchedulerUnavailable(f"{' '.join(argv[:2])} failed with exit code {done.returncode}: {said}")
        return done.stdout


def _described(spec: JobSpec) -> dict[str, Any]:
    """A job as the helper is told of it.

    Raises:
        SubmitRejected: a resource has a value that no template may see, or that Flux has no word for.
    """
    try:
        spec.resources.validate()
        return {
            "directory": str(spec.directory),
            "template": flux_script.template(spec.resources),
            "variables": flux_script.variables(spec),
            "environment": flux_script.environment(os.environ),
        }
    except ResourceError as exc:
        raise SubmitRejected(str(exc)) from exc


def _environment() -> dict[str, str]:
    """For commands that only ask: whatever the user has set to make them print otherwise is left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLUX_JOBS_", "FLUX_QUEUE_"))}
    return {**kept, "FLUX_F58_FORCE_ASCII": "1", "TZ": "UTC"}


def _refusal(spec: JobSpec, answer: Mapping[str, Any]) -> SubmitRejected | SchedulerUnavailable:
    """The error for an answer without a job."""
    if answer["failed"] == "command" and answer["exit_code"] > 0 and answer["errors"].strip():
        said = list(dict.fromkeys(_without_element(line) for line in flux_text.complaints(answer["errors"])))
        if answer["output"].strip():  # some elements were submitted: the others are once more
            return SchedulerUnavailable(f"job {spec.name} was submitted in part: {' / '.join(said[-8:])}")
        if not any(_TRANSIENT.search(line) for line in said):
            text = f"{' / '.join(said[-8:])} (exit code {answer['exit_code']})"
            return refused("flux", spec, text, dependency=any(_NO_UPSTREAM.search(line) for line in said))
    return not_submitted("flux", spec, answer)


def _without_element(line: str) -> str:
    """The same complaint of 1,000 elements is said once."""
    return re.sub(r"^cc=\d+: ", "", line)
