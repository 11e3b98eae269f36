"""The root directory is made private, and refused if it is not the user's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from remoteexec_server.store import root
from remoteexec_server.store.root import UnsafeRootError, expand, open_root


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/x/y", "/x/y"),
        ("~/y", "/home/me/y"),
        ("$SCRATCH/y", "/scratch/me/y"),
        ("${SCRATCH}/y", "/scratch/me/y"),
        (root.DEFAULT, "/scratch/me/remoteexec"),
    ],
)
def test_a_root_is_expanded_where_it_lies(written: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")

    assert expand(written) == Path(path)


def test_the_default_root_is_in_the_home_where_there_is_no_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("SCRATCH", raising=False)

    assert expand(root.DEFAULT) == Path("/home/me/.remoteexec")


@pytest.mark.parametrize("written", ["x/y", "", ".", "$NOT_SET_ANYWHERE/y", "~no-such-user/y"])
def test_a_root_that_is_not_absolute_is_refused(written: str) -> None:
    with pytest.raises(UnsafeRootError, match=r"must be an absolute path; is the variable set\?"):
        expand(written)


def test_a_missing_root_is_made_private_whatever_the_umask(tmp_root: Path) -> None:
    before = os.umask(0)
    try:
        path = open_root(str(tmp_root))
    finally:
        os.umask(before)

    assert (path, stat.S_IMODE(path.stat().st_mode)) == (tmp_root, 0o700)
    assert (open_root(str(path)), open_root(str(path / "deep" / "er"))) == (path, path / "deep" / "er")


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o704, 0o770, 0o777])
def test_a_root_open_to_others_is_refused_with_the_remedy_and_left_as_it_is(tmp_root: Path, mode: int) -> None:
    tmp_root.mkdir()
    tmp_root.chmod(mode)

    with pytest.raises(UnsafeRootError, match=f"has mode {mode:04o}.*chmod 700"):
        open_root(str(tmp_root))

    assert (stat.S_IMODE(tmp_root.stat().st_mode), list(tmp_root.iterdir())) == (mode, [])


def test_a_root_of_somebody_else_is_refused(tmp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_root.mkdir(mode=0o700)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)

    with pytest.raises(UnsafeRootError, match=rf"belongs to user id {me}, not to yours \({me + 1}\)"):
        open_root(str(tmp_root))


def test_a_symbolic_link_is_refused(tmp_root: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    tmp_root.symlink_to(tmp_path / "real")

    with pytest.raises(UnsafeRootError, match="is a symbolic link"):
        open_root(str(tmp_root))


def test_a_file_is_refused(tmp_root: Path) -> None:
    tmp_root.touch(mode=0o700)

    with pytest.raises(UnsafeRootError, match="is not a directory"):
        open_root(str(tmp_root))


def test_a_root_below_a_file_is_refused(tmp_root: Path) -> None:
    tmp_root.touch()

    with pytest.raises(UnsafeRootError, match="cannot be made or read"):
        open_root(str(tmp_root / "root"))


def test_a_root_below_a_directory_that_everybody_may_change_is_refused(tmp_root: Path) -> None:
    (tmp_root / "above").mkdir(parents=True)
    (tmp_root / "above").chmod(0o777)

    with pytest.raises(UnsafeRootError, match=r"above the root .* is writable by everybody"):
        open_root(str(tmp_root / "above" / "root"))

    (tmp_root / "above").chmod(0o1777)  # as /tmp: nobody can replace what is not theirs
    assert open_root(str(tmp_root / "above" / "root")).is_dir()
