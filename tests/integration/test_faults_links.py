"""Between laptop and cluster: connections that break, stall or talk too much. Nothing is lost, nothing runs twice."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import RemoteExecutor, errors
from remoteexec.config.model import ClusterConfig
from remoteexec.engine import driver
from remoteexec.ssh import gateway_client
from tests.clusters.delayproxy import DelayProxy
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.rootless import SlurmCluster
from tests.integration.running import running


def record(path: str, number: int, seconds: float = 0.0) -> int:
    """Append one line, so that executions can be counted."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    time.sleep(seconds)
    return number * number


def executions(path: Path) -> Counter[int]:
    return Counter(map(int, path.read_text().split()))


def once(count: int) -> Counter[int]:
    """Every one of so many tasks, run once."""
    return Counter(range(count))


@contextmanager
def every(seconds: float, act: Any) -> Iterator[list[int]]:
    """Do something again and again meanwhile; gives what it returned so far."""
    stop, done = threading.Event(), []

    def run() -> None:
        while not stop.wait(seconds):
            done.append(act())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


@contextmanager
def proxied(config: ClusterConfig, tmp_path: Path, delay_s: float = 0.0) -> Iterator[tuple[DelayProxy, ClusterConfig]]:
    """A link that can be stalled and reset; with a known_hosts that knows the cluster behind it."""
    assert config.port is not None
    assert config.known_hosts is not None
    with DelayProxy(config.host, config.port, delay_s) as proxy:
        known = tmp_path / "known_hosts"
        known.write_text(re.sub(r":\d+(?=[ ,])", f":{proxy.port}", Path(config.known_hosts).read_text()))
        yield proxy, replace(config, port=proxy.port, known_hosts=str(known))


def gateways(config: ClusterConfig) -> list[int]:
    """Processes of gateways that serve this root."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if b"gateway" in words and config.root.encode() in words and not words[0].endswith(b"sh"):
            found.append(int(entry.name))
    return found


def kill_gateways(config: ClusterConfig) -> int:
    found = gateways(config)
    for process in found:
        os.kill(process, signal.SIGKILL)
    return len(found)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect sooner, so that many breaks fit into a test."""
    monkeypatch.setattr(gateway_client, "_PAUSES_S", (0.05, 0.1))


def test_a_connection_cut_while_waiting_is_made_again_and_nothing_runs_twice(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"cut-{time.time_ns()}") / "lines"
    with running(slurm_config) as exe:
        futures = [exe.submit(record, str(path), n, 1.5) for n in range(3)]
        assert exe._driver.wait_sent(20)
        slurm_cluster.cut_connections()
        assert [future.result(30) for future in futures] == [0, 1, 4]
        assert exe.submit(record, str(path), 3).result(20) == 9
    assert executions(path) == once(4)


