"""A user's first hour with a cluster, on the command line; and the questions about host keys, on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remoteexec.deploy import package_files
from remoteexec.ssh import hostkeys
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.rootless import SlurmCluster

Cluster = SlurmCluster | EmbeddedTestCluster
Run = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = [sys.executable, "-m", "remoteexec.cli"]


@pytest.fixture(params=["embedded_cluster", pytest.param("slurm_cluster", marks=pytest.mark.slurm)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    found: Cluster = request.getfixturevalue(request.param)
    yield found
    found.recover()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user without any configuration, keys or agent."""
    environment = {name: value for name, value in os.environ.items() if name not in ("SSH_AUTH_SOCK", "COLUMNS")}
    (tmp_path / "home").mkdir()
    return {
        **environment,
        "HOME": str(tmp_path / "home"),
        "REMOTEEXEC_CONFIG": str(tmp_path / "clusters.toml"),
        "TERM": "xterm",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            timeout=90,
            check=False,
        )

    return run


def options(cluster: Cluster, known_hosts: Path) -> list[str]:
    return [
        f"--host={cluster.host}",
        f"--user={cluster.user}",
        f"--port={cluster.port}",
        f"--identity-file={cluster.identity_file}",
        f"--known-hosts={known_hosts}",
        f"--root={cluster.new_root()}",
        f"--scheduler={cluster.scheduler}",
    ]


def statuses(output: str) -> dict[str, str]:
    rows = re.findall(r"^(ok|failed|skipped) +([^:]+):", output, re.MULTILINE)
    return {title: status for status, title in rows}


def test_from_nothing_to_a_checked_cluster(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known hosts"
    add = ["config", "add-cluster", "mine", *options(cluster, known_hosts)]
    key = hostkeys.fetch(cluster.host, cluster.port)

    refused = run(*add, "--yes")
    assert (refused.returncode, known_hosts.exists(), (tmp_path / "clusters.toml").exists()) == (1, False, False)
    assert refused.stderr == (
        f"Error: The host key of [{cluster.host}]:{cluster.port} is not known, and there is no terminal to ask on.\n"
        f"It offers {key.type} {key.fingerprint}.\n"
        f"If the fingerprint is right, run the command again with `--fingerprint {key.fingerprint}`.\n"
        "'mine' was not saved; `--no-test` saves it without logging in.\n"
    )

    other = run(*add, "--fingerprint", "SHA256:" + "x" * 43)
    assert (other.returncode, known_hosts.exists()) == (1, False)
    assert other.stderr.startswith(f"Error: That is not the key that was named: SHA256:{'x' * 43}.\n")

    added = run(*add, "--fingerprint", key.fingerprint)
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.splitlines() == [
        f"Host key of [{cluster.host}]:{cluster.port}: {key.type} {key.fingerprint}",
        "It is not known yet: compare it with the fingerprint that your cluster publishes.",
        f"Added to {known_hosts}.",
        f"Logged in to {cluster.host}.",
        f"Saved 'mine' in {tmp_path / 'clusters.toml'}.",
        "Next: `remoteexec install mine`, then `remoteexec check mine`.",
    ]

    early = run("check", "mine")
    assert early.returncode == 1
    assert statuses(early.stdout) == {
        **dict.fromkeys(["name resolves", "port answers", "host key known", "login", "root directory"], "ok"),
        "Python": "failed",
        **dict.fromkeys(["dependencies", "remoteexec_server", "scheduler", "MPI", "a task there and back"], "skipped"),
    }
    assert "\n         Run `remoteexec install mine`.\n" in early.stdout

    installed = run("install", "mine", "--python", str(cluster.python))
    assert (installed.returncode, installed.stderr) == (0, "")
    assert installed.stdout.startswith(f"sending remoteexec_server {package_files().digest}\nmine: remoteexec_server ")

    checked = run("check", "mine")
    assert (checked.returncode, set(statuses(checked.stdout).values()), checked.stderr) == (0, {"ok"}, "")
    assert len(statuses(checked.stdout)) == 11


def test_a_login_that_fails_is_not_saved(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(wrong)], check=True)
    arguments = [*options(cluster, cluster.known_hosts), f"--identity-file={wrong}"]
    failed = run("config", "add-cluster", "mine", *arguments)
    assert (failed.returncode, (tmp_path / "clusters.toml").exists()) == (1, False)
    assert f"did not let user {cluster.user!r} in.\nTried, each once: key {wrong}.\n" in failed.stderr
    assert failed.stderr.endswith("'mine' was not saved; `--no-test` saves it without logging in.\n")

    assert run("config", "add-cluster", "mine", *arguments, "--no-test").returncode == 0
    checked = run("check", "mine")
    assert (checked.returncode, statuses(checked.stdout)["login"]) == (1, "failed")


