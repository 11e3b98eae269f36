"""How the ranks of a job are started: from what an MPI and srun say of themselves, recorded."""

from __future__ import annotations

from typing import Any

import pytest

from remoteexec_server import mpi_facts
from remoteexec_server.mpi_facts import MpiFacts, Way, offered, ways
from remoteexec_server.wire.resources import Resources

MPICH, OPEN_MPI = "MPICH Version: 5.0.2", "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4"
PMI = ("pmix", "none", "cray_shasta", "pmi2", "pmix_v4")
RECORDED = {
    "22.05": """\
MPI plugin types are...
\tpmix
\tnone
\tcray_shasta
\tpmi2
specific pmix plugin versions available: pmix_v4
""",
    "before 20.11, after its manual": """\
srun: MPI types are...
srun: none
srun: pmi2
srun: openmpi
""",
}


@pytest.mark.parametrize(
    ("version", "names"), [("22.05", PMI), ("before 20.11, after its manual", ("none", "pmi2", "openmpi"))]
)
def test_what_srun_offers_is_read(version: str, names: tuple[str, ...]) -> None:
    assert offered(RECORDED[version]) == names


def test_a_srun_that_fails_offers_nothing() -> None:
    assert offered("srun: fatal: Could not establish a configuration source\n") == ()


def names(
    library: str, scheduler: str = "slurm", pmi_mode: str | None = None, nodes: int = 2, **more: Any
) -> list[str]:
    facts = MpiFacts(library, **{"mpiexec": ("/m/mpiexec",), "srun": True, "pmi": PMI, **more})
    return [way.name for way in ways(facts, scheduler, Resources(cores=4, pmi_mode=pmi_mode), nodes)]


@pytest.mark.parametrize(
    ("library", "found"),
    [
        (MPICH, ["srun --mpi=pmi2", "srun --mpi=pmix", "/m/mpiexec"]),
        ("Intel(R) MPI Library 2021.13 for Linux* OS", ["srun --mpi=pmi2", "srun --mpi=pmix", "/m/mpiexec"]),
        (OPEN_MPI, ["srun --mpi=pmix", "/m/mpiexec"]),
        (
            "MPI VERSION : CRAY MPICH version 8.1.29",
            ["srun --mpi=cray_shasta", "srun --mpi=pmi2", "srun --mpi=pmix", "/m/mpiexec"],
        ),
    ],
)
def test_on_slurm_the_pmi_that_fits_goes_first_and_mpiexec_last(library: str, found: list[str]) -> None:
    assert names(library) == found


def test_a_pmi_that_srun_does_not_offer_is_not_tried() -> None:
    assert names(OPEN_MPI, pmi=("none", "pmi2")) == ["/m/mpiexec"]


def test_what_has_worked_goes_first() -> None:
    assert names(MPICH, fits="/m/mpiexec") == ["/m/mpiexec", "srun --mpi=pmi2", "srun --mpi=pmix"]


@pytest.mark.parametrize(("asked", "given"), [("pmi2", "pmi2"), ("pmix", "pmix"), ("pmi1", "none")])
def test_the_pmi_that_was_asked_for_is_the_only_one_tried(asked: str, given: str) -> None:
    assert names(MPICH, pmi_mode=asked) == [f"srun --mpi={given}"]


def test_without_srun_there_is_mpiexec_on_one_node_and_nothing_on_several() -> None:
    assert names(MPICH, srun=False, pmi=(), nodes=1) == ["/m/mpiexec"]
    assert names(MPICH, srun=False, pmi=(), nodes=2) == []
    assert names(MPICH, srun=False, pmi=(), nodes=1, mpiexec=()) == []


def test_flux_takes_its_own_and_pmix_for_open_mpi_should_that_not_do() -> None:
    assert names(MPICH, "flux") == ["flux run", "/m/mpiexec"]
    assert names(OPEN_MPI, "flux") == ["flux run", "flux run -o pmi=pmix", "/m/mpiexec"]
    assert names(OPEN_MPI, "flux", "pmi2") == ["flux run -o pmi=simple"]


def test_the_embedded_scheduler_takes_mpiexec_that_asks_no_batch_system() -> None:
    facts = MpiFacts(MPICH, mpiexec=("/a b/mpiexec", "-v"))

    [way] = ways(facts, "local", Resources(cores=3), 0)

    assert (way.name, way.argv, way.alone) == ("'/a b/mpiexec' -v", ("/a b/mpiexec", "-v", "-n", "3"), True)


def test_other_schedulers_leave_it_to_mpiexec() -> None:
    assert names(OPEN_MPI, "pbs", srun=False) == ["/m/mpiexec"]


def test_srun_is_told_all_that_a_site_may_have_set_otherwise() -> None:
    facts = MpiFacts(MPICH, srun=True, pmi=("pmi2",))

    assert ways(facts, "slurm", Resources(cores=4, threads_per_core=2, gpus_per_core=1), 2) == [
        Way(
            "srun --mpi=pmi2",
            (
                *("srun", "--ntasks=4", "--cpus-per-task=2", "--mpi=pmi2", "--kill-on-bad-exit=1", "--wait=0"),
                *("--export=ALL", "--input=none", "--output=all", "--error=all", "--gpus-per-task=1"),
            ),
        )
    ]


def test_what_was_found_is_kept_as_it_was() -> None:
    facts = MpiFacts(MPICH, "4.1.2", "/lib/libmpi.so.12", ("/m/mpiexec", "-v"), True, PMI, "srun --mpi=pmi2")

    assert mpi_facts.from_json(mpi_facts.to_json(facts)) == facts


def test_another_library_path_is_looked_at_again() -> None:
    one, other = {"PATH": "/bin"}, {"PATH": "/bin", "LD_LIBRARY_PATH": "/opt/mpi"}

    assert mpi_facts.digest("slurm", one) == mpi_facts.digest("slurm", {**one, "HOME": "/home/me"})
    assert mpi_facts.digest("slurm", one) != mpi_facts.digest("slurm", other)
