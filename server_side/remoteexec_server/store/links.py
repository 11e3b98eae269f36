"""Tasks that have become another's: their function has returned the future of a task that it had submitted.

    outcomes/<task>.link   JSON {"to": task}: as that one ends, so does this one

Nobody has to be there when the other ends: whoever reads an outcome follows the link. A service that sees both passes
the end on, sealed anew under the first one's name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container
from pathlib import Path

from ..wire import header
from ..wire.names import TaskKey
from ..wire.records import Loss
from .outcomes import Outcomes
from .session import Session, StoreError, checked, publish

_LONGEST = 100_000
"""Links in a row, more than which there are only if they lead in a circle."""


def link_file(session: Session, key: TaskKey) -> Path:
    """Whose end is the task's."""
    return session.outcomes / f"{checked(key)}.link"


def publish_link(session: Session, key: TaskKey, to: TaskKey) -> None:
    """From now on the task ends as that other one does."""
    publish(link_file(session, key), json.dumps({"to": to}).encode())


def is_linked(session: Session, key: TaskKey) -> bool:
    """Whether the task ends as another does."""
    return link_file(session, key).name in os.listdir(session.outcomes)


def read_link(session: Session, key: TaskKey) -> TaskKey:
    """Whose end is the task's.

    Raises:
        OSError: it cannot be read.
        StoreError: the file is damaged.
    """
    try:
        return TaskKey(checked(json.loads(link_file(session, key).read_bytes())["to"]))
    except (ValueError, KeyError, TypeError, StoreError) as exc:
        raise StoreError(f"{link_file(session, key)} is no link: {exc}") from exc


def followed(session: Session, key: TaskKey, names: Container[str]) -> TaskKey:
    """The task at the end of all links, which has an end of its own or may get one.

    Args:
        names: of what is known of tasks' ends: `Outcomes`, or the files among them.

    Raises:
        OSError: a link cannot be read.
        StoreError: one is damaged, or they lead in a circle.
    """
    for _ in range(_LONGEST):
        if has_end(key, names) or f"{key}.link" not in names:
            return key
        key = read_link(session, key)
    raise StoreError(f"the links from task {key} lead in a circle")


def has_end(key: TaskKey, names: Container[str]) -> bool:
    """Whether a task has an outcome or a loss of its own."""
    return f"{key}.h5" in names or f"{key}.lost" in names


def pass_on(session: Session, outcomes: Outcomes, child: TaskKey, key: TaskKey) -> str:
    """Publish the end of one task, which is among the outcomes, as that of another. Returns the file's name.

    A child whose input failed ends as the input did: whoever waits for the other task knows nothing of the inputs.

    Raises:
        OSError: the store cannot be read or written.
        ValueError, StoreError: it holds something else than what we write.
    """
    origin = followed(session, child, outcomes)
    for _ in range(_LONGEST):
        if outcomes.has(origin, "h5"):
            return _copy(session, outcomes, origin, key)
        loss = outcomes.loss(origin)
        if loss.reason != "upstream" or loss.upstream is None:
            break
        cause = followed(session, loss.upstream, outcomes)
        if not outcomes.ended(cause):
            break
        origin = cause
    session.publish_loss(key, loss)
    return f"{key}.lost"


def _copy(session: Session, outcomes: Outcomes, origin: TaskKey, key: TaskKey) -> str:
    data = outcomes.outcome(origin)
    try:
        session.publish_outcome(key, header.renamed(data, session.key, "outcome", origin, key))
    except header.HeaderError as exc:
        loss = Loss("store", f"the outcome of task {origin}, whose future this one returned, cannot be used: {exc}")
        session.publish_loss(key, loss)
        return f"{key}.lost"
    return f"{key}.h5"
