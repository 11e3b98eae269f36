"""What SLURM prints is understood: outputs of real versions, recorded, below recorded/."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.batch import slurm_text
from remoteexec_server.batch.base import JobFacts, JobId, JobRef, JobState
from remoteexec_server.batch.slurm_text import Config, Line, Partition
from remoteexec_server.wire.evidence import Usage

RECORDED = sorted((Path(__file__).parent / "recorded").glob("plain-*"))
every_version = pytest.mark.parametrize("version", RECORDED, ids=lambda path: path.name)
"""Clusters without accounting: the same jobs were recorded on each; their numbers differ."""


def recorded(name: str) -> str:
    """An output of 22.05."""
    return (RECORDED[0] / name).read_text()


@every_version
def test_squeue(version: Path) -> None:
    seen: dict[str, list[str]] = {}
    for line in slurm_text.parse_squeue((version / "squeue.txt").read_text()):
        text = f"{line.facts.state.value} {line.facts.reason} {len(line.elements or ())}"
        seen[line.name] = sorted([*seen.get(line.name, []), text])
    assert seen.pop("rx-b-4")[0].startswith("FAILED ")  # its reason is JobLaunchFailure in 22.05, whatever the signal
    seen.pop("rx-b-6")  # its log could not be opened; 24.11 makes directories
    assert seen == {
        "rx-b-0.it|s": ["PENDING JobArrayTaskLimit 2", "RUNNING  1", "RUNNING  1"],
        "rx-b-1": ["CANCELLED  1", "PENDING JobArrayTaskLimit 18", "RUNNING  1"],
        "rx-b-10": ["PENDING DependencyNeverSatisfied 0"],
        "rx-b-11.a JobState=X b": ["FAILED NonZeroExitCode 0"],
        "rx-b-2": ["PENDING Dependency 0"],
        "rx-b-3": ["FAILED NonZeroExitCode 0"],
        "rx-b-5": ["COMPLETED  0"],
        "rx-b-7": ["PENDING PartitionTimeLimit 0"],
        "rx-b-8": ["COMPLETED  1", "FAILED NonZeroExitCode 1", "FAILED NonZeroExitCode 1"],
        "rx-b-9": ["CANCELLED  0"],
    }


def test_an_array_expression_stands_for_its_elements() -> None:
    line = next(line for line in slurm_text.parse_squeue(recorded("squeue.txt")) if line.name == "rx-b-0.it|s")
    assert line == Line(JobId("59"), (6, 9), JobFacts(JobState.PENDING, "JobArrayTaskLimit"), name="rx-b-0.it|s")
    assert list(line.refs()) == [JobRef(JobId("59"), 6), JobRef(JobId("59"), 9)]


def test_a_long_expression_is_read_whole_and_one_cut_short_is_no_evidence() -> None:
    [line] = slurm_text.parse_squeue(recorded("squeue_long_array.txt"))
    assert line.elements == (*range(0, 39, 2), 40, *range(41, 99, 3))
    assert slurm_text.parse_squeue(recorded("squeue_cut_short.txt")) == []


@pytest.mark.parametrize(
    ("expression", "elements"),
    [("3", (3,)), ("0-3", (0, 1, 2, 3)), ("5-7,12%4", (5, 6, 7, 12)), ("0-8:4,9", (0, 4, 8, 9))],
)
def test_indices_of_an_expression(expression: str, elements: tuple[int, ...]) -> None:
    assert slurm_text.indices(expression) == elements
    assert slurm_text.indices(slurm_text.array_expression(elements)) == elements


@pytest.mark.parametrize("expression", ["", "1-3,...", "a", "1-", "1,,2"])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="array expression"):
        slurm_text.indices(expression)


def test_the_shortest_expression_for_elements() -> None:
    assert slurm_text.array_expression([7, 0, 2, 1, 7, 9, 10]) == "0-2,7,9-10"


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("COMPLETING", JobState.RUNNING),
        ("CONFIGURING", JobState.PENDING),
        ("SUSPENDED", JobState.RUNNING),
        ("CANCELLED by 1000", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("DEADLINE", JobState.TIMEOUT),
        ("BOOT_FAIL", JobState.NODE_FAIL),
        ("SOMETHING_OF_2031", JobState.RUNNING),
    ],
)
def test_every_word_has_a_state_and_an_unknown_one_decides_nothing(word: str, state: JobState) -> None:
    assert slurm_text.state_of(word) is state


def test_squeue_passes_over_what_is_not_its_line() -> None:
    text = "slurm_load_jobs error: x\n12|RUNNING|None|n1|a|b|c\n13_[1-2|PENDING|\n12+1|RUNNING|None|n2|het\n"
    running = JobFacts(JobState.RUNNING, "", "n1")
    assert slurm_text.parse_squeue(text) == [
        Line(JobId("12"), None, running, "a|b|c"),
        Line(JobId("12"), None, JobFacts(JobState.RUNNING, "", "n2"), "het"),
    ]


@every_version
def test_show_job_gives_exit_codes_of_every_element(version: Path) -> None:
    found = {
        ref.index: (line.facts.state, line.facts.exit_code, line.facts.signal, line.facts.node is not None)
        for line in slurm_text.parse_show_job((version / "show_job_array.txt").read_text())
        for ref in line.refs()
    }
    assert found == {
        0: (JobState.COMPLETED, 0, None, True),
        1: (JobState.FAILED, 1, None, True),
        2: (JobState.FAILED, 2, None, True),
    }


@every_version
def test_show_job_of_an_array_still_pending(version: Path) -> None:
    lines = slurm_text.parse_show_job((version / "show_job_pending_array.txt").read_text())
    found = {
        ref.index: f"{line.facts.state.value} {line.facts.reason}".strip() for line in lines for ref in line.refs()
    }
    assert found == {
        0: "CANCELLED",
        1: "RUNNING",
        **dict.fromkeys(range(2, 20), "PENDING JobArrayTaskLimit"),
    }


@every_version
def test_show_job_is_not_led_astray_by_a_path_or_a_name(version: Path) -> None:
    """The working directory has a line break and words that look like fields; the job's name, too."""
    [line] = slurm_text.parse_show_job((version / "show_job_line_break.txt").read_text())
    assert (line.facts.state, line.facts.exit_code, line.name) == (JobState.FAILED, 3, "rx-b-11.a JobState=X b")


