"""What every queue promises (`batch.base`), asked of the embedded scheduler, of a real SLURM and of a real Flux."""

from __future__ import annotations

import fcntl
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import remoteexec_server
from remoteexec_server.batch import diagnose
from remoteexec_server.batch.base import (
    JobFacts,
    JobId,
    JobRef,
    JobSpec,
    JobState,
    Queue,
    SchedulerUnavailable,
    SubmitRejected,
)
from remoteexec_server.batch.flux_queue import FluxQueue
from remoteexec_server.batch.local_queue import LocalQueue, LocalSettings
from remoteexec_server.batch.local_spool import Spool
from remoteexec_server.wire.evidence import Usage
from remoteexec_server.wire.resources import Resources
from tests.clusters.flux import FluxInstance
from tests.clusters.rootless import SlurmCluster
from tests.contract.served_queue import ServedQueue

_numbers = itertools.count()


@dataclass
class Place:
    """A queue, and directories its jobs can use.

    Attributes:
        another: makes a second client of the same scheduler.
        time_out: ends a running job for its time limit, sooner than whole minutes.
    """

    kind: str
    queue: Queue
    make_directory: Callable[[str], Path]
    another: Callable[[], Queue]
    time_out: Callable[[JobRef], None]

    def spec(
        self, script: str, count: int = 1, after: Sequence[JobRef] = (), directory: str | None = None, **wanted: Any
    ) -> JobSpec:
        """A job that runs a shell script, with the index as $1 and the job directory as working directory."""
        name = f"rx-t{os.getpid()}-{next(_numbers)}"
        path = self.make_directory(directory or name)
        resources = Resources(**wanted)
        return JobSpec(name, path, ("/bin/sh", "-c", script, "it's sh"), count, resources, tuple(after))

    def submit(self, script: str, count: int = 1, after: Sequence[JobRef] = (), **wanted: Any) -> list[JobRef]:
        """Submit; a reference for each element."""
        job = self.queue.submit(self.spec(script, count, after, **wanted))
        return [JobRef(job, index) for index in range(count)] if count > 1 else [JobRef(job)]

    def wait(
        self,
        refs: Sequence[JobRef],
        until: Callable[[JobState], bool] = lambda state: state.ended,
        deadline_s: float = 20,
    ) -> list[JobFacts]:
        """Facts once all jobs are as wanted."""
        end = time.monotonic() + deadline_s
        while True:
            facts = self.queue.states(refs)
            if all(until(fact.state) for fact in facts.values()):
                return [facts[ref] for ref in refs]
            assert time.monotonic() < end, facts
            time.sleep(0.02)

    def wait_for_start(self, refs: Sequence[JobRef]) -> None:
        self.wait(refs, lambda state: state is JobState.RUNNING)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Place]:
    def make_directory(name: str) -> Path:
        path = tmp_path / name
        path.mkdir(mode=0o700, parents=True)
        return path

    def client() -> LocalQueue:
        return LocalQueue(tmp_path / "spo ol'", LocalSettings(cores=4, idle_s=0.2))

    def time_out(ref: JobRef) -> None:
        """Jobs of these tests that reach their limit have a short one."""

    queue = client()
    yield Place("local", queue, make_directory, client, time_out)
    fold = queue._fold.records
    queue.cancel([JobRef(job) for job in fold])
    queue.close()
    spool = Spool(tmp_path / "spo ol'")
    end = time.monotonic() + 10
    while spool.served():
        assert time.monotonic() < end, "the scheduler does not end"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def slurm_queue(slurm_cluster: SlurmCluster) -> Iterator[ServedQueue]:
    """One for all tests, so that pysqa is imported once."""
    queue = ServedQueue(slurm_cluster)
    yield queue
    queue.close()


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, slurm_queue: ServedQueue) -> Iterator[Place]:
    served: list[ServedQueue] = []

    def client() -> ServedQueue:
        served.append(ServedQueue(slurm_cluster))
        return served[-1]

    def time_out(ref: JobRef) -> None:
        slurm_cluster.end_soon(str(ref))

    def make_directory(name: str) -> Path:
        return slurm_cluster.make_directory(f"queue-{next(_numbers)}/{name}")

    yield Place("slurm", slurm_queue, make_directory, client, time_out)
    for queue in served:
        queue.close()
    slurm_cluster.cancel_all()


