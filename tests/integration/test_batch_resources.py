"""Every resource of a call reaches the scheduler, or is said not to: on a real SLURM and on the embedded scheduler."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remoteexec import RemoteExecutor, TestClusterExecutor, errors
from remoteexec.config.model import ClusterConfig
from remoteexec_server.batch.base import JobSpec
from remoteexec_server.wire.resources import Resources
from tests.clusters.rootless import SlurmCluster
from tests.contract.served_queue import ServedQueue

WAIT_S = 60.0
pytestmark = pytest.mark.timeout(180)


def told() -> tuple[dict[str, str], dict[str, str], str]:
    """What SLURM says of the job this runs in, its environment, and its script."""
    shown = subprocess.run(
        ["scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]], capture_output=True, text=True, check=True
    ).stdout
    job = {key: value for key, _, value in (word.partition("=") for word in shown.split())}
    log = job["StdOut"]
    return job, dict(os.environ), Path(log).with_name("run_queue.sh").read_text()


@pytest.fixture(scope="module")
def slurm(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> Iterator[RemoteExecutor]:
    with RemoteExecutor(slurm_config) as executor:
        yield executor


@pytest.fixture
def reservation(slurm_cluster: SlurmCluster) -> Iterator[str]:
    slurm_cluster.administer(
        *("scontrol", "create", "reservation", "reservationname=ours", "starttime=now", "duration=10", "nodes=n2"),
        f"user={slurm_cluster.user}",
    )
    yield "ours"
    slurm_cluster.cancel_all()
    slurm_cluster.administer("scontrol", "delete", "reservationname=ours")


ASKED: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"threads_per_core": 3}, {"CPUs/Task": "3", "NumCPUs": "3", "NumTasks": "1"}),
    ({"gpus_per_core": 2}, {"TresPerTask": "gres:gpu:2"}),
    ({"num_nodes": 2, "memory_max": 1}, {"NumNodes": "2", "MinMemoryNode": "512M"}),
    ({"exclusive": True}, {"OverSubscribe": "NO", "NumCPUs": "4"}),
    ({"run_time_max": 61, "memory_max": 0.2}, {"TimeLimit": "00:02:00", "MinMemoryNode": "205M"}),
    ({"partition": "short"}, {"Partition": "short"}),
    ({"queue": "short"}, {"Partition": "short"}),
    ({"account": "proj-1", "priority": 77}, {"Account": "proj-1", "Priority": "77"}),
    ({"constraint": "slow&rack2"}, {"Features": "slow&rack2", "NodeList": "n2"}),
    ({"constraint": "[rack1|rack2]"}, {"Features": "[rack1|rack2]"}),
    ({"constraint": "(fast|slow)&rack1"}, {"Features": "(fast|slow)&rack1", "NodeList": "n1"}),
    ({"slurm_cmd_args": ['--comment=it\'s_#_"x"_ü', "--exclude", "n1"]}, {"NodeList": "n2", "ExcNodeList": "n1"}),
]


def test_every_resource_reaches_slurm(slurm: RemoteExecutor) -> None:
    futures = [slurm.submit(told, resource_dict=given) for given, _ in ASKED]
    seen = [future.result(WAIT_S)[0] for future in futures]

    assert [{key: job.get(key) for key in wanted} for job, (_, wanted) in zip(seen, ASKED, strict=True)] == [
        wanted for _, wanted in ASKED
    ]


@pytest.mark.parametrize(
    ("limits", "cores", "at_once"), [({"max_workers": 2}, 1, "2"), ({"max_cores": 6}, 2, "3")], ids=["jobs", "cores"]
)
def test_limits_become_that_of_an_array(
    slurm_config: ClusterConfig, limits: dict[str, Any], cores: int, at_once: str
) -> None:
    with RemoteExecutor(slurm_config, resource_dict={"threads_per_core": cores}, **limits) as executor:
        with executor._driver.gathering():
            futures = [executor.submit(told) for _ in range(8)]
        job, _, script = futures[0].result(WAIT_S)
    assert f"#SBATCH --array=0-7%{at_once}\n" in script
    assert job["ArrayTaskThrottle"] == at_once


def test_a_reservation_is_used(slurm: RemoteExecutor, reservation: str) -> None:
    job, _, _ = slurm.submit(told, resource_dict={"reservation": reservation}).result(WAIT_S)
    assert (job["Reservation"], job["NodeList"]) == ("ours", "n2")


def test_a_qos_reaches_the_script_and_an_unknown_feature_comes_back_in_slurms_words(slurm: RemoteExecutor) -> None:
    _, _, script = slurm.submit(told, resource_dict={"qos": "high"}).result(WAIT_S)
    assert "#SBATCH --qos=high\n" in script
    with pytest.raises(errors.SubmitRejected, match="Invalid feature specification"):
        slurm.submit(told, resource_dict={"constraint": "none-such"}).result(WAIT_S)


def test_name_directory_variables_and_gpus_are_the_tasks_own(
    slurm: RemoteExecutor, slurm_cluster: SlurmCluster
) -> None:
    place = slurm_cluster.make_directory("walk") / "a'; echo b ü"
    given = {
        "job_name": "energy:Ag",
        "cwd": str(place),
        "environment": {"COLOR": 'dark\n"blue" $HOME %j ü'},
        "gpus_per_core": 1,
    }
    job, environment, _ = slurm.submit(told, resource_dict=given).result(WAIT_S)

    assert job["JobName"].partition(".")[2] == "energy:Ag"
    assert slurm.submit(os.getcwd, resource_dict=given).result(WAIT_S) == str(place)
    assert environment["COLOR"] == 'dark\n"blue" $HOME %j ü'
    assert environment["CUDA_VISIBLE_DEVICES"] in ("0", "1")


def test_a_template_of_one_call_holds_for_that_call(slurm: RemoteExecutor) -> None:
    template = (
        "#!/bin/bash\n#SBATCH --ntasks={{ cores }} --time={{ run_time_minutes }}\n"
        "#SBATCH --comment={{ color }}\nexport COLOR={{ color }}\n{{ command }}\n"
    )
    given = {"submission_template": template, "run_time_max": 90, "color": "blue"}
    with pytest.warns(UserWarning, match=r"'color'\] is no resource"):
        future = slurm.submit(told, resource_dict=given)
    job, environment, _ = future.result(WAIT_S)

    assert (job["Comment"], job["TimeLimit"], environment["COLOR"]) == ("blue", "00:02:00", "blue")
    assert slurm.submit(told).result(WAIT_S)[0]["TimeLimit"] == "00:10:00"
    with pytest.raises(errors.SubmitRejected, match="its submission_template failed: TemplateSyntaxError"):
        slurm.submit(told, resource_dict={"submission_template": "{% if %}"}).result(WAIT_S)


def test_what_a_template_drops_is_said_once(slurm: RemoteExecutor, caplog: pytest.LogCaptureFixture) -> None:
    given = {"submission_template": "#!/bin/bash\n{{ command }}\n", "qos": "high", "memory_max": 0.3}
    with caplog.at_level(logging.WARNING, "remoteexec"):
        for _ in range(2):
            slurm.submit(pow, 2, 3, resource_dict=given).result(WAIT_S)

    assert [record.message for record in caplog.records] == [
        "memory_max=0.3 has no effect: the submission_template does not use it",
        "qos='high' has no effect: the submission_template does not use it",
    ]


def test_a_script_is_shown_as_it_is_submitted(slurm: RemoteExecutor) -> None:
    given = {"run_time_max": 90, "memory_max": 0.3, "job_name": "x"}
    shown = slurm.job_script(told, resource_dict=given)
    _, _, script = slurm.submit(told, resource_dict=given).result(WAIT_S)

    assert shown == re.sub(r"rx-[0-9a-f]+-[0-9]+-0", "rx-preview-0", script)
    with pytest.raises(errors.SubmitRejected, match="TemplateSyntaxError"):
        slurm.job_script(told, resource_dict={"submission_template": "{% if %}"})
    with pytest.raises(errors.SubmitRejected, match=re.escape("'--test-only'")):
        slurm.job_script(told, resource_dict={"slurm_cmd_args": ["--test-only"]})


def test_a_sites_pysqa_configuration_gives_template_and_limits(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    site = slurm_cluster.make_directory("queues")
    template = (
        "#!/bin/bash\n#SBATCH --partition=debug --ntasks={{ cores }} --time={{ [1, run_time_max // 60] | max }}\n"
    )
    for name, text in (
        (
            "queue.yaml",
            "queue_type: SLURM\nqueues: {q: {script: q.sh, cores_min: 2, cores_max: 4, run_time_max: 180}}\n",
        ),
        ("q.sh", template + "{{ command }}\n"),
    ):
        slurm_cluster.run(["tee", str(site / name)], input=text)
    with RemoteExecutor(replace(slurm_config, pysqa_config_directory=str(site))) as executor:
        job, _, _ = executor.submit(told).result(WAIT_S)
        assert (job["NumCPUs"], job["TimeLimit"]) == ("2", "00:03:00")
        assert "--ntasks=3 " in executor.job_script(told, resource_dict={"threads_per_core": 3})
        with pytest.raises(errors.SubmitRejected, match=r"run_time_max=200: queue 'q' gives 180 at most"):
            executor.submit(told, resource_dict={"run_time_max": 200}).result(WAIT_S)


def test_a_pysqa_configuration_that_is_missing_is_told_at_the_first_reach(slurm_config: ClusterConfig) -> None:
    executor = RemoteExecutor(replace(slurm_config, pysqa_config_directory="~/none"))
    with pytest.raises(errors.ConfigError, match=r"there is no directory '.*/home/none' here"):
        executor.reach()


def test_what_the_embedded_scheduler_does_not_give_out_is_said_once(
    tmp_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "remoteexec"), TestClusterExecutor(cache_directory=str(tmp_root)) as executor:
        for _ in range(2):
            executor.submit(pow, 2, 3, resource_dict={"memory_max": 2, "partition": "x"}).result(WAIT_S)
        shown = executor.job_script(pow, 2, 3, resource_dict={"threads_per_core": 2, "run_time_max": 90})

    assert [record.message for record in caplog.records] == [
        "memory_max=2 has no effect: the embedded scheduler gives out cores and time only",
        "partition='x' has no effect: the embedded scheduler gives out cores and time only",
    ]
    assert shown.startswith("#!/bin/sh\n# embedded scheduler: cores=2 run_time_max=90\n")


def test_after_the_shutdown_no_script_is_shown(tmp_root: Path) -> None:
    with TestClusterExecutor(cache_directory=str(tmp_root)) as executor:
        pass
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.job_script(pow)


def test_ranks_nodes_threads_and_gpus_reach_slurm(slurm_cluster: SlurmCluster) -> None:
    queue = ServedQueue(slurm_cluster)
    wanted = Resources(cores=3, threads_per_core=2, num_nodes=2, memory_max_gb=0.75)
    spec = JobSpec("rx-ranks-0", slurm_cluster.make_directory("rx-ranks-0"), ("true",), 1, wanted)
    gpus = JobSpec(
        "rx-ranks-1", slurm_cluster.make_directory("rx-ranks-1"), ("true",), 1, Resources(cores=2, gpus_per_core=1)
    )
    shown = []
    for each in (spec, gpus):
        text = slurm_cluster.run(["scontrol", "-o", "show", "job", queue.submit(each)]).stdout
        shown.append({key: value for key, _, value in (word.partition("=") for word in text.split())})
    queue.close()

    keys = ("NumTasks", "CPUs/Task", "NumCPUs", "MinMemoryNode", "TresPerTask")
    assert [[job.get(key) for key in keys] for job in shown] == [
        ["3", "2", "6", "384M", None],
        ["2", "1", "2", None, "gres:gpu:1"],
    ]
