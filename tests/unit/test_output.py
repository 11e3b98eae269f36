"""What tasks print, sorted out from one pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from remoteexec.pool.output import MOST_KEPT, Output, OutputReader, Printed
from remoteexec.pool.tasks import PoolFuture, PoolTask
from remoteexec_server.wire import pooled
from remoteexec_server.wire.messages import TaskKey


class Pipe:
    """One worker that prints, and its reader."""

    def __init__(self, show: Any = False) -> None:
        handle, self.end = os.pipe()
        os.set_blocking(handle, False)
        self.output = Output(show)
        owner: Any = None
        self.tasks = {n: PoolTask(n, PoolFuture(TaskKey(f"t{n}"), owner, "f"), owner) for n in (1, 2)}
        self.reader = OutputReader(handle, self.output, self.tasks)

    def mark(self, number: int) -> bytes:
        return self.output.secret + pooled.TOKEN.pack(number)

    def say(self, data: bytes) -> bool:
        os.write(self.end, data)
        return self.reader.read()

    @property
    def printed(self) -> list[str | None]:
        return [task.future.task.output for task in self.tasks.values()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reader.handle)
    os.close(made.end)


def test_the_reader_of_a_buried_worker_takes_nothing_from_a_pipe_that_has_its_number(pipe: Pipe) -> None:
    handle = pipe.reader.handle
    pipe.reader.close()
    assert not pipe.say(pipe.mark(1) + b"one\n")
    assert pipe.printed == [None, None]
    pipe.reader.handle = handle
    assert pipe.say(b"more\n")
    assert pipe.printed == ["one\nmore\n", None]


def test_what_follows_a_mark_belongs_to_its_task(pipe: Pipe) -> None:
    assert pipe.say(pipe.mark(1) + b"one\n" + pipe.mark(2) + b"two\n")
    assert pipe.printed == ["one\n", "two\n"]


def test_marks_are_found_however_the_bytes_come(pipe: Pipe) -> None:
    for byte in pipe.mark(1) + b"a\0b" + pipe.output.secret[:5] + b"c" + pipe.mark(2) + b"two":
        pipe.say(bytes([byte]))
    assert pipe.printed == ["a\0b" + (pipe.output.secret[:5] + b"c").decode(errors="replace"), "two"]


def test_a_task_that_has_not_begun_has_printed_nothing_that_is_known(pipe: Pipe) -> None:
    pipe.say(pipe.mark(1))
    assert pipe.printed == ["", None]


def test_what_a_forgotten_task_prints_harms_nobody(pipe: Pipe, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.say(pipe.mark(7) + b"lost\n" + pipe.mark(1) + b"one")
    assert (pipe.printed, capsys.readouterr().out) == (["one", None], "lost\n")


def test_the_end_of_a_pipe_is_told() -> None:
    pipe = Pipe()
    assert pipe.say(pipe.mark(1) + b"last")
    os.close(pipe.end)
    assert not pipe.reader.read()
    assert pipe.printed == ["last", None]
    os.close(pipe.reader.handle)


def test_lines_are_shown_whole_with_their_task(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = Pipe("prefix")
    pipe.say(pipe.mark(1) + b"a")
    assert capsys.readouterr().out == ""
    pipe.say(b"b\nc")
    assert capsys.readouterr().out == "[t1 f] ab\n"
    pipe.say(pipe.mark(2) + b"d")
    assert capsys.readouterr().out == "[t1 f] c\n"
    pipe.reader.end_line()
    pipe.reader.end_line()
    assert capsys.readouterr().out == "[t2 f] d\n"
    os.close(pipe.end)
    os.close(pipe.reader.handle)


def test_the_last_bytes_of_much_are_kept() -> None:
    printed = Printed()
    for n in range(3):
        printed.add(str(n).encode() * (MOST_KEPT // 2 + 1))
    half = MOST_KEPT // 2
    assert str(printed) == "1" * (half - 1) + "2" * (half + 1)
