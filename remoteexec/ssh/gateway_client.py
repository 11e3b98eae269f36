"""The batch service behind an SSH login: starts the gateway there, speaks frames with it, and comes back after a drop.

    driver thread ─ send ─▶ stream.write          (`_writing`: a message and its bytes stay together)
    link thread   ─ stream.read ─▶ deliver        connect, Hello, read until it breaks; pause; again
    pulse thread  ─ Ping every 15 s
    watch thread  ─ no byte either way for 45 s: the link is closed, so the link thread sees it break, and a writer that
                    waits for room in a dead connection is freed

`_lock` guards `_link` and `_stream` and is never held while something waits. Bytes count as life, not answers: a
Pong waits behind a large result. Only what a second try can mend is tried again; a refused key or a changed host key
ends the client, since sites ban who keeps trying.
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
_SILENT_S = 45.0
"""A connection that has carried no byte for so long is dead, though nothing says so: Pongs come every 15 s."""
_START_S = 120.0
"""The same while the gateway starts, which on a slow shared file system takes long before it says anything."""
_LOOK_S = 1.0
_LEAVE_S = 5.0
"""How long `close` waits for a connection that is just being made."""
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
        self._writing = threading.Lock()
        self._stream: Stream | None = None
        self._link: Link | None = None
        self._alive_at = 0.0  # when a byte went either way; written by whoever moved it
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def open(self, deliver: Deliver) -> Welcome:
        """See ServiceClient. The first connection is made on the caller's thread: its errors are the caller's."""
        self._closed = threading.Event()
        self._begin(self._watch)
        try:
            welcome, events = self._start()
        except BaseException:
            self.close()
            raise
        deliver((Linked(), b""))
        self._begin(self._keep, deliver, events)
        self._begin(self._pulse)
        return welcome

    def send(self, request: Request, data: bytes = b"") -> None:
        """See ServiceClient."""
        with self._lock:
            link, stream = self._link, self._stream
        if stream is None:
            return
        with self._writing:
            try:
                for frame in frames.encode(request, data):
                    stream.write(frame)
                    self._alive_at = time.monotonic()
            except (errors.TransportError, OSError) as exc:
                log.debug("sending %s: %s", type(request).__name__, exc)
                self._drop(link)

    def close(self) -> None:
        """See ServiceClient."""
        self._closed.set()
        self._drop()
        for thread in self._threads:
            thread.join(_LEAVE_S)
        self._threads = []

    def _begin(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, name=f"remoteexec{run.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start(self) -> tuple[Welcome, frames.Messages]:
        """Connect, start the gateway, agree."""
        link = self._connect()
        began = self._alive_at = time.monotonic()
        with self._lock:
            self._link = link
        try:
            stream = link.open(self._argv(sentinel := secrets.token_hex(16)))
            read = self._listening(stream)
            try:
                first = frames.skip_to(sentinel.encode(), read)
            except frames.FrameError as exc:
                raise self._missing(stream, str(exc)) from exc
            events = frames.decode(read, first)
            for frame in frames.encode(self._hello):
                stream.write(frame)
            answer, _ = next(events, (None, b""))
            welcome = self._agreed(answer, stream)
            with self._lock:
                if self._link is not link or self._closed.is_set():
                    raise errors.ConnectionLost("the connection was closed while the gateway started")
                self._stream = stream
        except (frames.FrameError, MessageError) as exc:
            self._drop(link)
            raise _transient(errors.RunnerError(f"what answers is no gateway of ours: {exc}")) from exc
        except errors.ConnectionLost as exc:
            self._drop(link)
            if time.monotonic() - began > _START_S:
                raise errors.ConnectError(
                    f"the login succeeded, but the gateway did not start within {_START_S:.0f} s"
                ) from exc
            raise
        except BaseException:
            self._drop(link)
            raise
        return welcome, events

    def _listening(self, stream: Stream) -> frames.Reader:
        def read(n: int) -> bytes:
            data = stream.read_some(n)
            self._alive_at = time.monotonic()
            return data

        return read

    def _agreed(self, answer: object, stream: Stream) -> Welcome:
        """The first answer, if both ends can work with each other."""
        if isinstance(answer, Refused):
            raise refusal(answer)
        if not isinstance(answer, Welcome):
            words = stream.stderr_tail() or "none"
            raise _transient(errors.RunnerError(f"the gateway ended before it answered; its last words: {words}"))
        if answer.python != header.PYTHON:
            raise errors.PythonMismatch(
                f"the cluster runs Python {answer.python}, here is {header.PYTHON}",
                here=header.PYTHON,
                there=answer.python,
            )
        return answer

    def _missing(self, stream: Stream, output: str) -> errors.RemoteExecError:
        """Why the gateway did not start."""
        deadline = time.monotonic() + 5.0
        while stream.exit_code is None and time.monotonic() < deadline:
            self._closed.wait(0.02)
        stderr = stream.stderr_tail()
        said = (stderr or output)[-1000:]
        return self._explain(stream.exit_code, stderr) or _transient(
            errors.RunnerMissing(f"the cluster side did not start (exit code {stream.exit_code}); it said: {said}")
        )

    def _keep(self, deliver: Deliver, events: frames.Messages) -> None:
        """The link thread: read until the connection breaks, and make it again."""
        try:
            again: frames.Messages | None = events
            while again is not None:
                reason = self._read(deliver, again)
                self._drop()
                if self._closed.is_set():
                    return
                deliver((Unlinked(f"connection to the cluster lost: {reason}; trying again"), b""))
                again = self._reconnect(deliver)
        except BaseException as exc:  # the thread's edge: nobody may wait for ever
            log.exception("remoteexec: the connection cannot be kept")
            deliver((Failed(exc), b""))

    def _read(self, deliver: Deliver, events: frames.Messages) -> str:
        try:
            for message, data in events:
                if isinstance(message, Closed):
                    self._closed.set()
                if not isinstance(message, (Pong, Request)):
                    deliver((message, data))
        except (errors.TransportError, MessageError, OSError) as exc:
            return str(exc)
        with self._lock:
            stream = self._stream
        words = stream.stderr_tail().strip()[-500:] if stream is not None else ""
        return f"the gateway ended{': ' if words else ''}{words}"

    def _reconnect(self, deliver: Deliver) -> frames.Messages | None:
        attempt = 0
        while not self._closed.wait(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]):
            attempt += 1
            try:
                _, events = self._start()
            except (errors.RemoteExecError, OSError) as exc:
                if isinstance(exc, errors.RemoteExecError) and not exc.transient:
                    deliver((Failed(exc), b""))
                    return None
                deliver((Unlinked(f"the cluster cannot be reached: {exc}; trying again"), b""))
                continue
            deliver((Linked(), b""))
            return events
        return None

    def _pulse(self) -> None:
        """The pulse thread: makes the gateway say something."""
        while not self._closed.wait(_PING_S):
            self.send(Ping())

    def _watch(self) -> None:
        """The watch thread: a connection that died silently is noticed by its silence."""
        while not self._closed.wait(_LOOK_S):
            with self._lock:
                link, limit = self._link, _START_S if self._stream is None else _SILENT_S
            if link is not None and time.monotonic() - self._alive_at > limit:
                log.debug("no byte for %s s", limit)
                self._drop(link)

    def _drop(self, link: Link | None = None) -> None:
        """Close the connection, if it is still that one."""
        with self._lock:
            if link is not None and link is not self._link:
                return
            link, self._link, self._stream = self._link, None, None
        if link is not None:
            with contextlib.suppress(errors.RemoteExecError, OSError):
                link.close()


def _transient(error: errors.RunnerError) -> errors.RunnerError:
    """The error of a gateway that may have been killed: where one ran before, another may run in a moment."""
    error.transient = True
    return error


__all__ = ["GatewayClient"]
