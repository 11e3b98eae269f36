"""What Flux is given says all that was asked for, whatever path, template or environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import Template

from remoteexec_server.batch import flux_script
from remoteexec_server.batch.base import JobSpec
from remoteexec_server.batch.flux_script import Element
from remoteexec_server.wire.resources import ResourceError, Resources

RUNNER = ("/opt/py thon", "/r/server", "runner", "/r/jobs/rx-a-0")
FULL = Resources(
    threads_per_core=2,
    gpus_per_core=1,
    num_nodes=1,
    exclusive=True,
    run_time_max_s=118.2,
    memory_max_gb=2,
    priority=0,
    partition="debug",
    account="proj-1",
    constraint="gpu&fast",
    job_name="energy:Ag",
)


def spec(resources: Resources, count: int = 1, directory: str = "/r/jobs/rx-a-0") -> JobSpec:
    return JobSpec("rx-a-0", Path(directory), RUNNER, count, resources)


def render(job: JobSpec) -> list[str]:
    text: str = Template(flux_script.template(job.resources)).render(**flux_script.variables(job))
    return text.splitlines()


def submitted(job: JobSpec, *indices: int, after: tuple[str, ...] = ()) -> list[str]:
    return flux_script.argv(flux_script.submission(job, indices or range(job.count), after))


def test_the_plainest_job_is_no_instance() -> None:
    job = spec(Resources())
    options = ["-n1", "-c1", "--job-name=rx-a-0.0-1", "--output=/r/jobs/rx-a-0/0.log"]
    options.append("--setopt=output.mode=append")
    assert submitted(job) == ["flux", "submit", *options, "/bin/bash", "./run_queue.sh"]
    assert render(job) == [
        "#!/bin/bash",
        f"# flux submit {' '.join(options)} /bin/bash run_queue.sh",
        "# flux: -n1",
        "# flux: -c1",
        'exec env REMOTEEXEC_JOB_ID="${FLUX_JOB_ID/ƒ/f}" '
        "'/opt/py thon' /r/server runner /r/jobs/rx-a-0 0 >>/r/jobs/rx-a-0/0.log 2>&1",
    ]


def test_every_resource_reaches_command_and_script_and_a_limit_is_rounded_up_to_seconds() -> None:
    job = spec(FULL, 4)
    wanted = [
        "-n1",
        "-c2",
        "-g1",
        "-N1",
        "--exclusive",
        "--time-limit=119s",
        "--queue=debug",
        "--bank=proj-1",
        "--requires=gpu&fast",
        "--urgency=0",
    ]
    assert submitted(job, 0, 2, 3, after=("fA", "fB")) == [
        "flux",
        "submit",
        *wanted,
        "--job-name=rx-a-0.{cc}-4.energy:Ag",
        "--output=/r/jobs/rx-a-0/{cc}.log",
        "--setopt=output.mode=append",
        "--cc=0,2-3",
        "--dependency=afterany:fA",
        "--dependency=afterany:fB",
        "/bin/bash",
        "./run_queue.sh",
    ]
    lines = render(job)
    quoted = [f"'{option}'" if "&" in option else option for option in wanted]
    assert [line.removeprefix("# flux: ") for line in lines if line.startswith("# flux: ")] == quoted
    assert lines[-1] == (
        'exec env REMOTEEXEC_JOB_ID=rx-a-0_"$FLUX_JOB_CC" '
        "'/opt/py thon' /r/server runner /r/jobs/rx-a-0 \"$FLUX_JOB_CC\" "
        '>>/r/jobs/rx-a-0/"$FLUX_JOB_CC".log 2>&1'
    )


def test_several_ranks_or_nodes_and_a_template_are_an_instance_with_a_command_for_each_element() -> None:
    ranks, nodes = spec(Resources(cores=4), 3), spec(Resources(num_nodes=2))
    own = spec(Resources(submission_template="#!/bin/sh\n# flux: -n {{ cores }}\n{{ command }}\n", threads_per_core=3))
    assert submitted(ranks, 2) == [
        "flux",
        "batch",
        "-n4",
        "-c1",
        "--job-name=rx-a-0.2-3",
        "--output=/r/jobs/rx-a-0/2.log",
        "--setopt=output.mode=append",
        "--env=FLUX_JOB_CC=2",
        "./run_queue.sh",
    ]
    assert submitted(nodes)[2:5] == ["-n2", "-c1", "-N2"]
    assert submitted(own)[:3] == ["flux", "batch", "--job-name=rx-a-0.0-1"]
    assert render(own) == [
        "#!/bin/sh",
        "# flux: -n 3",
        'env REMOTEEXEC_JOB_ID="$(flux getattr jobid | sed s/ƒ/f/)" '
        "'/opt/py thon' /r/server runner /r/jobs/rx-a-0 0 >>/r/jobs/rx-a-0/0.log 2>&1",
    ]


def test_elements_beyond_those_that_may_run_at_once_wait_each_for_another() -> None:
    command = flux_script.argv(flux_script.chained(spec(Resources(), 5), [2, 3], ["fA", "fB"], ["fZ"]))
    assert command == [
        "flux",
        "bulksubmit",
        "-n1",
        "-c1",
        "--job-name=rx-a-0.{0}-5",
        "--output=/r/jobs/rx-a-0/{0}.log",
        "--setopt=output.mode=append",
        "--dependency=afterany:fZ",
        "--dependency=afterany:{1}",
        "--env=FLUX_JOB_CC={0}",
        "/bin/bash",
        "./run_queue.sh",
        ":::",
        "2",
        "3",
        ":::+",
        "fA",
        "fB",
    ]


@pytest.mark.parametrize("name", ["a{cc}b", "a{{id}}", "line\nbreak"])
def test_where_flux_would_replace_something_in_a_path_it_is_not_told_that_path(name: str) -> None:
    job = spec(Resources(), 2, f"/r/{name}")
    assert "--output=/dev/null" in submitted(job)
    assert not any(name in part for part in submitted(job))
    assert f">>'/r/{name}'/\"$FLUX_JOB_CC\".log 2>&1" in "\n".join(render(job))


def test_a_name_says_what_a_job_is_whatever_the_user_calls_it() -> None:
    assert flux_script.element("rx-a-0.3-10") == Element("rx-a-0", 3, 10)
    assert flux_script.element("rx-a-0.0-1.7-8") == Element("rx-a-0", 0, 1)
    assert [flux_script.element(name) for name in ("rx-a-0", "rx-a-0.energy", "x.1-2y", "")] == [None] * 4


def test_whole_nodes_are_given_away_by_their_number() -> None:
    assert "-N1" in submitted(spec(Resources(exclusive=True)))
    with pytest.raises(ResourceError, match="num_nodes has to be given"):
        submitted(spec(Resources(exclusive=True, cores=2)))


def test_what_flux_knows_nothing_of_is_said() -> None:
    asked = replace(FULL, qos="high", reservation="r1", slurm_cmd_args=("--nice=1",))
    assert [text.partition(" has no effect: ")[0] for text in flux_script.unheeded(asked)] == [
        "memory_max=2",
        "qos='high'",
        "reservation='r1'",
        "slurm_cmd_args=('--nice=1',)",
    ]
    assert flux_script.unheeded(Resources(threads_per_core=2, partition="debug")) == []
    own = Resources(submission_template="# flux: -q {{ partition }}", partition="debug", memory_max_gb=2)
    assert flux_script.unheeded(own) == ["memory_max=2 has no effect: the submission_template does not use it"]


def test_the_environment_is_that_of_the_instance_and_not_that_of_a_job_around_us() -> None:
    environ = {
        "FLUX_URI": "local:///run/flux/local",
        "PATH": "/bin",
        "FLUX_JOB_ID": "f2",
        "FLUX_JOB_CC": "7",
        "FLUX_TASK_RANK": "0",
        "FLUX_KVS_NAMESPACE": "job-1",
        "PMI_RANK": "0",
        "SLURM_JOB_ID": "12",
        "REMOTEEXEC_JOB_ID": "f2",
    }
    assert flux_script.environment(environ) == {"FLUX_URI": "local:///run/flux/local", "PATH": "/bin"}
