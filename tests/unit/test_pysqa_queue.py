"""What SlurmQueue makes of sbatch's answers; the rest of it is tried on a real SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remoteexec_server.batch.base import JobSpec, SchedulerUnavailable, SubmitRejected
from remoteexec_server.batch.pysqa_queue import SlurmQueue
from remoteexec_server.wire.resources import Resources


def test_an_sbatch_that_never_gives_a_number_is_believed_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SlurmQueue()
    answer: dict[str, Any] = {"command": "sbatch", "exit_code": 0, "errors": "", "output": "thanks!"}
    monkeypatch.setattr(queue, "_request", lambda request: answer)
    spec = JobSpec("rx-b-0", Path("/x"), ("true",), 1, Resources())

    for _ in range(4):
        with pytest.raises(SchedulerUnavailable):
            queue.submit(spec)
    with pytest.raises(SubmitRejected) as caught:
        queue.submit(spec)

    assert str(caught.value) == "sbatch gives no job number for rx-b-0: thanks! (exit code 0)"
