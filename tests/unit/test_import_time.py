"""What `import remoteexec` brings: not what takes long and is not always needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("numpy", "h5py", "paramiko", "fabric", "invoke", "typer", "rich", "pysqa", "asyncio", "cryptography")


def modules_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import remoteexec",
        "from remoteexec import SingleNodeExecutor",
        "from remoteexec import TestClusterExecutor",
        "import remoteexec_server.zygote",
    ],
)
def test_slow_modules_are_not_imported_before_they_are_needed(statement: str) -> None:
    assert modules_after(statement) & set(SLOW) == set()


def test_what_only_some_calls_need_is_imported_by_these() -> None:
    some = {"cloudpickle", "json", "shutil", "remoteexec.engine.cache", "remoteexec.views.graph"}
    assert modules_after("import remoteexec") & some == set()


def test_a_runner_imports_neither_messages_nor_what_few_calls_need() -> None:
    some = {"cloudpickle", "secrets", "shutil", "remoteexec_server.store.hdf5", "remoteexec_server.wire.messages"}
    assert modules_after("import remoteexec_server.runner") & {*SLOW, *some} == set()


def test_executors_of_clusters_are_imported_when_they_are_asked_for() -> None:
    before, after = modules_after("import remoteexec"), modules_after("import remoteexec; remoteexec.RemoteExecutor")
    assert ("remoteexec.engine.driver" in before, "remoteexec.engine.driver" in after) == (False, True)


def test_every_public_name_is_there() -> None:
    import remoteexec

    assert [name for name in remoteexec.__all__ if not hasattr(remoteexec, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        remoteexec.nothing  # noqa: B018
