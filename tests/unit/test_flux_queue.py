"""What FluxQueue makes of Flux's refusals, as recorded; the rest of it is tried on a real Flux."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec_server.batch import flux_queue
from remoteexec_server.batch.base import JobId, JobRef, JobSpec, SchedulerUnavailable, SubmitRejected
from remoteexec_server.wire.resources import Resources

RECORDED = Path(__file__).parent / "recorded" / "flux-0.88"
SPEC = JobSpec("rx-b-0", Path("/r/jobs/rx-b-0"), ("true",), 2, Resources(), (JobRef(JobId("f1234")),))


def refusal(name: str, output: str = "", exit_code: int = 1) -> SubmitRejected | SchedulerUnavailable:
    errors = (RECORDED / f"{name}.txt").read_text(encoding="utf-8")
    answer = {"failed": "command", "command": "flux", "exit_code": exit_code, "output": output, "errors": errors}
    return flux_queue._refusal(SPEC, answer)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused_queue", "[Errno 22] 'x' is not a valid queue"),
        ("refused_array", "[Errno 22] 'x' is not a valid queue"),
        ("refused_urgency", "[Errno 22] urgency range is [0:31]"),
        ("refused_exclusive", "exclusive can only be set with a node count"),
        ("refused_dependency", "[Errno 22] dependency: afterany: id f1234: job not found"),
    ],
)
def test_a_refusal_is_told_once_in_fluxs_own_words(name: str, words: str) -> None:
    error = refusal(name)
    assert isinstance(error, SubmitRejected)
    assert str(error) == (f"flux refused job rx-b-0: {words} (exit code 1); its script is /r/jobs/rx-b-0/run_queue.sh")
    assert error.dependency is (name == "refused_dependency")


@pytest.mark.parametrize("name", ["unreachable", "refused_disabled"])
def test_what_may_be_otherwise_later_is_no_refusal(name: str) -> None:
    assert isinstance(refusal(name), SchedulerUnavailable)


def test_what_was_refused_in_part_is_tried_again() -> None:
    error = refusal("refused_queue", output="ƒ26VeF1Z\n")
    assert isinstance(error, SchedulerUnavailable)
    assert str(error) == "job rx-b-0 was submitted in part: [Errno 22] 'x' is not a valid queue"
