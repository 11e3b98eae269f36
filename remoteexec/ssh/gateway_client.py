"""The batch service behind an SSH login: starts the gateway there, speaks frames with it, and comes back after a drop.

    driver thread ─ send ─▶ stream.write          (one lock: a message and its bytes stay together)
    link thread   ─ stream.read ─▶ deliver        connect, Hello, read until it breaks; pause; again
    pulse thread  ─ Ping every 15 s               no answer in 30 s: the link is closed, so the link thread sees it
    break

`_lock` guards `_stream` and writing to it. Only what a second try can mend is tried again; a refused key or a changed
host key ends the client, since sites ban who keeps trying.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable

from remoteexec_server.wire import frames, header
from remoteexec_server.wire.messages import (
    Closed,
    Hello,
    MessageError,
    Ping,
    Pong,
    Refused,
    Request,
    Welcome,
)

from .. import errors
from ..engine.client import Deliver, Failed, refusal
from ..engine.tracker import Linked, Unlinked
from .base import Link, Stream

log = logging.getLogger("remoteexec")

_PING_S = 15.0
_SILENT_S = 30.0
_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Before each reconnection; the last one for ever. Sites that ban for many logins count far more than two a minute."""


class GatewayClient:
    """See `engine.client.ServiceClient`.

    Args:
        connect: makes a connected link; raises what keeps it from being made.
        argv: starts the gateway, without the sentinel.
        explain: the error that an exit code and the last lines of stderr stand for, if it is a known one.
        hello: who we are.
    """

    def __init__(
        self,
        connect: Callable[[], Link],
        argv: Callable[[str], list[str]],
        explain: Callable[[int | None, str], errors.RunnerError | None],
        hello: Hello,
    ) -> None:
        self._connect, self._argv, self._explain, self._hello = connect, argv, explain, hello
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._link: Link | None = None
        self._closed = threading.Event()
        self._answered = threading.Event()  # something came since the last Ping
        self._threads: list[threading.Thread] = []

    def open(self, deliver: Deliver) -> Welcome:
        """See ServiceClient. The first connection is made on the caller's thread: its errors are the caller's."""
        welcome, events = self._start()
        deliver((Linked(), b""))
        for target, args in ((self._keep, (deliver, events)), (self._pulse, ())):
            thread = threading.Thread(target=target, args=args, name=f"remoteexec{target.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return welcome

    def send(self, request: Request, data: bytes = b"") -> None:
        """See ServiceClient."""
        with self._lock:
            if self._stream is None:
                return
            try:
                for frame in frames.encode(request, data):
                    self._stream.write(frame)
            except (errors.TransportError, OSError) as exc:
                log.debug("sending %s: %s", type(request).__name__, exc)
                self._drop()

    def close(self) -> None:
        """See ServiceClient."""
        self._closed.set()
        with self._lock:
            self._drop()
        for thread in self._threads:
            thread.join()

    def _start(self) -> tuple[Welcome, frames.Messages]:
        """Connect, start the gateway, agree."""
        link = self._connect()
        try:
            sentinel = secrets.token_hex(16)
            stream = link.open(self._argv(sentinel))
            try:
                first = frames.skip_to(sentinel.encode(), stream.read_some)
            except frames.FrameError as exc:
                raise self._missing(stream, str(exc)) from exc
            events = frames.decode(stream.read_some, first)
            for frame in frames.encode(self._hello):
                stream.write(frame)
            answer, _ = next(events, (None, b""))
        except BaseException:
            link.close()
            raise
        if isinstance(answer, Welcome):
            if answer.python != header.PYTHON:
                link.close()
                raise errors.PythonMismatch(f"the cluster runs Python {answer.python}, here is {header.PYTHON}")
            with self._lock:
                self._link, self._stream = link, stream
            return answer, events
        stderr = stream.stderr_tail()
        link.close()
        raise (
            refusal(answer)
            if isinstance(answer, Refused)
            else errors.RunnerError(f"the gateway ended before it answered; its last words: {stderr or 'none'}")
        )

    def _missing(self, stream: Stream, output: str) -> errors.RemoteExecError:
        """Why the gateway did not start."""
        deadline = time.monotonic() + 5.0
        while stream.exit_code is None and time.monotonic() < deadline:
            self._closed.wait(0.02)
        stderr = stream.stderr_tail()
        return self._explain(stream.exit_code, stderr) or errors.RunnerMissing(
            f"the cluster side did not start (exit code {stream.exit_code}); it said: {(stderr or output)[-1000:]}"
        )

    def _keep(self, deliver: Deliver, events: frames.Messages) -> None:
        """The link thread: read until the connection breaks, and make it again."""
        while True:
            reason = self._read(deliver, events)
            with self._lock:
                self._drop()
            if self._closed.is_set():
                return
            deliver((Unlinked(f"connection to the cluster lost: {reason}; trying again"), b""))
            again = self._reconnect(deliver)
            if again is None:
                return
            events = again

    def _read(self, deliver: Deliver, events: frames.Messages) -> str:
        try:
            for message, data in events:
                self._answered.set()
                if isinstance(message, Closed):
                    self._closed.set()
                if not isinstance(message, (Pong, Request)):
                    deliver((message, data))
        except (errors.TransportError, MessageError, OSError) as exc:
            return str(exc)
        return "the gateway ended"

    def _reconnect(self, deliver: Deliver) -> frames.Messages | None:
        attempt = 0
        while not self._closed.wait(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]):
            attempt += 1
            try:
                _, events = self._start()
            except (errors.RemoteExecError, OSError, MessageError) as exc:
                if isinstance(exc, errors.RemoteExecError) and not exc.transient:
                    deliver((Failed(exc), b""))
                    return None
                deliver((Unlinked(f"the cluster cannot be reached: {exc}; trying again"), b""))
                continue
            deliver((Linked(), b""))
            return events
        return None

    def _pulse(self) -> None:
        """The pulse thread: a connection that died silently is noticed by its silence."""
        while not self._closed.wait(_PING_S):
            self._answered.clear()
            self.send(Ping())
            with self._lock:
                asked = self._link
            if not self._answered.wait(_SILENT_S) and not self._closed.is_set():
                with self._lock:
                    if asked is not None and asked is self._link:
                        log.debug("no answer for %s s", _SILENT_S)
                        self._drop()

    def _drop(self) -> None:
        """Close the connection; the caller holds the lock."""
        link, self._link, self._stream = self._link, None, None
        if link is not None:
            with contextlib.suppress(errors.RemoteExecError, OSError):
                link.close()


__all__ = ["GatewayClient"]
