"""Each question for a job script gets its own answer, or the reason why there will be none."""

from __future__ import annotations

import pytest

from remoteexec import errors
from remoteexec.engine.scripts import Scripts
from remoteexec_server.wire.messages import Script
from remoteexec_server.wire.resources import Resources


def test_answers_find_their_questions_in_any_order() -> None:
    scripts = Scripts()
    first, one = scripts.new(Resources())
    second, two = scripts.new(Resources(partition="x"))
    scripts.answer(Script(second.number, "two"))
    scripts.answer(Script(first.number, "one"))
    scripts.answer(Script(first.number, "told twice"))

    assert (first.resources, second.resources) == (Resources(), Resources(partition="x"))
    assert (one.result(0), two.result(0)) == ("one", "two")


def test_a_refusal_comes_as_the_error_it_names() -> None:
    scripts = Scripts()
    question, answer = scripts.new(Resources())
    scripts.answer(Script(question.number, "no such queue", "SubmitRejected"))

    with pytest.raises(errors.SubmitRejected, match="no such queue"):
        answer.result(0)


def test_questions_that_get_no_answer_any_more_fail_and_later_ones_do_not() -> None:
    scripts = Scripts()
    _, lost = scripts.new(Resources())
    scripts.fail(errors.ConnectionLost("gone"))
    question, answer = scripts.new(Resources())
    scripts.answer(Script(question.number, "text"))

    with pytest.raises(errors.ConnectionLost, match="gone"):
        lost.result(0)
    assert answer.result(0) == "text"