@pytest.fixture(scope="module")
def flux_queue(flux_instance: FluxInstance) -> Iterator[FluxQueue]:
    """One for all tests, so that pysqa is imported once."""
    queue = FluxQueue()
    yield queue
    queue.close()


@pytest.fixture
def flux(flux_instance: FluxInstance, flux_queue: FluxQueue) -> Place:
    def time_out(ref: JobRef) -> None:
        """Jobs of these tests that reach their limit have a short one."""

    def make_directory(name: str) -> Path:
        return flux_instance.make_directory(f"queue-{next(_numbers)}/{name}")

    return Place("flux", flux_queue, make_directory, FluxQueue, time_out)


@pytest.fixture(
    params=[
        "local",
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("flux", marks=pytest.mark.flux),
    ]
)
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


# ---- every queue ----


def test_a_job_runs_its_command_in_its_directory_with_index_0(place: Place) -> None:
    spec = place.spec('echo "$0|$1"; pwd; echo complaint >&2')
    ref = JobRef(place.queue.submit(spec))
    [facts] = place.wait([ref])
    assert facts.state is JobState.COMPLETED
    assert (spec.directory / "0.log").read_text() == f"it's sh|0\n{spec.directory}\ncomplaint\n"


def test_an_array_runs_each_index_with_a_log_of_its_own(place: Place) -> None:
    spec = place.spec("echo $1; exit $1", count=3)
    job = place.queue.submit(spec)
    facts = place.wait([JobRef(job, index) for index in range(3)])
    assert [fact.state for fact in facts] == [JobState.COMPLETED, JobState.FAILED, JobState.FAILED]
    assert [fact.exit_code for fact in facts[1:]] == [1, 2]
    assert [(spec.directory / f"{index}.log").read_text() for index in range(3)] == ["0\n", "1\n", "2\n"]
    assert place.queue.states([JobRef(job)])[JobRef(job)].state is JobState.FAILED


def test_the_states_of_a_life(place: Place) -> None:
    refs = place.submit("until [ -e go ]; do sleep 0.02; done", directory=f"life-{next(_numbers)}")
    place.wait_for_start(refs)
    waiting = place.submit("true", after=refs)
    assert place.queue.states(waiting)[waiting[0]].state is JobState.PENDING
    place.queue.cancel(refs)
    assert place.wait(refs)[0].state is JobState.CANCELLED
    assert place.wait(waiting)[0].state is JobState.COMPLETED


def test_a_job_the_scheduler_does_not_know_is_gone(place: Place) -> None:
    ref = JobRef(JobId("987654"))
    assert place.queue.states([ref]) == {ref: JobFacts(JobState.GONE)}
    assert place.queue.states([]) == {}
    place.queue.cancel([ref])


def test_ended_jobs_are_told_from_others_also_by_a_second_client(place: Place) -> None:
    spec = place.spec("sleep 60")
    ref = JobRef(place.queue.submit(spec))
    place.wait_for_start([ref])
    second = place.another()
    assert second.states([ref])[ref].state is JobState.RUNNING
    assert second.find(spec.name) == ref.job
    second.cancel([ref])
    assert place.wait([ref])[0].state is JobState.CANCELLED
    second.close()


def test_a_job_is_found_by_its_name_pending_running_and_ended(place: Place) -> None:
    first = place.spec("sleep 0.3", job_name="other-name")
    ref = JobRef(place.queue.submit(first))
    second = place.spec("true", count=2, after=[ref])
    dependant = place.queue.submit(second)
    assert place.queue.find(second.name) == dependant
    place.wait([ref, JobRef(dependant, 0), JobRef(dependant, 1)])
    assert place.queue.find(first.name) == ref.job
    assert place.queue.find(second.name) == dependant
    assert place.queue.find(first.name.rpartition("-")[0]) is None
    assert place.queue.find("other-name") is None


