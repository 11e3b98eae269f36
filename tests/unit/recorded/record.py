"""Records what a version of SLURM prints: `python record.py DIRECTORY [--root CHROOT]`, as root on Linux.

A cluster of three nodes with accounting is started in namespaces of its own, so nothing outside is touched and all
of it ends with this process; jobs named after what happens to them are run as an ordinary user. The tests ask of every
version's recordings the same questions.

    DIRECTORY/squeue.txt sacct.txt show_job.txt ...   by the commands and formats that `slurm_text` reads
    DIRECTORY/log/NAME.txt                            what a job's log says
    DIRECTORY/refused/NAME.txt                        exit code and stderr of a submission that is refused

Needs on PATH, or below CHROOT: slurmctld, slurmd, slurmdbd; and on PATH: mariadbd, unshare, ip.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "server_side"))

from remoteexec_server.batch import slurm_text

USER = "games"
"""Any ordinary user that every Debian has."""
STATE = Path("/srv/recorder")
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "HOME": str(STATE),
    "LC_ALL": "C",
    "SLURM_CONF": str(STATE / "etc/slurm.conf"),
    "SLURM_BITSTR_LEN": "0",
}

SLURM_CONF = f"""\
ClusterName=rec
SlurmctldHost=recorder(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPidFile={STATE}/slurmctld.pid
SlurmctldLogFile={STATE}/log/slurmctld.log
StateSaveLocation={STATE}/ctld
SlurmdPidFile={STATE}/slurmd-%n.pid
SlurmdLogFile={STATE}/log/slurmd-%n.log
SlurmdSpoolDir={STATE}/d-%n
TmpFS={STATE}/tmp-%n
SlurmdParameters=config_overrides
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=2
InactiveLimit=0
MessageTimeout=5
MaxArraySize=101
Prolog={STATE}/prolog
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=recorder
AccountingStorageEnforce=associations,limits,qos
NodeName=DEFAULT CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN
NodeName=n1 NodeHostname=recorder NodeAddr=127.0.0.1 Port=17001
NodeName=n2 NodeHostname=recorder NodeAddr=127.0.0.1 Port=17002
NodeName=n3 NodeHostname=recorder NodeAddr=127.0.0.1 Port=17003
PartitionName=debug Nodes=n[1-2] Default=YES DefaultTime=10 MaxTime=60 MaxNodes=1 PriorityTier=1 State=UP
PartitionName=urgent Nodes=n2 DefaultTime=10 MaxTime=60 PriorityTier=10 State=UP
PartitionName=broken Nodes=n3 DefaultTime=10 MaxTime=60 State=UP
"""
SLURMDBD_CONF = f"""\
AuthType=auth/none
DbdHost=recorder
SlurmUser=root
PidFile={STATE}/slurmdbd.pid
LogFile={STATE}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
StorageLoc=slurm_acct_db
CommitDelay=0
"""
PROLOG = '#!/bin/sh\n[ "$SLURM_JOB_PARTITION" != broken ] || [ ! -e /srv/recorder/fail ]\n'

ACCOUNTS = (
    "add account science",
    "add account small",
    f"add user {USER} account=science",
    f"add user {USER} account=small",
    "modify account small set MaxSubmitJobs=2 MaxJobs=1",
    "add qos few set MaxSubmitJobsPerUser=2 MaxJobsPerUser=1",
    "add qos brief set MaxWall=1",
    "add qos strict set MaxWall=1 MaxTRESPerJob=cpu=1 Flags=DenyOnLimit",
    f"modify user {USER} set qos+=few,brief,strict",
)

ENDS_BY_ITSELF = {
    "completed": ["--wrap=true"],
    "exit-3": ["--wrap=exit 3"],
    "exit-74": ["--wrap=exit 74"],
    "no-python": ["--wrap=exec /no/such/python x"],
    "not-executable": ["--wrap=exec /etc/passwd x"],
    "segfault": ["--wrap=kill -SEGV $$"],
    "killed": ["--wrap=kill -KILL $$"],
    "child-killed": ["--wrap=sh -c 'kill -KILL $$'"],
    "array": ["--array=0-2", "--wrap=exit $SLURM_ARRAY_TASK_ID"],
    "no-log": ["-o", "/proc/no/such/log", "--wrap=true"],
    "memory": ["--mem=50", "--wrap=sleep 1; head -c 300m /dev/zero | tail -n 1 | sleep 20"],
}
LIVES = {
    "timeout": ["-t", "1"],
    "cancelled-by-owner": [],
    "cancelled-by-root": [],
    "node-fails": ["-w", "n3", "-p", "broken", "--no-requeue"],
    "preempted": ["-w", "n2", "-c", "4", "--no-requeue"],
}
WAITS = {
    "held-by-owner": ["-H"],
    "held-by-root": ["--begin=now+1hour"],
    "cancelled-waiting": ["--begin=now+1hour"],
    "cancelled-waiting-by-root": ["--begin=now+1hour"],
    "too-long": ["-t", "120"],
    "too-wide": ["-N", "2"],
    "few-first": ["-A", "science", "--qos=few"],
    "few-second": ["-A", "science", "--qos=few"],
    "small-first": ["-A", "small"],
    "small-second": ["-A", "small"],
    "too-long-for-qos": ["--qos=brief", "-t", "10"],
    "throttled": ["--array=0-3%1"],
}
PERHAPS = {
    "too-many-cpus": ["-c", "5"],
    "too-many-cpus-in-all": ["-n", "1000"],
    "after-a-forgotten-job": ["-d", "afterany:99999"],
}
"""Waits in some versions and is refused by others."""
REFUSED = {
    "partition": ["-p", "nope"],
    "account": ["-A", "nope"],
    "qos": ["--qos=nope"],
    "memory": ["--mem=1T"],
    "feature": ["-C", "nope"],
    "reservation": ["--reservation=nope"],
    "gres": ["--gres=gpu:1"],
    "time": ["-t", "1:2:3:4"],
    "array": ["--array=0-1000"],
    "begun-too-late": ["--deadline=2001-01-01"],
    "qos-submit-limit": ["--qos=few"],
    "account-submit-limit": ["-A", "small"],
    "qos-strict-time": ["--qos=strict", "-t", "10"],
    "qos-strict-cpus": ["--qos=strict", "-t", "1", "-c", "2"],
    "qos-submit-limit-by-array": ["--qos=few", "--array=0-9"],
}


@dataclass
class Recorder:
    """One version of SLURM, below `root`; what it prints goes to `directory`."""

    directory: Path
    root: Path

    def run(self, *argv: str, user: str = "root", check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command inside, as somebody."""
        done = subprocess.run(
            ["chroot", f"--userspec={user}:{user}", str(self.root), *argv],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{argv} failed with exit code {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def run_when_up(self, *argv: str, deadline_s: float = 20.0) -> None:
        """A command that fails until a daemon is there."""
        end = time.monotonic() + deadline_s
        while self.run(*argv, check=time.monotonic() > end).returncode != 0:
            time.sleep(0.2)

    def keep(self, name: str, *argv: str, user: str = USER) -> None:
        """Write down what a command prints."""
        (self.directory / name).write_text(self.run(*argv, user=user).stdout)

    def start(self) -> None:
        """The database, the daemons, the accounts."""
        database()
        self.run("slurmdbd")
        self.run_when_up("sacctmgr", "-n", "show", "cluster")
        self.run("sacctmgr", "-i", "add", "cluster", "rec", check=False)
        for words in ACCOUNTS:
            self.run("sacctmgr", "-i", *words.split())
        self.run("slurmctld")
        for node in ("n1", "n2", "n3"):
            self.run("slurmd", "-N", node)
        ready = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
        until(lambda: set(self.run(*ready, check=False).stdout.split()) == {"n1", "n2", "n3"}, "the nodes")

    def submit(self, name: str, *options: str, wrap: str = "--wrap=sleep 600") -> str:
        """A job's number."""
        log = STATE / f"out/{name}.txt"
        given = [] if any(option.startswith("--wrap") for option in options) else [wrap]
        done = self.run(
            "sbatch", "--parsable", "-J", f"rx-{name}", "-D", "/", "-o", str(log), *options, *given, user=USER
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job, in squeue's word."""
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).stdout.strip()

    def await_state(self, job: str, *words: str) -> None:
        """Wait until it is one of these."""
        until(lambda: self.state(job) in words, f"job {job} to be {words}, is {self.state(job)}", 90)

    def jobs(self) -> None:
        """Have every end happen."""
        live = {name: self.submit(name, *options) for name, options in LIVES.items()}
        for job in live.values():
            self.await_state(job, "RUNNING")
        self.run("scontrol", "update", f"JobId={live['timeout']}", "EndTime=now+1")
        self.run("scancel", live["cancelled-by-owner"], user=USER)
        self.run("scancel", live["cancelled-by-root"])
        self.run("scontrol", "update", "NodeName=n3", "State=DOWN", "Reason=test")
        self.submit("urgent", "-p", "urgent", "-c", "4", wrap="--wrap=sleep 1")
        self.await_state(live["preempted"], "PREEMPTED", "CANCELLED")
        self.run("scontrol", "update", "NodeName=n3", "State=RESUME", check=False)  # it may be back by itself
        (STATE / "fail").touch()
        until(lambda: "n3" in self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").stdout, "n3 to be back")
        self.submit("prolog-fails", "-p", "broken")
        ends = {name: self.submit(name, *options) for name, options in ENDS_BY_ITSELF.items()}
        waits = {name: self.submit(name, *options) for name, options in WAITS.items()}
        self.run("scontrol", "hold", waits["held-by-root"])
        self.run("scancel", waits["cancelled-waiting"], user=USER)
        self.run("scancel", waits["cancelled-waiting-by-root"])
        for name, options in PERHAPS.items():
            try:
                self.submit(name, *options)
            except RuntimeError:
                self.refused(name, "sbatch", "--parsable", "-o", "/dev/null", *options, "--wrap=true")
        self.submit("never", "-d", f"afterok:{ends['exit-3']}")
        for job in ends.values():
            until(lambda job=job: not set(self.state(job).split()) & {"RUNNING", "PENDING", "COMPLETING"}, job, 60)  # type: ignore[misc]
        until(lambda: "held" in self.run("squeue", "-h", "-n", "rx-prolog-fails", "-o", "%r").stdout, "the prolog", 60)
        self.await_state(live["timeout"], "TIMEOUT")
        time.sleep(3.0)  # the scheduler gives its reasons, and the records reach the database

    def record(self) -> None:
        """Write down everything."""
        self.keep("squeue.txt", "squeue", "--me", "-h", "-t", "all", "-o", slurm_text.SQUEUE_FORMAT)
        which = ["-j", ",".join(map(str, range(1, 60)))]
        self.keep("sacct.txt", "sacct", "--noheader", "--parsable2", "-o", slurm_text.SACCT_FORMAT, *which)
        self.keep("show_job.txt", "scontrol", "-o", "show", "job")
        self.keep("show_config.txt", "scontrol", "show", "config")
        self.keep("sinfo.txt", "sinfo", "-h", "-o", slurm_text.SINFO_FORMAT)
        for log in sorted((STATE / "out").iterdir()):
            if log.read_text().strip():
                self.said("log", log.stem, log.read_text())
        for name, options in REFUSED.items():
            self.refused(name, "sbatch", "--parsable", "-o", "/dev/null", *options, "--wrap=true")
        self.refused("scancel-unknown", "scancel", "99999")
        self.refused(
            "scancel-another's",
            "scancel",
            self.run("sbatch", "--parsable", "-o", "/dev/null", "-A", "root", "--wrap=sleep 60").stdout.strip(),
        )
        self.refused("scontrol-unknown", "scontrol", "-o", "show", "job", "99999")
        self.run("scontrol", "shutdown", "slurmctld")
        until(lambda: not (STATE / "slurmctld.pid").exists(), "slurmctld to end")
        self.refused("controller-away", "sbatch", "--parsable", "--wrap=true")
        self.refused("squeue-controller-away", "squeue")

    def refused(self, name: str, *argv: str) -> None:
        """Write down how a command fails."""
        done = self.run(*argv, user=USER, check=False)
        self.said("refused", name, f"exit code {done.returncode}\n{done.stderr}{done.stdout}")

    def said(self, kind: str, name: str, text: str) -> None:
        """Write a text into one of the folders."""
        (self.directory / kind).mkdir(exist_ok=True)
        (self.directory / kind / f"{name}.txt").write_text(text)


def database() -> None:
    """A MariaDB that everybody in these namespaces may use."""
    data = STATE / "db"
    common = ["--no-defaults", f"--datadir={data}", "--user=root"]
    subprocess.run(
        ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True,
        capture_output=True,
    )
    socket = f"--socket={STATE}/db.sock"
    # a lock that cannot be had for long, and a small pool: slurmdbd warns and goes on
    subprocess.Popen(
        [
            "mariadbd",
            *common,
            socket,
            "--bind-address=127.0.0.1",
            f"--log-error={STATE}/log/db.log",
            f"--pid-file={STATE}/db.pid",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
        ]
    )
    ask = ["mariadb", "--no-defaults", socket, "-u", "root", "-e", "create database if not exists slurm_acct_db"]
    until(lambda: subprocess.run(ask, check=False, capture_output=True).returncode == 0, "the database")


def until(true: Callable[[], bool], what: str, deadline_s: float = 30.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_s:g} s for {what}; see {STATE}/log")
        time.sleep(0.2)


@contextlib.contextmanager
def laid_out(root: Path) -> Iterator[None]:
    """The directory of all state, in this namespace only, seen at the same path inside `root`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "recorder", "/srv"], check=True)
    for name in ("etc", "log", "ctld", "out", "db", *(f"{kind}-n{n}" for kind in ("d", "tmp") for n in (1, 2, 3))):
        (STATE / name).mkdir(parents=True)
    shutil.chown(STATE / "out", USER)
    (STATE / "etc/slurm.conf").write_text(SLURM_CONF)
    (STATE / "etc/slurmdbd.conf").write_text(SLURMDBD_CONF)
    (STATE / "etc/slurmdbd.conf").chmod(0o600)
    (STATE / "prolog").write_text(PROLOG)
    (STATE / "prolog").chmod(0o755)
    # slurmd would change limits of the cgroup that all this runs in: it finds none
    subprocess.run(["mount", "-t", "tmpfs", "none", "/sys/fs/cgroup"], check=True)
    if root != Path("/"):
        for name in ("/proc", "/dev", "/sys", "/srv"):
            subprocess.run(["mount", "--rbind", name, f"{root}{name}"], check=True)
    (STATE / "etc/hosts").write_text("127.0.0.1 localhost recorder\n")
    subprocess.run(["mount", "--bind", STATE / "etc/hosts", root / "etc/hosts"], check=True)
    subprocess.run(["hostname", "recorder"], check=True)
    for words in ("link set lo up", "link add any0 type bridge", "link set any0 up", "addr add 10.9.9.9/24 dev any0"):
        subprocess.run(
            ["ip", *words.split()], check=True
        )  # with loopback addresses alone SLURM finds none to listen on
    try:
        yield
    except Exception:
        for log in (STATE / "log").glob("slurm*"):
            print(f"--- {log}", *log.read_text(errors="replace").splitlines()[-8:], sep="\n", file=sys.stderr)
        raise


def main() -> None:
    """Make the namespaces, then record inside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.inside:
        unshare = ["unshare", "--mount", "--uts", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        sys.exit(subprocess.run([*unshare, sys.executable, *sys.argv, "--inside"], check=False).returncode)
    recorder = Recorder(given.directory.resolve(), given.root)
    with laid_out(given.root):
        recorder.directory.mkdir(parents=True, exist_ok=True)
        version = re.sub("[^0-9.]", "", recorder.run("slurmctld", "-V").stdout)
        print(f"recording {version}")
        if version >= "23":
            plugin = "disabled" if version >= "24.05" else "cgroup/v1"
            (STATE / "etc/cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        recorder.start()
        recorder.jobs()
        recorder.record()


if __name__ == "__main__":
    main()
