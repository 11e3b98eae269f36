"""MPI functions in jobs: over the nodes of a real SLURM, by srun and mpiexec, and on the embedded scheduler."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import TestClusterExecutor, errors
from remoteexec.config.model import ClusterConfig
from remoteexec.pool.mpi import launch
from remoteexec_server.wire.resources import Resources
from tests.clusters.accounts import MPI_PACKAGES, OPEN_MPI, is_installed
from tests.clusters.netcluster import NetCluster
from tests.clusters.rootless import SlurmCluster
from tests.conftest import skip_for_want_of
from tests.integration.running import running

pytestmark = pytest.mark.timeout(180)
PROMPT_S = 30.0
"""For an error to come: interpreters, a `squeue` and, on SLURM 22.05, the end of a step."""
MARK = "REMOTEEXEC_TEST_MARK"
TWO_NODES: dict[str, Any] = {"cores": 3, "num_nodes": 2}


@dataclass
class Place:
    """Where the ranks run.

    Attributes:
        make: an executor whose calls have these resources.
        resources: three ranks.
        nodes: that the ranks are on.
        directory: that tasks and the test can write.
    """

    make: Callable[..., AbstractContextManager[Any]]
    resources: dict[str, Any]
    nodes: int
    directory: Path
    cluster: Any = None
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def executor(self, **more: Any) -> AbstractContextManager[Any]:
        environment = {**self.resources.get("environment", {}), MARK: self.mark, **more.pop("environment", {})}
        return self.make({**self.resources, **more, "environment": environment})

    def new(self) -> Path:
        return self.directory / uuid.uuid4().hex

    def left(self, within_s: float = 10.0) -> list[str]:
        """Command lines of the processes that its tasks have started and that still run; all hosts are seen here."""
        end = time.monotonic() + within_s
        while (found := living(f"{MARK}={self.mark}")) and time.monotonic() < end:
            time.sleep(0.05)
        return found


def living(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(entry.name) and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


@contextmanager
def local(root: Path, resources: dict[str, Any]) -> Iterator[Any]:
    with TestClusterExecutor(resource_dict=resources, cache_directory=str(root)) as exe:
        yield exe


def open_mpi() -> dict[str, str]:
    """Variables by which mpi4py takes the system's Open MPI."""
    if OPEN_MPI is None:
        skip_for_want_of("mpi", "not installed: libopenmpi3")
    return {"MPI4PY_LIBMPI": str(OPEN_MPI), "OMPI_MCA_btl": "self,tcp"}


KINDS = [
    "local",
    pytest.param("SLURM, MPICH", marks=pytest.mark.slurm),
    pytest.param("SLURM, Open MPI", marks=pytest.mark.slurm),
]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Three ranks; on SLURM over two nodes. In the end no process of theirs is left."""
    if not all(map(is_installed, MPI_PACKAGES)):
        skip_for_want_of("mpi", f"not installed: {' '.join(MPI_PACKAGES)}")
    if request.param == "local":
        try:
            launch(Resources(cores=3))
        except (ImportError, errors.RunnerMissing) as exc:
            skip_for_want_of("mpi", str(exc))
        (tmp_path / "tasks").mkdir()
        resources: dict[str, Any] = {"cores": 3, "openmpi_oversubscribe": True}
        one = Place(lambda res: local(tmp_path / "root", res), resources, 1, tmp_path / "tasks")
        if len(os.sched_getaffinity(0)) < 3:
            request.getfixturevalue("monkeypatch").setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    else:
        cluster: SlurmCluster = request.getfixturevalue("slurm_cluster")
        config: ClusterConfig = request.getfixturevalue("slurm_config")
        resources = dict(TWO_NODES)
        if request.param == "SLURM, Open MPI":
            resources["environment"] = open_mpi()
        directory = cluster.make_directory(f"mpi-{uuid.uuid4().hex}")
        one = Place(lambda res: running(config, resource_dict=res), resources, 2, directory, cluster)
    yield one
    assert one.left() == []


def rank_and_sum(value: int) -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(value + MPI.COMM_WORLD.rank)


def where() -> tuple[str | None, str, str]:
    return os.environ.get("SLURMD_NODENAME"), os.environ["OMP_NUM_THREADS"], os.getcwd()


def plus_rank(array: Any) -> Any:
    from mpi4py import MPI

    return array + MPI.COMM_WORLD.rank


def misbehave(how: str, rank: int, path: str | None = None) -> None:
    """One rank does not take part, the others wait for it inside MPI."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    world.Barrier()
    if path is not None:
        Path(path).with_name(f"{Path(path).name}-{world.rank}").write_text(str(os.getpid()))
    if world.rank == rank:
        if how == "raise":
            raise LookupError(f"rank {rank} has no data")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill with watch":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(100)  # it is killed with its watch, a moment later
        if how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "exit":
            os._exit(3)
        if how == "exit 0":
            os._exit(0)
        if how == "abort":
            world.Abort(7)
        if how == "sys.exit":
            sys.exit(4)
        if how == "wait":
            time.sleep(100)
    world.Barrier()


