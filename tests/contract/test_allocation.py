"""What SingleNodeExecutor keeps, kept by the executors of allocations: the same suites once more, inside one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.flux import FluxInstance
from tests.clusters.rootless import SlurmCluster
from tests.contract.in_allocation import run_in_allocation, run_in_instance

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(260)


def test_graphs_grow_across_nodes(slurm_cluster: SlurmCluster) -> None:
    run_in_allocation(slurm_cluster, HERE / "test_growing.py", "growing", "-k", "fresh or kept")


def test_the_contract_of_executors_is_kept_across_nodes(slurm_cluster: SlurmCluster) -> None:
    run_in_allocation(slurm_cluster, HERE / "test_executor.py", "contract", "-k", "fresh or kept")


def test_objects_are_shared_across_nodes(slurm_cluster: SlurmCluster) -> None:
    run_in_allocation(slurm_cluster, HERE.parent / "integration" / "test_shared.py", "shared")


def test_calls_are_tried_again_across_nodes(slurm_cluster: SlurmCluster) -> None:
    run_in_allocation(slurm_cluster, HERE.parent / "integration" / "test_pool_retries.py", "retries")


def test_cpythons_own_tests_pass_across_nodes(slurm_cluster: SlurmCluster) -> None:
    pytest.importorskip("test.test_concurrent_futures", reason="this Python comes without its tests")
    run_in_allocation(slurm_cluster, HERE / "test_cpython_executor.py", "cpython", "-k", "Fresh or Kept", timeout_s=240)


def test_graphs_grow_across_nodes_of_flux(flux_instance: FluxInstance) -> None:
    run_in_instance(flux_instance, HERE / "test_growing.py", "growing", "-k", "fresh or kept")


def test_the_contract_of_executors_is_kept_across_nodes_of_flux(flux_instance: FluxInstance) -> None:
    run_in_instance(flux_instance, HERE / "test_executor.py", "contract", "-k", "fresh or kept")


def test_cpythons_own_tests_pass_across_nodes_of_flux(flux_instance: FluxInstance) -> None:
    pytest.importorskip("test.test_concurrent_futures", reason="this Python comes without its tests")
    run_in_instance(flux_instance, HERE / "test_cpython_executor.py", "cpython", "-k", "Fresh or Kept", timeout_s=240)
