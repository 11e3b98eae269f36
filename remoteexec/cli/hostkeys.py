"""The dialogue about a host key: shown, compared, trusted only if a person or `--fingerprint` says so."""

from __future__ import annotations

from ..config import ClusterConfig
from ..errors import HostKeyChanged, HostKeyError, HostKeyUnknown
from ..ssh import hostkeys
from ..ssh.hostkeys import HostKey, KnownKey, Verdict
from ..ssh.target import Target, resolve
from . import terminal

__all__ = ["settle"]


def settle(config: ClusterConfig, fingerprint: str | None) -> bool:
    """See to it that the cluster's host key is on file.

    Args:
        config: The cluster.
        fingerprint: "SHA256:...": that key is trusted without asking, and no other.

    Returns:
        False if the user was asked and refused; then nothing has changed.

    Raises:
        HostKeyError: Nobody could be asked, or the key is not the one of `fingerprint`, or it is revoked.
        ConnectError: The host does not answer.
    """
    settings = config.ssh_settings()
    target = resolve(settings)
    known = hostkeys.known_keys(target.known_as, target.known_hosts)
    offered = hostkeys.fetch(
        target.host, target.port, prefer=[entry.key.type for entry in known], timeout_s=settings.connect_timeout_s
    )
    verdict = hostkeys.verdict(offered, known)
    terminal.say(f"Host key of {target.known_as}: {offered.type} {offered.fingerprint}")
    if fingerprint is not None and fingerprint != offered.fingerprint:
        raise _error(HostKeyError, target, offered, f"That is not the key that was named: {fingerprint}.", "")
    if verdict is Verdict.KNOWN:
        terminal.say("It is known.")
        return True
    if verdict is Verdict.REVOKED:
        raise _error(HostKeyError, target, offered, "It is marked as revoked; it cannot be trusted.", "")
    if not _agreed(config, target, offered, known, fingerprint):
        return False
    _trust(target, offered, known)
    terminal.say(f"Added to {target.known_hosts[0]}.")
    return True


def _agreed(
    config: ClusterConfig, target: Target, offered: HostKey, known: tuple[KnownKey, ...], fingerprint: str | None
) -> bool:
    valid = [entry for entry in known if not entry.revoked]
    if valid:
        terminal.say("It has CHANGED. On file:")
        for entry in valid:
            terminal.say(f"  {entry.key.type} {entry.key.fingerprint}   ({entry.file}, line {entry.line})")
        terminal.say("Somebody may be posing as this host, or it was set up anew: ask your cluster's support.")
    else:
        terminal.say("It is not known yet: compare it with the fingerprint that your cluster publishes.")
    if fingerprint is not None:
        return True
    if not terminal.interactive():
        kind = HostKeyChanged if valid else HostKeyUnknown
        what = "has CHANGED" if valid else "is not known"
        raise _error(
            kind,
            target,
            offered,
            f"The host key of {target.known_as} {what}, and there is no terminal to ask on.",
            f"If the fingerprint is right, run the command again with `--fingerprint {offered.fingerprint}`.",
        )
    if terminal.confirm("Trust the new key, and forget the old?" if valid else "Trust it?"):
        return True
    terminal.say(f"Nothing was changed for {config.name!r}.")
    return False


def _trust(target: Target, offered: HostKey, known: tuple[KnownKey, ...]) -> None:
    own = target.known_hosts[:-1] or target.known_hosts  # the last one is the system's, unless a file was named
    for file in {entry.file for entry in known if not entry.revoked and entry.file in own}:
        hostkeys.remove(file, target.known_as)
    hostkeys.add(target.known_hosts[0], target.known_as, offered)


def _error(kind: type[HostKeyError], target: Target, offered: HostKey, what: str, remedy: str) -> HostKeyError:
    return kind(
        "\n".join(line for line in (what, f"It offers {offered.type} {offered.fingerprint}.", remedy) if line),
        host=target.known_as,
        key_type=offered.type,
        fingerprint=offered.fingerprint,
        known_hosts=tuple(str(file) for file in target.known_hosts),
    )
