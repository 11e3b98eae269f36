"""Why did a job end without an outcome? Pure: what the scheduler says and the end of the log, in; a `Loss`, out.

The runner's supervisor explains most ends by itself. Here is what only the scheduler knows: limits, nodes,
cancellations, preemption, and SIGKILL; and what only the log of a job says whose runner did not get as far as its task.
`None` means undecided: the outcome may only be late.

Source: https://slurm.schedmd.com/squeue.html and resource_limits.html, job_state_reason.c, and outputs recorded from
SLURM 22.05 to 26.05 (tests/unit/recorded).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .. import exits
from ..wire.evidence import Evidence, Usage
from ..wire.messages import Loss
from ..wire.resources import Resources
from . import advice
from .base import JobFacts, JobRef, JobState

__all__ = ["TOO_MUCH_NOW", "loss", "names_memory", "too_large", "unexplained", "waiting"]

TOO_MUCH_NOW = "PartitionConfig"
"""SLURM's reason for a job that asks for more than the partition has: nodes that are down, or that there are not."""

_EX_IOERR = 74
"""The runner's exit code for "neither outcome nor loss could be written"."""
_NO_COMMAND = (126, 127)
"""A shell's exit codes for a command that cannot be run, or is not there."""
_SEE_LOG = "The end of the log may say more"
_STEPD_IO = 53
"""Not a signal: slurmstepd's way to say that it could not set up the job's files."""

_OUT_OF_MEMORY = re.compile(
    r"oom[-_ ]kill|out[ -]of[ -]memory|exceeded (job |step )?memory limit|memory limit exceeded", re.IGNORECASE
)
_TIME_LIMIT = re.compile(r"DUE TO TIME LIMIT", re.IGNORECASE)
_NODE_FAILURE = re.compile(r"DUE TO (NODE FAILURE|JOB REQUEUE)", re.IGNORECASE)
_PREEMPTION = re.compile(r"DUE TO PREEMPTION", re.IGNORECASE)
_NOT_LAUNCHED = re.compile(r"launch_?failed|launch failed|JobLaunchFailure|RECONFIG_FAIL", re.IGNORECASE)
_IMPORT = re.compile(r"^(ModuleNotFoundError|ImportError): (.*)$", re.MULTILINE)
_NO_PYTHON = re.compile(r"^Fatal Python error: .*$|No module named 'encodings'", re.MULTILINE)
_NO_STORE = re.compile(
    r"Stale (NFS )?file handle|can't open file '.*|^(FileNotFoundError|PermissionError|OSError): .*|Input/output error"
    r"|Transport endpoint is not connected|Remote I/O error|cannot write to the store.*",
    re.MULTILINE,
)

_NEVER_STARTS = {
    "DependencyNeverSatisfied": "a job it depends on ended in a way that it does not accept",
    "PartitionTimeLimit": "its time limit is beyond that of the partition",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives to a job",
    "BadConstraints": "no node has what it asks for",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "AccountNotAllowed": "its account may not use the partition",
    "QOSNotAllowed": "its QOS may not be used with this account or partition",
    "ReservationDeleted": "its reservation was deleted",
    "ReservationInvalid": "its reservation is not valid",
}
"""Reasons of a job, pending or ended before it began, for which only the one who submitted it can do something."""
_NOT_LAUNCHABLE = {
    "launch failed requeued held": "the scheduler could not launch it, and holds it since",
    "JobHoldMaxRequeue": "it was queued again too many times, and is held since",
}
_HELD = {
    "JobHeldAdmin": "an administrator holds it, who can release it",
    "JobHeldUser": "you, or a tool of yours, hold it: `scontrol release` ends that",
    "QOSUsageThreshold": "its account has used up its share",
    TOO_MUCH_NOW: "it asks for more than the partition has now",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "ReqNodeNotAvail": "a node it needs is down, drained or reserved",
}
"""Reasons to wait that may last, and are nobody's error: such a job keeps its place in the queue."""


_AFTER_SIGNAL = {
    "SIGKILL": "Often that is memory: try more with memory_max; else the end of the log may say more",
    "SIGSEGV": "A crash in compiled code is the usual reason; `python -X faulthandler` shows where",
    "SIGBUS": "A file that was cut short or a full /dev/shm is the usual reason",
    "SIGXCPU": "A limit on CPU time: `ulimit -t` tells",
    "SIGXFSZ": "A limit on the size of files: `ulimit -f` tells",
}
"""What to do about a signal; by name, as not every system has all of them."""


