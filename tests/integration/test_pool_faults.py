"""What goes wrong on one machine: no future waits for ever, nothing is left behind, no wrong answer is given."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remoteexec
import remoteexec_server.worker
from remoteexec import SingleNodeExecutor, errors
from tests.integration.pool_tools import (
    add_one,
    alive,
    both_modes,
    descendants,
    eventually,
    executor,
    kill_self,
    own_pid,
    sleep_after_saying,
)

pytestmark = pytest.mark.usefixtures("process_mark")

# ---- workers that die ----


@both_modes
def test_a_worker_killed_while_it_runs_fails_that_call_alone(kept: bool) -> None:
    with executor(kept, restart_limit=1) as exe:
        doomed = exe.submit(kill_self)
        others = [exe.submit(add_one, n) for n in range(20)]
        with pytest.raises(errors.TaskKilled, match="SIGKILL") as caught:
            doomed.result(timeout=20)
        assert (caught.value.signal, caught.value.exit_code) == (signal.SIGKILL, None)
        assert [future.result(timeout=20) for future in others] == list(range(1, 21))


def test_a_kept_worker_killed_while_it_is_idle_is_replaced_and_no_call_is_lost() -> None:
    with executor(True, workers=1, restart_limit=2) as exe:
        first = exe.submit(own_pid).result(timeout=20)
        os.kill(first, signal.SIGKILL)
        # told or not, the call runs on a worker that is alive, or says that its worker was killed
        try:
            second = exe.submit(own_pid).result(timeout=20)
        except errors.TaskKilled:
            second = exe.submit(own_pid).result(timeout=20)
        assert second != first


def test_a_call_given_to_a_worker_that_died_idle_runs_on_its_replacement() -> None:
    with executor(True, workers=1, restart_limit=1) as exe:
        first = exe.submit(own_pid).result(timeout=20)
        os.kill(first, signal.SIGSTOP)  # so that it takes no token any more
        array = np.arange(10_000)
        future = exe.submit(np.sum, array)
        array[:] = 0  # what was submitted is what counts
        time.sleep(0.05)
        os.kill(first, signal.SIGKILL)
        assert future.result(timeout=20) == 49_995_000


class SendsApart:
    """A worker's socket that is killed with its worker when a MiB of a large result has left, which it says in a file:
    more than it holds, so the pool has read some."""

    def __init__(self, sock: Any, said: str) -> None:
        self._sock, self._said = sock, said

    def sendall(self, data: Any) -> None:
        """Send it, or a part of it."""
        view = memoryview(data).cast("B")
        self._sock.sendall(view[: 1 << 20])
        if len(view) > 1 << 20:
            Path(self._said).touch()
            kill_self()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def die_half_sent(said: str) -> Any:
    worker: Any = remoteexec_server.worker.current()
    worker._sock = SendsApart(worker._sock, said)
    return np.zeros(1 << 23)


@both_modes
def test_a_worker_killed_while_it_sends_fails_its_call_and_no_other(kept: bool, tmp_path: Path) -> None:
    with executor(kept, restart_limit=1) as exe:
        doomed = exe.submit(die_half_sent, str(tmp_path / "begun"))
        assert exe.submit(add_one, 1).result(timeout=20) == 2
        with pytest.raises(errors.TaskKilled, match="SIGKILL"):
            doomed.result(timeout=20)
        assert (tmp_path / "begun").exists()
        assert exe.submit(add_one, 2).result(timeout=20) == 3


@both_modes
def test_a_worker_that_stops_answering_is_ended_after_run_time_max(kept: bool) -> None:
    with executor(kept, resource_dict={"run_time_max": 1}) as exe:
        started = time.monotonic()
        stopped = exe.submit(kill_self, signal.SIGSTOP)
        with pytest.raises(errors.TaskTimeout, match="run_time_max"):
            stopped.result(timeout=20)
        assert time.monotonic() - started < 5
        assert exe.submit(add_one, 1).result(timeout=20) == 2


def test_a_large_argument_for_a_stopped_worker_holds_nobody_up() -> None:
    with executor(True, workers=2) as exe:
        busy = [exe.submit(time.sleep, 0.3) for _ in range(2)]
        assert [future.result(timeout=20) for future in busy] == [None, None]
        victim = exe.submit(own_pid).result(timeout=20)  # the one that is given the next call, too
        os.kill(victim, signal.SIGSTOP)
        try:
            started = time.monotonic()
            large = exe.submit(np.sum, np.ones(4_000_000))
            assert time.monotonic() - started < 5
            assert [exe.submit(add_one, n).result(timeout=20) for n in range(5)] == [1, 2, 3, 4, 5]
            assert large.result(timeout=20) == 4_000_000  # from the other worker
        finally:
            os.kill(victim, signal.SIGCONT)


@both_modes
def test_a_call_whose_process_is_stopped_is_named_in_a_warning_and_goes_on_later(
    kept: bool, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    said = tmp_path / "pid"
    with executor(kept) as exe:
        halted = exe.submit(sleep_after_saying, str(said), 0.3)
        eventually(said.exists)
        pid = int(said.read_text())
        os.kill(pid, signal.SIGSTOP)
        assert [exe.submit(add_one, n).result(timeout=20) for n in range(20)] == list(range(1, 21))
        eventually(lambda: caplog.records)
        time.sleep(0.5)
        assert (halted.done(), halted.task.state) == (False, "running")
        os.kill(pid, signal.SIGCONT)
        assert halted.result(timeout=20) == pid
    assert [record.getMessage() for record in caplog.records] == [
        f"task {halted.key} (sleep_after_saying) waits: its process {pid} was stopped by a signal; "
        f"`kill -CONT {pid}` lets it go on, cancel() of its future ends it"
    ]


@both_modes
def test_a_call_whose_process_is_stopped_can_be_cancelled(kept: bool, tmp_path: Path) -> None:
    said = tmp_path / "pid"
    with executor(kept, workers=1) as exe:
        halted = exe.submit(sleep_after_saying, str(said))
        eventually(said.exists)
        os.kill(int(said.read_text()), signal.SIGSTOP)
        assert halted.cancel()
        assert exe.submit(add_one, 1).result(timeout=20) == 2


def test_what_waits_behind_a_call_whose_process_is_stopped_runs_elsewhere(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    with executor(True) as exe:
        halted = exe.submit(sleep_after_saying, str(said), 0.2)
        other = exe.submit(time.sleep, 0.2)
        eventually(said.exists)
        behind = [exe.submit(own_pid) for _ in range(20)]
        pid = int(said.read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            assert other.result(timeout=20) is None
            assert pid not in [future.result(timeout=20) for future in behind]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert halted.result(timeout=20) == pid


def test_an_idle_worker_that_is_stopped_gets_no_calls_until_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with executor(True, workers=1) as exe:
        pid = exe.submit(own_pid).result(timeout=20)
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: caplog.records)
        waiting = exe.submit(own_pid)
        assert len(exe) == 1
        os.kill(pid, signal.SIGCONT)
        assert waiting.result(timeout=20) == pid
    assert [record.getMessage() for record in caplog.records] == [
        f"process {pid} of a worker was stopped by a signal and gets no calls: `kill -CONT {pid}` lets it go on"
    ]


@both_modes
def test_os_exit_in_a_task_is_an_error_with_its_exit_code(kept: bool) -> None:
    with executor(kept, restart_limit=1) as exe:
        with pytest.raises(errors.TaskKilled, match="exit code 7") as caught:
            exe.submit(os._exit, 7).result(timeout=20)
        assert (caught.value.exit_code, caught.value.signal) == (7, None)
        assert exe.submit(add_one, 1).result(timeout=20) == 2


@both_modes
@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt("here"), GeneratorExit()])
def test_exceptions_that_end_a_program_are_the_calls_own(kept: bool, raised: BaseException) -> None:
    def leave() -> None:
        raise raised

    with executor(kept, workers=1) as exe:
        exc = exe.submit(leave).exception(timeout=20)
        assert (type(exc), exc.args if exc is not None else ()) == (type(raised), raised.args)
        assert exe.submit(add_one, 1).result(timeout=20) == 2


def test_without_restarts_the_calls_of_dead_workers_fail_and_say_so() -> None:
    with executor(True, workers=1) as exe:
        exe.submit(kill_self).exception(timeout=20)
        with pytest.raises(errors.TaskKilled, match="its last worker was ended by SIGKILL"):
            exe.submit(add_one, 1).result(timeout=20)


@both_modes
def test_what_depends_on_a_call_that_died_fails_with_the_same_error(kept: bool) -> None:
    with executor(kept, restart_limit=1) as exe:
        doomed = exe.submit(kill_self)
        dependant = exe.submit(add_one, exe.submit(add_one, doomed))
        assert isinstance(doomed.exception(timeout=20), errors.TaskKilled)
        assert dependant.exception(timeout=20) is doomed.exception()
        assert exe.submit(add_one, 1).result(timeout=20) == 2


def test_an_init_function_that_ends_its_worker_fails_all_calls() -> None:
    def leave() -> dict[str, int]:
        os._exit(9)

    with executor(True, restart_limit=3, init_function=leave) as exe:
        futures = [exe.submit(add_one, n) for n in range(5)]
        assert [type(future.exception(timeout=20)) for future in futures] == [errors.TaskKilled] * 5


@both_modes
def test_nothing_is_computed_here_while_calls_run_and_wait(kept: bool) -> None:
    with executor(kept) as exe:
        futures = [exe.submit(time.sleep, 0.6) for _ in range(2)]
        waiting = [exe.submit(add_one, n) for n in range(500)]
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.4)
        assert time.process_time() - before < 0.04
        assert [future.result(timeout=20) for future in futures] == [None, None]
        assert [future.result(timeout=60) for future in waiting] == list(range(1, 501))


@both_modes
def test_the_end_of_the_zygote_fails_what_runs_and_the_rest_runs_in_those_of_another(
    kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = [tmp_path / "one", tmp_path / "two"]
    with executor(kept) as exe:
        for _ in range(2):
            running = [exe.submit(sleep_after_saying, str(path)) for path in said]
            waiting = [exe.submit(add_one, n) for n in range(5)]
            eventually(lambda: all(path.exists() for path in said))
            pids = [int(path.read_text()) for path in said]
            zygote = parent(pids[0])
            os.kill(zygote, signal.SIGKILL)
            for future in running:
                with pytest.raises(
                    errors.TaskKilled, match=rf"starts workers \(pid {zygote}\) was ended by SIGKILL"
                ) as caught:
                    future.result(timeout=20)
                assert caught.value.signal == signal.SIGKILL
            for pid in pids:
                eventually(partial(gone, pid))
            assert [future.result(timeout=20) for future in waiting] == [1, 2, 3, 4, 5]
            assert "another one is started" in caplog.text
            for path in said:
                path.unlink()


def gone(pid: int) -> bool:
    return not alive(pid)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@both_modes
def test_a_call_that_died_with_the_zygote_is_tried_again(kept: bool, tmp_path: Path) -> None:
    with executor(kept, retries=remoteexec.Retry(1, {"killed"})) as exe:
        assert exe.submit(kill_parent_once, str(tmp_path / "once")).result(20) == "again"


def kill_parent_once(path: str) -> str:
    if Path(path).exists():
        return "again"
    Path(path).touch()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    return "not killed"


@both_modes
def test_a_zygote_that_cannot_start_says_why_and_is_tried_a_few_times(
    kept: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with executor(kept) as exe:
        error = exe.submit(add_one, 1).exception(timeout=20)
        assert isinstance(error, errors.TaskKilled)
        eventually(lambda: caplog.text.count("another one is started") == 3)
        text = str(exe.submit(add_one, 1).exception(timeout=20))
    assert "ended itself with exit code 1" in text
    assert "-c 'import remoteexec_server'` works in this environment" in text
    assert "encodings" in text  # what Python has said


def test_an_interpreter_that_is_none_is_named_with_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with executor(kept=False, preload=["json"]) as exe, pytest.raises(ImportError, match=r"exit code 0; .*/bin/true"):
        exe.submit(add_one, 1)


# ---- the caller's end ----


Script = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def script() -> Iterator[Script]:
    """Runs a script in an interpreter and a process group of its own, which is killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def run(text: str, *arguments: str) -> subprocess.Popen[str]:
        roots = [str(Path(path).parent) for module in (remoteexec, remoteexec_server) for path in module.__path__]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(text), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # a fork of it may live where it does not
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


