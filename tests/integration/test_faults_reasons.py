"""Why a task was lost, told with the scheduler's facts, on a real SLURM; and a scheduler whose questions fail."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remoteexec import errors
from remoteexec.config.model import ClusterConfig
from tests.clusters.rootless import SlurmCluster
from tests.integration.faults import (
    FAILS_EVERY_SECOND_TIME,
    PROMPT_S,
    executions,
    outcome_within,
    placed,
    with_wrappers,
)
from tests.integration.running import running


def hold(path: str, megabytes: int = 0) -> int:
    """Say where this runs, and stay."""
    partial = Path(f"{path}.new")
    partial.write_text(
        json.dumps([os.environ["SLURM_JOB_ID"], os.environ["SLURMD_NODENAME"], os.getpid(), os.getppid()])
    )
    block = b"x" * (megabytes << 20)
    partial.rename(path)
    time.sleep(100)
    return len(block)


def follow(value: Any) -> Any:
    return value


def record(path: str, number: int) -> int:
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


def lost(exc: BaseException | None) -> errors.TaskLost:
    assert isinstance(exc, errors.TaskLost), exc
    return exc


def test_a_task_that_is_killed_says_what_it_had_used_and_what_it_might_use(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"used-{time.time_ns()}") / "place"
    with running(slurm_config) as exe:
        future = exe.submit(hold, str(path), 60, resource_dict={"run_time_max": 120, "memory_max": 0.4})
        os.kill(placed(path).pid, signal.SIGKILL)
        exc = lost(outcome_within(future, PROMPT_S))
    usage = exc.evidence.usage
    assert type(exc) is errors.TaskKilled
    assert (exc.evidence.state, usage.time_limit_s, usage.memory_limit_bytes) == ("FAILED", 120, 410 << 20)
    assert usage.memory_bytes is not None
    assert 60 << 20 < usage.memory_bytes < 400 << 20
    assert usage.time_s is not None
    assert usage.time_s < 60
    assert "memory_max 0.4 GB; used 0." in str(exc)


def test_a_task_that_ran_out_of_memory_is_told_how_much_to_try(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    path = slurm_cluster.make_directory(f"more-{time.time_ns()}") / "place"
    with running(slurm_config) as exe:
        exc = lost(outcome_within(exe.submit(hold, str(path), 300, resource_dict={"memory_max": 0.1}), 30))
    assert type(exc) is errors.TaskOutOfMemory
    assert exc.evidence.suggestion.startswith("memory_max=0.1 -> try 0.")
    assert exc.evidence.usage.memory_limit_bytes == 103 << 20


def test_a_time_limit_is_told_with_the_time_it_ran(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> None:
    path = slurm_cluster.make_directory(f"limit-{time.time_ns()}") / "place"
    with running(slurm_config) as exe:
        future = exe.submit(hold, str(path), resource_dict={"run_time_max": 90})
        slurm_cluster.end_soon(placed(path).job)
        exc = lost(outcome_within(future, 60))
    assert (type(exc), exc.evidence.state, exc.evidence.reason) == (errors.TaskTimeout, "TIMEOUT", "TimeLimit")
    assert exc.evidence.suggestion == "run_time_max=90 -> try 180"
    assert exc.evidence.usage.time_s is not None


def test_a_job_that_can_never_start_says_why_and_what_to_change(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    with running(slurm_config) as exe:
        future = exe.submit(follow, 1, resource_dict={"partition": "short", "run_time_max": 3000})
        exc = lost(outcome_within(future, PROMPT_S))
    assert (type(exc), exc.evidence.state, exc.evidence.reason) == (
        errors.TaskRejected,
        "PENDING",
        "PartitionTimeLimit",
    )
    assert exc.evidence.suggestion.startswith("run_time_max=3000: `sinfo")
    assert exc.job is not None


@pytest.mark.parametrize(
    ("asked", "against"),
    [
        ({"num_nodes": 50}, "num_nodes=50, and partition debug has 2 ("),
        ({"cores": 1000}, "1000 CPUs (cores x threads_per_core), and partition debug has 8 ("),
    ],
    ids=repr,
)
@pytest.mark.parametrize("pilots", [False, True], ids=["job", "pilot"])
def test_what_the_cluster_has_not_is_lost_at_once_with_both_numbers(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, asked: dict[str, Any], against: str, pilots: bool
) -> None:
    options: dict[str, Any] = {"block_allocation": True, "max_workers": 1} if pilots else {}
    with running(slurm_config, resource_dict=asked, **options) as exe:
        exc = lost(outcome_within(exe.submit(follow, 1), 60))
    assert (type(exc), exc.evidence.reason) == (errors.TaskRejected, "PartitionConfig")
    assert against in str(exc)
    assert slurm_cluster.run(["squeue", "--noheader"]).stdout == ""


def test_what_needs_a_node_that_is_down_keeps_its_place(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    slurm_cluster.kill_node(slurm_cluster.nodes[0])  # while its slurmd lives, that may report it up again
    with running(slurm_config) as exe:
        future = exe.submit(follow, 1, resource_dict={"num_nodes": 2})
        assert concurrent.futures.wait([future], 4).not_done
        slurm_cluster.resume(*slurm_cluster.nodes)
        assert future.result(60) == 1


def crash(words: str) -> None:
    os.write(2, f"{words}\n".encode())
    os._exit(3)


@pytest.mark.parametrize("count", [1, 2])
def test_the_log_has_the_last_words_whatever_was_asked_for(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, count: int
) -> None:
    elsewhere = slurm_cluster.make_directory(f"elsewhere-{time.time_ns()}")
    arguments = [f"--error={elsewhere}/e", f"-o{elsewhere}/o"]
    with running(slurm_config, resource_dict={"slurm_cmd_args": arguments}) as exe:
        with exe._driver.gathering():
            futures = [exe.submit(crash, f"last words {n}") for n in range(count)]
        excs = [lost(future.exception(60)) for future in futures]
    assert [f"last words {n}" in exc.log_tail for n, exc in enumerate(excs)] == [True] * count
    assert list(elsewhere.iterdir()) == []


def test_a_log_that_cannot_be_opened_on_the_node_is_told_as_a_job_that_never_started(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    """The command line of sbatch names the log, so it is the job's directory that is taken away."""
    slurm_cluster.drain(slurm_cluster.nodes[0])
    slurm_cluster.drain(slurm_cluster.nodes[1])
    with running(slurm_config) as exe:
        future = exe.submit(follow, 1)
        assert exe._driver.wait_sent(20)
        sessions = Path(slurm_config.root).glob("sessions/*/jobs")
        jobs = max(sessions, key=lambda path: path.stat().st_mtime)
        jobs.rename(jobs.with_name("away"))
        try:
            slurm_cluster.resume(*slurm_cluster.nodes)
            exc = lost(outcome_within(future, PROMPT_S))
        finally:
            if jobs.exists():
                shutil.rmtree(jobs)
            jobs.with_name("away").rename(jobs)
    assert type(exc) is errors.TaskNeverStarted


