"""What this process and this machine hand on to workers: paths, variables, directory, GPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from remoteexec_server.wire import pooled
from remoteexec_server.wire.resources import Resources

from . import mpi

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What threads_per_core sets."""
_GIB = 2**30
_KFD = "/sys/class/kfd/kfd/topology/nodes"
_CUDA, _ROCR = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"


def setup(resources: Resources, before: Mapping[str, str], follow: bool) -> pooled.Setup:
    """What a worker for these resources is made to be.

    Args:
        before: the environment it has otherwise.
        follow: it works where this process is now, unless the resources say otherwise.
    """
    threads = str(resources.threads_per_core)
    memory = resources.memory_max_gb
    return {
        "path": [place or os.getcwd() for place in sys.path],
        "cwd": expanded(resources.cwd) or (_here() if follow else None),
        "environment": {**_changes(before), **dict.fromkeys(THREADS, threads), **resources.environment},
        "error_log": expanded(resources.error_log_file),
        "memory_bytes": int(memory * _GIB) if memory is not None else None,
        "launch": mpi.launch(resources),
    }


def expanded(path: str | None) -> str | None:
    """A path as the user wrote it, absolute, `~` and `$NAME` replaced."""
    return None if path is None else os.path.abspath(os.path.expandvars(os.path.expanduser(path)))


def _here() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # somebody removed it
        return None


def _changes(before: Mapping[str, str]) -> dict[str, str | None]:
    """What of the environment is different now; None: it is gone."""
    now = os.environ
    changed: dict[str, str | None] = {name: value for name, value in now.items() if before.get(name) != value}
    for name in before:
        if name not in now:
            changed[name] = None
    return changed


def gpus() -> tuple[list[str], list[str]]:
    """Names of the GPUs that may be used, and the variables that show a task its own.

    Those the user lists in CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES, else those the machine has. Only one of the
    variables is used unless the user lists the same in both: ROCm would apply one after the other.
    """
    listed = {name: _names(os.environ[name]) for name in (_CUDA, _ROCR) if name in os.environ}
    if listed:
        found = next((names for names in listed.values() if names), [])
        return found, [name for name, names in listed.items() if names == found]
    devices = [name.removeprefix("nvidia") for name in _list("/dev") if name.startswith("nvidia")]
    nvidia = [number for number in devices if number.isdigit()]
    if nvidia:
        return sorted(nvidia, key=int), [_CUDA]
    amd = [node for node in _list(_KFD) if _read(f"{_KFD}/{node}/gpu_id") not in ("", "0")]
    return [str(number) for number in range(len(amd))], [_ROCR]


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
    return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
