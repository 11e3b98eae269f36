"""What one task asks of the scheduler: a frozen dataclass, validated before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields

__all__ = ["ResourceError", "Resources", "Retry"]

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+@:,-]*"
_CONSTRAINT = r"[A-Za-z0-9_(\[!][A-Za-z0-9_.,:=&|*!()\[\]-]*"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_PMI_MODES = ("pmi1", "pmi2", "pmix")
_CONTROL = r"[\x00-\x1f\x7f]"


class ResourceError(ValueError):
    """A resource has a value that no scheduler may see."""


REASONS = (
    "error",
    "import_error",
    "killed",
    "never_started",
    "node_failure",
    "out_of_memory",
    "preempted",
    "python_missing",
    "store",
    "timeout",
    "unknown",
)
"""Why a task may be tried again: the reasons of `messages.Loss` that another attempt can help, and "error"."""
_SCALED = ("memory", "time")
_MOST_TIMES = 99
_WARN_S = 60
_MOST_WARN_S = 65535  # of sbatch --signal


@dataclass(frozen=True)
class Retry:
    """Which ends of a task are followed by another attempt, and what that asks for.

    What a user cancels, the scheduler refuses, or an input's failure ends is never tried again.

    Attributes:
        times: further attempts at most, 1 to 99.
        on: reasons, as `TaskLost.reason` has them: "timeout", "preempted", "node_failure", "out_of_memory", "killed",
            "never_started", "python_missing", "import_error", "store", "unknown"; and "error": the function raised.
        scale: factors of at least 1. "time" multiplies the time limit after a timeout, "memory" the memory after
            out_of_memory and after SIGKILL, each time anew.

    Raises:
        ResourceError: a value that cannot be; a ValueError.
    """

    times: int = 1
    on: Collection[str] = ("node_failure", "preempted", "timeout")
    scale: Mapping[str, float] = field(default_factory=lambda: {"memory": 2.0, "time": 1.5})

    def __post_init__(self) -> None:
        times, on, scale = (dict[str, object](vars(self))[name] for name in ("times", "on", "scale"))
        if isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= _MOST_TIMES:
            raise ResourceError(f"times={times!r}: must be a whole number from 1 to {_MOST_TIMES}")
        if isinstance(on, str) or not isinstance(on, Collection) or not on:
            raise ResourceError(f"on={on!r}: must be a set of reasons: {', '.join(REASONS)}")
        for reason in on:
            if reason not in REASONS:
                raise ResourceError(f"on: {reason!r} is no reason to try again; there are {', '.join(REASONS)}")
        if not isinstance(scale, Mapping):
            raise ResourceError(f'scale={scale!r}: must be a mapping, {{"memory": 2, "time": 1.5}}')
        for key, factor in scale.items():
            if key not in _SCALED:
                raise ResourceError(f"scale: {key!r} cannot be scaled; only {' and '.join(_SCALED)} can")
            if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor < 1e6:
                raise ResourceError(f"scale[{key!r}]={factor!r}: must be a number of at least 1")
        # equal ones share an array, and are the same after they have travelled
        object.__setattr__(self, "on", tuple(sorted(set(self.on))))
        object.__setattr__(self, "scale", {key: float(self.scale[key]) for key in sorted(self.scale)})

    def __hash__(self) -> int:
        return hash((self.times, self.on, tuple(self.scale.items())))


@dataclass(frozen=True)
class Resources:
    """What one task needs; equal resources share one job array.

    Attributes:
        cores: MPI ranks, >= 1.
        threads_per_core: cores reserved for each rank and the value of OMP_NUM_THREADS and its relatives.
        gpus_per_core: GPUs for each rank.
        num_nodes: nodes the ranks are spread over.
        exclusive: no other job on the nodes.
        run_time_max_s: walltime in seconds; the scheduler's limit is rounded up to its own unit.
        memory_max_gb: memory of the whole job in GB (2**30 bytes), rounded up to MB.
        priority: passed on as it is.
        partition: partition or queue; None is the cluster's default.
        account: account that is charged.
        qos: quality of service.
        reservation: reservation the job runs in.
        constraint: node features, as SLURM writes them: "gpu&fast", "[rack1|rack2]".
        job_name: shown by the scheduler behind our own name of the job.
        openmpi_oversubscribe: more ranks than Open MPI counts cores; MPICH does not count.
        pmi_mode: how MPI ranks find each other: "pmi1", "pmi2" or "pmix"; None is what was found out on the cluster.
        environment: variables the task sees, beside those it has anyway.
        cwd: directory the task runs in, made if missing; None is the runner's job directory.
        error_log_file: function, arguments and traceback of a call that fails are appended to it.
        slurm_cmd_args: further sbatch options, one list entry each.
        submission_template: Jinja2 text used instead of ours.
        retry: whether a task that dies is tried again; None: never.
        warn_time_s: seconds before the time limit at which `checkpoint` saves; None: 60 where a timeout or a preemption
            is followed by another attempt, else never.
        extra: every other key, for the template alone.
    """

    cores: int = 1
    threads_per_core: int = 1
    gpus_per_core: int = 0
    num_nodes: int | None = None
    exclusive: bool = False
    run_time_max_s: float | None = None
    memory_max_gb: float | None = None
    priority: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    job_name: str | None = None
    openmpi_oversubscribe: bool = False
    pmi_mode: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    error_log_file: str | None = None
    slurm_cmd_args: tuple[str, ...] = ()
    submission_template: str | None = None
    retry: Retry | None = None
    warn_time_s: int | None = None
    extra: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __hash__(self) -> int:
        plain = [getattr(self, f.name) for f in fields(self) if f.name not in ("environment", "extra")]
        return hash((*plain, frozenset(self.environment.items()), frozenset(self.extra.items())))

    @property
    def cpus(self) -> int:
        """CPUs of the whole task."""
        return self.cores * self.threads_per_core

    @property
    def warning_s(self) -> int | None:
        """How long before the time limit a task is warned; None: it is not."""
        if self.warn_time_s is None and self.retry is not None and {"timeout", "preempted"} & set(self.retry.on):
            return _WARN_S
        return self.warn_time_s

    def validate(self) -> None:
        """Refuse values that a template must never see.

        Raises:
            ResourceError: names key, value and rule.
        """
        for key, least in (("cores", 1), ("threads_per_core", 1), ("gpus_per_core", 0), ("num_nodes", 1)):
            value = getattr(self, key)
            if value is None and key == "num_nodes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ResourceError(f"{key}={value!r}: must be a whole number of at least {least}")
        retry, warn = (dict[str, object](vars(self))[name] for name in ("retry", "warn_time_s"))
        if retry is not None and not isinstance(retry, Retry):
            raise ResourceError(f"retries={retry!r}: must be a Retry")
        if warn is not None and (isinstance(warn, bool) or not isinstance(warn, int) or not 1 <= warn <= _MOST_WARN_S):
            raise ResourceError(f"warn_time={warn!r}: must be whole seconds from 1 to {_MOST_WARN_S}")
        for key in ("run_time_max_s", "memory_max_gb"):
            value = getattr(self, key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
                raise ResourceError(
                    f"{key.removesuffix('_s').removesuffix('_gb')}={value!r}: must be a positive number"
                )
        if self.priority is not None and (isinstance(self.priority, bool) or not isinstance(self.priority, int)):
            raise ResourceError(f"priority={self.priority!r}: must be a whole number")
        for key in ("exclusive", "openmpi_oversubscribe"):
            if not isinstance(getattr(self, key), bool):
                raise ResourceError(f"{key}={getattr(self, key)!r}: must be True or False")
        for key in ("partition", "account", "qos", "reservation", "job_name"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, str) and re.fullmatch(_NAME, value)):
                raise ResourceError(
                    f"{key}={value!r}: letters, digits and _ . + @ : , - only, not starting with a dash or a dot"
                )
        constraint: object = self.constraint
        if constraint is not None and not (isinstance(constraint, str) and re.fullmatch(_CONSTRAINT, constraint)):
            raise ResourceError(f"constraint={self.constraint!r}: names of features joined by & | , * ( ) [ ] only")
        if self.pmi_mode is not None and self.pmi_mode not in _PMI_MODES:
            raise ResourceError(f"pmi_mode={self.pmi_mode!r}: must be one of {', '.join(_PMI_MODES)}")
        self._validate_texts()

    def _validate_texts(self) -> None:
        """Refuse text that could end its line in a script, or its variable."""
        if not isinstance(self.environment, Mapping):
            raise ResourceError(f"environment={self.environment!r}: must be a mapping of names to text")
        for key, value in dict[str, object](self.environment).items():
            if not re.fullmatch(_VARIABLE, str(key)):
                raise ResourceError(f"environment: {key!r} is no name of a variable: letters, digits and _")
            if not isinstance(value, str) or "\0" in value:
                raise ResourceError(f"environment[{key!r}]={value!r}: must be text without a zero character")
        if not isinstance(self.slurm_cmd_args, tuple):
            raise ResourceError(f"slurm_cmd_args={self.slurm_cmd_args!r}: must be a tuple, one option each")
        if self.submission_template is not None and not isinstance(self.submission_template, str):
            raise ResourceError(f"submission_template={self.submission_template!r}: must be Jinja2 text")
        texts: list[tuple[str, object]] = [("slurm_cmd_args", value) for value in self.slurm_cmd_args]
        for key, value in [
            *texts,
            *([(key, getattr(self, key)) for key in ("cwd", "error_log_file") if getattr(self, key) is not None]),
        ]:
            if not isinstance(value, str) or not value or re.search(_CONTROL, value):
                raise ResourceError(f"{key}={value!r}: must be text without line breaks or control characters")
        for key, value in dict[str, object](self.extra).items():
            if not re.fullmatch(_VARIABLE, str(key)):
                raise ResourceError(f"{key!r}: a template's variable is named with letters, digits and _")
            if not isinstance(value, (str, int, float, bool)) or (
                isinstance(value, str) and re.search(_CONTROL, value)
            ):
                raise ResourceError(f"{key}={value!r}: must be a number or text without line breaks")
