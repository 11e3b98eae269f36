"""What remains in an allocation, as people are told."""

from __future__ import annotations

import time

from remoteexec.allocation.remaining import Remaining, left_s
from remoteexec.pool.workers import when_over


def test_what_remains_is_said_in_one_line() -> None:
    counted = (
        "1 calls run, 2 wait for a worker, 3 for their inputs, and 4 were not started for want of time (run_time_max)"
    )
    assert str(Remaining(60.0, 1, 2, 3, 4)) == f"the allocation ends in 60 s: {counted}"
    assert str(Remaining(None, 1, 2, 3, 4)) == counted


def test_nothing_remains_if_all_has_ended_and_nothing_was_refused() -> None:
    assert [Remaining(9.0, *counts).none for counts in ((0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0))] == [
        True,
        False,
        False,
    ]


def test_an_end_that_is_over_explains_why_nodes_are_gone() -> None:
    now = time.time()
    assert (left_s(None), left_s(now - 1), 99 < (left_s(now + 100) or 0) <= 100) == (None, 0.0, True)
    assert (when_over(None), when_over(now + 60)) == ("", "")
    assert when_over(now - 1).startswith("the allocation has reached its time limit, ")
    assert not when_over(now - 1).endswith(" ")
