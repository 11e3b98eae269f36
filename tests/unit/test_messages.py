"""Messages are the same after JSON, and nothing else passes for a message."""

from __future__ import annotations

import json
import typing

import pytest

from remoteexec_server.store.session import Claim
from remoteexec_server.wire import messages
from remoteexec_server.wire.messages import (
    Accepted,
    BurstId,
    Cancel,
    Close,
    Closed,
    Entry,
    Hello,
    JobScript,
    Known,
    Leave,
    Left,
    Loss,
    Lost,
    Message,
    MessageError,
    OutcomeReady,
    Ping,
    Pong,
    Problem,
    Refused,
    Rejected,
    Resize,
    Script,
    Started,
    Submit,
    TaskKey,
    Tell,
    Terms,
    Watch,
    Welcome,
    build,
    from_json,
    to_json,
)
from remoteexec_server.wire.resources import Resources

A, B = TaskKey("x-t1"), TaskKey("x-t2")
NASTY = "a'; echo b\n\x00\u2028 ü 😀 \ud800"

EVERY: list[Message] = [
    Hello(1, "3.11", "0.1.0", "c", "s-1", "00" * 32, Terms(1.5, 3.0, 20.0, 4, 8)),
    Hello(1, "3.11", "0.1.0", "c", "s-1", "00" * 32),
    Submit(
        BurstId("b-1"),
        (Entry(A), Entry(B, 1, (A,))),
        (Resources(), Resources(2, run_time_max_s=60, slurm_cmd_args=("--x",), extra={"a": 1, "b": "c", "d": True})),
        12,
    ),
    Cancel((A, B)),
    Watch(()),
    JobScript(3, Resources(partition="x"), 2),
    Tell(),
    Resize(3),
    Leave(),
    Left(2),
    Ping(),
    Close(True),
    Welcome("0.1.0", "3.11", "login", "/r", "slurm 22.05.8", "00" * 32),
    Refused("UnsafeRoot", NASTY),
    Known((Entry(A, name="f"), Entry(B)), ("7_0", "")),
    Accepted(BurstId("b-1"), ("7_0", "7_1", "")),
    Rejected(BurstId("b-1"), (A,), "SubmitRejected", "sbatch: error"),
    Started(A, "7_0", "n1"),
    OutcomeReady(A, 1 << 40),
    Lost(A, Loss("killed", "m", "7_0", "n1", None, 9, "tail", "/log")),
    Lost(A, Loss("upstream", "m", upstream=B)),
    Problem(NASTY),
    Script(3, NASTY, "SubmitRejected"),
    Pong(),
    Closed(),
]


def test_the_examples_are_of_every_kind() -> None:
    assert {type(message) for message in EVERY} == set(typing.get_args(Message))


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_a_message_is_the_same_after_json(message: Message) -> None:
    text = to_json(message)

    assert (from_json(text), from_json(text.encode()), "\n" in text) == (message, message, False)


def test_what_is_as_by_default_is_not_sent() -> None:
    assert json.loads(to_json(Lost(A, Loss("unknown", "m")))) == {
        "is": "Lost",
        "key": "x-t1",
        "loss": {"reason": "unknown", "message": "m"},
    }


def test_a_dataclass_of_the_store_carries_no_kind() -> None:
    claim = Claim("7", "n1", 1, 2.0)

    assert build(Claim, json.loads(to_json(claim))) == claim
    assert "is" not in json.loads(to_json(claim))


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "not a message"),
        ('{"is":"Job"}', "not a message"),
        ('{"is":["Ping"]}', "not a message"),
        ('{"is":"Cancel"}', "missing"),
        ('{"is":"Cancel","keys":"x"}', "Cancel.keys: expected a list"),
        ('{"is":"Cancel","keys":[1]}', "Cancel.keys: expected str, got 1"),
        ('{"is":"Close","discard":1}', "Close.discard: expected bool, got 1"),
        ('{"is":"OutcomeReady","key":"t","size":true}', "OutcomeReady.size: expected int, got True"),
        ('{"is":"OutcomeReady","key":"t","size":1.0}', "OutcomeReady.size: expected int, got 1.0"),
        ('{"is":"Ping","more":1}', r"Ping: unknown fields \['more'\]"),
        ('{"is":"Lost","key":"t","loss":[]}', "Loss: expected an object"),
        ('{"is":"Lost","key":"t","loss":{"reason":"x","message":"m","signal":"9"}}', "Loss.signal: '9' is none of"),
        ('{"is":"Submit","burst":"b","tasks":[{"key":"t","upstream":{}}],"resources":[],"size":0}', "Entry.upstream"),
        (
            '{"is":"Submit","burst":"b","tasks":[],"resources":[{"extra":{"a":[]}}],"size":0}',
            r"Resources.extra: \[\] is none of",
        ),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_message_is_refused_and_the_field_is_named(plain: str, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        from_json(plain)


def test_only_messages_have_a_kind_on_the_wire() -> None:
    assert set(messages._KINDS) == {kind.__name__ for kind in typing.get_args(Message)}
