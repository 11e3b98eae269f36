"""The header of a file is read and agreed before anything else of it is looked at."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cloudpickle
import h5py
import pytest

from remoteexec.engine import outcomes
from remoteexec.errors import CorruptOutcome, ProtocolMismatch, PythonMismatch
from remoteexec_server.store import hdf5
from remoteexec_server.store.hdf5 import Call, Outcome
from remoteexec_server.wire import header, payload
from remoteexec_server.wire.header import BLOCK, Header, HeaderError, ProtocolMismatchError, PythonMismatchError
from remoteexec_server.wire.messages import BurstId, TaskKey
from remoteexec_server.wire.payload import Pickled

KEY = bytes(range(32))
BODY = b"what follows the header"
HEAD = Header("outcome", "task-1", "ok", cloudpickle=cloudpickle.__version__)


def sealed(**changes: object) -> bytes:
    return header.seal(dataclasses.replace(HEAD, **changes), BODY, KEY) + BODY  # type: ignore[arg-type]


def test_a_sealed_header_is_read_as_it_was_written() -> None:
    data = sealed()

    assert (header.read(data), header.check(data, KEY, "outcome", "task-1")) == (HEAD, HEAD)
    assert (len(data), json.loads(data[:BLOCK])["subject"]) == (BLOCK + len(BODY), "task-1")


def test_a_changed_byte_anywhere_is_noticed() -> None:
    data = sealed()

    unnoticed = []
    for position in range(len(data)):
        for value in {data[position] ^ 1, data[position] ^ 0x80, ord("\t"), ord("0")} - {data[position]}:
            changed = data[:position] + bytes([value]) + data[position + 1 :]
            try:
                header.check(changed, KEY, "outcome", "task-1")
            except HeaderError:
                continue
            unnoticed.append((position, value))

    assert unnoticed == []


@pytest.mark.parametrize("length", [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + len(BODY) - 1])
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(HeaderError):
        header.check(sealed()[:length], KEY, "outcome", "task-1")


def test_a_file_that_grew_is_refused() -> None:
    with pytest.raises(HeaderError, match="the digest does not fit"):
        header.check(sealed() + b"x", KEY, "outcome", "task-1")


def test_a_file_of_another_session_is_refused() -> None:
    with pytest.raises(HeaderError, match="damaged or not of this session"):
        header.check(sealed(), bytes(32), "outcome", "task-1")


@pytest.mark.parametrize(("kind", "subject"), [("outcome", "task-2"), ("bundle", "task-1")])
def test_a_file_about_something_else_is_refused(kind: str, subject: str) -> None:
    with pytest.raises(HeaderError, match=f"outcome 'task-1' stands where {kind} '{subject}' should be"):
        header.check(sealed(), KEY, kind, subject)


def test_another_python_is_refused_and_both_are_named() -> None:
    with pytest.raises(PythonMismatchError, match=rf"pickled by Python 3\.7, this is Python {header.PYTHON}"):
        header.check(sealed(python="3.7"), KEY, "outcome", "task-1")


def test_another_protocol_is_refused_and_both_are_named() -> None:
    with pytest.raises(ProtocolMismatchError, match="outcome speaks protocol 99, this end speaks 1"):
        header.check(sealed(protocol=99), KEY, "outcome", "task-1")


def test_another_major_version_of_cloudpickle_is_refused() -> None:
    with pytest.raises(PythonMismatchError, match=r"pickled by cloudpickle 1\.6\.0"):
        header.check(sealed(cloudpickle="1.6.0"), KEY, "outcome", "task-1")


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x89HDF\r\n\x1a\n" + b"\0" * 2000,
        b"{}".ljust(BLOCK),
        b"[]".ljust(BLOCK),
        b"null".ljust(BLOCK),
        b"[" * BLOCK,
        b'{"mac":1}'.ljust(BLOCK),
        b"\xff" * BLOCK,
        b'{"kind":1,"subject":"a","status":"","protocol":1,"python":"","cloudpickle":"","mac":""}'.ljust(BLOCK),
        b'{"kind":"a","subject":"a","status":"","protocol":"1","python":"","cloudpickle":"","mac":""}'.ljust(BLOCK),
        b'{"kind":"a","subject":"a","mac":"","more":1}'.ljust(BLOCK),
    ],
    ids=lambda garbage: repr(garbage[:20]),
)
def test_what_is_no_file_of_ours_is_refused(garbage: bytes) -> None:
    with pytest.raises(HeaderError, match=r"not a (file|header) of remoteexec"):
        header.check(garbage, KEY, "outcome", "task-1")


def test_a_subject_that_does_not_fit_the_block_is_refused_when_it_is_written() -> None:
    with pytest.raises(HeaderError, match="at most 1024"):
        header.seal(dataclasses.replace(HEAD, subject="x" * BLOCK), BODY, KEY)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened by libhdf5 or unpickled: must stay empty."""
    seen: list[str] = []
    monkeypatch.setattr(h5py, "File", lambda *args, **kwargs: seen.append("h5py.File"))
    monkeypatch.setattr(payload, "loads", lambda *args, **kwargs: seen.append("loads"))
    return seen


