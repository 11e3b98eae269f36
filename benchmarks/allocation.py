"""All nodes of an allocation behind one executor: beside this machine's alone, steps of SLURM, and other executors.

    python benchmarks/allocation.py [--repeats 3] [--only calls,fresh,first,shared,mpi,placing] [--executorlib]

The cluster is a rootless SLURM of four nodes on this machine; each line runs as its user inside `salloc -N4`. What is
compared is measured in turn, and each ratio is the median of those within one repeat. `--executorlib` installs
executorlib beside the cluster's Python and measures it too; mpi4py.futures is measured where mpi4py is installed.
`placing` is a simulation and starts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
NODES, CPUS = 4, 4
EMPTY, FRESH, FEW, SHARED, RANKS = 5_000, 200, 20, 400, 20
VALUES = 12_500_000  # 100 MB
IMPORT = "from mpi4py import MPI"


def same(value: Any) -> Any:
    return value


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ---- inside the allocation ----


def executor(**options: Any) -> Any:
    from remoteexec import SlurmJobExecutor

    return SlurmJobExecutor(**options)


def node() -> str | None:
    return os.environ.get("SLURMD_NODENAME")


def all_of(exe: Any, count: int, where: Callable[[], object] = os.getpid) -> float:
    """Seconds for each of many empty calls, once every worker, or what `where` says, has had some."""
    while len({future.result() for future in [exe.submit(where) for _ in range(100)]}) < NODES:
        pass
    return timed(lambda: [future.result() for future in [exe.submit(same, n) for n in range(count)]]) / count


def calls() -> dict[str, float]:
    """Seconds for each of 5,000 empty calls on four kept workers: one on each node, and all on this machine."""
    from remoteexec import SingleNodeExecutor

    with executor(max_workers=NODES, block_allocation=True) as exe:
        across = all_of(exe, EMPTY)
    with SingleNodeExecutor(NODES, block_allocation=True) as exe:
        here = all_of(exe, EMPTY)
    return {"ours": across, "SingleNodeExecutor": here, **_mpi_futures()}


def _mpi_futures() -> dict[str, float]:
    """The same through mpi4py.futures: a step of a master and four workers."""
    argv = [*_srun_mpi(NODES + 1), sys.executable, "-m", "mpi4py.futures", str(HERE), "--inside", "mpi4py_futures"]
    done = subprocess.run(argv, capture_output=True, text=True)
    return {"mpi4py.futures": json.loads(done.stdout.splitlines()[-1])["s"]} if done.returncode == 0 else {}


def mpi4py_futures() -> dict[str, float]:
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as exe:
        return {"s": all_of(exe, EMPTY)}


def fresh() -> dict[str, float]:
    """Seconds for each of 200 calls with a process each; executorlib starts each by `srun`."""
    with executor() as exe:
        found = {"ours": all_of(exe, FRESH, node)}
    try:
        import executorlib
    except ImportError:
        return found
    with executorlib.SlurmJobExecutor(max_cores=NODES * CPUS) as exe:
        exe.submit(same, 1).result()
        work = lambda: [future.result() for future in [exe.submit(same, n) for n in range(FEW)]]  # noqa: E731
        return {**found, "executorlib": timed(work) / FEW}


def first() -> dict[str, float]:
    """Seconds from the constructor to the first result; and of a step that does nothing on all nodes."""

    def ours() -> None:
        exe.append(executor(block_allocation=True))
        exe[0].submit(same, 1).result()

    exe: list[Any] = []
    found = timed(ours)
    exe[0].shutdown()
    step = ["srun", f"-N{NODES}", f"-n{NODES}", "--ntasks-per-node=1", "--overlap", "--mpi=none", "true"]
    return {"ours": found, "srun": timed(lambda: subprocess.run(step, check=True))}


def shared() -> dict[str, float]:
    """In how many pieces of memory 400 calls have found one array that was shared, the caller's included."""
    import numpy as np
    from sharing import own_file

    with executor() as exe:
        handle = exe.share(np.ones(VALUES))
        files = {own_file(handle.value), *(f.result() for f in [exe.submit(own_file, handle) for _ in range(SHARED)])}
    if 0 in files:
        raise AssertionError("a call had a copy of its own")
    return {"copies": len(files)}


def mpi() -> dict[str, float]:
    """Seconds for 20 calls of two ranks, at once and one after the other, and for 20 bare steps that import MPI."""

    def ours(**options: Any) -> None:
        with executor(**options) as exe:
            for future in [exe.submit(_rank, resource_dict={"cores": 2}) for _ in range(RANKS)]:
                assert future.result() == [(0, 2), (1, 2)]

    def bare() -> None:
        for _ in range(RANKS):
            subprocess.run([*_srun_mpi(2), sys.executable, "-c", IMPORT], check=True)

    return {"at once": timed(ours), "one by one": timed(lambda: ours(max_cores=2)), "srun": timed(bare)}


