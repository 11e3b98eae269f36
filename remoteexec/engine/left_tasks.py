"""Calls of a cache that run, or did when their process ended: what becomes of them, and ending them."""

from __future__ import annotations

import os
import queue
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remoteexec_server.store import root
from remoteexec_server.store.session import Session
from remoteexec_server.wire import header, payload
from remoteexec_server.wire.messages import Cancel, Hello, Known, Lost, OutcomeReady, Started, Tell, Watch
from remoteexec_server.wire.names import TaskKey

from .._version import __version__
from .cache import CachedInput, CacheDirectory, Pointer, checked_name, get_cache_data
from .client import Failed, InProcess

__all__ = ["get_cache_data_queue", "terminate_task_in_cache", "terminate_tasks_in_cache"]

_ANSWER_S = 60.0


def get_cache_data_queue(
    cache_directory: str | os.PathLike[str], queue_type: str | None = None, config_directory: str | None = None
) -> list[dict[str, Any]]:
    """All entries of a cache as `get_cache_data` has them, and the calls that have none yet, each with its `status`.

    "finished" and "error" are those that have ended; "running" and "pending" those that have not, whose `output` is
    None and whose `filename` says where they run.

    Args:
        queue_type: taken, and without effect, as `config_directory`: the cache knows where its calls run.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    entries = get_cache_data(cache_directory)
    for entry in entries:
        entry["status"] = "finished" if entry["error"] is None else "error"
    cache = CacheDirectory(cache_directory)
    for place in _places(cache, root.absolute(cache_directory)):
        with place.service() as service:
            found = service.survey()
        entries += [place.entry(cache, name, task, *found[task]) for task, name in place.tasks.items() if task in found]
    return entries


def terminate_tasks_in_cache(
    cache_directory: str | os.PathLike[str], pysqa_config_directory: str | None = None, backend: str | None = None
) -> None:
    """End the jobs of all calls of a cache that have not ended, whoever submitted them.

    Args:
        pysqa_config_directory: taken, and without effect, as `backend`: the cache knows where its calls run.

    Raises:
        FileNotFoundError: there is no such directory.
        RemoteExecError: the scheduler cannot be reached.
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
    for place in _places(cache, directory):
        doomed = {task: name for task, name in place.tasks.items() if only in (None, name)}
        if not doomed:
            continue
        with place.service() as service:
            service.client.send(Cancel(tuple(doomed)))
        for name in doomed.values():
            cache.forget(name)


@dataclass
class _Place:
    """One session with calls of the cache.

    Attributes:
        tasks: the names of their entries to be.
    """

    scheduler: str
    directory: Path
    session: str
    tasks: dict[TaskKey, str] = field(default_factory=dict)

    @contextmanager
    def service(self) -> Iterator[_Survey]:
        """A batch service for the session; when it is left, the scheduler has been told everything."""
        hello = Hello(
            header.PROTOCOL, header.PYTHON, __version__, secrets.token_hex(4), self.session, secrets.token_hex(32)
        )
        client = InProcess(hello, str(self.directory), self.scheduler)
        heard: queue.SimpleQueue[tuple[Any, bytes]] = queue.SimpleQueue()
        client.open(heard.put)
        try:
            yield _Survey(client, heard, tuple(self.tasks))
        finally:
            client.close()

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

        session = Session(self.directory / "sessions" / self.session)
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
    client: InProcess
    heard: queue.SimpleQueue[tuple[Any, bytes]]
    tasks: tuple[TaskKey, ...]

    def survey(self) -> Mapping[TaskKey, tuple[str, str]]:
        """Status and job of those tasks that have not ended."""
        self.client.send(Watch(self.tasks))
        self.client.send(Tell())
        status = dict.fromkeys(self.tasks, "pending")
        while True:
            event, _ = self.heard.get(timeout=_ANSWER_S)
            match event:
                case Started():
                    status[event.key] = "running"
                case OutcomeReady() | Lost():
                    status.pop(event.key, None)
                case Failed():
                    raise event.error
                case Known():
                    jobs = {entry.key: job for entry, job in zip(event.tasks, event.jobs, strict=True)}
                    return {key: (said, jobs[key]) for key, said in status.items() if key in jobs}


def _places(cache: CacheDirectory, directory: Path) -> list[_Place]:
    """Where calls run that have no entry: on this cluster, in this directory."""
    places: dict[Pointer, _Place] = {}
    for name, pointer in cache.pointers():
        scheduler, _, where = pointer.place.partition(" ")
        if where != str(directory) or not (directory / "sessions" / pointer.session).is_dir():
            continue
        session = Pointer(pointer.place, pointer.session, "")
        places.setdefault(session, _Place(scheduler, directory, pointer.session)).tasks[TaskKey(pointer.task)] = name
    return list(places.values())
