"""Other schedulers through pysqa's own commands: stand-ins on PATH that do as the manuals say, with processes.

What is shown here is the way through pysqa: which command gets the script, how, where, and that the script runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remoteexec_server.batch import queues
from remoteexec_server.batch.base import (
    JobId,
    JobRef,
    JobSpec,
    JobState,
    Queue,
    SchedulerUnavailable,
    SubmitRejected,
)
from remoteexec_server.wire.resources import Resources

STAND_IN = """\
#!{python}
import json, os, subprocess, sys
name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
with open({notes!r}, "a") as notes:
    notes.write(json.dumps([name, argv, os.getcwd(), stdin]) + "\\n")
answer = json.load(open({answers!r})).get(name, [0, "", ""])
for variables in answer[3:]:
    script = ["bash"] if stdin else ["bash", os.path.abspath(argv[-1])]
    subprocess.run(script, input=stdin, text=True, cwd="/", env={{**os.environ, **variables}}, check=True)
sys.stdout.write(answer[1]); sys.stderr.write(answer[2]); sys.exit(answer[0])
"""
SUBMITS = {
    "pbs": ("qsub", "7[].srv\n", "7[]", [{"PBS_JOBID": f"7[{n}].srv", "PBS_ARRAY_INDEX": f"{n}"} for n in (0, 1)]),
    "torque": ("qsub", "7[].srv\n", "7[]", [{"PBS_JOBID": f"7[{n}].srv", "PBS_ARRAYID": f"{n}"} for n in (0, 1)]),
    "lsf": ("bsub", "Job <7> is submitted to queue <q>.\n", "7", [{"LSB_JOBID": "7", "LSB_JOBINDEX": n} for n in "12"]),
    "sge": ("qsub", "7.1-2:1\n", "7", [{"JOB_ID": "7", "SGE_TASK_ID": n} for n in "12"]),
}


class Stand:
    """The directory of the stand-ins."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes, self.answers = directory / "notes", directory / "answers"
        for name in ("qsub", "bsub", "msub", "qdel", "bkill", "mjobctl", "qstat", "qselect", "bjobs", "showq", "qacct"):
            text = STAND_IN.format(python=sys.executable, notes=str(self.notes), answers=str(self.answers))
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)
        self.answer()

    def answer(self, **by_command: list[object]) -> None:
        """Exit code, stdout, stderr, and the environments in which the script runs, by name of the command."""
        self.answers.write_text(json.dumps(by_command))

    def taken(self) -> list[list[object]]:
        """What was run since the last time: name, arguments, directory, stdin."""
        if not self.notes.exists():
            return []
        lines = [json.loads(line) for line in self.notes.read_text().splitlines()]
        self.notes.unlink()
        return lines


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return Stand(directory)


