"""SLURM: rendering, submission and deletion through pysqa in a helper process, questions by SLURM's own commands.

    SlurmQueue ─┬─ pysqa_helper (pipes, JSON lines) ─ pysqa ─> sbatch, scancel
                └─ squeue, sacct, scontrol, sinfo

Everything that waits has a deadline. What SLURM prints is read by `slurm_text`, what it is given is made by
`slurm_script`.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..wire.resources import ResourceError, Resources
from . import advice, commands, slurm_script, slurm_text
from .answers import Answers
from .base import (
    JobFacts,
    JobId,
    JobRef,
    JobSpec,
    JobState,
    QuotaReached,
    SchedulerUnavailable,
    SubmitRejected,
    by_job,
    least_advanced,
)
from .pysqa_client import HelperSettings as SlurmSettings
from .pysqa_client import PysqaHelper, Unnumbered, not_submitted, refused, words
from .unheeded import by_template

__all__ = ["SlurmQueue", "SlurmSettings"]

_TRANSIENT = re.compile(
    r"timed out|unable to contact slurm|communication|connection (refused|reset|failure)|standby mode"
    r"|zero bytes were transmitted|insufficient data|message (send|receive) failure|unexpected message"
    r"|temporarily|authentication (error|credential)|munge|unable to resolve|configuration source|presently disabled"
    r"|slurmctld.*(not responding|down)|please retry|try again|submissions disabled|not available now"
    r"|i/o error writing|cannot allocate memory|memory (management error|allocation failure)|too many open files"
    r"|resource busy|interrupted system call|text file busy|stale file handle|input/output error"
    r"|authentication agent|unable to connect|error generating job credential|slurm internal error",
    re.IGNORECASE,
)
"""Words of SLURM's, and of a login node that has run out of something, that mean "not now"; the job may have been taken
all the same. Source: slurm_errno.c of 22.05, and errno's own texts."""

_VAGUE = re.compile(r"(unspecified|generic) error", re.IGNORECASE)
"""What SLURM says where it has no word: for now after a trouble of its own, for good when a site's plug-in refuses."""

_OVER_ALREADY = re.compile(r"invalid job id|already completing or completed|job/step already|not found", re.IGNORECASE)

_CONFIG_S = 3600.0
"""For how long SLURM's settings are taken to be what another service was told."""

_DETAILED, _DETAILED_S = 20, 30.0
"""So many jobs are asked about one by one in that time, at most, where there is no sacct: what one call of `states`
takes at the usual pace, however often that is called. Picked, not measured."""

_CLEAR = (JobState.PENDING, JobState.RUNNING, JobState.COMPLETED)
"""States about which squeue says all there is to say."""
_URGENCY = {JobState.GONE: -2, JobState.FAILED: -2}
"""Asked about first: what squeue has forgotten, or does not explain at all."""


