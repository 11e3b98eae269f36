"""Calls of a cache that run, or did when their process ended: what becomes of them, and ending them."""

from __future__ import annotations

import os
import queue
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remoteexec_server.store import root
from remoteexec_server.store.session import Session
from remoteexec_server.wire import header, payload
from remoteexec_server.wire.messages import (
    Cancel,
    Close,
    Closed,
    Hello,
    Known,
    Lost,
    OutcomeReady,
    Started,
    Tell,
    Watch,
)
from remoteexec_server.wire.names import TaskKey

from .. import errors
from .._version import __version__
from ..engine.cache import CachedInput, CacheDirectory, CacheWarning, Pointer, checked_name, get_cache_data
from ..engine.client import Failed, Heard, InProcess, ServiceClient
from ..engine.tracker import Unlinked

__all__ = ["get_cache_data_queue", "terminate_task_in_cache", "terminate_tasks_in_cache"]

_ANSWER_S = 60.0


def get_cache_data_queue(
    cache_directory: str | os.PathLike[str], queue_type: str | None = None, config_directory: str | None = None
) -> list[dict[str, Any]]:
    """All entries of a cache as `get_cache_data` has them, and the calls that have none yet, each with its `status`.

    "finished" and "error" are those that have ended; "running" and "pending" those that have not, whose `output` is
    None and whose `filename` says where they run. Calls of a RemoteExecutor are asked for on their cluster, which
    clusters.toml has to name, else a `CacheWarning` says where they run; their `function` and arguments are None.

    Args:
        queue_type: taken, and without effect, as `config_directory`: the cache knows where its calls run.

    Raises:
        FileNotFoundError: there is no such directory.
        RemoteExecError: a cluster cannot be reached.
    """
    entries = get_cache_data(cache_directory)
    for entry in entries:
        entry["status"] = "finished" if entry["error"] is None else "error"
    cache = CacheDirectory(cache_directory)
    places, unknown = _places(cache.pointers())
    for place in places:
        with place.service() as service:
            found = service.survey()
        entries += [place.entry(cache, name, task, *found[task]) for task, name in place.tasks.items() if task in found]
    if unknown:
        warnings.warn(_told(unknown), CacheWarning, stacklevel=2)
    return entries


def terminate_tasks_in_cache(
    cache_directory: str | os.PathLike[str], pysqa_config_directory: str | None = None, backend: str | None = None
) -> None:
    """End the jobs of all calls of a cache that have not ended, whoever submitted them, on this machine's cluster or on
    those of clusters.toml.

    Args:
        pysqa_config_directory: taken, and without effect, as `backend`: the cache knows where its calls run.

    Raises:
        FileNotFoundError: there is no such directory.
        ConfigError: some run on a cluster that clusters.toml does not name; all others have been ended.
        RemoteExecError: a cluster, or its scheduler, cannot be reached.
    """
    _terminate(cache_directory, None)


def terminate_task_in_cache(
    cache_directory: str | os.PathLike[str],
    cache_key: str,
    pysqa_config_directory: str | None = None,
    backend: str | None = None,
) -> None:
    """The same for one call; see `terminate_tasks_in_cache`.

    Raises:
        ValueError: the key cannot be one.
    """
    _terminate(cache_directory, checked_name(cache_key))


