"""Pools of this machine side by side: ours, the standard library's, and others that are installed.

    python benchmarks/local.py [--repeats 5] [--only remoteexec,ProcessPoolExecutor]

Two workers. Each figure is the median of the repeats, which alternate between what is compared so that what else the
machine does hits all alike; each ratio, to ProcessPoolExecutor if nothing else is said, is the median of the ratios
within one repeat. Behind an arrow stands what is measured beside its target, as in the other benchmarks; the exit code
is 1 if one was missed. `pip install loky executorlib distributed` brings the others.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from report import Row

WORKERS = 2
OURS, THEIRS = "remoteexec", "ProcessPoolExecutor"
Open = Callable[[], Any]
Measure = Callable[[Executor], float]


def same(value: Any) -> Any:
    return value


# ---- the pools ----


def kept_pools() -> dict[str, Open]:
    """Pools whose workers run many calls."""
    from remoteexec import SingleNodeExecutor

    pools: dict[str, Open] = {
        "remoteexec": lambda: SingleNodeExecutor(WORKERS, block_allocation=True),
        "ProcessPoolExecutor": lambda: ProcessPoolExecutor(WORKERS),
    }
    if importlib.util.find_spec("loky"):
        import loky

        pools["loky"] = lambda: loky.ProcessPoolExecutor(WORKERS)
    if importlib.util.find_spec("executorlib"):
        import executorlib

        pools["executorlib"] = lambda: executorlib.SingleNodeExecutor(max_workers=WORKERS, block_allocation=True)
    if importlib.util.find_spec("distributed"):
        pools["Dask"] = _dask
    return pools


@contextmanager
def _dask() -> Iterator[Any]:
    import distributed

    with (
        distributed.LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor(pure=False) as executor,
    ):
        yield executor


def fresh_pools() -> dict[str, Open]:
    """A process for each call."""
    from remoteexec import SingleNodeExecutor

    forkserver = multiprocessing.get_context("forkserver")
    pools: dict[str, Open] = {
        "remoteexec": lambda: SingleNodeExecutor(WORKERS),
        "ProcessPoolExecutor": lambda: ProcessPoolExecutor(WORKERS, mp_context=forkserver, max_tasks_per_child=1),
    }
    if importlib.util.find_spec("executorlib"):
        import executorlib

        pools["executorlib"] = lambda: executorlib.SingleNodeExecutor(max_workers=WORKERS)
    return pools


# ---- the work ----


def calls(count: int) -> Measure:
    """Seconds for each of many empty calls."""

    def measure(executor: Executor) -> float:
        started = time.perf_counter()
        for future in [executor.submit(same, n) for n in range(count)]:
            future.result()
        return (time.perf_counter() - started) / count

    return measure


def round_trips(count: int) -> Measure:
    """Seconds from a submit to its result."""

    def measure(executor: Executor) -> float:
        started = time.perf_counter()
        for n in range(count):
            executor.submit(same, n).result()
        return (time.perf_counter() - started) / count

    return measure


def chain(count: int) -> Measure:
    """Seconds for each link of a chain, every call taking the future of the one before."""

    def measure(executor: Executor) -> float:
        started = time.perf_counter()
        future = executor.submit(same, 0)
        for _ in range(count):
            future = executor.submit(same, future)
        future.result()
        return (time.perf_counter() - started) / count

    return measure


def array_there_and_back(executor: Executor) -> float:
    """Seconds for 100 MB of floats."""
    import numpy as np

    array = np.ones(12_500_000)
    executor.submit(same, array[:1]).result()  # numpy is imported there
    started = time.perf_counter()
    executor.submit(same, array).result()
    return time.perf_counter() - started


def whole_life(open_pool: Open) -> float:
    """Seconds from the constructor to the end of shutdown, with one result between."""
    started = time.perf_counter()
    with open_pool() as executor:
        executor.submit(same, 1).result()
    return time.perf_counter() - started


# ---- in interpreters of their own ----


def pending(count: int) -> tuple[float, float, float]:
    """Bytes for each pending call beyond its arguments, seconds for each `submit`, and CPU seconds of its thread."""
    from remoteexec import SingleNodeExecutor

    def run() -> tuple[float, float]:
        gc.collect()
        started, cpu = time.perf_counter(), time.thread_time()
        for n in range(count):
            keep[n] = executor.submit(same, n)
        return (time.perf_counter() - started) / count, (time.thread_time() - cpu) / count

    keep: list[Any] = [None] * count
    with SingleNodeExecutor(1, block_allocation=True) as executor:
        executor.submit(same, 1).result()
        busy = executor.submit(time.sleep, 60.0 + count * 1e-3)
        took, cpu = run()
        executor.shutdown(wait=False, cancel_futures=True)
        busy.cancel()  # ends it
    with SingleNodeExecutor(1, block_allocation=True) as executor:
        executor.submit(same, 1).result()
        busy = executor.submit(time.sleep, 60.0 + count * 1e-3)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        run()
        used = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        executor.shutdown(wait=False, cancel_futures=True)
        busy.cancel()  # ends it
    return used / count, took, cpu


def pending_elsewhere(count: int) -> tuple[float, float, float]:
    """The same in a new interpreter: collections of garbage take as long as there are objects of others."""
    code = f"import json, local; print(json.dumps(local.pending({count})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__), capture_output=True, check=True)
    used, took, cpu = json.loads(done.stdout)
    return used, took, cpu


def import_time(statement: str, environment: dict[str, str]) -> float:
    """Seconds for an import beyond those of an empty interpreter."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    return float(done.stdout)


