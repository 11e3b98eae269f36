"""MPI functions on this machine: what may go wrong, and that nothing is left.

With whichever MPI mpi4py finds here, and with the system's Open MPI.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import SingleNodeExecutor, current_executor, errors, worker_id
from remoteexec.pool.mpi import launch
from remoteexec_server import mpi_program
from remoteexec_server.wire.resources import Resources
from tests.clusters.accounts import OPEN_MPI
from tests.conftest import skip_for_want_of
from tests.leftovers import gone, living

THREE: dict[str, Any] = {"cores": 3, "openmpi_oversubscribe": True}
SHARED = Path("/dev/shm")
Make = Callable[..., Any]  # the static type of a call's result knows nothing of ranks


def executor(**options: Any) -> Any:
    """A SingleNodeExecutor."""
    return SingleNodeExecutor(**options)


def left_in_memory() -> set[str]:
    """What MPI and we keep in shared memory."""
    names = ("remoteexec-mpi-", "mpich_shm", "vader_segment", "sm_segment")
    if not SHARED.is_dir():
        return set()
    with contextlib.suppress(FileNotFoundError):  # somebody's file went meanwhile
        return {
            path.name for path in SHARED.glob("*") if path.name.startswith(names) and path.stat().st_uid == os.geteuid()
        }
    return left_in_memory()


@pytest.fixture(scope="module", autouse=True, params=["mpi4py's", "Open MPI"])
def _mpi(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "Open MPI":
            use_open_mpi(patch)
        see_that_ranks_can_start()
        yield


def use_open_mpi(patch: pytest.MonkeyPatch) -> None:
    """Let mpi4py, in all that is started from here on, use the Open MPI that the system has."""
    mpiexec = "mpiexec.openmpi"
    if shutil.which(mpiexec) is None or OPEN_MPI is None:
        skip_for_want_of("mpi", "not installed: openmpi-bin libopenmpi3")
    patch.setenv("REMOTEEXEC_MPIEXEC", mpiexec)
    patch.setenv("MPI4PY_LIBMPI", str(OPEN_MPI))


def see_that_ranks_can_start() -> None:
    """Skip the test where they cannot."""
    try:
        launch(Resources(cores=2))
    except (ImportError, errors.RunnerMissing) as exc:
        skip_for_want_of("mpi", str(exc))


@pytest.fixture
def mark(process_mark: str) -> Iterator[str]:
    """See process_mark; no file is left either. Another MPI program may have some at that moment: it is waited for."""
    before = left_in_memory()
    yield process_mark
    assert gone(process_mark) == []
    end = time.monotonic() + 10
    while (left := left_in_memory() - before) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == set()


@pytest.fixture(params=["fresh", "kept"])
def make(request: pytest.FixtureRequest, mark: str) -> Make:
    """Makes an executor whose calls run on three ranks, one after the other."""
    kept = request.param == "kept"

    def made(**more: Any) -> Any:
        return executor(**{"max_cores": 3, "resource_dict": THREE, "block_allocation": kept, **more})

    return made


def rank_and_sum(value: int) -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(value + MPI.COMM_WORLD.rank)


def misbehave(how: str, rank: int) -> None:
    """One rank does not take part, the others wait for it inside MPI."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.rank == rank:
        if how == "raise":
            raise LookupError(f"rank {rank} has no data")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(3)
        if how == "exit 0":
            os._exit(0)
        if how == "abort":
            world.Abort(7)
        if how == "sys.exit":
            sys.exit(4)
    world.Barrier()


def plus_rank(array: Any) -> Any:
    from mpi4py import MPI

    return array + MPI.COMM_WORLD.rank


def test_every_rank_runs_the_function_and_the_result_is_a_list_by_rank(make: Make) -> None:
    with make() as exe:
        assert exe.submit(rank_and_sum, 1).result() == [(0, 6), (1, 6), (2, 6)]


