"""The plain header of every bundle and outcome, in the file's HDF5 user block.

A pickle made by one Python minor version can crash or hang another one, and an HDF5 file from a stranger is parsed by
a C library. So the first `BLOCK` bytes of each file are JSON, padded with spaces: read and agreed with the standard
library alone before libhdf5 or pickle see a byte. The digest (HMAC-SHA256 under the session's key) covers the header
without the digest and all that follows it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import sys
from dataclasses import dataclass

BLOCK = 1024
"""Bytes of the user block; HDF5 wants a power of two >= 512."""
PROTOCOL = 1
"""Raised whenever messages, files or payloads change in a way the other end must know."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Minor version of this interpreter: "3.11"."""


class HeaderError(ValueError):
    """The bytes are not a file of ours, or not of this session."""


class ProtocolMismatchError(HeaderError):
    """The file speaks another protocol."""


class PythonMismatchError(HeaderError):
    """The file was pickled by another Python minor version, or another major version of cloudpickle."""


@dataclass(frozen=True)
class Header:
    """What a reader has to know before it opens the file.

    Attributes:
        kind: "bundle" or "outcome".
        subject: burst id of a bundle, task key of an outcome.
        status: of an outcome: "ok" or "error".
    """

    kind: str
    subject: str
    status: str = ""
    protocol: int = PROTOCOL
    python: str = PYTHON
    cloudpickle: str = ""


def seal(header: Header, body: bytes | memoryview, key: bytes) -> bytes:
    """The user block: `header` and its digest, `BLOCK` bytes."""
    block = _block(header, _digest(header, body, key))
    if len(block) > BLOCK:
        raise HeaderError(f"header of {len(block)} bytes: at most {BLOCK}")
    return block


def read(data: bytes | memoryview) -> Header:
    """The header of a file, unchecked: for who only wants to know what the file is.

    Raises:
        HeaderError: not a header of ours.
    """
    return _parse(data)[0]


def check(data: bytes | memoryview, key: bytes, kind: str, subject: str) -> Header:
    """The header of a file that may now be opened and unpickled.

    Args:
        data: the whole file.
        key: the session's key.
        kind: what the file has to be.
        subject: what it has to be about.

    Raises:
        HeaderError: not a file of ours, another subject, or a digest that does not fit.
        ProtocolMismatchError: written by another version of remoteexec.
        PythonMismatchError: written by another Python minor version, or another major version of cloudpickle.
    """
    header, mac = _parse(data)
    agree(header)
    if (header.kind, header.subject) != (kind, subject):
        raise HeaderError(f"{header.kind} {header.subject!r} stands where {kind} {subject!r} should be")
    if not hmac.compare_digest(mac, _digest(header, memoryview(data)[BLOCK:], key)):
        raise HeaderError(f"{kind} {subject!r}: the digest does not fit, the file is damaged or not of this session")
    return header


def renamed(data: bytes, key: bytes, kind: str, subject: str, other: str) -> bytes:
    """The same file, about another subject; the interpreter that made it may be another than this.

    Raises:
        HeaderError: see `check`.
    """
    header, mac = _parse(data)
    body = memoryview(data)[BLOCK:]
    if (header.kind, header.subject) != (kind, subject) or not hmac.compare_digest(mac, _digest(header, body, key)):
        raise HeaderError(f"{kind} {subject!r}: damaged, or not of this session")
    return seal(dataclasses.replace(header, subject=other), body, key) + body


def agree(header: Header) -> None:
    """Refuse what this interpreter must not unpickle.

    Raises:
        ProtocolMismatchError, PythonMismatchError: name both versions.
    """
    if header.protocol != PROTOCOL:
        raise ProtocolMismatchError(f"{header.kind} speaks protocol {header.protocol}, this end speaks {PROTOCOL}")
    if header.python != PYTHON:
        raise PythonMismatchError(
            f"{header.kind} {header.subject!r} was pickled by Python {header.python}, this is Python {PYTHON}: "
            "loading it could crash the interpreter"
        )
    import cloudpickle

    if header.cloudpickle.split(".")[0] != cloudpickle.__version__.split(".")[0]:
        raise PythonMismatchError(
            f"{header.kind} {header.subject!r} was pickled by cloudpickle {header.cloudpickle}, "
            f"here is {cloudpickle.__version__}: the major versions have to agree"
        )


def _parse(data: bytes | memoryview) -> tuple[Header, str]:
    try:
        plain = json.loads(bytes(data[:BLOCK]))
        mac = plain.pop("mac")
        header = Header(**plain)
        fits = all(type(getattr(header, f.name)).__name__ == f.type for f in dataclasses.fields(Header))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise HeaderError(f"not a file of remoteexec: it starts with {bytes(data[:40])!r}") from exc
    # written in no other way: the digest covers what the block says, not how it is spelled and padded
    if not fits or not isinstance(mac, str) or _block(header, mac) != data[:BLOCK]:
        raise HeaderError(f"not a header of remoteexec: {plain!r:.200}")
    return header, mac


def _dumps(plain: dict[str, object]) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _block(header: Header, mac: str) -> bytes:
    return _dumps({**dataclasses.asdict(header), "mac": mac}).ljust(BLOCK)


def _digest(header: Header, body: bytes | memoryview, key: bytes) -> str:
    mac = hmac.new(key, _dumps(dataclasses.asdict(header)), hashlib.sha256)
    mac.update(body)
    return mac.hexdigest()
