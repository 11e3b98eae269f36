"""What is sent to the cluster, how it is started, and the judgements of the script that installs it."""

from __future__ import annotations

import ast
import inspect
import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from remoteexec.config import ClusterConfig
from remoteexec.deploy import bootstrap, missing, package_files, start_argv
from remoteexec.deploy.launch import expression
from remoteexec.deploy.package import pack
from remoteexec.deploy.requirements import REQUIREMENTS, for_cluster
from remoteexec.errors import RunnerMissing, UnsafeRoot

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NASTY = "a'; echo b ü"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    directory = tmp_path / "remoteexec_server"
    (directory / "batch").mkdir(parents=True)
    (directory / "__pycache__").mkdir()
    (directory / "__main__.py").write_text("main")
    (directory / "batch" / "job.sh.j2").write_text("ü")
    (directory / "__pycache__" / "x.pyc").write_bytes(b"x")
    return directory


def test_the_same_files_give_the_same_package(package: Path) -> None:
    first = pack([package], "1")
    os.utime(package / "__main__.py", (0, 0))
    assert pack([package], "1") == first
    (package / "__main__.py").write_text("mainx")
    assert pack([package], "1").digest != first.digest


def test_a_package_holds_the_files_without_bytecode(package: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack([package], "1").tar)) as tar:
        names = [(member.name, oct(member.mode)) for member in tar.getmembers()]
    assert names == [("remoteexec_server/__main__.py", "0o600"), ("remoteexec_server/batch/job.sh.j2", "0o600")]


def test_both_ends_compute_the_same_digest(package: Path) -> None:
    assert bootstrap.digest_of(str(package.parent)) == pack([package], "1").digest


def test_the_cluster_gets_the_client_for_tasks_that_import_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(package_files().tar)) as tar:
        names = {member.name for member in tar.getmembers()}
    assert {"remoteexec_server/__main__.py", "remoteexec/__init__.py", "remoteexec/errors.py"} - names == set()
    assert {name.partition("/")[0] for name in names} == {"remoteexec", "remoteexec_server"}


def test_the_requirements_are_those_of_the_distribution() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    stated = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    assert [each.specifier for each in REQUIREMENTS] == [
        line for each in REQUIREMENTS for line in stated if line.startswith(each.name + ">")
    ]


def test_cloudpickle_is_installed_in_the_clients_version() -> None:
    import cloudpickle

    assert for_cluster()[0] == {
        "name": "cloudpickle",
        "at_least": "3.0",
        "below": "4",
        "install": f"cloudpickle=={cloudpickle.__version__}",
    }


def test_the_script_is_in_the_syntax_of_an_old_python() -> None:
    source = inspect.getsource(bootstrap)
    ast.parse(source, feature_version=(3, 7))  # the oldest that ast can ask for; 3.6 differs in nothing used
    assert "from __future__" not in source


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/a/b", "/a/b"),
        ("/" + NASTY, """'/a'"'"'; echo b ü'"""),
        ("~", "${HOME:-$(echo 'HOME is not set' >&2; exit 68)}"),
        ("~/x", "${HOME:-$(echo 'HOME is not set' >&2; exit 68)}/x"),
        ("$SCRATCH/$x", "${SCRATCH:-$(echo 'SCRATCH is not set' >&2; exit 68)}'/$x'"),
        ("${WORK}/x", "${WORK:-$(echo 'WORK is not set' >&2; exit 68)}/x"),
        ("$(id)/x", "'$(id)/x'"),
        ("python3.11", "python3.11"),
    ],
)
def test_only_a_leading_home_or_variable_is_expanded(path: str, text: str) -> None:
    assert expression(path) == text


