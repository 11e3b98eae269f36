"""What a laptop sees of a cluster that is 50 ms away: round trips, the time to submit, the time to get results.

A proxy that delays by 25 ms each way stands between the client and sshd. While submission is measured the nodes are
drained, so that no job takes the machine's cores from what is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from cluster import distant, installed
from report import Row, finish

from remoteexec import RemoteExecutor
from remoteexec.config import ClusterConfig
from remoteexec_server.store import hdf5
from remoteexec_server.store.session import Session
from remoteexec_server.wire import payload
from remoteexec_server.wire.messages import TaskKey
from tests.clusters.rootless import SlurmCluster

DELAY_S = 0.025
ROUND_TRIP_S = 2 * DELAY_S
MANY = 1_000
PATIENCE_S = 60.0


def trivial(number: int) -> int:
    return number


@dataclass(frozen=True)
class Submission:
    """Seconds that one executor took.

    Attributes:
        connect: until it was connected.
        accept: from the first call until every job id was known.
        connections: TCP connections it made.
    """

    connect: float
    accept: float
    connections: int


def submission(config: ClusterConfig, delay_s: float, tasks: int, by_map: bool = True) -> Submission:
    """Submit to a cluster that runs nothing, and cancel."""
    with distant(config, delay_s) as (proxy, there):
        began = time.perf_counter()
        executor = RemoteExecutor(there)
        with executor:
            connected = time.perf_counter()
            if by_map:
                executor.map(trivial, range(tasks))
            else:
                for number in range(tasks):
                    executor.submit(trivial, number)
            if not executor._driver.wait_sent(PATIENCE_S):
                raise TimeoutError(f"{tasks} tasks were not accepted within {PATIENCE_S:.0f} s")
            accepted = time.perf_counter()
            executor.shutdown(cancel_futures=True)
        return Submission(connected - began, accepted - connected, proxy.connections())


def submissions(config: ClusterConfig, repeat: int) -> list[Row]:
    """Round trips are what a round trip of 50 ms costs more than one of none, medians of each."""
    kinds = {"10 by map": (10, True), "100 by map": (100, True), "1,000 by map": (1_000, True)}
    kinds["1,000 by submit"] = (1_000, False)
    near: dict[str, list[Submission]] = defaultdict(list)
    far: dict[str, list[Submission]] = defaultdict(list)
    for _ in range(repeat):
        for kind, (tasks, by_map) in kinds.items():
            near[kind].append(submission(config, 0.0, tasks, by_map))
            far[kind].append(submission(config, DELAY_S, tasks, by_map))
    rows = []
    for kind in kinds:
        connect = _median(far[kind], "connect") - _median(near[kind], "connect")
        accept = _median(far[kind], "accept") - _median(near[kind], "accept")
        rows += [
            Row(f"{kind}: round trips until every job id is known", accept / ROUND_TRIP_S, most=12),
            Row(f"{kind}: the same with the connection", (connect + accept) / ROUND_TRIP_S, most=12),
        ]
    for kind in kinds:
        rows.append(Row(f"{kind}: from the first call until all are accepted", _median(far[kind], "accept"), "s", 5))
    rows.append(Row("connections", max(each.connections for kind in kinds for each in far[kind]), most=1))
    return rows


def _median(measured: list[Submission], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in measured))


def results(cluster: SlurmCluster, config: ClusterConfig, tasks: int, by_jobs: bool) -> list[Row]:
    """Compare when the last outcome was published with when the last future had its result.

    Args:
        by_jobs: SLURM runs the tasks, which takes a while on few cores; else the outcomes are written here, at once.
    """
    arrived: list[float] = []
    with distant(config, DELAY_S) as (proxy, there), RemoteExecutor(there) as executor:
        futures = [executor.submit(trivial, number) for number in range(tasks)]
        for future in futures:
            future.add_done_callback(lambda _: arrived.append(time.time()))
        if not by_jobs:
            executor._driver.wait_sent(PATIENCE_S)
            write_outcomes(cluster, config, [future.key for future in futures])
        assert [future.result() for future in futures] == list(range(tasks))
        # a file is published by renaming it, which is a change of its status
        outcomes = [path for path in _outcomes(config, futures[0].key).iterdir() if path.suffix == ".h5"]
        published = [path.stat().st_ctime for path in outcomes]
        connections = proxy.connections()
    assert len(published) == tasks
    kind = f"{tasks:,} tasks" if by_jobs else f"{tasks:,} outcomes at once"
    return [
        Row(f"{kind}: from the first to the last", max(published) - min(published), "s"),
        Row(f"{kind}: results in futures after the last", max(arrived) - max(published), "s", 3),
        Row(f"{kind}: connections", connections, most=1),
    ]


def write_outcomes(cluster: SlurmCluster, config: ClusterConfig, keys: list[TaskKey]) -> None:
    """Do as runners do for tasks that return their number, but all at the same moment."""
    session = Session(_outcomes(config, keys[0]).parent)
    with tempfile.TemporaryDirectory(dir=session.path) as directory:
        ready = Path(directory)
        for number, key in enumerate(keys):
            outcome = hdf5.Outcome(True, payload.dumps(number), {})
            path = ready / session.outcome(key).name
            path.write_bytes(hdf5.write_outcome(key, outcome, session.key))
            os.chown(path, cluster.account.uid, cluster.account.gid)
        for path in ready.iterdir():
            path.rename(session.outcomes / path.name)


def _outcomes(config: ClusterConfig, key: TaskKey) -> Path:
    """Of the session that the task belongs to."""
    name, _, _ = key.rpartition("-")
    return Path(config.root) / "sessions" / f"s-{name}" / "outcomes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="submissions of each kind, near and far in turn")
    parser.add_argument("--tasks", type=int, default=MANY, help="that SLURM runs to see their results come; 0: none")
    options = parser.parse_args()
    with installed() as (cluster, config):
        for node in cluster.nodes:
            cluster.drain(node)
        rows = submissions(config, options.repeat)
        rows += results(cluster, config, MANY, by_jobs=False)
        cluster.resume(*cluster.nodes)
        if options.tasks:
            rows += results(cluster, config, options.tasks, by_jobs=True)
    finish("A cluster that is 50 ms away", rows)


if __name__ == "__main__":
    main()
