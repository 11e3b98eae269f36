"""Whether nothing goes on, from what was seen at two looks."""

from __future__ import annotations

import os

from remoteexec.pool.stalls import Stalls, cpu_s


def looks(*seen: tuple[list[tuple[int, int]] | None, float | None]) -> list[bool]:
    """What each look says; seen: who has places, and the CPU seconds of each of them until then."""
    now: list[float | None] = [0.0]
    stalls = Stalls(lambda pid: now[0])
    found = []
    for running, used_s in seen:
        now[0] = used_s
        found.append(stalls.look(running))
    return found


def test_who_has_used_no_cpu_between_two_looks_waits() -> None:
    assert looks(([(7, 1)], 0.5), ([(7, 1)], 0.51), ([(7, 1)], 0.52)) == [False, True, True]


def test_who_computes_does_not_wait() -> None:
    assert looks(([(7, 1)], 0.5), ([(7, 1)], 0.7), ([(7, 1)], None), ([(7, 1)], 0.7)) == [False] * 4


def test_what_went_on_in_between_is_seen() -> None:
    assert looks(([(7, 1)], 0), ([(7, 2)], 0), (None, 0), ([(7, 2)], 0), ([(7, 2), (8, 3)], 0)) == [False] * 5


def test_nobody_with_a_place_at_two_looks_is_a_stall() -> None:
    assert looks(([], 0), ([], 0)) == [False, True]


def test_a_process_that_computes_is_told_from_one_that_is_gone() -> None:
    assert cpu_s(os.getpid()) is None
    assert cpu_s(2**22 + 1) == 0.0
