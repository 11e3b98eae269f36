"""What a scheduler or a template will not honour of what a task asks for: said once, never dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields

from ..wire.messages import Problem
from ..wire.resources import Resources
from .base import Queue

__all__ = ["Notices", "by_template", "notices"]

_KEYS = {"run_time_max_s": "run_time_max", "memory_max_gb": "memory_max"}
_WORDS = {
    "run_time_max_s": ("run_time_max", "run_time_minutes"),
    "memory_max_gb": ("memory_max", "memory_mb"),
    "threads_per_core": ("threads_per_core", "cores"),
    "partition": ("partition", "queue"),
    "slurm_cmd_args": ("slurm_cmd_args", "sbatch_arguments"),
}
"""Variables by which a template honours a resource, where they are called otherwise."""
_FOR_TEMPLATES = (
    "cores",
    "threads_per_core",
    "gpus_per_core",
    "num_nodes",
    "exclusive",
    "run_time_max_s",
    "memory_max_gb",
    "priority",
    "partition",
    "account",
    "qos",
    "reservation",
    "constraint",
    "slurm_cmd_args",
)


class Notices:
    """What users of a queue have not been told yet."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._told: set[str] = set()

    def new(self, resources: Iterable[Resources]) -> list[Problem]:
        """What is to be said before tasks with these resources are submitted; each text once."""
        texts = dict.fromkeys(text for each in resources for text in self._queue.unheeded(each))
        fresh = [text for text in texts if text not in self._told]
        self._told.update(fresh)
        return [Problem(text) for text in fresh]


def notices(resources: Resources, unheeded: Mapping[str, str]) -> list[str]:
    """A sentence for each resource that was asked for and is not honoured.

    Args:
        unheeded: why, by the name of the field.
    """
    return [f"{_asked(resources, name)} has no effect: {why}" for name, why in unheeded.items() if _is(resources, name)]


def by_template(resources: Resources) -> list[str]:
    """The same for a user's template, which honours what it has a variable for."""
    template = resources.submission_template
    if template is None:
        return []
    words = set(re.findall(r"\w+", " ".join(re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL))))
    dropped = [name for name in _FOR_TEMPLATES if not words.intersection(_WORDS.get(name, (name,)))]
    return notices(resources, dict.fromkeys(dropped, "the submission_template does not use it"))


def _asked(resources: Resources, name: str) -> str:
    return f"{_KEYS.get(name, name)}={getattr(resources, name)!r}"


def _is(resources: Resources, name: str) -> bool:
    """Whether it was asked for."""
    default = next(field.default for field in fields(Resources) if field.name == name)
    return bool(getattr(resources, name) != default)
