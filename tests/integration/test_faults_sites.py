"""What may be wrong with a cluster: our side missing or of another version, another Python, directories, disks."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remoteexec import RemoteExecutor, errors
from remoteexec.config.model import ClusterConfig
from remoteexec.deploy import package_files
from remoteexec.engine import outcomes
from remoteexec_server.store import hdf5
from remoteexec_server.store.session import Job, JobTask, Session
from remoteexec_server.wire import header
from remoteexec_server.wire.messages import BurstId, TaskKey
from remoteexec_server.wire.payload import Pickled
from remoteexec_server.wire.resources import Resources
from tests.clusters.embedded import EmbeddedTestCluster
from tests.integration.conftest import installed
from tests.integration.running import running

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def refused(config: ClusterConfig, kind: type[errors.RemoteExecError]) -> str:
    """What is said when the executor is entered."""
    with pytest.raises(kind) as caught:
        RemoteExecutor(config).__enter__()
    assert type(caught.value) is kind
    return str(caught.value)


def copied(config: ClusterConfig, cluster: EmbeddedTestCluster) -> tuple[ClusterConfig, Path]:
    """The same cluster with a root of its own, so that a test can spoil it."""
    root = Path(cluster.new_root())
    shutil.copytree(Path(config.root) / "server", root / "server")
    root.chmod(0o700)
    return replace(config, root=str(root)), root


# ---- the cluster side ----


def test_a_cluster_without_our_side_says_what_to_run(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    message = refused(replace(embedded_config, root=embedded_cluster.new_root()), errors.RunnerMissing)
    assert message.startswith("The cluster side of this version is not installed on 'embedded'")
    assert message.endswith("Run `remoteexec install embedded`.")


def test_a_cluster_with_another_version_of_our_side_says_what_to_run(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    config, root = copied(embedded_config, embedded_cluster)
    (root / "server" / package_files().digest).rename(root / "server" / "0123456789abcdef")
    message = refused(config, errors.RunnerMissing)
    assert "of this version is not installed" in message
    assert message.endswith("Run `remoteexec install embedded`.")


def test_a_gateway_of_another_protocol_is_refused_by_it(
    embedded_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header, "PROTOCOL", header.PROTOCOL + 1)
    message = refused(embedded_config, errors.ProtocolMismatch)
    assert message == f"client speaks protocol {header.PROTOCOL}, this side {header.PROTOCOL - 1}"


def test_a_cluster_without_that_python_says_so(embedded_config: ClusterConfig) -> None:
    message = refused(replace(embedded_config, python="/nowhere/python3"), errors.RunnerMissing)
    assert "no program /nowhere/python3" in message


# ---- another Python minor version ----


def other_pythons() -> list[Path]:
    """Interpreters of other minor versions from 3.10 on, which our side supports."""
    found = []
    for minor in range(10, 15):
        if minor == sys.version_info.minor:
            continue
        names = [f"python3.{minor}", f"/usr/bin/python3.{minor}"]
        paths = [Path(path) for path in map(shutil.which, names) if path]
        paths += sorted(Path("~/.pyenv/versions").expanduser().glob(f"3.{minor}.*/bin/python3.{minor}"))
        for path in paths:
            if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
                found.append(path)
                break
    return found


@pytest.mark.skipif(not other_pythons(), reason="there is no other Python from 3.10 on on this machine")
def test_another_python_on_the_cluster_is_refused_before_anything_is_pickled(
    embedded_config: ClusterConfig,
) -> None:
    for python in other_pythons():
        shown = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
        there = ".".join(shown.split(".")[:2])
        message = refused(replace(embedded_config, python=str(python)), errors.PythonMismatch)
        assert message == f"client runs Python {HERE}, this side Python {there}"


KEY = b"k" * 32


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def trap(tmp_path: Path) -> tuple[Pickled, Path]:
    path = tmp_path / "unpickled"
    pickled = Pickled(pickle.dumps(Trap(path)))
    pickle.loads(pickled.data)
    path.unlink()  # or it would be here again, had it worked
    return pickled, path


def sealed_by_another(data: bytes) -> bytes:
    """The same file, as Python 3.9 would have written it, with a digest that fits."""
    body = data[header.BLOCK :]
    head = header.read(data)
    return header.seal(replace(head, python="3.9"), body, KEY) + body


def test_a_runner_refuses_a_call_of_another_python_before_it_unpickles_it(tmp_path: Path) -> None:
    pickled, sprung = trap(tmp_path)
    session = Session.create(tmp_path, "s", KEY.hex())
    burst, task = BurstId("b"), TaskKey("t")
    data = hdf5.write_bundle(burst, [pickled], [hdf5.Call(0, pickled)], KEY)
    session.bundle(burst).write_bytes(sealed_by_another(data))
    directory = session.add_job(Job("rx-b-0", burst, (JobTask(0, task),), Resources()))
    package = Path(header.__file__).parent.parent
    done = subprocess.run([sys.executable, package, "runner", directory], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert not sprung.exists()
    _, exc, _ = outcomes.load(session.outcome(task).read_bytes(), task, KEY)
    assert type(exc) is errors.PythonMismatch
    assert f"was pickled by Python 3.9, this is Python {HERE}" in str(exc)


def test_the_client_refuses_an_outcome_of_another_python_before_it_unpickles_it(tmp_path: Path) -> None:
    pickled, sprung = trap(tmp_path)
    task = TaskKey("t")
    data = hdf5.write_outcome(task, hdf5.Outcome(True, pickled, {}), KEY)
    value, exc, _ = outcomes.load(sealed_by_another(data), task, KEY)
    assert (value, type(exc)) == (None, errors.PythonMismatch)
    assert not sprung.exists()


# ---- directories ----


def test_a_root_that_others_may_enter_is_refused_with_the_remedy(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    config, root = copied(embedded_config, embedded_cluster)
    for mode in (0o770, 0o707, 0o755):
        root.chmod(mode)
        message = refused(config, errors.UnsafeRoot)
        assert stat.filemode(stat.S_IFDIR | mode) in message or f"mode {mode:04o}" in message
        assert "run `chmod 700" in message
        assert not (root / "sessions").exists()
    root.chmod(0o700)
    with running(config) as exe:
        assert exe.submit(abs, -1).result(20) == 1
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in ("sessions", "server")} == {0o700}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_root_of_somebody_else_is_refused(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    config, root = copied(embedded_config, embedded_cluster)
    os.chown(root, 65534, 65534)
    message = refused(config, errors.UnsafeRoot)
    assert message.startswith(f"root = {str(root)!r} on 'embedded' is not yours alone: drwx------ ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_nothing_that_lies_in_a_root_of_somebody_else_is_run(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    config, root = copied(embedded_config, embedded_cluster)
    ran = root.parent / "ran"
    main = root / "server" / package_files().digest / "remoteexec_server" / "__main__.py"
    main.write_text(f"open({str(ran)!r}, 'w')\n")
    os.chown(root, 65534, 65534)
    refused(config, errors.UnsafeRoot)
    os.chown(root, 0, 0)
    root.chmod(0o777)
    refused(config, errors.UnsafeRoot)
    assert not ran.exists()


def test_a_root_below_a_directory_that_everybody_may_write_is_refused(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    config, root = copied(embedded_config, embedded_cluster)
    root.parent.chmod(0o777)
    assert "is writable by everybody: choose another one" in refused(config, errors.UnsafeRoot)


# ---- disks ----


@pytest.fixture
def small_disk(embedded_cluster: EmbeddedTestCluster) -> Iterator[Path]:
    """A file system of 5 MB, of which our side of the cluster takes more than half."""
    path = embedded_cluster.make_directory(f"disk-{time.time_ns()}")
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m,mode=700", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def make_bytes(size: int) -> bytes:
    return os.urandom(size)


def test_a_full_disk_loses_the_results_that_find_no_room_and_nothing_else(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster, small_disk: Path
) -> None:
    config = installed(embedded_cluster, "small", str(small_disk / "root"))
    with running(config) as exe:
        exc = exe.submit(make_bytes, 4_000_000).exception(30)
        assert isinstance(exc, errors.TaskLost)
        assert (type(exc), exc.reason, exc.exit_code) == (errors.TaskStoreUnreachable, "store", 74)
        assert "No space left on device" in exc.log_tail
        assert len(exe.submit(make_bytes, 100_000).result(30)) == 100_000
        large = exe.submit(len, os.urandom(4_000_000))
        refusal = large.exception(30)
        assert type(refusal) is errors.StoreError
        assert "No space left on device" in str(refusal)
        assert exe.submit(len, large).exception(30) is refusal
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        assert type(exe.submit(abs, -1).exception(30)) is errors.StoreError
        filler.unlink()
        assert exe.submit(abs, -1).result(30) == 1


def fill_the_disk(path: str) -> int:
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return 1


def test_a_disk_that_is_full_to_the_last_byte_still_ends_in_a_loss(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster, small_disk: Path
) -> None:
    """Not even the few bytes that say why can be written."""
    config = installed(embedded_cluster, "small", str(small_disk / "root"))
    with running(config) as exe:
        future = exe.submit(fill_the_disk, str(small_disk / "filler"))
        exc = future.exception(30)
        assert isinstance(exc, errors.TaskLost)
        assert (type(exc), exc.reason) == (errors.TaskStoreUnreachable, "store")
        assert type(exe.submit(abs, future).exception(30)) is errors.TaskStoreUnreachable
        (small_disk / "filler").unlink()
        assert exe.submit(abs, -1).result(30) == 1
