"""Parameters of executors are refused by name, value, rule and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from remoteexec import SingleNodeExecutor, SlurmClusterExecutor, TestClusterExecutor

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_workers": 1.5}, "max_workers must be a whole number of at least 1, not 1.5: pass an int"),
    ({"max_workers": True}, "max_workers must be a whole number of at least 1, not True: pass an int"),
    ({"max_cores": "2"}, "max_cores must be a whole number of at least 1, not '2': pass an int"),
    ({"resource_dict": []}, "resource_dict must be a dictionary or a Resources, not []: {'cores': 1}, say"),
    ({"max_workers": 0}, "max_workers must be greater than 0, not 0"),
    ({"refresh_rate": 0}, "refresh_rate must be a number greater than 0, not 0"),
    ({"refresh_rate": "a"}, "refresh_rate must be a number greater than 0, not 'a': pass an int or a float"),
    (
        {"init_function": 3, "block_allocation": True, "max_workers": 1},
        "init_function must be a function, not 3: pass the function itself, not what it returns",
    ),
]
ON_CLUSTERS: list[tuple[dict[str, Any], str]] = [
    ({"poll_s": "5"}, "poll_s must be a number greater than 0, not '5': pass an int or a float"),
    ({"poll_s": float("nan")}, "poll_s must be a number greater than 0, not nan"),
    ({"submits_per_minute": 0}, "submits_per_minute must be a number greater than 0, not 0"),
    ({"idle_time_s": float("nan")}, "idle_time_s must be a number of at least 0, not nan"),
    ({"idle_time_s": -1}, "idle_time_s must be a number of at least 0, not -1"),
    ({"idle_time_s": float("inf")}, "idle_time_s must be a number of at least 0, not inf"),
]
ONLY_HERE: list[tuple[dict[str, Any], str]] = [
    ({"restart_limit": -1}, "restart_limit must be at least 0, not -1"),
    ({"restart_limit": "a"}, "restart_limit must be a whole number of at least 0, not 'a': pass an int"),
    ({"preload": "numpy"}, "preload must be a list of names of modules, not 'numpy': ['numpy'], say"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG + ONLY_HERE, ids=repr)
def test_what_cannot_be_is_refused_at_construction(settings: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        SingleNodeExecutor(**settings)
    assert str(caught.value) == said


@pytest.mark.parametrize("kind", [TestClusterExecutor, SlurmClusterExecutor])
@pytest.mark.parametrize(("settings", "said"), WRONG + ON_CLUSTERS, ids=repr)
def test_executors_of_clusters_refuse_the_same(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        kind(**settings)
    assert str(caught.value) == said


LARGE: list[dict[str, Any]] = [{"cores": 4}, {"threads_per_core": 4}, {"cores": 2, "threads_per_core": 2}]


@pytest.mark.parametrize("kind", [TestClusterExecutor, SlurmClusterExecutor])
@pytest.mark.parametrize("asked", LARGE, ids=repr)
def test_what_is_larger_than_max_cores_is_refused_as_it_would_wait_for_ever(kind: Any, asked: dict[str, Any]) -> None:
    cores, threads = asked.get("cores", 1), asked.get("threads_per_core", 1)
    said = (
        f"cores={cores} with threads_per_core={threads} is 4 CPUs, and max_cores=2: it could never start; "
        "raise max_cores, or ask for fewer"
    )
    with pytest.raises(ValueError) as at_construction:
        kind(max_cores=2, resource_dict=asked)
    executor = kind(max_cores=2)
    with pytest.raises(ValueError) as at_submit:
        executor.submit(abs, 1, resource_dict=asked)  # reaches no cluster, so this needs none
    assert (str(at_construction.value), str(at_submit.value)) == (said, said)


@pytest.mark.parametrize(
    ("settings", "resized", "counts"),
    [
        ({"max_cores": 9}, 7, (4, 4)),
        ({"max_cores": 9, "max_workers": 3}, 7, (3, 4)),
        ({"max_cores": 9, "max_workers": 6}, 2, (4, 2)),
        ({"max_workers": 3}, 7, (3, 7)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", [TestClusterExecutor, SlurmClusterExecutor])
def test_pilots_are_no_more_than_max_cores_allows(
    kind: Any, settings: dict[str, Any], resized: int, counts: tuple[int, int]
) -> None:
    executor = kind(block_allocation=True, resource_dict={"cores": 2}, **settings)
    first = executor._pilots.count
    assert executor.max_workers == settings.get("max_workers", first)
    executor.max_workers = resized
    assert (first, executor._pilots.count) == counts


def test_pilots_need_a_number_from_somewhere() -> None:
    with pytest.raises(ValueError, match="block_allocation=True needs max_workers, or max_cores"):
        SlurmClusterExecutor(block_allocation=True)


def test_ranks_that_are_not_kept_cannot_be_initialised_once() -> None:
    with pytest.raises(ValueError, match=r"init_function with cores=2: .* have the function itself load what"):
        SlurmClusterExecutor(1, block_allocation=True, init_function=dict, resource_dict={"cores": 2})
