"""The process workers are forked from: small, single-threaded, without anything the user did not ask for.

`zygote FD MODULE...`: FD is a socket to the pool, the modules are what the user wants imported once for all. A
request with the worker's socket and token pipe forks a worker, one without ends it; every worker's start and end is
reported, and when it is stopped by a signal and goes on. A fork of this process takes a millisecond; a new interpreter
would take a hundred. When the pool is gone, however it went, the zygote kills all workers, with all that these have
started (see `orphans`), and ends: nothing is left behind.

It never waits for the pool: reports that the socket does not take now are kept, so that a pool that waits for a
request to be read cannot wait for ever.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Collection
from typing import Any

from . import growing as _growing  # noqa: F401  # so that workers need not import it each
from . import orphans, worker
from . import shared_objects as _shared_objects  # noqa: F401  # the same

REQUEST = struct.Struct("<cq")
KEPT, ONCE, KILL, PING = b"K", b"O", b"X", b"I"
REPORT = struct.Struct("<qii")  # worker number, pid, wait status or one of the following
STARTED, NOT_STARTED, HALTED, CONTINUED = -1, -2, -3, -4
"""NOT_STARTED has the reason, an `errno`, instead of a pid. HALTED: by SIGSTOP, say, until SIGCONT."""
HERE = -9
"""The answer to PING."""
IMPORTED = b"imported"
"""What is said first if there are modules to import; otherwise why that cannot be done, and nothing more."""
_LAST_S = 2.0
"""How long it waits, at its end, for those it has killed: what the kernel holds longer is not worth a hang. Picked."""
_TERMINATED_S = 0.2
"""Who ends a whole step or job ends this process as well, a moment after a worker: what ended that is then not told as
if it had been the worker's own affair. Picked: nobody else is held up by it."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main(argv: list[str]) -> int:
    """Fork workers until the pool is gone."""
    # so that workers need not import them each; here, since the client imports this module for what it is told
    import json as _json  # noqa: F401

    from .wire import by_value as _by_value  # noqa: F401

    control = socket.socket(fileno=int(argv[0]))
    os.set_inheritable(control.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's business
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])  # the caller's, who may want it in a `sigwait`
    orphans.prepare()
    if argv[1:]:
        problem = _import(argv[1:])
        control.sendall(problem.encode(errors="replace") if problem else IMPORTED)
        if problem:
            return 1
    return _Zygote(control, mask).serve()


def print_errors_to(handle: int) -> None:
    """From here on, errors are printed there: the caller keeps what was said before, in case that this never starts."""
    os.dup2(handle, 2)
    os.close(handle)
    before = sys.stderr  # which knows of another kind of file
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, before.encoding, before.errors, closefd=False)  # type: ignore[misc]