OUTCOME = hdf5.write_outcome(TaskKey("t"), Outcome(True, payload.dumps({"a": 1}), {}), KEY)
BUNDLE = hdf5.write_bundle(BurstId("b"), [payload.dumps(len)], [Call(0, payload.dumps((("x",), {})))], KEY)


def resealed(data: bytes, **changes: object) -> bytes:
    head = dataclasses.replace(header.read(data), **changes)  # type: ignore[arg-type]
    return header.seal(head, data[BLOCK:], KEY) + data[BLOCK:]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (OUTCOME[:-1], CorruptOutcome),
        (OUTCOME[:300], CorruptOutcome),
        (b"", CorruptOutcome),
        (OUTCOME[:BLOCK] + OUTCOME[BLOCK:].replace(b"HDF", b"hdf"), CorruptOutcome),
        (resealed(OUTCOME, subject="u"), CorruptOutcome),
        (resealed(OUTCOME, kind="bundle"), CorruptOutcome),
        (resealed(OUTCOME, python="3.7"), PythonMismatch),
        (resealed(OUTCOME, cloudpickle="1.0"), PythonMismatch),
        (resealed(OUTCOME, protocol=0), ProtocolMismatch),
    ],
    ids=str,
)
def test_the_client_neither_opens_nor_unpickles_an_outcome_it_refuses(
    data: bytes, error: type[Exception], opened: list[str]
) -> None:
    result, exc, _ = outcomes.load(data, TaskKey("t"), KEY)

    assert (result, type(exc), opened) == (None, error, [])


@pytest.mark.parametrize(
    "data",
    [BUNDLE[:-1], b"", b"garbage", resealed(BUNDLE, subject="c"), resealed(BUNDLE, python="3.7"), OUTCOME],
    ids=["truncated", "empty", "garbage", "other burst", "other Python", "an outcome"],
)
def test_the_runner_neither_opens_nor_unpickles_a_bundle_it_refuses(data: bytes, opened: list[str]) -> None:
    with pytest.raises(HeaderError):
        hdf5.read_call(data, BurstId("b"), 0, KEY)

    assert opened == []


def test_a_file_with_its_header_is_valid_hdf5_for_any_other_tool(tmp_path: Path) -> None:
    (tmp_path / "o.h5").write_bytes(OUTCOME)

    with h5py.File(tmp_path / "o.h5", "r") as file:
        assert (sorted(file), file.userblock_size) == (["buffers", "facts", "pickle"], BLOCK)


def test_an_empty_pickle_is_no_value() -> None:
    data = hdf5.write_outcome(TaskKey("t"), Outcome(False, None, {"kind": "raised"}), KEY)

    assert hdf5.read_outcome(data, TaskKey("t"), KEY) == Outcome(False, None, {"kind": "raised"})
    assert Pickled(b"").size == 0
