"""Objects that an executor shares: written once, received by tasks in the place of their handles.

A shared object lives as long as its handle, or a task that was submitted with it and has not ended. While a call is
pickled, `lend` notes the handles in it; elsewhere a handle cannot be pickled.

Workers of this machine open the file itself. Those of others ask there for a copy, which a `Carrier` brings.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

from remoteexec_server import free_memory, shared_objects
from remoteexec_server.wire import payload

__all__ = ["Carrier", "Shared", "Sharing"]

T = TypeVar("T")
_lending: ContextVar[Lent | None] = ContextVar("lending", default=None)
log = logging.getLogger("remoteexec")


class Carrier(Protocol):
    """Brings copies of shared objects to the machines where they are asked for.

    Both may be called by any thread, also while garbage is collected, and when all is over.
    """

    def share(self, number: int, file: int) -> None:
        """Nodes may ask for this file from now on; numbers rise."""

    def unshare(self, number: int) -> None:
        """They may not any more, and have no copy."""


class _Stored:
    """One object in its file; `users` are handles, and tasks that have not ended."""

    def __init__(self, number: int, digest: str, handle: int, size: int) -> None:
        self.number, self.digest, self.handle, self.size = number, digest, handle, size
        self.users = 0


class Shared(Generic[T]):
    """The handle of an object that an executor shares; made by `share` of an executor.

    Tasks of that executor receive the object where this stands in their arguments, at any depth.
    """

    def __init__(self, sharing: Sharing, stored: _Stored) -> None:
        self._sharing, self._stored = sharing, stored
        self._end = weakref.finalize(self, sharing.drop, stored)
        self._end.atexit = False

    @property
    def size(self) -> int:
        """Bytes that the object takes."""
        return self._stored.size

    @property
    def value(self) -> T:
        """The object as tasks receive it: its arrays are read-only.

        Raises:
            RuntimeError: it was released, or its executor was shut down.
        """
        self._check()
        found: T = shared_objects.receive(*self._stored_here)
        return found

    def release(self) -> None:
        """Share it no more: its memory is free when the calls that were submitted with it have ended."""
        self._end()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        lent = _lending.get()
        if lent is None:
            raise TypeError(
                "a shared object is received by tasks in the place of an argument: pass its handle to submit of the "
                "executor that shares it, not inside the function, and to nothing else that pickles"
            )
        if lent.sharing is not self._sharing:
            raise TypeError("the handle of a shared object is another executor's: share the object on this one, too")
        self._check()
        lent.add(self._stored)
        if self._sharing.session is None:
            return shared_objects.receive, self._stored_here
        stored = self._stored
        file_size = os.fstat(stored.handle).st_size
        return shared_objects.receive_copy, (self._sharing.session, stored.number, file_size, stored.digest)

    def __remoteexec_contents__(self) -> T:
        """What it stands for in the key of a cached call."""
        return self.value

    def __repr__(self) -> str:
        return f"<Shared {self._stored.digest[:8]}, {self.size} bytes{'' if self._end.alive else ', released'}>"

    @property
    def _stored_here(self) -> tuple[int, int, str]:
        return os.getpid(), self._stored.handle, self._stored.digest

    def _check(self) -> None:
        if self._sharing.closed:
            raise RuntimeError("the executor that shared this object was shut down")
        if not self._end.alive:
            raise RuntimeError("this shared object was released: share it again")


class Lent:
    """What one call is lent."""

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self._stored: list[_Stored] = []

    def add(self, stored: _Stored) -> None:
        """The call has this one in its arguments."""
        if stored not in self._stored:
            self.sharing.take(stored)
            self._stored.append(stored)

    def until_done(self, future: concurrent.futures.Future[Any]) -> None:
        """The call has been submitted."""
        if self._stored:
            future.add_done_callback(self._give_back)

    def _give_back(self, _: object = None) -> None:
        while self._stored:
            self.sharing.drop(self._stored.pop())

    def __del__(self) -> None:
        """The call was refused."""
        self._give_back()


class Sharing:
    """The shared objects of one executor.

    Args:
        session: names it to those who ask on other machines; None: all workers are on this one.
    """

    def __init__(self, session: str | None = None) -> None:
        self.session = session
        self._carrier: Carrier | None = None
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # guards what follows; a finalizer may run while its own thread has it
        self._by_digest: dict[str, _Stored] = {}
        self._handles: weakref.WeakSet[Shared[Any]] = weakref.WeakSet()
        self.closed = False

    def share(self, obj: T) -> Shared[T]:
        """See BaseExecutor.share."""
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("share needs Linux: pass the object itself to submit")
        pickled = payload.dumps(obj, _contiguous, by_value=False, out_of_band=1)
        parts: list[bytes | memoryview] = [pickled.data, *(view.cast("B") for view in pickled.buffers)]
        digest = shared_objects.digest_of(parts)
        with self._lock:
            if self.closed:
                raise RuntimeError("cannot share after shutdown")
            stored = self._by_digest.get(digest)
            if stored is None:
                handle_of_file = _write(parts, digest, pickled.size)
                stored = _Stored(next(self._numbers), digest, handle_of_file, pickled.size)
                self._by_digest[digest] = stored
                if self._carrier is not None:
                    self._carrier.share(stored.number, stored.handle)
            self.take(stored)
            handle: Shared[T] = Shared(self, stored)
            self._handles.add(handle)
        return handle

    def carry_by(self, carrier: Carrier) -> None:
        """From now on there are other machines, which this one reaches."""
        with self._lock:
            self._carrier = carrier
            for stored in list(self._by_digest.values()):
                if stored.users:  # a finalizer may have run since
                    stored.users += 1
                    carrier.share(stored.number, stored.handle)
                    self.drop(stored)

    @contextlib.contextmanager
    def lend(self) -> Iterator[Lent]:
        """While a call is pickled."""
        lent = Lent(self)
        token = _lending.set(lent)
        try:
            yield lent
        finally:
            _lending.reset(token)

    def take(self, stored: _Stored) -> None:
        """One user more.

        Raises:
            RuntimeError: the last one is gone, by now.
        """
        with self._lock:
            if stored is not self._by_digest.get(stored.digest):
                raise RuntimeError("this shared object was released: share it again")
            stored.users += 1

    def drop(self, stored: _Stored) -> None:
        """One user less; the last lets go of the file."""
        with self._lock:
            stored.users -= 1
            if stored.users == 0:
                del self._by_digest[stored.digest]
                os.close(stored.handle)
                if self._carrier is not None:
                    self._carrier.unshare(stored.number)

    def close(self) -> None:
        """No handle is good any more; tasks that have not ended keep what they were given."""
        with self._lock:
            self.closed = True
            handles = list(self._handles)
        for handle in handles:
            handle.release()


def _contiguous(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """An array with gaps would be pickled into the pickle, and each task would have a copy."""
    np = sys.modules.get("numpy")
    if np is None or type(obj) is not np.ndarray or obj.dtype.hasobject:
        return None
    if obj.flags.c_contiguous or obj.flags.f_contiguous:
        return None
    return payload.given, (np.ascontiguousarray(obj),)


def _write(parts: list[bytes | memoryview], digest: str, size: int) -> int:
    if size < free_memory.available_bytes() // 2:
        return shared_objects.write(parts, digest, in_memory=True)
    log.warning("a shared object of %d bytes is more than half of the free memory: it is in the temporary folder", size)
    return shared_objects.write(parts, digest, in_memory=False)
