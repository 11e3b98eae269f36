"""Host keys: what known_hosts files say of a host, and adding to them after a person has agreed.

Files are read as OpenSSH reads them (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"): plain, hashed and wildcard names,
negation, `[host]:port`, several keys for one host, @revoked. paramiko's own reader compares only the first key of each
type, and many clusters have several login nodes with different keys under one name. @cert-authority lines are passed
over.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ConnectError, HostKeyChanged, HostKeyUnknown
from .tcp import open_socket

__all__ = [
    "HostKey",
    "KnownKey",
    "Verdict",
    "add",
    "check",
    "default_files",
    "fetch",
    "host_name",
    "known_keys",
    "prefer_types",
    "remove",
    "verdict",
]


@dataclass(frozen=True)
class HostKey:
    """A server's public key.

    Attributes:
        type: For example "ssh-ed25519".
        blob: The key in SSH's encoding.
    """

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: "SHA256:...", 43 characters of base64."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class KnownKey:
    """A line of a known_hosts file that speaks of the host in question."""

    key: HostKey
    revoked: bool
    file: Path
    line: int


class Verdict(enum.Enum):
    """What the files say of a key that a server offers."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


def host_name(host: str, port: int) -> str:
    """The name of a host in known_hosts files: `host`, or `[host]:port` where the port is not 22."""
    return host if port == 22 else f"[{host}]:{port}"


def default_files() -> tuple[Path, ...]:
    """The user's files, then the system's; the first is where `ssh` adds keys."""
    home = Path.home() / ".ssh"
    return (home / "known_hosts", home / "known_hosts2", Path("/etc/ssh/ssh_known_hosts"))


def known_keys(name: str, files: Iterable[Path]) -> tuple[KnownKey, ...]:
    """All keys on file for a host; files that do not exist are passed over.

    Raises:
        ConfigError: A file cannot be read.
    """
    found = []
    for file in files:
        for number, line in enumerate(_lines(file), start=1):
            parsed = _parse(line)
            if parsed is not None and _matches(parsed[1], name):
                marker, _, key = parsed
                if marker in ("", "@revoked"):
                    found.append(KnownKey(key, marker == "@revoked", file, number))
    return tuple(found)


def verdict(offered: HostKey, known: Sequence[KnownKey]) -> Verdict:
    """Compare the key that a server offers with those on file; a revoked key is never good."""
    if any(entry.revoked and entry.key == offered for entry in known):
        return Verdict.REVOKED
    valid = [entry.key for entry in known if not entry.revoked]
    if offered in valid:
        return Verdict.KNOWN
    return Verdict.CHANGED if valid else Verdict.UNKNOWN


def add(file: Path, name: str, key: HostKey) -> None:
    """Append a key; the file is made 0600 and its directory 0700 where they are missing."""
    text = "\n".join(_lines(file))
    _replace(file, [*text.splitlines(), f"{name} {key.type} {base64.b64encode(key.blob).decode()}"])


def remove(file: Path, name: str) -> int:
    """Take out the keys of a host (not the revoked ones), and say how many there were.

    A line that names further hosts keeps those; a wildcard line is left alone, since it speaks of other hosts too.
    """
    kept, removed = [], 0
    for line in _lines(file):
        parsed = _parse(line)
        if parsed is None or parsed[0] or not _matches(parsed[1], name):
            kept.append(line)
            continue
        others = [pattern for pattern in parsed[1].split(",") if not _matches(pattern, name)]
        if "*" in parsed[1] or "?" in parsed[1]:
            kept.append(line)
            continue
        removed += 1
        if others:
            kept.append(line.replace(parsed[1], ",".join(others), 1))
    if removed:
        _replace(file, kept)
    return removed


def check(offered: HostKey, known: Sequence[KnownKey], *, name: str, files: Sequence[Path], cluster: str = "") -> None:
    """Accept a key by returning.

    Args:
        offered: By the server.
        known: All keys on file for it.
        name: Of the host in those files.
        files: That were searched.
        cluster: Its name in clusters.toml, for the message.

    Raises:
        HostKeyUnknown: Not on file.
        HostKeyChanged: Not the one on file, or revoked.
    """
    remedy = f"`remoteexec config trust {cluster or 'NAME'}`"
    match verdict(offered, known):
        case Verdict.UNKNOWN:
            raise _unknown(offered, name, files, remedy)
        case Verdict.CHANGED | Verdict.REVOKED as found:
            raise _changed(offered, known, name, remedy, found is Verdict.REVOKED)