class SlurmQueue:
    """The SLURM of the cluster whose login node this process runs on.

    Args:
        answers: shares what SLURM says with others; None: asks for itself.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: SlurmSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        answers: Answers | None = None,
    ) -> None:
        self._settings = settings or SlurmSettings()
        self._clock = clock
        self._detailed, self._detailed_since = 0, clock()
        self._unnumbered = Unnumbered()
        self._pending: dict[JobRef, float] = {}  # elements of arrays, when they were last known to wait
        self._helper = PysqaHelper("SLURM", self._settings)
        self._known: slurm_text.Config | None = None
        self._answers = answers
        self._distrusts = False  # what others were told is out of date

    @property
    def name(self) -> str:
        """ "slurm 22.05.8", or "slurm" when it does not answer."""
        try:
            return f"slurm {self.config().version}".strip()
        except SchedulerUnavailable:
            return "slurm"

    def config(self) -> slurm_text.Config:
        """SLURM's own settings, asked for once, by one service of those that share answers.

        Raises:
            SchedulerUnavailable: it does not answer.
        """
        if self._known is None:
            shared = self._answers.read("config", _CONFIG_S) if self._answers is not None else None
            text = shared or self._asked("config", ["scontrol", "show", "config"])
            self._known = slurm_text.parse_config(text)
        return self._known

    def max_array(self) -> int:
        """MaxArraySize, or less where the site says so.

        Raises:
            SchedulerUnavailable: it does not answer.
        """
        return self.config().max_array

    def partitions(self) -> list[slurm_text.Partition]:
        """For `check`."""
        return slurm_text.parse_sinfo(self._ask(["sinfo", "-h", "-o", slurm_text.SINFO_FORMAT]))

    def prewarm(self) -> None:
        """Start the helper, which then imports pysqa while the caller does something else."""
        self._helper.prewarm()

    def submit(self, spec: JobSpec) -> JobId:
        """See Queue.submit. The rendered script stays in the job's directory as `run_queue.sh`."""
        answer = self._request({"do": "submit", **_described(spec)})
        if "failed" in answer:
            if _is_vague(answer):
                raise self._unnumbered.refusal("sbatch", spec, answer)
            refusal = _refusal(spec, answer)
            self._distrusts = isinstance(refusal, SubmitRejected) and refusal.dependency
            raise refusal
        job = slurm_text.parse_job_id(answer["output"])
        if job is None:
            raise self._unnumbered.refusal("sbatch", spec, answer)
        if spec.count > 1:
            self._pending.update(dict.fromkeys((JobRef(job, index) for index in range(spec.count)), self._clock()))
        return job

    def unheeded(self, resources: Resources) -> list[str]:
        """See Queue.unheeded."""
        return slurm_script.overruled(resources) + by_template(resources)

    def script(self, spec: JobSpec) -> str:
        """See Queue.script."""
        return self._helper.script("sbatch", spec, _described(spec))

    def find(self, name: str) -> JobId | None:
        """See Queue.find. SLURM itself forgets a job some minutes after its end (MinJobAge); sacct does not."""
        lines = self._squeue()
        found = next((line for line in lines if slurm_script.is_named(line.name, name)), None)
        if found is None and self.config().accounting:
            argv = ["sacct", "-X", "--noheader", "--parsable2", "-o", slurm_text.SACCT_FORMAT, "--starttime=now-7days"]
            lines = slurm_text.parse_sacct(self._ask(argv))
            found = next((line for line in lines if slurm_script.is_named(line.name, name)), None)
        return None if found is None else found.job

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """See Queue.cancel: one scancel, in which the elements of an array are one argument."""
        jobs = _scancel_arguments(refs)
        if not jobs:
            return
        answer = self._request({"do": "cancel", "jobs": [jobs], "environment": _environment()})
        if "done" in answer:
            return
        errors = answer.get("errors", "")
        complaints = [line for line in errors.splitlines() if line.strip()]
        if answer["failed"] == "command" and complaints and all(_OVER_ALREADY.search(line) for line in complaints):
            return
        raise SchedulerUnavailable(f"jobs {', '.join(jobs)[:200]} may not be cancelled: {words(answer)}")

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        """See Queue.states: one squeue, and one sacct for what it has forgotten or does not explain.

        Where there is no accounting, scontrol is asked about failed jobs, as squeue does not print exit codes. What
        squeue has told another service a moment ago is believed, if it says something of each of these jobs.
        """
        wanted = list(dict.fromkeys(refs))
        if not wanted:
            return {}
        found = self._shown(wanted)
        facts = {ref: _lookup(found, ref) for ref in wanted}
        ends = {ref: fact for ref, fact in facts.items() if fact.state not in _CLEAR}
        if ends:
            urgent_first = sorted(ends.items(), key=lambda item: _URGENCY.get(item[1].state, 0))
            for ref, more in self._explained(dict(urgent_first)).items():
                if more.state.ended and more.state is not JobState.GONE:
                    facts[ref] = _together(facts[ref], more)
        self._notice_vanished(facts)
        return facts

    def _notice_vanished(self, facts: dict[JobRef, JobFacts]) -> None:
        """Elements of an array that are cancelled before they start leave no trace in SLURM's memory (22.05).

        One that waited a moment ago and is gone cannot have run: what has run is shown for MinJobAge after its end.
        """
        now = self._clock()
        for ref, fact in facts.items():
            if ref.index is None:
                continue
            if fact.state is JobState.PENDING:
                self._pending[ref] = now
                continue
            waited_at = self._pending.pop(ref, None)
            if fact.state is not JobState.GONE or waited_at is None:
                continue
            if now - waited_at < self.config().min_job_age_s / 2:
                facts[ref] = JobFacts(JobState.CANCELLED, "cancelled before it started")
                self._pending[ref] = waited_at  # the same answer, if asked again

    def close(self) -> None:
        """End the helper."""
        self._helper.end()

    def _explained(self, ends: Mapping[JobRef, JobFacts]) -> dict[JobRef, JobFacts]:
        """What is to be had beyond squeue about jobs that ended badly or are forgotten; nothing, where questions fail.

        sacct answers for all. scontrol is asked where no accounting runs, or where sacct fails or has not heard yet.
        """
        jobs = list(dict.fromkeys(ref.job for ref in ends))
        found: dict[JobRef, JobFacts] = {}
        accounted = self._accounted(jobs)
        if accounted is not None:
            found = _by_ref(accounted)
        missing = [
            ref.job
            for ref, fact in ends.items()
            if not _lookup(found, ref).state.ended or _lookup(found, ref).state is JobState.GONE
            if accounted is None or fact.state is not JobState.GONE
        ]
        found.update(_by_ref(self._described(dict.fromkeys(missing))))
        return {ref: _named(_lookup(found, ref)) for ref in ends}

    def _accounted(self, jobs: Sequence[JobId]) -> list[slurm_text.Line] | None:
        """sacct's answer; None: it has none."""
        try:
            if not self.config().accounting:
                return None
            argv = ["sacct", "--noheader", "--parsable2", "-o", slurm_text.SACCT_FORMAT, "-j", ",".join(jobs)]
            done = self._twice(argv)
        except SchedulerUnavailable:
            return None
        return slurm_text.parse_sacct(done.stdout) if done.returncode == 0 else None

    def _described(self, jobs: Iterable[JobId]) -> list[slurm_text.Line]:
        """scontrol's answers, one by one, until it hangs; as many as may be."""
        lines: list[slurm_text.Line] = []
        now = self._clock()
        if now - self._detailed_since >= _DETAILED_S:
            self._detailed_since, self._detailed = now, 0
        try:
            for job in itertools.islice(jobs, _DETAILED - self._detailed):
                self._detailed += 1
                lines += slurm_text.parse_show_job(self._twice(["scontrol", "-o", "show", "job", job]).stdout)
        except SchedulerUnavailable:
            pass  # what was heard before counts
        return lines

    def _twice(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """A question that fails is asked once more; one that hangs is not.

        Whoever asks makes do with less than the answer. For squeue, the next poll is the second time.
        """
        done = self._run(argv)
        if done.returncode == 0 or _OVER_ALREADY.search(done.stderr):
            return done
        return self._run(argv)

    def _shown(self, wanted: Sequence[JobRef]) -> dict[JobRef, JobFacts]:
        """What squeue shows; what it showed to another service, where that is recent and tells of all jobs wanted."""
        if self._answers is not None and not self._distrusts:
            found = _by_ref(slurm_text.parse_squeue(self._answers.read("squeue", self._answers.recent_s) or ""))
            if all(ref in found for ref in wanted):
                return found
        self._distrusts = False
        return _by_ref(self._squeue())

    def _squeue(self) -> list[slurm_text.Line]:
        argv = ["squeue", "--me", "-h", "-t", "all", "-o", slurm_text.SQUEUE_FORMAT]
        return slurm_text.parse_squeue(self._asked("squeue", argv))

    def _asked(self, question: str, argv: list[str]) -> str:
        """The answer, kept for others."""
        text = self._ask(argv)
        if self._answers is not None:
            self._answers.keep(question, text)
        return text

    def _ask(self, argv: list[str]) -> str:
        done = self._run(argv)
        if done.returncode != 0:
            errors = " / ".join(done.stderr.strip().splitlines()[:5])
            raise SchedulerUnavailable(f"{argv[0]} failed with exit code {done.returncode}: {errors}")
        return done.stdout

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return commands.run(argv, self._settings.timeout_s, _environment())

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._helper.request(request)


def _described(spec: JobSpec) -> dict[str, Any]:
    """A job as the helper is told of it.

    Raises:
        SubmitRejected: a resource has a value that no template may see.
    """
    try:
        spec.resources.validate()
        return {
            "directory": str(spec.directory),
            "template": slurm_script.template(spec.resources),
            "variables": slurm_script.variables(spec),
            "options": slurm_script.options(spec),
            "environment": slurm_script.environment(os.environ, spec.resources),
        }
    except ResourceError as exc:
        raise SubmitRejected(str(exc)) from exc


def _environment() -> dict[str, str]:
    """For commands that only ask: whatever the user has set to make them print otherwise is left out."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_"))
    }
    return {**kept, "LC_ALL": "C", "SLURM_BITSTR_LEN": "0"}  # 0: array expressions in full length


def _refusal(spec: JobSpec, answer: Mapping[str, Any]) -> SubmitRejected | QuotaReached | SchedulerUnavailable:
    """The error for an answer without a job."""
    if answer["failed"] == "command" and answer["exit_code"] > 0 and answer["errors"].strip():
        errors = answer["errors"]
        limit = advice.full_for_now(errors)
        if limit is not None:
            return QuotaReached(f"sbatch does not take job {spec.name} now: {words(answer)}", limit)
        if not _TRANSIENT.search(errors):
            remedy = advice.remedy(errors)
            said = f"{words(answer)}{'. See ' if remedy else ''}{remedy}"
            return refused("sbatch", spec, said, dependency=bool(spec.after) and "dependency" in errors.lower())
    return not_submitted("sbatch", spec, answer)


def _is_vague(answer: Mapping[str, Any]) -> bool:
    """Whether sbatch says that it failed, and nothing of why; a plug-in that refuses has mostly said more before."""
    said = [line for line in str(answer.get("errors", "")).splitlines() if line.strip()]
    return answer["failed"] == "command" and len(said) == 1 and bool(_VAGUE.search(said[0]))


def _scancel_arguments(refs: Iterable[JobRef]) -> list[str]:
    """ "12", "13_4", "14_[0-3,7]": one argument for each job."""
    arguments = []
    for job, chosen in by_job(refs).items():
        if chosen is None:
            arguments.append(str(job))
        elif len(chosen) == 1:
            arguments.append(f"{job}_{min(chosen)}")
        else:
            arguments.append(f"{job}_[{slurm_text.array_expression(chosen)}]")
    return arguments


def _by_ref(lines: Iterable[slurm_text.Line]) -> dict[JobRef, JobFacts]:
    """Facts for every job and element; an array as a whole is where its least advanced element is."""
    found: dict[JobRef, JobFacts] = {}
    for line in lines:
        for ref in line.refs():
            found[ref] = line.facts
        if line.elements is not None:
            whole = JobRef(line.job)
            found[whole] = least_advanced((found.get(whole, line.facts), line.facts))
    return found


def _lookup(found: Mapping[JobRef, JobFacts], ref: JobRef) -> JobFacts:
    return found.get(ref, JobFacts(JobState.GONE))


def _together(shown: JobFacts, more: JobFacts) -> JobFacts:
    """What squeue shows, and what sacct or scontrol know: each leaves out something."""
    return replace(
        more,
        reason=more.reason or shown.reason,
        node=more.node or shown.node,
    )


def _named(facts: JobFacts) -> JobFacts:
    """Who cancelled it, by name: "uid 1000" says little."""
    if not facts.cancelled_by.startswith("uid "):
        return facts
    import pwd

    uid = int(facts.cancelled_by.removeprefix("uid "))
    if uid == os.getuid():
        return replace(facts, cancelled_by="its owner")
    try:
        return replace(facts, cancelled_by=pwd.getpwuid(uid).pw_name)
    except KeyError:
        return facts
