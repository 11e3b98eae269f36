"""What Flux prints is understood: outputs of a real one, recorded, below recorded/."""

from __future__ import annotations

from pathlib import Path

from remoteexec_server.batch import flux_text
from remoteexec_server.batch.base import JobFacts, JobId, JobRef, JobState
from remoteexec_server.batch.flux_script import Element
from remoteexec_server.batch.flux_text import Line

RECORDED = Path(__file__).parent / "recorded" / "flux-0.88"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text(encoding="utf-8")


def test_every_end_of_a_job_has_its_facts_and_other_peoples_jobs_are_passed_over() -> None:
    facts = {f"{line.element.name}": line.facts for line in flux_text.parse_jobs(recorded("jobs.txt"))}
    facts.pop("rx-b-0")
    assert facts == {
        "rx-b-1": JobFacts(
            JobState.FAILED,
            "BadConstraints: unsatisfiable request: need 1 slot(s) of 99 core(s), only 0 such slot(s) available "
            "(total cores: 8)",
        ),
        "rx-b-2": JobFacts(JobState.TIMEOUT, "TimeLimit", "n1"),
        "rx-b-3": JobFacts(JobState.FAILED, "NonZeroExitCode", "n2", None, 11),
        "rx-b-4": JobFacts(JobState.FAILED, "NonZeroExitCode", "n2", None, 9),
        "rx-b-5": JobFacts(
            JobState.FAILED,
            "exec: task 0 (host vm): start failed: /no/such: No such file or directory",
            "n1",
            127,
        ),
        "rx-b-6": JobFacts(JobState.CANCELLED, "not needed | any more", "n1"),
        "rx-b-7": JobFacts(JobState.CANCELLED),
        "rx-b-8": JobFacts(JobState.RUNNING, node="n1"),
        "rx-b-9": JobFacts(JobState.PENDING, "Dependency"),
        "rx-b-10": JobFacts(JobState.PENDING, "JobHeldUser"),
        "rx-b-12": JobFacts(JobState.PENDING),
        "rx-b-13": JobFacts(JobState.PREEMPTED, "room for another", "n2"),
        "rx-b-14": JobFacts(JobState.NODE_FAIL, "node failure on n2 (rank 1)", "n2"),
        "rx-b-16": JobFacts(JobState.CANCELLED, "", "n1"),
    }


def test_elements_of_an_array_are_known_by_name_and_others_by_number() -> None:
    lines = flux_text.parse_jobs(recorded("jobs.txt"))
    array = [line for line in lines if line.element.name == "rx-b-0"]
    assert {line.ref: line.facts.exit_code for line in array} == {
        JobRef(JobId("rx-b-0"), 0): 0,
        JobRef(JobId("rx-b-0"), 1): 1,
        JobRef(JobId("rx-b-0"), 2): 2,
    }
    [running] = [line for line in lines if line.element.name == "rx-b-8"]
    assert running == Line("f4JMLJcP", Element("rx-b-8", 0, 1), JobFacts(JobState.RUNNING, node="n1"))
    assert running.ref == JobRef(JobId("f4JMLJcP"))


def test_an_array_is_where_its_least_advanced_element_is_and_of_a_job_submitted_twice_one_counts() -> None:
    def line(number: str, index: int, state: JobState) -> Line:
        return Line(number, Element("rx-a-0", index, 2), JobFacts(state))

    lines = [
        line("fA", 0, JobState.COMPLETED),
        line("fB", 1, JobState.RUNNING),
        line("fC", 1, JobState.COMPLETED),
    ]
    found = flux_text.by_ref(lines)
    assert {str(ref): facts.state.value for ref, facts in found.items()} == {
        "rx-a-0": "RUNNING",
        "rx-a-0_0": "COMPLETED",
        "rx-a-0_1": "RUNNING",
    }


def test_what_is_no_line_of_ours_is_passed_over() -> None:
    text = (
        "flux-jobs: ERROR: x\nf2|RUN|||||16|n1|rx-a-0.0-1|\n second line of a note|RUN|||||16|n1|rx-a-1.0-1|\n"
        "f3|RUN|||||16|n1|rx-a-2|\nf4|RUN||\n"
    )
    assert [line.id for line in flux_text.parse_jobs(text)] == ["f2"]


def test_an_unknown_state_decides_nothing_and_an_unknown_result_is_a_failure() -> None:
    text = """\
f2|PRIORITY|||||16||rx-a-0.0-1|
f3|CLEANUP|FAILED|256|||16|n1|rx-a-1.0-1|
f4|INACTIVE|ODD|256|||16|n1|rx-a-2.0-1|
"""
    assert [line.facts.state for line in flux_text.parse_jobs(text)] == [
        JobState.PENDING,
        JobState.RUNNING,
        JobState.FAILED,
    ]


def test_numbers_of_submitted_jobs_in_both_alphabets() -> None:
    assert flux_text.parse_ids(recorded("submit_array.txt")) == ["f26VeF1Z", "f26YcDaF", "f26a6Crb"]
    assert flux_text.parse_ids("warning: fine\nf2bCF6aJ7\nfree beer\nf0\n") == ["f2bCF6aJ7"]


def test_queues_the_default_first_and_none_where_there_is_one_without_a_name() -> None:
    assert flux_text.parse_queues(recorded("queue_list.txt")) == ["batch", "debug"]
    assert flux_text.parse_queues(recorded("queue_list_unnamed.txt")) == []


def test_complaints_without_the_name_of_the_command() -> None:
    assert flux_text.complaints(recorded("refused_option.txt")) == [
        "usage: flux submit [OPTIONS...] COMMAND [ARGS...]",
        "unrecognized arguments: --nonsense",
    ]
    assert [line.partition(":")[2] for line in flux_text.complaints(recorded("cancel_over.txt"))] == [
        " job is inactive",
        " unknown job id",
        " job is inactive",
    ]
