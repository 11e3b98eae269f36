"""How a step starts the ranks of an MPI function, and which of them see what."""

from __future__ import annotations

from typing import Any

import pytest

from remoteexec import errors
from remoteexec.allocation.base import Allocation, Node
from remoteexec.allocation.nodes import ManyNodes
from remoteexec.allocation.steps import SlurmSteps, check_options, srun
from remoteexec.pool.ledger import Need
from remoteexec.pool.tasks import nodes_beside, placed
from remoteexec_server import mpi_facts
from remoteexec_server.mpi_facts import MpiFacts
from remoteexec_server.wire.resources import ResourceError, Resources

ALLOCATION = Allocation("7", (Node("a", 4, gpus=("0", "1")), Node("b", 4, gpus=("2", "3"))))
CUDA = {"CUDA_VISIBLE_DEVICES": {gpu: gpu for gpu in "0123"}}


def steps(monkeypatch: pytest.MonkeyPatch, facts: MpiFacts) -> SlurmSteps:
    monkeypatch.setattr(mpi_facts, "look", lambda scheduler, environment: facts)
    return SlurmSteps(ALLOCATION)


@pytest.mark.parametrize(
    ("library", "pmi", "asked", "names"),
    [
        ("MPICH Version: 5.0", ("pmix", "none", "pmi2"), None, ["pmi2", "pmix"]),
        ("Open MPI v4.1.4", ("pmix", "none", "pmi2"), None, ["pmix"]),
        ("Open MPI v4.1.4", ("pmix", "none", "pmi2"), "pmi2", ["pmi2"]),
    ],
)
def test_ways_are_those_that_fit_the_library_or_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, library: str, pmi: tuple[str, ...], asked: str | None, names: list[str]
) -> None:
    found = steps(monkeypatch, MpiFacts(library, srun=True, pmi=pmi)).ways(Resources(cores=6, pmi_mode=asked))

    assert [name for name, _ in found] == [f"srun --mpi={name}" for name in names]
    assert [argv[1] for _, argv in found] == [f"--mpi={name}" for name in names]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (MpiFacts(problem="mpi4py is not installed for python"), "mpi4py is not installed for python"),
        (MpiFacts("MPICH Version: 5.0"), "there is none in PATH"),
        (MpiFacts("MPICH Version: 5.0", srun=True, pmi=("none",)), "srun offers --mpi=none, of which none fits MPICH"),
    ],
)
def test_where_nothing_starts_ranks_the_error_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, facts: MpiFacts, said: str
) -> None:
    with pytest.raises(errors.RunnerMissing, match=said):
        steps(monkeypatch, facts).ways(Resources(cores=6))


def test_options_of_the_users_come_before_those_that_say_where_the_ranks_are() -> None:
    argv = srun("7", "pmi2", Resources(cores=6, slurm_cmd_args=("--nodelist=c", "--ntasks=9")))

    assert argv.index("--nodelist=c") < argv.index("--nodelist={hosts}")
    assert argv.index("--ntasks=9") < argv.index("--ntasks=6")


@pytest.mark.parametrize("options", [["touch"], ["--mem=1G", "touch"], ["-p", "debug", "touch"], ["x y"]])
def test_what_srun_would_take_for_a_program_is_refused(options: list[str]) -> None:
    with pytest.raises(ResourceError, match="srun would start it as a program"):
        check_options(options)
    check_options(["-p", "debug", "--mem=1G", "--comment", "touch x"])


def at_place(need: Need, ranks: int, always: bool = False) -> tuple[Any, Any]:
    """Setup and place of such a call on the empty allocation."""
    room = ManyNodes(ALLOCATION.nodes)
    assert room.fits(need)
    place = room.take(need)
    return placed({"launch": (ranks, [], False, False), "step": (["way"], always)}, place, CUDA), place


def test_each_node_gets_its_ranks_and_each_rank_its_gpus() -> None:
    setup, place = at_place(Need(3, 3, parts=3), 3)

    only = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1", "2")]
    assert setup["step"] == (["way"], [("a", "a", 2, only[:2], ((), 4)), ("b", "b", 1, only[2:], ((), 4))])
    assert nodes_beside(place) == {1}


def test_ranks_on_one_node_are_started_there_unless_a_step_was_asked_for() -> None:
    setup, place = at_place(Need(2, 2, parts=2), 2)
    assert setup == {
        "launch": (2, [], False, False),
        "step": None,
        "environment": {"CUDA_VISIBLE_DEVICES": "0,1"},
    }
    assert nodes_beside(place) == set()
    setup, _ = at_place(Need(2, parts=2), 2, always=True)
    assert setup["step"] == (["way"], [("a", "a", 2, [{}, {}], ((), 4))])


def test_more_ranks_than_cores_are_shared_out_among_the_cores() -> None:
    setup, _ = at_place(Need(8, parts=8), 21)

    assert [(node, count, len(each)) for node, _, count, each, _ in setup["step"][1]] == [("a", 12, 12), ("b", 9, 9)]
