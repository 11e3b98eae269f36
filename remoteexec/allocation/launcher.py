"""The nodes of an allocation as a pool sees them: asks for workers, is told of their ends.

Everything goes through a process of its own, `remoteexec_server.relay`, which holds the connections to the nodes: to
the pool it looks like the zygote of one machine, with sockets and pipes of this machine for each worker.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Collection, Sequence

from remoteexec_server import open_files, relay, zygote
from remoteexec_server.wire import pooled

from ..pool.zygote_client import (
    _RESERVE,
    BUFFER,
    START,
    Ended,
    Endpoint,
    Heard,
    NodeLost,
    NodeReady,
    NotStarted,
    Report,
    most_files,
    path,
    report_of,
)
from .base import Allocation, Step
from .kept import cores_of, nodes_of
from .nodes import Place

PING_S = 10.0
"""How often agents are asked whether they are there. Picked: nothing to who serves thousands of calls a second."""
_FILES_EACH = 3
"""A worker's socket and pipes."""


class FarEndpoint(Endpoint):
    """Of a worker on another machine. Once it is lost, nobody can say which of its tasks it has taken.

    Attributes:
        refused: there has been no such worker.
        at: the number of its node.
        ready: nodes that are; the launcher adds to it.
    """

    recall: socket.socket | None = None
    refused = False
    at = 0
    ready: frozenset[int] | set[int] = frozenset()

    @property
    def there(self) -> bool:
        """See Endpoint."""
        return self.at in self.ready

    def take_back(self, tasks: Collection[int]) -> list[int]:
        """See Endpoint. Of a lost node, all tasks but the first: what stood behind that had not begun, or its result
        was on its way."""
        if self.refused:
            return list(tasks)
        if self.lost:
            return list(tasks)[1:]
        if self.recall is None or self.token_in is None:
            return []
        try:
            self.recall.sendall(relay.RECALL.pack(self.number))
            (length,) = relay.RECALLED.unpack(self._receive(relay.RECALLED.size))
            tokens = self._receive(length)
        except (OSError, EOFError):  # the pool hears of that
            return []
        return [number for (number,) in pooled.TOKEN.iter_unpack(tokens) if number in tasks]

    def _receive(self, length: int) -> bytes:
        assert self.recall is not None
        data = b""
        while len(data) < length:
            more = self.recall.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data