# ---- tables ----


def compare(
    title: str,
    pools: dict[str, Open],
    measure: Measure,
    repeats: int,
    unit: float,
    others: dict[str, Measure],
    targets: dict[str, float],
) -> list[Row]:
    """One line: every pool's median. Pools are opened for each repeat, and warmed up.

    Args:
        others: what is measured with pools where it is not `measure`.
        targets: by name of another, the most that our time may be of its.
    """
    values: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(repeats):
        for name, open_pool in pools.items():
            with open_pool() as executor:
                for future in [executor.submit(same, n) for n in range(2 * WORKERS)]:
                    future.result()
                values[name].append(others.get(name, measure)(executor))
    return show(title, values, unit, targets)


def ratio(values: list[float], reference: list[float]) -> float:
    """The median of the ratios within one repeat."""
    return statistics.median(a / b for a, b in zip(values, reference, strict=True))


def show(title: str, values: dict[str, list[float]], unit: float, targets: dict[str, float]) -> list[Row]:
    """One line; see `compare`."""
    parts = []
    for name, found in values.items():
        against = f" ({ratio(found, values[THEIRS]):.2f}×)" if THEIRS in values and name != THEIRS else ""
        parts.append(f"{name} {statistics.median(found) * unit:,.1f}{against}")
    rows = [
        Row(f"× {other}", ratio(values[OURS], values[other]), most=most)
        for other, most in targets.items()
        if OURS in values and other in values
    ]
    return say(title, "   ".join(parts), rows)


def say(title: str, figures: str, rows: list[Row]) -> list[Row]:
    """Print one line, and what of it has a target."""
    if title:
        print(f"{title:<42}{figures}", flush=True)
    for row in rows:
        what, measured, target, verdict = row.cells()
        print(f"{'':<42}→ {measured} {what}, {target}: {verdict}", flush=True)
    return rows


def lives(pools: dict[str, Open], repeats: int) -> list[Row]:
    """The line of executors that give one result."""
    values: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(repeats):
        for name, open_pool in pools.items():
            values[name].append(whole_life(open_pool))
    rows = show("construct, one result, shutdown, ms", values, 1e3, {})
    if OURS in values:
        rows += say("", "", [Row("ours", statistics.median(values[OURS]) * 1e3, "ms", 250)])
    return rows