@dataclass(frozen=True)
class _Case:
    """What is known of one job."""

    facts: JobFacts
    ref: JobRef
    log_tail: str
    log_path: str | None
    resources: Resources | None

    @property
    def usage(self) -> Usage:
        """The scheduler's, completed by the runner's own record, which misses no peak."""
        usage, seen = self.facts.usage, exits.parse(self.log_tail)
        if seen is None:
            return usage
        return replace(
            usage,
            time_s=usage.time_s if usage.time_s is not None else seen.time_s,
            memory_bytes=max(usage.memory_bytes or 0, seen.memory_bytes),
        )

    def lost(self, reason: str, what: str, advice: str = "", suggestion: str = "") -> Loss:
        """The loss: what happened, where, the evidence, what to do.

        Args:
            suggestion: what to change, where it is more than general advice.
        """
        facts = self.facts
        where = f" on {facts.node}" if facts.node else ""
        said = f"{what}{where} (state {facts.state.value}{_evidence(facts)})"
        todo = "; ".join(part for part in (advice, suggestion) if part)
        log = f"; its log is {self.log_path}" if self.log_path else ""
        return Loss(
            reason,
            f"job {self.ref} {said}{'. ' if todo else ''}{todo}{log}",
            job=str(self.ref),
            node=facts.node,
            exit_code=facts.exit_code,
            signal=facts.signal if facts.signal != _STEPD_IO else None,
            log_tail=self.log_tail,
            log_path=self.log_path,
            evidence=Evidence(facts.state.value, facts.reason, facts.cancelled_by, self.usage, suggestion or advice),
        )


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
    case = _Case(facts, ref, log_tail, log_path, resources)
    if facts.state is JobState.PENDING:
        return _never_starts(case)
    if not facts.state.ended or facts.state in (JobState.COMPLETED, JobState.GONE):
        return None
    return next(_causes(case))


def unexplained(facts: JobFacts, ref: JobRef, grace_s: float, log_tail: str, log_path: str) -> Loss:
    """The loss of a task whose job said nothing was wrong, after the outcome was waited for in vain."""
    return Loss(
        "unknown",
        f"job {ref} ended ({facts.state.value}) without an outcome, {grace_s:.0f} s ago; its log is {log_path}",
        job=str(ref),
        node=facts.node,
        log_tail=log_tail,
        log_path=log_path,
        evidence=Evidence(facts.state.value, facts.reason, facts.cancelled_by, facts.usage),
    )


def too_large(facts: JobFacts, ref: JobRef, resources: Resources, lacking: str) -> Loss:
    """The loss of a job that waits for what the cluster does not have.

    Args:
        lacking: what it asks for, against what there is.
    """
    what = f"will never start: it asks for {lacking}"
    case = _Case(facts, ref, "", None, resources)
    return case.lost("rejected", what, "Ask for less", advice.remedy("node configuration is not available"))


def names_memory(log_tail: str) -> bool:
    """Whether the end of a log says that something ran out of memory."""
    return bool(_OUT_OF_MEMORY.search(log_tail))


def waiting(facts: JobFacts, ref: JobRef) -> str | None:
    """What the user should know about a job that waits, if that may take long and is not plain queueing."""
    if facts.state is not JobState.PENDING:
        return None
    plain = facts.reason.partition(",")[0].strip("()")  # "ReqNodeNotAvail, UnavailableNodes:n1"
    if plain in _HELD:
        return f"job {ref} waits: {_HELD[plain]} ({facts.reason})"
    return None


def _never_starts(case: _Case) -> Loss | None:
    reason = case.facts.reason.replace("_", " ")
    for known, meaning in _NOT_LAUNCHABLE.items():
        if reason.startswith(known):
            return case.lost(
                "never_started", f"will never start: {meaning}", "Submit it again; the site's staff has the node's log"
            )
    if advice.beyond_one_job(case.facts.reason):
        what = f"will never start: it asks for more than {case.facts.reason} allows one job"
        return case.lost("quota", what, "Ask for less", advice.remedy("accounting/QOS policy"))
    return _rejected(case, "will never start")


def _rejected(case: _Case, what: str) -> Loss | None:
    for known, meaning in _NEVER_STARTS.items():
        if case.facts.reason.replace("_", " ").startswith(known):
            return case.lost(
                "rejected", f"{what}: {meaning}", "Submit it again with other resources", _other(known, case.resources)
            )
    return None


def _other(reason: str, resources: Resources | None) -> str:
    """Which of the resources it is about, and how to find out what there is."""
    if resources is None:
        return ""
    match reason:
        case "PartitionTimeLimit" if resources.run_time_max_s is not None:
            return f"run_time_max={resources.run_time_max_s:g}: {_after_colon(advice.remedy('time limit'))}"
        case "PartitionNodeLimit" if resources.num_nodes is not None:
            return f"num_nodes={resources.num_nodes}: `scontrol show partition` says MaxNodes"
        case "BadConstraints":
            return advice.remedy("node configuration is not available")
        case "InvalidAccount" | "AccountNotAllowed":
            return advice.remedy("invalid account")
        case "InvalidQOS" | "QOSNotAllowed":
            return advice.remedy("invalid qos")
        case "ReservationDeleted" | "ReservationInvalid":
            return advice.remedy("reservation")
    return ""


