"""resource_dict as users write it becomes Resources, or an error that names key, value and rule."""

from __future__ import annotations

import math
from typing import Any

import pytest

from remoteexec.resources import ResourceError, Resources, check_names, read_resources
from remoteexec_server.wire import asked


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, Resources()),
        ({}, Resources()),
        ({"cores": 1, "run_time_max": 600}, Resources(run_time_max_s=600)),
        ({"memory_max": 1.5, "queue": "long"}, Resources(memory_max_gb=1.5, partition="long")),
        ({"partition": "a,b", "account": "p-1"}, Resources(partition="a,b", account="p-1")),
        ({"job_name": "x.y"}, Resources(job_name="x.y")),
        ({"slurm_cmd_args": ["--qos=debug", "-v"]}, Resources(slurm_cmd_args=("--qos=debug", "-v"))),
        ({"slurm_cmd_args": "--qos=debug"}, Resources(slurm_cmd_args=("--qos=debug",))),
        ({"cwd": "a'; echo b ü"}, Resources(cwd="a'; echo b ü")),
        ({"submission_template": "#!/bin/sh\n"}, Resources(submission_template="#!/bin/sh\n")),
        ({"threads_per_core": 4, "gpus_per_core": 1, "num_nodes": 1, "exclusive": True, "priority": -5},
         Resources(threads_per_core=4, gpus_per_core=1, num_nodes=1, exclusive=True, priority=-5)),
        (Resources(partition="x"), Resources(partition="x")),
    ],
)  # fmt: skip
def test_keys_are_read_under_their_usual_names(given: Any, read: Resources) -> None:
    assert read_resources(given) == read


def test_defaults_hold_where_a_call_says_nothing_and_a_resources_replaces_them_all() -> None:
    defaults = read_resources({"partition": "long", "run_time_max": 60})

    assert read_resources({"run_time_max": 5}, defaults) == Resources(partition="long", run_time_max_s=5)
    assert read_resources(None, defaults) == defaults
    assert read_resources(Resources(cwd="/x"), defaults) == Resources(cwd="/x")


def test_a_callers_dict_is_never_changed_nor_kept() -> None:
    given = {"slurm_cmd_args": ["-v"], "run_time_max": 5}
    read = read_resources(given)
    given["slurm_cmd_args"].append("-x")  # type: ignore[attr-defined]

    assert given == {"slurm_cmd_args": ["-v", "-x"], "run_time_max": 5}
    assert read == Resources(slurm_cmd_args=("-v",), run_time_max_s=5)


def test_an_unknown_key_reaches_the_template_and_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"resource_dict\['coress'\] is no resource remoteexec knows"):
        read = read_resources({"coress": 2}, Resources(extra={"site": "x"}))

    assert read == Resources(extra={"site": "x", "coress": 2})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cores", 0),
        ("cores", True),
        ("cores", 1.0),
        ("cores", "1"),
        ("threads_per_core", -1),
        ("gpus_per_core", -1),
        ("num_nodes", 0),
        ("run_time_max", 0),
        ("run_time_max", "60"),
        ("run_time_max", math.nan),
        ("run_time_max", math.inf),
        ("memory_max", -1),
        ("memory_max", True),
        ("exclusive", 1),
        ("priority", "high"),
        ("priority", True),
        ("partition", "a b"),
        ("partition", "-x"),
        ("partition", "a\n#SBATCH --uid=0"),
        ("partition", ["a"]),
        ("account", "a;b"),
        ("job_name", "$(x)"),
        ("job_name", ""),
        ("job_name", "ü"),
        ("job_name", 'a"b'),
        ("job_name", "100%"),
        ("job_name", "-J"),
        ("queue", "a\r#SBATCH --uid=0"),
        ("qos", "high\n#SBATCH --uid=0"),
        ("qos", "a'b"),
        ("reservation", "a b"),
        ("reservation", "-x"),
        ("constraint", "a\n#SBATCH --uid=0"),
        ("constraint", "a b"),
        ("constraint", "--x"),
        ("constraint", "a'b"),
        ("constraint", 5),
        ("pmi_mode", "pmi3"),
        ("environment", {"A=B": "x"}),
        ("environment", {"A": 5}),
        ("environment", ["A"]),
        ("cwd", "a\nb"),
        ("cwd", ""),
        ("cwd", 5),
        ("slurm_cmd_args", ["--x\n#SBATCH"]),
        ("slurm_cmd_args", [""]),
        ("slurm_cmd_args", [5]),
        ("slurm_cmd_args", 5),
        ("submission_template", 5),
        ("submission_template", ["#!/bin/sh"]),
    ],
)
def test_a_value_that_no_scheduler_may_see_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ResourceError, match=f"^(partition|{key})[=:[]"):
        read_resources({key: value})


@pytest.mark.filterwarnings("ignore:resource_dict")
@pytest.mark.parametrize(
    ("key", "value"), [("a b", 1), ("", 1), (1, 1), ("x", [1]), ("x", None), ("x", "a\nb"), ("a\n", 1)]
)
def test_an_unknown_key_or_value_that_a_template_may_not_see_is_refused(key: Any, value: object) -> None:
    with pytest.raises(ResourceError):
        read_resources({key: value})


def test_resources_made_by_hand_are_checked_as_well() -> None:
    with pytest.raises(ResourceError, match="slurm_cmd_args"):
        read_resources(Resources(slurm_cmd_args=["-v"]))  # type: ignore[arg-type]


def test_equal_resources_are_one_key_of_a_dict() -> None:
    one, other = Resources(extra={"a": 1, "b": 2}), Resources(extra={"b": 2, "a": 1})

    assert ({one: "x"}[other], one == other) == ("x", True)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("coers", "is 'cores' meant?"),
        ("memory", "is 'memory_max' meant?"),
        ("runtime_max", "is 'run_time_max' meant?"),
        ("partitions", "is 'partition' meant?"),
    ],
)
def test_a_key_that_nothing_here_can_use_is_refused_with_the_one_that_was_meant(key: str, remedy: str) -> None:
    with pytest.raises(ResourceError) as caught:
        check_names({"cores": 1, key: 1})
    assert str(caught.value) == f"resource_dict[{key!r}] is no resource remoteexec knows: {remedy}"


def test_a_key_that_resembles_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ResourceError, match=r"'zzz'\] is no resource .*: leave it out; there are .*cores, .*queue"):
        check_names({"zzz": 1})


@pytest.mark.parametrize(
    "key", sorted({*asked.FIELDS, *asked.RENAMED} - {"run_time_max_s", "memory_max_gb", "retry", "warn_time_s"})
)
@pytest.mark.parametrize("value", [None, [], {1: 2}, object(), -1, "\n", b"1", 1j])
def test_any_value_is_taken_or_refused_by_name(key: str, value: Any) -> None:
    try:
        read_resources({key: value})
    except ResourceError as exc:
        refused = str(exc)
    else:
        return
    assert refused.startswith((key, asked.RENAMED.get(key, key)))


@pytest.mark.parametrize("key", ["cores", "threads_per_core", "gpus_per_core"])
def test_a_number_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ResourceError, match=f"^{key}=None: must be a whole number of at least [01]$"):
        read_resources({key: None})
