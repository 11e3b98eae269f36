"""Bytes between the ranks of a job, through MPI: the call from rank 0 to all, the results back to it.

One rank reads the store for all of them. What comes through MPI is unpickled, and MPI's own connections between nodes
prove nothing, so each parcel has a digest under the session's key (HMAC-SHA256), which a rank reads from the store: it
is checked before anything of the parcel is looked into. Nothing of ours uses mpi4py's pickling methods.

    parcel   length of the head (8 bytes) · head (JSON: blocks' sizes, formats and shapes; digest) · blocks

Blocks go in slices: counts of MPI before version 4 end at 2 GiB.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .wire.payload import Pickled

__all__ = ["Exchange", "NotOurs"]

SLICE = 1 << 30
_TAG = 1


class NotOurs(Exception):
    """What came through MPI was not sent by a rank of this task."""


class Exchange:
    """One task's ranks.

    Args:
        comm: a communicator that nobody else uses.
        mpi: the module `mpi4py.MPI`.
        key: the session's.
        task: what the exchange is about; a parcel of another one is refused.
    """

    def __init__(self, comm: Any, mpi: Any, key: bytes, task: str) -> None:
        self._comm, self._byte, self._key, self._task = comm, mpi.BYTE, key, task
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def share(self, parts: Sequence[Pickled] | None) -> list[Pickled]:
        """Pass on what rank 0 gives to all, who get it.

        Raises:
            NotOurs: it came from somebody else.
        """

        def step(view: memoryview) -> None:
            self._comm.Bcast([view, self._byte], root=0)

        if parts is not None:
            self._send(parts, "call", step)
            return list(parts)
        return self._receive("call", step)

    def collect(self, part: Pickled) -> list[Pickled] | None:
        """Give rank 0 what each rank has: it gets all, by rank.

        Raises:
            NotOurs: see `share`.
        """
        if self.rank:
            self._send([part], f"result {self.rank}", lambda view: self._comm.Send([view, self._byte], 0, _TAG))
            return None
        found = [part]
        for rank in range(1, self.size):

            def step(view: memoryview, source: int = rank) -> None:
                self._comm.Recv([view, self._byte], source, _TAG)

            found += self._receive(f"result {rank}", step)
        return found

    def _send(self, parts: Sequence[Pickled], what: str, step: Callable[[memoryview], None]) -> None:
        views = [view for part in parts for view in (memoryview(part.data), *part.buffers)]
        flat = [view.cast("B") for view in views]
        plain = {
            "parts": [len(part.buffers) for part in parts],
            "blocks": [(view.nbytes, view.format, view.shape) for view in views],
        }
        head = json.dumps({**plain, "mac": self._digest(what, json.dumps(plain), flat)}).encode()
        step(memoryview(len(head).to_bytes(8, "big")))
        step(memoryview(head))
        for view in flat:
            for piece in _slices(view):
                step(piece)

    def _receive(self, what: str, step: Callable[[memoryview], None]) -> list[Pickled]:
        length = bytearray(8)
        step(memoryview(length))
        data = bytearray(int.from_bytes(length, "big"))
        step(memoryview(data))
        try:
            plain = json.loads(data)
            mac = plain.pop("mac")
            blocks = [bytearray(size) for size, _, _ in plain["blocks"]]
        except (ValueError, TypeError, KeyError, AttributeError, MemoryError) as exc:
            raise NotOurs(f"{what}: not a parcel of ours") from exc
        for block in blocks:
            for piece in _slices(memoryview(block)):
                step(piece)
        if not hmac.compare_digest(mac, self._digest(what, json.dumps(plain), blocks)):
            raise NotOurs(f"{what}: its digest does not fit; it is damaged, or was not sent by a rank of this task")
        views = iter([_shaped(block, *form) for block, (_, *form) in zip(blocks, plain["blocks"], strict=True)])
        return [
            Pickled(next(views).tobytes(), tuple(next(views) for _ in range(buffers))) for buffers in plain["parts"]
        ]

    def _digest(self, what: str, head: str, blocks: Sequence[memoryview | bytearray]) -> str:
        mac = hmac.new(self._key, json.dumps([self._task, what, self.size, head]).encode(), hashlib.sha256)
        for block in blocks:
            mac.update(block)
        return mac.hexdigest()


def _slices(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), SLICE):
        yield view[start : start + SLICE]


def _shaped(block: bytearray, form: str, shape: Sequence[int]) -> memoryview:
    """The bytes as what they were: the store shows arrays of numbers as such to other tools."""
    view = memoryview(block)
    try:
        return view.cast(form, tuple(shape))  # type: ignore[call-overload,no-any-return]
    except (ValueError, TypeError):  # a format that only numpy knows
        return view