def test_every_rank_runs_the_function_and_the_result_is_a_list_by_rank(place: Place) -> None:
    there = place.directory / "new" / "a'; echo b ü"
    with place.executor(threads_per_core=1, cwd=str(there)) as exe:
        sums, places = exe.submit(rank_and_sum, 1), exe.submit(where)
        assert sums.result(60) == [(0, 6), (1, 6), (2, 6)]
        assert len({node for node, _, _ in places.result(60)}) == place.nodes
        assert [rest for _, *rest in places.result()] == [["1", str(there)]] * 3


def test_large_arrays_reach_all_ranks_and_come_back(place: Place) -> None:
    array = np.arange(500_000, dtype=float)
    with place.executor() as exe:
        results = exe.submit(plus_rank, array).result(60)

    assert [bool((result == array + rank).all()) for rank, result in enumerate(results)] == [True] * 3
    results[0][0] = 5.0  # may be changed, as any result


def test_results_are_inputs_of_other_tasks_and_theirs_of_mpi_functions(place: Place) -> None:
    one = {"cores": 1, "num_nodes": 1} if place.nodes > 1 else {"cores": 1}
    with place.executor() as exe:
        first = exe.submit(rank_and_sum, exe.submit(abs, -1, resource_dict=one))
        assert exe.submit(len, first, resource_dict=one).result(60) == 3
        second = exe.submit(rank_and_sum, exe.submit(len, first, resource_dict=one))
        assert second.result(60) == [(0, 12), (1, 12), (2, 12)]


def test_a_failed_input_fails_an_mpi_function_with_the_same_exception(place: Place) -> None:
    one = {"cores": 1, "num_nodes": 1} if place.nodes > 1 else {"cores": 1}
    with place.executor() as exe:
        first = exe.submit(misbehave, "raise", 0)
        assert exe.submit(rank_and_sum, [first]).exception(PROMPT_S) is first.exception()
        assert exe.submit(len, first, resource_dict=one).exception(PROMPT_S) is first.exception()


def test_a_raising_rank_ends_all_ranks_and_its_exception_says_which(place: Place) -> None:
    with place.executor() as exe:
        exc = exe.submit(misbehave, "raise", 1).exception(PROMPT_S)
        assert place.left(0.0) == [] or place.nodes > 1  # SLURM ends what is left of the job itself, a moment later

    assert isinstance(exc, LookupError)
    assert (str(exc), exc.mpi_rank) == ("rank 1 has no data", 1)  # type: ignore[attr-defined]
    assert str(exc.__cause__).startswith('\n"""\nMPI rank 1 of 3:\nTraceback')
    assert 'raise LookupError(f"rank {rank} has no data")' in str(exc.__cause__)


def test_sys_exit_on_one_rank_is_its_exception(place: Place) -> None:
    with place.executor() as exe:
        exc = exe.submit(misbehave, "sys.exit", 2).exception(PROMPT_S)

    assert isinstance(exc, SystemExit)
    assert (exc.code, exc.mpi_rank) == (4, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("how", "code", "number", "words"),
    [
        ("kill", None, 9, "was ended by SIGKILL"),
        ("segfault", None, 11, "was ended by SIGSEGV"),
        ("exit", 3, None, "ended itself with exit code 3"),
        ("exit 0", 0, None, "ended itself with exit code 0"),
        ("abort", 7, None, "called MPI_Abort with error code 7"),
    ],
)
def test_a_rank_that_ends_is_a_lost_task_that_names_it(
    place: Place, how: str, code: int | None, number: int | None, words: str
) -> None:
    with place.executor() as exe:
        exc = exe.submit(misbehave, how, 1).exception(PROMPT_S)

    assert isinstance(exc, errors.TaskKilled)
    assert (exc.mpi_rank, exc.exit_code, exc.signal) == (1, code, number)  # type: ignore[attr-defined]
    assert "MPI rank 1 of 3 (pid " in str(exc)
    assert words in str(exc)
    assert exc.log_path is not None
    assert exc.log_path in str(exc)