class AllocationLauncher:
    """See Launcher.

    Args:
        allocation: what there is.
        step: what starts an agent on each node.
        localhost: agents connect to this machine by its own name for itself alone.
        preload: modules that each node imports once for all its workers.
        places: of kept workers, as many as there is room for.
        pinned: cores of each kept worker, if they are to be its own; 0: they are not, nor are those of others.
        session: of the executor, as those know it who ask on a node for what it shares.

    This process may have as many more files open as workers take, if the hard limit lets it.

    Raises:
        OSError: the relay cannot be started.
    """

    far = True

    def __init__(
        self,
        allocation: Allocation,
        step: Step,
        *,
        localhost: bool = False,
        preload: Sequence[str] = (),
        places: Sequence[Place] = (),
        pinned: int = 0,
        session: str = "",
    ) -> None:
        self.environment = dict(os.environ)
        self._names = [node.name for node in allocation.nodes]
        self._places = places
        self._slots = Counter(place.node for place in places)  # as many on each node, or first of all there
        self._lost: set[int] = set()
        self._pinned, self._cores = pinned, [node.cores for node in allocation.nodes]
        self._node_of: dict[int, int] = {}  # of kept workers
        self._turn_of: dict[int, int] = {}  # which one of its node a kept worker is, as long as there is room
        self._endpoints: dict[int, FarEndpoint] = {}
        self._ready: set[int] = set()
        self._why_lost: dict[int, str] = {}  # of nodes
        self._kept = b""
        # guards that the socket is open when others than the pool write to it; a finalizer may while its thread has it
        self._open = threading.RLock()
        self.control, theirs = socket.socketpair()
        self._recall, its = socket.socketpair()
        told = {
            "nodes": [node.alias or node.name for node in allocation.nodes],
            "identify": list(step.identify),
            "addresses": ["127.0.0.1"] if localhost else _addresses(),
            "listen": "127.0.0.1" if localhost else "",
            "preload": list(preload),
            "shown": shlex.join(step.argv),
            "step": [*step.argv, *(() if step.started else agent_command())],
            "environment": dict(step.environment),
            "logs": step.logs,
            "session": session,
            "ping_s": PING_S,
            "end": list(step.end),
        }
        with theirs, its:
            self._process = subprocess.Popen(
                [*_command(), "relay", str(theirs.fileno()), str(its.fileno())],
                pass_fds=[theirs.fileno(), its.fileno()],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:
            pipe.write(json.dumps(told).encode() + b"\n")
        # later than the relay is started, so that what it starts has the limit as it was
        open_files.raise_limit(_files_before() + _FILES_EACH * allocation.cores)

    @property
    def room(self) -> int:
        """See Launcher."""
        return sum([not self.has_lost(place) for place in self._places])

    def start_worker(self, number: int, kept: bool, output: bool = False, place: tuple[str, ...] = ()) -> Endpoint:
        """See Launcher."""
        node = place.node if isinstance(place, Place) else self._emptiest()
        ours, theirs = socket.socketpair()
        files: list[int] = []
        tokens = printed = None
        try:
            with theirs:
                if ours.fileno() >= most_files() - _RESERVE:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                ours.setblocking(False)
                if kept:
                    files += (tokens := os.pipe())
                    os.set_blocking(tokens[1], False)
                if output:
                    files += (printed := os.pipe())
                    os.set_blocking(printed[0], False)
                theirs_too = [*(tokens or ())[:1], *(printed or ())[1:]]
                request = relay.REQUEST.pack(zygote.KEPT if kept else zygote.ONCE, number, node)
                with contextlib.suppress(ConnectionError):  # the pool hears of it
                    socket.send_fds(self.control, [request], [theirs.fileno(), *theirs_too])
                for handle in theirs_too:
                    os.close(handle)
        except BaseException:
            ours.close()
            for handle in files:
                with contextlib.suppress(OSError):
                    os.close(handle)
            raise
        endpoint = FarEndpoint(number, ours, tokens[1] if tokens else None, None, printed[0] if printed else None)
        endpoint.at, endpoint.ready = node, self._ready
        endpoint.recall, endpoint.node = self._recall if kept else None, self._names[node]
        self._endpoints[number] = endpoint
        cores = place.cores if isinstance(place, Place) else self._take_turn(number, node)
        if self._pinned and cores:
            endpoint.cores = cores, self._cores[node]
        if kept:
            self._node_of[number] = node
        return endpoint

    def _take_turn(self, number: int, node: int) -> tuple[int, ...]:
        """Cores for one more kept worker; none beyond its node's room, where others rest on theirs."""
        taken = {self._turn_of.get(other) for other, its in self._node_of.items() if its == node}
        turn = next((turn for turn in range(self._slots[node]) if turn not in taken), None)
        if turn is None:
            return ()
        self._turn_of[number] = turn
        return cores_of(turn, self._pinned)

    def has_lost(self, place: tuple[str, ...]) -> bool:
        """See Launcher."""
        return not self._lost.isdisjoint(nodes_of(place))

    def _emptiest(self) -> int:
        """The node of one more kept worker; beyond its cores where others rest."""
        if not self._slots:
            raise OSError("no node is left")
        taken = list(self._node_of.values())
        return max(self._slots, key=lambda at: self._slots[at] - taken.count(at))

    def kill_worker(self, number: int) -> None:
        """See Launcher."""
        with contextlib.suppress(OSError):
            self.control.sendall(relay.REQUEST.pack(zygote.KILL, number, 0))

    def share(self, number: int, file: int) -> None:
        """See engine.sharing.Carrier."""
        self._tell(relay.REQUEST.pack(relay.SHARE, number, 0), [file])

    def unshare(self, number: int) -> None:
        """See engine.sharing.Carrier."""
        self._tell(relay.REQUEST.pack(relay.UNSHARE, number, 0), [])

    def _tell(self, request: bytes, files: list[int]) -> None:
        with self._open, contextlib.suppress(OSError):  # the nodes are gone, and their copies
            socket.send_fds(self.control, [request], files)

    def reports(self) -> list[Report] | None:
        """See Launcher."""
        try:
            data = self.control.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            return None
        data, found, at = self._kept + data, [], 0
        while (words := at + zygote.REPORT.size) <= len(data):
            number, pid, status = zygote.REPORT.unpack_from(data, at)
            end = words + (pid if status == relay.NODE_LOST else 0)
            if end > len(data):
                break
            found.append(self._report(number, pid, status, data[words:end].decode()))
            at = end
        self._kept = data[at:]
        return found

    def _report(self, number: int, pid: int, status: int, words: str) -> Report:
        if status == relay.NODE_READY:
            self._ready.add(number)
            return NodeReady(number, self._names[number])
        if status == relay.NODE_LOST:
            self._why_lost[number] = words
            self._slots.pop(number, None)
            self._lost.add(number)
            for worker in [worker for worker, node in self._node_of.items() if node == number]:
                self._endpoints[worker].lost = True
            return NodeLost(number, self._names[number], words)
        if status == relay.HEARD:
            return Heard(number)
        report = report_of(number, pid, status)
        if status == relay.LOST:
            report = Ended(number, 0, 0, self._names[pid], self._why_lost.get(pid, ""))
        if isinstance(report, (Ended, NotStarted)):
            self._node_of.pop(number, None)
            self._turn_of.pop(number, None)
            endpoint = self._endpoints.pop(number, None)
            if endpoint is not None:
                endpoint.refused = isinstance(report, NotStarted)
                endpoint.lost = isinstance(report, Ended) and report.node is not None
        return report

    def why_ended(self) -> str:
        """See Launcher."""
        return "the process that connects the nodes has ended"

    def successor(self) -> None:
        """See Launcher: its nodes, and what these have, were this one's."""

    def end_orphans(self, pids: Sequence[int]) -> None:
        """See Launcher: agents see by themselves that the relay is gone."""

    def close(self) -> None:
        """End the agents, and with them every worker."""
        with self._open:
            self.control.close()
        self._recall.close()
        self._process.wait()

    def leave(self) -> None:
        """See Launcher."""
        self._open = threading.RLock()  # somebody may have held it
        self.control.close()
        self._recall.close()


def agent_command() -> list[str]:
    """What starts an agent on a node."""
    return [*_command(), "agent"]


def _command() -> list[str]:
    return [sys.executable, "-c", START, path()]


def _files_before() -> int:
    """What this process may have open for other things: as many as it may by now."""
    most = most_files()
    return int(most) if most != math.inf else 0


def _addresses() -> list[str]:
    """Where this machine may be reached."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        found = [str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
        return list(dict.fromkeys([name, *found]))
    return [name]
