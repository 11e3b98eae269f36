"""Where a login goes: the settings, completed from ~/.ssh/config and /etc/ssh/ssh_config."""

from __future__ import annotations

import getpass
import glob
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from . import hostkeys
from .base import SshSettings

__all__ = ["Target", "resolve"]

MAX_INCLUDES = 16
"""Depth, as in OpenSSH."""


@dataclass(frozen=True)
class Target:
    """Where a login goes, after ~/.ssh/config.

    Attributes:
        host: Name or address to connect to.
        known_as: The name in known_hosts files.
        known_hosts: Files to look in; the first is the one to add to.
        identity_files: `IdentityFile`s of ~/.ssh/config.
        identities_only: Of ~/.ssh/config.
    """

    host: str
    port: int
    user: str
    known_as: str
    known_hosts: tuple[Path, ...]
    identity_files: tuple[str, ...] = ()
    identities_only: bool = False


def resolve(settings: SshSettings) -> Target:
    """Complete the settings from ~/.ssh/config and /etc/ssh/ssh_config.

    Raises:
        ConfigError: A file of these cannot be read or wants a jump host.
    """
    found = _ssh_config().lookup(settings.host)
    for key, word in (("proxyjump", "ProxyJump"), ("proxycommand", "ProxyCommand")):
        if (found.get(key) or "none").lower() != "none":
            raise ConfigError(
                f"~/.ssh/config sends {settings.host!r} through {word} {found[key]!r}, which is not supported yet.\n"
                "Name a login node that can be reached directly, or open a tunnel and add its local end: "
                "`ssh -L 2222:LOGIN-NODE:22 JUMP-HOST`, then `--host 127.0.0.1 --port 2222`."
            )
    host = found.get("hostname", settings.host)
    try:
        port = settings.port or int(found.get("port", 22))
    except ValueError as exc:
        raise ConfigError(f"~/.ssh/config: Port {found['port']!r} of {settings.host!r} is not a number.") from exc
    return Target(
        host=host,
        port=port,
        user=settings.user or found.get("user") or getpass.getuser(),
        known_as=found.get("hostkeyalias") or hostkeys.host_name(host, port),
        known_hosts=_known_hosts_files(settings, found),
        identity_files=tuple(found.get("identityfile", ())),
        identities_only=found.get("identitiesonly", "no").lower() == "yes",
    )


def _known_hosts_files(settings: SshSettings, found: Any) -> tuple[Path, ...]:
    if settings.known_hosts:
        return (Path(settings.known_hosts).expanduser(),)
    *users, system = hostkeys.default_files()
    # "none" and /dev/null are how one turns the check off, which cannot be done here
    named = [name for name in shlex.split(found.get("userknownhostsfile", "")) if name not in ("none", "/dev/null")]
    return (*([Path(name).expanduser() for name in named] or users), system)


def _ssh_config() -> Any:
    import paramiko

    config = paramiko.SSHConfig()
    try:
        for file in (Path.home() / ".ssh" / "config", Path("/etc/ssh/ssh_config")):
            config.parse(io.StringIO("".join(_lines(file, file.parent))))
    except (paramiko.SSHException, OSError, ValueError) as exc:
        raise ConfigError(
            f"Your SSH configuration (~/.ssh/config or /etc/ssh/ssh_config) cannot be read: {exc}.\n"
            "Try `ssh -G HOST`, which names the line."
        ) from exc
    return config


def _lines(file: Path, directory: Path, block: str = "Host *\n", depth: int = 0) -> Iterator[str]:
    """The lines of a file with those of included files in their places, which paramiko does not know.

    After an included file its block is opened again, so that the lines below belong to it and not to a block of the
    included file.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    for line in text.splitlines(keepends=True):
        found = re.fullmatch(r"\s*include[\s=]+(.*)", line.strip(), re.IGNORECASE)
        if re.match(r"\s*(host|match)[\s=]", line, re.IGNORECASE):
            block = line
        if found is None:
            yield line
        elif depth < MAX_INCLUDES:
            for pattern in shlex.split(found[1]):
                for name in sorted(glob.glob(str(directory / Path(pattern).expanduser()))):
                    yield from _lines(Path(name), directory, block, depth + 1)
            yield f"\n{block}"