def _terminate(cache_directory: str | os.PathLike[str], only: str | None) -> None:
    directory = root.absolute(cache_directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {os.fspath(cache_directory)!r}")
    cache = CacheDirectory(directory)
    places, unknown = _places((name, pointer) for name, pointer in cache.pointers() if only in (None, name))
    for place in places:
        with place.service() as service:
            service.client.send(Cancel(tuple(place.tasks)))
        for name in place.tasks.values():
            cache.forget(name)
    if unknown:
        raise errors.ConfigError(_told(unknown))


@dataclass
class _Place:
    """One session with calls of the cache.

    Attributes:
        connect: makes the way to its service.
        root: ours there; None: not on this machine.
        tasks: the names of their entries to be.
    """

    connect: Callable[[Hello], ServiceClient]
    root: Path | None
    session: str
    tasks: dict[TaskKey, str] = field(default_factory=dict)

    @contextmanager
    def service(self) -> Iterator[_Survey]:
        """A batch service for the session; when it is left, the scheduler has been told everything."""
        hello = Hello(
            header.PROTOCOL, header.PYTHON, __version__, secrets.token_hex(4), self.session, secrets.token_hex(32)
        )
        client = self.connect(hello)
        heard: queue.SimpleQueue[tuple[Heard, bytes]] = queue.SimpleQueue()
        client.open(heard.put)
        try:
            service = _Survey(client, heard, tuple(self.tasks))
            yield service
            client.send(Close(discard=False))
            while not isinstance(service.next(), Closed):
                pass
        finally:
            client.close()

    @property
    def is_gone(self) -> bool:
        """Whether it was removed, and its tasks with it; elsewhere that is asked when it is reached."""
        return self.root is not None and not (self.root / "sessions" / self.session).is_dir()

    def entry(self, cache: CacheDirectory, name: str, task: TaskKey, status: str, job: str) -> dict[str, Any]:
        """See `get_cache_data_queue`."""
        call = self._call(cache, task)
        return {
            **dict(zip(("function", "input_args", "input_kwargs"), call, strict=True)),
            "output": None,
            "error": None,
            "resource_dict": {},
            "runtime": None,
            "queue_id": job or None,
            "error_log_file": None,
            "filename": str(cache.path(name).with_suffix(".running")),
            "status": status,
        }

    def _call(self, cache: CacheDirectory, task: TaskKey) -> tuple[Any, Any, Any]:
        from remoteexec_server.store import hdf5

        if self.root is None:
            return None, None, None
        session = Session(self.root / "sessions" / self.session)
        for submit in session.bursts():
            for position, entry in enumerate(submit.tasks):
                if entry.key == task:
                    data = session.bundle(submit.burst).read_bytes()
                    function, given = hdf5.read_call(data, submit.burst, position, session.key)
                    args, kwargs = payload.loads(
                        given.data, given.buffers, lambda key: CachedInput(self.tasks.get(key))
                    )
                    return payload.loads(function.data, function.buffers), args, kwargs
        return None, None, None

    def _input(self, key: TaskKey) -> CachedInput:
        return CachedInput(self.tasks.get(key))


@dataclass
class _Survey:
    client: ServiceClient
    heard: queue.SimpleQueue[tuple[Heard, bytes]]
    tasks: tuple[TaskKey, ...]

    def next(self) -> Heard:
        """What the service says next.

        Raises:
            errors.RemoteExecError: it does not, or cannot be reached any more.
        """
        try:
            event, _ = self.heard.get(timeout=_ANSWER_S)
        except queue.Empty:
            raise errors.RunnerError(f"the service has not answered for {_ANSWER_S:.0f} s") from None
        match event:
            case Failed():
                raise event.error
            case Unlinked():
                raise errors.ConnectionLost(event.reason)
        return event

    def survey(self) -> Mapping[TaskKey, tuple[str, str]]:
        """Status and job of those tasks that have not ended."""
        self.client.send(Watch(self.tasks))
        self.client.send(Tell())
        status = dict.fromkeys(self.tasks, "pending")
        while True:
            match self.next():
                case Started(key):
                    status[key] = "running"
                case OutcomeReady(key) | Lost(key):
                    status.pop(key, None)
                case Known(entries, numbers):
                    jobs = {entry.key: job for entry, job in zip(entries, numbers, strict=True)}
                    return {key: (said, jobs[key]) for key, said in status.items() if key in jobs}


def _places(pointers: Iterable[tuple[str, Pointer]]) -> tuple[list[_Place], dict[str, int]]:
    """Where calls run that have no entry; and how many at places that nobody here knows the way to."""
    places: dict[tuple[str, str], _Place | None] = {}
    unknown: dict[str, int] = {}
    for name, pointer in pointers:
        this = pointer.place, pointer.session
        if this not in places:
            places[this] = _place(pointer)
        found = places[this]
        if found is None:
            unknown[pointer.place] = unknown.get(pointer.place, 0) + 1
        else:
            found.tasks[TaskKey(pointer.task)] = name
    return [place for place in places.values() if place is not None and not place.is_gone], unknown


def _place(pointer: Pointer) -> _Place | None:
    """The way to a session; None: nobody here knows it."""
    scheduler, _, where = pointer.place.partition(" ")
    if where.startswith(("/", "$")):  # of this machine; on others a host's name comes first
        directory = root.absolute(where)
        return _Place(lambda hello: InProcess(hello, str(directory), scheduler), directory, pointer.session)
    from ..config.file import load_clusters  # late, as the next: for calls of a RemoteExecutor only
    from .remote import client_of, place_of

    for config in load_clusters().values():
        if place_of(config) == pointer.place:
            return _Place(lambda hello: client_of(config, hello), None, pointer.session)  # noqa: B023  it returns
    return None


def _told(unknown: Mapping[str, int]) -> str:
    from ..config.file import config_path

    places = ", ".join(f"{count} on {place}" for place, count in unknown.items())
    return (
        f"calls that have not ended run where no entry of {config_path()} leads: {places} (scheduler, host and root). "
        "Add the cluster with `remoteexec config add-cluster`, or cancel their jobs there; their names begin with rx-"
    )
