"""Objects that many tasks are given and that are in memory once: a file without a name, mapped by every worker.

    magic | length of the head (8 bytes, big endian) | head, JSON: digest, places of the parts | parts, page by page

The first part is a pickle, the others are its out-of-band buffers. The process that shares holds the file open; others
of the same user open it through `/proc`. So nothing has to be removed: the memory is free again when the last process
that has opened or mapped it ends, however it ends. The file is sealed: nobody can write to it any more.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from typing import Any

from .wire import payload

_MAGIC = b"remoteexec shared 1\n"
_ALIGNED = 4096
_MOST_HEAD = 1 << 30


class NotShared(RuntimeError):
    """There is no such object any more, or what is there is another."""


def digest_of(parts: Sequence[bytes | memoryview]) -> str:
    """Equal for equal objects, as far as their pickles are."""
    found = hashlib.blake2b(digest_size=32)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.hexdigest()


def write(parts: Sequence[bytes | memoryview], digest: str, in_memory: bool) -> int:
    """A file with these parts, and its handle.

    Args:
        parts: the pickle and its buffers, as bytes.
        in_memory: else in the temporary directory.

    Raises:
        OSError: there is no room.
    """
    import json  # late, as below: most executors share nothing

    at, places = 0, []
    for part in parts:
        places.append((at, len(part)))
        at += -(-len(part) // _ALIGNED) * _ALIGNED
    head = json.dumps({"digest": digest, "places": places}).encode()
    start = _start(len(head))
    handle = _new_file(in_memory)
    try:
        _put(handle, _MAGIC + len(head).to_bytes(8, "big") + head, 0)
        for part, (place, _) in zip(parts, places, strict=True):
            _put(handle, part, start + place)
        os.ftruncate(handle, start + max(at, 1))
        if in_memory:
            _seal(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def receive(pid: int, handle: int, digest: str) -> Any:
    """The object; called by pickle while arguments are loaded. Its arrays are read-only and are the file's memory.

    Raises:
        NotShared: see there.
    """
    place = f"/proc/{pid}/fd/{handle}"
    try:
        opened = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise NotShared(f"the shared object is not there any more: {place}: {exc.strerror}") from exc
    try:
        if os.pread(opened, len(_MAGIC), 0) != _MAGIC:
            raise NotShared(f"the shared object is not there any more: {place} is another file")
        mapped = mmap.mmap(opened, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(opened)
    data, *buffers = _parts(mapped, digest)
    return payload.loads(data, buffers)


def _parts(mapped: mmap.mmap, digest: str) -> list[memoryview]:
    import json

    at = len(_MAGIC)
    length = int.from_bytes(mapped[at : at + 8], "big")
    if length > min(_MOST_HEAD, len(mapped)):
        raise NotShared("the shared object is damaged: its head is longer than its file")
    head = json.loads(mapped[at + 8 : at + 8 + length])
    if head["digest"] != digest:
        raise NotShared("the shared object is not there any more: another is in its place")
    view, start = memoryview(mapped), _start(length)
    return [view[start + place : start + place + size] for place, size in head["places"]]


def _start(head: int) -> int:
    return -(-(len(_MAGIC) + 8 + head) // _ALIGNED) * _ALIGNED


def _new_file(in_memory: bool) -> int:
    if in_memory:
        return os.memfd_create("remoteexec shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile

    with tempfile.TemporaryFile() as file:  # 0600, and without a name
        return os.dup(file.fileno())


def _put(handle: int, data: bytes | memoryview, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(handle, left, at)
        at += written
        left = left[written:]


def _seal(handle: int) -> None:
    import fcntl  # late: Windows has none

    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
