"""`remoteexec check NAME`: one row per thing that has to work, in the order in which they build on each other."""

from __future__ import annotations

import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import ClusterConfig
from ..errors import PythonMismatch, RemoteExecError, RunnerMissing, SchedulerUnavailable, UnsafeRoot
from ..ssh import hostkeys
from . import terminal

__all__ = ["Check", "Row", "Visit", "print_rows", "run_checks"]

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


@dataclass(frozen=True)
class Check:
    """One thing that has to work.

    Attributes:
        title: What the row is called.
        needs: Titles of rows above that must be ok.
        look: Returns what was found, or raises.
    """

    title: str
    needs: tuple[str, ...]
    look: Callable[[], str]


@dataclass(frozen=True)
class Row:
    """What became of a check. `remedy` is empty unless it failed."""

    title: str
    status: str
    detail: str
    remedy: str = ""


def run_checks(checks: Iterable[Check]) -> Iterator[Row]:
    """Run checks in order, each yielded when it is done; what needs a row that is not ok is skipped."""
    status: dict[str, str] = {}
    for check in checks:
        lacking = [title for title in check.needs if status[title] != OK]
        if lacking:
            row = Row(check.title, SKIPPED, f"needs {lacking[0]}")
        else:
            row = _row(check)
        status[check.title] = row.status
        yield row


def _row(check: Check) -> Row:
    try:
        return Row(check.title, OK, check.look())
    except RemoteExecError as exc:
        what, _, remedy = str(exc).partition("\n")
        return Row(check.title, FAILED, what, remedy)


def print_rows(rows: Iterable[Row]) -> bool:
    """Show rows as they come: a table on a terminal, lines elsewhere. True if none failed."""
    from rich.console import Console

    console = Console()
    seen: list[Row] = []
    if not console.is_terminal:
        for row in rows:
            seen.append(row)
            terminal.say(f"{row.status:<8} {row.title}: {row.detail}")
            for line in row.remedy.splitlines():
                terminal.say(f"         {line}")
    else:
        from rich.live import Live

        with Live(_table(seen), console=console, refresh_per_second=4) as live:
            for row in rows:
                seen.append(row)
                live.update(_table(seen), refresh=True)
    return all(row.status == OK for row in seen)


def _table(rows: Sequence[Row]) -> Any:
    from rich.table import Table
    from rich.text import Text

    colours = {OK: "green", FAILED: "bold red", SKIPPED: "yellow"}
    table = Table()
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("found", overflow="fold")
    for row in rows:
        found = Text(row.detail)
        if row.remedy:
            found.append(f"\n{row.remedy}", style="italic")
        table.add_row(row.title, Text(row.status, style=colours[row.status]), found)
    return table


