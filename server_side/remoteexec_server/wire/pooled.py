"""What a pool and its workers say: batches of calls one way, batches of results the other, on one stream socket.

    batch   = length of the body (8 bytes, big endian) | body | buffers, end to end
    body    = marshal of (sizes of the buffers, what is said)
    calls   = (setup or None, [Function], [Call])
    results = [Result]; the first of a kept worker is empty: it is set up
    ask     = (SUBMIT, *SubmitAsk), (CANCEL, task, child), (REST, task), (RESUME, task), (OVERTAKE, task) or
              (WATCH, task): see `growing`;
              (HALTED, task, rank, pid): an MPI rank was stopped by a signal;
              (ALTERED, task, modules), before its result: it was run by other code than the client has
    news    = [News]

What is said holds bytes, numbers and tuples only; what is in the bytes is pickled by `payload` and loaded by nobody
else. The buffers of a batch are those of its functions, then those of its calls, in order. Both ends are the same
Python, and the socket is a pair that was never in the file system.

A token is the number of a task, 8 bytes in a pipe, written before the call: who reads it has the task. The worker
reads one before each task; the pool reads them to take back tasks that wait behind a long one. A read of 8 bytes is one
whole token, whoever else reads.
"""

from __future__ import annotations

import marshal
import mmap
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

TOKEN = struct.Struct("<q")
TOKENS = [struct.Struct(f"<{count}q") for count in range(257)]
"""For as many tokens as a worker is ever given at once."""
Input = tuple["bytes | None", int]
"""A result of another task: pickled, and the number of its buffers; or the token of the task that the worker runs
before, and INHERITED."""
INHERITED = -1
_INHERITABLE = 1 << 14
"""Bytes. Picked, not measured: a worker keeps as much of its last result."""
Call = tuple[int, int, "bytes | None", int, "tuple[Input, ...] | None"]
"""Task, function, pickled arguments, the number of the call's buffers, inputs. The buffers are the arguments', then
each input's."""
Function = tuple[int, "bytes | None", int]
"""Its number, pickled, the number of its buffers; or a number to forget, and FORGET. See `is_large`."""
FORGET = -1
LARGE_FUNCTION = 1 << 16
"""Bytes. Picked, not measured: reading as much takes less time than loading it."""
Result = tuple[int, "bool | None", "bytes | None", int, float, float, int, int]
"""Task, whether it has a result, that or a `failure`, the number of its buffers, when it started and ended (Unix
time), the most bytes its process has had in memory, and that process. None for the second: it has returned the future
of a child, whose token comes instead of a result; or, without a token, it was not run, since it was to inherit and
could not.

Pickled bytes too large for a body are None, here and above, and come first among the buffers: see `split`."""


SUBMIT, CANCEL, REST, RESUME, HALTED, ALTERED, WATCH, OVERTAKE = 0, 1, 2, 3, 4, 5, 6, 7
Ask = tuple[Any, ...]
"""What a task wants of the pool: one of these numbers, the task, and what more it takes."""


def inheritable(result: Result) -> bool:
    """Whether the worker still has this result, until it has the next, for a call that inherits it."""
    return bool(result[1]) and not result[3] and result[2] is not None and len(result[2]) <= _INHERITABLE


class SubmitAsk(NamedTuple):
    """A task submits another. Its buffers are the function's, then the arguments'.

    Attributes:
        child: what the worker calls it.
        name: of the function.
        known: number of the function, if it is that of the task itself.
        function: otherwise: pickled, the number of its buffers.
        arguments: pickled, the number of their buffers.
        siblings: children that the arguments refer to by position.
        resources: pickled `resource_dict`.
    """

    task: int
    child: int
    name: str
    known: int | None
    function: tuple[bytes | None, int]
    arguments: tuple[bytes | None, int]
    siblings: tuple[int, ...]
    resources: bytes | None


GO = -1
News = tuple[int, "bool | None", "bytes | None", int]
"""A child, and of its `Result` what is of interest; None for the second: it was cancelled. GO: the task may go on."""


class Setup(TypedDict, total=False):
    """What a worker is made to be; all of it may be absent.

    Attributes:
        path: sys.path.
        cwd: directory, made if missing.
        environment: variables to set; None: to take away.
        error_log: file to which failing calls are appended.
        memory_bytes: most data it may have.
        init: pickled `init_function`.
        launch: how MPI ranks are started; see `mpi`.
        step: how they are over several nodes; see `mpi_launch.Step`.
        cores: which cores of its node it runs on, and how many those are; see `affinity`.
        mark: what, with the number of the task behind it, is printed before each call.
    """

    path: list[str]
    cwd: str | None
    environment: dict[str, str | None]
    error_log: str | None
    memory_bytes: int | None
    init: bytes | None
    launch: Any
    step: Any
    cores: tuple[tuple[int, ...], int]
    mark: bytes | None


_LENGTH = struct.Struct(">Q")
CHUNK = 1 << 16
"""Bytes that are read at once, but for buffers."""
_LARGE = 1 << 20
"""Bytes from which buffers are sent from where they are, smaller ones are joined, and pickles are buffers."""