def _after_colon(text: str) -> str:
    return text.partition(": ")[2]


def _causes(case: _Case) -> Iterator[Loss]:
    """What explains the end, the most certain first; the last explains anything."""
    facts, log = case.facts, case.log_tail
    if facts.state is JobState.OUT_OF_MEMORY or _ran_out_of_memory(facts, log):
        used = advice.memory_used(case.resources, case.usage)
        ask = advice.memory(case.resources, case.usage)
        yield case.lost("out_of_memory", f"ran out of memory{used}", "Ask for more", ask)
    if facts.state is JobState.TIMEOUT and facts.reason.upper() == "DEADLINE":
        yield case.lost("timeout", "did not end before its deadline", "Submit it with a later --deadline")
    if facts.state is JobState.TIMEOUT or _TIME_LIMIT.search(log):
        used = advice.time_used(case.resources, case.usage)
        yield case.lost(
            "timeout", f"reached its time limit{used}", "Ask for more", advice.time(case.resources, case.usage)
        )
    if facts.state is JobState.PREEMPTED or _PREEMPTION.search(log):
        yield case.lost("preempted", "had to make room for another job", "Submit it again, or use another partition")
    if facts.reason == "BOOT_FAIL":
        yield case.lost("never_started", "was never started: its node did not boot", "Submit it again")
    if facts.state is JobState.NODE_FAIL or facts.reason == "NodeDown" or _NODE_FAILURE.search(log):
        yield case.lost("node_failure", "lost its node", "The task itself is not to blame: submit it again")
    if facts.state is JobState.CANCELLED:
        by = f" by {facts.cancelled_by}" if facts.cancelled_by else ""
        whom = "" if facts.cancelled_by == "its owner" else "If it was not you, ask the site's staff"
        yield case.lost("cancelled", f"was cancelled{by}", whom)
    rejected = _rejected(case, "was refused after it was submitted")
    if rejected is not None:
        yield rejected
    yield from _causes_of_a_failure(case)


def _causes_of_a_failure(case: _Case) -> Iterator[Loss]:
    """The job's script, or the runner in it, failed by itself."""
    facts = case.facts
    if facts.exit_code == _EX_IOERR:
        yield case.lost("store", "could not write its result to the store", "Look for a full disk or an exceeded quota")
    if facts.signal == _STEPD_IO or (facts.signal is None and not facts.exit_code and _launch_failed(facts)):
        yield case.lost(
            "never_started",
            "was never started by the scheduler, which could not launch it",
            "See the reason: often its log or directory cannot be made there; the site's staff has the node's log",
        )
    if facts.exit_code in _NO_COMMAND:
        yield case.lost(
            "python_missing",
            f"could not run its Python{_quoted(_last_line(case.log_tail))}",
            "It must be there, at the same path, on every node: `remoteexec check` tells",
        )
    if facts.exit_code and facts.exit_code < 128:
        yield from _causes_in_the_log(case)
    if facts.signal is not None or (facts.exit_code or 0) > 128:
        number = facts.signal or (facts.exit_code or 0) - 128
        used = advice.memory_used(case.resources, case.usage) if number == signal.SIGKILL else ""
        yield case.lost(
            "killed",
            f"was ended by signal {_signal_name(number)}{used}",
            next((advice for name, advice in _AFTER_SIGNAL.items() if name in _signal_name(number)), _SEE_LOG),
        )
    yield case.lost("unknown", "failed before its task had an outcome", _SEE_LOG)


def _causes_in_the_log(case: _Case) -> Iterator[Loss]:
    """A runner that failed before it had its task: so far all of the log is its own, none of it the user's."""
    if _NO_PYTHON.search(case.log_tail):
        yield case.lost(
            "python_missing",
            f"could not start its Python{_quoted(_NO_PYTHON.search(case.log_tail))}",
            "The installation on the node is not whole: `remoteexec check` tells",
        )
    missing = _IMPORT.search(case.log_tail)
    if missing is not None:
        yield case.lost(
            "import_error",
            f"could not import what it needs{_quoted(missing)}",
            "Complete the environment: `remoteexec install NAME`",
        )
    unreachable = _NO_STORE.search(case.log_tail)
    if unreachable is not None:
        yield case.lost(
            "store",
            f"could not reach the store{_quoted(unreachable)}",
            "The root directory must be there, at the same path, on every node, and not be removed while jobs wait",
        )


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


def _quoted(found: re.Match[str] | str | None) -> str:
    text = found[0] if isinstance(found, re.Match) else found
    return f": {text.strip()}" if text else ""


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""
