"""Whoever submits may leave at once: limits hold with nobody logged in, and what stays in the store is said."""

from __future__ import annotations

import pytest

from tests.clusters.rootless import SlurmCluster
from tests.integration.login_node import LoginNode, login_node

pytestmark = pytest.mark.timeout(180)

FEW_JOBS = """
exe = SlurmClusterExecutor(max_workers=1)
for n in range(3):
    exe.submit(record, path, n, 1.0, resource_dict=kinds(n))
exe.shutdown(wait=False)
"""
FEW_CORES = """
exe = SlurmClusterExecutor(max_cores=2)
for n in range(8):
    exe.submit(record, path, n, 0.5, resource_dict={**kinds(n // 4), "cores": 1})
exe.shutdown(wait=False)
"""
REFUSED = """
exe = SlurmClusterExecutor(session="sweep", max_workers=1)
for n in range(3):
    exe.submit(record, path, n, 0.5, resource_dict=kinds(n))
exe.shutdown(wait=False)
"""
AGAIN = """
exe = SlurmClusterExecutor(session="sweep", poll_s=1.0)
print([future.result(150) for future in exe.futures()])
"""
FULL_AFTER_ONE = """
if [ -e $state/full ] && ! mkdir $state/one 2>/dev/null; then
    echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2
    echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)' >&2
    exit 1
fi
exec "$real" "$@"
"""


@pytest.fixture
def node(slurm_cluster: SlurmCluster) -> LoginNode:
    return login_node(slurm_cluster)


@pytest.mark.parametrize(("script", "count", "most"), [(FEW_JOBS, 3, 1), (FEW_CORES, 8, 2)], ids=["jobs", "cores"])
def test_what_waits_for_room_runs_with_nobody_logged_in_and_the_limit_holds(
    node: LoginNode, script: str, count: int, most: int
) -> None:
    took, done = node.run(script)
    assert (done.stdout, done.stderr) == ("", "")
    assert took < 20
    node.ran(count)
    assert node.most_at_once() == most


def test_what_a_quota_keeps_back_is_named_in_one_warning_and_submitted_when_the_session_is_used_again(
    node: LoginNode,
) -> None:
    state = node.wrap("sbatch", FULL_AFTER_ONE)
    (state / "full").touch()
    took, done = node.run(REFUSED)
    assert took < 20
    [warning] = done.stderr.splitlines()
    assert "QOSMaxSubmitJobPerUserLimit" in warning
    assert "; 2 tasks stay in the store until somebody uses session='sweep' again" in warning
    (state / "full").unlink()
    _, done = node.run(AGAIN)
    assert done.stdout == "[0, 1, 2]\n"
    node.ran(3)
