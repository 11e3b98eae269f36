"""The embedded SSH server behaves as a login node does."""

from __future__ import annotations

import io
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko
import pytest

from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.embedded import embedded_cluster as start_embedded_cluster

MIB = 1 << 20


@contextmanager
def connected(cluster: EmbeddedTestCluster, **login: Any) -> Iterator[paramiko.Transport]:
    """A logged-in transport; `login` replaces key_filename and whatever else `SSHClient.connect` takes."""
    login = login or {"key_filename": str(cluster.identity_file)}
    client = paramiko.SSHClient()
    client.load_host_keys(str(cluster.known_hosts))
    connection = socket.create_connection((cluster.host, cluster.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        client.connect(
            cluster.host, cluster.port, cluster.user, sock=connection, allow_agent=False, look_for_keys=False, **login
        )
        transport = client.get_transport()
        assert transport is not None
        yield transport
    finally:
        client.close()
        connection.close()


def execute(transport: paramiko.Transport, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a command to its end: exit status, stdout, stderr."""
    channel = transport.open_session()
    channel.exec_command(command)
    channel.sendall(stdin)
    channel.shutdown_write()
    out = channel.makefile("rb").read()
    return channel.recv_exit_status(), out, channel.makefile_stderr("rb").read()


def eventually(condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_commands_get_their_streams_and_exit_codes(embedded_cluster: EmbeddedTestCluster) -> None:
    with connected(embedded_cluster) as transport:
        assert execute(transport, "tr a-z A-Z; echo problem >&2; exit 3", b"abc\n") == (3, b"ABC\n", b"problem\n")
        assert execute(transport, "pwd; echo $HOME $USER") == (
            0,
            f"{embedded_cluster.home}\n{embedded_cluster.home} {embedded_cluster.user}\n".encode(),
            b"",
        )
        assert execute(transport, "kill -9 $$")[0] == -1  # what paramiko says of an exit signal
        assert execute(transport, "no-such-command")[0] == 127


def test_an_exchange_goes_on_line_by_line(embedded_cluster: EmbeddedTestCluster) -> None:
    """Output arrives while stdin is open, and the end of stdin reaches the command while its output goes on."""
    with connected(embedded_cluster) as transport:
        channel = transport.open_session()
        channel.exec_command('while read line; do echo "got $line"; done; sleep 0.05; echo end')
        for word in (b"one", b"two"):
            channel.sendall(word + b"\n")
            assert channel.recv(100) == b"got " + word + b"\n"
        channel.shutdown_write()
        assert channel.recv(100) == b"end\n"
        assert channel.recv_exit_status() == 0


def test_large_streams_pass_both_ways_whole_and_fast(embedded_cluster: EmbeddedTestCluster) -> None:
    block = os.urandom(MIB)
    with connected(embedded_cluster) as transport:
        channel = transport.open_session(window_size=16 * MIB)
        channel.exec_command("cat")
        began = time.monotonic()

        def send() -> None:
            for _ in range(32):
                view = memoryview(block)
                while view:
                    view = view[channel.send(view[:65536]) :]
            channel.shutdown_write()

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while data := channel.recv(MIB):
            received += data
        sender.join()
        assert received == block * 32
        # 100 MB/s each way on two idle cores
        assert len(received) / (time.monotonic() - began) > 10e6


def test_a_command_that_reads_nothing_does_not_block_its_client(embedded_cluster: EmbeddedTestCluster) -> None:
    with connected(embedded_cluster) as transport:
        assert execute(transport, "exec <&-; sleep 0.1; echo done", bytes(64 * 1024)) == (0, b"done\n", b"")


@pytest.mark.parametrize("stdin_ended", [False, True])
def test_closing_a_channel_ends_its_command(embedded_cluster: EmbeddedTestCluster, stdin_ended: bool) -> None:
    with connected(embedded_cluster) as transport:
        channel = transport.open_session()
        channel.exec_command("echo $$; exec sleep 100")
        pid = channel.recv(100).decode().strip()
        if stdin_ended:
            channel.shutdown_write()
        channel.close()
        eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_cutting_the_connection_ends_its_commands(embedded_cluster: EmbeddedTestCluster) -> None:
    with connected(embedded_cluster) as transport:
        channel = transport.open_session()
        channel.exec_command("echo $$; exec cat")
        pid = channel.recv(100).decode().strip()
        embedded_cluster.cut_connections()
        assert channel.recv(1) == b""
        eventually(lambda: not Path(f"/proc/{pid}").exists())
    with connected(embedded_cluster) as transport:
        assert execute(transport, "echo again")[1] == b"again\n"


def test_many_channels_come_and_go_but_not_more_than_ten_at_once(embedded_cluster: EmbeddedTestCluster) -> None:
    with connected(embedded_cluster) as transport:
        for number in range(50):
            assert execute(transport, f"echo {number}")[1] == f"{number}\n".encode()
        channels = []
        for _ in range(10):
            channels.append(transport.open_session())
            channels[-1].exec_command("cat")
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()
        for number, channel in enumerate(channels):
            channel.sendall(str(number).encode())
            assert channel.recv(10) == str(number).encode()
            channel.close()
        eventually(lambda: execute(transport, "true")[0] == 0)


def test_files_by_sftp(embedded_cluster: EmbeddedTestCluster) -> None:
    content = os.urandom(3 * MIB + 1)
    with connected(embedded_cluster) as transport, paramiko.SFTPClient.from_transport(transport) as sftp:
        name = "a'; echo b ü"
        sftp.mkdir(name, 0o700)
        sftp.chdir(name)
        sftp.putfo(io.BytesIO(content), "new")
        sftp.chmod("new", 0o600)
        sftp.rename("new", "file")
        sftp.putfo(io.BytesIO(b"other"), "second")
        with pytest.raises(OSError, match="Failure"):
            sftp.rename("second", "file")
        assert sorted(sftp.listdir()) == ["file", "second"]
        sftp.posix_rename("second", "third")
        back = io.BytesIO()
        sftp.getfo("file", back)
        assert back.getvalue() == content
        attributes = sftp.stat("file")
        assert (attributes.st_size, stat.S_IMODE(attributes.st_mode or 0)) == (len(content), 0o600)
        assert sftp.normalize(".") == str(embedded_cluster.home / name)
        with pytest.raises(FileNotFoundError):
            sftp.stat("absent")
        for file in ("file", "third"):
            sftp.remove(file)
        sftp.chdir("..")
        sftp.rmdir(name)
        assert name not in os.listdir(embedded_cluster.home)


def test_only_the_right_key_or_password_logs_in(embedded_cluster: EmbeddedTestCluster) -> None:
    stranger = paramiko.RSAKey.generate(2048)
    with pytest.raises(paramiko.AuthenticationException), connected(embedded_cluster, pkey=stranger):
        pass
    with pytest.raises(paramiko.BadAuthenticationType), connected(embedded_cluster, password="secret"):
        pass
    embedded_cluster.change(password="secret")
    with connected(embedded_cluster, password="secret") as transport:
        assert transport.is_authenticated()
    with pytest.raises(paramiko.AuthenticationException), connected(embedded_cluster, password="guess"):
        pass
    attempts = [line for line in embedded_cluster.log_lines() if line.startswith("auth")][-4:]
    user = embedded_cluster.user
    assert attempts == [
        f"auth publickey {user} ssh-rsa refused",
        f"auth password {user} refused",
        f"auth password {user} accepted",
        f"auth password {user} refused",
    ]


def test_banner_noise_and_refusals(embedded_cluster: EmbeddedTestCluster) -> None:
    embedded_cluster.change(banner="be careful", noise="*** noise ***\n", refuse=("sftp",))
    with connected(embedded_cluster) as transport:
        assert transport.get_banner() == b"be careful"
        assert execute(transport, "echo x") == (0, b"*** noise ***\nx\n", b"*** noise ***\n")
        with pytest.raises(paramiko.SSHException):
            paramiko.SFTPClient.from_transport(transport)


def test_a_new_host_key_is_refused_by_who_knew_the_old_one(embedded_cluster: EmbeddedTestCluster) -> None:
    embedded_cluster.new_host_key()
    with pytest.raises(paramiko.BadHostKeyException), connected(embedded_cluster):
        pass


def test_stopping_ends_also_what_has_left_its_session() -> None:
    with start_embedded_cluster() as cluster:
        with connected(cluster) as transport:
            out = execute(transport, "setsid sleep 100 </dev/null >/dev/null 2>&1 & echo $!")[1]
        pid = out.decode().strip()
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert not cluster.place.directory.exists()
    cluster.stop()  # again, without effect
