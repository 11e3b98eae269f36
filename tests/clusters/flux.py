"""A Flux instance of two nodes on this machine, as the caller: up in seconds, gone with the process that started it.

    pytest ──(stdin: nothing, until pytest ends)──> flux start ─ 2 brokers ─> jobs

Its initial program is `cat`, which ends with its stdin, and so does the instance with all its jobs.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_numbers = itertools.count()
_START_S = 60.0
_INITRC = """\
plugin.load { file = "*.so", conf = {} }
shell.options["cpu-affinity"] = "off"
shell.source_rcpath ("*.lua")
"""
"""For Flux's job shell: cores that this machine has not cannot be bound to, which would be said in the logs of jobs."""


class FluxInstance:
    """A running instance: nodes n1 and n2, 4 cores and 2 GPUs each, which no machine needs to have.

    Attributes:
        scheduler: "flux", the word of the cluster configuration.
        directory: its state.
        uri: for FLUX_URI.
        nodes: by rank.
    """

    scheduler = "flux"
    nodes = ("n1", "n2")

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uri = f"local://{directory}/run/local-0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that uses the instance."""
        return {**os.environ, "FLUX_URI": self.uri}

    def run(self, argv: Sequence[str], check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command that may use the instance."""
        return subprocess.run(
            argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=check,
        )

    def make_directory(self, name: str) -> Path:
        """Make a new directory that the jobs can use, 0700."""
        path = self.directory / "home" / name
        path.mkdir(mode=0o700, parents=True)
        return path

    def new_root(self, name: str = "remoteexec") -> str:
        """A path for a cluster root that does not exist yet, in a new private directory."""
        return str(self.make_directory(f"root-{next(_numbers)}") / name)

    def start(self) -> None:
        """Start the brokers and return when they run."""
        run = self.directory / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(mode=0o700)
        resources = self.directory / "R.json"
        described = subprocess.run(
            ["flux", "R", "encode", "-r", "0-1", "-c", "0-3", "-g", "0-1", "-H", "n[1-2]"],
            capture_output=True,
            check=True,
        )
        resources.write_bytes(described.stdout)
        configuration = self.directory / "flux.toml"
        configuration.write_text(f'[resource]\nnoverify = true\npath = "{resources}"\n')
        shell = self.directory / "initrc.lua"
        shell.write_text(_INITRC)
        nodes = ["-s", "2", "--test-hosts=n[1-2]", "--test-exit-mode=leader"]
        places = [f"--test-rundir={run}", f"--config-path={configuration}", f"--setattr=conf.shell_initrc={shell}"]
        log = (self.directory / "log").open("ab")
        outer = ("FLUX_", "PMI_", "PMIX_")
        self._process = subprocess.Popen(
            ["flux", "start", *nodes, *places, "cat"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if not name.startswith(outer)},
            cwd=self.directory,
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + _START_S
        while not self.answers(nodes=2):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no Flux instance: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def answers(self, nodes: int) -> bool:
        """Whether that many nodes are up."""
        shown = self.run(["flux", "resource", "list", "-n", "-s", "up", "-o", "{nnodes}"], check=False)
        return shown.returncode == 0 and shown.stdout.strip() == str(nodes)

    def stop(self) -> None:
        """End the instance and its jobs."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def kill_node(self, node: str) -> None:
        """SIGKILL the broker of a node other than the first; what its jobs have started goes on until `recover`."""
        rank = str(self.nodes.index(node))
        shown = self.run(["flux", "exec", "-r", rank, "flux", "getattr", "broker.pid"])
        os.kill(int(shown.stdout), signal.SIGKILL)

    def cancel_all(self) -> None:
        """Cancel every job, and wait until none is left."""
        self.run(["flux", "cancel", "-q", "--all"], check=False)
        self.run(["flux", "queue", "idle", "--quiet", "--timeout=20s"], check=False)

    def recover(self) -> None:
        """No jobs, both nodes."""
        if self._process is not None and self._process.poll() is None and self.answers(nodes=2):
            self.cancel_all()
            return
        self.stop()
        self._kill_left_behind()
        self.start()

    def _kill_left_behind(self) -> None:
        """What jobs of a killed broker have started."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"FLUX_URI=local://{self.directory}/".encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


@contextmanager
def flux_instance() -> Iterator[FluxInstance]:
    """Start an instance as the caller; everything is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="rx-flux-"))  # short: sockets have short names
    instance = FluxInstance(directory)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()
        shutil.rmtree(directory, ignore_errors=True)
