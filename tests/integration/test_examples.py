"""The examples print the numbers they claim, wherever their tasks run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remoteexec.config import ClusterConfig, save_cluster
from remoteexec.deploy import install
from remoteexec.ssh.fabric_link import FabricLink
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.rootless import SlurmCluster

CHECKOUT = Path(__file__).parents[2]
BULK_MODULUS = CHECKOUT / "examples" / "bulk_modulus.py"
ENDED = "12/12 tasks ended"


def configured(cluster: SlurmCluster | EmbeddedTestCluster, directory: Path) -> Path:
    """Install the cluster side; returns a clusters.toml that has the cluster as "here"."""
    config = ClusterConfig(
        "here",
        cluster.host,
        user=cluster.user,
        port=cluster.port,
        identity_file=str(cluster.identity_file),
        known_hosts=str(cluster.known_hosts),
        root=cluster.new_root(),
        python=str(cluster.python),
        scheduler=cluster.scheduler,
    )
    link = FabricLink(config.ssh_settings())
    link.connect()
    try:
        install(link, config)
    finally:
        link.close()
    return save_cluster(config, directory / "clusters.toml")


def jobs(cluster: SlurmCluster) -> int:
    """How many jobs of ours SLURM remembers, each element of an array counted."""
    listed = cluster.run(["squeue", "--noheader", "--array", "--states=all", "--format=%j"]).stdout.split()
    return sum(name.startswith("rx-") for name in listed)


def run(*arguments: str, **environment: str) -> tuple[str, list[str]]:
    """The example's output, and what its progress display said."""
    done = subprocess.run(
        [sys.executable, BULK_MODULUS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("metal", "volume", "modulus"),
    [("Ag", "16.780", "100.295"), ("Cu", "11.568", "133.658"), ("Au", "16.684", "174.098"), ("Al", "15.975", "35.366")],
)
def test_every_metal_has_its_bulk_modulus_without_any_cluster(
    metal: str, volume: str, modulus: str, tmp_path: Path
) -> None:
    shown, progress = run("--metal", metal, "--check", HOME=str(tmp_path), SCRATCH=str(tmp_path))
    assert shown == f"{metal}: v0 = {volume} Å³, B = {modulus} GPa\n"
    assert progress[-1] == ENDED


def test_the_bulk_modulus_comes_from_the_embedded_cluster(
    embedded_cluster: EmbeddedTestCluster, tmp_path: Path
) -> None:
    clusters = configured(embedded_cluster, tmp_path)
    shown, progress = run("--cluster", "here", "--check", REMOTEEXEC_CONFIG=str(clusters))
    assert (shown, progress[-1]) == ("Ag: v0 = 16.780 Å³, B = 100.295 GPa\n", ENDED)


def test_the_bulk_modulus_comes_from_slurm_through_ssh(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    clusters = configured(slurm_cluster, tmp_path)
    shown, progress = run("--cluster", "here", "--check", REMOTEEXEC_CONFIG=str(clusters))
    assert (shown, progress[-1]) == ("Ag: v0 = 16.780 Å³, B = 100.295 GPa\n", ENDED)


def test_the_bulk_modulus_comes_from_slurm_on_its_login_node(slurm_cluster: SlurmCluster) -> None:
    client = slurm_cluster.make_directory("client")
    for package in ("remoteexec", "server_side/remoteexec_server"):
        shutil.copytree(
            CHECKOUT / package, client / Path(package).name, ignore=shutil.ignore_patterns("__pycache__")
        )  # the cluster's user may not be able to read the checkout
    shutil.copy(BULK_MODULUS, client)
    subprocess.run(["chmod", "-R", "a+rX", client], check=True)
    before = jobs(slurm_cluster)
    argv = [str(slurm_cluster.python), str(client / BULK_MODULUS.name)]
    done = slurm_cluster.run(
        ["env", f"PYTHONPATH={client}", *argv, "--executor", "SlurmClusterExecutor", "--check"], check=False
    )
    assert (done.returncode, done.stdout) == (0, "Ag: v0 = 16.780 Å³, B = 100.295 GPa\n"), done.stderr
    assert done.stderr.splitlines()[-1] == ENDED
    assert jobs(slurm_cluster) == before + 12
