"""What a user sees when the way to the cluster is barred: whole messages, and no second attempt."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remoteexec.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectError,
    ConnectionLost,
    HostKeyChanged,
    HostKeyUnknown,
)
from remoteexec.ssh import hostkeys
from remoteexec.ssh.base import SshSettings
from remoteexec.ssh.fabric_link import FabricLink
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.rootless import SlurmCluster

Cluster = SlurmCluster | EmbeddedTestCluster


@pytest.fixture(params=["embedded_cluster", pytest.param("slurm_cluster", marks=pytest.mark.slurm)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    found: Cluster = request.getfixturevalue(request.param)
    yield found
    found.recover()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME without keys, and no agent: what the tester has there must not matter."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An SSH agent of our own."""
    started = subprocess.run(["ssh-agent", "-s", "-a", f"{tmp_path}/agent"], capture_output=True, text=True, check=True)
    found = re.search(r"SSH_AGENT_PID=(\d+)", started.stdout)
    assert found is not None
    monkeypatch.setenv("SSH_AUTH_SOCK", f"{tmp_path}/agent")
    yield f"{tmp_path}/agent"
    os.kill(int(found[1]), signal.SIGTERM)


def settings(cluster: Cluster) -> SshSettings:
    return SshSettings(
        host=cluster.host,
        cluster="mycluster",
        user=cluster.user,
        port=cluster.port,
        identity_file=str(cluster.identity_file),
        known_hosts=str(cluster.known_hosts),
        connect_timeout_s=5.0,
    )


def refused(settings: SshSettings) -> str:
    """The message of the error that connecting raises; nothing may be left open."""
    link = FabricLink(settings)
    with pytest.raises((ConnectError, AuthenticationFailed, HostKeyChanged, HostKeyUnknown, ConfigError)) as caught:
        link.connect()
    assert not link.is_open
    return f"{caught.type.__name__}: {caught.value}"


def new_key(path: Path, passphrase: str = "") -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-C", "a test", "-N", passphrase, "-f", str(path)]
    subprocess.run(command, check=True)
    return path