@every_version
def test_show_job_tells_the_signal(version: Path) -> None:
    [line] = slurm_text.parse_show_job((version / "show_job_signal.txt").read_text())
    assert (line.facts.exit_code, line.facts.signal) == (None, 11)


def test_show_job_of_a_job_that_could_not_be_launched() -> None:
    [line] = slurm_text.parse_show_job(recorded("show_job_launch_failure.txt"))
    usage = Usage(time_s=0, time_limit_s=600, memory_limit_bytes=200 << 20)
    assert line.facts == JobFacts(JobState.FAILED, "JobLaunchFailure", "n2", None, 53, usage=usage)


@every_version
def test_show_config(version: Path) -> None:
    config = slurm_text.parse_config((version / "show_config.txt").read_text())
    assert version.name == "plain-" + ".".join(config.version.split(".")[:2])
    assert config == Config(config.version, max_array=10001, message_timeout_s=10, min_job_age_s=300, accounting=False)


def test_config_of_a_site_with_a_database_and_short_arrays() -> None:
    text = """\
AccountingStorageType   = accounting_storage/slurmdbd
MaxArraySize            = 4001
SchedulerParameters     = bf_continue,max_array_tasks=1000,bf_interval=60
SLURM_VERSION           = 24.11.5
"""
    assert slurm_text.parse_config(text) == Config("24.11.5", 1000, 10, 300, True)


