"""Outcomes in files and in logs are seen alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.store import hdf5
from remoteexec_server.store.outcomes import Outcomes, log_path
from remoteexec_server.store.segments import Kind, LogWriter
from remoteexec_server.store.session import Claim, Session
from remoteexec_server.wire import header, messages, payload
from remoteexec_server.wire.messages import Loss, TaskKey
from tests.unit.fake_queue import Clock

KEY = bytes(range(32))
A, B, C = (TaskKey(name) for name in "abc")
CLAIM = Claim("7", "n1", 99, 1.5)


@pytest.fixture
def session(tmp_root: Path) -> Session:
    tmp_root.mkdir(mode=0o700)
    return Session.create(tmp_root, "s-1", KEY.hex())


def record(key: TaskKey, value: object, ok: bool = True) -> bytes:
    return hdf5.write_outcome(key, hdf5.Outcome(ok, payload.dumps(value), {"job": "7"}), KEY)


def writer(session: Session, name: str = "w1") -> LogWriter:
    return LogWriter(Path(log_path(session, name)))


def test_what_is_new_in_files_and_logs_is_told_once_under_the_same_names(session: Session) -> None:
    outcomes = Outcomes(session, Clock())
    assert outcomes.look() == set()
    session.publish_outcome(A, record(A, 1))
    log = writer(session)
    log.append(Kind.STARTED, B, messages.to_json(CLAIM).encode())
    assert outcomes.look() == {"a.h5", "b.running"}
    log.append(Kind.OUTCOME, B, record(B, 2))
    log.append(Kind.LOST, C, messages.to_json(Loss("killed", "by itself")).encode())
    assert outcomes.look() == {"b.h5", "c.lost"}
    assert outcomes.look() == set()

    assert [outcomes.outcome(A), outcomes.outcome(B)] == [record(A, 1), record(B, 2)]
    assert outcomes.outcome(B, header.BLOCK) == record(B, 2)[: header.BLOCK]
    assert (outcomes.loss(C), outcomes.claim(B)) == (Loss("killed", "by itself"), CLAIM)
    assert [outcomes.ended(key) for key in (A, B, C, TaskKey("d"))] == [True, True, True, False]
    outcomes.forget(["b.h5"])
    assert outcomes.look() == {"b.h5"}
    outcomes.forget_all()
    assert outcomes.look() == {"a.h5", "b.running", "b.h5", "c.lost"}
    log.close()


def test_tasks_that_a_writer_started_and_did_not_end_are_found(session: Session) -> None:
    first, second = writer(session, "p1-0-w0"), writer(session, "p2-0-w0")
    for log, key in ((first, A), (first, B), (second, C)):
        log.append(Kind.STARTED, key, messages.to_json(CLAIM).encode())
    first.append(Kind.OUTCOME, A, record(A, 1))
    outcomes = Outcomes(session, Clock())
    outcomes.look()

    assert (outcomes.started_in("p1-0-"), outcomes.started_in("p2-0-")) == ({B}, {C})
    first.close()
    second.close()


def test_a_damaged_log_is_named_and_hides_no_other(session: Session) -> None:
    Path(log_path(session, "bad")).write_bytes(b"not a log of ours at all")
    log = writer(session, "good")
    log.append(Kind.OUTCOME, A, record(A, 1))
    outcomes = Outcomes(session, Clock())

    assert outcomes.look() == {"a.h5"}
    assert list(outcomes.damaged) == ["bad"]
    log.close()


def test_a_log_keeps_an_array() -> None:
    import numpy as np

    data = record(A, np.arange(10_000))
    outcome = hdf5.read_outcome(data, A, KEY)

    assert outcome.value is not None
    assert payload.loads(outcome.value.data, outcome.value.buffers).sum() == np.arange(10_000).sum()


def test_a_record_of_another_task_key_or_length_is_refused() -> None:
    data = record(A, 1, ok=False)
    assert hdf5.read_outcome(data, A, KEY).ok is False
    for wrong, key in ((data, bytes(32)), (data[:-1], KEY), (data[: header.BLOCK], KEY)):
        with pytest.raises(header.HeaderError):
            hdf5.read_outcome(wrong, A, key)
    with pytest.raises(header.HeaderError, match="stands where"):
        hdf5.read_outcome(data, B, KEY)
