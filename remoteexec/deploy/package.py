"""What the cluster gets of this client: one tar, named by its digest.

The cluster side, and beside it the client, which nothing there imports but the user's tasks. Each client uses the
package of its own digest, so that clients of different versions share a root.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Package", "package_files"]


@dataclass(frozen=True)
class Package:
    """What is sent.

    Attributes:
        digest: 16 hex digits over names and contents.
        version: Of remoteexec.
        tar: Uncompressed; the same bytes for the same files.
    """

    digest: str
    version: str
    tar: bytes = field(repr=False)


@functools.cache
def package_files() -> Package:
    """The installed `remoteexec_server` and `remoteexec`, read once."""
    import remoteexec_server

    here = Path(__file__).parent.parent
    return pack([here, Path(remoteexec_server.__file__).parent], remoteexec_server.__version__)


def pack(directories: Iterable[Path], version: str) -> Package:
    """Make the package of directories."""
    digest = hashlib.sha256()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(each for directory in directories for each in _files(directory)):
            for part in (name.encode(), data):
                digest.update(len(part).to_bytes(8, "big") + part)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o600
            tar.addfile(info, io.BytesIO(data))
    return Package(digest.hexdigest()[:16], version, out.getvalue())


def _files(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in directory.rglob("*"):
        relative = path.relative_to(directory.parent)
        if path.is_file() and "__pycache__" not in relative.parts and not path.name.endswith((".pyc", "~")):
            yield relative.as_posix(), path.read_bytes()