def test_our_package_is_started_by_one_line() -> None:
    config = ClusterConfig(name="c", host="h", root="/r", python="/p")
    argv = start_argv(config, "0123", "gateway", "--sentinel", "ff")
    assert (argv[:2], argv[3:]) == (["sh", "-c"], ["gateway", "--sentinel", "ff"])
    login = ClusterConfig(name="c", host="h", root="/r", python="/p", login_shell=True)
    assert start_argv(login, "0123", "gateway")[:2] == ["bash", "-lc"]
    assert argv[2] == (
        'root=/r || exit 68; python=/p || exit 68; mode=$(ls -ld "$root/" 2>/dev/null); '
        'case $mode in d????w*|d???????w*) echo "$mode" >&2; exit 69;; esac; '
        '[ -z "$mode" ] || [ -O "$root" ] || { echo "$mode" >&2; exit 69; }; '
        "entry=$root/server/0123/remoteexec_server; "
        '[ -f "$entry/__main__.py" ] || { echo "no $entry" >&2; exit 67; }; '
        'command -v "$python" >/dev/null || { echo "no program $python" >&2; exit 66; }; '
        'exec "$python" "$entry" "$0" --root "$root" "$@"'
    )


def test_exit_codes_of_that_line_become_errors() -> None:
    config = ClusterConfig(name="c", host="h", root="$WORK/x")
    found = [missing(code, "noise\nno /x\n", config) for code in (66, 67, 68, 0, 1, None)]
    assert [(type(each), str(each)) for each in found] == [
        (RunnerMissing, "There is no Python for us on 'c' (no /x).\nRun `remoteexec install c`."),
        (
            RunnerMissing,
            "The cluster side of this version is not installed on 'c' (no /x).\nRun `remoteexec install c`.",
        ),
        (
            UnsafeRoot,
            "root = '$WORK/x' of cluster 'c' cannot be expanded there: no /x.\nName another root: "
            "`remoteexec config add-cluster c --root PATH`, or add `--login-shell`.",
        ),
        *[(type(None), "None")] * 3,
    ]


@pytest.mark.skipif(os.name == "nt", reason="roots lie on POSIX machines")
@pytest.mark.parametrize("shape", ["missing", "good", "group", "others", "link", "file", "below open", "below sticky"])
def test_the_script_and_the_store_judge_a_root_alike(tmp_path: Path, shape: str) -> None:
    from remoteexec_server.store.root import UnsafeRootError, open_root

    above = tmp_path / NASTY
    above.mkdir(mode=0o700)
    root = above / "root"
    if shape == "file":
        root.touch()
    elif shape != "missing":
        root.mkdir(mode=0o700)
    if shape == "link":
        root.rename(above / "real")
        root.symlink_to(above / "real")
    modes = {
        "group": (root, 0o710),
        "others": (root, 0o701),
        "below open": (above, 0o777),
        "below sticky": (above, 0o1777),
    }
    if shape in modes:
        path, mode = modes[shape]
        path.chmod(mode)
    judged = []
    for judge, refusal in ((bootstrap.check_root, bootstrap.Refused), (open_root, UnsafeRootError)):
        try:
            judge(str(root))
            judged.append(True)
        except refusal:
            judged.append(False)
    assert judged == [shape in ("missing", "good", "below sticky")] * 2


@pytest.mark.parametrize(
    ("version", "good"),
    [("3.9", True), ("3.9.0rc1", True), ("3.16.0", True), ("3.8.9", False), ("4", False), ("4.0.1", False)],
)
def test_versions_are_compared_as_numbers(version: str, good: bool) -> None:
    requirement = {"name": "h5py", "at_least": "3.9", "below": "4", "install": "h5py>=3.9,<4"}
    facts: dict[str, Any] = {"found": {"h5py": version}}
    assert bootstrap.unmet(facts, {"requirements": [requirement]}) == ([] if good else [requirement])


def test_a_distribution_that_is_missing_is_unmet() -> None:
    requirement = {"name": "h5py", "at_least": "3.9", "below": "4", "install": "h5py>=3.9,<4"}
    assert bootstrap.unmet({"found": {"h5py": None}}, {"requirements": [requirement]}) == [requirement]


def test_names_are_read_out_of_requirements() -> None:
    assert [bootstrap.distribution(text) for text in ("ase", "ase[test]>=3", "ase ~= 3.2", "ase@file:///x")] == [
        "ase"
    ] * 4
