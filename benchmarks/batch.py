"""Jobs on a login node, side by side with plain sbatch on the same SLURM: arrays, chains, and what waiting asks for.

    python benchmarks/batch.py [--repeats 3] [--only arrays,chain,...] [--executorlib]

The cluster is a rootless SLURM on this machine, whose login node each line runs on as its user. `--executorlib`
installs executorlib beside the cluster's Python and measures it too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pilots import INODES, MANY, PILOTS, pilots

HERE = Path(__file__).resolve()
ARRAY, NUMBERS, CHAIN, WAITING, FEW = 200, 2_000, 20, 1_000, 50
IMPORTS = "import cloudpickle, h5py"
_POLL_S = 0.02


# ---- on the login node ----


def same(value: Any) -> Any:
    return value


def executor(directory: Path, **options: Any) -> Any:
    from remoteexec import SlurmClusterExecutor

    return SlurmClusterExecutor(cache_directory=directory / "root", resource_dict={"memory_max": 0.2}, **options)


def bare(directory: Path, *options: str) -> str:
    """Submit a job that does nothing but what every task of ours has to import; its number."""
    script = directory / "bare.sh"
    script.write_text(f"#!/bin/bash\nexec {shlex.join([sys.executable, '-c', IMPORTS])}\n")
    argv = ["sbatch", "--parsable", "--mem=200M", "--output=/dev/null", *options, str(script)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def wait_for_queue() -> None:
    """Until no job of ours is in the queue."""
    while subprocess.run(["squeue", "--me", "-h"], check=True, capture_output=True, text=True).stdout.strip():
        time.sleep(_POLL_S)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def arrays(directory: Path) -> dict[str, float]:
    """Seconds for 200 empty tasks as one array, ours and bare."""

    def ours() -> None:
        with executor(directory) as exe:
            assert list(exe.map(same, range(ARRAY))) == list(range(ARRAY))

    def plain() -> None:
        bare(directory, f"--array=0-{ARRAY - 1}")
        wait_for_queue()

    return {"ours": timed(ours), "bare": timed(plain)}


def numpy_arrays(directory: Path) -> dict[str, float]:
    """The same of tasks that each take and return an array, for which ours, too, have to import numpy and h5py."""
    import numpy

    def ours() -> None:
        given = [numpy.full(NUMBERS, float(number)) for number in range(ARRAY)]
        with executor(directory) as exe:
            assert [found[-1] for found in exe.map(same, given)] == list(range(ARRAY))

    def plain() -> None:
        bare(directory, f"--array=0-{ARRAY - 1}")
        wait_for_queue()

    return {"ours": timed(ours), "bare": timed(plain)}


def chain(directory: Path) -> dict[str, float]:
    """Seconds for 20 tasks of which each takes the result of the one before, ours and bare."""

    def ours() -> None:
        with executor(directory) as exe:
            future = exe.submit(same, 1)
            for _ in range(CHAIN - 1):
                future = exe.submit(same, future)
            assert future.result() == 1

    def plain() -> None:
        job = bare(directory)
        for _ in range(CHAIN - 1):
            job = bare(directory, f"--dependency=afterany:{job}")
        wait_for_queue()

    return {"ours": timed(ours), "bare": timed(plain)}


def waiting(directory: Path) -> dict[str, float]:
    """Scheduler commands a minute while 1,000 tasks wait; nothing runs, since all nodes are drained."""
    log = count_commands(directory)
    with executor(directory) as exe:
        for number in range(WAITING):
            exe.submit(same, number)
        exe._driver.wait_sent(60.0)
        time.sleep(15.0)
        before = len(log.read_text().split())
        time.sleep(120.0)
        found = (len(log.read_text().split()) - before) / 2
        exe.shutdown(wait=False, cancel_futures=True)
    return {"commands": found}


def few(directory: Path) -> dict[str, float]:
    """Seconds for 50 empty tasks, from the constructor on: in pilots, as an array, and executorlib's one job a task."""
    import executorlib

    def ours(place: str, **options: Any) -> None:
        (directory / place).mkdir()  # of its own: results of the other would be found again
        with executor(directory / place, **options) as exe:
            assert list(exe.map(same, range(FEW))) == list(range(FEW))

    def in_pilots() -> None:
        ours("pilots", block_allocation=True, max_workers=PILOTS)

    def as_array() -> None:
        ours("array")

    def theirs() -> None:
        # its own template names a partition that is not there
        head = "#!/bin/bash\n#SBATCH --output=time.out\n#SBATCH --mem=200M\n"
        template = head + "#SBATCH --chdir={{working_directory}}\n{{command}}\n"
        resources = {"submission_template": template, "cwd": str(directory)}
        with executorlib.SlurmClusterExecutor(cache_directory=str(directory / "lib"), resource_dict=resources) as exe:
            assert [f.result() for f in [exe.submit(same, n) for n in range(FEW)]] == list(range(FEW))

    return {"pilots": timed(in_pilots), "array": timed(as_array), "executorlib": timed(theirs)}


