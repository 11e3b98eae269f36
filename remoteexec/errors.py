"""Every error of ours, one tree.

    RemoteExecError                     what you catch to catch all of them
    ├── ConfigError                     clusters.toml, its values, an option on the command line
    ├── TransportError                  between this machine and the cluster
    │   ├── ConnectError            (t) name, network, port, or the login took too long
    │   ├── AuthenticationFailed        key or password refused; never tried again by itself
    │   ├── HostKeyError                who answers is not who we know
    │   │   ├── HostKeyUnknown          no entry for this host yet
    │   │   └── HostKeyChanged          another key than the entry
    │   └── ConnectionLost          (t) was there, is gone
    ├── SchedulerError                  SLURM, or the scheduler of one machine
    │   ├── SubmitRejected              refused, in the scheduler's own words
    │   └── SchedulerUnavailable    (t) no answer, or not in time
    ├── RunnerError                     our side of the cluster
    │   ├── RunnerMissing               not installed, or not startable
    │   ├── PythonMismatch              another Python minor version than here
    │   ├── ProtocolMismatch            another remoteexec than here
    │   ├── UnsafeRoot                  root directory of somebody else, or open to others
    │   └── StoreError                  files cannot be written or read (disk full, quota)
    └── TaskError                       one call, its future raises it
        ├── CallNotPicklable            function or argument; also a pickle.PicklingError
        ├── ResultNotPicklable          what the function returned; also a pickle.PicklingError
        ├── RemoteTaskError             the function raised, and that class cannot be loaded here
        ├── CorruptOutcome              an outcome file that is not what its runner wrote
        └── TaskLost                    no outcome will come; `reason` says why
            ├── TaskTimeout             "timeout"
            ├── TaskOutOfMemory         "out_of_memory"
            ├── TaskNodeFailure         "node_failure"
            ├── TaskCancelled           "cancelled"
            ├── TaskPreempted           "preempted"
            ├── TaskKilled              "killed": a signal that none of the above explains
            ├── TaskRejected            "rejected": asks for what it can never get; also a SubmitRejected
            │   └── TaskOverQuota       "quota": more than account or QOS allow one job
            ├── TaskNeverStarted        "never_started": the scheduler could not launch it
            ├── TaskPythonMissing       "python_missing": its job found no Python
            ├── TaskImportError         "import_error": a module is missing there; also a RemoteTaskError
            ├── TaskStoreUnreachable    "store": the files of the session cannot be read or written
            └── TaskUnknownLoss         "unknown"

(t): `transient` is True, trying again later can help. An exception that the user's function raises is not in this tree:
it comes back as itself.

Every constructor takes the message as its one positional argument and evidence as keywords with defaults: an exception
is unpickled by calling its class with `args` and then restoring its attributes, so that both ends of a process boundary
see the same object.
"""

from __future__ import annotations

import pickle
from typing import Any, ClassVar

from remoteexec_server.wire.evidence import NOTHING, Evidence

__all__ = [
    "AuthenticationFailed",
    "CallNotPicklable",
    "ConfigError",
    "ConnectError",
    "ConnectionLost",
    "CorruptOutcome",
    "HostKeyChanged",
    "HostKeyError",
    "HostKeyUnknown",
    "ProtocolMismatch",
    "PythonMismatch",
    "RemoteExecError",
    "RemoteTaskError",
    "ResultNotPicklable",
    "RunnerError",
    "RunnerMissing",
    "SchedulerError",
    "SchedulerUnavailable",
    "StoreError",
    "SubmitRejected",
    "TaskCancelled",
    "TaskError",
    "TaskImportError",
    "TaskKilled",
    "TaskLost",
    "TaskNeverStarted",
    "TaskNodeFailure",
    "TaskOutOfMemory",
    "TaskOverQuota",
    "TaskPreempted",
    "TaskPythonMissing",
    "TaskRejected",
    "TaskStoreUnreachable",
    "TaskTimeout",
    "TaskUnknownLoss",
    "TransportError",
    "UnsafeRoot",
    "task_lost",
]


