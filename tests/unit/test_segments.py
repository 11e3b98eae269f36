"""Logs of many records: read while they are written, cut off anywhere, damaged anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remoteexec_server.store.segments import Kind, LogReader, LogWriter
from remoteexec_server.wire.messages import TaskKey

A, B = TaskKey("a"), TaskKey("b-" + "x" * 90)


def contents(reader: LogReader) -> list[tuple[Kind, str, bytes]]:
    return [(record.kind, record.key, reader.read(record)) for record in reader.look()]


def test_a_reader_sees_each_record_once_however_large_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    writer, reader = LogWriter(path), LogReader(path)
    assert contents(reader) == []
    writer.append(Kind.STARTED, A, b"{}")
    writer.append(Kind.OUTCOME, A, b"x" * 200_000)
    assert contents(reader) == [(Kind.STARTED, A, b"{}"), (Kind.OUTCOME, A, b"x" * 200_000)]
    assert contents(reader) == []
    many = [(Kind.OUTCOME, TaskKey(f"t{n}"), b"y" * (n % 900)) for n in range(1000)]
    for record in many:
        writer.append(*record)
    writer.append(Kind.LOST, B, b"")
    assert contents(reader) == [*many, (Kind.LOST, B, b"")]
    writer.close()
    reader.close()


def test_a_log_cut_off_anywhere_gives_its_whole_records_and_the_rest_when_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    writer = LogWriter(path)
    writer.append(Kind.STARTED, A, b"one")
    first = path.stat().st_size
    writer.append(Kind.OUTCOME, B, b"two")
    writer.close()
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        reader = LogReader(path)
        whole = [(Kind.STARTED, A, b"one"), (Kind.OUTCOME, B, b"two")][: (length >= first) + (length == len(data))]
        assert (contents(reader), reader.damage) == (whole, None)
        path.write_bytes(data)
        assert whole + contents(reader) == [(Kind.STARTED, A, b"one"), (Kind.OUTCOME, B, b"two")]
        reader.close()


def test_a_damaged_log_is_read_up_to_the_damage_which_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    writer = LogWriter(path)
    writer.append(Kind.STARTED, A, b"one")
    first = path.stat().st_size
    writer.append(Kind.OUTCOME, B, b"two")
    writer.close()
    data = path.read_bytes()
    for at in range(first, path.stat().st_size - len(b"two")):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        reader = LogReader(path)
        assert contents(reader) == [(Kind.STARTED, A, b"one")]
        assert f"w.log is damaged at byte {first}" in str(reader.damage)
        assert contents(reader) == []
        reader.close()


def test_a_record_that_the_disk_does_not_take_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.log"
    writer = LogWriter(path)
    writer.append(Kind.STARTED, A, b"one")
    before = path.read_bytes()
    real = os.pwrite

    def half(handle: int, data: bytes, at: int) -> int:
        if at > len(before):
            raise OSError(28, "No space left on device")
        return real(handle, data[:10], at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="No space left"):
            writer.append(Kind.OUTCOME, A, b"two")
    assert path.read_bytes() == before
    writer.append(Kind.OUTCOME, A, b"two")
    reader = LogReader(path)
    assert contents(reader) == [(Kind.STARTED, A, b"one"), (Kind.OUTCOME, A, b"two")]
    writer.close()
    reader.close()


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "w.log")
    with pytest.raises(FileExistsError):
        LogWriter(tmp_path / "w.log")
    writer.sync()
    writer.close()
