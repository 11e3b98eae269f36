"""How much memory is free, as the kernel's files say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.free_memory import available_bytes


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal:     8000 kB\nMemFree:   100 kB\nMemAvailable:    4000 kB\nHugePages_Total: 0\n"}
V2 = {
    **MACHINE,
    "proc/self/cgroup": "0::/slurm/job_1/step_0\n",
    "sys/fs/cgroup/slurm/job_1/step_0/memory.max": "max\n",
    "sys/fs/cgroup/slurm/job_1/step_0/memory.current": "500000\n",
    "sys/fs/cgroup/slurm/job_1/memory.max": "2000000\n",
    "sys/fs/cgroup/slurm/job_1/memory.current": "900000\n",
    "sys/fs/cgroup/slurm/job_1/memory.stat": "anon 1\nactive_file 7\ninactive_file 300000\n",
}
V1 = {
    **MACHINE,
    "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/slurm/uid_0/job_1\n1:name=systemd:/init.scope\n",
    "sys/fs/cgroup/memory/slurm/uid_0/job_1/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/slurm/uid_0/job_1/memory.usage_in_bytes": "1000\n",
    "sys/fs/cgroup/memory/slurm/uid_0/memory.limit_in_bytes": "3000000\n",
    "sys/fs/cgroup/memory/slurm/uid_0/memory.usage_in_bytes": "1000000\n",
    "sys/fs/cgroup/memory/slurm/uid_0/memory.stat": "inactive_file 5\ntotal_inactive_file 4000\n",
}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (MACHINE, 4000 * 1024),
        (V2, 2000000 - 900000 + 300000),
        (V1, 3000000 - 1000000 + 4000),
        ({**V2, "sys/fs/cgroup/slurm/job_1/memory.current": "9000000\n"}, 0),
        ({}, 0),
    ],
    ids=["no limit", "cgroup v2", "cgroup v1", "over its limit", "unknown"],
)
def test_it_is_the_least_of_what_machine_and_groups_have(tmp_path: Path, files: dict[str, str], found: int) -> None:
    assert available_bytes(tree(tmp_path, files)) == found


def test_a_real_machine_has_some() -> None:
    assert available_bytes() > 0
