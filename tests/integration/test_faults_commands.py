"""Commands of SLURM that fail now and then, or are counted, as an executor on the login node meets them."""

from __future__ import annotations

import pytest

from tests.clusters.rootless import SlurmCluster
from tests.integration.login_node import LoginNode, login_node

pytestmark = pytest.mark.timeout(180)

EVERY_THIRD = """
exec 9>>$state/$(basename "$0").lock; flock 9
count=$(($(cat $state/$(basename "$0") 2>/dev/null || echo 0) + 1)); echo $count >$state/$(basename "$0")
exec 9>&-
if [ $((count % 3)) = 0 ]; then
    echo 'bash: fork: Cannot allocate memory' >&2
    exit 254
fi
exec "$real" "$@"
"""
MANY = """
with SlurmClusterExecutor(poll_s=1.0) as exe:
    futures = [exe.submit(record, path, n, 0.1, resource_dict=kinds(n)) for n in range(8)]
    long = [exe.submit(time.sleep, 300, resource_dict=kinds(n)) for n in range(4)]
    print([future.result(100) for future in futures])
    for future in long:
        while not future.running() and not future.task.job:
            time.sleep(0.05)
        future.cancel()
        time.sleep(0.5)
"""


@pytest.fixture
def node(slurm_cluster: SlurmCluster) -> LoginNode:
    return login_node(slurm_cluster)


def test_an_sbatch_and_a_scancel_that_fail_every_third_time_change_nothing_but_time(
    node: LoginNode, slurm_cluster: SlurmCluster
) -> None:
    node.wrap("sbatch", EVERY_THIRD)
    state = node.wrap("scancel", EVERY_THIRD)
    _, done = node.run(MANY)
    assert done.stdout == "[0, 1, 2, 3, 4, 5, 6, 7]\n"
    node.ran(8)
    assert int((state / "sbatch").read_text()) > 8
    assert int((state / "scancel").read_text()) > 3  # the third one failed
    slurm_cluster.wait(
        lambda: slurm_cluster.run(["squeue", "-h"]).stdout == "", "cancelled jobs are still in the queue", deadline_s=20
    )


COUNTED = """
printf '%s\\n' "$*" >>$state/$(basename "$0")
exec "$real" "$@"
"""
PARENTS = """
from remoteexec import current_executor

def wait_for_child(n):
    import time
    return current_executor().submit(lambda: time.sleep(9) or n).result()

with SlurmClusterExecutor(poll_s=3.0) as exe:
    began = time.monotonic()
    futures = [exe.submit(wait_for_child, n) for n in range(4)]
    print([future.result(100) for future in futures], time.monotonic() - began)
"""


def test_parents_that_wait_ask_the_scheduler_together_as_often_as_one(node: LoginNode) -> None:
    for command in ("squeue", "scontrol"):
        state = node.wrap(command, COUNTED)
    _, done = node.run(PARENTS)
    results, _, seconds = done.stdout.rpartition(" ")
    assert results == "[0, 1, 2, 3]"
    asked = (state / "squeue").read_text().splitlines()
    assert len(asked) <= float(seconds) / 3.0 + 2
    settings = [line for line in (state / "scontrol").read_text().splitlines() if line == "show config"]
    assert len(settings) == 1
