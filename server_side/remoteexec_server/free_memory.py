"""How much memory is free here: of the machine, and of what the job may have of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Files of a cgroup: what it may have and what it has; and what of that, in `memory.stat`, is given up when need be.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html, read for Linux 6.1.
"""


def available_bytes(root: Path = Path("/")) -> int:
    """What can be had before something has to end; 0 where that is not known.

    Args:
        root: where `proc` and `sys` are.
    """
    return max(0, min([_of_machine(root), *_of_groups(root)]))


def _of_machine(root: Path) -> int:
    return _numbers(root / "proc/meminfo").get("MemAvailable:", 0) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Of the groups that limit this process and of those above them, as far as they are seen from here."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, files = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            top, files = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        group = top / path.lstrip("/")
        for each in (group, *group.parents):
            if each.is_relative_to(top):
                yield from _of_group(each, *files)


def _of_group(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    most, used = _text(group / limit).strip(), _text(group / usage).strip()
    if most.isdigit() and used.isdigit():  # else it has none, or says "max"
        yield int(most) - int(used) + _numbers(group / "memory.stat").get(reclaimable, 0)


def _numbers(file: Path) -> dict[str, int]:
    rows = [line.split() for line in _text(file).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
