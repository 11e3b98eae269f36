"""An SSH and SFTP server for one user on a loopback port: the login node of the embedded cluster.

    python -m remoteexec.demo.server DIRECTORY USER LISTENING_FD

serves what `prepare` has put into DIRECTORY until it is killed. Threads: one accepts connections, paramiko runs one
per connection, which calls `Guard` and starts one per exec request (its helpers: sessions.py) or SFTP session.
Not for real use: whoever has the key acts with all rights of the account that started it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization  # paramiko is built on it
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from remoteexec.demo.files import Files
from remoteexec.demo.sessions import run_session

# What a login node of the caller's would also have; nothing of the virtual environment the server runs in.
INHERITED = re.compile(r"PATH|LANG|LC_.*|TZ|TMPDIR|PIP_.*|SSL_.*|(?i:.*_proxy)")


@dataclass(frozen=True)
class ServerOptions:
    """How the server treats its client; read anew at every connection, so tests may change it.

    Attributes:
        password: accepted besides the key; None offers no password authentication.
        banner: sent before authentication.
        noise: what a chatty .bashrc would print on stdout and stderr of every command.
        max_sessions: channels per connection, as sshd's MaxSessions.
        refuse: any of "publickey", "exec", "sftp".
    """

    password: str | None = None
    banner: str = ""
    noise: str = ""
    max_sessions: int = 10
    refuse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """The files of an embedded server below one directory."""

    directory: Path

    @property
    def host_key(self) -> Path:
        return self.directory / "host_ed25519"

    @property
    def identity_file(self) -> Path:
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def options(self) -> Path:
        return self.directory / "options.json"

    @property
    def log(self) -> Path:
        """One line per connection, authentication attempt and request."""
        return self.directory / "server.log"

    @property
    def home(self) -> Path:
        return self.directory / "home"


def make_key(path: Path) -> paramiko.Ed25519Key:
    """Write a new private key, 0600, replacing what is there."""
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    return paramiko.Ed25519Key(filename=str(path))


def write_options(place: Place, options: ServerOptions) -> None:
    temporary = place.options.with_suffix(".new")
    temporary.write_text(json.dumps(dataclasses.asdict(options)), encoding="utf-8")
    temporary.replace(place.options)


def read_options(place: Place) -> ServerOptions:
    values = json.loads(place.options.read_text(encoding="utf-8"))
    return ServerOptions(**{**values, "refuse": tuple(values["refuse"])})


def prepare(place: Place, port: int, options: ServerOptions) -> None:
    """Make throwaway keys, known_hosts for 127.0.0.1 and an empty home directory."""
    place.home.mkdir(mode=0o700)
    host_key = make_key(place.host_key)
    make_key(place.identity_file)
    place.known_hosts.touch(mode=0o600)
    place.known_hosts.write_text(f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n")
    write_options(place, options)


@dataclass
class Guard(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no type hints
    """Decides what one connection may do; paramiko calls it on that connection's thread.

    Attributes:
        sessions: channels that are open now.
        accepted: commands whose request has been granted but not answered yet.
    """

    place: Place
    user: str
    environment: Mapping[str, str]
    options: ServerOptions
    sessions: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards sessions
    accepted: list[threading.Thread] = field(default_factory=list)  # touched by the connection's thread only

    def _log(self, text: str) -> None:
        with open(self.place.log, "a", encoding="utf-8") as log:
            log.write(text + "\n")

    def get_banner(self) -> tuple[str, str] | tuple[None, None]:
        return (self.options.banner, "en") if self.options.banner else (None, None)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey" if self.options.password is None else "publickey,password"

    def check_auth_none(self, username: str) -> int:
        return int(paramiko.AUTH_FAILED)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        own = paramiko.Ed25519Key(filename=str(self.place.identity_file))
        good = username == self.user and key == own and "publickey" not in self.options.refuse
        self._log(f"auth publickey {username} {key.get_name()} {'accepted' if good else 'refused'}")
        return int(paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED)

    def check_auth_password(self, username: str, password: str) -> int:
        good = username == self.user and password == self.options.password
        self._log(f"auth password {username} {'accepted' if good else 'refused'}")
        return int(paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        with self.lock:
            if kind != "session" or self.sessions >= self.options.max_sessions:
                self._log(f"channel {kind} refused")
                return int(paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)
            self.sessions += 1
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        text = os.fsdecode(command)
        self._log(f"exec {text}")
        if "exec" in self.options.refuse:
            return False
        command_thread = threading.Thread(target=self._exec, args=(channel, text), daemon=True, name="embedded-exec")
        self.accepted.append(command_thread)
        return True

    def start_accepted(self) -> None:
        """Start the commands whose requests have been answered."""
        while self.accepted:
            self.accepted.pop().start()

    def _exec(self, channel: paramiko.Channel, command: str) -> None:
        shell = self.environment["SHELL"]
        if self.options.noise:
            channel.sendall(self.options.noise.encode())
            channel.sendall_stderr(self.options.noise.encode())
        try:
            run_session(channel, [shell, "-c", command], self.environment, str(self.place.home))
        finally:
            self._release(channel)

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        self._log(f"subsystem {name}")
        if name in self.options.refuse:
            return False
        if not super().check_channel_subsystem_request(channel, name):
            return False
        threading.Thread(target=self._wait_closed, args=(channel,), daemon=True, name="embedded-subsystem").start()
        return True

    def _wait_closed(self, channel: paramiko.Channel) -> None:
        channel.status_event.wait()  # set when the channel closes
        self._release(channel)

    def _release(self, channel: paramiko.Channel) -> None:
        with self.lock:
            self.sessions -= 1
        # the transport offers every channel to accept(), which nobody calls: without this it would keep them all
        channel.get_transport().accept(0)


def answer_then_start(channel: paramiko.Channel, request: paramiko.Message) -> None:
    """Handle a request on a channel: a short command must not close the channel before its request is answered."""
    paramiko.Channel._handle_request(channel, request)
    channel.get_transport().server_object.start_accepted()


class ServerTransport(paramiko.Transport):  # type: ignore[misc]  # paramiko has no type hints
    """One connection, seen from the server."""

    _channel_handler_table = {  # noqa: RUF012  # overrides paramiko's
        **paramiko.Transport._channel_handler_table,
        paramiko.common.MSG_CHANNEL_REQUEST: answer_then_start,
    }


def session_environment(place: Place, user: str) -> dict[str, str]:
    """What a command finds in its environment."""
    inherited = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
    shell = shutil.which("bash") or "/bin/sh"
    inherited["PATH"] = os.pathsep.join(
        entry for entry in inherited.get("PATH", os.defpath).split(os.pathsep) if entry != str(Path(sys.prefix) / "bin")
    )
    return {**inherited, "HOME": str(place.home), "USER": user, "LOGNAME": user, "SHELL": shell}


def serve(place: Place, user: str, listener: socket.socket) -> None:
    """Accept connections for ever."""
    environment = session_environment(place, user)
    while True:
        connection, peer = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with open(place.log, "a", encoding="utf-8") as log:
            log.write(f"connection {peer[1]} {time.time():.3f}\n")
        transport = ServerTransport(connection)
        transport.add_server_key(paramiko.Ed25519Key(filename=str(place.host_key)))
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files, home=str(place.home))
        guard = Guard(place, user, {**environment, "SSH_CONNECTION": f"{peer[0]} {peer[1]}"}, read_options(place))
        # with an event it returns at once and negotiates on the transport's own thread
        transport.start_server(event=threading.Event(), server=guard)


def main() -> None:
    directory, user, fd = sys.argv[1:]
    serve(Place(Path(directory)), user, socket.socket(fileno=int(fd)))


if __name__ == "__main__":
    main()
