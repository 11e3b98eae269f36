"""The helper process `pysqa_helper` as queues see it: started when needed, asked, replaced when it ends or hangs.

Everything that waits has a deadline.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .base import JobSpec, SchedulerUnavailable, SubmitRejected

__all__ = ["HelperSettings", "PysqaHelper", "Unnumbered", "not_submitted", "refused", "words"]

_PACKAGE = Path(__file__).resolve().parent.parent

_HELPER_S = 4.0
"""More than its command's time, after which a helper counts as hanging; picked, not measured."""


@dataclass(frozen=True)
class HelperSettings:
    """How patient a queue is that works through pysqa.

    Attributes:
        timeout_s: for one command; SLURM's own patience (MessageTimeout) is 10 s by default.
        start_timeout_s: for the helper to import pysqa, which takes long on a slow shared file system.
        idle_s: after which the helper ends.
    """

    timeout_s: float = 30.0
    start_timeout_s: float = 120.0
    idle_s: float = 10.0


_MOST_UNNUMBERED = 5
"""Answers without a job number, each with no such job in the queue, before a submission is given up: the command may be
a wrapper that prints something else, or a template may say --test-only."""


class Unnumbered:
    """Submissions that gave no number and no reason for that, counted by the name of their job."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def refusal(self, command: str, spec: JobSpec, answer: Mapping[str, Any]) -> SubmitRejected | SchedulerUnavailable:
        """The error for one more of them."""
        self._seen[spec.name] = self._seen.get(spec.name, 0) + 1
        if self._seen[spec.name] >= _MOST_UNNUMBERED:
            return SubmitRejected(f"{command} gives no job number for {spec.name}: {words(answer)}")
        return SchedulerUnavailable(f"job {spec.name} may not be submitted: {words(answer)}")


class PysqaHelper:
    """At most one process at a time, which renders, submits and deletes through pysqa.

    Args:
        queue_type: pysqa's word for the scheduler, "SLURM".
    """

    def __init__(self, queue_type: str, settings: HelperSettings) -> None:
        self._queue_type, self._settings = queue_type, settings
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def prewarm(self) -> None:
        """Start the process, which then imports pysqa while the caller does something else."""
        try:
            self._living()
        except SchedulerUnavailable:
            pass  # said when it is needed

    def script(self, command: str, spec: JobSpec, described: Mapping[str, Any]) -> str:
        """What would be submitted.

        Args:
            command: that would submit it.
            described: the job, as for the request "submit".

        Raises:
            SubmitRejected, SchedulerUnavailable: it could not be rendered.
        """
        answer = self.request({"do": "render", **described})
        if "script" not in answer:
            raise not_submitted(command, spec, answer)
        return str(answer["script"])

    def request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have the process do it; a second one, if the first ended before it took the request.

        Raises:
            SchedulerUnavailable: nobody did, or it is not known.
            SubmitRejected: pysqa cannot be imported.
        """
        full = {**request, "queue_type": self._queue_type, "timeout_s": self._settings.timeout_s}
        for attempt in (1, 2):
            try:
                return self._living().request(full)
            except _NotTakenError as exc:
                self.end()
                if attempt == 2:
                    raise SchedulerUnavailable(str(exc)) from exc
            except SchedulerUnavailable:
                self.end()
                raise
        raise AssertionError("unreachable")

    def end(self) -> None:
        """End the process; a later request starts another."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _living(self) -> _Process:
        if self._process is None or not self._process.alive():
            self.end()
            try:
                self._process = _Process(self._settings)
            except OSError as exc:
                raise SchedulerUnavailable(f"the pysqa helper cannot be started: {exc}") from exc
        return self._process


def words(answer: Mapping[str, Any]) -> str:
    """What the command itself said."""
    command = answer.get("command", "the command")
    if answer.get("failed") == "timeout":
        return f"{command} did not answer in time"
    if answer.get("failed") in ("missing", "pysqa"):
        return str(answer["text"])
    lines = (answer["errors"].strip() or answer["output"].strip()).splitlines()[-8:]
    text = " / ".join(line.removeprefix(f"{command}: error: ") for line in lines if line.strip())
    return f"{text or 'no message'} (exit code {answer['exit_code']})"


def refused(command: str, spec: JobSpec, said: str, dependency: bool) -> SubmitRejected:
    """The error for a job that the scheduler does not take.

    Args:
        said: its own words.
        dependency: see SubmitRejected.
    """
    script = spec.directory / "run_queue.sh"
    return SubmitRejected(f"{command} refused job {spec.name}: {said}; its script is {script}", dependency=dependency)


def not_submitted(command: str, spec: JobSpec, answer: Mapping[str, Any]) -> SubmitRejected | SchedulerUnavailable:
    """The error for a command that was not run, or has not said that it refuses the job."""
    match answer["failed"]:
        case "pysqa":
            whose = "its submission_template" if spec.resources.submission_template else "pysqa"
            return SubmitRejected(f"job {spec.name} was not submitted, {whose} failed: {answer['text']}")
        case "missing":
            path = os.environ.get("PATH", "")
            return SubmitRejected(f"{command} cannot be run on this machine: {answer['text']}; PATH is {path}")
    return SchedulerUnavailable(f"job {spec.name} may not be submitted: {words(answer)}")


class _NotTakenError(Exception):
    """The helper ended without having begun the request."""


class _Process:
    """A process of `pysqa_helper`. One request at a time."""

    def __init__(self, settings: HelperSettings) -> None:
        self._settings = settings
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-X", "utf8", str(_PACKAGE), "pysqa-submit", str(settings.idle_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the user's terminal is not for it
        )
        self._number = 0
        self._ready = False
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        """It has not ended, as it does after some idle time."""
        return self._process.poll() is None

    def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            _NotTakenError: it ended, or failed to start, and has done nothing.
            SchedulerUnavailable: it may have done something.
        """
        if not self._ready:
            self._await_start()
        self._number += 1
        deadline = time.monotonic() + self._settings.timeout_s + _HELPER_S
        line = json.dumps({**request, "id": self._number}).encode() + b"\n"
        if not self._write(line, deadline):
            raise _NotTakenError(self._epitaph())
        taken = False
        while True:
            text = self._line(deadline)
            if text is None:
                if taken:
                    raise SchedulerUnavailable(self._epitaph())
                raise _NotTakenError(self._epitaph())
            answer = json.loads(text)
            if not answer.get("taken"):
                return dict(answer)
            taken = True

    def end(self) -> None:
        """Close its stdin; kill it if that does not help at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()  # it does nothing at this moment, or hangs
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            stream.close()

    def _await_start(self) -> None:
        text = self._line(time.monotonic() + self._settings.start_timeout_s)
        if text is None:
            raise _NotTakenError(self._epitaph())
        greeting = json.loads(text)
        if "fatal" in greeting:
            raise SubmitRejected(
                f"pysqa cannot be imported by {sys.executable}: {greeting['fatal']}; "
                f"`remoteexec install` completes that environment, or run `{sys.executable} -m pip install pysqa`"
            )
        self._ready = True

    def _write(self, data: bytes, deadline: float) -> bool:
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
        view = memoryview(data)
        while view:
            if not select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))[1]:
                raise SchedulerUnavailable("the pysqa helper does not read its input")
            try:
                view = view[os.write(descriptor, view) :]
            except BrokenPipeError:
                return False
            except BlockingIOError:
                continue
        return True

    def _line(self, deadline: float) -> bytes | None:
        """Its next line; None at its end."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SchedulerUnavailable("the pysqa helper did not answer in time")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return None
            self._unread += piece
        text, _, self._unread = self._unread.partition(b"\n")
        return text

    def _epitaph(self) -> str:
        try:
            code: int | None = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None
        self._stderr.seek(0)
        errors = " / ".join(self._stderr.read().decode(errors="replace").strip().splitlines()[-3:])
        return f"the pysqa helper ended with exit code {code}" + (f": {errors}" if errors else "")
