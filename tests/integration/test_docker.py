"""The container image runs jobs behind an sshd. Needs a running engine that can build: docker/README.md."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.clusters.containers import base_image, build, container, engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def ssh(login: list[str], shared: Path, command: str) -> subprocess.CompletedProcess[str]:
    public = shared / "host_ed25519.pub"
    if public.exists():
        port = login[login.index("-p") + 1]
        (shared / "known_hosts").write_text(f"[127.0.0.1]:{port} {public.read_text()}")
    return subprocess.run([*login, command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def test_the_image_runs_a_job_sent_over_ssh() -> None:
    command = engine()
    if command is None:
        pytest.skip("no container engine is running")
    base = base_image(command)
    if base is None:
        pytest.skip("the base image is not here and cannot be pulled; docker/README.md says how to make one")
    build(command, base)
    with container(command) as (login, shared):
        deadline = time.monotonic() + 30
        while ssh(login, shared, "sinfo --noheader --states=idle --partition=debug --format=%D").stdout.strip() != "2":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        python = "/opt/python/bin/python -c 'import cloudpickle, h5py, pysqa; print(6 * 7)'"
        done = ssh(login, shared, f"srun --ntasks=1 {python}")
        assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
