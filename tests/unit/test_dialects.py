"""Scripts, options and answers of PBS, Torque, LSF, Grid Engine and Moab: golden, or after their manuals.

`python -m tests.unit.test_dialects` writes the scripts anew, to be read before they are committed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import Template

from remoteexec_server.batch import queues
from remoteexec_server.batch.base import JobFacts, JobId, JobRef, JobSpec, JobState
from remoteexec_server.batch.dialects import lsf, moab, pbs, sge
from remoteexec_server.batch.slurm_text import Line
from remoteexec_server.wire.resources import ResourceError, Resources

RECORDED = Path(__file__).parent / "recorded" / "after-manuals"
DIALECTS = {dialect.name: dialect for dialect in (pbs.Pbs(), pbs.Torque(), lsf.Lsf(), sge.Sge(), moab.Moab())}
ALL = Resources(
    cores=3,
    threads_per_core=2,
    num_nodes=2,
    exclusive=True,
    run_time_max_s=90.5,
    memory_max_gb=1,
    priority=5,
    partition="fast",
    account="proj",
    qos="high",
    constraint="gpu&big",
    gpus_per_core=1,
    job_name="energy:Ag",
    slurm_cmd_args=("-M", "x y"),
    extra={"parallel_environment": "smp"},
)
ARRAYS = {"pbs": "6[]", "torque": "6[]"}


def spec(name: str, resources: Resources = Resources(), count: int = 1, *after: JobRef) -> JobSpec:  # noqa: B008
    return JobSpec(name, Path("/r/it's") / name, ("/opt/py thon", "/r/server", "runner"), count, resources, after, 3)


def full(name: str) -> JobSpec:
    """A job that asks for everything the dialect has a word for."""
    resources = replace(ALL, gpus_per_core=0) if name == "sge" else ALL
    after = (JobRef(JobId("5")), JobRef(JobId(ARRAYS.get(name, "6")), 2))
    return spec("rx-a-1", resources, min(8, DIALECTS[name].max_array), *after)


def render(name: str, job: JobSpec) -> str:
    dialect = DIALECTS[name]
    text: str = Template(dialect.template).render(**dialect.variables(job))
    return text + "\n"


def text(name: str, file: str) -> str:
    return (RECORDED / name / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DIALECTS)
def test_scripts_are_as_they_were_read(name: str) -> None:
    assert render(name, spec("rx-a-0")) == text(name, "plain.sh")
    assert render(name, full(name)) == text(name, "full.sh")


def test_what_must_hold_is_on_the_command_line() -> None:
    common = ["-M", "x y", "-N", "rx-a-1.energy_Ag", "-j", "oe", "-o", "/dev/null", "-r", "n"]
    assert {name: dialect.options(full(name)) for name, dialect in DIALECTS.items()} == {
        "pbs": [*common, "-J", "0-7%3", "-W", "depend=afterany:5:6[]"],
        "torque": [*common, "-t", "0-7%3", "-W", "depend=afterany:5,afteranyarray:6[]"],
        "lsf": [
            *("-M", "x y", "-J", "rx-a-1.energy_Ag[1-8]%3", "-o", "/dev/null", "-rn"),
            *("-w", "ended(5) && ended(6[3])"),
        ],
        "sge": [
            *("-M", "x y", "-N", "rx-a-1.energy_Ag", "-j", "y", "-o", "/dev/null", "-r", "n"),
            *("-t", "1-8", "-tc", "3", "-hold_jid", "5,6"),
        ],
        "moab": [*common, "-l", "depend=afterany:5:6"],
    }


@pytest.mark.parametrize(
    ("name", "answer", "job"),
    [
        ("pbs", "1234.pbs01\n", "1234"),
        ("pbs", "qsub: warning: x\n1234[].pbs01.example.org\n", "1234[]"),
        ("torque", "88\n", "88"),
        ("pbs", "submitted\n", None),
        ("lsf", "Job <310> is submitted to default queue <normal>.\n", "310"),
        ("lsf", "Job not submitted.\n", None),
        ("sge", "41\n", "41"),
        ("sge", "Warning: x\n42.1-8:1\n", "42"),
        ("sge", "Your job 41 has been submitted\n", None),
        ("moab", "\nMoab.17\n", "Moab.17"),
        ("moab", "\n17\n", "17"),
        ("moab", "\n17.head.example.org\n", "17"),
        ("moab", "ERROR: x\n", None),
    ],
)
def test_the_number_of_a_job_is_found_in_the_answer(name: str, answer: str, job: str | None) -> None:
    assert DIALECTS[name].parse_submitted(answer) == job


def test_jobs_and_elements_are_cancelled_in_each_schedulers_words() -> None:
    def refs(array: str) -> list[JobRef]:
        elements = [JobRef(JobId(array), index) for index in (0, 1, 2, 6)]
        return [JobRef(JobId("12")), *elements, JobRef(JobId("14"), 3), JobRef(JobId("14"))]

    cancelled = {
        name: dialect.cancel_arguments(refs("13[]" if name in ARRAYS else "13")) for name, dialect in DIALECTS.items()
    }
    assert cancelled == {
        "pbs": [["12", "13[0-2]", "13[6]", "14"]],
        "torque": [["12", "13[0]", "13[1]", "13[2]", "13[6]", "14"]],
        "lsf": [["12", "13[1-3,7]", "14"]],
        "sge": [["12", "13.1-3", "13.7", "14"]],
        "moab": [["12"], ["13"], ["14"]],
    }
    assert [dialect.cancel_arguments([]) for dialect in DIALECTS.values()] == [[]] * 5


def test_what_is_asked() -> None:
    asked = {
        name: [question.argv for question in dialect.ask([JobId("1"), JobId("2")], "me")]
        for name, dialect in DIALECTS.items()
    }
    assert asked == {
        "pbs": [("qstat", "-x", "-t", "-f", "1", "2")],
        "torque": [("qstat", "-t", "-f", "1", "2")],
        "lsf": [("bjobs", "-a", "-noheader", "-u", "me", "-o", lsf.BJOBS_FORMAT)],
        "sge": [("qstat", "-u", "me", "-xml")],
        "moab": [("showq", "--xml", "-w", "user=me"), ("showq", "-c", "--xml", "-w", "user=me")],
    }
    assert [dialect.ask([], "me") for name, dialect in DIALECTS.items() if name in ARRAYS] == [[], []]


def line(job: str, index: int | None, name: str, state: JobState, *facts: object) -> Line:
    return Line(JobId(job), None if index is None else (index,), JobFacts(state, *facts), name)  # type: ignore[arg-type]


def test_qstat_of_pbs() -> None:
    long = "rx-3f2a-1.a_very_long_name_that_the_server_continues_in_the_next_line_of_its_answer"
    assert pbs.parse_jobs(text("pbs", "qstat.txt")) == [
        line("1201", None, "rx-3f2a-0", JobState.RUNNING, "", "node07"),
        line("1202", None, long, JobState.PENDING, "Not Running: Insufficient amount of resource: ncpus"),
        line("1203[]", 0, "rx-3f2a-2", JobState.COMPLETED, "", "node08", 0),
        line(
            *("1203[]", 1, "rx-3f2a-2", JobState.FAILED),
            *("Job run at Mon Nov 23 at 10:00 on (node08:ncpus=1) and failed", "node08", 74),
        ),
        line("1203[]", 2, "rx-3f2a-2", JobState.RUNNING, "", "node08"),
        line("1203[]", 3, "rx-3f2a-2", JobState.FAILED, "", "node08", None, 9),
        line("1203[]", 4, "rx-3f2a-2", JobState.PENDING),
        line("1204", None, "rx-3f2a-3", JobState.TIMEOUT, "TimeLimit", "node09"),
        line("1205", None, "rx-3f2a-4", JobState.OUT_OF_MEMORY, "mem", "node09"),
        line("1206", None, "rx-3f2a-5", JobState.CANCELLED, "deleted"),
        line("1207", None, "rx-3f2a-6", JobState.TIMEOUT, "TimeLimit", "node09", None, 15),
    ]  # fmt: skip


def test_qstat_of_torque() -> None:
    [question] = pbs.Torque().ask([JobId("88")], "me")
    assert question.read(text("torque", "qstat.txt")) == [
        line("88", None, "rx-3f2a-0", JobState.COMPLETED, "", "n001", 0),
        line("89", None, "rx-3f2a-1", JobState.TIMEOUT, "TimeLimit", "n001"),
        line("90[]", 0, "rx-3f2a-2", JobState.RUNNING, "", "n002"),
        line("90[]", 1, "rx-3f2a-2", JobState.PENDING),
    ]


def test_qselect() -> None:
    assert [found.job for found in pbs.parse_ids("1201.pbs01\n1203[].pbs01\n\n")] == ["1201", "1203[]"]


def test_bjobs() -> None:
    assert lsf.parse_bjobs("No job found\n" + text("lsf", "bjobs.txt")) == [
        line("310", None, "rx-3f2a-0", JobState.RUNNING, "", "hostA"),
        line("311", None, "rx-3f2a-1.energy_Ag", JobState.PENDING, "Job dependency condition not satisfied"),
        line("312", 0, "rx-3f2a-2", JobState.COMPLETED, "", "hostA", 0),
        line("312", 1, "rx-3f2a-2", JobState.FAILED, "", "hostB", 74),
        line("312", 2, "rx-3f2a-2", JobState.OUT_OF_MEMORY, "memory limit", "hostB"),
        line("312", 3, "rx-3f2a-2", JobState.TIMEOUT, "TimeLimit", "hostB"),
        line("312", 4, "rx-3f2a-2", JobState.FAILED, "", "hostB", None, 11),
        line("313", None, "rx-3f2a-3", JobState.CANCELLED, "killed by its owner", "hostA"),
        line("314", None, "rx-3f2a-4", JobState.CANCELLED, "ended before it started"),
        line("315", None, "rx-3f2a-5", JobState.RUNNING, "", "hostC"),
        line("316", None, "name with | in it", JobState.PENDING),
    ]


def test_qstat_of_grid_engine() -> None:
    found = sge.parse_qstat(text("sge", "qstat.xml"))
    assert found == [
        line("41", None, "rx-3f2a-0", JobState.RUNNING, "", "node01.example.org"),
        line("42", 2, "rx-3f2a-1", JobState.RUNNING, "", "node02"),
        Line(JobId("42"), (3, 4, 5, 8), JobFacts(JobState.PENDING), "rx-3f2a-1"),
        line("43", None, "rx-3f2a-2.a&b", JobState.PENDING, "held"),
        line("44", None, "rx-3f2a-3", JobState.FAILED, "error state Eqw"),
    ]
    with pytest.raises(ValueError, match="not the XML of qstat"):
        sge.parse_qstat("error: commlib error")


def test_qacct() -> None:
    assert sge.parse_qacct(text("sge", "qacct.txt")) == [
        line("51", 0, "rx-3f2a-4", JobState.COMPLETED, "", "node01.example.org", 0),
        line("51", 1, "rx-3f2a-4", JobState.FAILED, "assumedly after job", "node01.example.org", None, 9),
        line("51", 2, "rx-3f2a-4", JobState.TIMEOUT, "TimeLimit", "node02"),
        line("52", None, "rx-3f2a-5", JobState.FAILED, "", "node02", 74),
    ]


def test_qstat_and_qacct_of_a_real_grid_engine() -> None:
    def real(file: str) -> str:
        return (RECORDED.parent / "sge-8.1.9" / file).read_text(encoding="utf-8")

    assert sge.parse_qstat(real("qstat.xml")) == [
        line("4", None, "rx-3f2a-2", JobState.RUNNING, "", "sgehost"),
        line("8", 0, "rx-3f2a-6", JobState.RUNNING, "", "sgehost"),
        line("5", None, "rx-3f2a-3", JobState.PENDING, "held"),
        Line(JobId("8"), (1, 2, 3, 4), JobFacts(JobState.PENDING), "rx-3f2a-6"),
    ]
    ended = [
        found for each in ("array", "time", "segv", "deleted") for found in sge.parse_qacct(real(f"qacct_{each}.txt"))
    ]
    assert ended == [
        line("2", 0, "rx-3f2a-0", JobState.COMPLETED, "", "sgehost", 0),
        line("2", 1, "rx-3f2a-0", JobState.FAILED, "", "sgehost", 1),
        line("2", 2, "rx-3f2a-0", JobState.FAILED, "", "sgehost", 2),
        line("6", None, "rx-3f2a-4.energy_Ag", JobState.TIMEOUT, "TimeLimit", "sgehost"),
        line("3", None, "rx-3f2a-1", JobState.FAILED, "assumedly after job", "sgehost", None, 11),
        line("4", None, "rx-3f2a-2", JobState.FAILED, "assumedly after job", "sgehost", None, 9),
    ]


def test_showq() -> None:
    lists = moab.parse_showq(text("moab", "showq.xml")) + moab.parse_showq(text("moab", "showq_completed.xml"))
    assert lists == [
        line("Moab.17", None, "rx-3f2a-0", JobState.RUNNING, "", "cn1"),
        line("Moab.18", None, "rx-3f2a-1.e_Ag", JobState.PENDING),
        line("Moab.19", None, "rx-3f2a-2", JobState.PENDING, "BatchHold"),
        line("Moab.11", None, "rx-3f2a-3", JobState.COMPLETED, "", "cn1", 0),
        line("Moab.12", None, "rx-3f2a-4", JobState.FAILED, "", "cn2", 74),
        line("Moab.13", None, "rx-3f2a-5", JobState.CANCELLED, "CNCLD(271)", "cn2"),
        line("Moab.14", None, "rx-3f2a-6", JobState.FAILED, "", "cn2", None, 9),
        line("Moab.15", None, "rx-3f2a-7", JobState.TIMEOUT, "TimeLimit", "cn2"),
    ]
    with pytest.raises(ValueError, match="not the XML of showq"):
        moab.parse_showq("ERROR: cannot connect")


@pytest.mark.parametrize(
    ("name", "resources", "message"),
    [
        ("pbs", Resources(priority=5000), "priority=5000: must be from -1024 to 1023"),
        ("pbs", Resources(partition="q", reservation="R1"), "reservation='R1': it is the queue"),
        ("pbs", Resources(slurm_cmd_args=("-I",)), "slurm_cmd_args='-I'"),
        ("pbs", Resources(slurm_cmd_args=("-W", "block=true")), "slurm_cmd_args='block=true'"),
        ("torque", Resources(constraint="a|b"), "only features joined by &"),
        ("lsf", Resources(slurm_cmd_args=("-K",)), "slurm_cmd_args='-K'"),
        ("lsf", Resources(cores=2, gpus_per_core=1), "so say num_nodes"),
        ("lsf", Resources(constraint="[a|b]"), "in LSF resources joined by"),
        ("sge", Resources(threads_per_core=2), "parallel_environment"),
        ("sge", Resources(gpus_per_core=1), "each site has its own name for GPUs"),
        ("sge", Resources(constraint="a|b"), "only complexes joined by &"),
        ("sge", Resources(slurm_cmd_args=("-sync", "y")), "slurm_cmd_args='-sync'"),
        ("moab", Resources(priority=-2000), "priority=-2000"),
    ],
)
def test_what_a_scheduler_cannot_give_is_refused(name: str, resources: Resources, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        DIALECTS[name].variables(spec("rx-a-0", resources))


@pytest.mark.parametrize("name", DIALECTS)
def test_what_a_scheduler_has_no_word_for_is_said(name: str, tmp_path: Path) -> None:
    queue = queues.connect(name, tmp_path)
    heads = [said.split("=")[0] for said in queue.unheeded(ALL)]
    assert heads == {"pbs": ["qos", "constraint"], "lsf": ["qos"], "sge": ["num_nodes", "qos"]}.get(name, [])
    assert queue.name == name
    assert queue.unheeded(Resources()) == []


def test_more_nodes_than_ranks_are_asked_for_all_the_same() -> None:
    two = spec("rx-a-0", Resources(num_nodes=2))
    assert "#BSUB -n 2\n" in render("lsf", two)
    assert "-l nodes=1:ppn=1+1:ppn=1\n" in render("torque", two)
    assert "select=1:ncpus=1:mpiprocs=1:ompthreads=1+1:ncpus=1:mpiprocs=0:ompthreads=1\n" in render("pbs", two)


if __name__ == "__main__":
    for each in DIALECTS:
        (RECORDED / each / "plain.sh").write_text(render(each, spec("rx-a-0")), encoding="utf-8")
        (RECORDED / each / "full.sh").write_text(render(each, full(each)), encoding="utf-8")
