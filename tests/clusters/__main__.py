"""Separate virtual hosts from the command line; see netcluster.py for what they are.

    python -m tests.clusters start [--name NAME] [--nodes N] [--delay MS] [--laptop namespace|machine]
    python -m tests.clusters exec  [--name NAME] [--as-user] HOST COMMAND...
    python -m tests.clusters wan   [--name NAME] "delay 50" | "loss 0.02" | "rate 10" | down | up
    python -m tests.clusters status|stop [--name NAME]

`start` leaves a process behind that holds the cluster until `stop`. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from tests.clusters.netcluster import NetCluster, NetOptions, net_cluster, obstacle

RUN = Path("/run/remoteexec-netcluster")


def hold(options: NetOptions) -> None:
    """Run a cluster until SIGTERM, answering commands on a socket."""
    path = RUN / f"{options.name}.socket"
    with net_cluster(options) as cluster, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def end(number: int, frame: FrameType | None) -> None:
            raise SystemExit

        signal.signal(signal.SIGTERM, end)
        try:
            while True:
                answer_one(cluster, listener)
        finally:
            path.unlink()


def answer_one(cluster: NetCluster, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rw") as stream:
        match json.loads(stream.readline()):
            case ["status"]:
                login = ["ssh", "-i", str(cluster.identity_file), "-o", f"UserKnownHostsFile={cluster.known_hosts}"]
                ssh = shlex.join([*login, f"{cluster.user}@{cluster.host}"])
                answer: object = {"ssh": ssh, "password": cluster.password, "pids": cluster.status()}
            case ["command", str(host), bool(as_root), list(argv)]:
                answer = [cluster.command_on(host, argv, as_root=as_root), cluster.environment]
            case ["wan", str(command)]:
                cluster.wan(command)
                answer = None
            case other:
                answer = f"no such command: {other}"
        stream.write(json.dumps(answer) + "\n")


def ask(name: str, *message: object) -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(RUN / f"{name}.socket"))
        except OSError:
            raise SystemExit(f"no cluster {name} is running") from None
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(message) + "\n")
            stream.flush()
            return json.loads(stream.readline())


def start(options: NetOptions) -> None:
    """Start a holder in the background and return when the cluster is up; does nothing where it is."""
    if problem := obstacle():
        raise SystemExit(problem)
    RUN.mkdir(mode=0o700, exist_ok=True)
    pid_file, socket_path = RUN / f"{options.name}.pid", RUN / f"{options.name}.socket"
    if holder(options.name) is not None:
        print(f"{options.name} is running")
        return
    socket_path.unlink(missing_ok=True)
    argv = [
        sys.executable,
        "-m",
        "tests.clusters",
        "hold",
        f"--name={options.name}",
        f"--nodes={options.nodes}",
    ]
    argv += [f"--delay={options.delay_ms}", f"--laptop={options.laptop}"]
    with open(RUN / f"{options.name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    pid_file.write_text(str(process.pid), encoding="ascii")
    while not socket_path.exists():
        if process.poll() is not None:
            raise SystemExit((RUN / f"{options.name}.log").read_text(encoding="utf-8"))
        time.sleep(0.02)
    print(json.dumps(ask(options.name, "status"), indent=2))
    process.returncode = 0  # it lives on; Popen need not warn


def holder(name: str) -> int | None:
    """The process that holds a cluster, None where there is none."""
    try:
        pid = int((RUN / f"{name}.pid").read_text(encoding="ascii"))
        if b"tests.clusters" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    except (OSError, ValueError):
        pass
    return None


def stop(name: str) -> None:
    """End a cluster and return when it is gone; does nothing where there is none."""
    pid = holder(name)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            time.sleep(0.02)
    for suffix in ("pid", "log", "socket"):
        (RUN / f"{name}.{suffix}").unlink(missing_ok=True)
    try:
        RUN.rmdir()
    except OSError:
        pass  # other clusters are running, or it is gone already


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "hold", "stop", "status", "exec", "wan"):
        command = commands.add_parser(name)
        command.add_argument("--name", default="net")
        if name in ("start", "hold"):
            command.add_argument("--nodes", type=int, default=4)
            command.add_argument("--delay", type=float, default=25.0, help="ms one way")
            command.add_argument("--laptop", choices=["namespace", "machine"], default="namespace")
        if name == "exec":
            command.add_argument("--as-user", action="store_true")
            command.add_argument("host")
            command.add_argument("argv", nargs=argparse.REMAINDER)
        if name == "wan":
            command.add_argument("setting")
    arguments = parser.parse_args()
    match arguments.command:
        case "start" | "hold" as which:
            options = NetOptions(
                name=arguments.name, nodes=arguments.nodes, laptop=arguments.laptop, delay_ms=arguments.delay
            )
            (start if which == "start" else hold)(options)
        case "stop":
            stop(arguments.name)
        case "status":
            print(json.dumps(ask(arguments.name, "status"), indent=2))
        case "wan":
            ask(arguments.name, "wan", arguments.setting)
        case "exec":
            answer = ask(arguments.name, "command", arguments.host, not arguments.as_user, arguments.argv)
            assert isinstance(answer, list)
            argv, environment = answer
            os.execvpe(argv[0], argv, {**os.environ, **environment})


if __name__ == "__main__":
    main()