def test_a_python_that_the_node_does_not_have_is_told(slurm_config: ClusterConfig) -> None:
    """Some sites have other software on the nodes than on the login node."""
    template = "#!/bin/bash\nexec /no/such/python {{ command }}\n"
    with running(slurm_config) as exe:
        future = exe.submit(follow, 1, resource_dict={"submission_template": template})
        exc = lost(outcome_within(future, PROMPT_S))
        assert exe.submit(follow, 2).result(20) == 2
    assert (type(exc), exc.exit_code) == (errors.TaskPythonMissing, 127)
    assert "/no/such/python: No such file or directory" in str(exc)


@pytest.mark.parametrize(
    ("module", "text", "kind"),
    [
        ("cloudpickle", "raise ModuleNotFoundError(\"No module named 'cloudpickle'\")", errors.TaskImportError),
        ("json", "raise ImportError('a broken installation')", errors.TaskImportError),
    ],
    ids=["of the runner's child", "of the runner"],
)
def test_a_module_of_ours_that_is_missing_on_the_node_is_told(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, module: str, text: str, kind: type[errors.TaskLost]
) -> None:
    shadow = slurm_cluster.make_directory(f"shadow-{time.time_ns()}")
    (shadow / f"{module}.py").write_text(text)
    with running(slurm_config) as exe:
        template = f"#!/bin/bash\nexport PYTHONPATH={shadow}\nexec {{{{ command }}}}\n"
        future = exe.submit(follow, 1, resource_dict={"submission_template": template})
        exc = lost(outcome_within(future, PROMPT_S))
    assert (type(exc), exc.reason) == (kind, "import_error")
    assert text.partition("(")[2][1:-2] in exc.log_tail


