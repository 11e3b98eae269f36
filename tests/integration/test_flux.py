"""What is Flux's own: refusals, exceptions, instances for ranks and templates, commands that fail halfway."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from remoteexec import FluxClusterExecutor, RemoteExecutor
from remoteexec.deploy import probe
from remoteexec.ssh.fabric_link import FabricLink
from remoteexec_server.batch import diagnose
from remoteexec_server.batch.base import (
    JobFacts,
    JobId,
    JobRef,
    JobSpec,
    JobState,
    SchedulerUnavailable,
    SubmitRejected,
)
from remoteexec_server.batch.flux_queue import FluxQueue
from remoteexec_server.batch.pysqa_client import HelperSettings
from remoteexec_server.wire.resources import Resources
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.flux import FluxInstance
from tests.integration.conftest import installed

_numbers = itertools.count()
FLUX = shutil.which("flux")


@dataclass
class Jobs:
    """A queue, and jobs for it."""

    queue: FluxQueue
    instance: FluxInstance

    def spec(self, script: str, count: int = 1, at_once: int | None = None, **wanted: Any) -> JobSpec:
        name = f"rx-f{os.getpid()}-{next(_numbers)}"
        command = ("/bin/sh", "-c", script, "sh")
        resources = Resources(**wanted)
        return JobSpec(name, self.instance.make_directory(name), command, count, resources, at_once=at_once)

    def ended(self, refs: list[JobRef], deadline_s: float = 30) -> list[JobFacts]:
        """Facts once all have ended."""
        end = time.monotonic() + deadline_s
        while True:
            facts = self.queue.states(refs)
            if all(fact.state.ended for fact in facts.values()):
                return [facts[ref] for ref in refs]
            assert time.monotonic() < end, facts
            time.sleep(0.1)

    def run(self, spec: JobSpec) -> list[str]:
        """Submit; the logs of all elements once they have ended."""
        job = self.queue.submit(spec)
        refs = [JobRef(job, index) for index in range(spec.count)] if spec.count > 1 else [JobRef(job)]
        assert {fact.state for fact in self.ended(refs)} == {JobState.COMPLETED}
        return [(spec.directory / f"{index}.log").read_text() for index in range(spec.count)]


@pytest.fixture(scope="module")
def queue(flux_instance: FluxInstance) -> Iterator[FluxQueue]:
    queue = FluxQueue(HelperSettings(timeout_s=10.0))
    yield queue
    queue.close()


@pytest.fixture
def jobs(queue: FluxQueue, flux_instance: FluxInstance) -> Jobs:
    return Jobs(queue, flux_instance)


@pytest.fixture
def wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flux_instance: FluxInstance) -> Any:
    """Put a wrapper of `flux` before it on PATH, which runs this for one of its subcommands."""

    def wrap(subcommand: str, script: str) -> None:
        wrapper = tmp_path / "flux"
        wrapper.write_text(
            f'#!/bin/bash\nflux={FLUX}\nif [ "$1" = {subcommand} ]; then {script}; fi\nexec $flux "$@"\n'
        )
        wrapper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return wrap


def test_flux_refuses_in_its_own_words(jobs: Jobs) -> None:
    spec = jobs.spec("true", partition="nowhere")
    with pytest.raises(SubmitRejected) as caught:
        jobs.queue.submit(spec)
    assert str(caught.value) == (
        f"flux refused job {spec.name}: [Errno 22] 'nowhere' is not a valid queue (exit code 1); "
        f"its script is {spec.directory / 'run_queue.sh'}"
    )
    assert not caught.value.dependency


def test_what_no_node_has_is_told_by_the_job(jobs: Jobs) -> None:
    spec = jobs.spec("true", threads_per_core=99)
    ref = JobRef(jobs.queue.submit(spec))
    [facts] = jobs.ended([ref])
    assert facts.state is JobState.FAILED
    assert facts.reason.startswith("BadConstraints: unsatisfiable request")
    loss = diagnose.loss(facts, ref, "", None, spec.resources)
    assert loss is not None
    assert "unsatisfiable request" in loss.message


def test_ranks_are_started_in_an_instance_over_all_nodes(jobs: Jobs) -> None:
    script = "echo $1 $REMOTEEXEC_JOB_ID; flux run -n 4 sh -c 'echo $FLUX_TASK_RANK of $FLUX_JOB_NNODES'"
    spec = jobs.spec(script, cores=4, num_nodes=2)
    job = jobs.queue.submit(spec)
    jobs.ended([JobRef(job)])
    first, *ranks = (spec.directory / "0.log").read_text().splitlines()
    assert (first, sorted(ranks)) == (f"0 {job}", [f"{rank} of 2" for rank in range(4)])


def test_a_template_is_read_by_flux_and_runs_for_each_element(jobs: Jobs) -> None:
    template = (
        "#!/bin/sh\n# flux: -n {{ cores }} --job-name=mine --output=time.out\n"
        "# flux: --time-limit={{ run_time_max }}s\n"
        "{%- for job in dependency_list %}\n# flux: --dependency=afterok:{{ job }}\n{%- endfor %}\n"
        "echo {{ color }}\n{{ command }}\n"
    )
    spec = jobs.spec("echo $1", 2, submission_template=template, run_time_max_s=30, extra={"color": "blue"})
    failing = jobs.spec("exit 1", 2)
    upstream = jobs.queue.submit(failing)
    logs = jobs.run(
        replace(spec, after=(JobRef(upstream),))
    )  # what the template prints goes another way, so that either may come first
    assert [sorted(log.split()) for log in logs] == [["0", "blue"], ["1", "blue"]]
    assert jobs.queue.find(spec.name) == spec.name


def test_no_more_elements_run_at_once_than_may(jobs: Jobs) -> None:
    spec = jobs.spec("echo + >> all; sleep 0.3; echo - >> all; echo $1", 7, at_once=2)
    assert jobs.run(spec) == [f"{index}\n" for index in range(7)]
    marks = (spec.directory / "all").read_text().split()
    running = list(itertools.accumulate(1 if mark == "+" else -1 for mark in marks))
    assert (len(marks), max(running)) == (14, 2)


def test_resources_are_those_that_were_asked_for(jobs: Jobs) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES; flux jobs -no '{ncores} {nnodes} {duration} {urgency}' $REMOTEEXEC_JOB_ID"
    full = Resources(threads_per_core=2, gpus_per_core=1, run_time_max_s=118.5, priority=9, exclusive=True)
    assert jobs.run(jobs.spec(script)) == ["-1\n1 1 0.0 16\n"]
    assert jobs.run(replace(jobs.spec(script), resources=full)) == ["0,1\n4 1 119.0 9\n"]


def test_an_array_submitted_in_part_is_completed_and_nothing_runs_twice(jobs: Jobs, wrap: Any) -> None:
    spec = jobs.spec("echo $1 >> all; echo $1", 5)
    wrap("submit", '$flux "${@/--cc=0-4/--cc=0,3}"; echo Connection reset by peer >&2; exit 1')
    with pytest.raises(SchedulerUnavailable, match="was submitted in part: Connection reset by peer"):
        jobs.queue.submit(spec)
    wrap("nothing", "true")
    assert jobs.queue.find(spec.name) is None
    [script] = spec.directory.glob("run_queue.*.sh")
    inode = script.stat().st_ino
    assert jobs.run(spec) == [f"{index}\n" for index in range(5)]
    assert sorted((spec.directory / "all").read_text().split()) == list("01234")
    assert [path.stat().st_ino for path in spec.directory.glob("run_queue.*.sh")] == [inode]  # jobs may be reading it
    assert jobs.queue.find(spec.name) == spec.name


def test_a_submission_that_lies_is_found_out(jobs: Jobs, wrap: Any) -> None:
    spec = jobs.spec("true")
    wrap("submit", '$flux "$@" > /dev/null; echo "flux-submit: ERROR: Connection timed out" >&2; exit 1')
    with pytest.raises(SchedulerUnavailable, match="Connection timed out"):
        jobs.queue.submit(spec)
    job = jobs.queue.find(spec.name)
    assert job is not None
    assert jobs.ended([JobRef(job)])[0].state is JobState.COMPLETED


def test_a_submission_that_hangs_is_given_up(jobs: Jobs, wrap: Any) -> None:
    wrap("submit", "exec sleep 60")
    impatient = FluxQueue(HelperSettings(timeout_s=0.5))
    before = time.monotonic()
    with pytest.raises(SchedulerUnavailable, match="flux did not answer in time"):
        impatient.submit(jobs.spec("true"))
    assert time.monotonic() - before < 10
    impatient.close()


def test_a_question_that_fails_tells_nothing_wrong(jobs: Jobs, wrap: Any) -> None:
    ref = JobRef(jobs.queue.submit(jobs.spec("sleep 60")))
    wrap("jobs", 'echo "flux-jobs: ERROR: Operation timed out" >&2; exit 1')
    with pytest.raises(SchedulerUnavailable, match=r"^flux jobs failed with exit code 1: Operation timed out$"):
        jobs.queue.states([ref])
    wrap("nothing", "true")
    assert not jobs.queue.states([ref])[ref].state.ended


def test_a_missing_command_is_said_so(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = jobs.spec("true")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SubmitRejected, match=r"flux cannot be run on this machine: .*PATH is /nowhere"):
        jobs.queue.submit(spec)
    with pytest.raises(SchedulerUnavailable, match="flux cannot be run"):
        jobs.queue.states([JobRef(JobId("f2"))])


def test_an_instance_that_does_not_answer_is_waited_for(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_URI", "local:///nowhere")
    for ask in (lambda: jobs.queue.submit(jobs.spec("true")), lambda: jobs.queue.states([JobRef(JobId("f2"))])):
        with pytest.raises(SchedulerUnavailable, match="Unable to connect to Flux"):
            ask()
    assert FluxQueue().name == "flux"


def test_what_ended_long_ago_is_known_to_a_second_question(jobs: Jobs) -> None:
    """Which leaves out what ended before the first."""
    now = [time.time()]
    queue = FluxQueue(clock=lambda: now[0])
    old = JobRef(queue.submit(jobs.spec("exit 3")))
    jobs.ended([old])
    queue.states([old])
    now[0] += 0.1
    queue._asked_at = now[0] + 599.5  # as if the first had been that much later
    assert queue.states([old])[old].exit_code == 3
    queue.close()


def test_a_node_that_fails(jobs: Jobs, flux_instance: FluxInstance) -> None:
    ref = JobRef(jobs.queue.submit(jobs.spec("sleep 60", constraint="host:n2")))
    end = time.monotonic() + 10
    while jobs.queue.states([ref])[ref].state is not JobState.RUNNING:
        assert time.monotonic() < end
        time.sleep(0.05)
    flux_instance.kill_node("n2")
    [facts] = jobs.ended([ref])
    assert (facts.state, facts.node) == (JobState.NODE_FAIL, "n2")


def double(x: int) -> int:
    return 2 * x


def who() -> str:
    return os.environ["REMOTEEXEC_JOB_ID"]


def test_a_task_knows_its_job_and_depends_on_elements_of_arrays(flux_instance: FluxInstance) -> None:
    with FluxClusterExecutor(cache_directory=flux_instance.new_root(), poll_s=1.0) as exe:
        futures = [exe.submit(double, x) for x in range(3)]
        last = exe.submit(sum, futures)
        alone = exe.submit(who)
        assert (last.result(), alone.result()) == (6, alone.task.job)


def test_a_laptop_reaches_an_instance_that_its_login_shell_names(
    flux_instance: FluxInstance, embedded_cluster: EmbeddedTestCluster
) -> None:
    assert FLUX is not None
    profile = embedded_cluster.home / ".bash_profile"
    profile.write_text(f"export PATH={Path(FLUX).parent}:$PATH FLUX_URI={flux_instance.uri}\n")
    config = replace(installed(embedded_cluster, "flux"), scheduler="flux", login_shell=True)
    with RemoteExecutor(config) as exe:
        futures = list(map(exe.submit, [double] * 3, range(3)))
        assert exe.submit(sum, futures).result() == 6
    with closing(FabricLink(config.ssh_settings())) as link:
        link.connect()
        facts = probe(link, config)
    assert (facts.scheduler, facts.partitions, facts.problem) == (FluxQueue().name, (), None)
    profile.unlink()
