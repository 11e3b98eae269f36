"""Which MPI mpi4py has here, what can start its ranks, and in which order that is tried.

A library and a launcher have to speak the same PMI (process management interface). Where they do not, the ranks end at
once, or each believes that it is alone. So what fits is looked up: the library says what it is, `srun --mpi=list` what
it offers. What was found out is a guess nonetheless, made with what is known of each MPI; `job_ranks` tries the next
where ranks do not start.

Source: https://slurm.schedmd.com/mpi_guide.html; flux-run(1). Tried with SLURM 22.05, MPICH 5.0 and Open MPI 4.1; of
Flux (0.88) the commands alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .wire.resources import Resources

__all__ = ["MpiFacts", "Way", "digest", "from_json", "look", "main", "offered", "pmi_of_flux", "pmi_of_slurm", "ways"]

_PACKAGE = str(Path(__file__).parent)
_TIMEOUT_S = 30.0
"""For a Python on a slow disk to load an MPI library; picked, not measured: 0.2 s here."""
_SEEN_BY_MPI = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "MPI4PY_MPIABI", "MPI4PY_LIBMPI", "REMOTEEXEC_MPIEXEC")
_MPIEXEC = "REMOTEEXEC_MPIEXEC"
_FLUX_PMI = {"pmi1": "simple", "pmi2": "simple", "pmix": "pmix"}
"""Flux's own library speaks PMI-2 over its "simple" server, too."""

_UNBOUND = {"SLURM_CPU_BIND": "none"}
"""mpiexec starts one process a node by srun, whose cores all ranks there would share otherwise."""


@dataclass(frozen=True)
class MpiFacts:
    """What there is for MPI functions on one machine.

    Attributes:
        library: as the MPI that mpi4py uses calls itself, its first line; "" with a `problem`.
        mpi4py: its version.
        path: of the library, where it can be told.
        mpiexec: the command and its options; empty where there is none.
        srun: there is one.
        pmi: what srun offers, the names of --mpi.
        fits: name of the way that has worked, once one that is not the first has.
        problem: why there is no MPI.
    """

    library: str = ""
    mpi4py: str = ""
    path: str = ""
    mpiexec: tuple[str, ...] = ()
    srun: bool = False
    pmi: tuple[str, ...] = ()
    fits: str = ""
    problem: str = ""

    @property
    def family(self) -> str:
        """Whose PMI it speaks: "openmpi", "cray", or "mpich" for all others, as they come from it."""
        if "Open MPI" in self.library:
            return "openmpi"
        return "cray" if "CRAY" in self.library.upper() else "mpich"


@dataclass(frozen=True)
class Way:
    """One way to start ranks.

    Attributes:
        name: as errors call it.
        argv: all of the command but what each rank runs.
        alone: the launcher has to be kept from asking a batch system: all ranks are on this machine.
        variables: that it has to see.
    """

    name: str
    argv: tuple[str, ...]
    alone: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


