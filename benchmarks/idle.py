"""What waiting costs: a laptop, a gateway and a scheduler with 1,000 tasks pending and nothing to do.

Every node is drained, so nothing starts. Scheduler commands are counted by wrappers that are found before them on the
login node's PATH.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

from cluster import installed
from report import Row, finish

from remoteexec import RemoteExecutor
from tests.clusters.rootless import SlurmCluster

TASKS = 1_000
SETTLE_S = 15.0  # the helper that submits ends after 10 s without work
COMMANDS = ("squeue", "sacct", "scontrol", "sinfo", "sbatch", "scancel")


def trivial(number: int) -> int:
    return number


def count_commands(cluster: SlurmCluster) -> Path:
    """Have every scheduler command of a login shell write a line to a file, which is returned."""
    log, wrappers = cluster.home / "commands", cluster.make_directory("wrappers")
    cluster.run(["touch", str(log)])
    for command in COMMANDS:
        script = f'#!/bin/sh\necho {command} >> {log}\nexec /usr/bin/{command} "$@"\n'
        cluster.run(["tee", str(wrappers / command)], input=script)
        cluster.run(["chmod", "755", str(wrappers / command)])
    cluster.run(["tee", str(cluster.home / ".profile")], input=f"PATH={wrappers}:$PATH\n")
    return log


def gateway(root: str) -> Path:
    """The /proc directory of the gateway that serves this root."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"gateway" in words and root.encode() in words:
            return process
    raise LookupError(f"no gateway for {root}")


def cpu_s(process: Path) -> float:
    """CPU time of a process and of the children it has waited for."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: Path) -> float:
    """Resident memory now."""
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    minutes = parser.parse_args().minutes
    with installed() as (cluster, config):
        for node in cluster.nodes:
            cluster.drain(node)
        log = count_commands(cluster)
        with RemoteExecutor(replace(config, login_shell=True)) as executor:
            executor.map(trivial, range(TASKS))
            if not executor._driver.wait_sent(60):
                raise TimeoutError("the tasks were not accepted")
            time.sleep(SETTLE_S)
            process = gateway(config.root)
            before = len(log.read_text().split()), cpu_s(process), time.process_time()
            time.sleep(minutes * 60)
            after = len(log.read_text().split()), cpu_s(process), time.process_time()
            memory = memory_mb(process)
            pending = len(executor)
            executor.shutdown(cancel_futures=True)
    assert pending == TASKS
    queries, remote, local = (late - early for early, late in zip(before, after, strict=True))
    finish(
        f"{TASKS:,} pending tasks for {minutes:g} minutes",
        [
            Row("scheduler commands a minute", queries / minutes, most=4),
            Row("CPU of the gateway and its children", remote / minutes / 60 * 100, "% of a core", 1),
            Row("memory of the gateway", memory, "MB", 60),
            Row("CPU of the client", local / minutes / 60 * 100, "% of a core", 1),
        ],
    )


if __name__ == "__main__":
    main()
