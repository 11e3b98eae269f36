"""The cluster that is measured: a rootless SLURM behind an sshd, both on this machine, and the way to it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from remoteexec.config import ClusterConfig
from remoteexec.demo.slurm import missing_packages
from remoteexec.deploy import install
from remoteexec.ssh.fabric_link import FabricLink
from tests.clusters.delayproxy import DelayProxy
from tests.clusters.rootless import SlurmCluster, slurm_cluster

__all__ = ["distant", "installed"]


@contextmanager
def installed() -> Iterator[tuple[SlurmCluster, ClusterConfig]]:
    """A running cluster with the cluster side installed, and its configuration."""
    if missing := missing_packages():
        sys.exit(f"this benchmark needs a SLURM and an sshd to start: install {' '.join(missing)}")
    with slurm_cluster() as cluster:
        config = ClusterConfig(
            "measured",
            cluster.host,
            user=cluster.user,
            port=cluster.port,
            identity_file=str(cluster.identity_file),
            known_hosts=str(cluster.known_hosts),
            root=cluster.new_root(),
            python=str(cluster.python),
        )
        link = FabricLink(config.ssh_settings())
        link.connect()
        try:
            install(link, config)
        finally:
            link.close()
        yield cluster, config


@contextmanager
def distant(config: ClusterConfig, delay_s: float) -> Iterator[tuple[DelayProxy, ClusterConfig]]:
    """The same cluster behind a link with a delay each way, given in seconds."""
    with tempfile.TemporaryDirectory() as directory, DelayProxy(config.host, config.port or 22, delay_s) as proxy:
        known_hosts = Path(directory) / "known_hosts"
        *_, kind, key = Path(config.known_hosts or "").read_text(encoding="utf-8").split()[:3]
        known_hosts.write_text(f"[{proxy.host}]:{proxy.port} {kind} {key}\n", encoding="utf-8")
        yield proxy, replace(config, host=proxy.host, port=proxy.port, known_hosts=str(known_hosts))
