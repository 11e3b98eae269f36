"""~/.ssh/config has its say about where a login goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec.errors import ConfigError
from remoteexec.ssh.base import SshSettings
from remoteexec.ssh.target import Target, resolve

SYSTEM = Path("/etc/ssh/ssh_known_hosts")


@pytest.fixture(autouse=True)
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path / ".ssh"


def test_without_a_configuration_the_settings_stand(ssh: Path) -> None:
    assert resolve(SshSettings(host="h", user="me")) == Target(
        host="h",
        port=22,
        user="me",
        known_as="h",
        known_hosts=(ssh / "known_hosts", ssh / "known_hosts2", SYSTEM),
    )


def test_a_host_is_completed_from_the_configuration(ssh: Path) -> None:
    (ssh / "config").write_text(
        "Host short\n  HostName login.example.org\n  User me\n  Port 2222\n  IdentityFile ~/.ssh/one\n"
        "  IdentityFile ~/.ssh/two\n  IdentitiesOnly yes\n  UserKnownHostsFile ~/.ssh/mine /dev/null\n"
    )
    assert resolve(SshSettings(host="short")) == Target(
        host="login.example.org",
        port=2222,
        user="me",
        known_as="[login.example.org]:2222",
        known_hosts=(ssh / "mine", SYSTEM),
        identity_files=(str(ssh / "one"), str(ssh / "two")),
        identities_only=True,
    )


def test_settings_win_over_the_configuration(ssh: Path) -> None:
    (ssh / "config").write_text("Host *\n  User you\n  Port 2222\n  UserKnownHostsFile ~/.ssh/mine\n")
    found = resolve(SshSettings(host="h", user="me", port=23, known_hosts="~/known"))
    assert (found.user, found.port, found.known_hosts) == ("me", 23, (ssh.parent / "known",))


def test_turning_the_check_off_there_leaves_it_on_here(ssh: Path) -> None:
    (ssh / "config").write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n")
    assert resolve(SshSettings(host="h")).known_hosts[0] == ssh / "known_hosts"


def test_an_alias_names_the_host_key(ssh: Path) -> None:
    (ssh / "config").write_text("Host h\n  Port 23\n  HostKeyAlias cluster\n")
    assert resolve(SshSettings(host="h")).known_as == "cluster"


def test_included_files_stand_in_their_places(ssh: Path) -> None:
    (ssh / "d").mkdir()
    (ssh / "config").write_text('Include d/*.conf missing\nPort 1\nHost a\n  Include "d/in a"\n  User late\n')
    (ssh / "d" / "1.conf").write_text("Host b\n  Port 2\ninclude d/*.conf\n")  # itself, and so on
    (ssh / "d" / "2.conf").write_text("Host c\n  Port 3\n")
    (ssh / "d" / "in a").write_text("IdentityFile /inner\n")
    found = [resolve(SshSettings(host=host)) for host in "abcd"]
    assert [each.port for each in found] == [1, 2, 3, 1]
    assert [each.identity_files for each in found] == [("/inner",), (), (), ()]
    assert [each.user == "late" for each in found] == [True, False, False, False]


@pytest.mark.parametrize("word", ["ProxyJump gate", "ProxyCommand nc %h %p"])
def test_what_goes_through_another_host_is_refused(ssh: Path, word: str) -> None:
    (ssh / "config").write_text(f"Host h\n  {word}\n")
    with pytest.raises(ConfigError, match="which is not supported yet"):
        resolve(SshSettings(host="h"))
    (ssh / "config").write_text(f"Host h\n  ProxyJump none\n  ProxyCommand none\nHost *\n  {word}\n")
    assert resolve(SshSettings(host="h")).host == "h"


def test_a_broken_configuration_is_told(ssh: Path) -> None:
    (ssh / "config").write_text("Host h\n  ???\n")
    with pytest.raises(ConfigError) as caught:
        resolve(SshSettings(host="h"))
    assert str(caught.value).startswith(
        "Your SSH configuration (~/.ssh/config or /etc/ssh/ssh_config) cannot be read: "
    )
