"""What ranks tell each other, over a communicator of this process: each send is received in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from remoteexec_server import rank_exchange
from remoteexec_server.rank_exchange import Exchange, NotOurs
from remoteexec_server.wire import payload

KEY = bytes(32)
MPI = SimpleNamespace(BYTE="byte")


class Wire:
    """As a communicator of two, seen by one of them."""

    def __init__(self, rank: int, sent: list[bytes]) -> None:
        self._rank, self.sent = rank, sent

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return 2

    def Send(self, message: Any, dest: int, tag: int) -> None:
        self.sent.append(bytes(message[0]))

    def Recv(self, message: Any, source: int, tag: int) -> None:
        message[0][:] = self.sent.pop(0)

    def Bcast(self, message: Any, root: int) -> None:
        if self._rank == root:
            self.sent.append(bytes(message[0]))
        else:
            message[0][:] = self.sent.pop(0)


def exchange(rank: int, sent: list[bytes], key: bytes = KEY, task: str = "t1") -> Exchange:
    return Exchange(Wire(rank, sent), MPI, key, task)


def test_what_rank_0_has_reaches_the_others_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_exchange, "SLICE", 1000)
    sent: list[bytes] = []
    array = np.arange(1200.0).reshape(2, 600)
    given = [payload.dumps({"a": array}), payload.dumps("text")]

    assert exchange(0, sent).share(given) == given
    assert max(map(len, sent)) <= 1000
    one, two = exchange(1, sent).share(None)

    assert (payload.loads(one.data, one.buffers)["a"] == array).all()
    assert [(view.format, view.shape) for view in one.buffers] == [("d", (2, 600))]
    assert payload.loads(two.data, two.buffers) == "text"
    assert sent == []


def test_results_come_to_rank_0_in_order() -> None:
    sent: list[bytes] = []
    one, two = payload.dumps("one"), payload.dumps(np.ones(1000, np.complex128))

    assert exchange(1, sent).collect(two) is None
    found = exchange(0, sent).collect(one)

    assert found is not None
    assert [payload.loads(each.data, each.buffers) is not None for each in found] == [True, True]
    assert found[0] is one
    assert found[1].data == two.data


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sent: sent.__setitem__(2, b"x" + sent[2][1:]),
        lambda sent: sent.__setitem__(1, sent[1].replace(b"parts", b"party")),
        lambda sent: sent.__setitem__(1, b"[" * len(sent[1])),
    ],
    ids=["data", "head", "no JSON"],
)
def test_what_was_changed_on_its_way_is_refused(spoil: Any) -> None:
    sent: list[bytes] = []
    exchange(0, sent).share([payload.dumps("text")])
    spoil(sent)

    with pytest.raises(NotOurs):
        exchange(1, sent).share(None)


@pytest.mark.parametrize("other", [{"key": bytes(31) + b"x"}, {"task": "t2"}])
def test_what_another_task_or_session_has_sent_is_refused(other: dict[str, Any]) -> None:
    sent: list[bytes] = []
    exchange(0, sent, **other).share([payload.dumps("text")])

    with pytest.raises(NotOurs):
        exchange(1, sent).share(None)
