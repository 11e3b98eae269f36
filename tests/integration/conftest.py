"""Clusters with the cluster side installed, once per session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from remoteexec.config.model import ClusterConfig
from remoteexec.deploy import install
from remoteexec.ssh.fabric_link import FabricLink
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.netcluster import NetCluster
from tests.clusters.rootless import SlurmCluster


def installed(
    cluster: SlurmCluster | EmbeddedTestCluster | NetCluster, name: str, root: str | None = None
) -> ClusterConfig:
    """Install the cluster side and return a configuration that asks the scheduler every second."""
    config = ClusterConfig(
        name=name,
        host=cluster.host,
        user=cluster.user,
        port=cluster.port,
        identity_file=str(cluster.identity_file),
        known_hosts=str(cluster.known_hosts),
        root=root or cluster.new_root(),
        scheduler=cluster.scheduler,
        poll_s=1.0,
    )
    link = FabricLink(config.ssh_settings())
    link.connect()
    try:
        done = install(link, config, python=str(cluster.python))
    finally:
        link.close()
    return config if done.own_environment else replace(config, python=str(PurePosixPath(done.python)))


@pytest.fixture(scope="session")
def slurm_config(slurm_cluster: SlurmCluster) -> ClusterConfig:
    """The rootless SLURM, ready for RemoteExecutor."""
    return installed(slurm_cluster, "rootless")


@pytest.fixture(scope="session")
def small_array_config(small_array_cluster: SlurmCluster) -> ClusterConfig:
    """The SLURM with MaxArraySize=5, ready for RemoteExecutor."""
    return installed(small_array_cluster, "small-arrays")


@pytest.fixture(scope="session")
def embedded_config(embedded_cluster: EmbeddedTestCluster) -> ClusterConfig:
    """The embedded cluster, ready for RemoteExecutor."""
    return installed(embedded_cluster, "embedded")


@pytest.fixture(scope="session")
def net_config(net_cluster: NetCluster) -> ClusterConfig:
    """The virtual hosts, ready for RemoteExecutor."""
    return installed(net_cluster, "wide-area")
