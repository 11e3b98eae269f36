"""One exec request of the embedded server: a child process whose three streams travel through an SSH channel.

    client --> channel --[feed]--> stdin  of the child
    client <-- channel <--[drain]-- stdout of the child
    client <-- channel <--[drain]-- stderr of the child
               channel --[watch]--> hang-up of the child when the channel closes before it ends

Each arrow is a thread that blocks on its source and on its target, so a slow reader at either end holds up the other
and nothing is buffered beyond the channel's window and the kernel's pipe. The session's own thread waits for them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping

import paramiko

SLICE_BYTES = 128 * 1024  # picked: larger slices do not make the stream faster
HANGUP_GRACE_S = 2.0  # between SIGHUP and SIGKILL


def run_session(channel: paramiko.Channel, argv: list[str], env: Mapping[str, str], cwd: str) -> None:
    """Run a child on a channel and return when both have ended."""
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=env,
            cwd=cwd,
            start_new_session=True,  # its process group is what is hung up
        )
    except OSError as exc:
        channel.sendall_stderr(f"{argv[0]}: {exc.strerror}\n".encode())
        channel.send_exit_status(127)
        channel.close()
        return
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    ended = threading.Event()
    outputs = [
        _thread(_drain, child.stdout.fileno(), channel.send),
        _thread(_drain, child.stderr.fileno(), channel.send_stderr),
    ]
    others = [_thread(_feed, channel, child), _thread(_watch, channel, child, ended)]
    child.wait()
    for thread in outputs:
        thread.join()  # a grandchild may hold the pipes open; like sshd, wait for it
    ended.set()
    _send_end(channel, child.returncode)
    channel.close()
    for thread in others:
        thread.join()
    child.stdout.close()
    child.stderr.close()


def _thread(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True, name=f"embedded-{target.__name__}")
    thread.start()
    return thread


def _feed(channel: paramiko.Channel, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    fd = child.stdin.fileno()
    listening = True
    while data := channel.recv(SLICE_BYTES):
        view = memoryview(data)
        try:
            while listening and view:
                view = view[os.write(fd, view) :]
        except OSError:
            listening = False  # the child has closed its stdin: throw the rest away, or the client would block
    try:
        child.stdin.close()
    except OSError:
        pass


def _drain(fd: int, send: Callable[[bytes], int]) -> None:
    while data := os.read(fd, SLICE_BYTES):
        view = memoryview(data)
        try:
            while view:
                view = view[send(bytes(view)) :]
        except OSError:
            return  # the channel is closed: the child gets SIGPIPE when the pipe does


def _watch(channel: paramiko.Channel, child: subprocess.Popen[bytes], ended: threading.Event) -> None:
    channel.status_event.wait()  # set when the channel closes, for whatever reason
    if ended.is_set():
        return
    for number in (signal.SIGHUP, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        if ended.wait(HANGUP_GRACE_S):
            return


def _send_end(channel: paramiko.Channel, returncode: int) -> None:
    if channel.closed:
        return
    try:
        if returncode >= 0:
            channel.send_exit_status(returncode)
        else:
            channel.transport._send_user_message(_exit_signal(channel.remote_chanid, -returncode))
    except (OSError, EOFError, paramiko.SSHException):
        pass  # the connection went at this moment


def _exit_signal(channel_id: int, number: int) -> paramiko.Message:
    """RFC 4254, section 6.10: signal name without SIG, core dumped, message, language."""
    message = paramiko.Message()
    message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
    message.add_int(channel_id)
    message.add_string("exit-signal")
    message.add_boolean(False)
    message.add_string(signal.Signals(number).name.removeprefix("SIG"))
    message.add_boolean(False)
    message.add_string("")
    message.add_string("")
    return message
