"""The embedded cluster: our SSH server in a process of its own, and the end of everything behind it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from remoteexec.demo.processes import Account, Kept, Program
from remoteexec.demo.server import Place, ServerOptions, make_key, prepare, read_options, write_options


class EmbeddedCluster:
    """A login node on this machine that needs nothing but Python.

    Attributes:
        host, port, user: where it listens and who may log in.
        identity_file, known_hosts: the client's side of the login, 0600 files.
        home: HOME of its sessions, empty at first.
        scheduler: "local", the word of the cluster configuration.
    """

    scheduler = "local"

    def __init__(self, directory: Path, options: ServerOptions | None = None) -> None:
        """Start the server; it accepts connections at once.

        Args:
            directory: exists and is empty; `stop` removes it.
        """
        self.place = Place(directory)
        self.user = Account.of_caller().name
        self.identity_file = self.place.identity_file
        self.known_hosts = self.place.known_hosts
        self.home = self.place.home
        # bound here and inherited by the server: the port is known at once, and connections wait for the server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        prepare(self.place, self.port, options or ServerOptions())
        argv = [sys.executable, "-m", "remoteexec.demo.server", str(directory), self.user, str(self._listener.fileno())]
        log = directory / "server.out"
        fds = [self._listener.fileno()]
        self._kept = Kept([Program("server", argv, os.environ, Path.cwd(), log, pass_fds=fds)], remove=[directory])
        self._kept.start_program("server")

    def stop(self) -> None:
        """End the server and everything behind it, schedulers and jobs included, and remove the directory."""
        self._kept.stop()
        self._listener.close()

    def __enter__(self) -> EmbeddedCluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def change(self, **options: Any) -> None:
        """Change fields of ServerOptions for connections made from now on."""
        write_options(self.place, replace(read_options(self.place), **options))

    def log_lines(self) -> list[str]:
        """What the server has seen so far.

        Returns:
            Lines `connection PORT TIME`, `auth METHOD USER ... accepted|refused`, `exec COMMAND`, `subsystem NAME`.
        """
        return self.place.log.read_text(encoding="utf-8").splitlines() if self.place.log.exists() else []

    def cut_connections(self) -> None:
        """Cut every connection: kill the server and start it again. What it had started is not killed."""
        self._kept.stop_program("server", signal.SIGKILL)
        self._kept.start_program("server")

    def pause(self) -> None:
        """Stop the server: connections are made and nothing answers."""
        os.kill(self._kept.running()["server"], signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._kept.running()["server"], signal.SIGCONT)

    def new_host_key(self) -> None:
        """Use another host key for connections made from now on; known_hosts keeps the old one."""
        make_key(self.place.host_key)
