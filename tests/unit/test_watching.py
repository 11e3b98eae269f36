"""New names are reported once, soon while things happen and seldom while nothing does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remoteexec_server.store.watching import Watcher
from tests.unit.fake_queue import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watcher(tmp_path: Path, clock: Clock) -> Watcher:
    return Watcher(tmp_path, clock)


def test_a_name_is_reported_once(watcher: Watcher, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert (set(watcher.look()), set(watcher.look())) == ({"a"}, set())
    (tmp_path / "b").touch()
    (tmp_path / "a").unlink()
    assert set(watcher.look()) == {"b"}
    (tmp_path / "a").touch()
    assert set(watcher.look()) == {"a"}


def test_a_forgotten_name_is_reported_again_if_it_is_there(watcher: Watcher, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    watcher.look()
    watcher.forget(["a", "never there"])

    assert (set(watcher.look()), set(watcher.look())) == ({"a"}, set())
    watcher.forget_all()
    assert (set(watcher.look()), set(watcher.look())) == ({"a", "b"}, set())


def pauses(watcher: Watcher, clock: Clock, seconds: float) -> list[float]:
    """Rests between looks for so long."""
    found: list[float] = []
    until = clock.now + seconds
    while clock.now < until:
        watcher.look()
        found.append(watcher.due_at - clock.now)
        clock.now = watcher.due_at
    return found


def test_looks_become_rarer_while_nothing_happens_up_to_two_seconds(watcher: Watcher, clock: Clock) -> None:
    rests = pauses(watcher, clock, 120.0)

    assert rests == pytest.approx(sorted(rests))
    assert [rests[0], rests[-1]] == pytest.approx([0.02, 2.0])
    assert len(rests) < 140


def test_a_new_name_or_an_expected_one_makes_looks_frequent(watcher: Watcher, clock: Clock, tmp_path: Path) -> None:
    pauses(watcher, clock, 60.0)
    (tmp_path / "a").touch()
    watcher.look()
    assert watcher.due_at - clock.now == pytest.approx(0.02)

    pauses(watcher, clock, 60.0)
    watcher.hurry()
    assert watcher.due_at == clock.now
    assert pauses(watcher, clock, 0.01) == [pytest.approx(0.02)]


def test_a_forgotten_name_does_not_make_looks_frequent(watcher: Watcher, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    pauses(watcher, clock, 60.0)
    watcher.forget(["a"])
    watcher.look()

    assert watcher.due_at - clock.now == 2.0


def test_a_slow_directory_is_listed_for_one_percent_of_the_time_at_most(
    watcher: Watcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path) -> list[str]:
        clock.now += 0.5
        return []

    monkeypatch.setattr(os, "listdir", slow)
    watcher.look()

    assert watcher.due_at - clock.now == pytest.approx(50.0)