def test_a_store_that_the_node_does_not_have_is_told(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> None:
    template = '#!/bin/bash\nset -- {{ command }}\nexec "${@:1:3}" /not/mounted/here 0\n'
    with running(slurm_config) as exe:
        exc = lost(outcome_within(exe.submit(follow, 1, resource_dict={"submission_template": template}), PROMPT_S))
    assert type(exc) is errors.TaskStoreUnreachable
    assert "/not/mounted/here" in str(exc)


# ---- questions that fail ----

ACCOUNTING = """
"$real" "$@" | sed 's/^AccountingStorageType .*/AccountingStorageType   = accounting_storage\\/slurmdbd/'
exit ${PIPESTATUS[0]}
"""
"""A cluster with accounting, as far as its configuration goes."""
NEVER = (
    "echo \"$@\" >>$state/asked; echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1"
)


def test_a_sacct_that_fails_leaves_the_explanation_to_scontrol(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    config, state = with_wrappers(slurm_cluster, slurm_config, scontrol=ACCOUNTING, sacct=NEVER)
    with running(config) as exe:
        future = exe.submit(hold, str(state / "place"))
        place = placed(state / "place")
        os.kill(place.pid, signal.SIGKILL)
        exc = lost(outcome_within(future, PROMPT_S))
        assert exe.submit(follow, 2).result(20) == 2
    assert (type(exc), exc.exit_code) == (errors.TaskKilled, 137)
    assert len((state / "asked").read_text().splitlines()) >= 2


@pytest.mark.parametrize("command", ["scontrol", "scancel"])
def test_a_command_that_fails_every_second_time_costs_time_alone(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig, command: str
) -> None:
    config, state = with_wrappers(slurm_cluster, slurm_config, **{command: FAILS_EVERY_SECOND_TIME})
    for node in slurm_cluster.nodes:
        slurm_cluster.drain(node)
    with running(config) as exe:
        waits = [exe.submit(record, str(state / "lines"), n) for n in range(3)]
        assert exe._driver.wait_sent(20)
        assert waits[1].cancel()
        slurm_cluster.wait(
            lambda: len(slurm_cluster.run(["squeue", "-h", "--array"]).stdout.splitlines()) == 2,
            "the cancelled task is still in the queue",
        )
        slurm_cluster.resume(*slurm_cluster.nodes)
        assert [waits[0].result(20), waits[2].result(20)] == [0, 2]
        killed = exe.submit(hold, str(state / "place"))
        os.kill(placed(state / "place").pid, signal.SIGKILL)
        exc = lost(outcome_within(killed, PROMPT_S))
        assert (type(exc), exc.exit_code) == (errors.TaskKilled, 137)
    assert executions(state / "lines") == {0: 1, 2: 1}


FULL = """
if mkdir $state/refused-1 2>/dev/null || mkdir $state/refused-2 2>/dev/null; then
    echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2
    echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)' >&2
    exit 1
fi
exec "$real" "$@"
"""


def test_a_quota_that_is_full_for_a_while_delays_the_task_alone(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    config, state = with_wrappers(slurm_cluster, slurm_config, sbatch=FULL)
    with running(replace(config, poll_s=1.0)) as exe:
        assert exe.submit(record, str(state / "lines"), 7).result(30) == 7
    assert (state / "refused-2").exists()
    assert executions(state / "lines") == {7: 1}