class Visit:
    """The checks of one cluster over one connection; each method below `close` is one row.

    Args:
        config: The cluster.
        timeout_s: For the task there and back, which may wait in the scheduler's queue.
    """

    def __init__(self, config: ClusterConfig, timeout_s: float) -> None:
        from ..deploy import Facts, Look
        from ..ssh.fabric_link import FabricLink

        self._config = config
        self._timeout_s = timeout_s
        self._settings = config.ssh_settings(terminal.password(config))
        self._link = FabricLink(self._settings)
        self._look: Look | None = None
        self._facts: Facts | None = None

    def checks(self, task: bool) -> list[Check]:
        """All checks in order; `task` says whether to run one there and back."""
        checks = [
            Check("name resolves", (), self.resolves),
            Check("port answers", ("name resolves",), self.answers),
            Check("host key known", ("port answers",), self.host_key),
            Check("login", ("host key known",), self.login),
            Check("root directory", ("login",), self.root),
            Check("Python", ("root directory",), self.python),
            Check("dependencies", ("Python",), self.dependencies),
            Check("remoteexec_server", ("dependencies",), self.server),
            Check("scheduler", ("remoteexec_server",), self.scheduler),
            Check("MPI", ("scheduler",), self.mpi),
        ]
        return [*checks, Check("a task there and back", ("scheduler",), self.task)] if task else checks

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def resolves(self) -> str:
        from ..errors import ConnectError
        from ..ssh.target import resolve

        host = resolve(self._settings).host
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise ConnectError(
                f"The name {host!r} does not resolve: {exc}.\n"
                "Check the spelling and whether you are online (some clusters need a VPN)."
            ) from exc
        return f"{host}: {', '.join(dict.fromkeys(str(address[4][0]) for address in found))}"

    def answers(self) -> str:
        from ..ssh.target import resolve
        from ..ssh.tcp import open_socket

        target = resolve(self._settings)
        start = time.perf_counter()
        open_socket(target.host, target.port, self._settings.connect_timeout_s).close()
        return f"port {target.port}, {(time.perf_counter() - start) * 1000:.0f} ms"

    def host_key(self) -> str:
        from ..ssh.target import resolve

        target = resolve(self._settings)
        known = hostkeys.known_keys(target.known_as, target.known_hosts)
        types = [entry.key.type for entry in known]
        key = hostkeys.fetch(target.host, target.port, prefer=types, timeout_s=self._settings.connect_timeout_s)
        name, files = target.known_as, target.known_hosts
        hostkeys.check(key, known, name=name, files=files, cluster=self._config.name)
        return f"{key.type} {key.fingerprint}"

    def login(self) -> str:
        from ..ssh.target import resolve

        self._link.connect()
        return f"as {resolve(self._settings).user}"

    def root(self) -> str:
        from ..deploy import look

        self._look = found = look(self._link, self._config)
        if found.root_problem is not None:
            what, _, remedy = found.root_problem.partition("\n")
            raise UnsafeRoot(f"{what}\n{remedy} (`remoteexec config add-cluster {self._config.name} --root PATH`)")
        return f"{found.root}{'' if found.root_exists else ' (will be made)'}"

    def python(self) -> str:
        found, here = self._look, f"{sys.version_info.major}.{sys.version_info.minor}"
        assert found is not None
        if found.python is None:
            raise RunnerMissing(f"{found.python_path} does not start\nRun `remoteexec install {self._config.name}`.")
        if found.python_minor != here:
            raise PythonMismatch(
                f"{found.python_path} is Python {found.python}, here is {here}\n"
                f"Run `remoteexec install {self._config.name} --python PATH` with a Python {here} of the cluster.",
                here=here,
                there=found.python_minor or "",
            )
        return f"{found.python} ({found.python_path})"

    def dependencies(self) -> str:
        assert self._look is not None
        if self._look.unmet:
            raise RunnerMissing(
                f"missing: {', '.join(self._look.unmet)}\nRun `remoteexec install {self._config.name}`."
            )
        return ", ".join(f"{name} {version}" for name, version in self._look.found.items())

    def server(self) -> str:
        from ..deploy import package_files, probe

        self._facts = facts = probe(self._link, self._config)
        if facts.root_problem is not None:
            raise UnsafeRoot(facts.root_problem)
        return f"{facts.version} ({package_files().digest}, protocol {facts.protocol})"

    def scheduler(self) -> str:
        facts, name = self._facts, self._config.name
        assert facts is not None
        if facts.problem is not None or facts.scheduler is None:
            raise SchedulerUnavailable(
                f"{self._config.scheduler}: {facts.problem or 'does not answer'}\n"
                f"Try its commands on the login node; if they are there only in a login shell, run "
                f"`remoteexec config add-cluster {name} --login-shell`, and without a scheduler `--scheduler local`."
            )
        return f"{facts.scheduler}{'; partitions: ' if facts.partitions else ''}{', '.join(facts.partitions)}"

    def mpi(self) -> str:
        """Never fails: most tasks need none."""
        assert self._facts is not None
        return self._facts.mpi

    def task(self) -> str:
        from concurrent.futures import TimeoutError as FutureTimeout

        from .. import RemoteExecutor

        self._link.close()
        start = time.perf_counter()
        executor = RemoteExecutor(self._config, password=self._settings.password)
        try:
            node = executor.submit(platform.node).result(timeout=self._timeout_s)
        except (FutureTimeout, TimeoutError) as exc:
            raise SchedulerUnavailable(
                f"no result within {self._timeout_s:g} s\n"
                "The queue may be long; look with `squeue --me` there, or give more time: `--timeout SECONDS`."
            ) from exc
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        return f"ran on {node}, {time.perf_counter() - start:.1f} s"