@pytest.fixture(params=["pbs", "torque", "lsf", "sge", "moab"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def queue(name: str, stand: Stand, tmp_path: Path) -> Iterator[Queue]:
    queue = queues.connect(name, tmp_path)
    yield queue
    queue.close()


def job(directory: Path, count: int = 1, **wanted: object) -> JobSpec:
    path = directory / "a'; echo b ü"
    path.mkdir()
    code = 'echo "$1 $PWD $REMOTEEXEC_JOB_ID"'
    return JobSpec("rx-a-0", path, ("/bin/sh", "-c", code, "sh"), count, Resources(**wanted))  # type: ignore[arg-type]


def test_an_array_is_submitted_and_its_script_runs_each_element(
    name: str, queue: Queue, stand: Stand, tmp_path: Path
) -> None:
    if name == "moab":
        pytest.skip("no arrays of Moab's are used")
    command, answer, number, environments = SUBMITS[name]
    stand.answer(**{command: [0, answer, "", *environments]})
    spec = job(tmp_path, 2, environment={})

    assert queue.submit(spec) == number
    [(ran, argv, directory, stdin)] = stand.taken()
    script = (spec.directory / "run_queue.sh").read_text()
    assert (ran, directory) == (command, str(spec.directory))
    assert (argv[-1] == "./run_queue.sh", stdin) == ((False, script) if name == "lsf" else (True, ""))  # type: ignore[index]
    logs = [(spec.directory / f"{index}.log").read_text() for index in (0, 1)]
    assert logs == [f"{index} {spec.directory} {number}_{index}\n" for index in (0, 1)]
    assert queue.script(spec) == script


def test_a_single_job_of_moab(stand: Stand, tmp_path: Path) -> None:
    stand.answer(msub=[0, "\nMoab.7\n", "", {"MOAB_JOBID": "Moab.7"}])
    queue = queues.connect("moab", tmp_path)
    spec = job(tmp_path)
    assert queue.submit(spec) == "Moab.7"
    assert (spec.directory / "0.log").read_text() == f"0 {spec.directory} Moab.7\n"
    queue.close()


def test_refusals_are_told_from_troubles(name: str, queue: Queue, stand: Stand, tmp_path: Path) -> None:
    command = {"lsf": "bsub", "moab": "msub"}.get(name, "qsub")
    spec = job(tmp_path)
    stand.answer(**{command: [1, "", f"{command}: Unknown queue\n"]})
    with pytest.raises(SubmitRejected, match=f"{command} refused job rx-a-0: {command}: Unknown queue"):
        queue.submit(spec)
    stand.answer(**{command: [1, "", "connection refused\n"]})
    with pytest.raises(SchedulerUnavailable, match="may not be submitted: connection refused"):
        queue.submit(spec)
    stand.answer(**{command: [0, "thank you\n", ""]})
    with pytest.raises(SchedulerUnavailable, match="thank you"):
        queue.submit(spec)


def test_jobs_are_cancelled_and_those_that_are_over_passed_over(name: str, queue: Queue, stand: Stand) -> None:
    command = {"lsf": "bkill", "moab": "mjobctl"}.get(name, "qdel")
    over = {"lsf": "Job <12>: Job has already finished", "sge": 'denied: job "12" does not exist'}
    said = over.get(name, "qdel: Unknown Job Id 12.srv")
    stand.answer(**{command: [1, "", f"{said}\n"]})
    queue.cancel([JobRef(JobId("12"))])
    assert [(ran, argv[-1]) for ran, argv, _, _ in stand.taken()] == [(command, "12")]  # type: ignore[index]

    stand.answer(**{command: [1, "", "connection refused\n"]})
    with pytest.raises(SchedulerUnavailable, match="jobs 12 may not be cancelled"):
        queue.cancel([JobRef(JobId("12"))])


RECORDED = Path(__file__).parent.parent / "unit" / "recorded" / "after-manuals"
SHOWN = {
    "pbs": ({"qselect": "1201.srv\n", "qstat": "pbs/qstat.txt"}, "1201"),
    "torque": ({"qselect": "88.head\n", "qstat": "torque/qstat.txt"}, "88"),
    "lsf": ({"bjobs": "lsf/bjobs.txt"}, "310"),
    "sge": ({"qstat": "sge/qstat.xml"}, "41"),
    "moab": ({"showq": "moab/showq.xml"}, "Moab.17"),
}


def test_jobs_are_found_by_name_and_asked_about(name: str, queue: Queue, stand: Stand) -> None:
    files, number = SHOWN[name]
    texts = {key: (RECORDED / text).read_text() if "/" in text else text for key, text in files.items()}
    stand.answer(**{key: [0, text, ""] for key, text in texts.items()})
    known, unknown = JobRef(JobId(number)), JobRef(JobId("999"))

    assert (queue.find("rx-3f2a-0"), queue.find("rx-none")) == (number, None)
    states = {ref: facts.state for ref, facts in queue.states([known, unknown]).items()}
    assert states == {
        known: JobState.COMPLETED if name == "torque" else JobState.RUNNING,
        unknown: JobState.GONE,
    }
    stand.answer(**{key: [1, "", "cannot connect to server\n"] for key in texts})
    with pytest.raises(SchedulerUnavailable, match="cannot connect to server"):
        queue.states([known])


def test_what_grid_engine_has_forgotten_is_looked_up_in_its_accounts(stand: Stand, tmp_path: Path) -> None:
    empty = "<job_info><queue_info/><job_info/></job_info>"
    stand.answer(qstat=[0, empty, ""], qacct=[0, (RECORDED / "sge" / "qacct.txt").read_text(), ""])
    queue = queues.connect("sge", tmp_path)
    refs = [JobRef(JobId("51"), index) for index in range(3)]
    states = [facts.state for facts in queue.states(refs).values()]
    assert states == [JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT]
    assert [ran for ran, *_ in stand.taken()] == ["qstat", "qacct"]