@pytest.mark.parametrize("how", ["failed", "cancelled", "finished", "forgotten"])
def test_a_dependant_starts_however_its_upstream_ended(place: Place, how: str) -> None:
    if how == "forgotten":
        upstream = [JobRef(JobId("987654"))]
    else:
        upstream = place.submit({"failed": "sleep 0.2; exit 1", "finished": "true"}.get(how, "sleep 60"))
    if how == "finished":
        place.wait(upstream)
    dependant = place.submit("true", after=upstream)
    if how == "cancelled":
        place.queue.cancel(upstream)
    assert place.wait(dependant)[0].state is JobState.COMPLETED


def test_a_dependant_waits_for_arrays_and_single_elements(place: Place) -> None:
    array = place.spec("sleep 0.$1; date +%s%N", count=3)
    job = place.queue.submit(array)
    dependant = place.spec("date +%s%N", after=[JobRef(job), JobRef(job, 1)])
    ref = JobRef(place.queue.submit(dependant))
    place.wait([JobRef(job, 2), ref])
    assert int((dependant.directory / "0.log").read_text()) > int((array.directory / "2.log").read_text())


def test_running_and_pending_elements_are_cancelled_and_others_left_alone(place: Place) -> None:
    first = place.submit("sleep 60")
    waiting = place.submit("true", count=4, after=first)
    running = place.submit("trap 'exit 3' TERM; sleep 60 & wait", count=2)
    place.wait_for_start([*first, *running])
    place.queue.states(waiting)
    place.queue.cancel([waiting[1], waiting[2], running[0]])
    assert place.wait([running[0], waiting[1], waiting[2]])[0].state is JobState.CANCELLED
    facts = place.queue.states([*waiting, *running])
    assert [facts[ref].state.value for ref in [*waiting, running[1]]] == [
        "PENDING",
        "CANCELLED",
        "CANCELLED",
        "PENDING",
        "RUNNING",
    ]
    place.queue.cancel([JobRef(running[0].job), *first, first[0]])
    assert place.wait(running)[1].state is JobState.CANCELLED
    assert [fact.state.value for fact in place.wait(waiting)] == ["COMPLETED", "CANCELLED", "CANCELLED", "COMPLETED"]


@pytest.mark.parametrize(("script", "code", "number"), [("exit 74", 74, None), ("kill -SEGV $$", None, 11)])
def test_exit_codes_and_signals_are_told(place: Place, script: str, code: int | None, number: int | None) -> None:
    [facts] = place.wait(place.submit(script))
    assert (facts.state, facts.exit_code, facts.signal) == (JobState.FAILED, code, number)


def test_a_killed_job(place: Place) -> None:
    [facts] = place.wait(place.submit("kill -KILL $$"))
    assert (facts.state, facts.signal) == (JobState.FAILED, signal.SIGKILL)


@pytest.mark.parametrize("name", ["a'; echo b", 'sp ace "q" ü # $HOME `x`', "100% %j", "back\\slash", "line\nbreak"])
def test_any_name_of_a_job_directory_will_do(place: Place, name: str) -> None:
    spec = place.spec("echo $1", count=2, directory=name)
    job = place.queue.submit(spec)
    facts = place.wait([JobRef(job, index) for index in range(2)])
    assert [fact.state for fact in facts] == [JobState.COMPLETED] * 2
    assert [(spec.directory / f"{index}.log").read_text() for index in range(2)] == ["0\n", "1\n"]


@pytest.mark.timeout(90)
def test_a_job_beyond_its_time_limit_is_ended(place: Place) -> None:
    """SLURM looks at limits every 30 s."""
    refs = place.submit("sleep 60; true", run_time_max_s=60 if place.kind == "slurm" else 0.5)
    place.wait_for_start(refs)
    place.time_out(refs[0])
    [facts] = place.wait(refs, deadline_s=60)
    assert (facts.state, facts.reason) == (JobState.TIMEOUT, "TimeLimit")


