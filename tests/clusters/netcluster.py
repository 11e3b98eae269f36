"""A SLURM cluster of separate virtual hosts on one kernel, for what needs node death, real users or a wide-area link.

    laptop 10.66.S.1 --(wanlink: delay, loss, rate, cut)-- login 10.66.S.2 = 10.77.S.1 --(bridge)-- n1.. 10.77.S.11..

Each host has its own network, hostname, processes, IPC, /tmp and /dev/shm over the one file system, which is their
shared storage. Needs root; changes nothing of the machine's own configuration. Several can run at once.
The command line is in __main__.py.
"""

from __future__ import annotations

import grp
import itertools
import os
import pwd
import random
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remoteexec.demo.config.render import render
from remoteexec.demo.processes import Account, Kept, Program
from remoteexec.demo.slurm import SYSTEM_PATH, SlurmCommands, missing_packages, tool
from tests.clusters.accounts import cluster_python, make_account
from tests.clusters.rootless import fast_scheduling, pip_environment

MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")
_numbers = itertools.count()


@dataclass(frozen=True)
class NetOptions:
    """How a cluster of virtual hosts is made.

    Attributes:
        laptop: "machine": the machine itself, so that a test's own process is on it; "namespace": a host apart.
        delay_ms: one way, between laptop and login node.
        memory_mb: per node, virtual.
    """

    name: str = "net"
    nodes: int = 4
    cpus: int = 4
    memory_mb: int = 4000
    laptop: str = "machine"
    delay_ms: float = 0.0


