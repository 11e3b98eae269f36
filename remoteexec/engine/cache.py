"""Results kept in a directory: one file an entry, named by the call's key (see `engine.keys`), shared by executors.

    DIRECTORY/cache/key          32 random bytes, hex: made once, they seal every entry (see `wire.header`)
    DIRECTORY/cache/<name>.h5    result or exception, facts, and the call
    DIRECTORY/cache/<name>.running    where it runs, while it has no entry (JSON `Pointer`)

The cache directory is the user's alone (0700), and an entry is opened only if its header fits: sealed with this
directory's key, of this name, of this Python minor version. Whatever else lies there is reported and not loaded. An
entry is written beside its name and renamed, so two writers of one name do no harm.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoteexec_server.store import root
from remoteexec_server.wire import payload
from remoteexec_server.wire.names import TaskKey
from remoteexec_server.wire.payload import Pickled

from .. import errors
from . import outcomes

if TYPE_CHECKING:
    from remoteexec_server.store.hdf5 import Outcome

__all__ = ["CacheDirectory", "CacheWarning", "CachedInput", "get_cache_data", "get_future_from_cache"]

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+@,=-]{0,199}"


@dataclass(frozen=True)
class Pointer:
    """Where a call runs whose result is not in the cache yet.

    Attributes:
        place: cluster and directory.
        session: there.
        task: of it.
    """

    place: str
    session: str
    task: str


class CacheWarning(UserWarning):
    """A file in a cache directory was not loaded."""


@dataclass(frozen=True)
class CachedInput:
    """Stands in `get_cache_data` for an argument that was a future, where its result is not in the same cache.

    Attributes:
        cache_key: of the call that it was the future of; None if that was not cached.
    """

    cache_key: str | None


@dataclass(frozen=True)
class Hit:
    """A call's end as the cache has it; the exception counts if it is not None."""

    result: Any
    exception: BaseException | None
    facts: Mapping[str, Any]


def checked_name(name: object) -> str:
    """A cache key of the user's own.

    Raises:
        ValueError: it cannot be a file name.
    """
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise ValueError(
            f"cache_key={name!r}: letters, digits and _ . + @ , = - only, at most 200, starting with a letter, a digit "
            "or _: it becomes a file name"
        )
    return name


