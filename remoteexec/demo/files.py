"""SFTP over the real file system, with the rights of the process: what paramiko's SFTP server asks of us."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import paramiko

P = ParamSpec("P")
R = TypeVar("R")


def _answering(operation: Callable[P, R]) -> Callable[P, R | int]:
    """Turn an OSError into the SFTP status that stands for it."""

    def answer(*args: P.args, **kwargs: P.kwargs) -> R | int:
        try:
            return operation(*args, **kwargs)
        except OSError as exc:
            return int(paramiko.SFTPServer.convert_errno(exc.errno or errno.EIO))

    return answer


class OpenFile(paramiko.SFTPHandle):  # type: ignore[misc]  # paramiko has no type hints
    """One open file; reads and writes carry their own offset."""

    def __init__(self, fd: int, flags: int) -> None:
        super().__init__(flags)
        self._fd = fd

    @_answering
    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    @_answering
    def write(self, offset: int, data: bytes) -> int:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)
        return int(paramiko.SFTP_OK)

    @_answering
    def stat(self) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self._fd))

    @_answering
    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        return _change(self._fd, attr)

    def close(self) -> None:
        super().close()
        os.close(self._fd)


class Files(paramiko.SFTPServerInterface):  # type: ignore[misc]  # paramiko has no type hints
    """The file system of this machine; relative paths start at the home directory."""

    def __init__(self, server: paramiko.ServerInterface, home: str) -> None:
        super().__init__(server)
        self._home = home

    def _path(self, path: str) -> str:
        return os.path.join(self._home, path)

    def canonicalize(self, path: str) -> str:
        return os.path.realpath(self._path(path))

    @_answering
    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes]:
        with os.scandir(self._path(path)) as entries:
            return [
                paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False), entry.name) for entry in entries
            ]

    @_answering
    def stat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.stat(self._path(path)))

    @_answering
    def lstat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.lstat(self._path(path)))

    @_answering
    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> OpenFile:
        mode = 0o666 if attr.st_mode is None else attr.st_mode & 0o7777
        return OpenFile(os.open(self._path(path), flags | os.O_CLOEXEC, mode), flags)

    @_answering
    def remove(self, path: str) -> int:
        os.unlink(self._path(path))
        return int(paramiko.SFTP_OK)

    @_answering
    def rename(self, oldpath: str, newpath: str) -> int:
        # the plain SFTP rename never replaces; link + unlink would refuse directories
        if os.path.lexists(self._path(newpath)):
            return int(paramiko.SFTP_FAILURE)
        os.rename(self._path(oldpath), self._path(newpath))
        return int(paramiko.SFTP_OK)

    @_answering
    def posix_rename(self, oldpath: str, newpath: str) -> int:
        os.replace(self._path(oldpath), self._path(newpath))
        return int(paramiko.SFTP_OK)

    @_answering
    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        os.mkdir(self._path(path), 0o777 if attr.st_mode is None else attr.st_mode & 0o7777)
        return int(paramiko.SFTP_OK)

    @_answering
    def rmdir(self, path: str) -> int:
        os.rmdir(self._path(path))
        return int(paramiko.SFTP_OK)

    @_answering
    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return _change(self._path(path), attr)

    @_answering
    def readlink(self, path: str) -> str:
        return os.readlink(self._path(path))

    @_answering
    def symlink(self, target_path: str, path: str) -> int:
        os.symlink(target_path, self._path(path))
        return int(paramiko.SFTP_OK)


def _change(file: str | int, attr: paramiko.SFTPAttributes) -> int:
    if attr.st_mode is not None:
        os.chmod(file, attr.st_mode & 0o7777)
    if attr.st_size is not None:
        os.truncate(file, attr.st_size)
    if attr.st_mtime is not None:
        os.utime(file, (attr.st_mtime if attr.st_atime is None else attr.st_atime, attr.st_mtime))
    return int(paramiko.SFTP_OK)
