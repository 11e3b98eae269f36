"""The virtual hosts are separate where it matters, and the link between them does what it is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import paramiko
import pytest

from tests.clusters.netcluster import NetCluster, obstacle
from tests.clusters.netcluster import net_cluster as start_net_cluster


def login(cluster: NetCluster, **credentials: str) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.load_host_keys(str(cluster.known_hosts))
    client.connect(
        cluster.host, cluster.port, cluster.user, allow_agent=False, look_for_keys=False, timeout=10, **credentials
    )
    return client


def submit(cluster: NetCluster, script: str, *options: str) -> str:
    return cluster.run(["sbatch", "--parsable", *options], input=f"#!/bin/sh\n{script}\n").stdout.strip()


def wait_for(cluster: NetCluster, job: str, wanted: str, deadline_s: float = 30.0) -> None:
    argv = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
    end = time.monotonic() + deadline_s
    while (now := cluster.run(argv).stdout.strip()) != wanted:
        assert time.monotonic() < end, f"job {job} is {now}, not {wanted}"
        time.sleep(0.02)


def test_every_node_is_a_machine_of_its_own_with_a_shared_home(net_cluster: NetCluster) -> None:
    for host in net_cluster.hosts:
        net_cluster.run_on(host, ["sh", "-c", "hostname > /tmp/name; hostname > $HOME/$(hostname)"])
    for host in net_cluster.hosts:
        assert net_cluster.run_on(host, ["cat", "/tmp/name"]).stdout == f"{host}\n"
        assert (net_cluster.home / host).read_text() == f"{host}\n"
    assert not Path("/tmp/name").exists()
    job = submit(net_cluster, "srun --nodes=4 --ntasks-per-node=1 hostname", "--nodes=4", "--output=hosts.txt")
    wait_for(net_cluster, job, "COMPLETED")
    assert sorted((net_cluster.home / "hosts.txt").read_text().split()) == net_cluster.nodes


def test_key_and_password_log_in_as_an_ordinary_user(net_cluster: NetCluster) -> None:
    for credentials in ({"key_filename": str(net_cluster.identity_file)}, {"password": net_cluster.password}):
        client = login(net_cluster, **credentials)
        _, out, _ = client.exec_command("id -un; hostname; sinfo --noheader --partition=debug --format=%D")
        assert out.read().decode().split() == [net_cluster.user, "login", "4"]
        client.close()
    with pytest.raises(paramiko.AuthenticationException):
        login(net_cluster, password="wrong")


def test_the_link_delays_and_is_cut(net_cluster: NetCluster) -> None:
    client = login(net_cluster, key_filename=str(net_cluster.identity_file))
    transport = client.get_transport()
    assert transport is not None
    transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stdin, out, _ = client.exec_command("cat")

    def round_trip_s() -> float:
        began = time.monotonic()
        stdin.write("x\n")
        stdin.flush()
        assert out.readline() == "x\n"
        return time.monotonic() - began

    net_cluster.wan("delay 25")
    assert 0.05 <= round_trip_s() < 0.2
    net_cluster.wan("delay 0")
    assert round_trip_s() < 0.05
    net_cluster.wan("down")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        socket.create_connection((net_cluster.host, net_cluster.port), timeout=0.3)
    assert time.monotonic() - began < 1.0
    net_cluster.wan("up")
    assert round_trip_s() < 0.05
    client.close()


def test_too_much_memory_ends_a_job_as_out_of_memory(net_cluster: NetCluster) -> None:
    if not net_cluster.limits_memory:
        pytest.skip("this machine has no memory controller of cgroup v1")
    greedy = f"{net_cluster.python} -c 'import time; block = bytearray(300 << 20); time.sleep(60)'"
    wait_for(net_cluster, submit(net_cluster, greedy, "--mem=100"), "OUT_OF_MEMORY")


def test_a_node_dies_with_its_job_and_boots_again(net_cluster: NetCluster) -> None:
    job = submit(net_cluster, "sleep 100", "--nodelist=n3", "--no-requeue")
    wait_for(net_cluster, job, "RUNNING")
    net_cluster.kill_node("n3")
    wait_for(net_cluster, job, "NODE_FAIL")
    net_cluster.resume("n3")
    wait_for(net_cluster, submit(net_cluster, "true", "--nodelist=n3"), "COMPLETED")


def test_the_login_node_dies_and_boots_again_and_remembers_its_jobs(net_cluster: NetCluster) -> None:
    job = submit(net_cluster, "sleep 100")
    wait_for(net_cluster, job, "RUNNING")
    saved = net_cluster.directory / "spool" / "ctld" / "job_state"
    began = time.time()
    submit(net_cluster, "true")  # a change, upon which slurmctld writes its state within seconds
    while not saved.exists() or saved.stat().st_mtime <= began:
        assert time.time() < began + 30
        time.sleep(0.05)
    net_cluster.kill_host("login")
    began = time.time()
    while _answers(net_cluster):  # its processes are killed, and their sockets closed a moment later
        assert time.time() < began + 10
        time.sleep(0.05)
    with pytest.raises(OSError, match=r"refused|timed out|route"):
        socket.create_connection((net_cluster.host, net_cluster.port), timeout=0.3)
    net_cluster.start_host("login")
    wait_for(net_cluster, job, "RUNNING")


def _answers(cluster: NetCluster) -> bool:
    try:
        with socket.create_connection((cluster.host, cluster.port), timeout=0.3):
            return True
    except OSError:
        return False


def test_two_clusters_side_by_side_leave_nothing(net_cluster: NetCluster) -> None:
    before = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    with start_net_cluster() as other:
        job = submit(other, "hostname", "--output=name.txt")
        wait_for(other, job, "COMPLETED")
        assert (other.home / "name.txt").read_text() == "n1\n"
        assert other.user != net_cluster.user
    other.stop()  # again, without effect
    assert subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout == before
    assert not other.directory.exists()
    assert not any(line.startswith(f"{other.user}:") for line in Path("/etc/passwd").read_text().splitlines())
    assert os.path.exists(net_cluster.directory)


def test_the_command_line_starts_once_and_stops_for_good() -> None:
    if problem := obstacle():
        pytest.skip(problem)

    def command(*words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "tests.clusters", words[0], f"--name=cli{os.getpid()}", *words[1:]]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert command("start", "--nodes=1")[0] == 0
    try:
        assert command("start", "--nodes=1") == (0, f"cli{os.getpid()} is running\n")
        assert command("exec", "n1", "hostname") == (0, "n1\n")
        assert command("exec", "laptop", "hostname")[0] == 0
        assert command("wan", "delay 1") == (0, "")
    finally:
        assert command("stop") == (0, "")
    assert command("stop") == (0, "")
    assert command("status")[0] == 1