def main(argv: list[str]) -> int:
    """`mpi-library`: print which MPI mpi4py uses, without initialising it, as JSON in one line."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI

        library = MPI.Get_library_version().splitlines()[0].strip("\0 ")
        found = {"library": re.sub(r"\s+", " ", library), "mpi4py": mpi4py.__version__, "path": _library_path()}
    except ModuleNotFoundError as exc:
        found = {"problem": f"{exc.name} is not installed for {sys.executable}"}
    except Exception as exc:  # whatever the loader says
        found = {"problem": f"{sys.executable} cannot load MPI: {exc}"}
    print(json.dumps(found), flush=True)
    return 0


def _library_path() -> str:
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"(/.*/libmpi(?:ch|_cray|_gnu_\w+|_intel)?\.so[\d.]*)$", maps, re.MULTILINE)
    return found[1] if found else ""


def look(scheduler: str, environment: Mapping[str, str]) -> MpiFacts:
    """Look on this machine, as a rank with that environment would find it. Bounded in time."""
    asked = [sys.executable, _PACKAGE, "mpi-library"]
    child = subprocess.Popen(
        asked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    pmi: tuple[str, ...] = ()
    srun = shutil.which("srun", path=environment.get("PATH")) if scheduler == "slurm" else None
    if srun is not None:
        pmi = offered(_output_of([srun, "--mpi=list"], environment))
    try:
        out, err = child.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return MpiFacts(problem=f"{sys.executable} did not load MPI within {_TIMEOUT_S:.0f} s")
    try:
        found: dict[str, str] = json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = err.strip().splitlines()[-3:]
        found = {"problem": f"{sys.executable} cannot load MPI (exit code {child.returncode}): {' / '.join(said)}"}
    return MpiFacts(**found, mpiexec=_mpiexec(found.get("path", ""), environment), srun=srun is not None, pmi=pmi)


def _output_of(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr  # SLURM before 23 says it on stderr


def _mpiexec(library: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """What the variable says, or the one that came with the library, or with this Python, or in PATH."""
    named = shlex.split(environment.get(_MPIEXEC, ""))
    path = environment.get("PATH")
    if named:
        found = shutil.which(named[0], path=path)
        return (found, *named[1:]) if found else ()
    places = [str(parent / "bin") for parent in list(Path(library).parents)[:3]] if library else []
    for place in (*places, os.path.dirname(sys.executable), path):
        found = shutil.which("mpiexec", path=place)
        if found is not None:
            return (found,)
    return ()


def offered(text: str) -> tuple[str, ...]:
    """The names that `srun --mpi=list` prints, the specific versions of pmix after all others."""
    lines = [line.removeprefix("srun:").strip() for line in text.splitlines()]  # before 20.11 each line begins so
    names = [line for line in lines if re.fullmatch(r"[a-z][\w-]*", line)]
    specific = [name for line in lines if "versions available" in line for name in re.findall(r"pmix_v\d+", line)]
    return tuple(dict.fromkeys([*names, *specific]))


def digest(scheduler: str, environment: Mapping[str, str]) -> str:
    """Short name of all that `look` depends on."""
    seen = [scheduler, sys.executable, *(environment.get(name, "") for name in _SEEN_BY_MPI)]
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:16]


def to_json(facts: MpiFacts) -> bytes:
    """See `from_json`."""
    return json.dumps(asdict(facts)).encode()


def from_json(data: bytes) -> MpiFacts:
    """What `to_json` was given.

    Raises:
        ValueError, TypeError: it is something else.
    """
    plain: Any = json.loads(data)
    values: Any = {f.name: plain[f.name] for f in fields(MpiFacts)}
    return MpiFacts(**{**values, "mpiexec": tuple(values["mpiexec"]), "pmi": tuple(values["pmi"])})


def ways(facts: MpiFacts, scheduler: str, resources: Resources, nodes: int = 1) -> list[Way]:
    """How to start the ranks, what fits best first; empty where nothing does.

    Args:
        resources: their `pmi_mode` leaves one way.
        nodes: of the job. On a single one mpiexec is kept from asking the batch system.
    """
    if scheduler == "slurm" and facts.srun:
        found = [_srun(pmi, resources) for pmi in pmi_of_slurm(facts, resources.pmi_mode)]
    elif scheduler == "flux":
        found = [_flux(pmi, resources) for pmi in pmi_of_flux(facts, resources.pmi_mode)]
    else:
        found = []
    alone = scheduler == "local" or nodes == 1
    reaches = alone or facts.srun or scheduler != "slurm"  # other nodes: mpiexec uses srun itself
    if facts.mpiexec and reaches and not (found and resources.pmi_mode):
        argv = (*facts.mpiexec, "-n", str(resources.cores))
        found.append(Way(shlex.join(facts.mpiexec), argv, alone, _UNBOUND))
    return sorted(found, key=lambda way: way.name != facts.fits)


def pmi_of_slurm(facts: MpiFacts, asked: str | None) -> list[str]:
    """Values of --mpi, what fits best first; what is asked for alone."""
    if asked is not None:
        return ["none" if asked == "pmi1" and "pmi1" not in facts.pmi else asked]  # SLURM's own libpmi needs no plugin
    order = {"openmpi": ("pmix",), "cray": ("cray_shasta", "pmi2", "pmix"), "mpich": ("pmi2", "pmix")}
    return [pmi for pmi in order[facts.family] if pmi in facts.pmi]


def pmi_of_flux(facts: MpiFacts, asked: str | None) -> list[str | None]:
    """Values of -o pmi=, what fits best first; None is what the instance has by default. What is asked for alone."""
    if asked is not None:
        return [_FLUX_PMI[asked]]
    return [None, "pmix"] if facts.family == "openmpi" else [None]


def _srun(pmi: str, resources: Resources) -> Way:
    """All that a site may have set otherwise is said.

    From SLURM 22.05 on srun does not take --cpus-per-task from the job.
    """
    argv = [
        "srun",
        f"--ntasks={resources.cores}",
        f"--cpus-per-task={resources.threads_per_core}",
        f"--mpi={pmi}",
        "--kill-on-bad-exit=1",
        "--wait=0",
        "--export=ALL",
        "--input=none",
        "--output=all",
        "--error=all",
    ]
    if resources.gpus_per_core:
        argv.append(f"--gpus-per-task={resources.gpus_per_core}")
    return Way(f"srun --mpi={pmi}", tuple(argv))


def _flux(pmi: str | None, resources: Resources) -> Way:
    argv = ["flux", "run", f"--ntasks={resources.cores}", f"--cores-per-task={resources.threads_per_core}"]
    argv.append("--setopt=exit-on-error")
    if resources.num_nodes is not None:
        argv.append(f"--nodes={resources.num_nodes}")
    if resources.gpus_per_core:
        argv.append(f"--gpus-per-task={resources.gpus_per_core}")
    name = "flux run"
    if pmi is not None:
        argv.append(f"--setopt=pmi={pmi}")
        name += f" -o pmi={pmi}"
    return Way(name, tuple(argv))
