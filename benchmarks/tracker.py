"""What the tracker alone costs for each task, for few and for many: no thread, no file, no connection."""

from __future__ import annotations

import argparse
import time

from report import Row, finish

from remoteexec.engine.tracker import Added, Due, Ended, Linked, Send, Tracker
from remoteexec_server.wire.messages import Accepted, Started, TaskKey

FEW, MANY = 1_000, 100_000


def cost_s(tasks: int) -> float:
    """CPU seconds for each task, from submit to result: one burst after another as the limits cut them."""
    keys = [TaskKey(f"t{number}") for number in range(tasks)]
    tracker = Tracker("b")
    tracker.handle(Linked())
    began = time.thread_time()
    for key in keys:
        tracker.handle(Added(key, 100))
    for send in tracker.handle(Due()):
        assert isinstance(send, Send)
        tracker.handle(Accepted(send.burst, ("1_0",) * len(send.keys)))
    for key in keys:
        tracker.handle(Started(key, "1_0", "n1"))
        tracker.handle(Ended(key, True))
    ended = time.thread_time()
    assert (tracker.open, tracker.unsent) == (0, 0)
    return (ended - began) / tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="times that both are measured, in turn")
    repeat = parser.parse_args().repeat
    few, many = [], []
    for _ in range(repeat):
        few += [cost_s(FEW) for _ in range(20)]
        many.append(cost_s(MANY))
    # the least of each: whatever else runs on the machine only ever adds
    rows = [
        Row(f"a task of {FEW:,}", min(few) * 1e6, "µs"),
        Row(f"a task of {MANY:,}", min(many) * 1e6, "µs"),
        Row("ratio", min(many) / min(few), most=1.3),
    ]
    finish("The tracker alone", rows)


if __name__ == "__main__":
    main()