def count_commands(directory: Path) -> Path:
    """Have every scheduler command write a line to a file, which is returned."""
    log, wrappers = directory / "commands", directory / "wrappers"
    log.touch()
    wrappers.mkdir()
    for command in ("squeue", "sacct", "scontrol", "sinfo", "sbatch", "scancel"):
        (wrappers / command).write_text(f'#!/bin/sh\necho {command} >> {log}\nexec /usr/bin/{command} "$@"\n')
        (wrappers / command).chmod(0o755)
    os.environ["PATH"] = f"{wrappers}:{os.environ['PATH']}"
    return log


LINES: dict[str, Callable[[Path], dict[str, float]]] = {
    "arrays": arrays,
    "numpy": numpy_arrays,
    "chain": chain,
    "waiting": waiting,
    "few": few,
    "pilots": pilots,
}


# ---- here ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="arrays,numpy,chain,pilots,waiting")
    parser.add_argument("--executorlib", action="store_true")
    options = parser.parse_args()
    sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
    from report import Row, finish

    from remoteexec.demo.slurm import missing_packages
    from tests.clusters.rootless import slurm_cluster

    if missing := missing_packages():
        sys.exit(f"this benchmark needs a SLURM to start: install {' '.join(missing)}")
    rows: list[Row] = []
    with slurm_cluster() as cluster:
        packages = cluster.make_directory("packages")  # compiled, as an installation has them
        for package in ("remoteexec", "server_side/remoteexec_server"):
            cluster.run(["cp", "-r", str(HERE.parent.parent / package), str(packages)])
        cluster.run([str(cluster.python), "-m", "compileall", "-q", str(packages)])
        beside = cluster.make_directory("beside")  # for what is compared, if it is
        path = f"PYTHONPATH={packages}:{beside}"
        python = ["env", "-u", "PYTHONDONTWRITEBYTECODE", path, str(cluster.python)]

        def run(line: str) -> dict[str, float]:
            done = cluster.run([*python, str(HERE), "--inside", line], timeout_s=600, check=False)
            if done.returncode:
                sys.exit(f"{line} failed:\n{done.stderr}")
            found = dict(json.loads(done.stdout.splitlines()[-1]))
            print(line, found, flush=True)
            return found

        def ratio(line: str) -> float:
            return ratios(line, ["ours"], "bare")[0]

        def ratios(line: str, ones: Sequence[str], other: str) -> list[float]:
            found = [run(line) for _ in range(options.repeats)]
            return [statistics.median(each[one] / each[other] for each in found) for one in ones]

        wanted = options.only.split(",")
        if "arrays" in wanted:
            rows.append(Row(f"{ARRAY} tasks as one array, to a bare array", ratio("arrays"), "x", 1.25))
        if "numpy" in wanted:
            rows.append(Row(f"the same of {NUMBERS:,} numbers each", ratio("numpy"), "x"))
        if "chain" in wanted:
            rows.append(Row(f"a chain of {CHAIN}, to bare jobs afterany", ratio("chain"), "x", 1.3))
        if "pilots" in wanted:
            found = run("pilots")
            rows.append(Row(f"{MANY:,} tasks through {PILOTS} pilots, each", found["ms"], "ms", 2.0))
            rows.append(Row(f"inodes for {INODES:,} tasks in pilots", found["inodes"], most=200))
        if "waiting" in wanted:
            for node in cluster.nodes:
                cluster.drain(node)
            rows.append(Row(f"commands a minute while {WAITING:,} tasks wait", run("waiting")["commands"], most=2))
            cluster.resume(*cluster.nodes)
        if options.executorlib:
            wanted_there = ["--target", str(beside), "executorlib[cluster]==1.11.0"]
            cluster.run([str(cluster.python), "-m", "pip", "install", "-q", *wanted_there], timeout_s=300)
            in_pilots, as_array = ratios("few", ["pilots", "array"], "executorlib")
            rows.append(Row(f"{FEW} tasks through {PILOTS} pilots, to executorlib", in_pilots, "x", 0.2))
            rows.append(Row(f"{FEW} tasks as one array, to executorlib", as_array, "x"))
    finish("jobs from a login node", rows)


def inside(line: str) -> None:
    """One line, in the cluster's own environment."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        print(json.dumps(LINES[line](Path(directory))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
    else:
        main()
