"""HDF5 files with arrays, by HDF5's own library; what has none is `flat`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from . import flat

__all__ = ["Reader", "image"]

_images = itertools.count()


def image(parts: Mapping[str, bytes | Sequence[int]], groups: Mapping[str, Sequence[memoryview]], block: int) -> bytes:
    """What follows the user block.

    Args:
        parts: datasets of one dimension, of bytes (uint8) or numbers (int64).
        groups: buffers, each a dataset of its group, named by its place.
        block: bytes of the user block.
    """
    # block_size: bytes by which the image grows; large enough for most bundles, small beside an array
    # HDF5 takes two open images of the same name for one file, and refuses the second
    options: dict[str, Any] = {"backing_store": False, "block_size": 1 << 16, "userblock_size": block}
    with h5py.File(f"image-{next(_images)}", "w", driver="core", **options) as file:
        for name, part in parts.items():
            array = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else np.array(part, flat.NUMBER)
            file.create_dataset(name, data=array)
        for name, views in groups.items():
            group = file.create_group(name)
            for k, view in enumerate(views):
                group.create_dataset(str(k), data=_native(view))
        file.flush()
        body: bytes = file.id.get_file_image()  # begins behind the user block
        return body


class Reader:
    """A file that may be opened: its header was checked.

    Args:
        data: the whole file.
    """

    def __init__(self, data: bytes) -> None:
        self._file = h5py.File(io.BytesIO(data), "r")

    def bytes_of(self, name: str) -> bytes:
        """A dataset of bytes."""
        return bytes(self._file[name][:].tobytes())

    def numbers(self, name: str) -> Sequence[int]:
        """A dataset of numbers."""
        return list(self._file[name][:].tolist())

    def buffers(self, group: str, numbers: Iterable[int] | None = None) -> tuple[memoryview, ...]:
        """Those of a group that have these numbers, or all."""
        found = self._file[group]
        return tuple(memoryview(found[str(k)][()]) for k in (range(len(found)) if numbers is None else numbers))

    def close(self) -> None:
        """Let go of the file's bytes."""
        self._file.close()


def _native(view: memoryview) -> np.ndarray[Any, Any]:
    """The buffer as an array that HDF5 can show to other tools; as bytes where it has no such type."""
    try:
        array = np.asarray(view)
    except (TypeError, ValueError):  # a format numpy does not know
        return np.frombuffer(view, np.uint8)
    plain = array.dtype.kind in "biu" or (array.dtype.kind in "fc" and array.dtype.itemsize in (2, 4, 8, 16))
    if not plain or array.dtype.char in "gG":  # long double: its padding does not survive
        return np.frombuffer(view.cast("B"), np.uint8)
    return array
