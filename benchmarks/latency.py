"""One trivial task on an idle SLURM, against `sbatch --wrap` on the same one: what our part of the way costs."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from cluster import installed
from report import Row, finish

from remoteexec import RemoteExecutor
from remoteexec.config import ClusterConfig
from tests.clusters.rootless import SlurmCluster

ALLOWED_S = 1.0


def trivial() -> None:
    pass


def sbatch_to_end_s(cluster: SlurmCluster, number: int) -> float:
    """From the start of sbatch until the job's last command has run; `sbatch --wait` itself takes 2 s at least."""
    done = cluster.home / f"done-{number}"
    began = time.perf_counter()
    cluster.run(["sbatch", "--output=/dev/null", "--wrap", f"true; : > {done}"])
    _await(done)
    return time.perf_counter() - began


def _await(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear: does SLURM start jobs?")
        time.sleep(0.001)


def ours_s(config: ClusterConfig) -> tuple[float, float, float]:
    """Seconds to connect, for the first task of an executor, and for the next one."""
    began = time.perf_counter()
    with RemoteExecutor(config) as executor:
        connected = time.perf_counter()
        executor.submit(trivial).result()
        first = time.perf_counter()
        executor.submit(trivial).result()
        second = time.perf_counter()
    return connected - began, first - connected, second - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9, help="times that both are measured, in turn")
    repeat = parser.parse_args().repeat
    plain: list[float] = []
    ours: list[tuple[float, float, float]] = []
    with installed() as (cluster, config):
        for number in range(repeat):
            plain.append(sbatch_to_end_s(cluster, number))
            ours.append(ours_s(config))
    base = statistics.median(plain)
    first, second, whole = (
        statistics.median(values)
        for values in zip(*((first, second, connect + first) for connect, first, second in ours), strict=True)
    )
    most = base + ALLOWED_S
    finish(
        "One trivial task on an idle SLURM, medians",
        [
            Row("sbatch --wrap true, until the job has ended", base, "s"),
            Row("first task of an executor, from submit to result", first, "s", most),
            Row("second task of an executor, from submit to result", second, "s", most),
            Row("first task, with connecting before it", whole, "s", most),
        ],
    )


if __name__ == "__main__":
    main()