def test_who_has_set_up_no_logging_is_warned_on_the_terminal_and_once(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    """Also while the script has ended and waits for its tasks: nothing then breaks the connection by itself."""
    values = {each.name: getattr(embedded_config, each.name) for each in fields(embedded_config)}
    script = f"""
import time
from remoteexec import RemoteExecutor
from remoteexec.config.model import ClusterConfig

exe = RemoteExecutor(ClusterConfig(**{values!r}))
future = exe.submit(time.sleep, 2)
future.add_done_callback(lambda future: print(future.result()))
exe._driver.wait_sent(20)
print("sent", flush=True)
"""
    for cut in (False, True):
        argv = [sys.executable, "-c", script + ("time.sleep(1)" if cut else "")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "sent\n"
            if cut:
                embedded_cluster.cut_connections()
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, "None\n")
        assert err.count("connection to the cluster lost") == cut
        assert "Traceback" not in err


def test_results_that_came_while_the_link_was_down_are_fetched_afterwards(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"down-{time.time_ns()}") / "lines"
    with running(slurm_config) as exe:
        first = exe.submit(record, str(path), 0, 0.5)
        second = exe.submit(lambda a: a + 1, first)
        assert exe._driver.wait_sent(20)
        slurm_cluster.stop_sshd()
        slurm_cluster.wait(lambda: not slurm_cluster.run(["squeue", "-h"]).stdout, "the jobs do not end")
        third = exe.submit(record, str(path), 2)  # submitted while nobody is there
        assert (first.done(), second.done(), third.done()) == (False, False, False)
        slurm_cluster.start_sshd()
        assert [future.result(30) for future in (first, second, third)] == [0, 1, 4]
    assert executions(path) == Counter([0, 2])


@pytest.mark.usefixtures("quick")
def test_connections_cut_in_the_middle_of_submits_lose_nothing_and_run_nothing_twice(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, tmp_path: Path
) -> None:
    path = slurm_cluster.make_directory(f"middle-{time.time_ns()}") / "lines"
    count = 40
    with proxied(slurm_config, tmp_path, 0.005) as (proxy, config), running(config) as exe:
        with every(0.4, proxy.reset) as resets:
            futures = []
            for n in range(count):  # several bursts, one job each: resources differ
                futures.append(exe.submit(record, str(path), n, resource_dict={"run_time_max": 60 * (n % 4 + 1)}))
                time.sleep(0.03)
            while len(resets) < 5:
                time.sleep(0.05)
        assert [future.result(60) for future in futures] == [n * n for n in range(count)]
        assert proxy.connections() >= 3
    assert executions(path) == once(count)


@pytest.mark.usefixtures("quick")
def test_a_gateway_killed_again_and_again_in_a_burst_loses_nothing_and_runs_nothing_twice(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"gateway-{time.time_ns()}") / "lines"
    count = 200
    with running(slurm_config) as exe:
        with every(0.35, lambda: kill_gateways(slurm_config)) as killed:
            with exe._driver.gathering():  # ten jobs with twenty tasks each
                futures = [
                    exe.submit(record, str(path), n, resource_dict={"run_time_max": 60 * (n % 10 + 1)})
                    for n in range(count)
                ]
            while sum(killed) < 5:
                time.sleep(0.05)
        assert [future.result(100) for future in futures] == [n * n for n in range(count)]
    assert executions(path) == once(count)


@pytest.mark.usefixtures("quick")
def test_cancels_and_losses_survive_a_killed_gateway(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> None:
    for node in slurm_cluster.nodes:
        slurm_cluster.drain(node)
    with running(slurm_config) as exe:
        futures = [exe.submit(abs, -n) for n in range(4)]
        assert exe._driver.wait_sent(20)
        assert kill_gateways(slurm_config) == 1
        assert futures[1].cancel()
        assert kill_gateways(slurm_config) <= 1
        time.sleep(3)  # the new gateway has asked: SLURM 22.05 forgets at once an element cancelled before it starts
        job = slurm_cluster.run(["squeue", "--noheader", "--format=%F"]).stdout.split()[0]
        slurm_cluster.run(["scancel", f"{job}_2"])
        assert isinstance(futures[2].exception(30), errors.TaskCancelled)
        slurm_cluster.wait(
            lambda: slurm_cluster.run(["squeue", "-h", "--array", "-o", "%K"]).stdout.split() == ["0", "3"],
            "the cancelled task is still in the queue",
        )
        slurm_cluster.resume(*slurm_cluster.nodes)
        assert [futures[n].result(30) for n in (0, 3)] == [0, 3]


def test_a_link_that_stalls_silently_is_given_up_and_replaced(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gateway_client, "_PING_S", 0.3)
    monkeypatch.setattr(gateway_client, "_SILENT_S", 1.0)
    monkeypatch.setattr(gateway_client, "_START_S", 3.0)
    path = embedded_cluster.make_directory(f"stall-{time.time_ns()}") / "lines"
    with proxied(embedded_config, tmp_path) as (proxy, config), running(config) as exe:
        futures = [exe.submit(record, str(path), n, 0.2) for n in range(2)]
        assert exe._driver.wait_sent(20)
        proxy.stall()
        futures += [exe.submit(record, str(path), n) for n in range(2, 4)]
        array = exe.submit(np.sum, np.ones(1 << 21))  # fills every window: the writer waits for room
        time.sleep(2.5)
        assert not futures[3].done()
        proxy.reset()  # what is stuck in the proxy is gone, as in a real one
        proxy.resume()
        assert [future.result(30) for future in futures] == [0, 1, 4, 9]
        assert array.result(30) == 1 << 21
        assert proxy.connections() >= 2
    assert executions(path) == once(4)


def test_a_large_transfer_is_not_taken_for_silence(
    embedded_config: ClusterConfig, tmp_path: Path, monkeypatch: Any
) -> None:
    """Pongs wait behind a large result: its bytes count as life."""
    monkeypatch.setattr(gateway_client, "_PING_S", 0.05)
    monkeypatch.setattr(gateway_client, "_SILENT_S", 0.5)
    monkeypatch.setattr(gateway_client, "_LOOK_S", 0.05)
    with proxied(embedded_config, tmp_path, 0.1) as (proxy, config), running(config) as exe:
        assert exe.submit(len, exe.submit(bytes, 12_000_000)).result(30) == 12_000_000
        assert len(exe.submit(bytes, 12_000_000).result(30)) == 12_000_000
        assert exe.submit(len, b"x" * 12_000_000).result(30) == 12_000_000
        assert proxy.connections() == 1


def test_an_executor_can_be_left_while_the_link_is_stalled(
    embedded_config: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_GOODBYE_S", 1.0)
    with proxied(embedded_config, tmp_path) as (proxy, config):
        exe = RemoteExecutor(config)
        assert exe.submit(abs, -1).result(20) == 1
        proxy.stall()
        began = time.monotonic()
        exe.shutdown()
        assert time.monotonic() - began < 8


def test_a_host_key_that_changed_during_a_break_ends_the_executor_with_that_error(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    exe = RemoteExecutor(embedded_config)
    future = exe.submit(time.sleep, 3)  # holds a core of this machine as long
    waiting = exe.submit(abs, future)
    assert exe._driver.wait_sent(20)
    embedded_cluster.new_host_key()
    embedded_cluster.cut_connections()
    exc = future.exception(20)
    assert isinstance(exc, errors.HostKeyChanged)
    assert waiting.exception(20) is exc
    with pytest.raises(RuntimeError, match="this executor has failed") as caught:
        exe.submit(abs, 1)
    assert caught.value.__cause__ is exc
    exe.shutdown()
    assert len(exe) == 0


def test_a_login_that_is_refused_during_a_break_is_tried_once(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    exe = RemoteExecutor(embedded_config)
    future = exe.submit(time.sleep, 3)  # holds a core of this machine as long
    assert exe._driver.wait_sent(20)
    before = len(embedded_cluster.log_lines())
    embedded_cluster.change(refuse=("publickey",))
    embedded_cluster.cut_connections()
    assert isinstance(future.exception(20), errors.AuthenticationFailed)
    exe.shutdown()
    time.sleep(1.5)
    attempts = [line for line in embedded_cluster.log_lines()[before:] if line.startswith("auth publickey")]
    assert len(attempts) == 1


def test_a_password_is_asked_for_once_also_when_the_connection_breaks(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    embedded_cluster.change(refuse=("publickey",), password="right")
    asked = []

    def password() -> str:
        asked.append(threading.current_thread().name)
        return "right"

    with running(embedded_config, password=password) as exe:
        future = exe.submit(time.sleep, 1)
        assert exe._driver.wait_sent(20)
        embedded_cluster.cut_connections()
        assert future.result(20) is None
    assert asked == ["MainThread"]


def test_errors_of_the_connection_are_raised_by_entering_and_by_the_first_submit(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster, tmp_path: Path
) -> None:
    empty = tmp_path / "known_hosts"
    empty.touch()
    with pytest.raises(errors.HostKeyUnknown):
        RemoteExecutor(replace(embedded_config, known_hosts=str(empty))).__enter__()
    embedded_cluster.change(refuse=("publickey",))
    with pytest.raises(errors.AuthenticationFailed):
        RemoteExecutor(embedded_config).submit(abs, 1)
    with pytest.raises(errors.ConnectError):
        RemoteExecutor(replace(embedded_config, port=1)).submit(abs, 1)


def test_banner_and_noisy_shell_start_up_files_change_nothing(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    text = 'Welcome!\nbytes: \x01\x02 \'quoted\' {"is": "Welcome"}'
    with slurm_cluster.noisy_login(text), running(slurm_config) as exe:
        assert list(exe.map(abs, range(-3, 0))) == [3, 2, 1]
        assert exe.submit(sum, [exe.submit(abs, -1), 2]).result(20) == 3
        with running(replace(slurm_config, login_shell=True)) as other:
            assert other.submit(abs, -4).result(20) == 4


def test_a_very_noisy_login_changes_nothing(
    embedded_config: ClusterConfig, embedded_cluster: EmbeddedTestCluster
) -> None:
    embedded_cluster.change(banner="news\n" * 500, noise="x" * 200_000)
    with running(embedded_config) as exe:
        assert exe.submit(abs, -1).result(20) == 1


def test_a_slow_link_delivers_the_same(embedded_config: ClusterConfig, tmp_path: Path) -> None:
    with proxied(embedded_config, tmp_path, 0.1) as (_, config), running(config) as exe:
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            futures = list(threads.map(lambda n: exe.submit(abs, -n), range(8)))
        assert [future.result(30) for future in futures] == list(range(8))
