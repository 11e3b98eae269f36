"""What tasks print: kept with their futures, and shown while they run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor
from remoteexec.errors import TaskKilled
from remoteexec.pool.output import MOST_KEPT

pytestmark = pytest.mark.usefixtures("process_mark")


@pytest.fixture(params=[False, True], ids=["fresh", "kept"])
def exe(request: pytest.FixtureRequest) -> Iterator[SingleNodeExecutor]:
    """Two workers, whose output is kept and not shown."""
    with SingleNodeExecutor(max_workers=2, block_allocation=request.param, show_output=False) as executor:
        yield executor


def say(text: str, end: str = "\n") -> None:
    print(text, end=end)


def say_all_ways() -> None:
    print("from Python")
    print("to stderr", file=sys.stderr)
    subprocess.run(["echo", "from a child"], check=True)
    os.write(1, b"from a file number\n")
    print("without an end", end="")
    libc = ctypes.CDLL(None)
    libc.printf(b"from C\n")
    libc.fflush(None)


def test_all_that_a_task_prints_is_kept_in_order(exe: SingleNodeExecutor) -> None:
    future = exe.submit(say_all_ways)
    future.result(30)
    text = future.task.output
    assert text is not None
    assert sorted(text.splitlines()) == sorted(
        ["from Python", "to stderr", "from a child", "from a file number", "from C", "without an end"]
    )
    assert text.startswith("from Python\nto stderr\nfrom a child\nfrom a file number\n")


def test_each_task_has_what_it_printed_itself(exe: SingleNodeExecutor) -> None:
    futures = [exe.submit(say, f"task {n}", end="") for n in range(200)]
    assert [future.result(60) for future in futures] == [None] * 200
    assert [future.task.output for future in futures] == [f"task {n}" for n in range(200)]


def test_a_task_that_prints_nothing_has_printed_nothing(exe: SingleNodeExecutor) -> None:
    future = exe.submit(abs, -1)
    future.result(30)
    assert future.task.output == ""


def test_what_a_task_printed_before_it_died_is_told(exe: SingleNodeExecutor) -> None:
    future = exe.submit(say_and_die)
    with pytest.raises(TaskKilled) as caught:
        future.result(30)
    assert (future.task.output, caught.value.log_tail) == ("last words\n", "last words")


def say_and_die() -> None:
    print("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_raises_has_its_output(exe: SingleNodeExecutor) -> None:
    future = exe.submit(say_and_raise)
    assert isinstance(future.exception(30), ZeroDivisionError)
    assert future.task.output == "before\n"


def say_and_raise() -> None:
    print("before")
    raise ZeroDivisionError


def test_of_much_output_the_end_is_kept(exe: SingleNodeExecutor) -> None:
    future = exe.submit(say, "x" * (2 * MOST_KEPT) + "the end")
    future.result(30)
    text = future.task.output
    assert text is not None
    assert (len(text), text.endswith("the end\n")) == (MOST_KEPT, True)


def test_output_is_there_while_the_task_runs(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    future = exe.submit(say_and_wait, tmp_path / "go")
    deadline = time.monotonic() + 30
    while not future.task.output and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (future.task.output, future.done()) == ("waiting\n", False)
    (tmp_path / "go").touch()
    future.result(30)


def say_and_wait(path: Path) -> None:
    print("waiting")
    while not path.exists():
        time.sleep(0.01)


def test_bytes_that_are_no_text_do_no_harm(exe: SingleNodeExecutor) -> None:
    future = exe.submit(os.write, 1, b"\xff\x00ok\n")
    future.result(30)
    assert future.task.output == "\N{REPLACEMENT CHARACTER}\0ok\n"


def test_a_task_that_closes_its_output_harms_only_itself(exe: SingleNodeExecutor) -> None:
    exe.submit(close_output).result(30)
    assert exe.submit(abs, -3).result(30) == 3


def close_output() -> None:
    sys.stdout.close()
    for number in (1, 2):
        os.close(number)


def shown(show: Any, capfd: pytest.CaptureFixture[str], kept: bool = False) -> str:
    with SingleNodeExecutor(max_workers=1, block_allocation=kept, show_output=show) as exe:
        for text, end in (("one", "\n"), ("two\nthree", "")):
            exe.submit(say, text, end=end).result(30)
    out: str = capfd.readouterr().out
    return out


def test_output_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert shown(True, capfd) == "one\ntwo\nthree"


@pytest.mark.parametrize("kept", [False, True])
def test_each_line_can_have_its_task_before_it(kept: bool, capfd: pytest.CaptureFixture[str]) -> None:
    assert shown("prefix", capfd, kept) == "[t1 say] one\n[t2 say] two\n[t2 say] three\n"


def test_output_can_be_kept_without_showing_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert shown(False, capfd) == ""


def test_output_goes_its_way_when_nobody_asks_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    with SingleNodeExecutor(max_workers=1) as exe:
        future = exe.submit(say, "by itself")
        future.result(30)
    assert (future.task.output, capfd.readouterr().out) == (None, "by itself\n")


def test_show_output_has_four_values() -> None:
    with pytest.raises(ValueError, match="show_output must be True, False, 'prefix' or None, not 'all'"):
        SingleNodeExecutor(show_output="all")  # type: ignore[arg-type]
