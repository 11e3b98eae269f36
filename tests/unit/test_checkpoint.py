"""States that a task saves for its next attempt."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import checkpoint as public
from remoteexec_server import checkpoint
from remoteexec_server.store.session import Session
from remoteexec_server.wire.messages import TaskKey

A = TaskKey("a")


@pytest.fixture
def session(tmp_root: Path) -> Iterator[Session]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGUSR1, signal.SIGTERM)]
    tmp_root.mkdir(mode=0o700)
    session = Session.create(tmp_root, "s-1", bytes(range(32)).hex())
    yield session
    checkpoint.forget(session, A)
    for number, handler in before:
        signal.signal(number, handler)


def attempt(session: Session, number: int, save: Any) -> Any:
    checkpoint.begin(session, A, number)
    return checkpoint.checkpoint(save)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_next_attempt_gets_what_was_saved_last(session: Session, number: int) -> None:
    states = iter([{"step": 1}, {"step": 2, "x": np.arange(3)}])
    assert attempt(session, 1, lambda: next(states)) is None
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)

    state = attempt(session, 2, dict)
    assert (state["step"], list(state["x"])) == (2, [0, 1, 2])
    assert checkpoint.checkpoint(dict) is state
    assert (session.checkpoint(A).stat().st_mode & 0o777) == 0o600


def test_an_attempt_does_not_start_from_its_own_state(session: Session) -> None:
    attempt(session, 1, lambda: 1)
    os.kill(os.getpid(), signal.SIGUSR1)

    assert attempt(session, 1, lambda: 1) is None


def test_a_save_that_raises_keeps_the_state_before(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    attempt(session, 1, lambda: "first")
    os.kill(os.getpid(), signal.SIGUSR1)
    checkpoint.checkpoint(lambda: 1 / 0)
    os.kill(os.getpid(), signal.SIGUSR1)

    assert attempt(session, 2, dict) == "first"
    said = capfd.readouterr().err
    assert "remoteexec: the state could not be saved" in said
    assert "ZeroDivisionError" in said


@pytest.mark.parametrize("data", [b"", b"x" * 2000])
def test_a_state_that_is_not_one_of_ours_is_none(
    session: Session, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    session.checkpoint(A).parent.mkdir()
    session.checkpoint(A).write_bytes(data)

    assert attempt(session, 2, dict) is None
    assert "the saved state cannot be read; the task starts anew" in capfd.readouterr().err


def test_the_state_goes_with_the_outcome(session: Session) -> None:
    attempt(session, 1, lambda: 1)
    os.kill(os.getpid(), signal.SIGUSR1)
    checkpoint.forget(session, A)

    assert os.listdir(session.path / "checkpoints") == []


def test_outside_a_task_there_is_nothing_to_save() -> None:
    before = signal.getsignal(signal.SIGUSR1)

    assert public(lambda: 1 / 0) is None
    assert signal.getsignal(signal.SIGUSR1) is before