_BUSY = """
    import subprocess, sys, time
    from remoteexec import SingleNodeExecutor

    def task():
        subprocess.Popen(["sleep", "60"])
        print("ready\\n", end="", flush=True)
        time.sleep(60)

    exe = SingleNodeExecutor(2, block_allocation=sys.argv[1] == "True")
    futures = [exe.submit(task) for _ in range(2)]
"""


@both_modes
def test_a_caller_that_is_killed_leaves_nothing_behind(kept: bool, script: Script) -> None:
    caller = script(_BUSY + "    futures[0].result()", str(kept))
    assert caller.stdout is not None
    assert [caller.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    family = descendants(caller.pid)
    assert len(family) == 5  # zygote, two workers, two sleeps
    caller.kill()
    caller.wait()
    eventually(lambda: not any(alive(pid) for pid in family), 5.0)


_AWAY = """
import os, subprocess, sys, time
from remoteexec import SingleNodeExecutor

if __name__ == "__main__":
    def task():
        away = subprocess.Popen(["sleep", "60"], start_new_session=True)
        print(os.getppid(), os.getpid(), away.pid, flush=True)
        time.sleep(60)

    SingleNodeExecutor(1, block_allocation=sys.argv[1] == "True").submit(task).result()
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other kernels have no subreapers")


@linux
@both_modes
def test_a_caller_that_is_killed_leaves_no_other_session_behind(kept: bool, script: Script) -> None:
    caller = script(_AWAY, str(kept))
    assert caller.stdout is not None
    family = [int(pid) for pid in caller.stdout.readline().split()]
    caller.kill()
    caller.wait()
    eventually(lambda: not any(alive(pid) for pid in family), 5.0)


@linux
@both_modes
def test_a_worker_ends_if_the_process_that_started_it_is_killed_with_the_caller(kept: bool, script: Script) -> None:
    caller = script(_AWAY, str(kept))
    assert caller.stdout is not None
    zygote, worker, away = [int(pid) for pid in caller.stdout.readline().split()]
    os.kill(zygote, signal.SIGSTOP)  # so that it does not see the caller's end
    caller.kill()
    caller.wait()
    os.kill(zygote, signal.SIGKILL)
    try:
        eventually(lambda: not alive(zygote) and not alive(worker), 5.0)
    finally:
        os.kill(away, signal.SIGKILL)  # which is not covered; see docs/decisions.md


def run_away(path: str, nap_s: float, orphan: bool) -> None:
    """Start a process in a session of its own, also as a daemon does: by one in between that ends."""
    if orphan:
        code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
        pid = subprocess.check_output([sys.executable, "-c", code], start_new_session=True, text=True)
    else:
        pid = str(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
    Path(path).write_text(pid)
    time.sleep(nap_s)


@linux
@pytest.mark.parametrize("orphan", [False, True])
@pytest.mark.parametrize("how", ["cancel", "time", "end"])
def test_what_a_call_started_in_another_session_ends_with_its_process(how: str, orphan: bool, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with executor(kept=False, resource_dict={"run_time_max": 3} if how == "time" else {}) as exe:
        beside = exe.submit(run_away, str(tmp_path / "other"), 60, orphan)
        future = exe.submit(run_away, str(path), 0 if how == "end" else 60, orphan)
        eventually(lambda: path.exists() and path.read_text())
        eventually(lambda: (tmp_path / "other").exists() and (tmp_path / "other").read_text())
        if how == "cancel":
            future.cancel()
        eventually(future.done)
        eventually(lambda: not alive(int(path.read_text())))
        if how != "time":
            assert alive(int((tmp_path / "other").read_text()))  # of a call that still runs
        beside.cancel()
    eventually(lambda: not alive(int((tmp_path / "other").read_text())))


@both_modes
def test_a_death_is_seen_though_the_caller_blocks_its_signal_which_calls_have_blocked_too(kept: bool) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        with executor(kept, 1, **({"restart_limit": 1} if kept else {})) as exe:
            with pytest.raises(errors.TaskKilled, match="exit code 3"):
                exe.submit(os._exit, 3).result(20)
            assert exe.submit(blocks_children).result(20) == (True, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def blocks_children() -> tuple[bool, int]:
    """Whether the signal is blocked here, and how `true` ends nevertheless."""
    return signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, []), subprocess.run(
        ["true"], check=False
    ).returncode


@both_modes
def test_ctrl_c_ends_the_calls_and_the_program(kept: bool, script: Script) -> None:
    caller = script(
        _BUSY
        + """
    try:
        with exe:
            futures[0].result()
    except KeyboardInterrupt:
        print([future.cancelled() for future in futures])
    """,
        str(kept),
    )
    assert caller.stdout is not None
    assert [caller.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    family = descendants(caller.pid)
    os.killpg(caller.pid, signal.SIGINT)
    out, err = caller.communicate(timeout=10)
    assert (out, err, caller.returncode) == ("[True, True]\n", "", 0)
    eventually(lambda: not any(alive(pid) for pid in family), 5.0)


@both_modes
def test_ctrl_c_outside_of_a_with_block_ends_the_program_too(kept: bool, script: Script) -> None:
    caller = script(_BUSY + "    futures[0].result()", str(kept))
    assert caller.stdout is not None
    assert [caller.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    os.killpg(caller.pid, signal.SIGINT)
    _, err = caller.communicate(timeout=10)
    assert (caller.returncode, err.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")


@both_modes
@pytest.mark.parametrize("block", [True, False])
def test_a_script_that_catches_ctrl_c_and_exits_waits_for_no_running_call(
    kept: bool, block: bool, script: Script
) -> None:
    code = """
    try:
        futures[0].result()
    except KeyboardInterrupt:
        sys.exit(1)
    """
    if block:
        code = "\n    with exe:" + code.replace("\n    ", "\n        ")
    caller = script(_BUSY + code, str(kept))
    assert caller.stdout is not None
    assert [caller.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    family = descendants(caller.pid)
    os.killpg(caller.pid, signal.SIGINT)
    _, err = caller.communicate(timeout=10)
    assert (err, caller.returncode) == ("", 1)
    eventually(lambda: not any(alive(pid) for pid in family), 5.0)


@both_modes
def test_a_script_without_shutdown_and_without_a_main_guard_finishes_its_calls(kept: bool, script: Script) -> None:
    caller = script(
        """
        import sys, time
        from remoteexec import SingleNodeExecutor

        def late(x):
            time.sleep(0.2)
            print(f"done {x}\\n", end="", flush=True)

        exe = SingleNodeExecutor(2, block_allocation=sys.argv[1] == "True")
        for n in range(3):
            exe.submit(late, n)
        """,
        str(kept),
    )
    out, err = caller.communicate(timeout=20)
    assert (sorted(out.splitlines()), err, caller.returncode) == (["done 0", "done 1", "done 2"], "", 0)


@both_modes
def test_a_fork_of_the_caller_neither_keeps_workers_alive_nor_waits_for_them(kept: bool, script: Script) -> None:
    caller = script(
        """
        import os, sys, time
        from remoteexec import SingleNodeExecutor

        exe = SingleNodeExecutor(1, block_allocation=sys.argv[1] == "True")
        future = exe.submit(time.sleep, 60)
        time.sleep(0.3)
        child = os.fork()
        if child == 0:
            print(type(exe.submit(len, "ab").exception(timeout=10)).__name__, flush=True)
            sys.exit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(60)
        """,
        str(kept),
    )
    assert caller.stdout is not None
    assert [caller.stdout.readline() for _ in range(2)] == ["TaskKilled\n", "5\n"]
    family = [pid for pid in descendants(caller.pid) if b"zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(family) == 2  # zygote and worker
    os.kill(caller.pid, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in family), 5.0)


# ---- the zygote ----


def test_the_zygote_has_one_thread_and_imports_only_what_was_asked_for() -> None:
    def modules() -> list[str]:
        return sorted(name for name in ("numpy", "h5py", "paramiko", "typer", "colorsys") if name in sys.modules)

    def threads() -> list[str]:
        return os.listdir(f"/proc/{os.getppid()}/task")

    with SingleNodeExecutor(1) as plain, SingleNodeExecutor(1, preload=["colorsys", "numpy"]) as loaded:
        assert plain.submit(modules).result(timeout=20) == []
        assert loaded.submit(modules).result(timeout=20) == ["colorsys", "numpy"]
        assert [len(exe.submit(threads).result(timeout=20)) for exe in (plain, loaded)] == [1, 1]


def test_a_module_that_starts_threads_is_refused_for_preload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "threads_at_import.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with SingleNodeExecutor(1, preload=["threads_at_import"]) as exe:
        with pytest.raises(ImportError, match="preload: threads_at_import starts 1 threads when it is imported"):
            exe.submit(add_one, 1)
    with SingleNodeExecutor(1, preload=["no_such_module_x"]) as exe:
        with pytest.raises(ImportError, match="preload: no_such_module_x cannot be imported: ModuleNotFoundError"):
            exe.submit(add_one, 1)


def test_forks_of_a_preloaded_numpy_draw_different_random_numbers() -> None:
    def draw() -> float:
        return float(np.random.random())

    with SingleNodeExecutor(2, preload=["numpy.random"]) as exe:
        assert len({future.result(timeout=20) for future in [exe.submit(draw) for _ in range(4)]}) == 4


# ---- large and many ----


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.timeout(300)
@both_modes
def test_an_argument_and_a_result_of_more_than_2_gib_travel(kept: bool) -> None:
    size = 2**31 + 4096
    if _free_bytes() < 6 * size:
        pytest.skip(f"needs {6 * size >> 30} GiB of free memory")
    with executor(kept, workers=1) as exe:
        found = exe.submit(np.frombuffer, bytes(size), np.uint8).result(timeout=250)  # bytes one way, an array back
    assert (found.shape, found[-1]) == ((size,), 0)


@both_modes
@pytest.mark.parametrize("cancel", [False, True], ids=["run", "cancelled"])
def test_thousands_of_pending_calls_at_shutdown_all_end(kept: bool, cancel: bool) -> None:
    count = 10_000 if kept or cancel else 3_000
    exe = executor(kept)
    blockers = [exe.submit(time.sleep, 0.5) for _ in range(2)]
    futures = [exe.submit(add_one, n) for n in range(count)]
    exe.shutdown(cancel_futures=cancel)
    assert all(future.done() for future in blockers)
    assert all(future.done() for future in futures)
    if cancel:
        assert sum(future.cancelled() for future in futures) > count // 2  # those that did not run meanwhile
    else:
        assert [future.result() for future in futures] == list(range(1, count + 1))


def test_a_chain_of_many_links_neither_recurses_nor_slows_down() -> None:
    with executor(True) as exe:
        future = exe.submit(add_one, 0)
        for _ in range(20_000):
            future = exe.submit(add_one, future)
        assert future.result(timeout=100) == 20_001


@both_modes
def test_the_failure_of_a_long_chains_first_link_reaches_its_last(kept: bool) -> None:
    with executor(kept) as exe:
        future: Any = exe.submit(divmod, 1, 0)
        for _ in range(20_000):
            future = exe.submit(add_one, future)
        assert isinstance(future.exception(timeout=100), ZeroDivisionError)


def test_many_dependants_of_one_future_all_get_its_result() -> None:
    with executor(True) as exe:
        source = exe.submit(add_one, 1)
        assert [f.result(timeout=60) for f in [exe.submit(add_one, source) for _ in range(5_000)]] == [3] * 5_000


@both_modes
def test_many_threads_submit_at_once(kept: bool) -> None:
    each = 200 if kept else 10
    with executor(kept) as exe, concurrent.futures.ThreadPoolExecutor(16) as threads:

        def submit_some(start: int) -> list[int]:
            return [future.result(timeout=60) for future in [exe.submit(add_one, start + n) for n in range(each)]]

        found = [n for part in threads.map(submit_some, range(0, 16 * each, each)) for n in part]
    assert found == list(range(1, 16 * each + 1))


# ---- pickles and files ----


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@both_modes
def test_what_is_nested_too_deeply_to_be_pickled_fails_its_own_call(kept: bool) -> None:
    with executor(kept, workers=1) as exe:
        with pytest.raises(errors.CallNotPicklable, match="recursion"):
            exe.submit(len, nested(100_000))
        with pytest.raises(errors.ResultNotPicklable, match="recursion"):
            exe.submit(nested, 100_000).result(timeout=20)
        assert exe.submit(add_one, 1).result(timeout=20) == 2


@both_modes
def test_a_result_that_contains_itself_arrives(kept: bool) -> None:
    def ring() -> list[Any]:
        found: list[Any] = [1]
        found.append(found)
        return found

    with executor(kept, workers=1) as exe:
        found = exe.submit(ring).result(timeout=20)
    assert found[1] is found


@both_modes
def test_a_result_that_cannot_be_pickled_fails_its_own_call(kept: bool) -> None:
    with executor(kept, workers=1) as exe:
        with pytest.raises(errors.ResultNotPicklable, match="lock"):
            exe.submit(threading.Lock).result(timeout=20)
        assert exe.submit(add_one, 1).result(timeout=20) == 2


class Picky(Exception):
    """Its constructor takes other arguments than it keeps."""

    def __init__(self, code: int, *, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


@both_modes
def test_an_exception_comes_back_as_itself_with_the_remote_traceback(kept: bool) -> None:
    def fail() -> None:
        raise Picky(7, text="here")

    with executor(kept, workers=1) as exe:
        exc = exe.submit(fail).exception(timeout=20)
    assert isinstance(exc, Picky)
    assert (exc.code, str(exc)) == (7, "7: here")
    assert 'raise Picky(7, text="here")' in str(exc.__cause__)


@both_modes
def test_a_task_that_closes_its_standard_files_gives_its_result(kept: bool) -> None:
    def close_all() -> str:
        sys.stdout.close()
        for handle in (0, 1, 2):
            os.close(handle)
        return "closed"

    with executor(kept, workers=1) as exe:
        assert exe.submit(close_all).result(timeout=20) == "closed"
        assert exe.submit(add_one, 1).result(timeout=20) == 2


@pytest.fixture
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_a_process_for_each_of_many_calls_does_with_few_open_files() -> None:
    with executor(False, workers=1000) as exe:
        futures = [exe.submit(time.sleep, 0.1) for _ in range(600)]
        assert [future.result(timeout=60) for future in futures] == [None] * 600


@pytest.mark.usefixtures("few_files")
def test_as_many_workers_as_there_are_files_for_run_all_calls(caplog: pytest.LogCaptureFixture) -> None:
    with executor(True, workers=150) as exe:
        assert [future.result(timeout=60) for future in [exe.submit(add_one, n) for n in range(300)]] == list(
            range(1, 301)
        )
    assert [record.getMessage() for record in caplog.records if "could be started" in record.getMessage()]


# ---- cancelling ----


@both_modes
def test_a_running_call_that_is_cancelled_is_ended_with_all_it_started(kept: bool, tmp_path: Path) -> None:
    said = tmp_path / "pid"
    with executor(kept, workers=1) as exe:
        running = exe.submit(sleep_after_saying, str(said))
        behind = exe.submit(add_one, 1)
        eventually(said.exists)
        assert running.cancel()
        assert running.cancelled()
        assert running.cancel()
        eventually(lambda: not alive(int(said.read_text())))
        assert behind.result(timeout=20) == 2
        with pytest.raises(concurrent.futures.CancelledError):
            running.result()


@both_modes
def test_a_waiting_call_that_is_cancelled_does_not_run(kept: bool, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with executor(kept, workers=1) as exe:
        exe.submit(time.sleep, 0.3)
        waiting = exe.submit(ran.touch)
        dependant = exe.submit(add_one, waiting)
        assert waiting.cancel()
        assert exe.submit(add_one, 1).result(timeout=20) == 2
        assert isinstance(dependant.exception(timeout=20), concurrent.futures.CancelledError)
    assert not ran.exists()


@both_modes
def test_shutdown_without_waiting_returns_at_once_and_everything_ends_later(kept: bool) -> None:
    exe = executor(kept)
    futures = [exe.submit(time.sleep, 0.2) for _ in range(4)]
    started = time.monotonic()
    exe.shutdown(wait=False)
    assert time.monotonic() - started < 0.1
    with pytest.raises(RuntimeError, match="after shutdown"):
        exe.submit(add_one, 1)
    assert [future.result(timeout=20) for future in futures] == [None] * 4
    eventually(
        lambda: not any(thread.name == "remoteexec-pool" and thread.is_alive() for thread in threading.enumerate())
    )


@both_modes
def test_an_executor_that_nobody_holds_any_more_ends_its_processes(kept: bool) -> None:
    exe = executor(kept, workers=1)
    family = [exe.submit(own_pid).result(timeout=20), exe.submit(os.getppid).result(timeout=20)]
    del exe
    gc.collect()
    eventually(lambda: not any(alive(pid) for pid in family))


@both_modes
def test_shutdown_from_a_callback_does_not_wait_for_itself(kept: bool) -> None:
    exe = executor(kept, workers=1)
    told = threading.Event()

    def shut(_: object) -> None:
        exe.shutdown()
        told.set()

    exe.submit(add_one, 1).add_done_callback(shut)
    assert told.wait(20)
