"""Pools of this machine side by side: ours, the standard library's, and others that are installed.

    python benchmarks/local.py [--repeats 5] [--only ours,ProcessPoolExecutor]

Two workers; each figure is the median of the repeats, which alternate between the pools so that what else the machine
does hits all alike. `pip install loky executorlib distributed` brings the others.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

WORKERS = 2
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


# ---- tables ----


def compare(
    title: str, pools: dict[str, Open], measure: Measure, repeats: int, unit: float, slow: dict[str, Measure]
) -> None:
    """One line: every pool's median. Pools are opened for each repeat, and warmed up."""
    values: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(repeats):
        for name, open_pool in pools.items():
            with open_pool() as executor:
                for future in [executor.submit(same, n) for n in range(2 * WORKERS)]:
                    future.result()
                values[name].append(slow.get(name, measure)(executor))
    show(title, values, unit)


def show(title: str, values: dict[str, list[float]], unit: float) -> None:
    medians = {name: statistics.median(found) for name, found in values.items()}
    reference = medians.get("ProcessPoolExecutor")
    parts = []
    for name, median in medians.items():
        ratio = f" ({median / reference:.2f}×)" if reference and name != "ProcessPoolExecutor" else ""
        parts.append(f"{name} {median * unit:,.1f}{ratio}")
    print(f"{title:<38}" + "   ".join(parts), flush=True)


def pending(count: int) -> tuple[float, float]:
    """Bytes for each pending call beyond its arguments, and seconds for each `submit`."""
    from remoteexec import SingleNodeExecutor

    def run() -> float:
        gc.collect()
        started = time.perf_counter()
        for n in range(count):
            keep[n] = executor.submit(same, n)
        return (time.perf_counter() - started) / count

    keep: list[Any] = [None] * count
    with SingleNodeExecutor(1, block_allocation=True) as executor:
        executor.submit(same, 1).result()
        executor.submit(time.sleep, 1.0 + count * 40e-6)
        took = run()
        executor.shutdown(cancel_futures=True)
    with SingleNodeExecutor(1, block_allocation=True) as executor:
        executor.submit(same, 1).result()
        executor.submit(time.sleep, 2.0 + count * 200e-6)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        run()
        used = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        executor.shutdown(cancel_futures=True)
    return used / count, took


def import_time() -> list[float]:
    """Seconds for `import remoteexec` beyond those of an empty interpreter, and what of the slow modules it brings."""
    code = "import time; t = time.perf_counter(); import remoteexec; print(time.perf_counter() - t)"
    return [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(9)
    ]


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
    slow = {"executorlib": calls(1_000), "Dask": calls(2_000)}
    compare("20,000 empty calls, µs a call", kept, calls(20_000), repeats, 1e6, slow)
    slow = {"executorlib": round_trips(50), "Dask": round_trips(200)}
    compare("round trip, µs", kept, round_trips(1_000), repeats, 1e6, slow)
    chained = {name: pool for name, pool in kept.items() if name in ("remoteexec", "executorlib")}
    compare("link of a chain of 1,000, µs", chained, chain(1_000), repeats, 1e6, {"executorlib": chain(100)})
    compare("fresh process each, 500 calls, ms", fresh, calls(500), repeats, 1e3, {"executorlib": calls(10)})
    compare("100 MB array there and back, ms", kept, array_there_and_back, repeats, 1e3, {})
    show(
        "construct, one result, shutdown, ms",
        {name: [whole_life(pool) for _ in range(repeats)] for name, pool in kept.items()},
        1e3,
    )
    if not chosen or "remoteexec" in chosen:
        few, many = pending(1_000), pending(100_000)
        print(
            f"pending calls: {many[0]:,.0f} bytes each; submit {few[1] * 1e6:.1f} µs at 1,000, "
            f"{many[1] * 1e6:.1f} µs at 100,000 ({many[1] / few[1]:.2f}×)"
        )
        print(f"import remoteexec: {statistics.median(import_time()) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