def test_sinfo_adds_up_the_states_of_a_partition() -> None:
    text = (
        "long|up|7-00:00:00|3|idle\ndebug*|up|1:00:00|1|mixed\ndebug*|up|1:00:00|1|idle\nold|down|infinite|9|idle\n?\n"
    )
    assert slurm_text.parse_sinfo(text) == [
        Partition("long", True, "7-00:00:00", 3),
        Partition("debug", True, "1:00:00", 2, default=True),
        Partition("old", False, "infinite", 9),
    ]


def test_sinfo_counts_cpus_in_all_states() -> None:
    assert slurm_text.parse_sinfo(recorded("sinfo_cpus.txt")) == [
        Partition("debug", True, "1:00:00", 2, default=True, cpus=8),
        Partition("short", True, "2:00", 1, cpus=4),
    ]


@every_version
def test_sinfo(version: Path) -> None:
    found = slurm_text.parse_sinfo((version / "sinfo.txt").read_text())
    assert found == [Partition("debug", True, "1:00:00", 2, default=True)]


def test_sacct() -> None:
    text = """\
7|COMPLETED|0:0|0:0|n1|None|5|10|200M||rx-a-0
7.batch|COMPLETED|0:0||n1||5|||3016K|batch
7.0|COMPLETED|0:0||n1||5|||1.50G|python
8_0|CANCELLED by 1000|0:0|0:0|None assigned|None|0|UNLIMITED|200M||rx-a-1
8_[1-3]|PENDING|0:0|0:0|None assigned|Resources|0|Partition_Limit|200Mc||rx-a-1
9|OUT_OF_MEMORY|0:125|0:0|n2|OutOfMemory|61|2|0||rx-a-2|b
10|FAILED|0:0|74:0|n2|NonZeroExitCode|||||rx-a-3
11|BOOT_FAIL|0:0|0:0|n[1-2]|None|0|10|2G||rx-a-4
sacct: error: something
"""
    mega = 1 << 20
    ended = Usage(time_s=5, time_limit_s=600, memory_bytes=1536 * mega, memory_limit_bytes=200 * mega)
    killed = Usage(time_s=61, time_limit_s=120, memory_limit_bytes=0)
    cancelled = JobFacts(
        JobState.CANCELLED, cancelled_by="uid 1000", usage=Usage(time_s=0, memory_limit_bytes=200 * mega)
    )
    failed = JobFacts(JobState.NODE_FAIL, "BOOT_FAIL", "n[1-2]", usage=Usage(0, 600, None, 2048 * mega))
    assert slurm_text.parse_sacct(text) == [
        Line(JobId("7"), None, JobFacts(JobState.COMPLETED, "", "n1", 0, usage=ended), "rx-a-0"),
        Line(JobId("8"), (0,), cancelled, "rx-a-1"),
        Line(JobId("8"), (1, 2, 3), JobFacts(JobState.PENDING, "Resources"), "rx-a-1"),
        Line(
            JobId("9"), None, JobFacts(JobState.OUT_OF_MEMORY, "OutOfMemory", "n2", None, 125, "", killed), "rx-a-2|b"
        ),
        Line(JobId("10"), None, JobFacts(JobState.FAILED, "NonZeroExitCode", "n2", 74), "rx-a-3"),
        Line(JobId("11"), None, failed, "rx-a-4"),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:01", 1), ("01:00:00", 3600), ("1-02:03:04", 93784), ("UNLIMITED", None), ("INVALID", None), ("", None)],
)
def test_spans_of_time(text: str, seconds: float | None) -> None:
    assert slurm_text.seconds(text) == seconds


@pytest.mark.parametrize(
    ("output", "job"),
    [("123\n", "123"), ("sbatch: lua: hello\n124;cluster\n", "124"), ("sbatch: Job 9 to start\n", None), ("", None)],
)
def test_job_number_in_the_answer_of_sbatch(output: str, job: str | None) -> None:
    assert slurm_text.parse_job_id(output) == job