def test_resources_that_no_scheduler_may_see_are_refused(place: Place) -> None:
    with pytest.raises(SubmitRejected, match="partition='x\\\\n#SBATCH --uid=0'"):
        place.submit("true", partition="x\n#SBATCH --uid=0")


def test_closing_a_queue_leaves_its_jobs_alone(place: Place) -> None:
    second = place.another()
    ref = JobRef(second.submit(place.spec("sleep 0.3; echo done")))
    second.close()
    assert place.wait([ref])[0].state is JobState.COMPLETED


def test_an_idle_queue_may_be_prewarmed_and_closed_at_any_time(place: Place) -> None:
    second = place.another()
    second.prewarm()
    second.close()
    assert place.queue.name.split()[0] == place.kind
    assert place.queue.max_array() > 1000


# ---- SLURM ----


def flaky(directory: Path, command: str, every: int, script: str) -> None:
    """Put a wrapper of a command into a directory that runs `script` instead at every n-th call."""
    wrapper = directory / command
    count = directory / f"{command}.count"
    wrapper.write_text(
        f"#!/bin/bash\nn=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}\n"
        f'if [ $(((n + 1) % {every})) = 0 ]; then {script}; fi\nexec /usr/bin/{command} "$@"\n'
    )
    wrapper.chmod(0o755)
    directory.chmod(0o777)


@pytest.fixture
def wrapped(slurm: Place, slurm_cluster: SlurmCluster) -> Iterator[Callable[..., Place]]:
    """A place whose queue finds wrappers first."""
    queues: list[ServedQueue] = []
    directory = slurm_cluster.make_directory(f"wrappers-{next(_numbers)}")

    def make(command: str, every: int, script: str, timeout_s: float = 30.0) -> Place:
        flaky(directory, command, every, script)
        path = f"{directory}:{slurm_cluster.environment['PATH']}"
        queues.append(ServedQueue(slurm_cluster, timeout_s, PATH=path))
        return Place("slurm", queues[-1], slurm.make_directory, slurm.another, slurm.time_out)

    yield make
    for queue in queues:
        queue.close()


def test_slurm_refuses_in_its_own_words(slurm: Place) -> None:
    spec = slurm.spec("true", partition="nowhere")
    with pytest.raises(SubmitRejected) as caught:
        slurm.queue.submit(spec)
    assert str(caught.value) == (
        f"sbatch refused job {spec.name}: invalid partition specified: nowhere / Batch job submission failed: "
        f"Invalid partition name specified (exit code 1). See partition=…: `sinfo` lists those there are; "
        f"its script is {spec.directory / 'run_queue.sh'}"
    )
    assert not caught.value.dependency
    with pytest.raises(SubmitRejected, match="unrecognized option '--no-such-thing'"):
        slurm.submit("true", slurm_cmd_args=("--no-such-thing",))


def test_slurm_counts_what_was_asked_for(slurm: Place, slurm_cluster: SlurmCluster) -> None:
    refs = slurm.submit(
        "sleep 60", cores=2, threads_per_core=2, run_time_max_s=61, memory_max_gb=0.2, slurm_cmd_args=("--nice=7",)
    )
    shown = slurm_cluster.run(["scontrol", "-o", "show", "job", str(refs[0])]).stdout
    for field in ("NumCPUs=4", "NumTasks=2", "CPUs/Task=2", "TimeLimit=00:02:00", "MinMemoryNode=205M", "Nice=7"):
        assert f" {field} " in shown
    assert " Requeue=0 " in shown


