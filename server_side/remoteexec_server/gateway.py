"""The batch service at the far end of an SSH channel: `gateway --root R --scheduler S --sentinel HEX`.

    channel ─ stdin ─ reader thread ─ inbox ─ loop (main thread) ─ frames ─ stdout ─ channel
                        └── Ping ── Pong ────────────────────────────┘

It lives as long as its channel: no port, no pid file, nothing tied to this login node. The next gateway rebuilds all
from the store. Messages are JSON; the bytes behind them are files that this process never unpickles.
"""

from __future__ import annotations

import argparse
import os
import queue
import select
import signal
import sys
import threading
import time

from .batch import loop
from .wire import frames
from .wire.messages import Event, MessageError, Ping, Pong

_SILENCE_S = 120.0
"""A client says something every 15 s; one that sends no byte for this long is gone, whatever its TCP says."""
_LEAVE_S = 120.0
"""How long the loop may take to end: it submits what it was given, or is stuck writing to who reads no more."""


def main(argv: list[str]) -> int:
    """Serve the client on stdin and stdout."""
    parser = argparse.ArgumentParser(prog="gateway")
    parser.add_argument("--root", required=True)
    parser.add_argument("--scheduler", required=True)
    parser.add_argument("--sentinel", required=True, help="printed before the first frame")
    parser.add_argument("--silence", type=float, default=_SILENCE_S, help="seconds; 0: a pipe, whose end is seen")
    options = parser.parse_args(argv)
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    frames_in, frames_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # what a library prints, or a child reads, must not meet the frames
    os.dup2(2, 1)
    _write(frames_out, b"\n" + options.sentinel.encode() + b"\n")
    inbox: loop.Inbox = queue.SimpleQueue()
    writing = threading.Lock()  # the frames of one message stay together

    def emit(event: Event, data: bytes) -> None:
        with writing:
            for frame in frames.encode(event, data):
                _write(frames_out, frame)

    receive = (frames_in, options.silence or None, inbox, emit)
    threading.Thread(target=_receive, args=receive, name="reader", daemon=True).start()
    try:
        loop.run(inbox, emit, options.root, options.scheduler, loop.runner_command(sys.executable))
    except (BrokenPipeError, ConnectionError):
        return 0  # the client is gone; the next gateway goes on
    return 0


def _receive(handle: int, silence_s: float | None, inbox: loop.Inbox, emit: loop.Emit) -> None:
    """The reader thread: until the channel closes, falls silent, or carries something else than frames."""
    try:
        for message, data in frames.decode(lambda n: _read(handle, n, silence_s)):
            if isinstance(message, Ping):
                emit(Pong(), b"")  # here: the loop may be waiting for a slow scheduler, which is no reason to hang up
            else:
                inbox.put((message, data))  # type: ignore[arg-type]  # an event here is refused by the loop
    except (OSError, MessageError) as exc:
        print(f"remoteexec gateway: {exc}", file=sys.stderr)
    finally:
        inbox.put(None)
        time.sleep(_LEAVE_S)
        os._exit(1)  # like any crash: the next gateway rebuilds all from the store


def _read(handle: int, n: int, silence_s: float | None) -> bytes:
    if not select.select([handle], [], [], silence_s)[0]:
        raise TimeoutError(f"the client has been silent for {silence_s:.0f} s")
    return os.read(handle, n)


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
