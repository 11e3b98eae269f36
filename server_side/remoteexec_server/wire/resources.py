"""What one task asks of the scheduler: a frozen dataclass, validated before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

__all__ = ["Resources", "ResourceError"]

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+@:,-]*"
_CONSTRAINT = r"[A-Za-z0-9_(\[!][A-Za-z0-9_.,:=&|*!()\[\]-]*"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_PMI_MODES = ("pmi1", "pmi2", "pmix")
_CONTROL = r"[\x00-\x1f\x7f]"


class ResourceError(ValueError):
    """A resource has a value that no scheduler may see."""


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
    extra: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __hash__(self) -> int:
        plain = [getattr(self, f.name) for f in fields(self) if f.name not in ("environment", "extra")]
        return hash((*plain, frozenset(self.environment.items()), frozenset(self.extra.items())))

    @property
    def cpus(self) -> int:
        """CPUs of the whole task."""
        return self.cores * self.threads_per_core

    def validate(self) -> None:
        """Refuse values that a template must never see.

        Raises:
            ResourceError: names key, value and rule.
        """
        for key, least in (("cores", 1), ("threads_per_core", 1), ("gpus_per_core", 0), ("num_nodes", 1)):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ResourceError(f"{key}={value!r}: must be a whole number of at least {least}")
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
