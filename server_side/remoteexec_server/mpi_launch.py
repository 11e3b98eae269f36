"""How the ranks of MPI functions are started: what mpiexec, srun and Flux are told."""

from __future__ import annotations

import os
from collections.abc import Sequence

_NO_BATCH_SYSTEM = "^slurm,tm,lsf,gridengine,alps,flux,pbs"
_FOREIGN = (
    "PMI_",
    "PMIX_",
    "OMPI_COMM_WORLD_",
    "OMPI_UNIVERSE_SIZE",
    "OMPI_MCA_ess",
    "OMPI_MCA_orte",
    "OMPI_MCA_pmix",
    "MPI_LOCAL",
    "PRTE_LAUNCHED",
)
"""Variables of a rank that we may be running in: they would confuse a further mpiexec."""
BATCH = "SLURM_"
"""Variables of a job that we may be running in: mpiexec would start ranks by srun. The ranks see them."""
Launch = tuple[int, list[str], bool, bool]
"""How many ranks, mpiexec with its options, and whether they may be more than there are cores; and whether it is one
process without MPI, which another command starts, whose result is then that of the call."""
HERE = "{node}"
"""In that command: which node this is, as the agent knows it."""
HOSTS, NODES, R = "{hosts}", "{nodes}", "{R}"
"""In a way of a step: a file that has the node of each rank, in their order; how many nodes these are; what Flux calls
R, with a core for each rank."""
Way = tuple[str, list[str]]
"""How errors call it, and a command that starts the ranks on several nodes."""
Share = tuple[str, str, int, "list[dict[str, str | None]]", "tuple[tuple[int, ...], int]"]
"""A node, its number where the scheduler has one, how many ranks it gets, what more each of these has in its
environment, and their cores: see `affinity`."""
Step = tuple[list[Way], list[Share]]
"""Ways to start ranks, tried one after the other; on which nodes, all on this one if none is named."""
_STEPS_OWN = ("SLURM_CONF", "SLURM_JWT")
"""What srun needs of the variables of the step that we are in: others are options for that one, not for the ranks'."""
JOBS_OF_FLUX = ("FLUX_JOB_", "FLUX_TASK_", "FLUX_KVS_NAMESPACE")
"""How the variables begin that a job of Flux's has, and a further job shall not have from it."""


def launcher_environment(directory: str, oversubscribe: bool) -> dict[str, str]:
    """What mpiexec is told. By variables, since Open MPI and MPICH have no options in common, and each ignores these.

    The pool has counted the cores: no rank is bound to one, or two programs would share the first; hardware threads
    count as cores, as they do in `sched_getaffinity`; and no batch system is asked, we stay on this machine.
    """
    told = {
        "HYDRA_LAUNCHER": "fork",
        "HYDRA_RMK": "user",
        "OMPI_MCA_plm": "isolated",
        "OMPI_MCA_ras": _NO_BATCH_SYSTEM,
        "PRTE_MCA_ras": _NO_BATCH_SYSTEM,
        "OMPI_MCA_orte_tmpdir_base": directory,
        "PRTE_MCA_prte_tmpdir_base": directory,
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMPI_MCA_hwloc_base_use_hwthreads_as_cpus": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":HWTCPUS",
    }
    if oversubscribe:
        told["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        told["PRTE_MCA_rmaps_default_mapping_policy"] = ":OVERSUBSCRIBE"
    if os.geteuid() == 0:  # Open MPI refuses root, who has asked for it by being root
        for prefix in ("OMPI", "PRTE"):
            told[f"{prefix}_ALLOW_RUN_AS_ROOT"] = told[f"{prefix}_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return {name: value for name, value in os.environ.items() if not name.startswith((*_FOREIGN, BATCH))} | told


def step_environment(oversubscribe: bool) -> dict[str, str]:
    """What srun or Flux is told, and by it the ranks: the pool has counted the cores, so none is bound to some."""
    told = {"OMPI_MCA_hwloc_base_binding_policy": "none", "PRTE_MCA_hwloc_default_binding_policy": "none"}
    if oversubscribe:
        told["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    foreign = (*_FOREIGN, BATCH, "SRUN_", *JOBS_OF_FLUX)
    kept = {n: value for n, value in os.environ.items() if not n.startswith(foreign) or n in _STEPS_OWN}
    return kept | told


def _r_of(shares: Sequence[Share]) -> str:
    """What Flux is to take for the resources of a job, with as many cores of each node as there are ranks.

    Source: https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_20.html
    """
    import json  # late: the client imports this module, and is to start fast

    found = {
        "R_lite": [{"rank": at, "children": {"core": _first(count)}} for _, at, count, *_ in shares],
        "nodelist": [node for node, *_ in shares],
        "starttime": 0,
        "expiration": 0,
    }
    return json.dumps({"version": 1, "execution": found})


def _first(count: int) -> str:
    return f"0-{count - 1}" if count > 1 else "0"


def filled(command: Sequence[str], hosts: str, shares: Sequence[Share]) -> list[str]:
    """A way's command without its marks."""
    told = {HOSTS: hosts, NODES: str(len(shares)), R: _r_of(shares)}
    return [_with(part, told) for part in command]


def _with(part: str, told: dict[str, str]) -> str:
    for name, value in told.items():
        part = part.replace(name, value)
    return part
