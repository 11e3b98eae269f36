"""Fixtures that hand out clusters.

REMOTEEXEC_REQUIRE=slurm,netcluster makes tests fail that would otherwise be skipped for want of these.
"""

from __future__ import annotations

import gc
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from remoteexec.demo.slurm import SlurmOptions, missing_packages
from tests.clusters.accounts import NoClusterPython
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.embedded import embedded_cluster as start_embedded_cluster
from tests.clusters.flux import FluxInstance
from tests.clusters.flux import flux_instance as start_flux_instance
from tests.clusters.netcluster import NetCluster, obstacle
from tests.clusters.netcluster import net_cluster as start_net_cluster
from tests.clusters.rootless import SlurmCluster
from tests.clusters.rootless import slurm_cluster as start_slurm_cluster
from tests.leftovers import gone

SLURM_FIXTURES = {"slurm_cluster", "small_array_cluster"}


def skip_for_want_of(what: str, reason: str) -> None:
    """Skip the test, or fail it where REMOTEEXEC_REQUIRE names `what`."""
    if what in os.environ.get("REMOTEEXEC_REQUIRE", "").split(","):
        pytest.fail(f"REMOTEEXEC_REQUIRE asks for {what}: {reason}")
    pytest.skip(reason)


WHOLE_MACHINE = ("test_mpi_jobs", "test_pool_mpi", "test_netcluster", "test_wide_area")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the clusters it uses, and say which belong in one process.

    Those of a file do. So do those that look at what the whole machine has, network namespaces or shared memory: they
    are also the longest group, and begin.
    """
    items.sort(key=lambda item: item.path.stem not in WHOLE_MACHINE)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("machine" if item.path.stem in WHOLE_MACHINE else str(item.path)))
        used = set(getattr(item, "fixturenames", ()))
        if SLURM_FIXTURES & used:
            item.add_marker("slurm")
        if "net_cluster" in used:
            item.add_marker("netcluster")
        if "flux_instance" in used:
            item.add_marker("flux")


@pytest.fixture(autouse=True, scope="module")
def _by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let functions of test modules travel by value: a cluster cannot import tests."""
    module = request.module
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def process_mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the environment of all processes that the test starts; in the end none of them is left.

    Five seconds are what a caller that was killed may take; executors that nobody holds any more end by themselves.
    """
    name = f"REMOTEEXEC_TEST_{uuid.uuid4().hex}"
    monkeypatch.setenv(name, "1")
    yield name
    gc.collect()
    assert gone(name) == []


def _started(options: SlurmOptions) -> Iterator[SlurmCluster]:
    if missing := missing_packages():
        skip_for_want_of("slurm", f"not installed: {' '.join(missing)}")
    try:
        with start_slurm_cluster(options) as cluster:
            yield cluster
    except NoClusterPython as exc:
        skip_for_want_of("slurm", str(exc))


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A rootless SLURM of two nodes with four CPUs and two GPUs, which are none, each behind an sshd."""
    yield from _started(SlurmOptions(gpus=2, features=("fast,rack1", "slow,rack2")))


@pytest.fixture(scope="session")
def small_array_cluster() -> Iterator[SlurmCluster]:
    """The same with MaxArraySize=5: array indices up to 4."""
    yield from _started(SlurmOptions(max_array_size=5))


@pytest.fixture(scope="session")
def embedded_cluster() -> Iterator[EmbeddedTestCluster]:
    """Our own SSH server in a process of its own, with the embedded scheduler behind it."""
    with start_embedded_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def net_cluster() -> Iterator[NetCluster]:
    """Virtual hosts: this machine as the laptop, a link without delay, a login node, four compute nodes."""
    if problem := obstacle():
        skip_for_want_of("netcluster", problem)
    try:
        with start_net_cluster() as cluster:
            yield cluster
    except NoClusterPython as exc:
        skip_for_want_of("netcluster", str(exc))


@pytest.fixture(scope="session")
def flux_instance() -> Iterator[FluxInstance]:
    """A Flux instance of two nodes with four cores each, which `flux` and our queue find through FLUX_URI."""
    if shutil.which("flux") is None:
        skip_for_want_of("flux", "no `flux` on PATH: flux-core is not installed")
    with start_flux_instance() as instance, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUX_URI", instance.uri)
        yield instance


@pytest.fixture(autouse=True)
def _recovered(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on a cluster: no jobs left, every daemon and node up, options as at first."""
    fixtures = {*SLURM_FIXTURES, "embedded_cluster", "flux_instance", "net_cluster"}
    used = [request.getfixturevalue(name) for name in sorted(fixtures & set(request.fixturenames))]
    yield
    for cluster in used:
        cluster.recover()


@pytest.fixture
def tmp_root(tmp_path: Path) -> Path:
    """A cluster root on this machine that does not exist yet, below a directory with a nasty name."""
    parent = tmp_path / "a'; echo b ü"
    parent.mkdir(mode=0o700)
    return parent / "root"
