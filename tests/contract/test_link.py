"""One suite for links, over our embedded server and a real sshd."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest

from remoteexec.errors import ConnectionLost, StoreError
from remoteexec.ssh.base import Completed, SshSettings
from remoteexec.ssh.fabric_link import FabricLink
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.rootless import SlurmCluster

Cluster = SlurmCluster | EmbeddedTestCluster

MIB = 1 << 20
NASTY = 'a\'; echo b "$HOME" `id` ü\n\\x'


@pytest.fixture(params=["embedded_cluster", pytest.param("slurm_cluster", marks=pytest.mark.slurm)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    found: Cluster = request.getfixturevalue(request.param)
    yield found
    found.recover()


@pytest.fixture
def link(cluster: Cluster) -> Iterator[FabricLink]:
    link = FabricLink(settings(cluster))
    link.connect()
    yield link
    link.close()


def settings(cluster: Cluster) -> SshSettings:
    return SshSettings(
        host=cluster.host,
        user=cluster.user,
        port=cluster.port,
        identity_file=str(cluster.identity_file),
        known_hosts=str(cluster.known_hosts),
        connect_timeout_s=5.0,
    )


def test_a_command_gives_its_output_and_exit_code(link: FabricLink) -> None:
    argv = ("sh", "-c", "printf 'out\\000\\377'; printf err >&2; exit 3")
    assert link.run(argv) == Completed(argv, 3, b"out\x00\xff", b"err")


def test_every_argument_arrives_as_it_is(link: FabricLink) -> None:
    words = [NASTY, "", " ", "*", "-n", "~", "$x", "!x", "a\tb"]
    assert link.run(["printf", "%s|", *words]).stdout == "".join(f"{word}|" for word in words).encode()


def test_input_is_read_to_its_end(link: FabricLink) -> None:
    data = os.urandom(3 * MIB)
    assert link.run(["cat"], input=data).stdout == data


def test_a_command_that_does_not_read_its_input_is_no_error(link: FabricLink) -> None:
    assert link.run(["sh", "-c", "exec 0<&-; echo done"], input=b"x" * 5 * MIB).stdout == b"done\n"


def test_a_command_that_does_not_exist_exits_with_127(link: FabricLink) -> None:
    done = link.run(["remoteexec-no-such-command"])
    assert (done.exit_code, b"not found" in done.stderr) == (127, True)
    with pytest.raises(subprocess.CalledProcessError):
        done.check()


def test_a_command_ended_by_a_signal_has_no_success(link: FabricLink) -> None:
    assert link.run(["sh", "-c", "kill -9 $$"]).exit_code not in (0, None)


def test_a_slow_command_is_given_up_in_time(link: FabricLink) -> None:
    with pytest.raises(ConnectionLost) as caught:
        link.run(["sh", "-c", "echo here >&2; exec sleep 20"], timeout_s=0.5)
    assert str(caught.value) == (
        f"No answer from {link.settings.host} within 0.5 s to `sh -c 'echo here >&2; exec sleep 20'`.\n"
        "Its last words: here\n"
        "The machine or its file system may be overloaded; try again later."
    )
    assert link.run(["echo", "still"]).stdout == b"still\n"


def test_a_stream_talks_in_both_directions(link: FabricLink) -> None:
    stream = link.open(["cat"])
    for message in (b"one", bytearray(b"two"), memoryview(b"three")):
        stream.write(message)
        assert stream.read_some(100) == bytes(message)
    assert stream.exit_code is None
    stream.close_input()
    assert stream.read_some(100) == b""
    stream.close()


def test_much_data_goes_both_ways_at_once(link: FabricLink) -> None:
    data = os.urandom(MIB) * 24
    stream = link.open(["cat"])

    def write() -> None:
        stream.write(data)
        stream.close_input()

    writer = threading.Thread(target=write)
    writer.start()
    got = bytearray()
    while piece := stream.read_some(MIB):
        got += piece
    writer.join()
    stream.close()
    assert bytes(got) == data


def test_a_flood_of_standard_error_stops_nothing(link: FabricLink) -> None:
    stream = link.open(["sh", "-c", "head -c 20000000 /dev/zero >&2; echo the end >&2; echo done"])
    assert stream.read_some(100) == b"done\n"
    assert stream.read_some(100) == b""
    assert stream.stderr_tail().endswith("the end\n")
    stream.close()


def test_closing_a_stream_ends_what_reads_from_it(link: FabricLink) -> None:
    stream = link.open(["sh", "-c", "echo $$; cat; sleep 0.1"])
    process = stream.read_some(100).decode().strip()
    stream.close()
    for _ in range(100):
        if link.run(["sh", "-c", f"kill -0 {process}"]).exit_code != 0:
            break
    else:
        pytest.fail("the command is still there")


@pytest.mark.parametrize("name", ["plain", "a'; echo b ü", "new\nline", "-dash"])
def test_a_file_arrives_whole_and_private(link: FabricLink, cluster: Cluster, name: str) -> None:
    directory = cluster.make_directory(f"put {os.urandom(4).hex()}")
    path = PurePosixPath(directory) / name
    data = os.urandom(300_000)
    link.put_file(b"an older file", path, mode=0o644)
    link.put_file(data, path)
    found = link.run(["sh", "-c", 'cat -- "$0"', str(path)]).stdout
    assert found == data
    count = 'cd "$0" && find . -type f -printf "%m;"'
    assert link.run(["sh", "-c", count, str(directory)]).stdout == b"600;"


def test_a_file_that_cannot_be_written_says_why_and_leaves_nothing(link: FabricLink, cluster: Cluster) -> None:
    path = PurePosixPath(cluster.make_directory(f"none-{os.urandom(4).hex()}")) / "missing" / "file"
    with pytest.raises(StoreError) as caught:
        link.put_file(b"xyz", path)
    assert str(caught.value).startswith(f"{cluster.host} could not write {str(path)!r} (3 bytes): ")
    assert str(caught.value).endswith(
        "\nCheck that the directory exists and is yours, and your quota and the free space there."
    )
    assert link.run(["ls", "-A", str(path.parent.parent)]).stdout == b""


def test_several_threads_share_the_link(link: FabricLink, cluster: Cluster) -> None:
    directory = PurePosixPath(cluster.make_directory(f"threads-{os.urandom(4).hex()}"))

    def work(number: int) -> tuple[bytes, bytes]:
        text = f"{number}" * 5000
        link.put_file(text.encode(), directory / str(number))
        return link.run(["cat", str(directory / str(number))]).stdout, text.encode()

    with ThreadPoolExecutor(6) as pool:
        for found, written in pool.map(work, range(24)):
            assert found == written


def test_connecting_twice_is_one_connection(link: FabricLink) -> None:
    before = link.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout
    link.connect()
    assert (link.is_open, link.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout) == (True, before)


def test_a_closed_link_says_so_and_can_be_connected_again(link: FabricLink) -> None:
    link.close()
    link.close()
    assert not link.is_open
    for use in (lambda: link.run(["true"]), lambda: link.put_file(b"", PurePosixPath("/x")), lambda: link.open(["x"])):
        with pytest.raises(ConnectionLost, match="There is no connection"):
            use()
    link.connect()
    assert link.run(["echo", "again"]).stdout == b"again\n"


def test_a_cut_connection_is_noticed_by_all_that_use_it(link: FabricLink, cluster: Cluster) -> None:
    stream = link.open(["cat"])
    stream.write(b"x")
    assert stream.read_some(1) == b"x"
    seen: list[BaseException | bytes] = []

    def wait(read: object) -> None:
        try:
            seen.append(stream.read_some(1) if read else link.run(["sleep", "30"]).stdout)
        except Exception as exc:
            seen.append(exc)

    waiting = [threading.Thread(target=wait, args=(read,)) for read in (True, False)]
    for thread in waiting:
        thread.start()
    cluster.cut_connections()
    for thread in waiting:
        thread.join(timeout=10)
    assert [type(each) for each in seen] == [ConnectionLost, ConnectionLost]
    assert not link.is_open
    with pytest.raises(ConnectionLost):
        stream.write(b"y")
    with pytest.raises(ConnectionLost):
        link.put_file(b"z", PurePosixPath("/tmp/never"))
    link.connect()
    assert link.run(["echo", "back"]).stdout == b"back\n"
    stream.close()


def test_closing_leaves_no_threads(cluster: Cluster) -> None:
    before = set(threading.enumerate())
    link = FabricLink(settings(cluster))
    link.connect()
    stream = link.open(["cat"])
    link.run(["true"])
    link.put_file(b"", PurePosixPath(cluster.make_directory(f"close-{os.urandom(4).hex()}")) / "file")
    stream.close()
    link.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
    assert set(threading.enumerate()) - before == set()


def test_importing_the_link_is_cheap() -> None:
    """paramiko takes 0.2 s: it is imported by connecting."""
    code = "import sys, remoteexec.ssh.fabric_link; print({'paramiko', 'fabric', 'cryptography'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), check=True)
    assert done.stdout == "set()\n"