class RemoteExecError(Exception):
    """The root: what happened, the evidence, the next step.

    Attributes:
        transient: Whether the same thing may succeed when tried again later.
    """

    transient: bool = False

    def __init__(self, message: str = "") -> None:
        super().__init__(message)


class ConfigError(RemoteExecError):
    """A cluster's configuration is missing or holds a value that cannot be right."""


class TransportError(RemoteExecError):
    """Something between this machine and the cluster."""


class ConnectError(TransportError):
    """No connection was made: the name, the network, the port, or the time."""

    transient = True


class AuthenticationFailed(TransportError):
    """The cluster refused the key or the password; it is not tried again, since sites ban for that."""


class HostKeyError(TransportError):
    """The host key is not the one on file.

    Attributes:
        host: The name in known_hosts: `host`, or `[host]:port` where the port is not 22.
        key_type: For example "ssh-ed25519".
        fingerprint: Of the key that the server offered, "SHA256:...".
        known_hosts: Files that were searched.
    """

    def __init__(
        self,
        message: str = "",
        *,
        host: str = "",
        key_type: str = "",
        fingerprint: str = "",
        known_hosts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.host = host
        self.key_type = key_type
        self.fingerprint = fingerprint
        self.known_hosts = known_hosts


class HostKeyUnknown(HostKeyError):
    """No known_hosts file has a key for this host."""


class HostKeyChanged(HostKeyError):
    """The server offers another key than known_hosts has.

    Attributes:
        expected: Fingerprint of the key on file.
    """

    def __init__(
        self,
        message: str = "",
        *,
        host: str = "",
        key_type: str = "",
        fingerprint: str = "",
        known_hosts: tuple[str, ...] = (),
        expected: str = "",
    ) -> None:
        super().__init__(message, host=host, key_type=key_type, fingerprint=fingerprint, known_hosts=known_hosts)
        self.expected = expected


class ConnectionLost(TransportError):
    """The connection was there and is gone; what runs on the cluster goes on running."""

    transient = True


class SchedulerError(RemoteExecError):
    """The cluster's scheduler."""


class SubmitRejected(SchedulerError):
    """The scheduler refused a job for good, in its own words."""


class SchedulerUnavailable(SchedulerError):
    """The scheduler did not answer, or not in time."""

    transient = True


class RunnerError(RemoteExecError):
    """Our side of the cluster."""


class RunnerMissing(RunnerError):
    """The cluster side is not installed there, or does not start."""


class PythonMismatch(RunnerError):
    """Python here and there differ in their minor version; pickled functions of one crash the other.

    Attributes:
        here: The client's minor version, for example "3.11".
        there: The cluster's.
    """

    def __init__(self, message: str = "", *, here: str = "", there: str = "") -> None:
        super().__init__(message)
        self.here = here
        self.there = there


class ProtocolMismatch(RunnerError):
    """The two ends speak different versions of the wire."""


class UnsafeRoot(RunnerError):
    """The root directory belongs to somebody else or is open to others; nothing is read or written there."""


class StoreError(RunnerError):
    """The cluster's files cannot be written or read: disk full, quota, permissions."""


class TaskError(RemoteExecError):
    """One call; its future raises this.

    Attributes:
        task: Key of the task, "" where it has none yet.
    """

    def __init__(self, message: str = "", *, task: str = "") -> None:
        super().__init__(message)
        self.task = task


class CallNotPicklable(TaskError, pickle.PicklingError):
    """The function or an argument cannot be pickled; raised by `submit` itself."""


class ResultNotPicklable(TaskError, pickle.PicklingError):
    """The function returned something that cannot be pickled."""


class RemoteTaskError(TaskError):
    """The function raised an exception whose class cannot be loaded here.

    Attributes:
        type_name: Full name of that class, "package.module.Name".
        text: What `str` of the exception gave there.
    """

    def __init__(self, message: str = "", *, task: str = "", type_name: str = "", text: str = "") -> None:
        super().__init__(message, task=task)
        self.type_name = type_name
        self.text = text


class CorruptOutcome(TaskError):
    """An outcome file is not what its runner wrote; nothing of it was unpickled."""


class TaskLost(TaskError):
    """The task ended without an outcome, and none will come.

    Attributes:
        reason: which class this is, in a word: see the tree above.
        task: Key of the task.
        job: The scheduler's id of its job, None if it never had one.
        node: Name of the machine, None where unknown.
        exit_code: Of the job's process, None where unknown.
        signal: Number of the signal that ended it, None if none did or where unknown.
        log_tail: Last lines of the job's log.
        log_path: The log's path on the cluster.
        evidence: What the scheduler says: `evidence.state`, `.reason`, `.cancelled_by`, `.suggestion`, and
            `evidence.usage`, time in seconds and memory in bytes, used against allowed: `.time_s`, `.time_limit_s`,
            `.memory_bytes`, `.memory_limit_bytes`.
    """

    default_reason: ClassVar[str] = "unknown"

    def __init__(
        self,
        message: str = "",
        *,
        reason: str | None = None,
        task: str = "",
        job: str | None = None,
        node: str | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        log_tail: str = "",
        log_path: str | None = None,
        evidence: Evidence = NOTHING,
    ) -> None:
        super().__init__(message, task=task)
        self.reason = self.default_reason if reason is None else reason
        self.job = job
        self.node = node
        self.exit_code = exit_code
        self.signal = signal
        self.log_tail = log_tail
        self.log_path = log_path
        self.evidence = evidence


class TaskTimeout(TaskLost):
    """The job reached its time limit."""

    default_reason = "timeout"


class TaskOutOfMemory(TaskLost):
    """The job used more memory than it had asked for."""

    default_reason = "out_of_memory"


class TaskNodeFailure(TaskLost):
    """The machine went down under the job."""

    default_reason = "node_failure"


class TaskCancelled(TaskLost):
    """Somebody cancelled the job: scancel, an administrator, or this client."""

    default_reason = "cancelled"


class TaskPreempted(TaskLost):
    """The job had to make room for another."""

    default_reason = "preempted"


class TaskKilled(TaskLost):
    """A signal ended the process, and nothing says who sent it."""

    default_reason = "killed"


class TaskRejected(TaskLost, SubmitRejected):
    """The job asks for what it can never get: the scheduler took it, and would keep it waiting for ever."""

    default_reason = "rejected"


class TaskOverQuota(TaskRejected):
    """The job asks for more than its account or QOS allow one job. What is only full for now is waited for."""

    default_reason = "quota"


class TaskNeverStarted(TaskLost):
    """The scheduler could not launch the job: a node that did not boot, a prolog that failed, no place for its log."""

    default_reason = "never_started"


class TaskPythonMissing(TaskLost):
    """The job found no Python that can be run: exit code 126 or 127."""

    default_reason = "python_missing"


class TaskImportError(TaskLost, RemoteTaskError):
    """A module is missing on the cluster: one that the call needs, or one of ours."""

    default_reason = "import_error"


class TaskStoreUnreachable(TaskLost):
    """The session's files cannot be read or written from the node: full, not mounted, a stale handle, removed."""

    default_reason = "store"


class TaskUnknownLoss(TaskLost):
    """There is no telling."""


_LOST_CLASSES: dict[str, type[TaskLost]] = {
    lost.default_reason: lost
    for lost in (
        TaskTimeout,
        TaskOutOfMemory,
        TaskNodeFailure,
        TaskCancelled,
        TaskPreempted,
        TaskKilled,
        TaskRejected,
        TaskOverQuota,
        TaskNeverStarted,
        TaskPythonMissing,
        TaskImportError,
        TaskStoreUnreachable,
    )
}


def task_lost(reason: str, message: str, **facts: Any) -> TaskLost:
    """Make the TaskLost whose class fits the reason.

    Args:
        facts: the keywords of TaskLost.
    """
    return _LOST_CLASSES.get(reason, TaskUnknownLoss)(message, reason=reason, **facts)