def test_a_users_template_may_say_what_it_likes_of_name_log_and_dependencies(slurm: Place) -> None:
    template = (
        "#!/bin/bash\n#SBATCH --output=time.out\n#SBATCH --job-name=mine\n#SBATCH --array=0-1\n"
        "{%- if dependency_list %}\n#SBATCH --dependency=afterok:{{ dependency_list | join(',') }}\n{%- endif %}\n"
        "echo {{ partition }} {{ color }}\n{{ command }}\n"
    )
    failing = slurm.submit("exit 1")
    spec = slurm.spec("echo $1", 3, failing, partition="debug", submission_template=template, extra={"color": "blue"})
    job = slurm.queue.submit(spec)
    assert slurm.queue.find(spec.name) == job
    assert {fact.state for fact in slurm.wait([JobRef(job, i) for i in range(3)])} == {JobState.COMPLETED}
    assert (spec.directory / "2.log").read_text() == "debug blue\n2\n"


def test_a_template_that_cannot_be_rendered_is_refused(slurm: Place) -> None:
    with pytest.raises(SubmitRejected, match=r"its submission_template failed: TemplateSyntaxError"):
        slurm.submit("true", submission_template="{% if %}")


def test_the_users_variables_do_not_overrule_the_job(slurm: Place, slurm_cluster: SlurmCluster) -> None:
    variables: Any = {
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_JOB_NAME": "other",
        "SBATCH_ARRAY_INX": "5",
        "SQUEUE_STATES": "F",
    }
    queue = ServedQueue(slurm_cluster, SLURM_JOB_ID="1", SLURM_ARRAY_TASK_ID="7", **variables)
    spec = slurm.spec("echo $1; env | grep -c ^SLURM_ARRAY_TASK_ID", partition="debug")
    ref = JobRef(queue.submit(spec))
    assert queue.find(spec.name) == ref.job
    slurm.wait([ref])
    queue.close()
    assert (spec.directory / "0.log").read_text() == "0\n0\n"


def test_an_sbatch_that_fails_for_now_is_no_refusal(wrapped: Callable[..., Place]) -> None:
    words = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    place = wrapped("sbatch", 2, f"echo '{words}' >&2; exit 1")
    place.submit("true")
    with pytest.raises(SchedulerUnavailable, match="Unable to contact slurm controller"):
        place.submit("true")
    place.submit("true")


def test_an_sbatch_that_lies_is_found_out(wrapped: Callable[..., Place]) -> None:
    """It says that it timed out, and the job runs."""
    lie = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
    place = wrapped("sbatch", 1, f'/usr/bin/sbatch "$@"; {lie}')
    spec = place.spec("true")
    with pytest.raises(SchedulerUnavailable, match="Socket timed out"):
        place.queue.submit(spec)
    assert place.queue.find(spec.name) is not None


def test_a_command_that_hangs_is_given_up(wrapped: Callable[..., Place]) -> None:
    place = wrapped("sbatch", 2, "exec sleep 60", timeout_s=0.5)
    refs = place.submit("true")
    before = time.monotonic()
    with pytest.raises(SchedulerUnavailable, match="sbatch did not answer in time"):
        place.submit("true")
    assert time.monotonic() - before < 5
    place.wait(refs)


def test_a_squeue_that_fails_now_and_then_tells_nothing_wrong(wrapped: Callable[..., Place]) -> None:
    place = wrapped("squeue", 3, "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1")
    refs = place.submit("sleep 60")
    answers: list[bool | str] = []
    for _ in range(6):
        try:
            answers.append(place.queue.states(refs)[refs[0]].state.ended)
        except SchedulerUnavailable as exc:
            answers.append(str(exc))
    failure = "squeue failed with exit code 1: slurm_load_jobs error: Socket timed out on send/recv operation"
    assert answers == [False, False, failure, False, False, failure]


