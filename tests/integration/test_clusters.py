"""The throwaway clusters do what the tests that use them rely on."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clusters.rootless import SlurmCluster
from tests.clusters.rootless import slurm_cluster as start_slurm_cluster


def ssh(cluster: SlurmCluster, command: str) -> subprocess.CompletedProcess[str]:
    options = [
        "-o",
        f"UserKnownHostsFile={cluster.known_hosts}",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "BatchMode=yes",
    ]
    argv = ["ssh", "-F", "none", *options, "-i", str(cluster.identity_file), "-p", str(cluster.port)]
    return subprocess.run(
        [*argv, f"{cluster.user}@{cluster.host}", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def submit(cluster: SlurmCluster, script: str, *options: str) -> str:
    argv = ["sbatch", "--parsable", *options]
    return cluster.run(argv, input=f"#!/bin/sh\n{script}\n").stdout.strip()


def state(cluster: SlurmCluster, job: str) -> str:
    return cluster.run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]).stdout.strip()


def wait_for(cluster: SlurmCluster, job: str, *wanted: str, deadline_s: float = 20.0) -> str:
    end = time.monotonic() + deadline_s
    while (now := state(cluster, job)) not in wanted:
        assert time.monotonic() < end, f"job {job} is {now}, not {wanted}"
        time.sleep(0.02)
    return now


def test_a_job_runs_as_the_ordinary_user(slurm_cluster: SlurmCluster) -> None:
    job = submit(slurm_cluster, "id -un; echo $HOME", "--output=out.txt")
    wait_for(slurm_cluster, job, "COMPLETED")
    shown = (slurm_cluster.home / "out.txt").read_text().split()
    assert shown == [slurm_cluster.user, str(slurm_cluster.home)]
    assert os.geteuid() != 0 or pwd.getpwnam(slurm_cluster.user).pw_uid != 0


def test_ssh_finds_the_same_home_and_slurm(slurm_cluster: SlurmCluster) -> None:
    done = ssh(slurm_cluster, "echo $HOME; sinfo --noheader --partition=debug --format=%D")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [str(slurm_cluster.home), "2"], "")


def test_a_noisy_login_prints_on_both_streams(slurm_cluster: SlurmCluster) -> None:
    with slurm_cluster.noisy_login("hello there"):
        done = ssh(slurm_cluster, "true")
    assert (done.stdout, done.stderr) == ("hello there\n", "hello there\nhello there\n")
    assert ssh(slurm_cluster, "true").stdout == ""


def test_the_cluster_python_has_the_packages_but_not_remoteexec(slurm_cluster: SlurmCluster) -> None:
    code = (
        "import importlib.util as u, sys; print(sys.version_info[1], *(u.find_spec(name) is not None for name in "
        "('cloudpickle', 'h5py', 'pysqa', 'ase', 'remoteexec', 'remoteexec_server')))"
    )
    shown = slurm_cluster.run([str(slurm_cluster.python), "-c", code]).stdout.split()
    assert shown == [str(sys.version_info.minor), *["True"] * 4, *["False"] * 2]


def test_a_job_that_takes_too_much_memory_is_killed_and_says_so(slurm_cluster: SlurmCluster) -> None:
    greedy = f"{slurm_cluster.python} -c 'import time; block = bytearray(300 << 20); time.sleep(60)'"
    job = submit(slurm_cluster, f"{greedy}", "--mem=100", "--output=memory.txt")
    ended = wait_for(slurm_cluster, job, "OUT_OF_MEMORY", "FAILED", "CANCELLED")
    log = (slurm_cluster.home / "memory.txt").read_text()
    print(ended, log)
    assert "exceeded memory limit" in log


def test_a_node_that_goes_down_fails_its_job_and_comes_back(slurm_cluster: SlurmCluster) -> None:
    job = submit(slurm_cluster, "sleep 100", "--nodelist=n2", "--no-requeue")
    wait_for(slurm_cluster, job, "RUNNING")
    slurm_cluster.down("n2")
    wait_for(slurm_cluster, job, "NODE_FAIL")
    slurm_cluster.resume("n2")
    wait_for(slurm_cluster, submit(slurm_cluster, "true", "--nodelist=n2"), "COMPLETED")


def test_a_killed_node_takes_its_processes_along(slurm_cluster: SlurmCluster) -> None:
    job = submit(slurm_cluster, "echo $$ > pid.txt; exec sleep 100", "--nodelist=n1", "--no-requeue")
    wait_for(slurm_cluster, job, "RUNNING")
    pid_file = slurm_cluster.home / "pid.txt"
    while not (pid_file.exists() and pid_file.read_text().strip()):
        time.sleep(0.02)
    slurm_cluster.kill_node("n1")
    wait_for(slurm_cluster, job, "NODE_FAIL")
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()
    slurm_cluster.resume("n1")
    wait_for(slurm_cluster, submit(slurm_cluster, "true", "--nodelist=n1"), "COMPLETED")


def test_the_controller_remembers_its_jobs_over_a_restart(slurm_cluster: SlurmCluster) -> None:
    job = submit(slurm_cluster, "sleep 100")
    wait_for(slurm_cluster, job, "RUNNING")
    slurm_cluster.restart_controller()
    assert state(slurm_cluster, job) == "RUNNING"


def test_ssh_sessions_are_cut_and_new_ones_accepted(slurm_cluster: SlurmCluster) -> None:
    options = ["-o", f"UserKnownHostsFile={slurm_cluster.known_hosts}", "-o", "BatchMode=yes", "-F", "none"]
    argv = ["ssh", *options, "-i", str(slurm_cluster.identity_file), "-p", str(slurm_cluster.port)]
    with subprocess.Popen(
        [*argv, f"{slurm_cluster.user}@{slurm_cluster.host}", "echo up; exec sleep 100"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        slurm_cluster.cut_connections()
        assert session.wait(10) == 255
    assert ssh(slurm_cluster, "echo back").stdout == "back\n"


def test_a_changed_host_key_is_refused(slurm_cluster: SlurmCluster) -> None:
    key, public = (slurm_cluster.directory / "etc" / name for name in ("host_ed25519", "host_ed25519.pub"))
    before = key.read_bytes(), public.read_bytes()
    slurm_cluster.new_host_key()
    try:
        assert "HOST IDENTIFICATION HAS CHANGED" in ssh(slurm_cluster, "true").stderr
    finally:
        key.write_bytes(before[0])
        public.write_bytes(before[1])
        slurm_cluster.stop_sshd()
        slurm_cluster.start_sshd()
    assert ssh(slurm_cluster, "true").returncode == 0


def test_small_arrays(small_array_cluster: SlurmCluster) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="array") as failed:
        submit(small_array_cluster, "true", "--array=0-5")
    assert "Invalid job array specification" in failed.value.stderr
    submit(small_array_cluster, "true", "--array=0-4")


def test_nothing_is_left_when_the_owner_of_a_cluster_is_killed(slurm_cluster: SlurmCluster) -> None:
    """A second cluster beside the first, started by a process that is then killed."""
    code = (
        "import sys, time\n"
        "from tests.clusters.rootless import slurm_cluster\n"
        "with slurm_cluster() as cluster:\n"
        "    cluster.run(['sbatch', '--wrap', 'sleep 1000'])\n"
        "    print(cluster.directory, cluster.user, flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        directory, user = owner.stdout.readline().split()
        owner.kill()
    end = time.monotonic() + 10
    while Path(directory).exists() or (os.geteuid() == 0 and user in {entry.pw_name for entry in pwd.getpwall()}):
        assert time.monotonic() < end
        time.sleep(0.02)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(directory.encode() in command for command in commands)


def test_starting_and_stopping_takes_less_than_two_seconds(slurm_cluster: SlurmCluster) -> None:
    began = time.monotonic()
    with start_slurm_cluster() as cluster:
        started = time.monotonic()
        cluster.run(["sbatch", "--wrap", "sleep 1000"])
    assert started - began < 2.0
    assert time.monotonic() - started < 2.0
    cluster.stop()  # again, without effect
