"""The embedded cluster of remoteexec.demo, as tests want it: with a Python that has no remoteexec."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from remoteexec.demo.embedded import EmbeddedCluster
from remoteexec.demo.server import ServerOptions
from tests.clusters.accounts import borrowing_environment

_numbers = itertools.count()


class EmbeddedTestCluster(EmbeddedCluster):
    """A running embedded server with a Python for its jobs.

    Attributes:
        python: path of a Python with the cluster's packages, without remoteexec.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.python = borrowing_environment(directory / "python")
        self._host_key = self.place.host_key.read_bytes()

    def new_root(self, name: str = "remoteexec") -> str:
        """A path for a cluster root that does not exist yet, in a new private directory below HOME."""
        return str(self.make_directory(f"root-{next(_numbers)}") / name)

    def make_directory(self, name: str) -> Path:
        """Make a new directory below HOME, 0700."""
        path = self.home / name
        path.mkdir(mode=0o700, parents=True)
        return path

    def recover(self) -> None:
        """Undo what a test has changed."""
        if "server" not in self._kept.running():
            self._kept.start_program("server")
        self.resume()
        self.change(**asdict(ServerOptions()))
        self.place.host_key.write_bytes(self._host_key)


@contextmanager
def embedded_cluster() -> Iterator[EmbeddedTestCluster]:
    """Start an embedded cluster as the caller; everything is gone afterwards."""
    cluster = EmbeddedTestCluster(Path(tempfile.mkdtemp(prefix="remoteexec-embedded-")))
    with cluster:
        yield cluster
