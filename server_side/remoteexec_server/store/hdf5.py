"""Bundles and outcomes as HDF5 files with a plain header.

    bundle   /pickles  uint8[total]      functions, then the arguments of each call, end to end
             /offsets  int64[f + n + 1]  where each of them starts
             /function int64[n]          which function call i calls
             /first    int64[f + n + 1]  number of the first out-of-band buffer of each of them
             /buffers/<k>                out-of-band buffers: arrays as native datasets
    outcome  /pickle   uint8[...]        result, or the user's exception
             /buffers/<k>
             /facts    JSON text         host, job, times, and of an error type, message and traceback
    entry    the same of a cache, and the call that it is the outcome of:
             /call     uint8[...]        function, arguments and resources
             /call_buffers/<k>

One concatenated dataset instead of one dataset a call: 1,000 calls cost 0.7 ms instead of 54 ms. No gzip: it made a
100 MB array take seconds. What has no buffers is written and read without h5py: see `flat`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..wire import header
from ..wire.header import Header
from ..wire.names import TaskKey
from ..wire.payload import Pickled
from ..wire.records import BurstId
from . import flat

if TYPE_CHECKING:
    from . import library


@dataclass(frozen=True)
class Call:
    """Arguments of one call, and the position of its function among the bundle's functions."""

    function: int
    arguments: Pickled


@dataclass(frozen=True)
class Outcome:
    """How a task ended: a result, or the user's exception.

    Attributes:
        value: the pickled result or exception; of an exception that cannot be pickled, nothing.
        facts: JSON object: host, job, started, ended (seconds since the epoch), and of an error `type`, `message`,
            `traceback`.
    """

    ok: bool
    value: Pickled | None
    facts: Mapping[str, Any]


def write_bundle(burst: BurstId, functions: Sequence[Pickled], calls: Sequence[Call], key: bytes) -> bytes:
    """A bundle file of n >= 1 calls."""
    pickled = [*functions, *(call.arguments for call in calls)]
    parts: dict[str, bytes | Sequence[int]] = {
        "pickles": b"".join(part.data for part in pickled),
        "offsets": list(itertools.accumulate((len(part.data) for part in pickled), initial=0)),
        "first": list(itertools.accumulate((len(part.buffers) for part in pickled), initial=0)),
        "function": [call.function for call in calls],
    }
    buffers = [view for part in pickled for view in part.buffers]
    return _sealed(Header("bundle", burst), parts, {"buffers": buffers}, key)


class Bundle:
    """A bundle that was read and checked once, for who needs several of its calls.

    Raises:
        header.HeaderError: the file must not be opened here.
    """

    def __init__(self, data: bytes, burst: BurstId, key: bytes) -> None:
        header.check(data, key, "bundle", burst)
        self._file = _reader(data)
        self._offsets, self._first = self._file.numbers("offsets"), self._file.numbers("first")
        self._function_of = self._file.numbers("function")
        self._functions = len(self._offsets) - 1 - len(self._function_of)
        self._pickles: bytes | None = None

    def call(self, position: int) -> tuple[int, Pickled]:
        """Number of the function that a call calls, and its arguments."""
        return self._function_of[position], self._part(self._functions + position)

    def function(self, number: int) -> Pickled:
        """One of the functions."""
        return self._part(number)

    def close(self) -> None:
        """Let go of the bundle's bytes."""
        self._file.close()

    def _part(self, k: int) -> Pickled:
        if self._pickles is None:  # one read of all costs less than two of parts
            self._pickles = self._file.bytes_of("pickles")
        start, end = self._first[k : k + 2]
        buffers = self._file.buffers("buffers", range(start, end)) if end > start else ()
        return Pickled(self._pickles[self._offsets[k] : self._offsets[k + 1]], buffers)


def read_call(data: bytes, burst: BurstId, position: int, key: bytes) -> tuple[Pickled, Pickled]:
    """Function and arguments of one call of a bundle.

    Raises:
        header.HeaderError: the file must not be opened here.
    """
    bundle = Bundle(data, burst, key)
    try:
        number, arguments = bundle.call(position)
        return bundle.function(number), arguments
    finally:
        bundle.close()


def write_outcome(task: TaskKey, outcome: Outcome, key: bytes) -> bytes:
    """An outcome file."""
    value = outcome.value or Pickled(b"")
    parts = {"pickle": value.data, "facts": json.dumps(outcome.facts).encode()}
    return _sealed(Header("outcome", task, _status(outcome)), parts, {"buffers": value.buffers}, key)


def read_outcome(data: bytes, task: TaskKey, key: bytes) -> Outcome:
    """What an outcome file says; nothing of it is unpickled here.

    Raises:
        header.HeaderError: the file must not be opened here.
    """
    head = header.check(data, key, "outcome", task)
    with closing(_reader(data)) as file:
        value = _pickled(file, "pickle", "buffers")
        return Outcome(head.status == "ok", value, json.loads(file.bytes_of("facts")))


def write_entry(name: str, outcome: Outcome, call: Pickled, key: bytes) -> bytes:
    """A cache entry file."""
    value = outcome.value or Pickled(b"")
    parts = {"pickle": value.data, "call": call.data, "facts": json.dumps(outcome.facts).encode()}
    buffers = {"buffers": value.buffers, "call_buffers": call.buffers}
    return _sealed(Header("entry", name, _status(outcome)), parts, buffers, key)


def read_entry(data: bytes, name: str, key: bytes, with_call: bool = True) -> tuple[Outcome, Pickled | None]:
    """What a cache entry file says; nothing of it is unpickled here.

    Raises:
        header.HeaderError: the file must not be opened here.
    """
    head = header.check(data, key, "entry", name)
    with closing(_reader(data)) as file:
        value = _pickled(file, "pickle", "buffers")
        call = _pickled(file, "call", "call_buffers") if with_call else None
        return Outcome(head.status == "ok", value, json.loads(file.bytes_of("facts"))), call


class _FlatReader:
    """A file without buffers, as `library.Reader` is one with them."""

    def __init__(self, parts: Mapping[str, memoryview]) -> None:
        self._parts = parts

    def bytes_of(self, name: str) -> bytes:
        return bytes(self._parts[name])

    def numbers(self, name: str) -> Sequence[int]:
        return flat.numbers(self._parts[name])

    def buffers(self, group: str, numbers: Sequence[int] = ()) -> tuple[memoryview, ...]:
        return ()

    def close(self) -> None:
        self._parts = {}


def _reader(data: bytes) -> _FlatReader | library.Reader:
    """Of a file whose header was checked."""
    parts = flat.datasets(memoryview(data), header.BLOCK)
    if parts is not None:
        return _FlatReader(parts)
    from . import library

    return library.Reader(data)


def _sealed(
    head: Header,
    parts: Mapping[str, bytes | Sequence[int]],
    groups: Mapping[str, Sequence[memoryview]],
    key: bytes,
) -> bytes:
    """The file of these datasets and groups of buffers."""
    import cloudpickle

    if any(groups.values()):
        from . import library

        body = library.image(parts, groups, header.BLOCK)
    else:
        body = flat.image(parts, groups, header.BLOCK)
    return header.seal(replace(head, cloudpickle=cloudpickle.__version__), body, key) + body


def _status(outcome: Outcome) -> str:
    return "ok" if outcome.ok else "error"


def _pickled(file: _FlatReader | library.Reader, name: str, buffers: str) -> Pickled | None:
    data = file.bytes_of(name)
    return Pickled(data, file.buffers(buffers)) if data else None
