"""What a scheduler or a template will not honour is named, and nothing else."""

from __future__ import annotations

from pathlib import Path

from remoteexec_server.batch import unheeded
from remoteexec_server.batch.local_queue import LocalQueue
from remoteexec_server.wire.resources import Resources


def test_a_template_honours_what_it_has_a_variable_for_in_words_or_in_blocks() -> None:
    template = "{% if memory_mb %}#SBATCH --mem={{ memory_mb }}M{% endif %} {{cores}} {{ queue }} qos {{ command }}"
    resources = Resources(
        submission_template=template,
        threads_per_core=2,
        memory_max_gb=1.0,
        partition="x",
        qos="high",
        gpus_per_core=1,
        run_time_max_s=60,
    )
    assert unheeded.by_template(resources) == [
        "gpus_per_core=1 has no effect: the submission_template does not use it",
        "run_time_max=60 has no effect: the submission_template does not use it",
        "qos='high' has no effect: the submission_template does not use it",
    ]


def test_our_own_template_honours_everything() -> None:
    assert unheeded.by_template(Resources(qos="high", gpus_per_core=1)) == []


def test_the_embedded_scheduler_names_all_that_it_does_not_give_out(tmp_path: Path) -> None:
    resources = Resources(memory_max_gb=2, partition="x", slurm_cmd_args=("-v",), threads_per_core=2, run_time_max_s=5)
    assert LocalQueue(tmp_path).unheeded(resources) == [
        f"{what} has no effect: the embedded scheduler gives out cores and time only"
        for what in ("memory_max=2", "partition='x'", "slurm_cmd_args=('-v',)")
    ]