def test_what_squeue_has_forgotten_is_asked_of_sacct_where_there_is_accounting(
    slurm: Place, slurm_cluster: SlurmCluster
) -> None:
    """The database is played by a wrapper: a rootless cluster has none."""
    directory = slurm_cluster.make_directory(f"wrappers-{next(_numbers)}")
    line = "987654_3|OUT_OF_MEMORY|0:125|0:0|n2|OutOfMemory|61|2|200M||rx-old-1.energy"
    flaky(directory, "sacct", 1, f"echo '{line}'; exit")
    flaky(
        directory,
        "scontrol",
        1,
        '/usr/bin/scontrol "$@" | sed s,accounting_storage/none,accounting_storage/slurmdbd,; exit',
    )
    queue = ServedQueue(slurm_cluster, PATH=f"{directory}:{slurm_cluster.environment['PATH']}")
    known, unknown = JobRef(JobId("987654"), 3), JobRef(JobId("987654"), 4)
    assert queue.states([known, unknown]) == {
        known: JobFacts(JobState.OUT_OF_MEMORY, "OutOfMemory", "n2", None, 125, usage=Usage(61, 120, None, 200 << 20)),
        unknown: JobFacts(JobState.GONE),
    }
    assert (queue.find("rx-old-1"), queue.find("rx-old")) == ("987654", None)
    queue.close()


def test_a_missing_command_is_said_so(slurm: Place, slurm_cluster: SlurmCluster) -> None:
    queue = ServedQueue(slurm_cluster, PATH="/nowhere")
    with pytest.raises(SubmitRejected, match=r"sbatch cannot be run on this machine: .*PATH is /nowhere"):
        queue.submit(slurm.spec("true"))
    with pytest.raises(SchedulerUnavailable, match="squeue cannot be run"):
        queue.states([JobRef(JobId("1"))])
    queue.close()


def test_a_helper_that_was_killed_is_replaced(slurm: Place, slurm_cluster: SlurmCluster) -> None:
    assert isinstance(slurm.queue, ServedQueue)
    slurm.submit("true")
    first = slurm.queue.helper_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    slurm.submit("true")
    assert slurm.queue.helper_pid not in (None, first)


def test_a_helper_that_hangs_is_given_up_and_replaced(slurm_cluster: SlurmCluster, slurm: Place) -> None:
    queue = ServedQueue(slurm_cluster, timeout_s=0.5)  # and some more for the helper itself
    spec = slurm.spec("true")
    queue.submit(slurm.spec("true"))
    first = queue.helper_pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(SchedulerUnavailable, match="did not answer in time"):
        queue.submit(spec)
    queue.submit(spec)
    queue.close()


def test_the_controller_is_away_for_a_while(slurm: Place, slurm_cluster: SlurmCluster) -> None:
    """Its own commands take up to half a minute to say so: they are given less."""
    queue = ServedQueue(slurm_cluster, timeout_s=1)
    refs = slurm.submit("sleep 60")
    slurm_cluster.stop_controller()
    with pytest.raises(SchedulerUnavailable):
        queue.states(refs)
    with pytest.raises(SchedulerUnavailable):
        queue.submit(slurm.spec("true"))
    slurm_cluster.start_controller()
    slurm.wait_for_start(refs)
    queue.close()


def test_a_node_that_fails(slurm: Place, slurm_cluster: SlurmCluster) -> None:
    refs = slurm.submit("sleep 60", slurm_cmd_args=("--nodelist=n2",))
    slurm.wait_for_start(refs)
    slurm_cluster.down("n2")
    [facts] = slurm.wait(refs)
    assert (facts.state, facts.node) == (JobState.NODE_FAIL, "n2")


def test_what_slurm_says_of_a_killed_job_is_understood(slurm: Place, slurm_cluster: SlurmCluster) -> None:
    """From the facts and the log to the loss."""
    greedy = slurm.spec(
        f"exec {slurm_cluster.python} -c 'x = b\"x\" * 400_000_000; import time; time.sleep(60)'", memory_max_gb=0.1
    )
    refs = [JobRef(slurm.queue.submit(greedy)), *slurm.submit("sleep 60")]
    slurm.wait_for_start(refs[1:])
    slurm.queue.cancel(refs[1:])
    facts = slurm.wait(refs, deadline_s=40)
    log = (greedy.directory / "0.log").read_text()
    losses = [
        diagnose.loss(facts[0], refs[0], log, None, greedy.resources),
        diagnose.loss(facts[1], refs[1], "", None),
    ]
    assert [loss.reason for loss in losses if loss is not None] == ["out_of_memory", "cancelled"]


