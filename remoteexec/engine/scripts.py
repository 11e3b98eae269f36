"""Questions for job scripts that are under way: asked on any thread, answered by the driver's."""

from __future__ import annotations

import concurrent.futures
import itertools

from remoteexec_server.wire.messages import JobScript, Refused, Script
from remoteexec_server.wire.resources import Resources

from .client import refusal

__all__ = ["Scripts"]


class Scripts:
    """The questions that have no answer yet. `_open` is changed in single steps: by who asks, and by the driver."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._open: dict[int, concurrent.futures.Future[str]] = {}

    def new(self, resources: Resources) -> tuple[JobScript, concurrent.futures.Future[str]]:
        """A question for the script of one task, to be sent, and its answer."""
        number = next(self._numbers)
        future = self._open[number] = concurrent.futures.Future[str]()
        return JobScript(number, resources), future

    def answer(self, script: Script) -> None:
        """The service has answered."""
        future = self._open.pop(script.number, None)
        if future is None:
            return
        if script.kind is None:
            future.set_result(script.text)
        else:
            future.set_exception(refusal(Refused(script.kind, script.text)))

    def fail(self, error: BaseException) -> None:
        """No answer will come to what was asked so far."""
        for number in list(self._open):
            future = self._open.pop(number, None)
            if future is not None:
                future.set_exception(error)
