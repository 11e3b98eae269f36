"""The rootless SLURM of remoteexec.demo, as tests want it: an ordinary user also under root, and quick scheduling."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from remoteexec.demo.processes import Account
from remoteexec.demo.slurm import RootlessSlurm, SlurmOptions, accepts
from tests.clusters.accounts import cluster_python, make_account

_numbers = itertools.count()


class SlurmCluster(RootlessSlurm):
    """A running rootless SLURM with a Python for its jobs.

    Attributes:
        scheduler: "slurm", the word of the cluster configuration.
        python: path of a Python with the cluster's packages, without remoteexec.
    """

    scheduler = "slurm"
    python: Path

    def new_root(self, name: str = "remoteexec") -> str:
        """A path for a cluster root that does not exist yet, in a new private directory below HOME."""
        return str(self.make_directory(f"root-{next(_numbers)}") / name)

    def cut_power(self) -> None:
        """Kill login node and nodes at once, and all that runs there; the controller has saved what it knows."""
        self.cut_connections()
        self.stop_controller()
        for program in ("sshd", *self.nodes):
            self._kept.stop_program(program)
        for node in self.nodes:
            self._kept.kill_matching(f"SLURMD_NODENAME={node}")

    def restore_power(self) -> None:
        """Boot them: the controller remembers its jobs, and the nodes come later than SlurmdTimeout."""
        self.start_sshd()
        self._kept.start_program("slurmctld")
        self.wait(lambda: accepts(self.controller_port), "slurmctld does not accept connections")
        for node in self.nodes:
            self.down(node)  # as the controller itself does after that time
        self.resume(*self.nodes)


@contextmanager
def slurm_cluster(options: SlurmOptions | None = None) -> Iterator[SlurmCluster]:
    """Start a cluster as the caller, or as a throwaway user where the caller is root; everything is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="remoteexec-slurm-"))
    options = replace(options or SlurmOptions(), preload=fast_scheduling(directory), environment=pip_environment())
    account, afterwards = Account.of_caller(), []
    if account.uid == 0:
        account = make_account(f"rxtest{os.getpid()}x{next(_numbers)}", directory / "home")
        afterwards = [["userdel", account.name]]
    cluster = SlurmCluster(directory, options, account, afterwards)
    with cluster:
        cluster.python = cluster_python(account, directory / "python")
        yield cluster


def pip_environment() -> dict[str, str]:
    """The caller's settings of pip: `remoteexec install` runs it on the cluster, which here reaches the same index."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value.isprintable() and " " not in value
    }


def fast_scheduling(directory: Path) -> Path | None:
    """Compile fastsched.c into a directory; None where there is no compiler."""
    if shutil.which("gcc") is None:
        return None
    library = directory / "fastsched.so"
    source = Path(__file__).with_name("fastsched.c")
    argv = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    return None if subprocess.run(argv, stderr=subprocess.DEVNULL, check=False).returncode else library
