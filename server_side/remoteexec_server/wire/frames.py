"""Frames on a byte stream: messages and the bytes behind them, multiplexed.

    stream  = whatever a login shell prints, sentinel line, frame, frame, ...
    frame   = total length (4 bytes, big endian) | length of the JSON (4) | JSON or slice
    JSON    = a message of `messages`; length 0: a slice of the bytes behind the last message

A message with bytes behind it (`Submit`, `OutcomeReady`) is followed by slices of at most `SLICE` bytes until its
`size` is reached. Nothing else comes between, so there is one such transfer at a time in each direction.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Protocol

from .messages import Message, MessageError, OutcomeReady, Submit, from_json, to_json

SLICE = 256 * 1024
"""Bytes of one slice. Paramiko's sendall is quadratic in its argument; 32 to 256 KiB measured alike."""
_MOST = 256 * 1024 * 1024
_LENGTHS = struct.Struct(">II")


class FrameError(ConnectionError):
    """The stream broke off, or does not carry frames."""


class Reader(Protocol):
    """Anything bytes can be read from."""

    def __call__(self, n: int, /) -> bytes:
        """At most n bytes, at least one; b"" at the end."""


Messages = Iterator["tuple[Message, bytes]"]
"""Messages with the bytes behind them, as `decode` gives them."""


def tail_size(message: Message) -> int:
    """How many bytes follow a message."""
    return message.size if isinstance(message, (Submit, OutcomeReady)) else 0


def encode(message: Message, tail: bytes | memoryview = b"") -> Iterator[bytes]:
    """The frames of one message and its bytes, one by one."""
    if len(tail) != tail_size(message):
        raise MessageError(f"{type(message).__name__} announces {tail_size(message)} bytes, {len(tail)} were given")
    text = to_json(message).encode()
    yield _LENGTHS.pack(4 + len(text), len(text)) + text
    view = memoryview(tail)
    for start in range(0, len(view), SLICE):
        piece = view[start : start + SLICE]
        yield _LENGTHS.pack(4 + len(piece), 0) + bytes(piece)


def skip_to(sentinel: bytes, read: Reader, most: int = 1 << 20) -> bytes:
    """Read past whatever a login shell prints; returns the bytes behind the sentinel's line that came with it.

    The sentinel is a line of its own: a shell that prints the commands it runs prints it too, at the end of a line.

    Raises:
        FrameError: the stream ended, or `most` bytes came, without the sentinel; the message holds the last of them.
    """
    seen = b""
    mark = b"\n" + sentinel + b"\n"
    while mark not in seen:
        piece = read(65536)
        seen += piece
        if not piece or len(seen) > most:
            raise FrameError(seen[-2000:].decode(errors="replace").strip())
    return seen.split(mark, 1)[1]


def decode(read: Reader, first: bytes = b"") -> Messages:
    """Messages with their bytes, until the stream ends.

    Args:
        read: the stream.
        first: bytes of it that were read already.

    Raises:
        FrameError: it ends inside a frame or is not made of frames.
        MessageError: a frame holds no message.
    """
    take = _taker(read, first)
    while True:
        message, tail = _frame(take, allow_end=True)
        if message is None:
            if tail is None:
                return
            raise FrameError("a slice without a message before it")
        if tail:
            raise FrameError("a message and a slice in one frame")
        parsed = from_json(message)
        size, body = tail_size(parsed), bytearray()
        if size < 0:
            raise FrameError(f"{type(parsed).__name__} announces {size} bytes")
        while len(body) < size:
            message, tail = _frame(take)
            if message is not None or not tail:
                raise FrameError("a message where a slice should be")
            body += tail
        if len(body) > size:
            raise FrameError(f"{len(body)} bytes where {size} were announced")
        yield parsed, bytes(body)


def _frame(take: Callable[[int], bytes], allow_end: bool = False) -> tuple[bytes | None, bytes | None]:
    lengths = take(_LENGTHS.size)
    if not lengths and allow_end:
        return None, None
    if len(lengths) < _LENGTHS.size:
        raise FrameError("the stream ended inside a frame")
    total, text = _LENGTHS.unpack(lengths)
    if not 4 + text <= total <= _MOST:
        raise FrameError(f"not a frame: {lengths!r}")
    body = take(total - 4)
    if len(body) < total - 4:
        raise FrameError("the stream ended inside a frame")
    return (body[:text], body[text:]) if text else (None, body)


def _taker(read: Reader, first: bytes) -> Callable[[int], bytes]:
    """A function that returns exactly n bytes, fewer only at the end of the stream."""
    kept = bytearray(first)

    def take(n: int) -> bytes:
        while len(kept) < n:
            piece = read(max(65536, n - len(kept)))
            if not piece:
                break
            kept.extend(piece)
        taken = bytes(kept[:n])
        del kept[:n]
        return taken

    return take