def _import(modules: list[str]) -> str | None:
    """Import what workers are to find there; what is wrong with it."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # libraries that start threads when they are imported
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as exc:  # whatever the user's module raises: he is told
            return f"preload: {module} cannot be imported: {type(exc).__name__}: {exc}"
        if (count := _thread_count()) > 1:
            return f"preload: {module} starts {count - 1} threads when it is imported: workers cannot be forked then"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    return None


def _thread_count() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # no /proc
        return 1


class _Zygote:
    """Its workers, and what the pool has not been told yet.

    Args:
        mask: signals that workers are to have blocked, as processes of `multiprocessing` have: those of the caller.
    """

    def __init__(self, control: socket.socket, mask: Collection[int]) -> None:
        self._control, self._mask, self._pid = control, mask, os.getpid()
        orphans.adopt()
        self._of_modules = set(orphans.children())  # what the user's modules have started
        self._workers: dict[int, int] = {}  # pid: number
        self._reports = bytearray()
        self._waited = -math.inf  # when, for an end of its own
        control.setblocking(False)
        self._wake_in, self._wake_out = os.pipe()
        for handle in (self._wake_in, self._wake_out):  # not by `pipe2`, which macOS has not
            os.set_blocking(handle, False)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._poll.register(self._wake_in, select.POLLIN)

    def serve(self) -> int:
        """Until the pool is gone."""
        try:
            while True:
                for handle, events in self._poll.poll():
                    if handle == self._wake_in:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake_in, 4096)
                        self._reap()
                    elif events & select.POLLOUT:
                        self._tell()
                    elif not self._take():
                        return 0
        except ConnectionError:
            return 0
        finally:
            self._end_all()

    def _end_all(self) -> None:
        """Kill workers and what they leave, and what that leaves, until no child is there."""
        for pid in self._workers:
            _kill(pid)
        ended = select.poll()
        ended.register(self._wake_in, select.POLLIN)
        until = time.monotonic() + _LAST_S
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                orphans.end_children()
                if not ended.poll(max(0.0, until - time.monotonic()) * 1000):
                    return
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_in, 4096)

    def _take(self) -> bool:
        """Do what one request says; False when the pool is gone."""
        data, handles, _, _ = socket.recv_fds(self._control, REQUEST.size, 3)
        if not data:
            return False
        kind, number = REQUEST.unpack(data)
        if kind == KILL:
            for pid in [pid for pid, its in self._workers.items() if its == number]:
                _kill(pid)
            return True
        if kind == PING:
            self._report(number, 0, HERE)
            return True
        try:
            pid = os.fork()
        except OSError as exc:  # too many processes, or too little memory
            self._report(number, exc.errno or 0, NOT_STARTED)
            pid = -1
        if pid == 0:
            self._become_worker(kind, number, handles)
        for handle in handles:
            os.close(handle)
        if pid > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpgid(pid, pid)  # here and in the fork: whoever is first, the group is there when it is killed
            self._workers[pid] = number
            self._report(number, pid, STARTED)
        return True

    def _become_worker(self, kind: bytes, number: int, handles: list[int]) -> None:
        """In the fork: never returns."""
        code = 1
        try:
            with contextlib.suppress(PermissionError):
                os.setpgid(0, 0)
            for handle in handles:
                os.set_inheritable(handle, False)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if signal.SIGCHLD in self._mask:
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            orphans.end_with(self._pid)
            orphans.adopt()
            for handle in (self._control.detach(), self._wake_in, self._wake_out):
                os.close(handle)
            _reseed()
            if len(handles) > (2 if kind == KEPT else 1):
                _print_into(handles.pop())
            sock = socket.socket(fileno=handles[0])
            if kind == KEPT:
                worker.Worker(sock, handles[1], number).serve()
            else:
                worker.Worker(sock, None, number).serve_one()
            code = 0
        except BaseException:  # the process edge; its end is told by the zygote
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        if not hasattr(os, "waitid"):  # macOS, before Python 3.13
            self._reap_at_once()
            return
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return
                if ended.si_code in (os.CLD_STOPPED, os.CLD_CONTINUED):
                    self._report_halt(ended.si_pid)
                else:
                    self._bury(ended.si_pid)

    def _bury(self, pid: int) -> None:
        """A worker or an orphan has ended: end what it left running, too."""
        number = self._workers.pop(pid, None)
        if number is not None:
            _kill(pid)  # its number is its own until it is waited for
        _, status = os.waitpid(pid, 0)
        orphans.end_children(but=self._workers.keys() | self._of_modules)
        if number is not None:
            if status == signal.SIGTERM:
                self._expect_end()
            self._report(number, pid, status)

    def _expect_end(self) -> None:
        """See `_TERMINATED_S`; once for many."""
        now = time.monotonic()
        if now - self._waited > 2 * _TERMINATED_S:
            self._waited = now
            time.sleep(_TERMINATED_S)

    def _reap_at_once(self) -> None:
        """The same where a process cannot be looked at before it is waited for."""
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not pid:
                return
            halted = os.WIFSTOPPED(status)
            number = self._workers.get(pid)
            if halted or os.WIFCONTINUED(status):
                if number is not None:
                    self._report(number, pid, HALTED if halted else CONTINUED)
                continue
            if number is not None:
                del self._workers[pid]
                _kill(pid)  # what it left running: no process has this number as long as there is such a group
                self._report(number, pid, status)

    def _report_halt(self, pid: int) -> None:
        """A worker was stopped or goes on, as it was seen; by now it may have been killed."""
        said = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        if said is not None and pid in self._workers:
            self._report(self._workers[pid], pid, HALTED if said.si_code == os.CLD_STOPPED else CONTINUED)

    def _report(self, number: int, pid: int, status: int) -> None:
        self._reports += REPORT.pack(number, pid, status)
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._reports:
                del self._reports[: self._control.send(self._reports)]
        self._poll.modify(self._control.fileno(), select.POLLIN | (select.POLLOUT if self._reports else 0))


def _print_into(handle: int) -> None:
    """Let all that this process and its children print go into a pipe, line by line."""
    for standard in (1, 2):
        os.dup2(handle, standard)
    os.close(handle)
    # New ones: what these know of the file that they had (where it ends, whether it can be searched) is wrong now.
    sys.stdout = sys.__stdout__ = _text(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2)  # type: ignore[misc]


def _text(handle: int) -> Any:
    return os.fdopen(handle, "w", 1, "utf-8", "backslashreplace", closefd=False)


def _reseed() -> None:
    """Forks draw different random numbers: Python's own see to that, numpy's global ones do not."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _kill(pid: int) -> None:
    """A worker and all that it started; the group outlives its leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
