"""Two ends of a socket show each other that they know one secret, before either reads anything else.

accepted ─▶ connected   nonce A (32 bytes)
connected ─▶ accepted   nonce B, HMAC-SHA256(secret, "connected" | A | B)
accepted ─▶ connected   HMAC-SHA256(secret, "accepted" | B | A)
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket

_SIZE = 32


class NotOurs(Exception):
    """The other end does not know the secret."""


def accepted(sock: socket.socket, secret: bytes) -> None:
    """As the end that accepted the connection.

    Raises:
        NotOurs: nothing else was read.
        OSError: the connection broke, or its timeout ran out.
    """
    mine = os.urandom(_SIZE)
    sock.sendall(mine)
    theirs, proof = _read(sock), _read(sock)
    if not hmac.compare_digest(proof, _proof(secret, b"connected", mine, theirs)):
        raise NotOurs("who connected does not know the secret")
    sock.sendall(_proof(secret, b"accepted", theirs, mine))


def connected(sock: socket.socket, secret: bytes) -> None:
    """As the end that connected. See `accepted`."""
    theirs, mine = _read(sock), os.urandom(_SIZE)
    sock.sendall(mine + _proof(secret, b"connected", theirs, mine))
    if not hmac.compare_digest(_read(sock), _proof(secret, b"accepted", mine, theirs)):
        raise NotOurs("who listens does not know the secret")


def _proof(secret: bytes, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.new(secret, role + first + second, hashlib.sha256).digest()


def _read(sock: socket.socket) -> bytes:
    data = b""
    while len(data) < _SIZE:
        piece = sock.recv(_SIZE - len(data))
        if not piece:
            raise ConnectionResetError("the other end is gone")
        data += piece
    return data