def test_a_call_may_have_ranks_where_the_executors_others_have_none(mark: str) -> None:
    with executor(max_cores=3) as exe:
        several = exe.submit(rank_and_sum, 1, resource_dict=THREE)
        assert exe.submit(sum, [1, 2]).result() == 3
        assert several.result() == [(0, 6), (1, 6), (2, 6)]


def test_large_arrays_reach_all_ranks_and_come_back(make: Make) -> None:
    array = np.arange(1_000_000, dtype=float)
    with make() as exe:
        results = exe.submit(plus_rank, array).result()

    assert [bool((result == array + rank).all()) for rank, result in enumerate(results)] == [True] * 3
    results[0][0] = 5.0  # may be changed, as any result


def test_futures_are_inputs_and_outputs_of_mpi_functions(make: Make) -> None:
    with make() as exe, executor(max_workers=1) as other:
        first = exe.submit(rank_and_sum, other.submit(abs, -1))
        assert other.submit(len, first).result() == 3
        assert exe.submit(rank_and_sum, other.submit(len, first)).result() == [(0, 12), (1, 12), (2, 12)]


def add(a: int, b: int) -> int:
    return a + b


def meet(me: str, other: str) -> bool:
    """Wait for the other call to be there."""
    Path(me).touch()
    end = time.monotonic() + 30
    while not Path(other).exists() and time.monotonic() < end:
        time.sleep(0.01)
    return Path(other).exists()


def test_two_mpi_functions_run_at_once(make: Make, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    with make(max_cores=6) as exe:
        calls = [exe.submit(meet, one, two), exe.submit(meet, two, one)]
        assert [call.result() for call in calls] == [[True] * 3] * 2


def test_a_raising_rank_ends_all_ranks_and_its_exception_says_which(make: Make, mark: str) -> None:
    started = time.monotonic()
    with make() as exe:
        with pytest.raises(LookupError, match="rank 1 has no data") as caught:
            exe.submit(misbehave, "raise", 1).result()
        assert gone(mark, "mpi-rank") == []

    assert time.monotonic() - started < 15
    assert caught.value.mpi_rank == 1  # type: ignore[attr-defined]
    assert 'raise LookupError(f"rank {rank} has no data")' in str(caught.value.__cause__)
    assert "MPI rank 1 of 3:\nTraceback" in str(caught.value.__cause__)


def test_sys_exit_on_one_rank_is_its_exception(make: Make) -> None:
    with make() as exe, pytest.raises(SystemExit) as caught:
        exe.submit(misbehave, "sys.exit", 2).result()

    assert (caught.value.code, caught.value.mpi_rank) == (4, 2)  # type: ignore[attr-defined]


def abort_of_a_part() -> None:
    from mpi4py import MPI

    half = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank % 2)
    if MPI.COMM_WORLD.rank == 2:
        half.Abort(7)
    MPI.COMM_WORLD.recv(source=2)


def test_an_abort_names_its_rank_and_its_code(make: Make) -> None:
    with make() as exe:
        with pytest.raises(errors.TaskKilled, match=r"MPI rank 2 of 3 .* called MPI_Abort with error code 7") as caught:
            exe.submit(misbehave, "abort", 2).result()
    assert caught.value.mpi_rank == 2  # type: ignore[attr-defined]


def test_an_abort_of_some_ranks_communicator_ends_all(make: Make) -> None:
    with make() as exe, pytest.raises(errors.TaskKilled, match=r"MPI rank \d of 3 \(pid \d+\) (was )?ended"):
        exe.submit(abort_of_a_part).result()