# ---- the embedded scheduler ----


def scheduler_pid(place: Place) -> int:
    """The process of the local scheduler."""
    assert isinstance(place.queue, LocalQueue)
    return holder_of(place.queue._spool.lock)


def kill_scheduler(place: Place) -> None:
    """Return once it is dead."""
    assert isinstance(place.queue, LocalQueue)
    os.kill(scheduler_pid(place), signal.SIGKILL)
    while place.queue._spool.served():
        time.sleep(0.001)


def holder_of(path: Path) -> int:
    """The process that has a file open. (The lock was taken before a fork: /proc/locks names one that is gone.)"""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == str(path) for fd in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"nobody has {path}")


def test_a_job_larger_than_the_machine_is_refused(local: Place) -> None:
    spec = local.spec("true", cores=3, threads_per_core=2)
    with pytest.raises(SubmitRejected) as caught:
        local.queue.submit(spec)
    assert str(caught.value) == (
        f"job {spec.name} is larger than this machine: it asks for 6 cores, the local scheduler has 4"
    )


def test_no_more_runs_at_once_than_there_are_cores(local: Place) -> None:
    spec = local.spec("echo + >> all; sleep 0.05; echo - >> all", count=12, threads_per_core=2)
    job = local.queue.submit(spec)
    local.wait([JobRef(job, index) for index in range(12)])
    marks = (spec.directory / "all").read_text().split()
    running = list(itertools.accumulate(1 if mark == "+" else -1 for mark in marks))
    assert (len(marks), max(running)) == (24, 2)


def test_processes_left_behind_by_a_job_are_ended_with_it(local: Place) -> None:
    spec = local.spec("sleep 60 & echo $!")
    local.wait([JobRef(local.queue.submit(spec))])
    assert not Path(f"/proc/{(spec.directory / '0.log').read_text().strip()}/cwd").exists()


def test_a_job_that_ignores_sigterm_is_killed(local: Place) -> None:
    refs = local.submit("trap '' TERM; while :; do sleep 0.1; done")
    local.wait_for_start(refs)
    local.queue.cancel(refs)
    [facts] = local.wait(refs)
    assert (facts.state, facts.signal) == (JobState.CANCELLED, signal.SIGKILL)


def test_a_command_that_cannot_be_started(local: Place) -> None:
    spec = local.spec("true")
    ref = JobRef(local.queue.submit(JobSpec(spec.name, spec.directory, ("/no/such",), 1, spec.resources)))
    [facts] = local.wait([ref])
    assert (facts.state, facts.reason) == (
        JobState.FAILED,
        "launch failed: [Errno 2] No such file or directory: '/no/such'",
    )


def test_the_job_knows_its_number_and_has_its_submitters_environment(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOR", "blue")
    spec = local.spec('echo "$REMOTEEXEC_JOB_ID $COLOR"', count=2)
    job = local.queue.submit(spec)
    local.wait([JobRef(job, 0), JobRef(job, 1)])
    assert (spec.directory / "1.log").read_text() == f"{job}_1 blue\n"


def test_a_scheduler_killed_is_followed_by_one_that_takes_over(local: Place) -> None:
    """What runs goes on and is waited for, what waits is started, what died meanwhile is told as lost."""
    surviving = local.spec("until [ -e go ]; do sleep 0.02; done")
    dying = local.spec("echo $$; sleep 60")
    refs = [JobRef(local.queue.submit(surviving)), JobRef(local.queue.submit(dying)), *local.submit("true", cores=4)]
    local.wait_for_start(refs[:2])
    log = dying.directory / "0.log"
    while not (log.exists() and log.read_text()):  # a start is noted just before it is made
        time.sleep(0.01)
    kill_scheduler(local)
    os.killpg(int(log.read_text()), signal.SIGKILL)
    local.wait(refs[1:2])
    assert local.queue.states(refs)[refs[0]].state is JobState.RUNNING
    (surviving.directory / "go").touch()
    assert [fact.state for fact in local.wait(refs)] == [
        JobState.COMPLETED,
        JobState.NODE_FAIL,
        JobState.COMPLETED,
    ]


def test_a_process_whose_number_was_not_noted_is_found_again(local: Place) -> None:
    """The scheduler was killed between starting a process and writing down which it is."""
    assert isinstance(local.queue, LocalQueue)
    spec = local.spec("until [ -e go ]; do sleep 0.02; done", count=2)
    job = local.queue.submit(spec)
    refs = [JobRef(job, 0), JobRef(job, 1)]
    local.wait_for_start(refs)
    events = local.queue._spool.events
    while events.read_text().count('"e":"run"') < 2:
        time.sleep(0.01)
    kill_scheduler(local)
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(line for line in lines if '"e":"run"' not in line))
    second = local.another()
    assert [fact.state for fact in second.states(refs).values()] == [JobState.RUNNING] * 2
    (spec.directory / "go").touch()
    local.queue = second
    assert [fact.state for fact in local.wait(refs)] == [JobState.COMPLETED] * 2


