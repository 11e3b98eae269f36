"""The directory everything of ours lies in: owned by the user, closed to all others, checked before use."""

from __future__ import annotations

import os
import stat
from pathlib import Path

DEFAULT = "$SCRATCH/remoteexec"
"""Where a cluster's configuration names no root; without a SCRATCH it is `FALLBACK`."""
FALLBACK = "~/.remoteexec"


class UnsafeRootError(Exception):
    """The root directory is not the user's alone, or cannot be used."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """A directory as the user wrote it, on this machine: `~` and `$NAME` are replaced, and it may be relative."""
    text = os.fspath(path)
    if text == DEFAULT:
        text = str(expand(text))
    return Path(os.path.abspath(os.path.expandvars(os.path.expanduser(text))))


def expand(root: str) -> Path:
    """The absolute path of a root as the user wrote it, `~` and `$NAME` replaced.

    Raises:
        UnsafeRootError: a variable is not set, or the path is not absolute.
    """
    if root == DEFAULT and "SCRATCH" not in os.environ:
        root = FALLBACK
    text = os.path.expandvars(os.path.expanduser(root))
    if not os.path.isabs(text):
        raise UnsafeRootError(f"root {root!r} is {text!r} here: it must be an absolute path; is the variable set?")
    return Path(text)


def open_root(root: str, what: str = "root", where: str = " on the cluster") -> Path:
    """Make the root if it is missing (0700) and see that it is the user's alone.

    Args:
        what: it is called in errors.
        where: commands are to be run that mend it.

    Raises:
        UnsafeRootError: says what is wrong with which directory, and the command that mends it.
    """
    path = expand(root)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            pass
        problem = _problem(path, what, where)
    except OSError as exc:
        raise UnsafeRootError(f"{what} {str(path)!r} cannot be made or read: {exc}") from exc
    if problem is not None:
        raise UnsafeRootError(problem)
    return path


def _problem(path: Path, what: str, where: str) -> str | None:
    me = os.geteuid()
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return f"{what} {str(path)!r} is a symbolic link: name the directory it points to"
    if not stat.S_ISDIR(info.st_mode):
        return f"{what} {str(path)!r} is not a directory"
    if info.st_uid != me:
        return f"{what} {str(path)!r} belongs to user id {info.st_uid}, not to yours ({me}): choose another one"
    if info.st_mode & 0o077:
        return (
            f"{what} {str(path)!r} has mode {stat.S_IMODE(info.st_mode):04o}, others may read or change it: "
            f"run `chmod 700 '{path}'`{where} and see that nothing in it is foreign"
        )
    for above in path.resolve().parents:
        info = above.stat()
        if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
            return f"{str(above)!r}, above the {what} {str(path)!r}, is writable by everybody: choose another one"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"{what} {str(path)!r} is not writable"
    return None
