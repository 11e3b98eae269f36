"""A site's pysqa configuration gives templates and limits, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.batch import queues
from remoteexec_server.batch.base import JobSpec, SubmitRejected
from remoteexec_server.batch.configured import ConfiguredQueue
from remoteexec_server.batch.pysqa_config import PysqaConfigError, SiteQueue, read
from remoteexec_server.wire.resources import ResourceError, Resources
from tests.unit.fake_queue import FakeQueue

YAML = """\
queue_type: SLURM
queue_primary: short
queues:
  short: {script: short.sh, cores_min: 4, cores_max: 40, run_time_max: 3600, memory_max: 64}
  long: {script: long.sh, memory_max: 2048M}
"""
SHORT = "#!/bin/bash\n#SBATCH --ntasks={{ cores }}\n{{ command }}\n"
LONG = "#!/bin/bash\n#SBATCH --partition={{ partition }}\n{{ command }}\n"


def site(directory: Path, **files: str) -> Path:
    for name, text in {"queue.yaml": YAML, "short.sh": SHORT, "long.sh": LONG, **files}.items():
        (directory / name).write_text(text)
    return directory


def test_queues_are_read_with_their_templates_and_limits(tmp_path: Path) -> None:
    config = read(str(site(tmp_path)), "slurm")

    assert (config.file, config.primary) == (tmp_path / "queue.yaml", "short")
    assert dict(config.queues) == {
        "short": SiteQueue("short", SHORT, 4, 40, 3600, 64),
        "long": SiteQueue("long", LONG, None, None, None, 2.0),
    }


def test_the_primary_cluster_of_several_is_the_one(tmp_path: Path) -> None:
    clusters = "cluster_primary: here\ncluster: {here: one.yaml, there: two.yaml}\n"
    site(tmp_path, **{"clusters.yaml": clusters, "one.yaml": YAML})
    (tmp_path / "queue.yaml").unlink()

    assert read(str(tmp_path), "slurm").file == tmp_path / "one.yaml"


def test_a_job_gets_the_template_and_the_time_limit_of_its_queue(tmp_path: Path) -> None:
    config = read(str(site(tmp_path)), "slurm")

    assert config.applied(Resources()) == Resources(submission_template=SHORT, run_time_max_s=3600)
    assert config.applied(Resources(partition="long")) == Resources(partition="long", submission_template=LONG)
    own = Resources(submission_template="{{ partition }}", run_time_max_s=60, partition="other")
    assert config.applied(own) == own


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(threads_per_core=41), "cores=41: queue 'short' gives 40 at most"),
        (Resources(run_time_max_s=3601), "run_time_max=3601: queue 'short' gives 3600 at most"),
        (Resources(memory_max_gb=64.5), "memory_max=64.5: queue 'short' gives 64 at most"),
        (Resources(memory_max_gb=3, partition="long"), "memory_max=3: queue 'long' gives 2 at most"),
        (
            Resources(partition="x"),
            "partition='x': .* has the queues short, long, and the template of 'short' takes no",
        ),
    ],
)
def test_what_is_beyond_a_limit_of_the_queue_is_refused(tmp_path: Path, resources: Resources, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        read(str(site(tmp_path)), "slurm").applied(resources)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"queue.yaml": "queues: ["}, "queue.yaml is not valid YAML: while parsing"),
        ({"queue.yaml": "[]"}, r"holds no table of settings, but \[\]"),
        ({"queue.yaml": "queue_type: SLURM\n"}, "has no queues"),
        ({"queue.yaml": "queue_type: SGE\nqueues: {a: {}}\n"}, "is for queue_type 'SGE', but the scheduler is 'slurm'"),
        ({"queue.yaml": YAML.replace("primary: short", "primary: x")}, "queue_primary 'x' is none of its queues"),
        ({"queue.yaml": YAML.replace("short.sh", "none.sh")}, "the script of queue 'short' cannot be read: .*none.sh"),
        (
            {"queue.yaml": YAML.replace("40", "many")},
            "cores_max of queue 'short' is 'many', which is no",
        ),
        ({"queue.yaml": YAML.replace("2048M", "2 GB")}, "memory_max of queue 'long' is '2 GB': write it as"),
        ({"queue.yaml": "queue_type: SLURM\nqueues: {a: 5}\n"}, "queue 'a' holds no table of settings, but 5"),
    ],
)
def test_a_mistake_names_the_file_and_what_is_wrong(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(PysqaConfigError, match=message):
        queues.connect("slurm", tmp_path, str(site(tmp_path, **files)))


def test_a_directory_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(PysqaConfigError, match=r"there is no directory '.*none' here"):
        read(str(tmp_path / "none"), "slurm")
    with pytest.raises(PysqaConfigError, match=r"has neither queue\.yaml nor clusters\.yaml"):
        read(str(tmp_path), "slurm")
    with pytest.raises(PysqaConfigError, match="scheduler 'local' has no such configuration"):
        read(str(site(tmp_path)), "local")


def test_the_queue_behind_is_given_what_the_site_asks_for(tmp_path: Path) -> None:
    fake = FakeQueue()
    queue = ConfiguredQueue(fake, read(str(site(tmp_path)), "slurm"))
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "job.json").touch()
    spec = JobSpec("rx-a-0", directory, ("true",), 1, Resources())
    job = queue.submit(spec)

    assert (fake.jobs[job].least_cores, fake.jobs[job].resources.submission_template) == (4, SHORT)
    with pytest.raises(SubmitRejected, match="gives 40 at most"):
        queue.submit(JobSpec("rx-a-1", directory, ("true",), 1, Resources(threads_per_core=50)))
