"""A Windows laptop is a client: nothing that it imports needs a module that only POSIX has."""

from __future__ import annotations

import subprocess
import sys

import pytest

POSIX = ("fcntl", "grp", "posix_ipc", "pwd", "resource", "syslog", "termios", "tty")
MODULES = (
    "remoteexec",
    "remoteexec.executors.remote",
    "remoteexec.ssh.fabric_link",
    "remoteexec.ssh.gateway_client",
    "remoteexec.config",
    "remoteexec.deploy",
    "remoteexec.cli",
    "remoteexec.cli.check",
)


@pytest.mark.parametrize("module", MODULES)
def test_a_client_imports_without_posix_modules(module: str) -> None:
    code = (
        f"import sys\nfor name in {POSIX!r}:\n    sys.modules[name] = None\n"
        f"import {module}\nfrom remoteexec import RemoteExecutor\nprint(RemoteExecutor.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("RemoteExecutor\n", "")
