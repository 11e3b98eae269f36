"""The starting side of a keeper: describe programs, run them under one keeper, command it, end it."""

from __future__ import annotations

import atexit
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remoteexec.demo import keeper as keeper_script


@dataclass(frozen=True)
class Account:
    """Who the programs of a cluster run as."""

    name: str
    uid: int
    gid: int
    home: Path
    shell: str = "/bin/sh"

    @classmethod
    def of_caller(cls) -> Account:
        return cls.named(pwd.getpwuid(os.geteuid()).pw_name)

    @classmethod
    def named(cls, name: str) -> Account:
        entry = pwd.getpwnam(name)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir), entry.pw_shell or "/bin/sh")

    @property
    def is_caller(self) -> bool:
        return self.uid == os.geteuid()

    def popen_arguments(self) -> dict[str, Any]:
        """What `subprocess` needs to run a program as this account."""
        if self.is_caller:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": os.getgrouplist(self.name, self.gid)}


@dataclass(frozen=True)
class Program:
    """One process under a keeper.

    Attributes:
        log: where its stdout and stderr are appended.
        account: whom it runs as; None means the caller.
        pass_fds: descriptors of the caller that it inherits under the same numbers.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    account: Account | None = None
    pass_fds: Sequence[int] = ()

    def as_json(self) -> dict[str, Any]:
        account = None
        if self.account is not None and not self.account.is_caller:
            groups = os.getgrouplist(self.account.name, self.account.gid)
            account = [self.account.uid, self.account.gid, groups]
        return {
            "name": self.name,
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": str(self.cwd),
            "log": str(self.log),
            "account": account,
            "pass_fds": list(self.pass_fds),
        }


class Kept:
    """Programs that run until `stop`, the end of this process, or its being killed."""

    def __init__(
        self, programs: Iterable[Program], remove: Iterable[Path] = (), afterwards: Iterable[Sequence[str]] = ()
    ) -> None:
        """Start the keeper; programs run from `start_program` on.

        Args:
            remove: directories that go when the programs have ended.
            afterwards: commands the keeper runs last.
        """
        self._programs = list(programs)
        fds = {fd for program in self._programs for fd in program.pass_fds}
        self._keeper = subprocess.Popen(
            # -I -S: the keeper needs nothing from site-packages, and starts in 10 ms without
            [sys.executable, "-I", "-S", str(Path(keeper_script.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=sorted(fds),
            text=True,
        )
        atexit.register(self.stop)
        plan = {
            "programs": [program.as_json() for program in self._programs],
            "remove": [str(path) for path in remove],
            "afterwards": [list(argv) for argv in afterwards],
        }
        try:
            self._ask(plan)
        except BaseException:
            self.stop()
            raise

    def _ask(self, message: object) -> Any:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps(message) + "\n")
        self._keeper.stdin.flush()
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"the keeper of {[program.name for program in self._programs]} has ended")
        answer = json.loads(line)
        if answer["error"] is not None:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def running(self) -> dict[str, int]:
        """Process ids of the programs that run, by name."""
        return dict(self._ask(["running"]))

    def start_program(self, name: str) -> None:
        self._ask(["start", name])

    def stop_program(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one program and return when it has ended."""
        self._ask(["stop", name, int(number)])

    def kill_children(self, name: str) -> None:
        """Kill everything below one program, not the program."""
        self._ask(["kill-children", name])

    def kill_matching(self, variable: str) -> None:
        """Kill every process with NAME=VALUE in its environment, and its parent (the step daemon of a SLURM job)."""
        self._ask(["kill-matching", variable])

    def stop(self) -> None:
        """End all programs and everything they have started, then remove what `remove` names. May be called again."""
        atexit.unregister(self.stop)
        for stream in (self._keeper.stdin, self._keeper.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass
        self._keeper.wait()