@pytest.mark.parametrize(
    ("how", "did", "status"),
    [
        ("kill", "was ended by SIGKILL", (None, signal.SIGKILL)),
        ("exit", "ended itself with exit code 3", (3, None)),
        ("exit 0", "ended itself with exit code 0", (0, None)),
    ],
)
def test_a_rank_that_ends_is_a_lost_task_that_names_it_and_says_how(
    make: Make, how: str, did: str, status: tuple[int | None, int | None]
) -> None:
    started = time.monotonic()
    with make() as exe, pytest.raises(errors.TaskKilled, match=rf"MPI rank 1 of 3 \(pid \d+\) {did}") as caught:
        exe.submit(misbehave, how, 1).result()

    assert time.monotonic() - started < 15
    assert caught.value.mpi_rank == 1  # type: ignore[attr-defined]
    assert (caught.value.exit_code, caught.value.signal) == status


def stop_one_rank(rank: int) -> int:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    MPI.COMM_WORLD.Barrier()
    return os.getpid()


def test_a_rank_that_is_stopped_is_named_in_a_warning_and_goes_on_later(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with make() as exe:
        future = exe.submit(stop_one_rank, 1)
        end = time.monotonic() + 20
        while not caplog.records and time.monotonic() < end:
            time.sleep(0.05)
        (said,) = [record.getMessage() for record in caplog.records]
        found = re.fullmatch(
            r"task \w+ \(stop_one_rank\) waits: the process (\d+) of its MPI rank 1 was stopped by a signal; "
            r"`kill -CONT \1` lets it go on, cancel\(\) of its future ends it",
            said,
        )
        assert found is not None
        os.kill(int(found[1]), signal.SIGCONT)
        assert future.result()[1] == int(found[1])


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Three times as many processes that compute as there are cores."""
    count = 3 * len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy_machine")
def test_the_rank_that_ended_first_is_named_on_a_busy_machine(mark: str) -> None:
    """Connections are seen to end in another order there: one in twenty calls named a rank that mpiexec had ended."""
    with executor(max_cores=3, resource_dict=THREE) as exe:
        ended = [exe.submit(misbehave, "kill", at % 3).exception() for at in range(12)]

    assert [getattr(exc, "mpi_rank", exc) for exc in ended] == [0, 1, 2] * 4


def test_after_a_failure_calls_run_as_before(make: Make) -> None:
    with make() as exe:
        failed = exe.submit(misbehave, "raise", 0)
        assert exe.submit(rank_and_sum, 1).result() == [(0, 6), (1, 6), (2, 6)]
        assert isinstance(failed.exception(), LookupError)


def lock_on_one_rank() -> Any:
    import threading

    from mpi4py import MPI

    return threading.Lock() if MPI.COMM_WORLD.rank == 2 else None


def test_a_result_that_cannot_be_pickled_names_its_rank(make: Make) -> None:
    with make() as exe, pytest.raises(errors.ResultNotPicklable, match=r"returned a _thread\.lock") as caught:
        exe.submit(lock_on_one_rank).result()

    assert caught.value.mpi_rank == 2  # type: ignore[attr-defined]


def child_and_wait() -> None:
    """A process of the rank's own, and a rank that does not end."""
    from mpi4py import MPI

    subprocess.Popen(["sleep", "300"])
    if MPI.COMM_WORLD.rank == 0:
        MPI.COMM_WORLD.recv(source=1)
    time.sleep(300)


def test_ranks_over_their_time_are_ended_with_all_they_started(make: Make, mark: str) -> None:
    with make(resource_dict={**THREE, "run_time_max": 2}) as exe:
        with pytest.raises(errors.TaskTimeout):
            exe.submit(child_and_wait).result()
        assert gone(mark, "sleep") == []


def test_a_waiting_mpi_function_can_be_cancelled(make: Make, tmp_path: Path) -> None:
    with make() as exe:
        first = exe.submit(meet, str(tmp_path / "a"), str(tmp_path / "b"))
        waiting = exe.submit(meet, str(tmp_path / "c"), str(tmp_path / "a"))
        assert waiting.cancel()
        (tmp_path / "b").touch()
        assert first.result() == [True] * 3
    assert not (tmp_path / "c").exists()


def where() -> tuple[str, str, int]:
    return os.getcwd(), os.environ["OMP_NUM_THREADS"], os.getpid()


def test_ranks_have_the_directory_and_the_threads_of_the_call(make: Make, tmp_path: Path) -> None:
    there = tmp_path / "new" / "a'; echo b ü"
    with make(max_cores=6, resource_dict={**THREE, "cwd": str(there), "threads_per_core": 2}) as exe:
        ranks = exe.submit(where).result()

    assert [rank[:2] for rank in ranks] == [(str(there), "2")] * 3


def test_more_ranks_than_cores_are_refused_by_submit(mark: str) -> None:
    with executor(max_cores=2) as exe, pytest.raises(ValueError, match="asks for 3 cores"):
        exe.submit(rank_and_sum, 1, resource_dict={"cores": 3})


def remember(value: int) -> tuple[int, list[int]]:
    """The process, and what it was told by earlier calls."""
    import builtins

    told: list[int] = builtins.__dict__.setdefault("_remoteexec_test_told", [])
    told.append(value)
    return os.getpid(), told


def test_kept_ranks_stay_from_call_to_call(mark: str) -> None:
    with executor(max_workers=1, resource_dict={"cores": 2}, block_allocation=True) as exe:
        exe.submit(remember, 1).result()
        (first, told), (second, _) = exe.submit(remember, 2).result()
        assert told == [1, 2]
        with pytest.raises(LookupError):
            exe.submit(misbehave, "raise", 0).result()
        (third, told), _ = exe.submit(remember, 3).result()

    assert (len({first, second, third}), told) == (3, [3])


def rank_of_start(executorlib_worker_id: int) -> dict[str, Any]:
    from mpi4py import MPI

    return {"start": MPI.COMM_WORLD.rank * 10 + executorlib_worker_id}


def from_start(step: int, start: int) -> int:
    return start + step


def number(executorlib_worker_id: int | None = None) -> tuple[int | None, int | None]:
    return worker_id(), executorlib_worker_id


def test_ranks_are_one_worker(mark: str) -> None:
    with executor(max_workers=1, resource_dict={"cores": 2}, block_allocation=True) as exe:
        assert exe.submit(number).result() == [(0, 0)] * 2
    with executor(max_cores=2, resource_dict={"cores": 2}) as exe:
        assert exe.submit(number).result() == [(None, None)] * 2


def program_inside() -> Any:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        return None
    with SingleNodeExecutor(max_cores=2) as exe:
        return exe.submit(rank_and_sum, 1, resource_dict={"cores": 2}).result()


def test_a_rank_may_run_mpi_functions_itself(make: Make) -> None:
    with make(max_cores=2, resource_dict={"cores": 2}) as exe:
        assert exe.submit(program_inside).result() == [[(0, 3), (1, 3)], None]


def test_debugging_refuses_several_ranks_since_the_caller_is_one(mark: str) -> None:
    rule = "cores=3 with debug=True: calls run in this process, which is a single MPI rank; leave out debug"
    initialised: list[int] = []
    with pytest.raises(ValueError, match=rule):
        executor(debug=True, resource_dict=THREE, block_allocation=True, init_function=lambda: initialised.append(1))
    with executor(max_cores=3, debug=True) as exe:
        with pytest.raises(ValueError, match=rule):
            exe.submit(initialised.append, 2, resource_dict=THREE)
        assert exe.submit(add, 1, 2).result() == 3
    assert initialised == []


def submit_more() -> None:
    current_executor().submit(len, [])


def test_ranks_cannot_submit_to_their_executor(make: Make) -> None:
    with make() as exe, pytest.raises(RuntimeError, match=r"current_executor\(\) is for tasks"):
        exe.submit(submit_more).result()


def test_init_function_runs_on_every_rank(mark: str) -> None:
    options: dict[str, Any] = {"max_workers": 1, "resource_dict": {"cores": 2}, "block_allocation": True}
    with executor(**options, init_function=rank_of_start) as exe:
        assert exe.submit(from_start, 1).result() == [1, 11]


def test_kept_ranks_that_ended_are_started_again_as_often_as_the_limit_says(mark: str) -> None:
    options: dict[str, Any] = {"max_workers": 1, "resource_dict": {"cores": 2}, "block_allocation": True}
    with executor(**options, restart_limit=1) as exe:
        with pytest.raises(errors.TaskKilled):
            exe.submit(misbehave, "kill", 0).result()
        assert exe.submit(rank_and_sum, 1).result() == [(0, 3), (1, 3)]
        with pytest.raises(errors.TaskKilled):
            exe.submit(misbehave, "kill", 1).result()
        with pytest.raises(errors.TaskLost):
            exe.submit(rank_and_sum, 1).result()


def test_an_mpiexec_that_fails_is_an_error_with_its_words(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTEEXEC_MPIEXEC", "/bin/sh -c 'echo no licence >&2; exit 4' --")
    with make() as exe:
        exc = exe.submit(rank_and_sum, 1).exception()

    assert isinstance(exc, errors.RunnerMissing)
    assert "ended itself with exit code 4\nno licence" in str(exc)


def test_ranks_that_count_themselves_only_are_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an mpiexec of another MPI than mpi4py's."""
    monkeypatch.setenv("REMOTEEXEC_MPIEXEC", """/bin/sh -c 'shift 2; "$@" & "$@" & "$@" & wait' --""")
    with make() as exe:
        exc = exe.submit(rank_and_sum, 1).exception()

    assert isinstance(exc, errors.RunnerMissing)
    assert "started 3 ranks, and MPI counts 1: mpi4py uses" in str(exc)
    assert "REMOTEEXEC_MPIEXEC" in str(exc)


def test_ranks_that_never_come_are_an_error_in_bounded_time(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setattr(mpi_program, "_START_S", 0.3)
    monkeypatch.setattr(mpi_program, "_TICK_S", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = mpi_program.Program({"launch": (2, ["/bin/sh", "-c", "sleep 60"], False, False)}, ours, 0)
        with pytest.raises(mpi_program.RanksDidNotStart, match=r"2 of 2 ranks that .* started have not connected"):
            program.start()


def test_a_caller_that_is_killed_leaves_nothing_behind(make: Make, mark: str, tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    kept = "kept" in os.environ["PYTEST_CURRENT_TEST"]
    script.write_text(
        textwrap.dedent(f"""
        import subprocess, time
        from remoteexec import SingleNodeExecutor

        def f(path):
            from mpi4py import MPI
            subprocess.Popen(["sleep", "300"])
            open(path + str(MPI.COMM_WORLD.rank), "w").close()
            MPI.COMM_WORLD.recv(source=(MPI.COMM_WORLD.rank + 1) % 3)

        exe = SingleNodeExecutor(max_cores=3, resource_dict={THREE!r}, block_allocation={kept})
        exe.submit(f, {str(tmp_path / "rank")!r}).result()
        """)
    )
    with subprocess.Popen([sys.executable, str(script)]) as caller:
        end = time.monotonic() + 30
        while len(list(tmp_path.glob("rank*"))) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        found = len([line for line in living(mark) if "sleep" in line or "mpi-rank" in line])
        caller.kill()
    assert found >= 6
    assert gone(mark) == []


def test_what_ranks_print_is_shown_before_the_result_is_there(mark: str, tmp_path: Path) -> None:
    script = tmp_path / "prints.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from remoteexec import SingleNodeExecutor

        def f():
            print("to stdout")
            print("to stderr", file=sys.stderr)

        with SingleNodeExecutor(max_cores=2) as exe:
            exe.submit(f, resource_dict={"cores": 2}).result()
            print("after", flush=True)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)

    assert (done.stdout.count("to stdout"), done.stderr.count("to stderr")) == (2, 2)
    assert done.stdout.endswith("after\n")
