"""Append-only logs in which many small things of many tasks share one file: `outcomes/<writer>.log`.

    record   head: magic, kind, length of the key, length of the body, CRC-32 of these and the key
             key, body

One writer a file, which never opens it again: what a crash cut off is the last record, and stays as it is. A reader
opens the file anew for each look (NFS shows what was there when a file was opened), and goes on where it stopped; half
a record at the end is left for the next look. The body is not read while the log is scanned.

The CRC only finds where a log is damaged. Whether an outcome is whole and of this session, its own digest says.
"""

from __future__ import annotations

import enum
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..wire.names import TaskKey

SUFFIX = ".log"
_HEAD = struct.Struct("<2sBBQI")
_MAGIC = b"rx"
_CHUNK = 1 << 16
_LONGEST_KEY = 255


class DamagedLog(Exception):
    """There is no record where one should begin."""


class Kind(enum.IntEnum):
    """What a record says of its task."""

    STARTED = 1
    """A worker has it: JSON `Claim`."""
    OUTCOME = 2
    """How it ended: what an outcome file would hold."""
    LOST = 3
    """Why there will be no outcome: JSON `Loss`."""


_KINDS = frozenset(Kind)


@dataclass(frozen=True)
class Record:
    """Where the body of a record lies in its log."""

    kind: Kind
    key: TaskKey
    offset: int
    length: int


class LogWriter:
    """The one writer of a log.

    Args:
        path: must not be there.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._end = 0

    def append(self, kind: Kind, key: TaskKey, body: bytes) -> None:
        """Hand one record to the system; `sync` puts it on the disk.

        Raises:
            OSError: nothing of it is in the log.
        """
        name = key.encode()
        check = zlib.crc32(name, zlib.crc32(struct.pack("<BBQ", kind, len(name), len(body))))
        data = memoryview(b"".join((_HEAD.pack(_MAGIC, kind, len(name), len(body), check), name, body)))
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.handle, data[done:], self._end + done)
        except OSError:
            os.ftruncate(self.handle, self._end)
            raise
        self._end += len(data)

    def catch_up(self) -> None:
        """Go on behind what another process has appended through the same open file, which has ended."""
        self._end = os.fstat(self.handle).st_size

    def sync(self) -> None:
        """Let every host see what was appended."""
        os.fsync(self.handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self.handle)


class LogReader:
    """Reads one log, a look at a time.

    Attributes:
        name: of the file.
        damage: why nothing behind the last record can be read, if it is so.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, path.name
        self._at = 0
        self._handle: int | None = None
        self.damage: DamagedLog | None = None

    @property
    def used(self) -> bool:
        """Whether a record was found in it."""
        return self._at > 0

    def look(self) -> list[Record]:
        """Records that were not whole at the last look.

        Raises:
            OSError: the log cannot be read.
        """
        if self.damage is not None:
            return []
        self.close()
        handle = os.open(self._path, os.O_RDONLY)
        found = list(self._scan(handle))
        if found:
            self._handle = handle  # they are likely to be read now
        else:
            os.close(handle)
        return found

    def read(self, record: Record) -> bytes:
        """The body of a record.

        Raises:
            OSError: it cannot be read, or not all of it.
        """
        if self._handle is None:
            self._handle = os.open(self._path, os.O_RDONLY)
        parts, at, end = [], record.offset, record.offset + record.length
        while at < end:
            part = os.pread(self._handle, end - at, at)
            if not part:
                raise OSError(f"{self._path} ends within the record of task {record.key}")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Keep no file open."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _scan(self, handle: int) -> Iterator[Record]:
        size = os.fstat(handle).st_size
        chunk, begin = b"", 0
        while self._at + _HEAD.size <= size:
            at = self._at - begin
            if at + _HEAD.size + _LONGEST_KEY > len(chunk):
                chunk, begin, at = os.pread(handle, _CHUNK, self._at), self._at, 0
            record = self._parse(chunk, at, size)
            if record is None:
                return
            self._at = record.offset + record.length
            yield record

    def _parse(self, chunk: bytes, at: int, size: int) -> Record | None:
        """The record that begins at `at` of a chunk; None: not all of it is there."""
        if len(chunk) < at + _HEAD.size:
            return None
        magic, kind, length, body, check = _HEAD.unpack_from(chunk, at)
        name = chunk[at + _HEAD.size : at + _HEAD.size + length]
        if magic == _MAGIC and len(name) < length:
            return None
        fits = check == zlib.crc32(name, zlib.crc32(struct.pack("<BBQ", kind, length, body)))
        if magic != _MAGIC or not fits or kind not in _KINDS:
            self.damage = DamagedLog(f"{self._path} is damaged at byte {self._at}: no record begins there")
            return None
        record = Record(Kind(kind), TaskKey(name.decode(errors="replace")), self._at + _HEAD.size + length, body)
        return record if record.offset + body <= size else None
