"""Bulk modulus of an fcc metal: one task per strain, and a fit that waits for all of them where they run.

    python examples/bulk_modulus.py                                   # on this machine, nothing else needed
    python examples/bulk_modulus.py --cluster mycluster               # from a laptop, over SSH
    python examples/bulk_modulus.py --executor SlurmClusterExecutor   # on a login node

The energies are those of ASE's effective medium theory, so a task takes milliseconds; put your own code in its place.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.units import GPa

import remoteexec

METALS = {"Ag": 4.0, "Cu": 3.6, "Au": 4.06, "Al": 4.0}  # lattice constants in Å to strain from
STRAINS = [0.95 + 0.01 * step for step in range(11)]


def crystal(metal: str, strain: float) -> Atoms:
    """The primitive fcc cell, its edges `strain` times as long as those of METALS."""
    return bulk(metal, "fcc", a=METALS[metal] * strain)


def energy(metal: str, strain: float) -> float:
    """Potential energy of one atom in the strained crystal, in eV."""
    atoms = crystal(metal, strain)
    atoms.calc = EMT()
    return float(atoms.get_potential_energy())


def fit_equation_of_state(metal: str, strains: Sequence[float], energies: Sequence[float]) -> tuple[float, float]:
    """Volume of an atom at rest in Å³ and bulk modulus in GPa, from energies over strains."""
    volumes = [crystal(metal, strain).get_volume() for strain in strains]
    v0, _, modulus = EquationOfState(volumes, energies).fit()  # the stabilized jellium equation, ASE's default
    return float(v0), float(modulus / GPa)


def compute(exe: remoteexec.BaseExecutor, metal: str) -> tuple[float, float]:
    """Volume and bulk modulus, by the executor's tasks."""
    runs = [exe.submit(energy, metal, strain) for strain in STRAINS]  # 11 jobs, submitted as one array
    fit = exe.submit(fit_equation_of_state, metal, STRAINS, runs)  # waits for them there, not here
    show_progress([*runs, fit])
    return fit.result()


def show_progress(futures: Iterable[Future[Any]]) -> None:
    """Keep one line on stderr up to date until all futures are done; without a terminal, print a line per change."""
    begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
    states = dict.fromkeys(futures, "pending")
    shown = ""
    while waiting := [future for future, state in states.items() if state in ("pending", "running")]:
        # a future tells nobody that it has begun to run, hence the timeout
        ended, others = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        states |= {future: "failed" if future.cancelled() or future.exception() else "done" for future in ended}
        states |= {future: "running" if future.running() else "pending" for future in others}
        counts = Counter(states.values())
        line = f"{len(states) - counts['pending'] - counts['running']}/{len(states)} tasks ended"
        line += "".join(f", {counts[state]} {state}" for state in ("pending", "running", "failed") if counts[state])
        if line != shown:
            print(f"{begin}{line}", end=end, file=sys.stderr, flush=True)
            shown = line
    print(end="" if end else "\n", file=sys.stderr)


def check(metal: str, found: tuple[float, float]) -> str | None:
    """Compute the same with ASE alone, in this process; says what differs, if anything."""
    expected = fit_equation_of_state(metal, STRAINS, [energy(metal, strain) for strain in STRAINS])
    if all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(found, expected, strict=True)):
        return None
    return f"{metal}: ASE alone gives v0 = {expected[0]!r} Å³, B = {expected[1]!r} GPa; the tasks gave {found!r}"


def main(argv: Sequence[str] | None = None) -> str | None:
    """The command line; returns what went wrong, if anything."""
    parser = argparse.ArgumentParser(description="Bulk modulus of an fcc metal with ASE's EMT, one task per strain.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster", metavar="NAME", help="run on this cluster of your configuration, over SSH")
    where.add_argument(
        "--executor",
        choices=["SlurmClusterExecutor", "TestClusterExecutor"],
        default="TestClusterExecutor",
        help="run on this machine: as jobs of its SLURM, or of an embedded scheduler (the default)",
    )
    parser.add_argument("--metal", choices=METALS, default="Ag")
    parser.add_argument("--check", action="store_true", help="compare with ASE alone; exit code 1 if they differ")
    options = parser.parse_args(argv)

    resources = {"cores": 1, "run_time_max": 600}
    executor: remoteexec.BaseExecutor
    if options.cluster:
        executor = remoteexec.RemoteExecutor(options.cluster, resource_dict=resources)
    else:
        executor = getattr(remoteexec, options.executor)(resource_dict=resources)
    with executor as exe:
        v0, modulus = compute(exe, options.metal)
    print(f"{options.metal}: v0 = {v0:.3f} Å³, B = {modulus:.3f} GPa")
    return check(options.metal, (v0, modulus)) if options.check else None


if __name__ == "__main__":
    sys.exit(main())
