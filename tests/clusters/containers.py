"""The container image of docker/: which engine runs here, and a cluster in one container of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
IMAGE = "remoteexec-slurm"


def engine() -> list[str] | None:
    """The command of a container engine that runs, None where there is none."""
    for name in ("docker", "podman"):
        if shutil.which(name) is None:
            continue
        try:
            done = subprocess.run(
                [name, "info"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
            )
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return [name]
    return None


def has_image(command: list[str], name: str) -> bool:
    return subprocess.run([*command, "image", "inspect", name], capture_output=True, check=False).returncode == 0


def base_image(command: list[str]) -> str | None:
    """The image to build on, pulled if need be; None where it can be had neither way."""
    base = os.environ.get("REMOTEEXEC_BASE_IMAGE", "debian:bookworm")
    if has_image(command, base):
        return base
    pulled = subprocess.run([*command, "pull", base], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return None if pulled.returncode else base


def build(command: list[str], base: str) -> None:
    """Build the image; a second time this takes a moment.

    Raises:
        subprocess.CalledProcessError: with what the engine printed.
    """
    argv = [*command, "build", "--quiet", "--file", "docker/Dockerfile", "--tag", IMAGE, "--build-arg", f"BASE={base}"]
    network = os.environ.get("REMOTEEXEC_BUILD_NETWORK")
    argv += [f"--network={network}"] if network else []
    subprocess.run([*argv, "."], cwd=REPOSITORY, capture_output=True, text=True, check=True)


@contextmanager
def container(command: list[str]) -> Iterator[tuple[list[str], Path]]:
    """Run a whole cluster in one container; yields an ssh command line, and its shared folder."""
    with tempfile.TemporaryDirectory(prefix="remoteexec-container-") as directory:
        shared = Path(directory)
        identity = shared / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", identity], check=True)
        shutil.copy(identity.with_suffix(".pub"), shared / "authorized_keys")
        argv = [
            "run",
            "--detach",
            "--rm",
            "--init",
            f"--volume={shared}:/shared",
            "--publish=127.0.0.1::22",
            IMAGE,
            "all",
        ]
        name = subprocess.run([*command, *argv], capture_output=True, text=True, check=True).stdout.strip()
        try:
            shown = subprocess.run([*command, "inspect", name], capture_output=True, text=True, check=True).stdout
            port = json.loads(shown)[0]["NetworkSettings"]["Ports"]["22/tcp"][0]["HostPort"]
            known = shared / "known_hosts"
            options = ["-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
            yield ["ssh", "-F", "none", *options, "-i", str(identity), "-p", port, "user@127.0.0.1"], shared
        finally:
            subprocess.run([*command, "rm", "--force", name], capture_output=True, check=False)
