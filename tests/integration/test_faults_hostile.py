"""Names, paths and values that want to be more than text, through every parameter that reaches a script; real SLURM."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remoteexec import RemoteExecutor, errors
from remoteexec.config.model import ClusterConfig
from tests.clusters.rootless import SlurmCluster
from tests.integration.running import running

CHECKOUT = Path(__file__).parent.parent.parent
WAIT_S = 60.0
pytestmark = pytest.mark.timeout(180)

HOSTILE = {
    "quote": "a'; touch %s; echo 'b",
    "double quote": 'a"; touch %s; echo "b',
    "substitution": "a$(touch %s)`touch %s`",
    "newline": "a\ntouch %s\n#SBATCH --hold\nb",
    "spaces and unicode": " a  b ü ∀ \U0001f9ea &touch %s& ",
    "pattern": "a%%j%%x\\n{{ command }}${NO_SUCH}~*?[a]!! touch %s",
    "option": "--wrap=touch %s",
}
"""With the path of a file that nobody may make."""


@pytest.fixture(scope="module")
def slurm(slurm_cluster: SlurmCluster, slurm_config: ClusterConfig) -> Iterator[RemoteExecutor]:
    with running(slurm_config) as executor:
        yield executor


@pytest.fixture(params=list(HOSTILE))
def hostile(request: pytest.FixtureRequest, slurm_cluster: SlurmCluster) -> Iterator[str]:
    """A text, with nothing made by it in the end."""
    made = slurm_cluster.directory / "tmp" / "made"
    text = re.sub("%s", str(made), HOSTILE[request.param]).replace("%%", "%")
    yield text
    assert not made.exists()
    assert slurm_cluster.run(["find", str(slurm_cluster.home), "-name", "made"]).stdout == ""


def seen(name: str) -> tuple[str, str | None, str]:
    """Directory, variable, and what the scheduler says of the job this runs in."""
    argv = ["squeue", "-h", "-o", "%k", "-j", os.environ["SLURM_JOB_ID"]]
    comment = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.removesuffix("\n")
    return os.getcwd(), os.environ.get(name), comment


def fail(text: str) -> None:
    raise KeyError(text)


def test_a_hostile_text_is_the_value_or_is_refused_by_name(
    slurm: RemoteExecutor, slurm_cluster: SlurmCluster, hostile: str
) -> None:
    for key in ("job_name", "partition", "queue", "account", "qos", "reservation", "constraint"):
        with pytest.raises(ValueError, match=f"^{key.replace('queue', 'partition')}="):
            slurm.submit(seen, "X", resource_dict={key: hostile})
    home = slurm_cluster.make_directory("hostile")
    given: dict[str, Any] = {
        "cwd": str(home / hostile.replace("/", "_")),
        "error_log_file": str(home / f"{hostile.replace('/', '_')}.log"),
        "slurm_cmd_args": [f"--comment={hostile}"],
    }
    if "\n" in hostile:
        for key, value in given.items():
            with pytest.raises(ValueError, match=f"^{key}="):
                slurm.submit(seen, "X", resource_dict={key: value})
        given = {}
    if hostile.startswith("--wrap"):
        with pytest.raises((ValueError, errors.SubmitRejected), match="slurm_cmd_args='--wrap"):
            slurm.submit(seen, "X", resource_dict={"slurm_cmd_args": [hostile]}).result(WAIT_S)
    told = slurm.submit(seen, "X", resource_dict={**given, "environment": {"X": hostile}})
    failed = slurm.submit(fail, hostile, resource_dict=given)

    cwd, variable, comment = told.result(WAIT_S)
    assert variable == hostile
    assert failed.exception(WAIT_S).args == (hostile,)  # type: ignore[union-attr]
    if given:
        assert cwd == given["cwd"]
        assert comment.strip() == hostile.strip()
        assert f"KeyError: {hostile!r}" in Path(given["error_log_file"]).read_text()


def test_a_template_that_is_no_script_is_refused_and_runs_nothing(slurm: RemoteExecutor, hostile: str) -> None:
    """What begins with #! is the user's own script; anything else sbatch itself does not take."""
    future = slurm.submit(seen, "X", resource_dict={"submission_template": hostile})
    assert isinstance(future.exception(WAIT_S), errors.SubmitRejected)


# ---- two submitters ----

SWEEP = """
import sys, time
from remoteexec import SlurmClusterExecutor

def count(path, n):
    with open(path, "a") as file:
        file.write(f"{n}\\n")
    return n * n

def total(values):
    return sum(values)

with SlurmClusterExecutor(cache_directory=sys.argv[1] + "/root", poll_s=0.5) as exe:
    print(exe.submit(total, [exe.submit(count, sys.argv[1] + "/ran", n) for n in range(4)]).result(90))
"""


def test_two_submitters_with_one_cache_have_the_same_results_and_spoil_nothing(slurm_cluster: SlurmCluster) -> None:
    home = slurm_cluster.make_directory("one-cache")
    environment = ["env", "PYTHONDONTWRITEBYTECODE=1", f"PYTHONPATH={CHECKOUT}:{CHECKOUT}/server_side"]
    argv = [*environment, str(slurm_cluster.python), "-c", SWEEP, str(home)]
    said: list[str] = []

    def submit() -> None:
        done = slurm_cluster.run(argv, check=False, timeout_s=120)
        said.append(done.stdout.strip() or done.stderr)

    both = [threading.Thread(target=submit) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert said == ["14", "14"]
    ran = (home / "ran").read_text().split()
    assert set(ran) == {"0", "1", "2", "3"}
    assert len(ran) <= 8  # twice what each submitted before the other had said that it did
    submit()
    assert (said[2], (home / "ran").read_text().split()) == ("14", ran)
    assert list((home / "root" / "cache").glob("*.running")) == []