class Attempts:
    """Counts authentication attempts in the server's own log, from its making on."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.start = len(self._lines())

    def _lines(self) -> list[str]:
        if isinstance(self.cluster, EmbeddedTestCluster):
            return list(self.cluster.log_lines())
        return (self.cluster.directory / "log" / "sshd.log").read_text().splitlines()

    def count(self) -> int:
        # sshd writes its log after the client is gone
        word = "auth " if isinstance(self.cluster, EmbeddedTestCluster) else "Failed publickey"
        return sum(line.startswith(word) for line in self._settled()[self.start :])

    def _settled(self) -> list[str]:
        lines = self._lines()
        for _ in range(20):
            time.sleep(0.05)
            if (now := self._lines()) == lines and len(now) > self.start:
                break
            lines = now
        return lines


def test_an_unknown_host_key_is_refused_before_any_login(cluster: Cluster, tmp_path: Path) -> None:
    attempts = Attempts(cluster)
    key = hostkeys.fetch(cluster.host, cluster.port)
    name = f"[{cluster.host}]:{cluster.port}"
    assert refused(dataclasses.replace(settings(cluster), known_hosts=str(tmp_path / "none"))) == (
        f"HostKeyUnknown: The host key of {name} is not known.\n"
        f"It offers {key.type} {key.fingerprint}; searched: {tmp_path / 'none'}.\n"
        "Compare the fingerprint with the one your cluster publishes; if they agree, run "
        "`remoteexec config trust mycluster`."
    )
    assert (attempts.count(), (tmp_path / "none").exists()) == (0, False)


def test_the_usual_known_hosts_files_are_searched_if_none_is_named(cluster: Cluster, home: Path) -> None:
    usual = dataclasses.replace(settings(cluster), known_hosts=None)
    assert f"searched: {home}/.ssh/known_hosts, {home}/.ssh/known_hosts2, /etc/ssh/ssh_known_hosts" in refused(usual)
    hostkeys.add(
        home / ".ssh" / "known_hosts", f"[{cluster.host}]:{cluster.port}", hostkeys.fetch(cluster.host, cluster.port)
    )
    link = FabricLink(usual)
    link.connect()
    link.close()


def test_a_changed_host_key_is_refused_with_both_fingerprints(cluster: Cluster) -> None:
    old = hostkeys.fetch(cluster.host, cluster.port)
    cluster.new_host_key()
    attempts = Attempts(cluster)
    new = hostkeys.fetch(cluster.host, cluster.port)
    assert old != new
    message = refused(settings(cluster))
    found = attempts.count()
    name = f"[{cluster.host}]:{cluster.port}"
    if isinstance(cluster, SlurmCluster):  # the other one takes its old key again
        hostkeys.remove(cluster.known_hosts, name)
        hostkeys.add(cluster.known_hosts, name, new)
    assert message == (
        f"HostKeyChanged: The host key of {name} has CHANGED; nothing was sent to it.\n"
        f"It offers {new.type} {new.fingerprint}, but line 1 of {cluster.known_hosts} has "
        f"{old.type} {old.fingerprint}.\n"
        "Somebody may be posing as this host, or it was set up anew. Ask your cluster's support for the new "
        "fingerprint; if it is the one offered, run `remoteexec config trust mycluster`."
    )
    assert found == 0


def test_a_wrong_key_is_tried_once(cluster: Cluster, tmp_path: Path) -> None:
    attempts = Attempts(cluster)
    key = new_key(tmp_path / "wrong key")
    assert refused(dataclasses.replace(settings(cluster), identity_file=str(key))) == (
        f"AuthenticationFailed: {cluster.host} did not let user {cluster.user!r} in.\n"
        f"Tried, each once: key {key}.\n"
        f"See that user and key are right and that {key}.pub stands in ~/.ssh/authorized_keys there; to change them, "
        "run `remoteexec config add-cluster mycluster --user USER --identity-file FILE`."
    )
    assert attempts.count() == 1


def test_a_named_key_is_the_only_one_that_is_offered(cluster: Cluster, tmp_path: Path, home: Path, agent: str) -> None:
    new_key(home / ".ssh" / "id_ed25519")
    subprocess.run(["ssh-add", "-q", str(cluster.identity_file)], check=True, capture_output=True)
    attempts = Attempts(cluster)
    message = refused(dataclasses.replace(settings(cluster), identity_file=str(new_key(tmp_path / "wrong"))))
    assert (f"Tried, each once: key {tmp_path / 'wrong'}.\n" in message, attempts.count()) == (True, 1)


def test_a_wrong_password_is_tried_once(embedded_cluster: EmbeddedTestCluster) -> None:
    embedded_cluster.change(password="right")
    asked = []

    def password() -> str:
        asked.append(1)
        return "wrong"

    attempts = Attempts(embedded_cluster)
    host, user = embedded_cluster.host, embedded_cluster.user
    no_key = dataclasses.replace(settings(embedded_cluster), identity_file=None, password=password)
    assert refused(no_key) == (
        f"AuthenticationFailed: {host} did not let user {user!r} in.\n"
        "Tried, each once: the password.\n"
        "See that the user is right and that one of your public keys stands in ~/.ssh/authorized_keys there; load a "
        "key with `ssh-add FILE`, or name it: `remoteexec config add-cluster mycluster --identity-file FILE`."
    )
    assert (asked, attempts.count()) == ([1], 1)


def test_the_right_password_opens(embedded_cluster: EmbeddedTestCluster) -> None:
    embedded_cluster.change(password="right")
    link = FabricLink(dataclasses.replace(settings(embedded_cluster), identity_file=None, password=lambda: "right"))
    link.connect()
    assert link.run(["echo", "in"]).stdout == b"in\n"
    link.close()


def test_with_nothing_to_offer_nothing_is_tried(cluster: Cluster) -> None:
    attempts = Attempts(cluster)
    message = refused(dataclasses.replace(settings(cluster), identity_file=None))
    assert message == (
        f"AuthenticationFailed: {cluster.host} did not let user {cluster.user!r} in.\n"
        "There was no key to try.\n"
        "See that the user is right and that one of your public keys stands in ~/.ssh/authorized_keys there; load a "
        "key with `ssh-add FILE`, or name it: `remoteexec config add-cluster mycluster --identity-file FILE`."
    )
    assert attempts.count() == 0


def test_an_encrypted_key_is_used_through_the_agent_alone(cluster: Cluster, tmp_path: Path, agent: str) -> None:
    key = tmp_path / "encrypted"
    key.write_bytes(cluster.identity_file.read_bytes())
    key.chmod(0o600)
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    encrypted = dataclasses.replace(settings(cluster), identity_file=str(key))
    attempts = Attempts(cluster)
    assert refused(encrypted) == (
        f"AuthenticationFailed: {cluster.host} did not let user {cluster.user!r} in.\n"
        "There was no key to try.\n"
        f"Not tried: {key} is encrypted, and the SSH agent does not hold it.\n"
        f"Run `ssh-add {key}`, then try again."
    )
    assert attempts.count() == 0
    subprocess.run(["ssh-add", "-q", str(cluster.identity_file)], check=True, capture_output=True)
    link = FabricLink(encrypted)
    link.connect()
    link.close()


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "does not exist"), ("nonsense", "is not a private key that can be used")],
)
def test_a_key_file_that_is_none_is_named(
    embedded_cluster: EmbeddedTestCluster, tmp_path: Path, content: str | None, problem: str
) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
    message = refused(dataclasses.replace(settings(embedded_cluster), identity_file=str(key)))
    assert f"There was no key to try.\nNot tried: {key} {problem}" in message


def test_keys_of_the_ssh_configuration_and_its_names_are_used(cluster: Cluster, home: Path) -> None:
    (home / ".ssh" / "config").write_text(
        f"Host short\n  HostName {cluster.host}\n  User {cluster.user}\n  Port {cluster.port}\n"
        f"  IdentityFile {cluster.identity_file}\n  UserKnownHostsFile {cluster.known_hosts}\n"
    )
    link = FabricLink(SshSettings(host="short"))
    link.connect()
    assert link.run(["id", "-un"]).stdout.decode().strip() == cluster.user
    link.close()


def test_a_jump_host_is_refused_instead_of_passed_unchecked(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Host far\n  ProxyJump gate.example.org\n")
    assert refused(SshSettings(host="far")) == (
        "ConfigError: ~/.ssh/config sends 'far' through ProxyJump 'gate.example.org', which is not supported yet.\n"
        "Name a login node that can be reached directly, or open a tunnel and add its local end: "
        "`ssh -L 2222:LOGIN-NODE:22 JUMP-HOST`, then `--host 127.0.0.1 --port 2222`."
    )


def test_a_closed_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and it refuses
        port = taken.getsockname()[1]
        assert refused(SshSettings(host="127.0.0.1", port=port)) == (
            f"ConnectError: 127.0.0.1, port {port}, refuses connections: the machine is there, but no SSH server "
            "listens on that port.\nCheck the port, and whether the login node is in maintenance."
        )


def test_a_name_that_does_not_resolve_is_told() -> None:
    message = refused(SshSettings(host="login.invalid"))
    assert message.startswith("ConnectError: The name 'login.invalid' does not resolve: ")
    assert message.endswith(".\nCheck the spelling and whether you are online (some clusters need a VPN).")


def test_a_host_that_does_not_answer_is_given_up_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        # connections that nobody accepts fill the queue: from then on the kernel drops what comes, as a firewall does
        queue = [socket.socket() for _ in range(4)]
        for each in queue:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        start = time.monotonic()
        message = refused(SshSettings(host="127.0.0.1", port=port, connect_timeout_s=0.5))
        for each in queue:
            each.close()
    assert message == (
        f"ConnectError: 127.0.0.1, port {port}, did not answer within 0.5 s.\n"
        "Check host and port and whether you are online; a firewall may want a VPN."
    )
    assert time.monotonic() - start < 3


def test_a_server_that_says_nothing_is_given_up_in_time(embedded_cluster: EmbeddedTestCluster) -> None:
    embedded_cluster.pause()
    start = time.monotonic()
    message = refused(dataclasses.replace(settings(embedded_cluster), connect_timeout_s=0.5))
    assert message.startswith("ConnectError: 127.0.0.1 hung up before the login, or is no SSH server: ")
    assert time.monotonic() - start < 5


def test_what_is_no_ssh_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConnectError) as caught:
            hostkeys.fetch("127.0.0.1", port, timeout_s=0.5)
    assert str(caught.value).startswith(f"127.0.0.1, port {port}, answers, but not as an SSH server: ")


def test_banner_and_noise_reach_output_but_break_nothing(cluster: Cluster) -> None:
    if isinstance(cluster, EmbeddedTestCluster):
        cluster.change(banner="Welcome!\n", noise="noise\n")
        link = FabricLink(settings(cluster))
        link.connect()
        assert link.run(["echo", "mine"]).stdout.endswith(b"mine\n")
        link.close()
        return
    with cluster.noisy_login():
        link = FabricLink(settings(cluster))
        link.connect()
        assert link.run(["echo", "mine"]).stdout.endswith(b"mine\n")
        link.close()


def test_more_channels_than_the_server_allows_are_refused_not_lost(embedded_cluster: EmbeddedTestCluster) -> None:
    embedded_cluster.change(max_sessions=2)
    link = FabricLink(settings(embedded_cluster))
    link.connect()
    streams = [link.open(["cat"]) for _ in range(2)]
    with pytest.raises(ConnectError, match="refused another channel over the same connection"):
        link.run(["true"])
    streams.pop().close()
    assert link.is_open
    link.close()
    with pytest.raises(ConnectionLost):
        streams[0].write(b"x")


def test_closing_the_link_frees_a_writer_whom_nobody_reads(embedded_cluster: EmbeddedTestCluster) -> None:
    link = FabricLink(settings(embedded_cluster))
    link.connect()
    stream = link.open(["sleep", "60"])
    ended: list[BaseException] = []

    def write() -> None:
        try:
            stream.write(bytes(64 << 20))
        except ConnectionLost as exc:
            ended.append(exc)

    writer = threading.Thread(target=write)
    writer.start()
    writer.join(timeout=0.5)
    assert writer.is_alive()  # the window is full
    embedded_cluster.pause()
    start = time.monotonic()
    link.close()
    writer.join(timeout=10)
    assert ([type(each) for each in ended], time.monotonic() - start < 5) == ([ConnectionLost], True)


def test_nothing_asks_on_standard_input(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"standard input was used: {name}")

    monkeypatch.setattr("sys.stdin", Untouchable())
    refused(dataclasses.replace(settings(cluster), identity_file=str(new_key(tmp_path / "key", "secret"))))
    refused(dataclasses.replace(settings(cluster), identity_file=None))
