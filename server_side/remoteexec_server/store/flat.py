"""HDF5 files of a few flat datasets, written and read by the standard library alone.

    superblock ─▶ group of all ─▶ a header of fixed size for each dataset ─▶ its bytes
                           └───▶ empty groups

Most calls and results have no arrays beside their pickles. To import h5py and numpy for these takes 0.1 s of CPU, ten
times as long as all else that a job does for an empty task, and seconds where a hundred nodes read them from one file
system; to write such a file takes h5py 0.8 ms, this 0.03 ms. Any HDF5 tool opens the files.

Source: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html (superblock 0, object headers 1, compact
groups), tried with HDF5 1.14.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["NUMBER", "datasets", "image", "numbers"]

NUMBER = "<i8"
"""numpy's name of what `numbers` is kept as."""

_NOWHERE = (1 << 64) - 1
_SUPERBLOCK = struct.Struct("<8s8B2HI4Q2Q2I16x")
_HEADER = struct.Struct("<BxHII4x")  # version, messages, references, bytes of messages
_MESSAGE = struct.Struct("<HHB3x")  # kind, bytes, flags
_LINK_INFO = struct.Struct("<2B2Q6x")
_LINK = struct.Struct("<3B")  # before the name, which the address follows
_ADDRESS = struct.Struct("<Q")
_SPACE, _TYPE, _FILL, _LAYOUT = (struct.Struct(f"<{form}") for form in ("3B5xQ", "4BI2H4x", "4B4x", "2B2Q6x"))
_SPACE_KIND, _LINK_INFO_KIND, _TYPE_KIND, _FILL_KIND, _LINK_KIND, _LAYOUT_KIND = 1, 2, 3, 5, 6, 8
_DATASET = _HEADER.size + sum(_MESSAGE.size + one.size for one in (_SPACE, _TYPE, _FILL, _LAYOUT))


def image(parts: Mapping[str, bytes | Sequence[int]], groups: Iterable[str], block: int) -> bytes:
    """What follows the user block.

    Args:
        parts: datasets of one dimension, of bytes (uint8) or numbers (int64), at most 255 ASCII characters a name.
        groups: empty ones.
        block: bytes of the user block.
    """
    groups = tuple(groups)
    headers = _SUPERBLOCK.size + _group_size((*parts, *groups))
    empty = _group({})
    starts = headers + _DATASET * len(parts) + len(empty) * len(groups)
    found: dict[str, int] = {name: headers + _DATASET * number for number, name in enumerate(parts)}
    found.update({name: starts - len(empty) * (number + 1) for number, name in enumerate(groups)})
    described, contents, at = [], [], starts
    for part in parts.values():
        data, width = (part, 1) if isinstance(part, bytes) else (struct.pack(f"<{len(part)}q", *part), 8)
        described.append(_dataset(at, len(data), width))
        contents += [data, bytes(-len(data) % 8)]
        at += len(data) + -len(data) % 8
    return b"".join((_superblock(block, at), _group(found), *described, *[empty] * len(groups), *contents))


def datasets(data: memoryview, block: int) -> dict[str, memoryview] | None:
    """The bytes of all datasets of a file that `image` has made; None: HDF5's own library has to read it.

    Args:
        data: the whole file, whose digest fits.
        block: bytes of its user block.
    """
    body = data[block:]
    if body[: _SUPERBLOCK.size] != _superblock(block, len(body)):
        return None
    found: dict[str, memoryview] = {}
    for name, header in _links(body).items():
        if body[header : header + _HEADER.size] == _DATASET_HEADER:
            _, _, start, size = _LAYOUT.unpack_from(body, header + _DATASET - _LAYOUT.size)
            found[name] = body[start : start + size] if size else body[:0]
    return found


def numbers(data: memoryview) -> Sequence[int]:
    """The numbers of a dataset."""
    return struct.unpack(f"<{len(data) // 8}q", data)


def _superblock(block: int, size: int) -> bytes:
    """For a body of so many bytes."""
    sizes = (0, 0, 0, 0, 0, 8, 8, 0)
    places = (block, _NOWHERE, block + size, _NOWHERE)
    return _SUPERBLOCK.pack(b"\x89HDF\r\n\x1a\n", *sizes, 4, 16, 0, *places, 0, _SUPERBLOCK.size, 0, 0)


def _message(kind: int, data: bytes) -> bytes:
    return _MESSAGE.pack(kind, len(data), 0) + data


def _header(messages: Sequence[bytes]) -> bytes:
    return _HEADER.pack(1, len(messages), 1, sum(map(len, messages))) + b"".join(messages)


def _group(links: Mapping[str, int]) -> bytes:
    messages = [_message(_LINK_INFO_KIND, _LINK_INFO.pack(0, 0, _NOWHERE, _NOWHERE))]
    for name, address in links.items():
        link = _LINK.pack(1, 0, len(name)) + name.encode("ascii") + _ADDRESS.pack(address)
        messages.append(_message(_LINK_KIND, link + bytes(-len(link) % 8)))
    return _header(messages)


def _group_size(names: Iterable[str]) -> int:
    return len(_group(dict.fromkeys(names, 0)))


def _links(body: memoryview) -> dict[str, int]:
    """Where the headers of all that is in the group of all are."""
    _, count, _, _ = _HEADER.unpack_from(body, _SUPERBLOCK.size)
    at, found = _SUPERBLOCK.size + _HEADER.size, {}
    for _ in range(count):
        kind, size, _ = _MESSAGE.unpack_from(body, at)
        at += _MESSAGE.size
        if kind == _LINK_KIND:
            name = at + _LINK.size
            end = name + body[name - 1]
            found[str(body[name:end], "ascii")] = _ADDRESS.unpack_from(body, end)[0]
        at += size
    return found


def _dataset(start: int, size: int, width: int) -> bytes:
    """Its header: `size` bytes from `start`, in integers of `width` bytes, of which single ones have no sign."""
    return _header(
        (
            _message(_SPACE_KIND, _SPACE.pack(1, 1, 0, size // width)),
            _message(_TYPE_KIND, _TYPE.pack(0x10, 0 if width == 1 else 8, 0, 0, width, 0, 8 * width)),
            _message(_FILL_KIND, _FILL.pack(2, 2, 2, 0)),
            _message(_LAYOUT_KIND, _LAYOUT.pack(3, 1, start if size else _NOWHERE, size)),
        )
    )


_DATASET_HEADER = _dataset(0, 0, 1)[: _HEADER.size]
