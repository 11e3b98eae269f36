"""What this process and this machine hand on to workers: paths, variables, directory, GPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from remoteexec_server.wire import pooled
from remoteexec_server.wire.resources import Resources

from .mpi import Launch
from .tasks import GpuVariables

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What threads_per_core sets."""
_GIB = 2**30
_KFD = "/sys/class/kfd/kfd/topology/nodes"
_CUDA, _ROCR = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def setup(
    resources: Resources, launch: Launch | None, before: Mapping[str, str], follow: bool, threads: bool
) -> pooled.Setup:
    """What a worker for these resources is made to be.

    Args:
        launch: how its ranks are started, if it has any.
        before: the environment it has otherwise.
        follow: it works where this process is now, unless the resources say otherwise.
        threads: the resources say how many threads there are to be; otherwise one, so that workers do not take each
            other's cores, or what the user's own environment says.
    """
    says = threads or resources.threads_per_core != 1
    count = str(resources.threads_per_core)
    return {
        "path": places(),
        "cwd": expanded(resources.cwd) or (here() if follow else None),
        "environment": {
            **_changes(before),
            **{name: count for name in THREADS if says or name not in os.environ},
            **resources.environment,
        },
        "error_log": expanded(resources.error_log_file),
        "memory_bytes": memory_bytes(resources),
        "launch": launch,
    }


def places() -> list[str]:
    """Where modules are found here, by absolute paths; not in a working directory that somebody has removed."""
    found = [place or here() for place in sys.path]
    return [place for place in found if place is not None]


def memory_bytes(resources: Resources) -> int | None:
    """The most data that a process may have; None: there is no limit."""
    return None if resources.memory_max_gb is None else int(resources.memory_max_gb * _GIB)


def expanded(path: str | None) -> str | None:
    """A path as the user wrote it, absolute, `~` and `$NAME` replaced."""
    return None if path is None else os.path.abspath(os.path.expandvars(os.path.expanduser(path)))


def here() -> str | None:
    """The working directory; None: somebody has removed it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _changes(before: Mapping[str, str]) -> dict[str, str | None]:
    """What of the environment is different now; None: it is gone."""
    now = os.environ
    changed: dict[str, str | None] = {name: value for name, value in now.items() if before.get(name) != value}
    for name in before:
        if name not in now:
            changed[name] = None
    return changed


def gpus() -> tuple[list[str], GpuVariables]:
    """Names of the GPUs that may be used, and the variables that show a task its own.

    Those the user lists in CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES, else those the machine has. If he lists some
    in both, a GPU has a name in each, and a task is told both. But ROCm applies one list to what the other has left:
    there a task is told the outer one alone.
    """
    listed = {name: _names(os.environ[name]) for name in (_CUDA, _ROCR) if name in os.environ}
    lists = {name: names for name, names in listed.items() if names}
    if len(lists) == 2 and _amd():
        outer = lists[_ROCR]
        inner = [outer[int(name)] for name in lists[_CUDA] if name.isdigit() and int(name) < len(outer)]
        return inner, {_ROCR: {name: name for name in inner}, _CUDA: None}
    if listed:
        found = [names[0] for names in zip(*lists.values(), strict=False)] if lists else []
        return found, {name: dict(zip(found, names, strict=False)) for name, names in lists.items()}
    devices = [name.removeprefix("nvidia") for name in _list("/dev") if name.startswith("nvidia")]
    nvidia = [number for number in devices if number.isdigit()]
    if nvidia:
        nvidia.sort(key=int)
        return nvidia, {_CUDA: {name: name for name in nvidia}}
    amd = [str(number) for number in range(_amd())]
    return amd, {_ROCR: {name: name for name in amd}}


def _amd() -> int:
    """GPUs that ROCm knows here."""
    return len([node for node in _list(_KFD) if _read(f"{_KFD}/{node}/gpu_id") not in ("", "0")])


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _names(listed: str) -> list[str]:
    """What a list shows: CUDA ignores what follows the first that cannot be, -1 say; and a GPU is one however often."""
    found: dict[str, None] = {}
    for name in listed.split(","):
        name = name.strip()
        if name in ("", "NoDevFiles") or name.startswith("-"):
            break
        found[name] = None
    return list(found)
