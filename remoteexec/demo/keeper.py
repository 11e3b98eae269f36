"""Keeps the processes of a throwaway cluster, and ends every one of them when whoever started it goes away.

Run by path, standard library only. One keeper per cluster:

    pytest or demo --(stdin: JSON lines)--> keeper --> slurmctld, slurmd, sshd, ... --> jobs, sessions
                  <--(stdout: JSON lines)--

The first line is the `Plan`; each later one a command; each is answered by one line. When stdin ends (also because its
writer was killed) the keeper kills all its descendants, removes the plan's directories and ends. Daemons leave
their parent on purpose, so on Linux the keeper is a subreaper: whatever is orphaned below it becomes its child.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
STOP_PATIENCE_S = 10.0  # slurmctld takes 2 to 3 s to save its state


def become_subreaper() -> bool:
    """Make orphans among this process's descendants its own children; False where the system cannot (not Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def parents() -> dict[int, int]:
    """The parent of every process that can be seen, by process id; empty where there is no /proc."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # ended meanwhile
        found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(root: int) -> list[int]:
    """All descendants of a process, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    level = children.get(root, [])
    while level:
        found += level
        level = [child for pid in level for child in children.get(pid, [])]
    return found


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def kill_descendants(root: int, deadline_s: float = 5.0) -> None:
    """Kill all descendants of `root`, again and again until none is left that is not a zombie."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        left = descendants(root)
        if not left:
            return
        signal_all(left, signal.SIGKILL)
        if not reap():
            time.sleep(0.005)  # killed, not gone yet; picked, not measured


def reap() -> list[int]:
    """Collect every child that has ended."""
    ended: list[int] = []
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append(pid)


class Keeper:
    """The named processes of one plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._programs = {program["name"]: program for program in plan["programs"]}
        self._remove = plan["remove"]
        self._afterwards = plan["afterwards"]
        self._pids: dict[str, int] = {}

    def start(self, name: str) -> None:
        program = self._programs[name]
        account: dict[str, Any] = {}
        if program["account"] is not None:
            uid, gid, groups = program["account"]
            account = {"user": uid, "group": gid, "extra_groups": groups}
        with open(program["log"], "ab") as log:
            process = subprocess.Popen(
                program["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=program["env"],
                cwd=program["cwd"],
                pass_fds=program["pass_fds"],
                start_new_session=True,
                **account,
            )
        self._pids[name] = process.pid
        process.returncode = 0  # collected by reap(), which Popen cannot know

    def forget(self, ended: list[int]) -> None:
        self._pids = {name: pid for name, pid in self._pids.items() if pid not in ended}

    def stop(self, name: str, number: int) -> None:
        pid = self._pids.get(name)
        if pid is None:
            return
        signal_all([pid], number)
        patience_ends = time.monotonic() + STOP_PATIENCE_S
        while self._pids.get(name) == pid:
            self.forget(reap())
            if time.monotonic() > patience_ends:
                signal_all([pid], signal.SIGKILL)
            time.sleep(0.002)  # a killed process is gone within a few of these

    def matching(self, variable: str) -> list[int]:
        """Descendants that have NAME=VALUE in their environment."""
        found = []
        for pid in descendants(os.getpid()):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if variable.encode() in environment.split(b"\0"):
                found.append(pid)
        return found

    def kill_matching(self, variable: str) -> None:
        """Kill descendants with NAME=VALUE in their environment, and the daemon that watches over each of them."""
        own = {os.getpid(), *self._pids.values()}
        found = self.matching(variable)
        family = parents()
        watchers = {family[pid] for pid in found if pid in family} - own - {1}
        signal_all([*watchers, *found], signal.SIGKILL)

    def kill_children(self, name: str) -> None:
        """Kill all descendants of a named process, not the process itself."""
        signal_all(descendants(self._pids[name]), signal.SIGKILL)

    def perform(self, command: list[Any]) -> Any:
        match command:
            case ["start", str(name)]:
                self.start(name)
            case ["stop", str(name), int(number)]:
                self.stop(name, number)
            case ["kill-children", str(name)]:
                self.kill_children(name)
            case ["kill-matching", str(variable)]:
                self.kill_matching(variable)
            case ["running"]:
                return self._pids
            case _:
                raise ValueError(f"no such command: {command}")
        return None

    def end(self) -> None:
        for pid in self._pids.values():
            try:
                os.killpg(pid, signal.SIGKILL)  # all that can be done where there is no /proc
            except ProcessLookupError:
                pass
        kill_descendants(os.getpid())
        for directory in self._remove:
            shutil.rmtree(directory, ignore_errors=True)
        for argv in self._afterwards:
            subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
            )


def lines(wake: int) -> Iterator[bytes]:
    """Lines of stdin as they come, and b"" whenever a byte arrives on `wake`; ends with stdin."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if key.fd == wake:
                    yield b""
                    continue
                if not data:
                    return
                *complete, buffer = (buffer + data).split(b"\n")
                yield from complete


def main() -> None:
    become_subreaper()
    for number in (signal.SIGINT, signal.SIGHUP):
        # the end of stdin is the one sign to stop; SIG_IGN would be handed down to every program
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    keeper: Keeper | None = None
    try:
        for line in lines(wake):
            if not line:
                if keeper is not None:
                    keeper.forget(reap())
                continue
            message = json.loads(line)
            answer: dict[str, Any] = {"error": None, "value": None}
            try:
                if keeper is None:
                    keeper = Keeper(message)
                else:
                    answer["value"] = keeper.perform(message)
            except Exception as exc:
                answer["error"] = f"{type(exc).__name__}: {exc}"
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        if keeper is not None:
            keeper.end()


if __name__ == "__main__":
    main()