def test_a_rank_whose_watch_is_killed_is_a_lost_task(place: Place) -> None:
    with place.executor() as exe:
        exc = exe.submit(misbehave, "kill with watch", 1).exception(PROMPT_S)

    assert isinstance(exc, errors.TaskKilled)
    assert "of 3" in str(exc)
    assert place.cluster is None or exc.mpi_rank == 1  # type: ignore[attr-defined]  # srun says so; MPICH's mpiexec not


def lock_on_one_rank() -> Any:
    import threading

    from mpi4py import MPI

    return threading.Lock() if MPI.COMM_WORLD.rank == 2 else None


def test_a_result_that_cannot_be_pickled_names_its_rank(place: Place) -> None:
    with place.executor() as exe:
        exc = exe.submit(lock_on_one_rank).exception(PROMPT_S)

    assert isinstance(exc, errors.ResultNotPicklable)
    assert exc.mpi_rank == 2  # type: ignore[attr-defined]


def finalize() -> None:
    from mpi4py import MPI

    MPI.Finalize()


def test_a_function_that_finalises_mpi_is_told_so(place: Place) -> None:
    with place.executor() as exe, pytest.raises(RuntimeError, match="the function has finalised MPI"):
        exe.submit(finalize).result(PROMPT_S)


def leave_messages() -> int:
    """What nobody receives, and a request that never completes."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    world.isend("never received", (world.rank + 1) % world.size)
    world.irecv(source=(world.rank + 1) % world.size, tag=77)
    return int(world.rank)


def test_messages_that_the_function_leaves_under_way_harm_nobody(place: Place) -> None:
    with place.executor() as exe:
        assert exe.submit(leave_messages).result(60) == [0, 1, 2]


def there(path: Path, ranks: int = 3) -> list[int]:
    """Wait for `misbehave` to say that all ranks run; their pids."""
    files = [path.with_name(f"{path.name}-{rank}") for rank in range(ranks)]
    end = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < end, "the ranks do not start"
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def test_a_time_limit_ends_all_ranks(place: Place) -> None:
    path = place.new()
    with place.executor(**({"run_time_max": 8} if place.cluster is None else {})) as exe:
        future = exe.submit(misbehave, "wait", 1, str(path))
        there(path)
        if place.cluster is not None:
            job = place.cluster.run(["squeue", "--noheader", "--format=%i"]).stdout.strip()
            place.cluster.end_soon(job)
        assert isinstance(future.exception(60), errors.TaskTimeout)
        assert place.left() == []


def test_scancel_from_outside_is_a_cancelled_task_and_ends_all_ranks(place: Place) -> None:
    if place.cluster is None:
        pytest.skip("the embedded scheduler has no scancel")
    path = place.new()
    with place.executor() as exe:
        future = exe.submit(misbehave, "wait", 1, str(path))
        there(path)
        place.cluster.run(["scancel", place.cluster.run(["squeue", "--noheader", "--format=%i"]).stdout.strip()])
        assert isinstance(future.exception(PROMPT_S), errors.TaskCancelled)
        assert place.left() == []


def test_a_wrong_pmi_says_which_are_there_and_what_to_do(place: Place) -> None:
    if place.cluster is None:
        pytest.skip("the embedded scheduler has no PMI")
    wrong = "pmi2" if "environment" in place.resources else "pmix"
    with place.executor(pmi_mode=wrong) as exe:
        exc = exe.submit(rank_and_sum, 1).exception(PROMPT_S)

    assert isinstance(exc, errors.RunnerMissing)
    assert f"3 MPI ranks were not started: srun --mpi={wrong}: " in str(exc)
    assert "srun offers --mpi=pmix, none, cray_shasta, pmi2, pmix_v4: name the one that fits with pmi_mode" in str(exc)


def test_ranks_that_are_each_alone_are_an_error(slurm_config: ClusterConfig) -> None:
    with running(slurm_config, resource_dict={**TWO_NODES, "pmi_mode": "pmi1"}) as exe:
        exc = exe.submit(rank_and_sum, 1).exception(PROMPT_S)

    assert isinstance(exc, errors.RunnerMissing)
    assert "srun --mpi=none: 3 ranks were started, and MPI counts 1; mpi4py uses MPICH" in str(exc)


def test_where_srun_is_missing_mpiexec_starts_the_ranks_of_one_node(
    slurm_cluster: SlurmCluster, slurm_config: ClusterConfig
) -> None:
    nowhere = {"PATH": str(slurm_cluster.make_directory(f"bin-{uuid.uuid4().hex}"))}
    exe: Any
    with running(slurm_config, resource_dict={"cores": 2, "num_nodes": 1, "environment": nowhere}) as exe:
        assert exe.submit(rank_and_sum, 1).result(60) == [(0, 3), (1, 3)]
        assert len({node for node, _, _ in exe.submit(where).result(60)} & set(slurm_cluster.nodes)) == 1
        two = exe.submit(rank_and_sum, 1, resource_dict={"num_nodes": 2}).exception(PROMPT_S)
        other = {**nowhere, "REMOTEEXEC_MPIEXEC": "/no"}
        none = exe.submit(rank_and_sum, 1, resource_dict={"environment": other}).exception(PROMPT_S)

    assert [type(two), type(none)] == [errors.RunnerMissing] * 2
    assert "2 MPI ranks were not started: there is nothing on " in str(two)
    assert "and no srun in PATH" in str(two)
    assert "and no srun in PATH, nor an mpiexec" in str(none)


def fill_memory() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        block = b"x" * (1 << 30)
        time.sleep(100 + len(block) * 0)
    MPI.COMM_WORLD.Barrier()


def test_a_rank_without_memory_is_told_so(net_cluster: NetCluster, net_config: ClusterConfig) -> None:
    with running(net_config, resource_dict={"cores": 2, "num_nodes": 1, "memory_max": 0.3}) as exe:
        exc = exe.submit(fill_memory).exception(PROMPT_S)

    assert isinstance(exc, errors.TaskOutOfMemory)
    assert "memory_max 0.3 GB" in str(exc)


def test_calls_of_one_map_are_one_array_and_each_has_its_ranks(place: Place) -> None:
    with place.executor() as exe:
        assert list(exe.map(rank_and_sum, [1, 2])) == [[(r, 3 * value + 3) for r in range(3)] for value in (1, 2)]


def test_more_ranks_than_there_are_cores_are_refused_in_the_schedulers_words(tmp_path: Path) -> None:
    with local(tmp_path / "root", {"cores": 10_000}) as exe, pytest.raises(errors.SubmitRejected, match="10000 cores"):
        exe.submit(rank_and_sum, 1).result(PROMPT_S)


@pytest.mark.parametrize("library", ["MPICH", "Open MPI"])
def test_where_no_pmi_of_srun_fits_mpiexec_starts_the_ranks_on_all_nodes(
    net_cluster: NetCluster, net_config: ClusterConfig, library: str
) -> None:
    there = net_cluster.make_directory(f"bin-{uuid.uuid4().hex}")
    script = '#!/bin/sh\n[ "$1" = --mpi=list ] && exec echo none\nexec /usr/bin/srun "$@"\n'
    net_cluster.run(["sh", "-c", f"cat >{there}/srun && chmod +x {there}/srun"], input=script)
    environment = {"PATH": f"{there}:{net_cluster.environment['PATH']}"}
    if library == "Open MPI":
        environment |= open_mpi()
    exe: Any
    with running(net_config, resource_dict={"cores": 4, "num_nodes": 2, "environment": environment}) as exe:
        assert exe.submit(rank_and_sum, 1).result(60) == [(0, 10), (1, 10), (2, 10), (3, 10)]
        assert len({node for node, _, _ in exe.submit(where).result(60)}) == 2
        exc = exe.submit(misbehave, "kill", 3).exception(PROMPT_S)

    assert isinstance(exc, errors.TaskKilled)
    assert (exc.mpi_rank, exc.signal) == (3, signal.SIGKILL)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["result", "kill"])
def test_ranks_on_hosts_of_their_own(net_cluster: NetCluster, net_config: ClusterConfig, how: str) -> None:
    mark = uuid.uuid4().hex
    resources = {"cores": 4, "num_nodes": 4, "environment": {MARK: mark}}
    exe: Any  # the static type of a call's result knows nothing of ranks
    with running(net_config, resource_dict=resources) as exe:
        if how == "result":
            assert exe.submit(rank_and_sum, 1).result(60) == [(0, 10), (1, 10), (2, 10), (3, 10)]
            assert [node for node, _, _ in exe.submit(where).result(60)] == net_cluster.nodes
        else:
            exc = exe.submit(misbehave, "kill", 3).exception(PROMPT_S)
            assert isinstance(exc, errors.TaskKilled)
            assert (exc.mpi_rank, exc.signal) == (3, signal.SIGKILL)  # type: ignore[attr-defined]
            assert " on n4) was ended by SIGKILL" in str(exc)
    end = time.monotonic() + 10
    while living(f"{MARK}={mark}") and time.monotonic() < end:
        time.sleep(0.05)
    assert living(f"{MARK}={mark}") == []
