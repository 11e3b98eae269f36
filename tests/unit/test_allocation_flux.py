"""What Flux says of an instance and of a job: recorded with flux-core 0.88."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoteexec import FluxJobExecutor
from remoteexec.allocation.base import Allocation, NoAllocation, Node
from remoteexec.allocation.flux import allocation, parse_allocation
from remoteexec.executors import flux_job
from remoteexec.executors.allocated import Pmi

INSTANCE = (
    '{"version": 1, "execution": {"R_lite": [{"rank": "0-1", "children": {"core": "0-3", "gpu": "0-1"}}], '
    '"starttime": 0.0, "expiration": 0.0, "nodelist": ["n[1-2]"]}}\n'
)
JOB = (
    '{"version": 1, "execution": {"R_lite": [{"rank": "1", "children": {"core": "0-3", "gpu": "0-1"}}, {"rank": "0", '
    '"children": {"core": "2"}}], "starttime": 1795524842.1, "expiration": 1795524902.5, "nslots": 2, '
    '"nodelist": ["n1", "n2"]}}\n'
)


def test_an_instance_without_an_end_has_all_its_nodes() -> None:
    nodes = (Node("n1", 4, None, ("0", "1"), "0"), Node("n2", 4, None, ("0", "1"), "1"))
    assert parse_allocation("instance", INSTANCE) == Allocation("instance", nodes)


def test_a_job_has_its_share_of_each_node_until_it_expires() -> None:
    nodes = (Node("n1", 1, None, (), "0"), Node("n2", 4, None, ("0", "1"), "1"))
    assert parse_allocation("f1", JOB) == Allocation("f1", nodes, 1795524902.5)


@pytest.mark.parametrize("output", ["", "{}", "[]", INSTANCE.replace("n[1-2]", "n1"), INSTANCE.replace("0-3", "x")])
def test_what_is_no_description_is_shown(output: str) -> None:
    with pytest.raises(NoAllocation, match="Flux does not say what instance has"):
        parse_allocation("instance", output)


def test_other_places_than_an_instance_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoAllocation, match="start the script with `flux alloc`"):
        allocation({})
    monkeypatch.delenv("FLUX_URI", raising=False)
    with pytest.raises(NoAllocation, match="or use FluxClusterExecutor"):
        FluxJobExecutor()


def test_parameters_that_cannot_be_are_refused_before_flux_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"flux_executor must be a flux\.job\.FluxExecutor\(\), not <object"):
        FluxJobExecutor(flux_executor=object())
    monkeypatch.setenv("FLUX_JOB_ID", "f1")
    with pytest.raises(ValueError, match="flux_executor_nesting=True needs a Flux instance"):
        FluxJobExecutor(flux_executor_nesting=True)
    with pytest.raises(ValueError, match="pmi_mode must be 'pmi1', 'pmi2' or 'pmix', not 'pmi9'"):
        FluxJobExecutor(pmi_mode="pmi9")  # type: ignore[arg-type]  # what is refused


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An instance that is only described, and this directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flux_job, "allocation", lambda: parse_allocation("instance", INSTANCE))
    monkeypatch.delenv("FLUX_JOB_ID", raising=False)


@pytest.mark.usefixtures("instance")
@pytest.mark.parametrize("mode", ["pmi1", "pmi2", "pmix", None])
def test_every_pmi_mode_is_taken_and_changes_nothing(mode: Pmi | None) -> None:
    assert FluxJobExecutor(pmi_mode=mode)._step() == FluxJobExecutor()._step()


@pytest.mark.usefixtures("instance")
def test_log_files_are_those_of_the_directory_at_construction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exe, without = FluxJobExecutor(flux_log_files=True), FluxJobExecutor()
    monkeypatch.chdir("/")
    assert exe._step().logs == (str(tmp_path / "flux.out"), str(tmp_path / "flux.err"))
    assert (without._step().logs, exe.info["flux_log_files"], without.info["flux_log_files"]) == (None, True, False)


class FluxExecutor:
    """What ours looks at of `flux.job.FluxExecutor`."""

    def submit(self, jobspec: object) -> None:
        raise AssertionError("nothing is submitted through it")

    attach = submit


@pytest.mark.usefixtures("instance")
def test_an_executor_of_flux_is_not_asked_before_there_is_a_call() -> None:
    given = FluxExecutor()
    with FluxJobExecutor(flux_executor=given) as exe:
        assert exe.info["flux_executor"] is given
