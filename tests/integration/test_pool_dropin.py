"""Code of others that takes an executor, or a map, takes ours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.optimize import differential_evolution, rosen

from remoteexec import SingleNodeExecutor

pytestmark = pytest.mark.usefixtures("process_mark")

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@pytest.fixture
def exe() -> Iterator[SingleNodeExecutor]:
    """Kept workers."""
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as executor:
        yield executor


def test_scipy_optimizes_over_our_map(exe: SingleNodeExecutor) -> None:
    found = differential_evolution(
        rosen, [(0, 2)] * 2, workers=exe.map, updating="deferred", rng=np.random.default_rng(1), popsize=8, maxiter=60
    )
    assert found.x == pytest.approx([1, 1], abs=1e-3)


def log_probability(x: Array) -> float:
    return float(-0.5 * np.sum(x**2))


def test_emcee_samples_over_our_executor(exe: SingleNodeExecutor) -> None:
    emcee = pytest.importorskip("emcee")
    start = np.random.default_rng(1).normal(size=(8, 2))
    pooled = emcee.EnsembleSampler(8, 2, log_probability, pool=exe)
    alone = emcee.EnsembleSampler(8, 2, log_probability)
    for sampler in (pooled, alone):
        sampler.random_state = np.random.RandomState(3).get_state()
        sampler.run_mcmc(start, 20)
    assert np.array_equal(pooled.get_chain(), alone.get_chain())