def obstacle() -> str | None:
    """Why no such cluster can be started here; None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if missing := missing_packages():
        return f"not installed: {' '.join(missing)}"
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    if missing := [name for name in ("munged", "ip", "ss", "nsenter", "unshare") if not shutil.which(name, path=path)]:
        return f"not installed: {' '.join(missing)}"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as exc:
        return f"/dev/net/tun: {exc.strerror}"
    argv = ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else None


class NetCluster(SlurmCommands):
    """One cluster of virtual hosts.

    Attributes:
        host, port, user, identity_file, password, known_hosts: how the laptop logs in, by key or by password.
        home, python: as of SlurmCluster.
        hosts: login and the nodes.
        limits_memory: a job that exceeds its memory ends as OUT_OF_MEMORY, by a cgroup.
    """

    scheduler = "slurm"
    port = 22

    def __init__(self, directory: Path, options: NetOptions | None = None) -> None:
        """Describe the cluster and add its user; `start` brings it up.

        Args:
            directory: exists, is empty, lies outside /tmp (every host has its own) and below directories that only root
                can write (sshd is strict about that); `stop` removes it.
        """
        self.options = options or NetOptions()
        self.directory = directory
        self.logs = directory / "log"
        self.subnet = free_subnet()
        self.host = f"10.66.{self.subnet}.2"
        self.nodes = [f"n{number + 1}" for number in range(self.options.nodes)]
        self.hosts = ["login", *self.nodes]
        self.identity_file = directory / "client" / "id_ed25519"
        self.known_hosts = directory / "client" / "known_hosts"
        self.limits_memory = (MEMORY_CGROUP / "memory.limit_in_bytes").exists()
        self.account = make_account(f"rxnet{os.getpid()}x{next(_numbers)}", directory / "home")
        self.user = self.account.name
        self.home = self.account.home
        self.password = secrets.token_hex(8)
        self.python = Path()
        self._preload = fast_scheduling(directory)
        self._kept = Kept(self._programs(), remove=[directory], afterwards=self._clean_up())

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
            "SLURM_CONF": str(self.directory / "etc" / "slurm.conf"),
            **pip_environment(),
        }

    def start(self) -> None:
        """Bring up network, hosts and daemons; return when every node is idle and the laptop reaches the login node.

        Raises:
            ClusterNotStarted: with the last lines of the logs; everything is ended and removed.
        """
        try:
            self._make_files()
            self._make_network()
            self._kept.start_program("munged")
            self._kept.start_program("wan")
            self.wait((self.directory / "munge" / "socket").is_socket, "munged does not listen")
            self.wait(self._wan_socket.is_socket, "the link does not come up")
            for host in self.hosts:
                self.start_host(host)
            self.wait_for_nodes()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, remove network, user and directory."""
        self._kept.stop()

    def __enter__(self) -> NetCluster:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # --- what runs where ---

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.run_on("login", argv, input=input, timeout_s=timeout_s, check=check)

    def run_on(
        self,
        host: str,
        argv: Sequence[str],
        *,
        as_root: bool = False,
        input: str | None = None,
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as the cluster's user, or as root."""
        return subprocess.run(
            self.command_on(host, argv, as_root=as_root),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=check,
            env=self.environment,
        )

    def command_on(self, host: str, argv: Sequence[str], *, as_root: bool = False) -> list[str]:
        """The command line that runs another one on a host."""
        account = [] if as_root else ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups", "--"]
        if host == "laptop":
            enter = [] if self.options.laptop == "machine" else ["nsenter", f"--net=/run/netns/{self._namespace(host)}"]
        else:
            enter = ["nsenter", f"--target={self._init_pid(host)}", "--net", "--uts", "--ipc", "--pid", "--mount"]
            enter += [f"--wd={self.home}", "--"]
        return [*enter, *account, *argv]

    def administer(self, *argv: str, check: bool = True) -> None:
        self.run_on("login", argv, as_root=True, check=check)

    def new_root(self, name: str = "remoteexec") -> str:
        """A path for a cluster root that does not exist yet, in a new private directory below HOME."""
        return str(self.make_directory(f"root-{next(_numbers)}") / name)

    def make_directory(self, name: str) -> Path:
        """Make a new directory below HOME that belongs to the cluster's user, 0700."""
        path = self.home / name
        self.run(["mkdir", "-p", "-m", "700", str(path)])
        return path

    # --- what can happen to it ---

    def wan(self, command: str) -> None:
        """Change the link between laptop and login node: see wanlink.py. "down" is a silent cut."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
            control.sendto(command.encode(), str(self._wan_socket))

    def kill_host(self, host: str) -> None:
        """End every process of a host at once, as a power failure does; `start_host` or `resume` boots it."""
        self._kept.stop_program(host)

    def kill_node(self, node: str) -> None:
        """Kill a compute node and declare it down."""
        self.kill_host(node)
        self.down(node)

    def start_host(self, host: str) -> None:
        """Boot a host that does not run, and return when it does; of the login node, when its daemons listen."""
        if host in self._kept.running():
            return
        self._kept.start_program(host)
        self.wait(lambda: self._children(host) != [], f"{host} does not come up")
        if host == "login":
            # slurmd asks for a controller once and then waits for seconds, so nodes start after one that listens
            self.wait(lambda: self._listens("login", 6817), "slurmctld does not accept connections")
            self.wait(lambda: self._listens("login", 22), "sshd does not accept connections")

    def restart_daemon(self, node: str) -> None:
        self.start_host(node)

    def recover(self) -> None:
        """Undo what a test has done: no jobs, every host and node up, the link as at first."""
        self.wan("up")
        self.wan("loss 0")
        self.wan("rate 0")
        self.wan(f"delay {self.options.delay_ms}")
        running = self._kept.running()
        self.start_host("login")
        if self.usable_nodes() < len(self.nodes) or not set(self.nodes) <= set(running):
            self.resume(*self.nodes)
        if self.run(["squeue", "--noheader"]).stdout.strip():
            self.cancel_all()

    def status(self) -> dict[str, int]:
        """Process ids of what runs, by name: the hosts, munged, wan."""
        return self._kept.running()

    # --- inside ---

    @property
    def _wan_socket(self) -> Path:
        return self.directory / "wan.socket"

    def _namespace(self, host: str) -> str:
        return f"rx{self.subnet}-{host}"

    def _namespaces(self) -> list[str]:
        laptop = ["laptop"] if self.options.laptop == "namespace" else []
        return [self._namespace(host) for host in [*laptop, *self.hosts]]

    def _init_pid(self, host: str) -> int:
        """PID 1 of a host, as seen from outside."""
        return self._children(host)[0]

    def _children(self, host: str) -> list[int]:
        """The one child of `unshare`, once it has one."""
        outer = self._kept.running()[host]
        return [int(pid) for pid in Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii").split()]

    def _listens(self, host: str, port: int) -> bool:
        argv = self.command_on(
            host, ["ss", "--listening", "--numeric", "--no-header", "--tcp", f"sport = :{port}"], as_root=True
        )
        return bool(subprocess.run(argv, capture_output=True, check=False).stdout.strip())

    def _clean_up(self) -> list[list[str]]:
        commands = [["ip", "netns", "delete", namespace] for namespace in self._namespaces()]
        if self.limits_memory:
            remove = "-depth -type d -exec rmdir {} ;"
            nodes = [MEMORY_CGROUP / f"slurm_{node}" for node in self.nodes]
            commands += [["find", str(node / f"uid_{self.account.uid}"), *remove.split()] for node in nodes]
            # clusters that run side by side share a node's directory: the last one removes it
            last = "ip netns list | grep -qE '^rx[0-9]+-' || exec find {} " + remove.replace("{} ;", "'{{}}' ';'")
            commands += [["sh", "-c", last.format(node)] for node in nodes]
        return [*commands, ["userdel", self.user]]

    def _programs(self) -> list[Program]:
        def program(name: str, *argv: str, account: Account | None = None) -> Program:
            environment = {"PATH": SYSTEM_PATH, "SLURM_CONF": str(self.directory / "etc" / "slurm.conf")}
            return Program(name, argv, environment, Path("/"), self.directory / "log" / f"{name}.out", account)

        munge = self.directory / "munge"
        wan_end = "-" if self.options.laptop == "machine" else self._namespace("laptop")
        wan = [
            *(
                sys.executable,
                "-I",
                str(Path(__file__).with_name("wanlink.py")),
                str(self._wan_socket),
                f"rx{self.subnet}",
            ),
            *(wan_end, f"10.66.{self.subnet}.1/24", self._namespace("login"), f"10.66.{self.subnet}.2/24"),
            str(self.options.delay_ms),
        ]
        isolate = ["unshare", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        munged = [tool("munged"), "--foreground", f"--socket={munge}/socket", f"--key-file={munge}/key"]
        munged += [f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={munge}/log"]
        init = str(Path(__file__).with_name("virtual_host.py"))
        return [
            program("munged", *munged, account=Account.named("munge")),
            program("wan", *wan),
            *(
                program(
                    host,
                    *("nsenter", f"--net=/run/netns/{self._namespace(host)}", *isolate),
                    *(sys.executable, "-I", init, host, str(self.directory / "etc" / "hosts"), *self._daemons(host)),
                )
                for host in self.hosts
            ),
        ]

    def _daemons(self, host: str) -> list[str]:
        if host != "login":
            return [shlex.join([tool("slurmd"), "-D", "-N", host])]
        preload = self._preload
        slurmctld = [tool("slurmctld"), "-D"]
        sshd = [
            tool("sshd"),
            "-D",
            "-f",
            str(self.directory / "etc" / "sshd_config"),
            "-E",
            str(self.logs / "sshd.log"),
        ]
        return [
            shlex.join([*(["env", f"LD_PRELOAD={preload}"] if preload else []), *slurmctld]),
            shlex.join(sshd),
        ]

    def _make_files(self) -> None:
        self.directory.chmod(0o755)
        for name in ("etc", "log", "run", "spool/ctld"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "client").mkdir(mode=0o700)
        self.home.mkdir(mode=0o700)
        os.chown(self.home, self.account.uid, self.account.gid)
        munge = self.directory / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            os.chown(path, pwd.getpwnam("munge").pw_uid, grp.getgrnam("munge").gr_gid)
        subprocess.run(["chpasswd"], input=f"{self.user}:{self.password}\n", text=True, check=True)
        self._make_keys()
        self._configure()
        self.python = cluster_python(self.account, self.directory / "python", unseen=("/tmp", "/dev/shm"))

    def _make_keys(self) -> None:
        host_key = self.directory / "etc" / "host_ed25519"
        for path in (host_key, self.identity_file):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "remoteexec", "-f", path], check=True)
        authorized = self.directory / "etc" / "authorized_keys"
        authorized.write_bytes(self.identity_file.with_suffix(".pub").read_bytes())
        public = host_key.with_suffix(".pub").read_text(encoding="utf-8")
        self.known_hosts.write_text(f"{self.host} {public}", encoding="utf-8")
        self.known_hosts.chmod(0o600)

    def _configure(self) -> None:
        directory, options = self.directory, self.options
        slurm = {
            "cluster": options.name,
            "controller": f"login(10.77.{self.subnet}.1)",
            "auth_info": f"AuthInfo=socket={directory}/munge/socket",
            "run": str(directory / "run"),
            "log": str(directory / "log"),
            "spool": str(directory / "spool"),
            "task_plugin": "task/cgroup" if self.limits_memory else "task/none",
            # the cgroup of a job is named by node, user and job id, and clusters that run side by side share the first
            "first_job_id": str(self.subnet * 100_000),
            "cpus": str(options.cpus),
            "memory_mb": str(options.memory_mb),
            "nodes": f"NodeName=n[1-{options.nodes}]",
            "all_nodes": f"n[1-{options.nodes}]",
        }
        if self.limits_memory:
            slurm["memory_kill"] = ""
            cgroup = render("cgroup.conf", cgroup_plugin="cgroup/v1", constrain_memory="yes")
        else:
            cgroup = ""
        sshd = render(
            "sshd_config",
            host_key=str(directory / "etc" / "host_ed25519"),
            authorized_keys=str(directory / "etc" / "authorized_keys"),
            environment="SetEnv "
            + " ".join(f"{name}={value}" for name, value in self.environment.items() if name not in ("PATH", "SHELL")),
        )
        hosts = [f"10.77.{self.subnet}.{number + 11} {node}" for number, node in enumerate(self.nodes)]
        hosts += [f"10.77.{self.subnet}.1 login", f"10.66.{self.subnet}.1 laptop", "127.0.0.1 localhost"]
        for name, text in {
            "slurm.conf": render("slurm.conf", **slurm),
            "cgroup.conf": cgroup,
            "sshd_config": sshd,
            "hosts": "\n".join(hosts) + "\n",
        }.items():
            (directory / "etc" / name).write_text(text, encoding="utf-8")

    def _make_network(self) -> None:
        login, subnet = self._namespace("login"), self.subnet
        lines = [f"-n {login} link add br0 type bridge", f"-n {login} address add 10.77.{subnet}.1/24 dev br0"]
        lines.append(f"-n {login} link set br0 up")
        for number, node in enumerate(self.nodes):
            there = self._namespace(node)
            lines += [
                f"link add eth0 netns {there} type veth peer name to-{node} netns {login}",
                f"-n {login} link set to-{node} master br0 up",
                f"-n {there} address add 10.77.{subnet}.{number + 11}/24 dev eth0",
                f"-n {there} link set eth0 up",
            ]
        for namespace in self._namespaces():
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True)


def free_subnet() -> int:
    """A third octet whose networks 10.66.S.0 and 10.77.S.0 this machine has no address or route in."""
    shown = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=True).stdout
    shown += subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return random.choice(
        [octet for octet in range(1, 250) if f"10.66.{octet}." not in shown and f"rx{octet}-" not in shown]
    )


@contextmanager
def net_cluster(options: NetOptions | None = None) -> Iterator[NetCluster]:
    """Start a cluster of virtual hosts; everything is gone afterwards."""
    cluster = NetCluster(Path(tempfile.mkdtemp(prefix="remoteexec-net-", dir="/var/lib")), options)
    with cluster:
        yield cluster
