"""Bundles and outcomes as HDF5 files with a plain header.

    bundle   /pickles  uint8[total]      functions, then the arguments of each call, end to end
             /offsets  int64[f + n + 1]  where each of them starts
             /function int32[n]          which function call i calls
             /first    int64[f + n + 1]  number of the first out-of-band buffer of each of them
             /buffers/<k>                out-of-band buffers: arrays as native datasets
    outcome  /pickle   uint8[...]        result, or the user's exception
             /buffers/<k>
             /facts    JSON text         host, job, times, and of an error type, message and traceback
    entry    the same of a cache, and the call that it is the outcome of:
             /call     uint8[...]        function, arguments and resources
             /call_buffers/<k>

One concatenated dataset instead of one dataset a call: 1,000 calls cost 0.7 ms instead of 54 ms. No gzip: it made a
100 MB array take seconds.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import h5py
import numpy as np

from ..wire import header
from ..wire.header import Header
from ..wire.messages import BurstId, TaskKey
from ..wire.payload import Pickled
from . import compact


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
    parts = [*functions, *(call.arguments for call in calls)]
    with _Image() as image:
        image.text("pickles", b"".join(part.data for part in parts))
        image.numbers("offsets", np.fromiter(itertools.accumulate((len(p.data) for p in parts), initial=0), np.int64))
        image.numbers("first", np.fromiter(itertools.accumulate((len(p.buffers) for p in parts), initial=0), np.int64))
        image.numbers("function", np.fromiter((call.function for call in calls), np.int32))
        image.buffers([view for part in parts for view in part.buffers])
        return image.sealed("bundle", burst, key)


class Bundle:
    """A bundle that was read and checked once, for who needs several of its calls.

    Raises:
        header.HeaderError: the file must not be opened here.
    """

    def __init__(self, data: bytes, burst: BurstId, key: bytes) -> None:
        header.check(data, key, "bundle", burst)
        self._file = h5py.File(io.BytesIO(data), "r")
        self._offsets, self._first = self._file["offsets"][:].tolist(), self._file["first"][:].tolist()
        self._function_of = self._file["function"][:].tolist()
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
            self._pickles = self._file["pickles"][:].tobytes()
        start, end = self._first[k : k + 2]
        buffers = _buffers(self._file, range(start, end)) if end > start else ()
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
    with _Image() as image:
        image.text("pickle", value.data)
        image.buffers(value.buffers)
        image.text("facts", json.dumps(outcome.facts).encode())
        return image.sealed("outcome", task, key, "ok" if outcome.ok else "error")


def write_record(task: TaskKey, outcome: Outcome, key: bytes) -> bytes:
    """The same for a log: without HDF5 where there are no arrays beside the pickle."""
    if outcome.value is not None and outcome.value.buffers:
        return write_outcome(task, outcome, key)
    pickled = outcome.value.data if outcome.value is not None else b""
    return compact.write(task, "ok" if outcome.ok else "error", pickled, outcome.facts, key)


def read_outcome(data: bytes, task: TaskKey, key: bytes) -> Outcome:
    """What an outcome file, or the record of a log, says; nothing of it is unpickled here.

    Raises:
        header.HeaderError: the file must not be opened here.
    """
    if header.read(data).kind == compact.KIND:
        status, pickled, facts = compact.read(data, task, key)
        return Outcome(status == "ok", Pickled(pickled) if pickled else None, facts)
    head = header.check(data, key, "outcome", task)
    with h5py.File(io.BytesIO(data), "r") as file:
        value = _pickled(file, "pickle", "buffers")
        return Outcome(head.status == "ok", value, json.loads(file["facts"][:].tobytes()))


def write_entry(name: str, outcome: Outcome, call: Pickled, key: bytes) -> bytes:
    """A cache entry file."""
    value = outcome.value or Pickled(b"")
    with _Image() as image:
        image.text("pickle", value.data)
        image.buffers(value.buffers)
        image.text("call", call.data)
        image.buffers(call.buffers, "call_buffers")
        image.text("facts", json.dumps(outcome.facts).encode())
        return image.sealed("entry", name, key, "ok" if outcome.ok else "error")


def read_entry(data: bytes, name: str, key: bytes, with_call: bool = True) -> tuple[Outcome, Pickled | None]:
    """What a cache entry file says; nothing of it is unpickled here.

    Raises:
        header.HeaderError: the file must not be opened here.
    """
    head = header.check(data, key, "entry", name)
    with h5py.File(io.BytesIO(data), "r") as file:
        value = _pickled(file, "pickle", "buffers")
        call = _pickled(file, "call", "call_buffers") if with_call else None
        return Outcome(head.status == "ok", value, json.loads(file["facts"][:].tobytes())), call


_images = itertools.count()


class _Image:
    """An HDF5 file in memory; a context manager."""

    def __init__(self) -> None:
        # block_size: bytes by which the image grows; large enough for most bundles, small beside an array
        # HDF5 takes two open images of the same name for one file, and refuses the second
        self._file = h5py.File(
            f"image-{next(_images)}",
            "w",
            driver="core",
            backing_store=False,
            block_size=1 << 16,
            userblock_size=header.BLOCK,
        )

    def __enter__(self) -> _Image:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def text(self, name: str, data: bytes) -> None:
        self._file.create_dataset(name, data=np.frombuffer(data, np.uint8))

    def numbers(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._file.create_dataset(name, data=array)

    def buffers(self, views: Sequence[memoryview], name: str = "buffers") -> None:
        group = self._file.create_group(name)
        for k, view in enumerate(views):
            group.create_dataset(str(k), data=_native(view))

    def sealed(self, kind: str, subject: str, key: bytes, status: str = "") -> bytes:
        self._file.flush()
        body: bytes = self._file.id.get_file_image()  # begins behind the user block
        head = Header(kind, subject, status, cloudpickle=cloudpickle.__version__)
        return header.seal(head, body, key) + body


def _native(view: memoryview) -> np.ndarray[Any, Any]:
    """The buffer as an array that HDF5 can show to other tools; as bytes where it has no such type."""
    try:
        array = np.asarray(view)
    except (TypeError, ValueError):  # a format numpy does not know
        return np.frombuffer(view, np.uint8)
    plain = array.dtype.kind in "biu" or (array.dtype.kind in "fc" and array.dtype.itemsize in (2, 4, 8, 16))
    if not plain or array.dtype.char in "gG":  # long double: its padding does not survive
        return np.frombuffer(view.cast("B"), np.uint8)
    return array


def _pickled(file: h5py.File, name: str, buffers: str) -> Pickled | None:
    data = file[name][:].tobytes()
    group = file[buffers]
    return Pickled(data, tuple(memoryview(group[str(k)][()]) for k in range(len(group)))) if data else None


def _buffers(file: h5py.File, numbers: range) -> tuple[memoryview, ...]:
    group = file["buffers"]
    return tuple(memoryview(group[str(k)][()]) for k in numbers)
