"""Tasks that end as others do, whose futures they have returned: the service's part. See `store.links`."""

from __future__ import annotations

from ..store import links
from ..store.outcomes import Outcomes
from ..store.session import Session, StoreError
from ..wire.messages import TaskKey
from .book import Book
from .records import Task


class Followers:
    """Who follows whom, until the ends are passed on."""

    def __init__(self, session: Session, book: Book, outcomes: Outcomes) -> None:
        self._session, self._book, self._outcomes = session, book, outcomes
        self._of: dict[TaskKey, dict[TaskKey, None]] = {}

    def add(self, task: Task) -> TaskKey:
        """The task has a link. Returns whom it follows.

        Raises:
            OSError, StoreError: see `links.read_link`.
        """
        task.follows = links.read_link(self._session, task.entry.key)
        self._of.setdefault(task.follows, {})[task.entry.key] = None
        return task.follows

    def settle(self) -> list[str]:
        """Publish the ends of those that have ended under the names of their followers; the files' names."""
        tasks, names = self._book.tasks, []
        over = [child for child in self._of if child in tasks and tasks[child].over]
        for child in over:
            if not self._outcomes.ended(child):  # written a moment ago: the next look sees it
                continue
            for key in list(self._of[child]):
                if not tasks[key].over:
                    try:
                        names.append(links.pass_on(self._session, self._outcomes, child, key))
                    except (OSError, ValueError, StoreError) as exc:
                        self._book.say(
                            f"the end of task {child}, which is that of task {key}, cannot be passed on: {exc}"
                        )
                        continue
                del self._of[child][key]
            if not self._of[child]:
                del self._of[child]
        return names