def split(data: bytes, buffers: Sequence[memoryview]) -> tuple[bytes | None, Sequence[memoryview]]:
    """A pickle and its buffers as they travel: marshal has no objects of 2 GiB, and large ones need not be copied."""
    return (data, buffers) if len(data) < _LARGE else (None, [memoryview(data), *buffers])


def is_large(data: bytes | None, buffers: Sequence[Any]) -> bool:
    """Whether a function is sent with each batch of calls, and forgotten when these have run: a closure over an array.

    Smaller ones are kept until the pool says which to forget.
    """
    return sum([len(buffer) for buffer in buffers], len(data or b"")) > LARGE_FUNCTION


def joined(data: bytes | None, buffers: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """The same at the other end."""
    return (data, buffers) if data is not None else (buffers[0], buffers[1:])


def frame(said: object, buffers: Sequence[memoryview] = ()) -> list[bytes | memoryview]:
    """One batch as pieces to be sent one after the other."""
    sizes = tuple([b.nbytes for b in buffers]) if buffers else ()
    body = marshal.dumps((sizes, said))  # type: ignore[arg-type]  # typeshed's type for this is private
    head = _LENGTH.pack(len(body)) + body
    if not buffers:
        return [head]
    pieces: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = [head]
    for buffer in buffers:
        if buffer.nbytes < _LARGE:
            small.append(buffer)
        else:
            pieces += [b"".join(small), buffer.cast("B")]
            small = []
    if small:
        pieces.append(b"".join(small))
    return pieces


def send(sock: socket.socket, said: object, buffers: Sequence[memoryview] = ()) -> None:
    """Send one batch on a blocking socket."""
    for piece in frame(said, buffers):
        sock.sendall(piece)


class Stream:
    """Reads batches from a socket, blocking or not: nothing that was read is lost when there is no more for now."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._kept = bytearray()  # read and not used
        self._said: Any = None
        self._sizes: tuple[int, ...] | None = None  # of the batch whose body is here; None: no body yet
        self._buffers: list[bytearray | mmap.mmap] = []  # of that batch, the last perhaps not full yet
        self._rest: memoryview | None = None  # what is missing in that one
        self._next: deque[tuple[Any, list[bytearray | mmap.mmap]]] = deque()  # for `next`

    def read(self) -> list[tuple[Any, list[bytearray | mmap.mmap]]]:
        """Read once: the batches that are whole now, each with its buffers.

        Raises:
            BlockingIOError: nothing is there; only on a socket that does not block.
            EOFError: the other end is gone.
        """
        if self._rest is not None:
            got = self._sock.recv_into(self._rest)
            if not got:
                raise EOFError
            self._rest = self._rest[got:] if got < len(self._rest) else None
            if self._rest is not None:
                return []
        else:
            data = self._sock.recv(CHUNK)
            if not data:
                raise EOFError
            if not self._kept and self._sizes is None and len(data) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
                if len(data) == end:  # one batch and nothing else, most often
                    self._sizes, self._said = marshal.loads(memoryview(data)[_LENGTH.size :])
                    return self._batches()
            self._kept += data
        return self._batches()

    def next(self) -> tuple[Any, list[bytearray | mmap.mmap]]:
        """Wait for a batch, on a socket that blocks.

        Raises:
            EOFError: the other end is gone.
        """
        while not self._next:
            self._next += self.read()
        return self._next.popleft()

    def some(self) -> Iterable[tuple[Any, list[bytearray | mmap.mmap]]]:
        """What is whole and was not given by `next`; if there is nothing, what `read` gives."""
        if not self._next:
            return self.read()
        found, self._next = self._next, deque()
        return found

    def _batches(self) -> list[tuple[Any, list[bytearray | mmap.mmap]]]:
        """What the bytes that were read make whole."""
        whole = []
        used = 0
        while True:
            if self._sizes is None:
                if len(self._kept) - used < _LENGTH.size:
                    break
                (length,) = _LENGTH.unpack_from(self._kept, used)
                end = used + _LENGTH.size + length
                if len(self._kept) < end:
                    break
                self._sizes, self._said = marshal.loads(memoryview(self._kept)[used + _LENGTH.size : end])
                used = end
            for size in self._sizes[len(self._buffers) :]:
                used += self._start_buffer(size, used)
                if self._rest is not None:
                    break
            if self._rest is not None:
                break
            whole.append((self._said, self._buffers))
            self._sizes, self._said, self._buffers = None, None, []
        if used:
            del self._kept[:used]
        return whole

    def _start_buffer(self, size: int, used: int) -> int:
        """The next buffer, with what of it was read already; how much that is."""
        buffer = room(size)
        self._buffers.append(buffer)
        have = min(size, len(self._kept) - used)
        if have:
            buffer[:have] = self._kept[used : used + have]
        if have < size:
            self._rest = memoryview(buffer)[have:]
        return have


def room(size: int) -> bytearray | mmap.mmap:
    """Memory to read into.

    A large one comes in huge pages that nobody has filled with zeros before: half the time of a bytearray.
    """
    if size < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return bytearray(size)
    found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            found.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            pass
    return found
