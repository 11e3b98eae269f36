"""The batch service at the far end of an SSH channel: `gateway --root R --scheduler S --sentinel HEX`.

    channel ─ stdin ─ reader thread ─ inbox ─ loop (this thread) ─ frames ─ stdout ─ channel

It lives as long as its channel: no port, no pid file, nothing tied to this login node. The next gateway rebuilds all
from the store. Messages are JSON; the bytes behind them are files that this process never unpickles.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading

from .batch import loop
from .wire import frames
from .wire.messages import Event, MessageError

_IDLE_S = 120.0
"""A client says something every 15 s; one that is silent for this long is gone, whatever its TCP says."""


def main(argv: list[str]) -> int:
    """Serve the client on stdin and stdout."""
    parser = argparse.ArgumentParser(prog="gateway")
    parser.add_argument("--root", required=True)
    parser.add_argument("--scheduler", required=True)
    parser.add_argument("--sentinel", required=True, help="printed before the first frame")
    options = parser.parse_args(argv)
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    frames_in, frames_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # what a library prints, or a child reads, must not meet the frames
    os.dup2(2, 1)
    _write(frames_out, b"\n" + options.sentinel.encode() + b"\n")
    inbox: loop.Inbox = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(frames_in, inbox), name="reader", daemon=True).start()

    def emit(event: Event, data: bytes) -> None:
        for frame in frames.encode(event, data):
            _write(frames_out, frame)

    try:
        loop.run(inbox, emit, options.root, options.scheduler, loop.runner_command(sys.executable), _IDLE_S)
    except (BrokenPipeError, ConnectionError):
        return 0  # the client is gone; the next gateway goes on
    return 0


def _receive(handle: int, inbox: loop.Inbox) -> None:
    """The reader thread: until the channel closes or something else than frames comes."""
    try:
        for message, data in frames.decode(lambda n: os.read(handle, n)):
            inbox.put((message, data))  # type: ignore[arg-type]  # an event here is refused by the loop
    except (OSError, MessageError) as exc:
        print(f"remoteexec gateway: {exc}", file=sys.stderr)
    finally:
        inbox.put(None)


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
