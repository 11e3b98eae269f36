"""Renders, submits and deletes through pysqa, for another process: `pysqa-submit [IDLE_S]`.

    PysqaHelper ── one JSON object a line ──> stdin ─ pysqa ─> sbatch, scancel; qsub, bsub, msub ...
                <── one JSON object a line ── stdout

A process of its own because pysqa brings along what neither a gateway on a login node nor the user's Python should
carry. It ends with its stdin, or after IDLE_S seconds without work.

Lines out: `{"ready": true}` or `{"fatal": TEXT}` once; then for each request `{"id": N, "taken": true}` before anything
is done (so that a request to a process that was about to end can safely be made again) and `{"id": N, ...}` with the
`output` of the submission, `script` or `done`, or with `failed` and what the command said.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import select
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

IDLE_S = 10.0


class CommandFailedError(Exception):
    """A command of the scheduler failed; `report` is what the requester is told."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report)
        self.report = report


class _LatePandas(types.ModuleType):
    """Stands for pandas until something of it is used besides its name for a table, in pysqa's annotations.

    pysqa makes tables of the queue, which we do not ask for, and submits without. Importing pandas takes five times as
    long as all the rest together, and three times the memory.
    """

    DataFrame = object

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks; a module need not have these
            raise AttributeError(name)
        del sys.modules["pandas"]
        self.__dict__.update(vars(importlib.import_module("pandas")))
        return getattr(sys.modules["pandas"], name)


def _stand_in_for_flux() -> None:
    """Let pysqa import its part for Flux where Flux's own Python package, made for one Python of the system, is not.

    It takes one class from there, for the numbers of jobs, which we read ourselves.
    """
    package, job = types.ModuleType("flux"), types.ModuleType("flux.job")
    job.JobID = str  # type: ignore[attr-defined]
    sys.modules.setdefault("flux", package)
    sys.modules.setdefault("flux.job", job)


def _stand_in_for_defusedxml() -> None:
    """pysqa reads Grid Engine's queues with it, which we do not ask for: it need not be installed."""
    try:
        importlib.import_module("defusedxml.ElementTree")
    except ImportError:
        for name in ("defusedxml", "defusedxml.ElementTree"):
            sys.modules[name] = types.ModuleType(name)
        vars(sys.modules["defusedxml"])["ElementTree"] = sys.modules["defusedxml.ElementTree"]


def main(argv: list[str]) -> int:
    """Answer requests until there are no more."""
    idle_s = float(argv[0]) if argv else IDLE_S
    os.umask(0o077)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever pysqa prints does not get between our lines
    os.chdir("/")

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    sys.modules.setdefault("pandas", _LatePandas("pandas"))
    try:
        from pysqa import QueueAdapter
    except Exception as exc:
        answer(fatal=f"{type(exc).__name__}: {exc}")
        return 1
    answer(ready=True)
    for line in _lines(idle_s):
        request = json.loads(line)
        if request["queue_type"] == "SGE":
            _stand_in_for_defusedxml()
        if request["queue_type"] == "FLUX":
            _stand_in_for_flux()
        answer(id=request["id"], taken=True)
        try:
            adapter = QueueAdapter(queue_type=request["queue_type"], execute_command=_executor(request))
            answer(id=request["id"], **_perform(adapter, request))
        except CommandFailedError as exc:
            answer(id=request["id"], **exc.report)
        except Exception as exc:
            answer(id=request["id"], failed="pysqa", text=f"{type(exc).__name__}: {exc}")
    return 0


def _perform(adapter: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    if request["do"] == "cancel":
        for jobs in request["jobs"]:
            adapter.delete_job(process_id=" ".join(jobs))
        return {"done": True}
    # pysqa names the queues of its own configuration by this word
    variables = {key: value for key, value in request["variables"].items() if key != "queue"}
    template = _template(request["template"], request["variables"])
    if request["do"] == "render":
        from pysqa.wrapper.abstract import SchedulerCommands

        return {"script": SchedulerCommands.render_submission_template(submission_template=template, **variables)}
    # pysqa refuses a working directory with a blank in its name, so it is given none
    os.chdir(request["directory"])
    try:
        adapter.submit_job(**{**variables, "working_directory": "."}, submission_template=template)
    finally:
        os.chdir("/")
    return dict(request["report"])


def _template(text: str, variables: Mapping[str, Any]) -> Any:
    """The template, in which the variables are the real ones even where pysqa was given others."""
    from jinja2 import Template

    class Rendering(Template):
        def render(self, *args: Any, **kwargs: Any) -> str:
            return super().render(*args, **{**kwargs, **variables})

    return Rendering(text)


def _executor(request: dict[str, Any]) -> Callable[..., None]:
    """What pysqa runs commands with: bounded in time, and a failure raises with the command's own words.

    It returns nothing: what pysqa would make of a job's number is right for some schedulers only.
    """

    def execute(commands: list[str], **_: object) -> None:
        if request["do"] == "cancel":
            _run(request, [*commands[:-1], *commands[-1].split()])
            return
        *command, script = commands
        if "argv" in request:  # None stands for the script
            kept = _kept(script)
            request["report"] = _run(request, [kept if part is None else part for part in request["argv"]])
            return
        by_stdin = request.get("by_stdin", False)
        last = [] if by_stdin else [script]
        request["report"] = _run(request, [*command, *request["options"], *last], script if by_stdin else os.devnull)

    return execute


def _kept(script: str) -> str:
    """A copy of the script under a name that is never written again.

    Flux's jobs read it when they start, and not when they are submitted: one that starts while pysqa writes it once
    more, for others of the same array, would find an empty file, and end well without having done anything.
    """
    text = Path(script).read_bytes()
    kept = Path(script).with_suffix(f".{hashlib.sha256(text).hexdigest()[:8]}.sh")
    if not kept.exists():
        being_written = kept.with_suffix(".tmp")
        with being_written.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        being_written.rename(kept)
    return f"./{kept}"


def _run(request: Mapping[str, Any], argv: list[str], stdin: str = os.devnull) -> dict[str, Any]:
    """Run a command of the scheduler; what it said, for the requester."""
    report: dict[str, Any] = {"command": argv[0]}
    try:
        with open(stdin, "rb") as given:
            done = subprocess.run(
                argv,
                stdin=given,
                capture_output=True,
                timeout=request["timeout_s"],
                env=request["environment"],
                check=False,
            )
    except subprocess.TimeoutExpired as exc:
        raise CommandFailedError({**report, "failed": "timeout"}) from exc
    except OSError as exc:
        raise CommandFailedError({**report, "failed": "missing", "text": str(exc)}) from exc
    output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    report.update(exit_code=done.returncode, output=output, errors=errors)
    if done.returncode != 0:
        raise CommandFailedError({**report, "failed": "command"})
    return report


def _lines(idle_s: float) -> Iterator[bytes]:
    """Lines of stdin until its end, or until none has come for `idle_s`."""
    waiting = b""
    while select.select([0], [], [], idle_s)[0]:
        piece = os.read(0, 1 << 16)
        if not piece:
            return
        *lines, waiting = (waiting + piece).split(b"\n")
        yield from lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
