"""What sbatch is given says all that was asked for, whatever path, template or environment."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from jinja2 import Template

from remoteexec_server.batch import slurm_script
from remoteexec_server.batch.base import JobId, JobRef, JobSpec
from remoteexec_server.wire.resources import ResourceError, Resources, Retry

RUNNER = ("/opt/py thon", "/r/server", "runner", "/r/jobs/rx-a-0")


def spec(resources: Resources, count: int = 1, directory: str = "/r/jobs/rx-a-0", *after: JobRef) -> JobSpec:
    return JobSpec("rx-a-0", Path(directory), RUNNER, count, resources, after)


def render(job: JobSpec) -> list[str]:
    text: str = Template(slurm_script.template(job.resources)).render(**slurm_script.variables(job))
    return text.splitlines()


def test_the_plainest_job() -> None:
    assert render(spec(Resources())) == [
        "#!/bin/bash",
        "#SBATCH --ntasks=1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --job-name=rx-a-0",
        "#SBATCH --output=/r/jobs/rx-a-0/0.log",
        "#SBATCH --error=/r/jobs/rx-a-0/0.log",
        "#SBATCH --no-requeue",
        "exec '/opt/py thon' /r/server runner /r/jobs/rx-a-0 0",
    ]


def test_every_resource_reaches_the_script() -> None:
    resources = Resources(
        cores=4,
        threads_per_core=2,
        gpus_per_core=1,
        num_nodes=2,
        exclusive=True,
        run_time_max_s=119,
        memory_max_gb=0.1,
        priority=0,
        partition="fast,slow",
        account="proj-1",
        job_name="energy:Ag",
        slurm_cmd_args=("--constraint=haswell", '--comment=it\'s # "x"'),
    )
    after = (JobRef(JobId("5")), JobRef(JobId("6"), 3), JobRef(JobId("5")))
    assert render(spec(resources, 3, "/r/a'; echo b", *after)) == [
        "#!/bin/bash",
        "#SBATCH --ntasks=4",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gpus-per-task=1",
        "#SBATCH --nodes=2",
        "#SBATCH --exclusive",
        "#SBATCH --time=2",
        "#SBATCH --mem=52M",
        "#SBATCH --partition=fast,slow",
        "#SBATCH --account=proj-1",
        "#SBATCH --priority=0",
        "#SBATCH --constraint=haswell '--comment=it'\"'\"'s # \"x\"'",
        "#SBATCH --job-name=rx-a-0.energy:Ag",
        "#SBATCH '--output=/r/a'\"'\"'; echo b/%a.log'",
        "#SBATCH '--error=/r/a'\"'\"'; echo b/%a.log'",
        "#SBATCH --no-requeue",
        "#SBATCH --array=0-2",
        "#SBATCH --dependency=afterany:5:6_3",
        "exec '/opt/py thon' /r/server runner /r/jobs/rx-a-0 \"$SLURM_ARRAY_TASK_ID\"",
    ]


def test_no_field_of_resources_is_forgotten() -> None:
    renamed = {"run_time_max_s": "run_time_max", "memory_max_gb": "memory_max", "warn_time_s": "warn_time"}
    elsewhere = {
        "submission_template",
        "extra",
        "error_log_file",
        "openmpi_oversubscribe",
        "pmi_mode",
        "environment",
        "retry",
    }
    names = {renamed.get(field.name, field.name) for field in fields(Resources)} - elsewhere
    assert names - slurm_script.variables(spec(Resources())).keys() == set()


@pytest.mark.parametrize("directory", ["/r/100%", "/r/%j", "/r/back\\slash", "/r/line\nbreak"])
def test_where_slurm_would_change_the_path_of_the_log_the_shell_writes_it(directory: str) -> None:
    job = spec(Resources(), 2, directory)
    assert "--output=/dev/null" in slurm_script.options(job)
    script = "\n".join(render(job))
    index = '"$SLURM_ARRAY_TASK_ID"'
    assert script.endswith(f"{index} >>{shlex.quote(directory)}/{index}.log 2>&1")
    assert all("r/" not in line for line in script.splitlines() if line.startswith("#SBATCH"))


@pytest.mark.parametrize(("seconds", "minutes"), [(1, 1), (60, 1), (60.001, 2), (119, 2), (120, 2), (0.01, 1)])
def test_a_time_limit_is_rounded_up(seconds: float, minutes: int) -> None:
    assert slurm_script.variables(spec(Resources(run_time_max_s=seconds)))["run_time_minutes"] == minutes


@pytest.mark.parametrize(
    ("gigabytes", "nodes", "megabytes"),
    [(1, None, 1024), (0.1, None, 103), (1e-6, None, 1), (2, 3, 683), (2.2, 1, 2253)],
)
def test_memory_is_rounded_up_and_shared_by_the_nodes(gigabytes: float, nodes: int | None, megabytes: int) -> None:
    resources = Resources(memory_max_gb=gigabytes, num_nodes=nodes)
    assert slurm_script.variables(spec(resources))["memory_mb"] == megabytes


def test_a_users_template_gets_the_documented_variables() -> None:
    text = (
        "{{ job_name }}|{{ working_directory }}|{{ cores }}|{{ run_time_max }}|{{ memory_max }}|{{ partition }}"
        "|{{ dependency_list | join(',') }}|{{ command }}|{{ my_key }}"
    )
    resources = Resources(
        cores=2, run_time_max_s=90, memory_max_gb=2.0, submission_template=text, extra={"my_key": "v", "cores": 9}
    )
    assert render(spec(resources, 1, "/r/d", JobRef(JobId("7")))) == [
        "rx-a-0|/r/d|2|90|2|None|7|'/opt/py thon' /r/server runner /r/jobs/rx-a-0 0|v"
    ]


def test_no_more_elements_of_an_array_run_at_once_than_were_asked_for() -> None:
    assert "--array=0-9%4" in slurm_script.options(replace(spec(Resources(), 10), at_once=4))
    assert "--array=0-9" in slurm_script.options(replace(spec(Resources(), 10), at_once=10))


def test_what_must_hold_is_on_the_command_line_whatever_the_template_says() -> None:
    job = spec(Resources(submission_template="#!/bin/sh\n"), 3, "/r/d", JobRef(JobId("7")))
    assert slurm_script.options(job) == [
        "--job-name=rx-a-0",
        "--output=/r/d/%a.log",
        "--error=/r/d/%a.log",
        "--no-requeue",
        "--array=0-2",
        "--dependency=afterany:7",
    ]


@pytest.mark.parametrize("argument", ["--wait", "-W", "--test-only", "--wrap=true", "--parsable", "-h", "--version"])
def test_an_option_that_makes_sbatch_do_something_else_is_refused(argument: str) -> None:
    with pytest.raises(ResourceError, match=f"slurm_cmd_args='{argument}'"):
        slurm_script.variables(spec(Resources(slurm_cmd_args=(argument,))))


def test_a_backslash_of_an_argument_is_one_after_sbatch_has_read_its_line() -> None:
    argument = "--comment=a\\n"
    shown = slurm_script.variables(spec(Resources(slurm_cmd_args=(argument,))))["sbatch_arguments"]
    assert shown == "'--comment=a\\\\n'"


@pytest.mark.parametrize("argument", ["--te", "--test-o", "--wr=true", "--vers", "--he", "--usa", "--pars", "--qu"])
def test_such_an_option_is_refused_however_short_sbatch_takes_it(argument: str) -> None:
    with pytest.raises(ResourceError, match=f"slurm_cmd_args='{argument}'"):
        slurm_script.variables(spec(Resources(slurm_cmd_args=(argument,))))


def test_options_that_only_begin_alike_are_not() -> None:
    arguments = ("--wait-all-nodes=1", "--hint=nomultithread", "--verbose", "--time=5", "-w", "n1", "--")
    assert slurm_script.variables(spec(Resources(slurm_cmd_args=arguments)))["sbatch_arguments"] == " ".join(arguments)


def test_the_environment_is_the_users_but_for_what_overrules_the_resources() -> None:
    environ = {"PATH": "/bin", "SBATCH_PARTITION": "x", "SBATCH_ACCOUNT": "y", "SBATCH_WAIT": "1", "SLURM_CONF": "c"}
    assert slurm_script.environment(environ, Resources(partition="fast")) == {
        "PATH": "/bin",
        "SBATCH_ACCOUNT": "y",
        "SLURM_CONF": "c",
    }


def test_inside_a_job_nothing_of_that_job_is_handed_on() -> None:
    environ = {
        "SLURM_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_CONF": "c",
        "HOME": "h",
    }
    assert slurm_script.environment(environ, Resources()) == {"SLURM_CONF": "c", "HOME": "h"}


def test_a_job_is_found_by_our_own_name_whatever_the_user_calls_it() -> None:
    full = slurm_script.full_name(spec(Resources(job_name="rx-a-0")))
    assert full == "rx-a-0.rx-a-0"
    assert slurm_script.is_named(full, "rx-a-0")
    assert not slurm_script.is_named("rx-a-01.rx-a-0", "rx-a-0")
    assert not slurm_script.is_named("rx-a-0", "rx-a")


@pytest.mark.parametrize(("cores", "nodes", "tasks"), [(1, 2, 2), (4, 2, 4), (3, None, 3)])
def test_as_many_tasks_are_asked_for_as_nodes_since_slurm_gives_no_more_nodes(
    cores: int, nodes: int | None, tasks: int
) -> None:
    lines = render(spec(Resources(cores=cores, num_nodes=nodes)))
    assert [line for line in lines if "--ntasks" in line] == [f"#SBATCH --ntasks={tasks}"]


def test_cores_are_all_cpus_where_a_users_template_knows_no_threads() -> None:
    both = Resources(cores=2, threads_per_core=3, submission_template="{{ cores }}/{{ threads_per_core }}")
    one = replace(both, submission_template="{{ cores }}")
    assert [render(spec(both)), render(spec(one)), render(replace(spec(one), least_cores=40))] == [
        ["2/3"],
        ["6"],
        ["40"],
    ]


def test_a_partition_is_also_called_queue() -> None:
    assert render(spec(Resources(partition="x", submission_template="{{ queue }}"))) == ["x"]


@pytest.mark.parametrize("argument", ["--array=0-3", "--ar=1", "-a0-3", "--clusters=x", "-M", "hetjob", "packjob"])
def test_an_option_that_makes_other_jobs_than_one_here_is_refused(argument: str) -> None:
    with pytest.raises(ResourceError, match=f"slurm_cmd_args='{argument}'"):
        slurm_script.variables(spec(Resources(slurm_cmd_args=(argument,))))


def test_options_that_ours_overrule_are_named() -> None:
    arguments = ("--output=x", "--err=x", "-ex", "-Jname", "--requeue", "--qos=high", "--export=ALL", "--overcommit")
    found = slurm_script.overruled(Resources(slurm_cmd_args=arguments))
    assert [text.split(" has no effect")[0] for text in found] == [
        "slurm_cmd_args='--output=x'",
        "slurm_cmd_args='--err=x'",
        "slurm_cmd_args='-ex'",
        "slurm_cmd_args='-Jname'",
        "slurm_cmd_args='--requeue'",
    ]


@pytest.mark.parametrize(
    ("constraint", "line"),
    [
        (text, f"#SBATCH --constraint={text}")
        for text in ("gpu&fast", "(a|b)&c", "[rack1|rack2]", "[fast*2&slow*1]", "!old,x=y:z.w")
    ],
)
def test_constraints_need_no_quotes(constraint: str, line: str) -> None:
    resources = Resources(constraint=constraint)
    resources.validate()
    assert line in render(spec(resources))


def test_a_task_that_is_warned_ignores_the_warning_until_its_runner_is_there() -> None:
    lines = render(spec(Resources(retry=Retry(1, {"timeout"}), run_time_max_s=600)))

    assert "#SBATCH --signal=B:USR1@60" in lines
    assert lines[-2:] == ["trap '' USR1", "exec '/opt/py thon' /r/server runner /r/jobs/rx-a-0 0"]
    assert "trap" not in "".join(render(spec(Resources(retry=Retry(1, {"killed"})))))
