"""The embedded scheduler as a queue: for one machine, tests and the demonstration; needs no installation.

A client writes requests into the spool and reads events from it; see `local_spool`. The scheduler is a process of its
own (`local_scheduler`), started when there is none. Cores are accounted for; memory, partitions, accounts and
priorities are not, and `submission_template` and `slurm_cmd_args` have no use here.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..wire.resources import ResourceError, Resources
from .base import JobFacts, JobId, JobRef, JobSpec, JobState, SchedulerUnavailable, SubmitRejected
from .local_spool import Fold, Job, Spool
from .unheeded import notices

__all__ = ["LocalQueue", "LocalSettings"]

_PACKAGE = Path(__file__).resolve().parent.parent
_MAX_ARRAY = 10_000
"""Picked, not measured; a longer array costs its client nothing but a second job."""

_UNHEEDED = (
    "memory_max_gb",
    "priority",
    "partition",
    "account",
    "qos",
    "reservation",
    "constraint",
    "slurm_cmd_args",
    "submission_template",
)
"""A job_name is not among them: there is nothing here that would show it."""


@dataclass(frozen=True)
class LocalSettings:
    """How the embedded scheduler works.

    Attributes:
        cores: it gives away; None for all that this process may use. The scheduler that runs keeps its own number.
        idle_s: after which it ends.
        timeout_s: for it to start.
    """

    cores: int | None = None
    idle_s: float = 5.0
    timeout_s: float = 30.0


class LocalQueue:
    """The embedded scheduler of this machine, with its spool in a directory of ours."""

    name = "local"

    def __init__(self, spool: Path, settings: LocalSettings | None = None) -> None:
        self._spool = Spool(spool.absolute())
        self._settings = settings or LocalSettings()
        self._starting: subprocess.Popen[bytes] | None = None
        self._fold = Fold()
        self._read = 0
        self._inode = 0

    def max_array(self) -> int:
        """See Queue.max_array."""
        return _MAX_ARRAY

    def prewarm(self) -> None:
        """Start the scheduler if there is none, without waiting for it."""
        try:
            self._spool.make()
            self._begin_start()
        except (OSError, SchedulerUnavailable):
            pass  # said when it is needed

    def submit(self, spec: JobSpec) -> JobId:
        """See Queue.submit."""
        cores = self._cores_of(spec)
        try:
            self._spool.make()
            job = Job(
                job=self._spool.next_job(),
                name=spec.name,
                directory=str(spec.directory),
                command=spec.command,
                count=spec.count,
                cores=cores,
                walltime_s=spec.resources.run_time_max_s,
                after=tuple(str(ref) for ref in spec.after),
                environment=dict(os.environ),
            )
            self._spool.hand_over(job)
        except OSError as exc:
            raise SchedulerUnavailable(f"job {spec.name} cannot be handed to the local scheduler: {exc}") from exc
        self._wake()
        return job.job

    def unheeded(self, resources: Resources) -> list[str]:
        """See Queue.unheeded."""
        return notices(resources, dict.fromkeys(_UNHEEDED, "the embedded scheduler gives out cores and time only"))

    def script(self, spec: JobSpec) -> str:
        """See Queue.script; this scheduler is given no script, so it is one that says the same."""
        limit = spec.resources.run_time_max_s
        asked = f"cores={self._cores_of(spec)}" + ("" if limit is None else f" run_time_max={limit:g}")
        index = '"$INDEX"' if spec.count > 1 else "0"
        return (
            "#!/bin/sh\n"
            f"# embedded scheduler: {asked}" + (f" INDEX=0-{spec.count - 1}" if spec.count > 1 else "") + "\n"
            f"cd {shlex.quote(str(spec.directory))}\n"
            f"exec {shlex.join(spec.command)} {index}\n"
        )

    def find(self, name: str) -> JobId | None:
        """See Queue.find."""
        self._catch_up()
        for job, record in reversed(self._fold.records.items()):
            if record.name == name:
                return job
        return next((job.job for job in self._handed_over() if job.name == name), None)

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """See Queue.cancel."""
        self._catch_up()
        alive = [ref for ref in refs if not self._facts(ref).state.ended or ref.job not in self._fold.records]
        if not alive:
            return
        try:
            self._spool.make()
            self._spool.hand_over_cancel(alive)
        except OSError as exc:
            raise SchedulerUnavailable(f"the local scheduler cannot be told to cancel: {exc}") from exc
        self._wake()

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        """See Queue.states: reads what was appended to the journal since the last time."""
        self._catch_up()
        facts = {ref: self._facts(ref) for ref in refs}
        if all(fact.state.ended and ref.job in self._fold.records for ref, fact in facts.items()):
            return facts
        if self._spool.has_work() and not self._served():
            self._start()  # it was killed; the next one finds out what became of its jobs
        waiting = {job.job: job for job in self._handed_over()} if self._unknown(refs) else {}
        self._catch_up()
        facts = {ref: self._facts(ref) for ref in refs}
        for ref, fact in facts.items():
            job = waiting.get(ref.job)
            if fact.state is JobState.GONE and job is not None and (ref.index is None or ref.index < job.count):
                facts[ref] = JobFacts(JobState.PENDING)
        return facts

    def close(self) -> None:
        """Jobs go on, and the scheduler for as long as there are any."""
        if self._starting is not None:
            try:
                self._starting.wait(self._settings.timeout_s)
            except subprocess.TimeoutExpired:
                self._starting.kill()
                self._starting.wait()
            self._starting = None

    def _cores_of(self, spec: JobSpec) -> int:
        resources = spec.resources
        try:
            resources.validate()
        except ResourceError as exc:
            raise SubmitRejected(str(exc)) from exc
        cores = self._cores()
        for key, asked, there in _demands(resources, cores):
            if asked > there:
                raise SubmitRejected(
                    f"job {spec.name} is larger than this machine: "
                    f"it asks for {asked} {key}, the local scheduler has {there}"
                )
        return cores if resources.exclusive else resources.cores * resources.threads_per_core

    def _cores(self) -> int:
        if self._settings.cores is not None:
            return self._settings.cores
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _facts(self, ref: JobRef) -> JobFacts:
        record = self._fold.records.get(ref.job)
        return (record.of(ref.index) if record is not None else None) or JobFacts(JobState.GONE)

    def _unknown(self, refs: Sequence[JobRef]) -> bool:
        return any(ref.job not in self._fold.records for ref in refs)

    def _handed_over(self) -> list[Job]:
        try:
            return list(self._spool.waiting())
        except (OSError, ValueError):
            return []

    def _catch_up(self) -> None:
        """Read the events since the last time; from the beginning, after the journal has been put aside."""
        try:
            with self._spool.events.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:
                    self._fold, self._read, self._inode = Fold(), 0, inode
                    if self._spool.events_before.exists():
                        self._fold.feed(self._spool.events_before.read_bytes())
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise SchedulerUnavailable(f"the journal of the local scheduler cannot be read: {exc}") from exc
        self._read += len(data)
        self._fold.feed(data)

    def _wake(self) -> None:
        try:
            served = self._spool.wake()
        except OSError as exc:
            raise SchedulerUnavailable(f"the local scheduler cannot be reached: {exc}") from exc
        if not served:
            self._start()

    def _served(self) -> bool:
        try:
            return self._spool.served()
        except OSError as exc:
            raise SchedulerUnavailable(f"the local scheduler cannot be reached: {exc}") from exc

    def _begin_start(self) -> None:
        if self._starting is not None and self._starting.poll() is not None:
            self._starting = None
        if self._starting is not None or self._spool.served():
            return
        settings = self._settings
        with self._spool.log.open("ab") as log:
            self._starting = subprocess.Popen(
                [
                    sys.executable,
                    str(_PACKAGE),
                    "local-scheduler",
                    str(self._spool.path),
                    f"--cores={self._cores()}",
                    f"--idle={settings.idle_s}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _start(self) -> None:
        """Start a scheduler and wait until it listens."""
        try:
            self._spool.make()
            self._begin_start()
            if self._starting is None:
                return
            code = self._starting.wait(self._settings.timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise SchedulerUnavailable(
                f"the local scheduler did not start within {self._settings.timeout_s:g} s; its log is {self._spool.log}"
            ) from exc
        except OSError as exc:
            raise SchedulerUnavailable(f"the local scheduler cannot be started: {exc}") from exc
        self._starting = None
        if code != 0:
            last = " / ".join(self._spool.log.read_text(errors="replace").strip().splitlines()[-3:])
            raise SchedulerUnavailable(f"the local scheduler ended with exit code {code}: {last}")


def _demands(resources: Resources, cores: int) -> list[tuple[str, int, int]]:
    """What is asked for, by name, and how much of it there is."""
    return [
        ("cores", resources.cores * resources.threads_per_core, cores),
        ("GPUs", resources.cores * resources.gpus_per_core, 0),
        ("nodes", resources.num_nodes or 1, 1),
    ]