def _rank() -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def _srun_mpi(ranks: int) -> list[str]:
    return ["srun", f"-n{ranks}", "--overlap", "--mpi=pmi2"]


LINES: dict[str, Callable[[], dict[str, float]]] = {
    "calls": calls,
    "fresh": fresh,
    "first": first,
    "shared": shared,
    "mpi": mpi,
    "mpi4py_futures": mpi4py_futures,
}


# ---- here ----


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="calls,fresh,first,shared,mpi,placing")
    parser.add_argument("--executorlib", action="store_true")
    options = parser.parse_args()
    sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
    from placing import rows as placing_rows
    from report import Row, finish

    wanted = set(options.only.split(","))
    rows: list[Row] = []
    if wanted - {"placing"}:
        rows += measured(wanted, options.repeats, options.executorlib)
    if "placing" in wanted:
        rows += placing_rows()
    finish("an allocation of four nodes", rows)


def measured(wanted: set[str], repeats: int, with_executorlib: bool) -> list[Any]:
    """The rows of what runs on the cluster."""
    from report import Row

    from remoteexec.demo.slurm import SlurmOptions, missing_packages
    from tests.clusters.rootless import slurm_cluster

    if missing := missing_packages():
        sys.exit(f"this benchmark needs a SLURM to start: install {' '.join(missing)}")
    with slurm_cluster(SlurmOptions(nodes=NODES, cpus=CPUS)) as cluster:
        packages = cluster.make_directory("packages")  # compiled, as an installation has them
        for package in ("remoteexec", "server_side/remoteexec_server"):
            cluster.run(["cp", "-r", str(HERE.parent.parent / package), str(packages)])
        cluster.run([str(cluster.python), "-m", "compileall", "-q", str(packages)])
        needed = ["cryptography", "fabric", "paramiko", "platformdirs", "rich", "tomli-w", "typer"]
        beside = cluster.make_directory("beside")
        needed += ["executorlib==1.11.0"] if with_executorlib else []
        cluster.run(
            [str(cluster.python), "-m", "pip", "install", "-q", "--target", str(beside), *needed], timeout_s=300
        )
        python = ["env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPATH={packages}:{beside}", str(cluster.python)]
        allocate = ["salloc", "--quiet", f"-N{NODES}", f"-n{NODES * CPUS}"]

        def run(line: str) -> dict[str, float]:
            argv = [*allocate, *python, str(HERE), "--inside", line]
            done = cluster.run(argv, timeout_s=600, check=False)
            if done.returncode:
                sys.exit(f"{line} failed:\n{done.stdout}{done.stderr}")
            found = dict(json.loads(done.stdout.splitlines()[-1]))
            print(line, found, flush=True)
            return found

        def medians(line: str) -> Callable[[Callable[[dict[str, float]], float]], float]:
            found = [run(line) for _ in range(repeats)]
            return lambda of: statistics.median(of(each) for each in found)

        rows: list[Row] = []
        if "calls" in wanted:
            median = medians("calls")
            rows.append(Row(f"{EMPTY:,} empty calls, kept workers, each", median(lambda f: f["ours"] * 1e6), "µs", 100))
            rows.append(
                Row("  to SingleNodeExecutor's", median(lambda f: f["ours"] / f["SingleNodeExecutor"]), "x", 1 / 0.6)
            )
            if median(lambda f: f.get("mpi4py.futures", 0.0)):
                rows.append(Row("  to mpi4py.futures'", median(lambda f: f["ours"] / f["mpi4py.futures"]), "x"))
        if "fresh" in wanted:
            median = medians("fresh")
            rows.append(Row(f"{FRESH} calls, a process each", median(lambda f: f["ours"] * 1e3), "ms"))
            if with_executorlib:
                rows.append(Row("  to executorlib's", median(lambda f: f["ours"] / f["executorlib"]), "x", 1 / 20))
        if "first" in wanted:
            median = medians("first")
            over = median(lambda f: f["ours"] - 2 * f["srun"])
            rows.append(Row(f"first result, less two `srun -N{NODES} true`", over, "s", 0.3))
        if "shared" in wanted:
            copies = run("shared")["copies"]
            rows.append(Row(f"100 MB shared with {SHARED} calls: copies in all", copies, "", NODES + 1))
        if "mpi" in wanted:
            median = medians("mpi")
            for how in ("at once", "one by one"):
                took = median(lambda f, how=how: f[how] / f["srun"])  # type: ignore[misc]  # mypy cannot infer the lambda
                rows.append(Row(f"{RANKS} calls of two ranks {how}, to bare srun", took, "x", 1.2))
        return rows


def inside(line: str) -> None:
    """One line, in the allocation."""
    print(json.dumps(LINES[line]()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
    else:
        main()
