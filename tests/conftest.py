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
from typing import Any

import cloudpickle
import pytest
from xdist.scheduler import LoadScopeScheduling

import tests
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

cloudpickle.register_pickle_by_value(tests)  # a cluster cannot import them

SLURM_FIXTURES = {"slurm_cluster", "small_array_cluster"}


def skip_for_want_of(what: str, reason: str) -> None:
    """Skip the test, or fail it where REMOTEEXEC_REQUIRE names `what`."""
    if what in os.environ.get("REMOTEEXEC_REQUIRE", "").split(","):
        pytest.fail(f"REMOTEEXEC_REQUIRE asks for {what}: {reason}")
    pytest.skip(reason)


WHOLE_MACHINE = ("test_mpi_jobs", "test_pool_mpi", "test_netcluster", "test_wide_area")
"""Files whose tests look at what all of the machine has: network namespaces, shared memory."""


class FilesTogether(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """The tests of a file in one process, where they share its clusters; those that look at the whole machine too."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "the whole machine" if Path(path).stem in WHOLE_MACHINE else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    return FilesTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the clusters it uses; the longest group, which is one after another, begins."""
    items.sort(key=lambda item: item.path.stem not in WHOLE_MACHINE)
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        if SLURM_FIXTURES & used:
            item.add_marker("slurm")
        if "net_cluster" in used:
            item.add_marker("netcluster")
        if "flux_instance" in used:
            item.add_marker("flux")


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
    """A rootless SLURM of two nodes with four CPUs and two GPUs, which are none, behind an sshd; it preempts."""
    yield from _started(SlurmOptions(gpus=2, features=("fast,rack1", "slow,rack2"), preemption=True))


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
