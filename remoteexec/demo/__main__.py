"""`make demo`: a cluster for a minute on this machine, behind a real SSH login, and an example that runs on it."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import remoteexec
from remoteexec.demo.embedded import EmbeddedCluster
from remoteexec.demo.slurm import RootlessSlurm, missing_packages

EXAMPLE = Path(remoteexec.__file__).parents[1] / "examples" / "bulk_modulus.py"
EXPLANATIONS = {
    "local": "an SSH server of ours; jobs are processes of this machine",
    "slurm": "a real SLURM of two nodes behind a real sshd, without root",
}


def step(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(argv: Sequence[str], shown: str, environment: dict[str, str]) -> None:
    """Show a command, run it, and end the demonstration where it fails."""
    print(f"$ {shown}", flush=True)
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"The demonstration ends here: exit code {done.returncode} of {shlex.join(argv)}")


def demonstrate(cluster: EmbeddedCluster | RootlessSlurm, scheduler: str) -> None:
    """Add the cluster to a configuration of its own, install our side there, and run the example on it."""
    # beside the client's key: it goes with the cluster
    environment = {**os.environ, "REMOTEEXEC_CONFIG": str(cluster.identity_file.parent / "clusters.toml")}
    command = [sys.executable, "-m", "remoteexec.cli"]
    add = ["config", "add-cluster", "demo", "--host", cluster.host, "--port", str(cluster.port), "--user", cluster.user]
    add += ["--scheduler", scheduler, "--identity-file", str(cluster.identity_file)]
    add += ["--known-hosts", str(cluster.known_hosts), "--no-test", "--yes"]
    run([*command, *add], f"remoteexec {shlex.join(add)}", environment)
    install = ["install", "demo", "--python", sys.executable]
    run([*command, *install], f"remoteexec {shlex.join(install)}", environment)
    step("Eleven energies, one job array; the fit is a job that waits for them")
    example = [str(EXAMPLE), "--cluster", "demo", "--check"]
    run([sys.executable, *example], f"python {shlex.join(['examples/bulk_modulus.py', *example[1:]])}", environment)


def end(*_: object) -> None:
    raise SystemExit(1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m remoteexec.demo", description=__doc__)
    parser.add_argument("--scheduler", choices=sorted(EXPLANATIONS), default="local", help="default: local")
    scheduler = parser.parse_args().scheduler
    if not EXAMPLE.exists():
        raise SystemExit(f"{EXAMPLE} is missing: run the demonstration from a checkout of the project")
    if scheduler == "slurm" and (missing := missing_packages()):
        raise SystemExit(
            f"Not installed: {' '.join(missing)}\n"
            f"  sudo apt-get install --no-install-recommends {' '.join(missing)}\n"
            "Without them, `make demo` runs on the embedded cluster."
        )
    signal.signal(signal.SIGTERM, end)
    began = time.monotonic()
    step(f"A cluster named demo: {EXPLANATIONS[scheduler]}")
    directory = Path(tempfile.mkdtemp(prefix="remoteexec-demo-"))
    with RootlessSlurm(directory) if scheduler == "slurm" else EmbeddedCluster(directory) as cluster:
        print(f"ssh login on {cluster.host}:{cluster.port}, files in {directory}", flush=True)
        demonstrate(cluster, scheduler)
        step("Cleaning up")
    print(f"Nothing is left in {directory}; {time.monotonic() - began:.1f} s in all")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
