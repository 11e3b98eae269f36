"""One round of authentication: which keys are offered, in which order, and what to tell the user when all are refused.

Order: the named key alone, if one is named; else the `IdentityFile`s of ~/.ssh/config, the agent's keys (unless
`IdentitiesOnly yes`), the usual files of ~/.ssh. Then the password, if there is one to ask for. Each is tried once;
sites ban addresses for repeated failures, so nothing here is ever tried again. A file that is encrypted is used through
the agent if that holds it, and is passed over if not: nothing here asks for passphrases.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AuthenticationFailed
from .base import SshSettings

__all__ = ["Authentication", "public_blob"]

MAX_KEYS = 5
"""sshd hangs up after 6 failures (MaxAuthTries) by default; one is left for the password."""
USUAL_FILES = ("id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class Offer:
    """A key to try. `label` says in messages which one that was."""

    label: str
    key: Any


class Authentication:
    """What fabric calls an authentication strategy: `authenticate` is called once, after the host key was checked.

    Args:
        settings: Names the key, if any, and holds the password's source.
        user: Login name.
        host: For messages.
        identity_files: Of ~/.ssh/config.
        identities_only: Leave out what only the agent has, and the usual files.
    """

    def __init__(
        self, settings: SshSettings, user: str, host: str, identity_files: Sequence[str], identities_only: bool
    ) -> None:
        self._settings = settings
        self._user = user
        self._host = host
        self._identity_files = tuple(Path(file).expanduser() for file in identity_files)
        self._identities_only = identities_only
        self._tried: list[str] = []
        self._unusable: list[str] = []
        self._locked: list[Path] = []

    def authenticate(self, transport: Any) -> None:
        """Try each way once.

        Raises:
            AuthenticationFailed: Says what was tried and what to do.
        """
        import paramiko

        agent = paramiko.Agent()
        try:
            accepted: Sequence[str] | None = None
            for offer in self._offers(agent):
                self._tried.append(offer.label)
                try:
                    further = transport.auth_publickey(self._user, offer.key)
                except paramiko.BadAuthenticationType as exc:
                    accepted = exc.allowed_types
                    break
                except paramiko.AuthenticationException:
                    if not transport.is_active():  # refused and hung up: what follows could not be heard
                        raise self._failed(None) from None
                    continue
                if further:
                    self._second_factor(transport, further)
                return
            self._try_password(transport, accepted)
        finally:
            agent.close()

    def _try_password(self, transport: Any, accepted: Sequence[str] | None) -> None:
        import paramiko

        takes_password = accepted is None or "password" in accepted or "keyboard-interactive" in accepted
        password = self._settings.password() if self._settings.password is not None and takes_password else None
        if password is None:
            raise self._failed(accepted)
        self._tried.append("the password")
        try:
            further = transport.auth_password(self._user, password)
        except paramiko.BadAuthenticationType as exc:
            self._tried.pop()
            self._unusable.append("the server takes no password")
            raise self._failed(exc.allowed_types) from exc
        except paramiko.AuthenticationException as exc:
            raise self._failed(accepted) from exc
        if further:
            raise self._failed(further, second=True)

    def _second_factor(self, transport: Any, further: Sequence[str]) -> None:
        import paramiko

        password = self._settings.password() if self._settings.password is not None and "password" in further else None
        if password is None:
            raise self._failed(further, second=True)
        self._tried.append("the password")
        try:
            if transport.auth_password(self._user, password, fallback=False):
                raise self._failed(further, second=True)
        except paramiko.AuthenticationException as exc:
            raise self._failed(further, second=True) from exc

    def _offers(self, agent: Any) -> Iterator[Offer]:
        """At most MAX_KEYS keys, none twice."""
        offered: set[bytes] = set()
        for offer in self._candidates(agent):
            blob = offer.key.asbytes()
            if blob not in offered and len(offered) < MAX_KEYS:
                offered.add(blob)
                yield offer

    def _candidates(self, agent: Any) -> Iterator[Offer]:
        in_agent = {key.asbytes(): key for key in agent.get_keys()}
        named = self._settings.identity_file
        for file in (Path(named).expanduser(),) if named else self._identity_files:
            yield from self._of_file(file, in_agent, wanted=bool(named))
        if named or self._identities_only:
            return
        for key in in_agent.values():
            yield Offer(f"key {getattr(key, 'comment', '') or key.get_name()!r} of the SSH agent", key)
        for name in USUAL_FILES:
            file = Path.home() / ".ssh" / name
            if file.exists():
                yield from self._of_file(file, in_agent, wanted=False)

    def _of_file(self, file: Path, in_agent: dict[bytes, Any], wanted: bool) -> Iterator[Offer]:
        import paramiko

        try:
            yield Offer(f"key {file}", paramiko.PKey.from_path(file))
            return
        except FileNotFoundError:
            problem = "does not exist"
        except OSError as exc:
            problem = f"cannot be read: {exc.strerror}"
        except (TypeError, paramiko.PasswordRequiredException):
            problem = "is encrypted"
        except (ValueError, paramiko.SSHException, paramiko.UnknownKeyType) as exc:
            problem = f"is not a private key that can be used: {str(exc) or type(exc).__name__}"
        key = in_agent.get(public_blob(file) or b"")
        if key is not None:
            yield Offer(f"key {file} (through the SSH agent)", key)
        elif problem == "is encrypted":
            self._locked.append(file)
        elif wanted or problem != "does not exist":
            self._unusable.append(f"{file} {problem}")

    def _failed(self, accepted: Sequence[str] | None, second: bool = False) -> AuthenticationFailed:
        lines = [f"{self._host} did not let user {self._user!r} in."]
        lines.append(f"Tried, each once: {', '.join(self._tried)}." if self._tried else "There was no key to try.")
        lines += [f"Not tried: {file} is encrypted, and the SSH agent does not hold it." for file in self._locked]
        lines += [f"Not tried: {what}." for what in self._unusable]
        if accepted:
            lines.append(f"The server {'also wants' if second else 'accepts'}: {', '.join(accepted)}.")
        lines.append(self._next_step(accepted, second))
        return AuthenticationFailed("\n".join(lines))

    def _next_step(self, accepted: Sequence[str] | None, second: bool) -> str:
        name = self._settings.cluster or "NAME"
        if second:
            return "Logins in two steps are not supported yet: use a host or a key for which one step is enough."
        if self._locked:
            return f"Run `ssh-add {self._locked[0]}`, then try again."
        if accepted and "publickey" not in accepted:
            return "Log in with a password: run the `remoteexec` command in a terminal, which asks for it."
        if self._settings.identity_file:
            return (
                f"See that user and key are right and that {self._settings.identity_file}.pub stands in "
                f"~/.ssh/authorized_keys there; to change them, run "
                f"`remoteexec config add-cluster {name} --user USER --identity-file FILE`."
            )
        return (
            "See that the user is right and that one of your public keys stands in ~/.ssh/authorized_keys there; "
            f"load a key with `ssh-add FILE`, or name it: `remoteexec config add-cluster {name} --identity-file FILE`."
        )


def public_blob(file: Path) -> bytes | None:
    """The public half of a private key, without its passphrase: from FILE.pub, else from the plain head of FILE."""
    for candidate in (file.with_name(file.name + ".pub"), file):
        try:
            text = candidate.read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        try:
            if not text.startswith("-----"):
                return base64.b64decode(text.split()[1], validate=True)
            body = base64.b64decode("".join(line for line in text.splitlines() if "-----" not in line))
            return _head_of_openssh_key(body)
        except (IndexError, ValueError, binascii.Error, struct.error):
            continue
    return None


def _head_of_openssh_key(body: bytes) -> bytes | None:
    """The public key in an "openssh-key-v1" file (PROTOCOL.key of OpenSSH): cipher, kdf, its options, count, key."""
    magic = b"openssh-key-v1\0"
    if not body.startswith(magic):
        return None
    position = len(magic)
    for _ in range(3):
        position += 4 + struct.unpack_from(">I", body, position)[0]
    position += 4
    length = struct.unpack_from(">I", body, position)[0]
    return body[position + 4 : position + 4 + length]