def test_a_changed_host_key_is_shown_with_the_old_one(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_bytes(cluster.known_hosts.read_bytes())
    assert run("config", "add-cluster", "mine", *options(cluster, known_hosts)).returncode == 0
    old = hostkeys.fetch(cluster.host, cluster.port)
    cluster.new_host_key()
    new = hostkeys.fetch(cluster.host, cluster.port)

    checked = run("check", "mine")
    refused = run("config", "trust", "mine")
    unchanged = known_hosts.read_bytes() == cluster.known_hosts.read_bytes()
    trusted = run("config", "trust", "mine", "--fingerprint", new.fingerprint)
    if isinstance(cluster, SlurmCluster):  # the other one takes its old key again
        cluster.known_hosts.write_bytes(known_hosts.read_bytes())

    assert (checked.returncode, statuses(checked.stdout)["host key known"]) == (1, "failed")
    assert old.fingerprint in checked.stdout
    assert new.fingerprint in checked.stdout
    assert (refused.returncode, unchanged) == (1, True)
    assert trusted.returncode == 0
    assert trusted.stdout.splitlines() == [
        f"Host key of [{cluster.host}]:{cluster.port}: {new.type} {new.fingerprint}",
        "It has CHANGED. On file:",
        f"  {old.type} {old.fingerprint}   ({known_hosts}, line 1)",
        "Somebody may be posing as this host, or it was set up anew: ask your cluster's support.",
        f"Added to {known_hosts}.",
    ]
    name = f"[{cluster.host}]:{cluster.port}"
    assert [entry.key for entry in hostkeys.known_keys(name, [known_hosts])] == [new]


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.text = ""

    def answer(self, question: str, answer: str) -> None:
        """Wait for a question and type the answer."""
        self._read(lambda: question in self.text)
        assert question in self.text
        self.text = self.text.split(question, 1)[1]
        os.write(self._master, f"{answer}\n".encode())

    def end(self) -> tuple[int, str]:
        """Exit code, and what was printed since the last answer."""
        self._read(lambda: False)
        os.close(self._master)
        return self._process.wait(timeout=30), self.text.replace("\r\n", "\n")

    def _read(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not enough() and time.monotonic() < deadline:
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    piece = os.read(self._master, 4096)
                except OSError:  # Linux's way to say that the other side is closed
                    return
                self.text += piece.decode("utf-8", "replace")


def test_a_question_that_is_answered_with_no_changes_nothing(
    embedded_cluster: EmbeddedTestCluster, environment: dict[str, str], tmp_path: Path
) -> None:
    known_hosts = tmp_path / "known_hosts"
    arguments = options(embedded_cluster, known_hosts)
    terminal = Terminal(environment, "config", "add-cluster", "mine", *arguments)
    terminal.answer("Trust it? [y/N]: ", "n")
    code, text = terminal.end()
    assert (code, text) == (1, "n\nNothing was changed for 'mine'.\n")
    assert (known_hosts.exists(), (tmp_path / "clusters.toml").exists()) == (False, False)


def test_without_options_the_terminal_asks(
    embedded_cluster: EmbeddedTestCluster, environment: dict[str, str], tmp_path: Path, run: Run
) -> None:
    config = Path(environment["HOME"]) / ".ssh" / "config"
    config.parent.mkdir()
    config.write_text(f"Host short\n  HostName {embedded_cluster.host}\n  Port {embedded_cluster.port}\n")
    terminal = Terminal(environment, "config", "add-cluster", "mine")
    terminal.answer("Login node (name, address, or a Host of ~/.ssh/config): ", "short")
    terminal.answer("User there (empty: as in ~/.ssh/config) []: ", embedded_cluster.user)
    terminal.answer("Private key (empty: agent and usual files) []: ", str(embedded_cluster.identity_file))
    terminal.answer("Our directory there [~/.remoteexec]: ", "")
    terminal.answer("Scheduler (slurm, flux, pbs, torque, lsf, sge, moab, local) [slurm]: ", "local")
    terminal.answer("Trust it? [y/N]: ", "y")
    code, text = terminal.end()
    assert (code, f"Saved 'mine' in {tmp_path / 'clusters.toml'}.\n" in text) == (0, True)
    assert run("config", "show", "mine").stdout.splitlines()[1:] == [
        "[mine]",
        'host = "short"',
        f'user = "{embedded_cluster.user}"',
        f'identity_file = "{embedded_cluster.identity_file}"',
        'scheduler = "local"',
    ]


def test_a_password_is_asked_for_once(
    embedded_cluster: EmbeddedTestCluster, environment: dict[str, str], tmp_path: Path
) -> None:
    embedded_cluster.change(password="right")
    arguments = [each for each in options(embedded_cluster, embedded_cluster.known_hosts) if "identity" not in each]
    for given, end in (("wrong", "Save 'mine' nevertheless? [y/N]: "), ("right", None)):
        terminal = Terminal(environment, "config", "add-cluster", "mine", *arguments)
        terminal.answer(f"Password of {embedded_cluster.user}@{embedded_cluster.host} (empty to give up): ", given)
        if end:
            terminal.answer(end, "n")
        code, text = terminal.end()
        assert (code, given in text, (tmp_path / "clusters.toml").exists()) == (int(bool(end)), False, not end)


def test_the_table_of_a_check_fills_on_a_terminal(
    embedded_cluster: EmbeddedTestCluster, environment: dict[str, str], run: Run
) -> None:
    arguments = options(embedded_cluster, embedded_cluster.known_hosts)
    assert run("config", "add-cluster", "mine", *arguments, "--no-test").returncode == 0
    code, text = Terminal({**environment, "COLUMNS": "120"}, "check", "mine").end()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert (code, "│ login" in plain, "│ skipped │" in plain) == (1, True, True)


def test_the_command_is_also_a_script() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert [name for name in ("check", "config", "install") if f"\n  {name} " in done.stdout] == [
        "check",
        "config",
        "install",
    ]
