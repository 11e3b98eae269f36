"""Bundles and outcomes give back what was put in, arrays as datasets that any HDF5 tool shows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from remoteexec_server.store.hdf5 import (
    Call,
    Outcome,
    read_call,
    read_outcome,
    write_bundle,
    write_entry,
    write_outcome,
)
from remoteexec_server.wire.messages import BurstId, TaskKey
from remoteexec_server.wire.payload import OUT_OF_BAND, Pickled, dumps, loads

KEY = bytes(range(32))
TASK, BURST = TaskKey("t-1"), BurstId("b-1")
N = 2 * OUT_OF_BAND

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    **{
        name: (np.arange(N) % 251).astype(name)
        for name in ("?", "i1", "u1", "i2", "<u4", ">u4", "i8", "f2", "f4", "<f8", ">f8", "c8", "c16", ">c16", "g", "G")
    },
    "special floats": np.array([0.0, -0.0, np.nan, np.inf, -np.inf] * N),
    "fortran": np.asfortranarray(np.arange(N, dtype=float).reshape(8, -1)),
    "three dimensions": np.arange(N, dtype="i4").reshape(4, 2, -1),
    "fortran, three dimensions": np.asfortranarray(np.arange(N, dtype="i4").reshape(4, 2, -1)),
    "not contiguous": np.arange(2 * N, dtype=float)[::2],
    "transposed and cut": np.arange(N, dtype=float).reshape(8, -1).T[3:, 1:],
    "reversed": np.arange(N, dtype=float)[::-1],
    "broadcast": np.broadcast_to(np.arange(8.0), (N, 8)),
    "structured": np.array([(1, 2.5, b"abc")] * N, dtype=[("a", "i4"), ("b", "f8"), ("c", "S3")]),
    "structured, aligned": np.array([(1, 2.5)] * N, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "subarray": np.ones(N, dtype=[("m", "f4", (2, 2))]),
    "datetime64": np.arange("2020-01-01", "2060-01-01", dtype="datetime64[D]"),
    "timedelta64": np.arange(N).astype("timedelta64[ns]"),
    "bytes": np.array([b"abc", b"d"] * N),
    "text": np.array(["äb", "c"] * N),
    "void": np.zeros(N, dtype="V7"),
    "objects": np.array([None, {"a": 1}, "x"] * N, dtype=object),
    "empty": np.zeros((0, 3)),
    "empty, wide": np.zeros((3, 0, 5), dtype="i2"),
    "0-d": np.array(1.5),
    "0-d, large": np.zeros((), dtype=[("m", "f8", (N,))]),
    "one element": np.ones(1),
    "matrix class": np.arange(N, dtype=float).view(np.matrix),
    "read-only": np.frombuffer(bytes(range(256)) * N, dtype="u1"),
}


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return (a.dtype, a.shape, type(a)) == (b.dtype, b.shape, type(b)) and (
        a.tolist() == b.tolist() if a.dtype.kind == "O" else a.tobytes() == b.tobytes()
    )


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_is_the_same_after_it_travelled_as_result_and_as_argument(array: np.ndarray[Any, Any]) -> None:
    outcome = read_outcome(write_outcome(TASK, Outcome(True, dumps([array]), {}), KEY), TASK, KEY)
    assert outcome.value is not None
    bundle = write_bundle(BURST, [dumps(len)], [Call(0, dumps(((array,), {})))], KEY)
    _, arguments = read_call(bundle, BURST, 0, KEY)

    [result] = loads(outcome.value.data, outcome.value.buffers)
    [argument], _ = loads(arguments.data, arguments.buffers)

    assert (same(result, array), same(argument, array)) == (True, True)


@pytest.mark.parametrize("name", ["?", "i2", ">u4", "f2", "<f8", "c8", "c16", "fortran", "three dimensions"])
def test_an_array_is_a_native_dataset_for_other_tools(name: str) -> None:
    array = ARRAYS[name]
    data = write_outcome(TASK, Outcome(True, dumps(array), {}), KEY)

    with h5py.File(io.BytesIO(data), "r") as file:
        stored = file["buffers/0"][()]
        assert stored.dtype == array.dtype
        assert np.array_equal(stored if stored.shape == array.shape else stored.T, array)


def test_a_loaded_result_can_be_written_to() -> None:
    data = write_outcome(TASK, Outcome(True, dumps(np.zeros(N)), {}), KEY)
    value = read_outcome(data, TASK, KEY).value
    assert value is not None

    result = loads(value.data, value.buffers)
    result[0] = 1.0

    assert result[0] == 1.0


def test_a_large_buffer_that_is_no_array_travels() -> None:
    data = write_outcome(TASK, Outcome(True, dumps(bytearray(b"x" * N)), {}), KEY)
    value = read_outcome(data, TASK, KEY).value
    assert value is not None

    assert loads(value.data, value.buffers) == bytearray(b"x" * N)


def test_each_call_of_a_bundle_has_its_own_function_arguments_and_arrays() -> None:
    functions = [dumps(abs), dumps(max), dumps(np.add)]
    large = [np.full(N, float(k)) for k in range(3)]
    arguments = [((-1,), {}), ((large[0], [large[1]]), {"k": large[2]}), ((), {}), ((large[2],), {})]
    calls = [Call(function, dumps(value)) for function, value in zip([0, 2, 1, 0], arguments, strict=True)]

    data = write_bundle(BURST, functions, calls, KEY)
    read = [read_call(data, BURST, position, KEY) for position in range(4)]

    assert [loads(function.data) for function, _ in read] == [abs, np.add, max, abs]
    assert [len(pickled.buffers) for _, pickled in read] == [0, 3, 0, 1]
    loaded = [loads(pickled.data, pickled.buffers) for _, pickled in read]
    assert repr(loaded) == repr(arguments)


def test_a_thousand_calls_are_a_handful_of_datasets() -> None:
    data = write_bundle(BURST, [dumps(abs)], [Call(0, dumps(((k,), {}))) for k in range(1000)], KEY)

    with h5py.File(io.BytesIO(data), "r") as file:
        assert {name: getattr(file[name], "shape", None) for name in file} == {
            "buffers": None,
            "first": (1002,),
            "function": (1000,),
            "offsets": (1002,),
            "pickles": (int(file["offsets"][-1]),),
        }
    _, pickled = read_call(data, BURST, 999, KEY)
    assert loads(pickled.data) == ((999,), {})


def test_the_facts_of_an_outcome_are_json_that_anybody_can_read() -> None:
    facts = {"host": "n1", "job": "7_1", "type": "builtins.ValueError", "message": "ü\ud800", "bases": ["ValueError"]}
    data = write_outcome(TASK, Outcome(False, None, facts), KEY)

    with h5py.File(io.BytesIO(data), "r") as file:
        assert json.loads(file["facts"][()].tobytes()) == facts
    assert read_outcome(data, TASK, KEY) == Outcome(False, None, facts)


@pytest.mark.parametrize("value", [None, "", "text", list(range(1000)), np.arange(3)], ids=repr)
def test_what_has_no_large_arrays_is_hdf5_for_other_tools_too(value: object, tmp_path: Path) -> None:
    pickled = dumps(value)
    (tmp_path / "o.h5").write_bytes(write_outcome(TASK, Outcome(True, pickled, {"host": "n1"}), KEY))
    (tmp_path / "e.h5").write_bytes(write_entry("e", Outcome(True, pickled, {}), dumps(((), {})), KEY))

    with h5py.File(tmp_path / "o.h5", "r") as file, h5py.File(tmp_path / "e.h5", "r") as entry:
        assert {name: (file[name].dtype, file[name][()].tobytes()) for name in ("pickle", "facts")} == {
            "pickle": (np.dtype("u1"), pickled.data),
            "facts": (np.dtype("u1"), b'{"host": "n1"}'),
        }
        assert (list(file["buffers"]), sorted(entry)) == (
            [],
            ["buffers", "call", "call_buffers", "facts", "pickle"],
        )
        assert loads(entry["call"][()].tobytes()) == ((), {})


def test_neither_h5py_nor_numpy_is_imported_for_what_has_no_large_arrays() -> None:
    script = """if True:
        import sys
        from remoteexec_server.store import hdf5
        from remoteexec_server.wire import payload

        calls = [hdf5.Call(0, payload.dumps(((number,), {}))) for number in range(3)]
        bundle = hdf5.write_bundle("b", [payload.dumps(abs)], calls, bytes(32))
        function, arguments = hdf5.read_call(bundle, "b", 2, bytes(32))
        args, kwargs = payload.loads(arguments.data, arguments.buffers)
        outcome = hdf5.Outcome(True, payload.dumps(payload.loads(function.data)(*args, **kwargs)), {})
        read = hdf5.read_outcome(hdf5.write_outcome("t", outcome, bytes(32)), "t", bytes(32))
        print(read == outcome, sorted({"h5py", "numpy"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"


def test_a_buffer_of_a_kind_that_numpy_does_not_know_is_kept_as_bytes() -> None:
    import ctypes

    numbers = (ctypes.c_char_p * (N // 8))()  # format "&z"
    data = write_outcome(TASK, Outcome(True, Pickled(b"x", (memoryview(numbers),)), {}), KEY)
    value = read_outcome(data, TASK, KEY).value

    assert value is not None
    assert bytes(value.buffers[0]) == bytes(numbers)


def test_files_can_be_written_on_several_threads_at_once() -> None:
    outcome = Outcome(True, dumps([1]), {})

    def write(n: int) -> bytes:
        return write_outcome(TASK, outcome, KEY)

    with ThreadPoolExecutor(8) as threads:
        written = list(threads.map(write, range(200)))

    assert {read_outcome(data, TASK, KEY) == outcome for data in written} == {True}
