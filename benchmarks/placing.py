"""What placing costs on many nodes, for allocation.py: tasks of mixed sizes, a fake clock, and no process."""

from __future__ import annotations

import gc
import heapq
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from report import Row

from remoteexec.allocation.base import Node
from remoteexec.allocation.pinning import PinnedNodes
from remoteexec.pool.ledger import Ledger, Need

CORES = 64
SIZES = (1, 1, 1, 1, 1, 2, 2, 4, 8, 16, 32, 64)
GIB = 2**30
MEMORY = 4 * GIB * CORES
GPUS = ("0", "1", "2", "3")


class Task(NamedTuple):
    """Of a size and a duration."""

    need: Need
    depth: int
    takes_s: float


def mixed(draw: random.Random, cores: int) -> Need:
    """A quarter of them say how much memory they take."""
    return Need(cores, 0, draw.choice((0, 0, 0, 2 * GIB)) * cores)


def with_gpus(draw: random.Random, cores: int) -> Need:
    """Half of them take GPUs."""
    return Need(cores, draw.choice((0, 0, 1, 2)))


def distinct(draw: random.Random, cores: int) -> Need:
    """No two take as much memory."""
    return Need(cores, 0, int(draw.uniform(0.5, 4.0) * GIB * cores))


def large(draw: random.Random, cores: int) -> Need:
    """Of memory there is for five on a node, and little is left; of cores for many more."""
    return Need(1, 0, int(MEMORY * 12.9 / 64))


OTHERS = {"with GPUs": with_gpus, "all of distinct memory": distinct, "of one core and a fifth of the memory": large}


def simulate(nodes: int, count: int, need: Callable[[random.Random, int], Need] = mixed) -> tuple[float, float]:
    """Share of the cores that were busy until the line was empty, and seconds of placing for each task."""
    draw = random.Random(1)
    tasks = [Task(need(draw, cores), 0, draw.uniform(1.0, 100.0)) for cores in draw.choices(SIZES, k=count)]
    room = PinnedNodes([Node(f"n{number}", CORES, MEMORY, GPUS) for number in range(nodes)])
    ledger: Ledger[Task] = Ledger(None, room=room)
    running: list[tuple[float, int, Need, tuple[str, ...]]] = []
    now_s = placing_s = busy_core_s = line_empty_s = 0.0
    number = used = busy_until_empty = 0
    gc.disable()
    began = time.perf_counter()
    for task in tasks:
        ledger.add(task)
    placing_s += time.perf_counter() - began
    while True:
        began = time.perf_counter()
        found = []
        while (started := ledger.next()) is not None:
            found.append(started)
        placing_s += time.perf_counter() - began
        for task, place in found:
            number += 1
            used += task.need.cores
            heapq.heappush(running, (now_s + task.takes_s, number, task.need, place))
        if not len(ledger) and not line_empty_s:
            line_empty_s, busy_until_empty = now_s, int(busy_core_s)
        if not running:
            break
        then_s, _, need, place = heapq.heappop(running)
        busy_core_s += used * (then_s - now_s)
        now_s, used = then_s, used - need.cores
        began = time.perf_counter()
        ledger.end(need, place)
        placing_s += time.perf_counter() - began
    gc.enable()
    return busy_until_empty / (line_empty_s * nodes * CORES or 1.0), placing_s / count


def rows(count: int = 1_000_000) -> list[Row]:
    """Of as many tasks as keep each number of nodes busy for long, `count` at most."""
    found: list[Row] = []
    placing: list[float] = []
    for nodes in (10, 100, 1000):
        tasks = min(count, 5000 * nodes)
        busy, each_s = simulate(nodes, tasks)
        placing.append(each_s)
        found.append(
            Row(f"{tasks:,} tasks on {nodes:,} nodes: idle cores until the line is empty", 100 - 100 * busy, "%", 5)
        )
        found.append(Row("  placing a task", each_s * 1e6, "µs", 20))
    found.append(Row("  that of most nodes to that of fewest", placing[-1] / placing[0], "x", 1.5))
    for name, need in OTHERS.items():
        _, few_s = simulate(10, min(count, 20_000), need)
        _, many_s = simulate(1000, min(count, 100_000), need)
        found.append(Row(f"placing a task on 1,000 nodes, {name}", many_s * 1e6, "µs", 20))
        found.append(Row("  to that on 10", many_s / few_s, "x", 1.5))
    return found
