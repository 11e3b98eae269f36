"""Why did a job end without an outcome? Pure: what the scheduler says and the end of the log, in; a `Loss`, out.

The runner's supervisor explains most ends by itself. Here is what only the scheduler knows: limits, nodes,
cancellations, preemption, and SIGKILL. `None` means undecided: the outcome may only be late.

Source: https://slurm.schedmd.com/squeue.html and resource_limits.html, texts of slurmstepd read in 22.05 to 24.11.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

from ..wire.messages import Loss
from ..wire.resources import Resources
from .base import JobFacts, JobRef, JobState

__all__ = ["loss", "names_memory", "unexplained"]

_EX_IOERR = 74
"""The runner's exit code for "neither outcome nor loss could be written"."""
_STEPD_IO = 53
"""Not a signal: slurmstepd's way to say that it could not set up the job's files."""

_OUT_OF_MEMORY = re.compile(
    r"oom[-_ ]kill|out[ -]of[ -]memory|exceeded (job |step )?memory limit|memory limit exceeded", re.IGNORECASE
)
_TIME_LIMIT = re.compile(r"DUE TO TIME LIMIT", re.IGNORECASE)
_NODE_FAILURE = re.compile(r"DUE TO (NODE FAILURE|JOB REQUEUE)", re.IGNORECASE)
_PREEMPTION = re.compile(r"DUE TO PREEMPTION", re.IGNORECASE)
_NOT_LAUNCHED = re.compile(r"launch_?failed|launch failed|JobLaunchFailure|BadConstraints|BOOT_FAIL", re.IGNORECASE)

_NEVER_STARTS = {
    "DependencyNeverSatisfied": "a job it depends on ended in a way that it does not accept",
    "PartitionTimeLimit": "its time limit is beyond that of the partition",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives to a job",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "launch failed requeued held": "it could not be launched and is held since",
}
"""Reasons of a pending job that only a person can change."""


def loss(
    facts: JobFacts, ref: JobRef, log_tail: str, log_path: str | None, resources: Resources | None = None
) -> Loss | None:
    """Explain the end of a job that left no outcome, or that will never start.

    Args:
        facts: also of a pending job: one that can never start is lost, and should then be cancelled.
        log_tail: the last lines the job printed; SLURM writes its own complaints there.
        log_path: where the whole log lies.
        resources: what the job asked for, named beside what it ran into.

    Returns:
        None while nothing is decided: the job runs or may yet, it ended well, or the scheduler has forgotten it.
    """

    def lost(reason: str, what: str, advice: str) -> Loss:
        where = f" on {facts.node}" if facts.node else ""
        evidence = f"{what}{where} (state {facts.state.value}{_evidence(facts)})"
        log = f"; its log is {log_path}" if log_path else ""
        return Loss(
            reason,
            f"job {ref} {evidence}. {advice}{log}",
            job=str(ref),
            node=facts.node,
            exit_code=facts.exit_code,
            signal=facts.signal if facts.signal != _STEPD_IO else None,
            log_tail=log_tail,
            log_path=log_path,
        )

    if not facts.state.ended:
        return _never_starts(facts, lost)
    if facts.state in (JobState.COMPLETED, JobState.GONE):
        return None
    if facts.state is JobState.OUT_OF_MEMORY or _ran_out_of_memory(facts, log_tail):
        return lost("out_of_memory", f"ran out of memory{_asked_memory(resources)}", "Ask for more with memory_max")
    if facts.state is JobState.TIMEOUT or _TIME_LIMIT.search(log_tail):
        return lost("timeout", f"reached its time limit{_asked_time(resources)}", "Ask for more with run_time_max")
    if facts.state is JobState.PREEMPTED or _PREEMPTION.search(log_tail):
        return lost("preempted", "had to make room for another job", "Submit it again, or use another partition")
    if facts.state is JobState.NODE_FAIL or _NODE_FAILURE.search(log_tail):
        return lost("node_failure", "lost its node", "The task itself is not to blame: submit it again")
    if facts.state is JobState.CANCELLED:
        return lost("cancelled", "was cancelled", "If it was not you, ask the site's staff")
    if facts.exit_code == _EX_IOERR:
        return lost("store", "could not write its result to the store", "Look for a full disk or an exceeded quota")
    if facts.signal == _STEPD_IO or (facts.signal is None and not facts.exit_code and _launch_failed(facts)):
        return lost(
            "unknown", "was never started by the scheduler", "See the reason; the site's staff has the node's log"
        )
    if facts.signal is not None or (facts.exit_code or 0) > 128:
        number = facts.signal or (facts.exit_code or 0) - 128
        return lost("killed", f"was ended by signal {_signal_name(number)}", "The end of the log may say more")
    return lost("unknown", "failed before its task had an outcome", "The end of the log may say more")


def unexplained(facts: JobFacts, ref: JobRef, grace_s: float, log_tail: str, log_path: str) -> Loss:
    """The loss of a task whose job said nothing was wrong, after the outcome was waited for in vain."""
    return Loss(
        "unknown",
        f"job {ref} ended ({facts.state.value}) without an outcome, {grace_s:.0f} s ago; its log is {log_path}",
        job=str(ref),
        node=facts.node,
        log_tail=log_tail,
        log_path=log_path,
    )


def names_memory(log_tail: str) -> bool:
    """Whether the end of a log says that something ran out of memory."""
    return bool(_OUT_OF_MEMORY.search(log_tail))


def _never_starts(facts: JobFacts, lost: Callable[[str, str, str], Loss]) -> Loss | None:
    if facts.state is not JobState.PENDING:
        return None
    for reason, meaning in _NEVER_STARTS.items():
        if facts.reason.replace("_", " ").startswith(reason):
            return lost("rejected", f"will never start: {meaning}", "Submit it again with other resources")
    return None


def _ran_out_of_memory(facts: JobFacts, log_tail: str) -> bool:
    """Clusters that only kill: the state says FAILED or CANCELLED, and the log says why."""
    killed = facts.signal == signal.SIGKILL or facts.exit_code == 128 + signal.SIGKILL
    return (killed or facts.state in (JobState.FAILED, JobState.CANCELLED)) and bool(_OUT_OF_MEMORY.search(log_tail))


def _launch_failed(facts: JobFacts) -> bool:
    return bool(_NOT_LAUNCHED.search(facts.reason))


def _evidence(facts: JobFacts) -> str:
    parts = []
    if facts.reason:
        parts.append(f"reason {facts.reason}")
    if facts.exit_code is not None:
        parts.append(f"exit code {facts.exit_code}")
    if facts.signal is not None and facts.signal != _STEPD_IO:
        parts.append(f"signal {_signal_name(facts.signal)}")
    return "".join(f", {part}" for part in parts)


def _signal_name(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


def _asked_memory(resources: Resources | None) -> str:
    if resources is None:
        return ""
    if resources.memory_max_gb is None:
        return " (it asked for no amount, so the cluster's default held)"
    return f" (memory_max {resources.memory_max_gb:g} GB)"


def _asked_time(resources: Resources | None) -> str:
    if resources is None:
        return ""
    if resources.run_time_max_s is None:
        return " (it asked for none, so the cluster's default held)"
    return f" (run_time_max {resources.run_time_max_s:g} s)"