def test_a_job_taken_over_is_cancelled_and_limited_like_others(local: Place) -> None:
    cancelled = local.submit("sleep 60")
    limited = local.submit("sleep 60", run_time_max_s=1)
    local.wait_for_start([*cancelled, *limited])
    kill_scheduler(local)
    local.queue.cancel(cancelled)
    assert [fact.state for fact in local.wait([*cancelled, *limited])] == [JobState.CANCELLED, JobState.TIMEOUT]


def test_the_scheduler_outlives_the_process_that_started_it(local: Place, tmp_path: Path) -> None:
    assert isinstance(local.queue, LocalQueue)
    spec = local.spec("sleep 0.3; echo done")
    code = (
        "import sys, pickle\nfrom pathlib import Path\nfrom remoteexec_server.batch.local_queue import *\n"
        "print(LocalQueue(Path(sys.argv[1]), LocalSettings(4, 0.2)).submit(pickle.load(sys.stdin.buffer)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(local.queue._spool.path)],
        input=pickle.dumps(spec),
        env={**os.environ, "PYTHONPATH": str(Path(remoteexec_server.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert local.wait([JobRef(JobId(done.stdout.decode().strip()))])[0].state is JobState.COMPLETED
    assert (spec.directory / "0.log").read_text() == "done\n"


def test_the_scheduler_ends_when_idle_and_comes_back(local: Place) -> None:
    assert isinstance(local.queue, LocalQueue)
    first = local.submit("true")
    local.wait(first)
    end = time.monotonic() + 10
    while local.queue._spool.served():
        assert time.monotonic() < end
        time.sleep(0.02)
    second = local.submit("true")
    assert [fact.state for fact in local.wait([*first, *second])] == [JobState.COMPLETED] * 2


def test_a_request_that_comes_as_the_scheduler_leaves_is_not_lost(local: Place) -> None:
    """The inbox is looked into once more after the scheduler has stopped to listen."""
    assert isinstance(local.queue, LocalQueue)
    for _ in range(6):
        local.wait(local.submit("true"))
        time.sleep(0.195)  # about the time it takes to leave


def test_two_schedulers_do_not_serve_one_spool(local: Place) -> None:
    assert isinstance(local.queue, LocalQueue)
    refs = local.submit("sleep 60")
    local.wait_for_start(refs)
    lock = os.open(local.queue._spool.lock, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    second = local.another()
    assert isinstance(second, LocalQueue)
    second._start()
    assert scheduler_pid(local) > 0
    second.close()


def test_a_thousand_elements_are_cheap(local: Place) -> None:
    """1.1 ms each on the two cores where it was written; 10 ms allowed."""
    spec = local.spec("", count=1000)
    before = time.monotonic()
    job = local.queue.submit(JobSpec(spec.name, spec.directory, ("/bin/true",), 1000, spec.resources))
    assert time.monotonic() - before < 2
    facts = local.wait([JobRef(job, index) for index in range(1000)], deadline_s=10)
    assert {fact.state for fact in facts} == {JobState.COMPLETED}
