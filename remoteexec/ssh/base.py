"""The seam to a cluster's login node: run a command, hold one open, put a file.

Implementations: `fabric_link` (fabric and paramiko, in this process). A link is one SSH connection, whatever is done
over it: sites count logins. It connects when told to and never again by itself: its owner decides when to try again.

Rules for every link:

- Host keys are checked; an unknown or changed one is refused before any authentication.
- One round of authentication, never repeated; nothing asks on the terminal unless `SshSettings.password` does.
- Commands are argument lists, joined once, here. Bytes pass unchanged in both directions.
- `run`, `open` and `put_file` may be called from several threads at once; a `Stream` has one reader and one writer.
- Errors are `remoteexec.errors.TransportError`s with the library's own as `__cause__`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

__all__ = ["Completed", "Link", "SshSettings", "Stream"]

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class SshSettings:
    """How to reach one login node. What is None comes from ~/.ssh/config, then from SSH's defaults.

    Attributes:
        host: Name, address, or a `Host` of ~/.ssh/config.
        cluster: The name in clusters.toml, for messages that say what to run; "" if there is none.
        user: Login name.
        port: TCP port.
        identity_file: Private key. If given, no other key is offered.
        known_hosts: File of host keys. If given, no other file is read.
        password: Called when the keys were refused and the server takes a password; None as its answer gives up.
        connect_timeout_s: For the TCP connection, and again for the SSH handshake and each authentication step.
        keepalive_s: An empty message goes out when nothing else did for so long.
        dead_after_s: The connection counts as lost when sent bytes stay unconfirmed for so long.
    """

    host: str
    cluster: str = ""
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    password: Callable[[], str | None] | None = None
    connect_timeout_s: float = 15.0
    keepalive_s: float = 15.0
    dead_after_s: float = 30.0


@dataclass(frozen=True)
class Completed:
    """A command that has ended.

    Attributes:
        exit_code: As the shell gave it; -1 if a signal ended the command or the server did not say.
    """

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    def check(self) -> Completed:
        """Itself, if the command succeeded.

        Raises:
            subprocess.CalledProcessError: It did not.
        """
        if self.exit_code != 0:
            raise subprocess.CalledProcessError(self.exit_code, list(self.argv), self.stdout, self.stderr)
        return self


class Stream(Protocol):
    """A running command: its standard input, output, and the end of its standard error."""

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""

    def read_some(self, n: int) -> bytes:
        """Wait for output and return 1 to `n` bytes of it; b"" at its end.

        Raises:
            ConnectionLost: The connection broke, so this is not the end of the output.
        """

    def write(self, data: Buffer) -> None:
        """Send all of it, as fast as the other side reads.

        Raises:
            ConnectionLost: The connection broke, or the command has ended or closed its input.
        """

    def close_input(self) -> None:
        """Let the command see the end of its input."""

    def stderr_tail(self) -> str:
        """The last 16 KiB of its standard error, so far."""

    def close(self) -> None:
        """Close the channel: the command sees the end of its input and a closed output."""


class Link(Protocol):
    """One SSH connection. See the rules at the head of this file."""

    @property
    def is_open(self) -> bool:
        """Connected, as far as can be known without sending something."""

    def connect(self) -> None:
        """Connect, check the host key, authenticate; nothing if that has been done.

        Raises:
            ConnectError: No such name, nobody there, or too slow.
            HostKeyUnknown: No key of this host on file.
            HostKeyChanged: Another key than that on file.
            AuthenticationFailed: The keys and the password were refused.
            ConfigError: ~/.ssh/config says something that is not supported.
        """

    def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float = 60.0) -> Completed:
        """Run a command and wait for its end; its output may be up to 64 MiB.

        Raises:
            ConnectionLost: The connection broke, or the command took longer than `timeout_s`.
        """

    def open(self, argv: Sequence[str]) -> Stream:
        """Start a command and talk to it. See `run` for what it raises."""

    def put_file(self, data: bytes, path: PurePosixPath, mode: int = 0o600) -> None:
        """Write a file by SFTP: under a temporary name in the same directory, then renamed.

        Raises:
            StoreError: The cluster refused it; says why.
            ConnectionLost: The connection broke; the file is there whole, or not at all.
        """

    def close(self) -> None:
        """Close the connection and all that runs over it. Closing twice is fine."""
