"""The seam to the batch service: the same requests and events, whether it runs in this process or on a login node.

Implementations: `InProcess` here, for executors on a login node; `remoteexec.ssh.gateway_client.GatewayClient` for a
laptop.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from remoteexec_server.wire.messages import Event, Hello, Refused, Request, Welcome

from .. import errors
from .tracker import Linked, Unlinked


@dataclass(frozen=True)
class Failed:
    """The service cannot be reached any more, and nobody tries again."""

    error: BaseException


Heard = Event | Linked | Unlinked | Failed
Deliver = Callable[[tuple[Heard, bytes]], None]
"""Takes an event and the bytes behind it; called on any thread, returns at once."""


class ServiceClient(Protocol):
    """A batch service, wherever it runs."""

    def open(self, deliver: Deliver) -> Welcome:
        """Reach the service and say `Hello`; then `Linked` is delivered, and all events after it.

        Raises:
            errors.RemoteExecError: why it cannot be reached, or will not work for us.
        """

    def send(self, request: Request, data: bytes = b"") -> None:
        """Hand over a request with its bytes. What is sent while the service is out of reach is dropped: `Linked` comes
        when it is back, and the tracker says again what matters."""

    def close(self) -> None:
        """End. What runs on the cluster goes on."""


def refusal(refused: Refused) -> errors.RemoteExecError:
    """The error of ours that a service's refusal names."""
    kind = getattr(errors, refused.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.RemoteExecError)):
        kind = errors.RunnerError
    return kind(refused.message)


class InProcess:
    """The service on a thread of this process.

    Args:
        hello: who we are.
        root: our directory.
        scheduler: see `remoteexec_server.batch.queues.NAMES`.
    """

    def __init__(self, hello: Hello, root: str, scheduler: str) -> None:
        self._hello, self._root, self._scheduler = hello, root, scheduler
        self._requests: queue.SimpleQueue[tuple[Request, bytes] | None] = queue.SimpleQueue()
        self._welcomed = False  # from then on what goes wrong is delivered; written by the thread
        self._thread: threading.Thread | None = None

    def open(self, deliver: Deliver) -> Welcome:
        """See ServiceClient."""
        answers: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

        def emit(event: Event, data: bytes) -> None:
            if isinstance(event, Welcome):
                self._welcomed = True
                deliver((Linked(), b""))
                answers.put(event)
            elif isinstance(event, Refused):
                answers.put(event)
            else:
                deliver((event, data))

        def serve() -> None:
            from remoteexec_server.batch import loop

            try:
                command = loop.runner_command(sys.executable)
                loop.run(self._requests, emit, self._root, self._scheduler, command)
            except BaseException as exc:  # the thread's edge
                if self._welcomed:
                    deliver((Failed(exc), b""))
                else:
                    answers.put(exc)

        self._requests.put((self._hello, b""))
        self._thread = threading.Thread(target=serve, name="remoteexec-service", daemon=True)
        self._thread.start()
        answer = answers.get()
        if isinstance(answer, Welcome):
            return answer
        raise refusal(answer) if isinstance(answer, Refused) else errors.RunnerError(str(answer))

    def send(self, request: Request, data: bytes = b"") -> None:
        """See ServiceClient."""
        self._requests.put((request, data))

    def close(self) -> None:
        """See ServiceClient."""
        self._requests.put(None)
        if self._thread is not None:
            self._thread.join()
