"""Shared objects on their way to the nodes of an allocation, where each that is used has one copy.

    caller ─ file ─▶ relay: Originals ═ pieces ═▶ agent: Copies ─ file ─▶ workers of that node, which map it

A worker that loads arguments with a shared object asks the agent of its node, and waits for an answer. The agent asks
the relay for what it has not; what has come whole it gives to all who wait, and to who asks later. The relay reads the
caller's own file piece by piece, as the connection takes them, with all other traffic in between.

Numbers of objects are never used again, so a late word can be about no other.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable

from . import shared_objects
from .free_memory import available_bytes
from .wire import lanes

PIECE_BYTES = 1 << 18
"""So much goes to a node before other traffic has its turn. Picked, not measured."""
_LEAVES = 8
"""One part in so many of a node's free memory is left to its tasks. Picked."""
_WAITING = 1024  # of who connects at the same time
_GIVEN = b"the node's copy of a shared object cannot be opened: this process has too many open files"
"""Comes with the file, so it is read only by who could not receive that."""


class Originals:
    """What the caller shares, as the relay has it: its files, and what of them is due to which node."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._newest = -1
        self._early: list[tuple[int, int]] = []  # nodes and what they want; the caller's word of it is on its way
        self._sent: dict[int, set[int]] = {}  # object: nodes that have it, or some of it
        self.due: dict[int, deque[list[int]]] = {}
        """Node: objects that it wants, and how many bytes of them it was sent. No node has an empty one."""

    def add(self, number: int, file: int) -> None:
        """The caller shares this; numbers rise."""
        self._files[number], self._newest, self._sent[number] = file, number, set()
        early, self._early = self._early, []
        for node, wanted in early:
            self.want(node, wanted)

    def remove(self, number: int) -> set[int]:
        """The caller shares it no more; the nodes that are to be told so."""
        if number not in self._files:
            return set()
        os.close(self._files.pop(number))
        told = self._sent.pop(number)
        for node in told:
            self._stop(node, number)
        return told

    def want(self, node: int, number: int) -> bool:
        """A node wants a copy; False: it is not shared any more."""
        if number in self._files:
            self._sent[number].add(node)
            self.due.setdefault(node, deque()).append([number, 0])
        elif number > self._newest:
            self._early.append((node, number))
        else:
            return False
        return True

    def refused(self, node: int, number: int) -> None:
        """A node gets no more of it, until it wants it again."""
        if number in self._sent:
            self._sent[number].discard(node)
            self._stop(node, number)

    def lose(self, node: int) -> None:
        """A node is gone."""
        self.due.pop(node, None)
        self._early = [each for each in self._early if each[0] != node]
        for nodes in self._sent.values():
            nodes.discard(node)

    def next(self, node: int) -> tuple[bytes, int, bytes]:
        """What is to be said to a node that something is due to: of several objects a piece each, in turn."""
        sending = self.due[node][0]
        number, at = sending
        try:
            data = os.pread(self._files[number], PIECE_BYTES, at)
            sending[1] = at + len(data)
            ended = sending[1] >= os.fstat(self._files[number]).st_size
        except OSError as exc:
            self.refused(node, number)
            return lanes.GONE, number, f"the caller's copy of a shared object cannot be read: {exc}".encode()
        if ended:
            self._stop(node, number)
        else:
            self.due[node].rotate(-1)
        return lanes.PIECE, number, lanes.COUNT.pack(at) + data

    def _stop(self, node: int, number: int) -> None:
        left = deque(each for each in self.due.pop(node, ()) if each[0] != number)
        if left:
            self.due[node] = left


class _Copy:
    """One object on this node; `waiting` asked for it and have no answer yet."""

    def __init__(self, size: int) -> None:
        self.size, self.got = size, 0
        self.handle = shared_objects.empty_copy(size)
        self.waiting: list[socket.socket] = []

    def finish(self) -> None:
        """All of it has come."""
        written = self.handle
        self.handle = shared_objects.finished_copy(written)
        os.close(written)


class Copies:
    """The shared objects of one node, held by its agent; `fileno` can be read when somebody asks.

    Args:
        session: of the executor.
        node: its name.
        free_bytes: tells how much memory there is.
    """

    def __init__(self, session: str, node: str, free_bytes: Callable[[], int] = available_bytes) -> None:
        self._node, self._free_bytes = node, free_bytes
        self._copies: dict[int, _Copy] = {}
        self._asking: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(shared_objects.name_of_agent(session, node))
        self._listener.listen(_WAITING)
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """What to wait for."""
        return self._poll.fileno()

    def close(self) -> None:
        """Have nothing any more; who waits is told by that."""
        for number in list(self._copies):
            self.drop(number, "")
        for sock in (*self._asking.values(), self._listener):
            sock.close()
        self._poll.close()

    def serve(self) -> list[int]:
        """Hear who asks; the numbers of what the relay is to send."""
        wanted = []
        for file, _ in self._poll.poll(0):
            if file == self._listener.fileno():
                self._accept()
            elif file in self._asking and (number := self._hear(self._asking[file])) is not None:
                wanted.append(number)
        return wanted

    def take(self, number: int, data: lanes.Data) -> bool:
        """Some of an object has come; False: there is no room for it, and no more is wanted."""
        copy = self._copies.get(number)
        (at,) = lanes.COUNT.unpack_from(data)
        if copy is None or at != copy.got:  # what was on its way when there was no room
            return True
        left = memoryview(data)[lanes.COUNT.size :]
        try:
            while left:
                written = os.pwrite(copy.handle, left, copy.got)
                copy.got += written
                left = left[written:]
            if copy.got == copy.size:
                copy.finish()
        except OSError as exc:
            self.drop(number, self._no_room(copy.size, str(exc)))
            return False
        if copy.got == copy.size:
            waiting, copy.waiting = copy.waiting, []
            for sock in waiting:
                self._give(sock, copy)
        return True

    def drop(self, number: int, reason: str) -> None:
        """An object is shared no more, or will not come; who waits for it is told why."""
        copy = self._copies.pop(number, None)
        if copy is not None:
            for sock in copy.waiting:
                self._refuse(sock, reason)
            os.close(copy.handle)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            if not shared_objects.is_own(sock):
                sock.close()
                return
            sock.setblocking(False)
            self._asking[sock.fileno()] = sock
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _hear(self, sock: socket.socket) -> int | None:
        """What one says; the number of what the relay is to send for that."""
        try:
            asked = sock.recv(shared_objects.ASK.size)
        except OSError:
            asked = b""
        if len(asked) != shared_objects.ASK.size:  # it has ended
            self._part(sock)
            return None
        number, size = shared_objects.ASK.unpack(asked)
        copy = self._copies.get(number)
        if copy is not None:
            if copy.got == copy.size:
                self._give(sock, copy)
            else:
                copy.waiting.append(sock)
            return None
        try:
            self._copies[number] = copy = self._new(size)
        except OSError as exc:
            self._refuse(sock, self._no_room(size, str(exc)))
            return None
        copy.waiting.append(sock)
        return int(number)

    def _new(self, size: int) -> _Copy:
        free = self._free_bytes() - sum(copy.size - copy.got for copy in self._copies.values())
        if size > free - free // _LEAVES:
            raise OSError(f"{max(free, 0)} bytes of its memory are free, and tasks need some")
        return _Copy(size)

    def _no_room(self, size: int, why: str) -> str:
        return f"node {self._node} has no room for a copy of a shared object of {size} bytes: {why}"

    def _give(self, sock: socket.socket, copy: _Copy) -> None:
        with contextlib.suppress(OSError):  # it has ended
            socket.send_fds(sock, [_GIVEN], [copy.handle])
        self._part(sock)

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        with contextlib.suppress(OSError):
            sock.send(reason.encode())
        self._part(sock)

    def _part(self, sock: socket.socket) -> None:
        for copy in self._copies.values():
            if sock in copy.waiting:
                copy.waiting.remove(sock)
        self._asking.pop(sock.fileno(), None)
        sock.close()
