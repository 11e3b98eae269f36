"""A real SLURM behind a real sshd, as one ordinary user in one directory: up in a fraction of a second.

No root, no munge, nothing of the system's configuration: SLURM's and OpenSSH's packages only have to be installed.
The user is the caller; root may name another `Account`.
"""

from __future__ import annotations

import itertools
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from remoteexec.demo.config.render import render
from remoteexec.demo.processes import Account, Kept, Program

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED = {
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol"),
    "openssh-server": ("sshd",),
    "openssh-client": ("ssh-keygen",),
}


def missing_packages() -> list[str]:
    """The Debian packages without which `RootlessSlurm` cannot start here."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    return [name for name, tools in NEEDED.items() if not all(shutil.which(tool, path=path) for tool in tools)]


@dataclass(frozen=True)
class SlurmOptions:
    """How a rootless SLURM differs from the usual.

    Attributes:
        memory_per_cpu_mb: what a job gets that asks for no memory; it is killed for using more.
        gpus: of each node, 0 to 2; nothing but files that stand for them.
        features: of the nodes, in their order, for jobs' constraints.
        preemption: partitions "cheap", whose jobs those of partition "urgent" end, and "again", whose jobs they put
            back into the queue; all on n1.
        preload: a shared library for slurmctld's LD_PRELOAD.
        environment: variables that every SSH session finds, besides HOME and SLURM_CONF.
    """

    nodes: int = 2
    cpus: int = 4
    memory_mb: int = 4000
    memory_per_cpu_mb: int = 500
    max_array_size: int = 10001
    gpus: int = 0
    features: Sequence[str] = ()
    preemption: bool = False
    preload: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


_PREEMPTION = (
    "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE",
    """\