class CacheDirectory:
    """The entries of one directory. Any thread.

    Args:
        path: `cache_directory` as the user wrote it; made if missing.

    Raises:
        errors.UnsafeRoot: it is not the user's alone, or cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = _inside(path)
        try:
            if not self._path.parent.exists():
                root.open_root(str(self._path.parent), "directory", "")
            root.open_root(str(self._path), "directory", "")
            self._key = _key_of(self._path)
        except (root.UnsafeRootError, OSError, ValueError) as exc:
            raise errors.UnsafeRoot(f"cache_directory={os.fspath(path)!r} cannot be used: {exc}") from exc
        # imported now, if not before: h5py undoes its hooks in an exit handler, and crashes if it gets none
        importlib.import_module("remoteexec_server.store.library")

    def path(self, name: str) -> Path:
        """Where an entry is, or would be."""
        return self._path / f"{name}.h5"

    def names(self) -> Iterator[str]:
        """Of all entries, in order."""
        found = (path.name for path in self._path.iterdir() if path.suffix == ".h5")
        return iter(sorted(name.removesuffix(".h5") for name in found if not name.startswith(".")))

    def find(self, name: str) -> Hit | None:
        """The entry of a name; None if there is none, or none that may be loaded here, which is said in a warning."""
        read = self._read(name, with_call=False)
        if read is None:
            return None
        outcome, _ = read
        key = TaskKey(name)
        if not outcome.ok:
            return Hit(None, outcomes.exception(outcome.facts, outcome.value, key), outcome.facts)
        assert outcome.value is not None  # as `write` makes it
        result, exc = outcomes.result(outcome.value.data, outcome.value.buffers, key)
        if exc is not None:
            self._warn(name, exc)
            return None
        return Hit(result, None, outcome.facts)

    def data(self, name: str) -> dict[str, Any] | None:
        """One entry as `get_cache_data` has it."""
        read = self._read(name)
        if read is None:
            return None
        outcome, pickled = read
        facts = outcome.facts
        call: tuple[Any, Any, Any, dict[str, Any]] = (None, None, None, {})
        try:
            if pickled is not None:
                call = payload.loads(pickled.data, pickled.buffers, self._input)
            value = outcome.value
            output = payload.loads(value.data, value.buffers) if outcome.ok and value is not None else None
        except BaseException as exc:  # whatever the user's objects raise
            self._warn(name, exc)
            return None
        return {
            "function": call[0],
            "input_args": call[1],
            "input_kwargs": call[2],
            "output": output,
            "error": None if outcome.ok else outcomes.exception(facts, outcome.value, TaskKey(name)),
            "resource_dict": call[3],
            "runtime": facts.get("runtime_s"),
            "queue_id": facts.get("job"),
            "error_log_file": call[3].get("error_log_file"),
            "filename": str(self.path(name)),
        }

    def write(self, name: str, outcome: Outcome, call: Pickled) -> None:
        """Publish an entry; the last of two writers stays.

        Raises:
            OSError: it could not be written; nothing of it is left.
        """
        from remoteexec_server.store import hdf5

        _publish(self.path(name), hdf5.write_entry(name, outcome, call, self._key))

    def point(self, name: str, pointer: Pointer) -> None:
        """Say where a call runs; who cannot read that runs it again."""
        with contextlib.suppress(OSError):
            _publish(self._path / f"{name}.running", json.dumps(asdict(pointer)).encode())

    def pointer(self, name: str) -> Pointer | None:
        """Where a call runs, as far as that is known."""
        try:
            return Pointer(**json.loads(_content(self._path / f"{name}.running")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as exc:
            warnings.warn(f"{self._path / name!s}.running is passed over: {exc}", CacheWarning, stacklevel=4)
            return None

    def pointers(self) -> Iterator[tuple[str, Pointer]]:
        """All calls that run, or did when their process ended."""
        for path in sorted(self._path.glob("*.running")):
            pointer = self.pointer(path.stem)
            if pointer is not None:
                yield path.stem, pointer

    def forget(self, name: str) -> None:
        """A call has ended: nobody need look for it."""
        (self._path / f"{name}.running").unlink(missing_ok=True)

    def _read(self, name: str, with_call: bool = True) -> tuple[Outcome, Pickled | None] | None:
        try:
            data = _content(self.path(name))
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._warn(name, exc)
            return None
        from remoteexec_server.store import hdf5
        from remoteexec_server.wire.header import HeaderError

        try:
            return hdf5.read_entry(data, name, self._key, with_call)
        except (HeaderError, OSError, KeyError, ValueError) as exc:
            self._warn(name, exc)
            return None

    def _input(self, key: TaskKey) -> Any:
        hit = self.find(key) if key else None
        return hit.result if hit is not None and hit.exception is None else CachedInput(key or None)

    def _warn(self, name: str, exc: BaseException) -> None:
        text = f"cache entry {str(self.path(name))!r} is not loaded, as if it were not there: {exc}"
        warnings.warn(text, CacheWarning, stacklevel=4)


def get_cache_data(cache_directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All entries of a cache, as dictionaries.

    Each has `function`, `input_args`, `input_kwargs` (None where the call was too large to be kept), `output`, `error`
    (an exception or None), `resource_dict`, `runtime` (seconds), `queue_id` (the scheduler's name of the job, or None),
    `error_log_file` and `filename`. A function from a script is rebuilt. Arguments that were futures have their results
    if those are in the same cache, else they are `CachedInput`s. What cannot be loaded is reported as a `CacheWarning`
    and left out.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not _inside(cache_directory).parent.is_dir():
        raise FileNotFoundError(f"there is no directory {os.fspath(cache_directory)!r}")
    if not _inside(cache_directory).is_dir():
        return []
    cache = CacheDirectory(cache_directory)
    return [data for data in map(cache.data, cache.names()) if data is not None]


def get_future_from_cache(cache_directory: str | os.PathLike[str], cache_key: str) -> concurrent.futures.Future[Any]:
    """A future, done, of what a cache has under a key: `future.cache_key`, or the name of a file without `.h5`.

    Raises:
        FileNotFoundError: there is no such entry, or none that may be loaded; no future waits for nobody.
        ValueError: the key cannot be a file name.
    """
    checked_name(cache_key)
    found = CacheDirectory(cache_directory).find(cache_key) if _inside(cache_directory).is_dir() else None
    if found is None:
        raise FileNotFoundError(f"the cache in {os.fspath(cache_directory)!r} has no entry {cache_key!r}")
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    if found.exception is not None:
        future.set_exception(found.exception)
    else:
        future.set_result(found.result)
    return future


def _inside(path: str | os.PathLike[str]) -> Path:
    """Where the entries of a `cache_directory` are; `~` and `$NAME` in it are replaced as in a cluster's root."""
    return root.absolute(path) / "cache"


def _key_of(path: Path) -> bytes:
    """The directory's key; made by whoever is first."""
    file = path / "key"
    if not file.exists():
        import secrets  # late: few executors keep results

        partial = path / f".key.{secrets.token_hex(8)}"
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(32))
        try:
            os.link(partial, file)  # fails if the other was first, where a rename would replace its key
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    data = _content(file)
    if not re.fullmatch(rb"[0-9a-f]{64}", data.strip()):
        raise ValueError(
            f"its key file {str(file)!r} has {len(data)} bytes that are not 64 hexadecimal digits; put the right one "
            "back, or remove it: a new one is made then, and entries sealed with the old one are made again"
        )
    return bytes.fromhex(data.decode())


def _content(path: Path) -> bytes:
    """What is in a file, and nothing but a file: of a FIFO nobody may ever write the other end.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{str(path)!r} is no regular file")
        return file.read()


def _publish(path: Path, data: bytes) -> None:
    """Write a file so that its name appears only when it is whole.

    Not flushed to the disk, which would cost more than many calls: after a power failure the seal shows what is not
    whole.
    """
    import secrets

    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