def prefer_types(transport: Any, types: Sequence[str]) -> None:
    """Ask a server first for the kinds of host key that are on file, as OpenSSH does."""
    options = transport.get_security_options()
    wanted = {name for known in types for name in _algorithms(known)}
    options.key_types = sorted(options.key_types, key=lambda name: name not in wanted)


def fetch(host: str, port: int, *, prefer: Sequence[str] = (), timeout_s: float = 15.0) -> HostKey:
    """Ask a server for its host key, without logging in.

    Args:
        host: Name or address.
        port: TCP port.
        prefer: Key types to ask for first.
        timeout_s: For the connection, and again for the handshake.

    Raises:
        ConnectError: Nobody there, or not an SSH server.
    """
    import paramiko

    sock = open_socket(host, port, timeout_s)
    transport = None
    try:
        transport = paramiko.Transport(sock)
        prefer_types(transport, prefer)
        transport.start_client(timeout=timeout_s)
        key = transport.get_remote_server_key()
        return HostKey(key.get_name(), key.asbytes())
    except (paramiko.SSHException, OSError, EOFError) as exc:
        raise ConnectError(
            f"{host}, port {port}, answers, but not as an SSH server: {str(exc) or type(exc).__name__}.\n"
            "Check host and port with your cluster's documentation."
        ) from exc
    finally:
        if transport is not None:
            transport.close()
        sock.close()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise ConfigError(
            f"The known_hosts file {file} cannot be read: {exc.strerror}.\nMake it readable, or name another one."
        ) from exc


def _replace(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = file.resolve()  # ~/.ssh/known_hosts may be a link into somebody's dotfiles
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as out:
            out.writelines(line + "\n" for line in lines)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parse(line: str) -> tuple[str, str, HostKey] | None:
    words = line.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#"):
        return None
    try:
        blob = base64.b64decode(words[2], validate=True)
    except (binascii.Error, ValueError):
        return None
    return marker, words[0], HostKey(words[1], blob)


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in patterns[3:].split("|"))
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)
    matched = False
    for pattern in patterns.split(","):
        plain = pattern.lower().removeprefix("!")
        regex = re.escape(plain).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(regex, name.lower()):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched


def _unknown(offered: HostKey, name: str, files: Sequence[Path], remedy: str) -> HostKeyUnknown:
    searched = tuple(str(file) for file in files)
    return HostKeyUnknown(
        f"The host key of {name} is not known.\n"
        f"It offers {offered.type} {offered.fingerprint}; searched: {', '.join(searched)}.\n"
        "Compare the fingerprint with the one your cluster publishes; if they agree, run "
        f"{remedy}.",
        host=name,
        key_type=offered.type,
        fingerprint=offered.fingerprint,
        known_hosts=searched,
    )


def _changed(offered: HostKey, known: Sequence[KnownKey], name: str, remedy: str, revoked: bool) -> HostKeyChanged:
    entries = [entry for entry in known if entry.revoked == revoked]
    entry = next((entry for entry in entries if entry.key.type == offered.type), entries[0])
    found = f"line {entry.line} of {entry.file}"
    if revoked:
        told = f"It offers {offered.type} {offered.fingerprint}, which {found} marks as revoked."
    else:
        told = f"It offers {offered.type} {offered.fingerprint}, but {found} has {entry.key.type} "
        told += f"{entry.key.fingerprint}."
    return HostKeyChanged(
        f"The host key of {name} has CHANGED; nothing was sent to it.\n"
        f"{told}\n"
        "Somebody may be posing as this host, or it was set up anew. Ask your cluster's support for the new "
        f"fingerprint; if it is the one offered, run {remedy}.",
        host=name,
        key_type=offered.type,
        fingerprint=offered.fingerprint,
        known_hosts=(str(entry.file),),
        expected=entry.key.fingerprint,
    )


def _algorithms(key_type: str) -> tuple[str, ...]:
    """An RSA key is one key with three signatures."""
    return ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa") if key_type == "ssh-rsa" else (key_type,)