PartitionName=urgent Nodes=n1 DefaultTime=1 MaxTime=5 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=cheap Nodes=n1 DefaultTime=5 MaxTime=5 PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=again Nodes=n1 DefaultTime=5 MaxTime=5 PriorityTier=1 PreemptMode=REQUEUE State=UP""",
)
"""What slurm.conf says of it, and its partitions."""


class ClusterNotStarted(RuntimeError):
    """The daemons did not come up; the message ends with what they logged."""


class SlurmCommands:
    """What SLURM's own commands can do to a throwaway cluster, whichever way its hosts are made.

    Attributes:
        user: whose jobs run on it.
        nodes: names of its compute nodes.
        logs: directory of the daemons' logs.
    """

    user: str
    nodes: list[str]
    logs: Path

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node as the cluster's user, without SSH.

        Raises:
            subprocess.CalledProcessError: it failed and `check` is set.
        """
        raise NotImplementedError

    def administer(self, *argv: str, check: bool = True) -> None:
        """Run a command that only SLURM's administrator may run."""
        self.run(argv, check=check)

    def restart_daemon(self, node: str) -> None:
        """Start a node's slurmd where it does not run."""
        raise NotImplementedError

    def drain(self, node: str) -> None:
        """Let its jobs end and start no more."""
        self.administer("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")

    def down(self, node: str) -> None:
        """Declare a node down: its jobs end as NODE_FAIL at once."""
        self.administer("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def resume(self, *nodes: str) -> None:
        """Bring drained, down or killed nodes back and return when all nodes are usable."""
        for node in nodes:
            self.restart_daemon(node)
            # an idle node refuses "resume"
            self.administer("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Return when every node is usable."""
        self.wait(lambda: self.usable_nodes() == len(self.nodes), "not all nodes are up")

    def usable_nodes(self) -> int:
        argv = ["sinfo", "--noheader", "--format=%D %T", "--partition=debug"]  # --states=idle lists drained nodes, too
        lines = [line.split() for line in self.run(argv, check=False).stdout.splitlines()]
        return sum(int(count) for count, state in lines if state in ("idle", "mixed", "allocated", "completing"))

    def cancel_all(self) -> None:
        """Cancel every job and return when none is left in the queue."""
        self.run(["scancel", "--user", self.user])
        self.wait(lambda: not self.run(["squeue", "--noheader"]).stdout.strip(), "jobs do not end")

    def end_soon(self, job_id: int | str, seconds: int = 1) -> None:
        """Move the time limit of a running job to `seconds` from now; SLURM notices within 30 s.

        Time limits are whole minutes, which is long for a test.
        """
        self.run(["scontrol", "update", f"job={job_id}", f"EndTime=now+{seconds}"])

    def wait(self, condition: Callable[[], bool], problem: str, deadline_s: float = 20.0) -> None:
        """Wait for a condition.

        Raises:
            ClusterNotStarted: with `problem` and the last lines of the logs.
        """
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                raise ClusterNotStarted(f"{problem} within {deadline_s:.0f} s\n{self.log_tails()}")
            time.sleep(0.01)

    def log_tails(self) -> str:
        """The last lines of every log."""
        texts = []
        for path in sorted(self.logs.glob("*.log")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
            texts.append("\n".join([f"--- {path.name}", *lines]))
        return "\n".join(texts)


class RootlessSlurm(SlurmCommands):
    """One cluster: its login node, its two nodes and what tests do to them.

    Attributes:
        host, port, user: where its sshd listens and who may log in.
        identity_file, known_hosts: the client's side of the login, 0600 files of the caller.
        home: HOME of the user on this cluster, empty at first.
        directory: all state; logs are in log/.
        nodes: names of the compute nodes.
    """

    def __init__(
        self,
        directory: Path,
        options: SlurmOptions | None = None,
        account: Account | None = None,
        afterwards: Sequence[Sequence[str]] = (),
    ) -> None:
        """Describe the cluster; `start` brings it up.

        Args:
            directory: exists, and nothing of ours is in it yet; `stop` removes it.
            account: the caller where None; only root can name another.
            afterwards: commands to run when everything has ended.
        """
        self.options = options or SlurmOptions()
        self.account = account or Account.of_caller()
        self.directory = directory
        self.host = "127.0.0.1"
        self.user = self.account.name
        self.logs = directory / "log"
        self.home = directory / "home"
        self.identity_file = directory / "client" / "id_ed25519"
        self.known_hosts = directory / "client" / "known_hosts"
        self.nodes = [f"n{number + 1}" for number in range(self.options.nodes)]
        self.controller_port, *self._node_ports, self.port = free_ports(self.options.nodes + 2)
        self._kept = Kept(self._programs(), remove=[directory], afterwards=afterwards)

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a session on the login node."""
        return {
            "HOME": str(self.home),
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": self.account.shell,
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.slurm_conf),
            **self.options.environment,
        }

    def start(self) -> None:
        """Start the daemons and return when every node is idle.

        Raises:
            ClusterNotStarted: with the last lines of the logs; everything is ended and removed.
        """
        try:
            self._make_directories()
            self._make_keys()
            self._configure()
            self._kept.start_program("sshd")
            self._start_slurm()
            self.wait(lambda: accepts(self.port), "sshd does not accept connections")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the cluster, jobs and sessions included, and remove its directory."""
        self._kept.stop()

    def __enter__(self) -> RootlessSlurm:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node as its user, without SSH.

        Raises:
            subprocess.CalledProcessError: it failed and `check` is set.
        """
        return subprocess.run(
            argv,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=check,
            env=self.environment,
            cwd=self.home,
            **self.account.popen_arguments(),
        )

    def make_directory(self, name: str) -> Path:
        """Make a new directory below HOME that belongs to the cluster's user, 0700."""
        path = self.home / name
        self.run(["mkdir", "-p", "-m", "700", str(path)])
        return path

    # --- what can happen to a cluster ---

    def kill_node(self, node: str) -> None:
        """Kill slurmd and everything that runs on a node, then declare it down; `resume` starts it again."""
        self._kept.stop_program(node)
        self._kept.kill_matching(f"SLURMD_NODENAME={node}")
        self.down(node)

    def stop_controller(self) -> None:
        """Kill slurmctld: every SLURM command then fails after some seconds; running jobs go on."""
        self._kept.stop_program("slurmctld", signal.SIGTERM)

    def start_controller(self) -> None:
        """Start slurmctld, which remembers its jobs, and return when it answers."""
        self._start_slurm()

    def restart_controller(self) -> None:
        self.stop_controller()
        self.start_controller()

    def stop_sshd(self) -> None:
        """Refuse new connections and cut those that exist."""
        self.cut_connections()
        self._kept.stop_program("sshd")

    def start_sshd(self) -> None:
        """Accept connections again, on the same port with the same host key."""
        self._kept.start_program("sshd")
        self.wait(lambda: accepts(self.port), "sshd does not accept connections")

    def cut_connections(self) -> None:
        """End every SSH session of the cluster; new ones are accepted."""
        self._kept.kill_children("sshd")

    def new_host_key(self) -> None:
        """Give sshd another host key, as a reinstalled or an impersonated host has; known_hosts keeps the old one."""
        self.stop_sshd()
        self._make_key(self.directory / "etc" / "host_ed25519", self.account)
        self.start_sshd()

    @contextmanager
    def noisy_login(self, text: str = "Welcome!\n*** 2 jobs are waiting ***") -> Iterator[None]:
        """Print `text` as SSH banner and from .bashrc, on stdout and stderr of every session."""
        banner, bashrc = self.directory / "etc" / "banner", self.home / ".bashrc"
        banner.write_text(text + "\n", encoding="utf-8")
        quoted = shlex.quote(text)
        bashrc.write_text(f"printf '%s\\n' {quoted}\nprintf '%s\\n' {quoted} >&2\n", encoding="utf-8")
        bashrc.chmod(0o644)
        try:
            yield
        finally:
            banner.write_text("", encoding="utf-8")
            bashrc.unlink()

    def restart_daemon(self, node: str) -> None:
        if node not in self._kept.running():
            self._kept.start_program(node)

    def recover(self) -> None:
        """Undo what a test has done: no jobs, every daemon up, every node usable."""
        running = self._kept.running()
        if "sshd" not in running:
            self.start_sshd()
        if "slurmctld" not in running:
            self.start_controller()
        if self.usable_nodes() < len(self.nodes) or not set(self.nodes) <= set(running):
            self.resume(*self.nodes)
        if self.run(["squeue", "--noheader"]).stdout.strip():
            self.cancel_all()

    # --- inside ---

    def _start_slurm(self) -> None:
        # slurmd asks for a controller once and then waits for seconds, so it starts after one that listens
        self._kept.start_program("slurmctld")
        self.wait(lambda: accepts(self.controller_port), "slurmctld does not accept connections")
        for node in self.nodes:
            self.restart_daemon(node)
        self.wait_for_nodes()

    def _make_directories(self) -> None:
        self.directory.chmod(0o755)  # the user has to reach what lies below; nothing there is secret but the keys
        for name in ("etc", "log", "run", "home", "spool/ctld", *(f"tmp/{node}" for node in self.nodes)):
            path = self.directory / name
            path.mkdir(parents=True)
        (self.directory / "client").mkdir(mode=0o700)
        self.home.chmod(0o700)
        if self.account.uid == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd insists on it; a booted system has made it
        if not self.account.is_caller:
            for path in [self.directory, *self.directory.rglob("*")]:
                if path.name != "client":
                    os.chown(path, self.account.uid, self.account.gid)

    def _make_keys(self) -> None:
        self._make_key(self.directory / "etc" / "host_ed25519", self.account)
        self._make_key(self.identity_file, Account.of_caller())
        authorized = self.directory / "etc" / "authorized_keys"
        authorized.write_bytes(self.identity_file.with_suffix(".pub").read_bytes())
        host_key = (self.directory / "etc" / "host_ed25519.pub").read_text(encoding="utf-8")
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {host_key}", encoding="utf-8")
        self.known_hosts.chmod(0o600)

    def _make_key(self, path: Path, owner: Account) -> None:
        path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "remoteexec", "-f", path], check=True)
        if not owner.is_caller:
            os.chown(path, owner.uid, owner.gid)

    def _configure(self) -> None:
        directory, options = self.directory, self.options
        hostname = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={hostname} NodeAddr=127.0.0.1 Port={port}{more}"
            for node, port, more in zip(self.nodes, self._node_ports, self._node_options(), strict=True)
        )
        slurm = render(
            "slurm.conf",
            controller=f"{hostname}(127.0.0.1)",
            user=self.user,
            auth="auth/none",
            cred="cred/none",
            port=str(self.controller_port),
            run=str(directory / "run"),
            log=str(directory / "log"),
            spool=str(directory / "spool"),
            tmp=str(directory / "tmp" / "%n"),
            memory_per_cpu_mb=str(options.memory_per_cpu_mb),
            max_array_size=str(options.max_array_size),
            gres_types="GresTypes=gpu" if options.gpus else "",
            preemption=_PREEMPTION[0] if options.preemption else "",
            partitions=_PREEMPTION[1] if options.preemption else "",
            cpus=str(options.cpus),
            memory_mb=str(options.memory_mb),
            nodes=nodes,
            all_nodes=",".join(self.nodes),
        )
        session = {"HOME": str(self.home), "SLURM_CONF": str(self.slurm_conf), **options.environment}
        sshd = render(
            "sshd_config",
            port=str(self.port),
            address=self.host,
            host_key=str(directory / "etc" / "host_ed25519"),
            authorized_keys=str(directory / "etc" / "authorized_keys"),
            strict_modes="no",  # the directory may lie below one that others can write, /tmp
            password_authentication="no",  # without root sshd can check none
            use_pam="no",
            permit_root_login="prohibit-password" if self.account.uid == 0 else "no",
            banner=str(directory / "etc" / "banner"),
            environment="SetEnv " + " ".join(f"{name}={value}" for name, value in session.items()),
        )
        self.slurm_conf.write_text(slurm, encoding="utf-8")
        (directory / "etc" / "gres.conf").write_text(_gres_conf(options.gpus), encoding="utf-8")
        (directory / "etc" / "cgroup.conf").write_text(self._cgroup_conf(), encoding="utf-8")
        (directory / "etc" / "sshd_config").write_text(sshd, encoding="utf-8")
        (directory / "etc" / "banner").write_text("", encoding="utf-8")

    def _node_options(self) -> list[str]:
        gpus = f" Gres=gpu:fake:{self.options.gpus}" if self.options.gpus else ""
        features = [f" Feature={feature}" for feature in self.options.features]
        return [gpus + more for more, _ in itertools.zip_longest(features, self.nodes, fillvalue="")]

    def _cgroup_conf(self) -> str:
        shown = subprocess.run(["slurmctld", "-V"], env=self.environment, capture_output=True, text=True, check=True)
        # "slurm-wlm 22.05.8"; that version does not know CgroupPlugin=disabled and needs no file
        return render("cgroup.conf") if int(shown.stdout.split()[1].split(".")[0]) >= 23 else ""

    def _programs(self) -> list[Program]:
        def program(name: str, *argv: str, **environment: str) -> Program:
            log = self.directory / "log" / f"{name}.out"
            return Program(name, argv, {**self.environment, **environment}, self.directory, log, self.account)

        etc, log = self.directory / "etc", self.directory / "log"
        preload = {} if self.options.preload is None else {"LD_PRELOAD": str(self.options.preload)}
        return [
            program("sshd", tool("sshd"), "-D", "-f", str(etc / "sshd_config"), "-E", str(log / "sshd.log")),
            program("slurmctld", tool("slurmctld"), "-D", **preload),
            *(program(node, tool("slurmd"), "-D", "-N", node) for node in self.nodes),
        ]


def _gres_conf(gpus: int) -> str:
    """slurmd insists on character devices, and counts those it is given."""
    files = ["/dev/null", "/dev/zero"][:gpus]
    return f"Name=gpu Type=fake File={','.join(files)}\n" if files else ""


def tool(name: str) -> str:
    """The path of a program that ordinary users may not have on their PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}") or name


def accepts(port: int) -> bool:
    """Whether something listens on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on, from below the range that the system hands out to clients."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
