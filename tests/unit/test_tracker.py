"""The tracker decides without doing: every event in every state, cascades, reconnections, and random stories."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest

from remoteexec.engine import tracker
from remoteexec.engine.tracker import (
    FINAL,
    TRANSITIONS,
    Action,
    Added,
    CancelAsked,
    Due,
    Ended,
    Fail,
    FailLike,
    IllegalEvent,
    InputFailed,
    InputReady,
    Limits,
    Linked,
    Record,
    Release,
    Send,
    SendCancel,
    SendWatch,
    ShowRunning,
    State,
    Tracker,
    TrackerEvent,
    Unlinked,
)
from remoteexec_server.wire.messages import Accepted, BurstId, Loss, Lost, Rejected, Started, TaskKey

A, B, C, D = (TaskKey(name) for name in "abcd")
ONE, TWO = BurstId("x-1"), BurstId("x-2")


def told(subject: Tracker, *events: TrackerEvent) -> list[Action]:
    """The actions that the last event led to."""
    actions: list[Action] = []
    for event in events:
        actions = subject.handle(event)
    return actions


def linked(**limits: int) -> Tracker:
    subject = Tracker("x", Limits(**limits))
    subject.handle(Linked())
    return subject


def states(subject: Tracker) -> dict[str, State]:
    return {key: subject.record(key).state for key in subject._records}


def lost(key: TaskKey, reason: str = "killed", upstream: TaskKey | None = None) -> Lost:
    return Lost(key, Loss(reason, "why", upstream=upstream))


STORIES: dict[State, Sequence[TrackerEvent]] = {
    State.HELD: [Added(A, awaits=True)],
    State.QUEUED: [Added(A)],
    State.SENT: [Added(A), Due()],
    State.SUBMITTED: [Added(A), Due(), Accepted(ONE, ("7",))],
    State.RUNNING: [Added(A), Due(), Accepted(ONE, ("7",)), Started(A, "7", "n1")],
    State.DONE: [Added(A), Due(), Accepted(ONE, ("7",)), Ended(A, True)],
    State.FAILED: [Added(A), Due(), Accepted(ONE, ("7",)), Ended(A, False)],
    State.CANCELLED: [Added(A), CancelAsked((A,))],
}
"""How a task comes into each state."""

OF_A_TASK: list[TrackerEvent] = [
    InputReady(A, 0, ()),
    InputFailed(A),
    Started(A, "7", "n1"),
    Ended(A, True),
    Ended(A, False),
    lost(A),
    CancelAsked((A,)),
]
_P, _S = (State.SENT, State.SUBMITTED, State.RUNNING), SendCancel((A,))
EXPECTED: dict[tuple[TrackerEvent, State], tuple[State, list[Action]]] = {
    (OF_A_TASK[0], State.HELD): (State.QUEUED, []),
    (OF_A_TASK[1], State.HELD): (State.FAILED, [Fail(A)]),
    **{(OF_A_TASK[2], state): (State.RUNNING, [ShowRunning(A)]) for state in _P},
    **{(OF_A_TASK[3], state): (State.DONE, []) for state in _P},
    **{(OF_A_TASK[4], state): (State.FAILED, [Fail(A)]) for state in _P},
    **{(OF_A_TASK[5], state): (State.FAILED, [Fail(A)]) for state in _P},
    **{(OF_A_TASK[6], state): (State.CANCELLED, []) for state in (State.HELD, State.QUEUED)},
    **{(OF_A_TASK[6], state): (State.CANCELLED, [_S]) for state in _P},
}
"""What each event does to a task, if it does not end in IllegalEvent; late answers do nothing."""


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", OF_A_TASK, ids=repr)
def test_an_event_does_what_the_table_says_or_changes_nothing(event: TrackerEvent, state: State) -> None:
    subject = linked()
    told(subject, *STORIES[state])
    before = copy.deepcopy(vars(subject))
    assert states(subject) == {A: state}

    if (event, state) in EXPECTED:
        after, actions = EXPECTED[event, state]
        assert (subject.handle(event), states(subject)) == (actions, {A: after})
        assert subject.open == (after not in FINAL)
        assert TRANSITIONS[type(event)][state] in (after, State.DONE)
    elif state in FINAL:
        assert (subject.handle(event), vars(subject)) == ([], before)
    else:
        with pytest.raises(IllegalEvent, match=f"{type(event).__name__} for task a, which is {state.value}"):
            subject.handle(event)
        assert vars(subject) == before


def test_every_row_of_the_table_is_tried_here() -> None:
    tried = {(type(event), state) for event, state in EXPECTED}
    elsewhere: set[Any] = {Due, Accepted, Rejected, tracker._InputEnded}
    rows = {(event, state) for event, row in TRANSITIONS.items() for state in row if event not in elsewhere}

    assert rows == tried


@pytest.mark.parametrize(
    "event",
    [
        InputReady(B, 0, ()),
        InputReady(A, 0, (B,)),
        InputFailed(B),
        Started(B, "7", "n1"),
        Ended(B, True),
        lost(B),
        CancelAsked((A, B)),
        Rejected(ONE, (A, B), "SubmitRejected", "no"),
        Accepted(ONE, ("7", "8")),
        Accepted(ONE, ()),
        Added(A),
        Added(C, upstream=(B,)),
    ],
    ids=repr,
)
def test_an_event_about_what_is_not_there_changes_nothing(event: TrackerEvent) -> None:
    subject = linked()
    told(subject, Added(A), Due())
    before = copy.deepcopy(vars(subject))

    with pytest.raises(IllegalEvent):
        subject.handle(event)

    assert vars(subject) == before


@pytest.mark.parametrize("state", [State.HELD, State.QUEUED])
def test_the_scheduler_cannot_reject_what_was_never_sent(state: State) -> None:
    subject = linked()
    told(subject, Added(B), Due(), *STORIES[state])
    before = copy.deepcopy(vars(subject))

    with pytest.raises(IllegalEvent):
        subject.handle(Rejected(ONE, (B, A), "SubmitRejected", "no"))

    assert vars(subject) == before


# ---- bursts ----


def test_what_was_gathered_becomes_one_burst_in_order() -> None:
    subject = linked()

    assert told(subject, Added(A), Added(B, upstream=(A,)), Added(C), Due()) == [Send(ONE, (A, B, C))]
    assert (subject.gathering, subject.unsent, subject.open) == (False, 3, 3)
    assert told(subject, Added(D), Due()) == [Send(TWO, (D,))]
    assert told(subject, Due()) == []
    assert told(subject, Accepted(ONE, ("7_0", "7_1", "8"))) == [Release(ONE)]
    assert (subject.unsent, subject.open) == (1, 4)
    assert [subject.record(key) for key in (B, D)] == [
        Record(B, State.SUBMITTED, 0, (A,), 0, "7_1"),
        Record(D, State.SENT, 0, (), 0, ""),
    ]


@pytest.mark.parametrize(
    ("limits", "sizes", "bursts"),
    [
        ({"tasks": 2, "size": 100}, [1, 1, 1, 1, 1], [2, 2, 1]),
        ({"tasks": 2, "size": 100}, [1, 1], [2]),
        ({"tasks": 9, "size": 10}, [5, 5, 5], [2, 1]),
        ({"tasks": 9, "size": 10}, [5, 6, 4, 1], [1, 2, 1]),
        ({"tasks": 9, "size": 10}, [11, 11, 1], [1, 1, 1]),
        ({"tasks": 9, "size": 10}, [11], [1]),
        ({"tasks": 1, "size": 1}, [0, 0], [1, 1]),
    ],
)
def test_a_burst_is_cut_at_its_limits(limits: dict[str, int], sizes: list[int], bursts: list[int]) -> None:
    subject = linked(**limits)
    keys = [TaskKey(str(n)) for n in range(len(sizes))]
    for key, size in zip(keys, sizes, strict=True):
        subject.handle(Added(key, size))

    sent = [action for action in subject.handle(Due()) if isinstance(action, Send)]

    assert [len(send.keys) for send in sent] == bursts
    assert [key for send in sent for key in send.keys] == keys
    assert [send.burst for send in sent] == [f"x-{n}" for n in range(1, len(bursts) + 1)]


def test_a_cancelled_task_is_in_no_burst() -> None:
    subject = linked()

    assert told(subject, Added(A), Added(B), CancelAsked((A,)), Due()) == [Send(ONE, (B,))]
    assert told(subject, Added(C), CancelAsked((C,)), Due()) == []


def test_answers_out_of_order_end_where_answers_in_order_do() -> None:
    subject = linked()
    told(subject, Added(A), Added(B), Added(C), Due())

    assert told(subject, Started(A, "7_0", "n1")) == [ShowRunning(A)]
    assert told(subject, Ended(B, True)) == []
    assert told(subject, CancelAsked((C,))) == [SendCancel((C,))]
    assert told(subject, Accepted(ONE, ("7_0", "7_1", "7_2"))) == [Release(ONE)]
    assert states(subject) == {A: State.RUNNING, B: State.DONE, C: State.CANCELLED}
    assert told(subject, Accepted(ONE, ("7_0", "7_1", "7_2"))) == []


def test_a_burst_rejected_in_part_is_still_to_be_accepted() -> None:
    subject = linked()
    told(subject, Added(A), Added(B), Due())

    assert told(subject, Rejected(ONE, (A,), "SubmitRejected", "no")) == [Fail(A)]
    assert told(subject, Accepted(ONE, ("", "7"))) == [Release(ONE)]
    assert states(subject) == {A: State.FAILED, B: State.SUBMITTED}


def test_a_burst_rejected_as_a_whole_is_over() -> None:
    subject = linked()
    told(subject, Added(A), Added(B, upstream=(A,)), Due(), CancelAsked((B,)))

    assert told(subject, Rejected(ONE, (A, B), "StoreError", "full")) == [Fail(A), Release(ONE)]
    assert told(subject, Rejected(ONE, (A, B), "StoreError", "full")) == []
    assert (subject.open, subject.unsent, told(subject, Linked())) == (0, 0, [])


# ---- inputs ----


def test_a_held_task_holds_what_takes_its_result_however_deep() -> None:
    subject = linked()
    told(subject, Added(A, awaits=True), Added(B, upstream=(A,)), Added(C, upstream=(B, A)), Added(D))

    assert told(subject, Due()) == [Send(ONE, (D,))]
    assert (states(subject)[C], subject.unsent, subject.open, subject.held) == (State.HELD, 1, 4, 3)
    assert told(subject, InputReady(A, 5, ()), Due()) == [Send(TWO, (A, B, C))]
    assert subject.record(A).size == 5


def test_inputs_are_sent_before_what_needs_them_though_it_was_held_longer() -> None:
    subject = linked()
    told(subject, Added(A, awaits=True), Added(B, awaits=True), Added(C, upstream=(A, B)), Added(D, upstream=(C,)))

    assert told(subject, InputReady(B, 0, ()), InputReady(A, 0, ()), Due()) == [Send(ONE, (B, A, C, D))]


def test_an_input_ready_does_not_free_a_task_that_another_still_holds() -> None:
    subject = linked()
    told(subject, Added(A, awaits=True), Added(B, upstream=(A,), awaits=True))

    assert told(subject, InputReady(B, 0, (A,)), Due()) == []
    assert told(subject, InputReady(A, 0, ()), Due()) == [Send(ONE, (A, B))]


def test_a_foreign_result_may_hold_futures_of_this_executor() -> None:
    subject = linked()
    told(subject, Added(A, awaits=True), Added(B, awaits=True), Added(C), Added(D, awaits=True))

    assert told(subject, InputReady(B, 3, (A, C)), Due()) == [Send(ONE, (C,))]
    assert told(subject, InputReady(A, 0, ()), Due()) == [Send(TWO, (A, B))]
    assert told(subject, Ended(C, False)) == [Fail(C)]
    assert told(subject, InputReady(D, 0, (C,))) == [FailLike(D, C)]


@pytest.mark.parametrize("end", [Ended(A, False), lost(A), CancelAsked((A,)), Rejected(ONE, (A,), "X", "no")], ids=repr)
def test_what_takes_the_result_of_a_failed_task_fails_like_it_unless_it_was_sent(end: TrackerEvent) -> None:
    subject = linked()
    told(subject, Added(A), Added(B, upstream=(A,)), Due())
    told(subject, Added(C, upstream=(B, A)), Added(D, upstream=(C,), awaits=True))

    actions = told(subject, end)

    assert [action for action in actions if isinstance(action, FailLike)] == [FailLike(C, A), FailLike(D, C)]
    assert states(subject)[B] is State.SENT
    assert told(subject, Due(), InputReady(D, 0, ()), lost(B, "upstream", A)) == [FailLike(B, A)]
    assert subject.open == 0


def test_a_task_added_with_an_input_that_has_failed_fails_at_once() -> None:
    subject = linked()
    told(subject, Added(A), CancelAsked((A,)))

    assert told(subject, Added(B, upstream=(A,))) == [FailLike(B, A)]
    assert told(subject, Added(C, upstream=(B,), awaits=True)) == [FailLike(C, B)]
    assert told(subject, InputFailed(C), Due()) == []
    assert subject.open == 0


def test_tasks_cancelled_together_are_cancelled_all() -> None:
    subject = linked()
    told(subject, Added(A), Added(B, upstream=(A,)), Added(C, upstream=(B,)))

    assert told(subject, CancelAsked((A, B))) == [FailLike(C, B)]
    assert states(subject) == {A: State.CANCELLED, B: State.CANCELLED, C: State.FAILED}


def test_a_failed_input_from_elsewhere_fails_what_it_held() -> None:
    subject = linked()
    told(subject, Added(A, awaits=True), Added(B, upstream=(A,)), Added(C, upstream=(A, B)))

    assert told(subject, InputFailed(A)) == [Fail(A), FailLike(B, A), FailLike(C, A)]
    assert (subject.open, told(subject, Due())) == (0, [])


def test_a_loss_through_a_task_that_is_no_input_is_told_as_it_is() -> None:
    subject = linked()
    told(subject, Added(A), Added(B), Due())

    assert told(subject, lost(B, "upstream", A)) == [Fail(B)]


def test_an_input_named_twice_holds_once() -> None:
    subject = linked()
    told(subject, Added(A, awaits=True), Added(B, upstream=(A, A)))

    assert told(subject, InputReady(A, 0, ()), Due()) == [Send(ONE, (A, B))]


# ---- connections ----


def test_nothing_is_sent_before_the_first_connection() -> None:
    subject = Tracker("x")
    told(subject, Added(A))

    assert (subject.gathering, told(subject, Due())) == (False, [])
    assert (told(subject, Linked()), subject.gathering) == ([], True)
    assert told(subject, Due()) == [Send(ONE, (A,))]


def test_a_reconnection_says_again_what_may_have_got_lost() -> None:
    subject = linked()
    told(subject, Added(A), Added(B), Due(), Accepted(ONE, ("7_0", "7_1")), Started(A, "7_0", "n1"))
    told(subject, Added(C), Due(), Added(D), CancelAsked((B,)))

    assert told(subject, Unlinked("cut"), Due()) == []
    assert told(subject, CancelAsked((C,))) == []
    assert told(subject, Linked()) == [Send(TWO, (C,)), SendWatch((A,)), SendCancel((B, C))]
    assert told(subject, Due()) == [Send(BurstId("x-3"), (D,))]
    assert told(subject, lost(B, "cancelled"), Ended(C, True)) == []
    assert told(subject, Unlinked(), Linked()) == [
        Send(TWO, (C,)),
        Send(BurstId("x-3"), (D,)),
        SendWatch((A, D)),
    ]


def test_a_reconnection_with_nothing_to_wait_for_says_nothing() -> None:
    subject = linked()
    told(subject, Added(A), Due(), Accepted(ONE, ("7",)), Ended(A, True))

    assert told(subject, Unlinked(), Linked()) == []


def test_answers_told_twice_are_heard_once() -> None:
    subject = linked()
    told(subject, Added(A), Due(), Accepted(ONE, ("7",)), Started(A, "7", "n1"), Ended(A, True))
    before = copy.deepcopy(vars(subject))

    late: list[TrackerEvent] = [Accepted(ONE, ("7",)), Started(A, "7", "n1"), Ended(A, True), Ended(A, False), lost(A)]
    assert [subject.handle(event) for event in late] == [[]] * 5
    assert vars(subject) == before


# ---- random stories ----


class Story:
    """Feeds a tracker legal events in random order, and plays the service and the driver."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.tracker = Tracker("x", Limits(tasks=self.chance.randint(1, 7), size=self.chance.randint(1, 50)))
        self.upstream: dict[TaskKey, tuple[TaskKey, ...]] = {}
        self.awaiting: set[TaskKey] = set()
        self.linked = False
        self.bursts: dict[BurstId, tuple[TaskKey, ...]] = {}
        self.unanswered: set[BurstId] = set()
        self.placed: set[TaskKey] = set()
        self.ended: dict[TaskKey, str] = {}

    def tell(self, event: TrackerEvent) -> None:
        for action in self.tracker.handle(event):
            match action:
                case Send():
                    assert self.linked
                    if action.burst in self.bursts:
                        assert self.bursts[action.burst] == action.keys
                    else:
                        again = self.placed & set(action.keys)
                        assert not again, f"in two bursts: {again}"
                        assert not {self.ended.get(key) for key in action.keys} - {None}
                        for key in action.keys:
                            assert all(k in self.placed or k in action.keys for k in self.upstream[key])
                        self.bursts[action.burst] = action.keys
                        self.unanswered.add(action.burst)
                        self.placed |= set(action.keys)
                case Fail() | FailLike():
                    if isinstance(action, FailLike):
                        assert self.ended[action.upstream] in ("failed", "cancelled")
                        assert action.upstream in self.upstream[action.key]
                    self.end(action.key, "failed")
                case ShowRunning():
                    assert action.key not in self.ended
                case Release():
                    self.unanswered.remove(action.burst)
                case SendCancel() | SendWatch():
                    assert self.linked
                    assert set(action.keys) <= self.placed
        self.check()

    def end(self, key: TaskKey, how: str) -> None:
        assert key not in self.ended, f"{key} ends twice: {self.ended[key]}, {how}"
        self.ended[key] = how

    def check(self) -> None:
        assert self.tracker.open == len(self.upstream) - len(self.ended)
        queued = {key for key in self.upstream if self.tracker.record(key).state is State.QUEUED}
        held = {key for key in self.upstream if self.tracker.record(key).state is State.HELD}
        assert self.tracker.held == len(held)
        assert self.tracker.unsent == len(queued) + sum(len(self.bursts[burst]) for burst in self.unanswered)
        assert {key for key, how in self.ended.items()} == {
            key for key in self.upstream if self.tracker.record(key).state in FINAL
        }

    def step(self) -> None:
        chance, keys = self.chance, list(self.upstream)
        placed = [key for key in keys if key in self.placed]
        match chance.randrange(11):
            case 0 | 1 | 2:
                key = TaskKey(f"t{len(keys)}")
                upstream = tuple(chance.sample(keys, chance.randint(0, min(3, len(keys)))))
                awaits = chance.random() < 0.2
                self.upstream[key] = upstream
                if awaits:
                    self.awaiting.add(key)
                self.tell(Added(key, chance.randint(0, 20), upstream, awaits))
            case 3:
                self.tell(Due())
            case 4:
                self.linked = not self.linked
                self.tell(Linked() if self.linked else Unlinked("cut"))
            case 5 if self.awaiting:
                key = self.awaiting.pop()
                more = tuple(k for k in chance.sample(keys, chance.randint(0, min(2, len(keys)))) if self.older(k, key))
                if chance.random() < 0.3:
                    self.tell(InputFailed(key))
                else:
                    if key not in self.ended:
                        self.upstream[key] += tuple(k for k in more if k not in self.upstream[key])
                    self.tell(InputReady(key, 1, self.upstream[key]))
            case 6 if keys:
                self.cancel(chance.sample(keys, chance.randint(1, min(3, len(keys)))))
            case 7 if self.unanswered:
                burst = chance.choice(sorted(self.unanswered))
                if chance.random() < 0.8:
                    self.tell(Accepted(burst, tuple("7" for _ in self.bursts[burst])))
                else:
                    members = self.bursts[burst]
                    self.tell(Rejected(burst, members[: chance.randint(1, len(members))], "SubmitRejected", "no"))
            case 8 if placed:
                self.tell(Started(chance.choice(placed), "7", "n1"))
            case _ if placed:
                self.answer(chance.choice(placed))

    def older(self, key: TaskKey, than: TaskKey) -> bool:
        return int(key[1:]) < int(than[1:])

    def cancel(self, keys: Sequence[TaskKey]) -> None:
        for key in keys:  # the futures are cancelled before the tracker is told
            if key not in self.ended:
                self.end(key, "cancelled")
        self.tell(CancelAsked(tuple(keys)))

    def answer(self, key: TaskKey) -> None:
        how = self.chance.choice(["ok", "error", "lost", "upstream"])
        if how == "ok" and key not in self.ended:
            self.end(key, "done")
        if how in ("ok", "error"):
            self.tell(Ended(key, how == "ok"))
            return
        failed = [k for k in self.upstream[key] if self.ended.get(k) in ("failed", "cancelled")]
        if how == "upstream" and failed:
            self.tell(lost(key, "upstream", failed[0]))
        else:
            self.tell(lost(key))

    def finish(self) -> None:
        for key in sorted(self.awaiting):
            self.tell(InputReady(key, 1, self.upstream[key]))
        self.linked = True
        self.tell(Linked())
        self.tell(Due())
        for burst in sorted(self.unanswered):
            self.tell(Accepted(burst, tuple("7" for _ in self.bursts[burst])))
        for key in self.upstream:
            if key not in self.ended:
                assert key in self.placed
                self.end(key, "done")
                self.tell(Ended(key, True))


@pytest.mark.parametrize("seed", range(40))
def test_in_any_order_of_events_every_task_is_sent_once_at_most_and_ends_once(seed: int) -> None:
    story = Story(seed)
    for _ in range(300):
        story.step()
    story.finish()

    assert (story.tracker.open, story.tracker.unsent, set(story.ended)) == (0, 0, set(story.upstream))
    assert story.tracker._takers == {}
