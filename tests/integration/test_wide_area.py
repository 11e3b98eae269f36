"""Several machines and a wide-area link: a laptop far away, four nodes with a /tmp of their own, one of which dies."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from remoteexec import errors
from remoteexec.config.model import ClusterConfig
from tests.clusters.netcluster import NetCluster
from tests.integration.running import running


def node_and_tmp(number: int) -> tuple[str, list[str]]:
    """Where this runs, and which of these tasks have been there."""
    Path(f"/tmp/task-{number}").touch()
    time.sleep(0.2)
    return platform.node(), sorted(name for name in os.listdir("/tmp") if name.startswith("task-"))


def hold(path: str) -> None:
    """Say where this runs, and stay."""
    partial = Path(f"{path}.new")
    partial.write_text(platform.node())
    partial.rename(path)
    time.sleep(100)


def test_tasks_run_on_every_node_and_their_results_cross_a_slow_link_that_loses_packets(
    net_cluster: NetCluster, net_config: ClusterConfig
) -> None:
    net_cluster.wan("delay 50")
    net_cluster.wan("loss 0.02")
    with running(net_config) as exe:
        futures = [exe.submit(node_and_tmp, number) for number in range(24)]
        total = exe.submit(len, futures)
        found = [future.result(60) for future in futures]
        assert total.result(30) == 24
    assert sorted({node for node, _ in found}) == net_cluster.nodes
    for node in net_cluster.nodes:
        mine = {f"task-{number}" for number, (where, _) in enumerate(found) if where == node}
        seen = {name for where, names in found if where == node for name in names}
        assert seen == mine


def test_a_node_that_dies_while_the_link_is_down_is_told_when_it_is_up_again(
    net_cluster: NetCluster, net_config: ClusterConfig
) -> None:
    path = net_cluster.make_directory(f"node-{time.time_ns()}") / "node"
    with running(net_config) as exe:
        future = exe.submit(hold, str(path))
        waiting = exe.submit(len, future)
        net_cluster.wait(path.exists, "the task does not start")
        node = path.read_text()
        net_cluster.wan("down")
        later = exe.submit(abs, -5)
        net_cluster.kill_node(node)
        net_cluster.down(node)
        time.sleep(1)
        net_cluster.wan("up")
        exc = future.exception(60)
        assert isinstance(exc, errors.TaskNodeFailure)
        assert (exc.reason, exc.node) == ("node_failure", node)
        assert waiting.exception(60) is exc
        assert later.result(60) == 5
