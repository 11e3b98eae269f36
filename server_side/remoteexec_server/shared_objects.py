"""Objects that many tasks are given and that are in memory once: a file without a name, mapped by every worker.

    magic | length of the head (8 bytes, big endian) | head, JSON: digest, places of the parts | parts, page by page

The first part is a pickle, the others are its out-of-band buffers. The process that shares holds the file open; others
of the same user open it through `/proc`. On another machine the agent of that node holds a copy, which it gives to who
asks at its socket; see `shared_copies`. So nothing has to be removed: the memory is free again when the last process
that has opened or mapped it ends, however it ends. The file is sealed: nobody can write to it any more.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from .wire import names, payload

_MAGIC = b"remoteexec shared 1\n"
_ALIGNED = 4096
_MOST_HEAD = 1 << 30
ASK = struct.Struct("<qQ")
"""What an agent is asked: for the object of this number, whose file has so many bytes. It answers with the copy, or
with the reason why not."""
_MOST_SAID = 1 << 12
_PEER = struct.Struct("iII")  # process, user, group


class NotShared(RuntimeError):
    """There is no such object any more, or what is there is another."""


def digest_of(parts: Sequence[bytes | memoryview]) -> str:
    """Equal for equal objects, as far as their pickles are."""
    import hashlib  # late, as below: a fresh process that receives an object has no use for it, nor for others

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
    import json

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
    return _loaded(opened, place, digest)


def receive_copy(session: str, number: int, size: int, digest: str) -> Any:
    """The same on a node of an allocation, from its copy, which is waited for; called by pickle.

    Raises:
        NotShared: there is none any more, or the node has no room for one.
    """
    with _agent(session) as agent:
        try:
            agent.sendall(ASK.pack(number, size))
            said, handles, _, _ = socket.recv_fds(agent, _MOST_SAID, 1)
        except ConnectionError:
            said, handles = b"", []
    if not handles:
        raise NotShared(said.decode() or "the agent of this node, which has the shared object, has ended")
    os.set_inheritable(handles[0], False)
    return _loaded(handles[0], "what the agent gave", digest)


def name_of_agent(session: str, node: str) -> str:
    """The name of the socket where processes of a node ask its agent; in no file system."""
    return f"{_prefix(session)}{zlib.crc32(node.encode()):08x}"  # since such a name has 107 bytes at most


def is_own(sock: socket.socket) -> bool:
    """Whether who is at the other end, on this machine, is of the same user: anybody may connect, and listen."""
    told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    uid: int = _PEER.unpack(told)[1]
    return uid == os.geteuid()


def empty_copy(size: int) -> int:
    """A file in memory for as many bytes, which take none yet."""
    handle = _new_file(in_memory=True)
    try:
        os.ftruncate(handle, size)
    except BaseException:
        os.close(handle)
        raise
    return handle


def finished_copy(handle: int) -> int:
    """Seal it, now that all is written; the same for reading alone: no other can be mapped before Linux 6.7."""
    _seal(handle)
    return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)


def _prefix(session: str) -> str:
    return f"\0remoteexec-{session}-"


def _agent(session: str) -> socket.socket:
    for name in _agents(session):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(name)
            if is_own(sock):
                return sock
        except ConnectionError:
            pass
        sock.close()
    raise NotShared("the shared object is not there: no agent of the executor that shared it is on this node")


def _agents(session: str) -> Iterator[str]:
    """First by what the environment says; a rank that was started from another node has that one's name, or none."""
    yield name_of_agent(session, os.environ.get(names.NODE, ""))
    with open("/proc/net/unix") as lines:
        for line in lines:
            name = line.split()[-1].replace("@", "\0", 1)
            if name.startswith(_prefix(session)):
                yield name


def _loaded(opened: int, place: str, digest: str) -> Any:
    """The object in a file that is open, and is closed."""
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
