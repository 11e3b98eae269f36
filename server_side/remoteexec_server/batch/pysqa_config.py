"""A site's pysqa configuration: a directory with `queue.yaml` and the templates it names. Only read.

    queue_type: SLURM
    queue_primary: short
    queues:
      short: {script: short.sh, cores_min: 1, cores_max: 40, run_time_max: 3600, memory_max: 64}

pysqa itself would clip a value beyond a limit, or believe it; here that is an error. `clusters.yaml` stands for the
file of its primary cluster.

Source: https://pysqa.readthedocs.io, read for 1.1.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..wire.resources import ResourceError, Resources

__all__ = ["PysqaConfig", "PysqaConfigError", "SiteQueue", "read"]

_QUEUE_TYPES = {
    "slurm": "SLURM",
    "flux": "FLUX",
    "pbs": "TORQUE",
    "torque": "TORQUE",
    "lsf": "LSF",
    "sge": "SGE",
    "moab": "MOAB",
}
_UNITS_GB = {"b": 2.0**-30, "k": 2.0**-20, "m": 2.0**-10, "g": 1.0, "t": 2.0**10}


class PysqaConfigError(ValueError):
    """The directory is not there, or not such a configuration; the message names the file and what is wrong."""


@dataclass(frozen=True)
class SiteQueue:
    """One queue of the site.

    Attributes:
        template: Jinja2 text of the job script; None: ours.
        cores_min: for each job; fewer are made as many.
        run_time_max_s: also the limit of a job that names none.
    """

    name: str
    template: str | None = None
    cores_min: int | None = None
    cores_max: int | None = None
    run_time_max_s: float | None = None
    memory_max_gb: float | None = None


@dataclass(frozen=True)
class PysqaConfig:
    """All queues of the site.

    Attributes:
        primary: the one for jobs that name none.
    """

    file: Path
    primary: str
    queues: Mapping[str, SiteQueue]

    def queue(self, resources: Resources) -> SiteQueue:
        """The queue whose rules hold for a job: that of its `partition`, else the primary one.

        Raises:
            ResourceError: its `partition` is none of the queues, and nothing the primary one's template would use.
        """
        primary = self.queues[self.primary]
        if resources.partition is None:
            return primary
        if resources.partition in self.queues:
            return self.queues[resources.partition]
        template = resources.submission_template or primary.template
        if template is not None and not re.search(r"\b(partition|queue)\b", template):
            raise ResourceError(
                f"partition={resources.partition!r}: {self.file} has the queues {', '.join(self.queues)}, "
                f"and the template of {self.primary!r} takes no partition"
            )
        return primary

    def applied(self, resources: Resources) -> Resources:
        """The resources with the queue's template and time limit, where they have none.

        Raises:
            ResourceError: a limit of the queue is exceeded; names the limit, and where it is written.
        """
        queue = self.queue(resources)
        cores = resources.cores * resources.threads_per_core
        for key, asked, most in (
            ("cores", cores, queue.cores_max),
            ("run_time_max", resources.run_time_max_s, queue.run_time_max_s),
            ("memory_max", resources.memory_max_gb, queue.memory_max_gb),
        ):
            if asked is not None and most is not None and asked > most:
                raise ResourceError(f"{key}={asked:g}: queue {queue.name!r} gives {most:g} at most ({self.file})")
        return replace(
            resources,
            submission_template=resources.submission_template or queue.template,
            run_time_max_s=resources.run_time_max_s or queue.run_time_max_s,
        )


def read(directory: str, scheduler: str) -> PysqaConfig:
    """Read a configuration.

    Args:
        directory: as the user wrote it; `~` and `$NAME` are replaced here.
        scheduler: one of `queues.NAMES`, which the configuration has to be for.

    Raises:
        PysqaConfigError: see there.
    """
    path = Path(os.path.expandvars(os.path.expanduser(directory)))
    if not path.is_dir():
        raise PysqaConfigError(f"pysqa_config_directory {directory!r}: there is no directory {str(path)!r} here")
    file = path / "queue.yaml"
    if not file.exists():
        file = path / _primary_cluster(path / "clusters.yaml", path)
    plain = _load(file)
    kind = plain.get("queue_type")
    if scheduler not in _QUEUE_TYPES:
        raise PysqaConfigError(f"{file} is for queue_type {kind!r}; scheduler {scheduler!r} has no such configuration")
    if kind != _QUEUE_TYPES[scheduler]:
        raise PysqaConfigError(
            f"{file} is for queue_type {kind!r}, but the scheduler is {scheduler!r}, "
            f"which pysqa calls {_QUEUE_TYPES[scheduler]!r}"
        )
    tables = plain.get("queues")
    if not isinstance(tables, dict) or not tables:
        raise PysqaConfigError(f"{file} has no queues")
    queues = {str(name): _queue(file, str(name), table) for name, table in tables.items()}
    primary = plain.get("queue_primary", next(iter(queues)))
    if primary not in queues:
        raise PysqaConfigError(f"{file}: queue_primary {primary!r} is none of its queues, {', '.join(queues)}")
    return PysqaConfig(file, primary, queues)


def _primary_cluster(file: Path, directory: Path) -> str:
    if not file.exists():
        raise PysqaConfigError(f"{str(directory)!r} has neither queue.yaml nor clusters.yaml")
    plain = _load(file)
    clusters, primary = plain.get("cluster"), plain.get("cluster_primary")
    if not isinstance(clusters, dict) or not isinstance(clusters.get(primary), str):
        raise PysqaConfigError(f"{file}: cluster_primary {primary!r} names no file below `cluster`")
    return str(clusters[primary])


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise PysqaConfigError(f"{file} cannot be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise PysqaConfigError(f"{file} is not valid YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(plain, dict):
        raise PysqaConfigError(f"{file} holds no table of settings, but {plain!r:.80}")
    return plain


def _queue(file: Path, name: str, table: object) -> SiteQueue:
    if not isinstance(table, dict):
        raise PysqaConfigError(f"{file}: queue {name!r} holds no table of settings, but {table!r:.80}")
    script, template = table.get("script"), None
    if script is not None:
        try:
            template = (file.parent / str(script)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise PysqaConfigError(f"{file}: the script of queue {name!r} cannot be read: {exc}") from exc
    least, most, seconds = (
        _number(file, name, key, table.get(key)) for key in ("cores_min", "cores_max", "run_time_max")
    )
    return SiteQueue(
        name,
        template,
        None if least is None else int(least),
        None if most is None else int(most),
        seconds,
        _gigabytes(file, name, table.get("memory_max")),
    )


def _number(file: Path, name: str, key: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise PysqaConfigError(f"{file}: {key} of queue {name!r} is {value!r}, which is no positive number")
    return value


def _gigabytes(file: Path, name: str, value: object) -> float | None:
    """A number of GB, or text with a unit: "64G", "64000M"; without one it is M, as pysqa has it."""
    if not isinstance(value, str):
        return _number(file, name, "memory_max", value)
    match = re.fullmatch(r"(\d+)([bBkKmMgGtT]?)[bB]?", value.strip())
    if match is None:
        raise PysqaConfigError(f"{file}: memory_max of queue {name!r} is {value!r}: write it as 64, '64G' or '64000M'")
    return int(match[1]) * _UNITS_GB[match[2].lower() or "m"]