def many_pending(repeats: int) -> list[Row]:
    """The lines of 1,000 and of 100,000 pending calls, and of the same calls run to their end."""
    from remoteexec import SingleNodeExecutor

    few, many, run_few, run_many = [], [], [], []
    for _ in range(repeats):
        few.append(pending_elsewhere(1_000))
        many.append(pending_elsewhere(100_000))
        with SingleNodeExecutor(WORKERS, block_allocation=True) as executor:
            calls(1_000)(executor)
            run_few.append(statistics.median(calls(1_000)(executor) for _ in range(5)))
            run_many.append(calls(100_000)(executor))
    used = statistics.median(each[0] for each in many)
    rows = say("a pending call", "", [Row("beyond its arguments", round(used), "bytes", 1500)])
    for title, one, other in (
        ("submit, µs", [each[1] for each in few], [each[1] for each in many]),
        ("submit, µs of CPU", [each[2] for each in few], [each[2] for each in many]),
        ("empty call to its end, µs", run_few, run_many),
    ):
        figures = f"of 1,000: {statistics.median(one) * 1e6:.1f}   of 100,000: {statistics.median(other) * 1e6:.1f}"
        rows += say(title, figures, [Row("× that of 1,000", ratio(other, one), most=1.2)])
    return rows


def imports(repeats: int) -> list[Row]:
    """The lines of the import: with our modules compiled, as pip or the first import does it, and not."""
    rows: list[Row] = []
    statements = {
        "import remoteexec": "import remoteexec",
        "from remoteexec import SingleNodeExecutor": "from remoteexec import SingleNodeExecutor",
        THEIRS: "from concurrent.futures import ProcessPoolExecutor",
    }
    with tempfile.TemporaryDirectory() as cache:
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        kinds = {
            "import, compiled, ms": {**plain, "PYTHONPYCACHEPREFIX": cache},
            "import, ours not compiled, ms": {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        }
        for title, environment in kinds.items():
            values: dict[str, list[float]] = {name: [] for name in statements}
            for statement in statements.values():
                import_time(statement, environment)  # compiles, or reads the files once
            for _ in range(2 * repeats - 1):
                for name, statement in statements.items():
                    values[name].append(import_time(statement, environment))
            show(title, values, 1e3, {})
            most = max(statistics.median(values[name]) for name in statements if name != THEIRS)
            if title == "import, compiled, ms":
                rows += say("", "", [Row("the slower", most * 1e3, "ms", 60)])
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="names of pools, with commas between")
    options = parser.parse_args()
    chosen = set(options.only.split(",")) - {""}

    def of(pools: dict[str, Open]) -> dict[str, Open]:
        return {name: pool for name, pool in pools.items() if not chosen or name in chosen}

    kept, fresh, repeats = of(kept_pools()), of(fresh_pools()), options.repeats
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {WORKERS} workers, medians of {repeats}")
    rows = imports(repeats)
    slow = {"Dask": calls(2_000)}
    targets = {THEIRS: 0.25, "executorlib": 0.1}
    rows += compare("20,000 empty calls, µs a call", kept, calls(20_000), repeats, 1e6, slow, targets)
    slow = {"executorlib": round_trips(50), "Dask": round_trips(200)}
    rows += compare("round trip, µs", kept, round_trips(1_000), repeats, 1e6, slow, {THEIRS: 0.6})
    chained = {name: pool for name, pool in kept.items() if name in (OURS, THEIRS, "executorlib")}
    links = {THEIRS: round_trips(1_000), "executorlib": chain(100)}  # the former has no chains
    rows += compare(
        "link of 1,000 in a chain; round trip, µs", chained, chain(1_000), repeats, 1e6, links, {THEIRS: 0.6}
    )
    targets = {THEIRS: 0.4, "executorlib": 1 / 30}
    rows += compare(
        "fresh process each, 500 calls, ms", fresh, calls(500), repeats, 1e3, {"executorlib": calls(10)}, targets
    )
    rows += compare("100 MB array there and back, ms", kept, array_there_and_back, repeats, 1e3, {}, {THEIRS: 0.75})
    rows += lives(kept, repeats)
    if not chosen or OURS in chosen:
        rows += many_pending(repeats)
    sys.exit(any(row.missed for row in rows))


if __name__ == "__main__":
    main()
