"""Tasks that end as others do, as a pilot sees them: it passes their ends on where nobody else is there to do so."""

from __future__ import annotations

import time

from .. import runner
from ..store import links
from ..store.outcomes import Outcomes
from ..store.session import Session, StoreError
from ..wire.messages import TaskKey

_AGAIN_S = 5.0
"""Before a link that cannot be followed is tried again."""


class Linked:
    """Links of a session that lead to no end yet. Costs nothing before the first."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._outcomes: Outcomes | None = None  # those of this pilot's own workers, too
        self._keys: set[TaskKey] = set()
        self._not_before = 0.0

    @property
    def due_at(self) -> float | None:
        """When `settle` may find something, by the monotonic clock; None: there is no link."""
        if not self._keys or self._outcomes is None:
            return None
        return max(self._outcomes.due_at, self._not_before)

    def add(self, key: TaskKey) -> None:
        """A task has become another's."""
        if self._outcomes is None:
            self._outcomes = Outcomes(self._session)
        self._keys.add(key)
        self._outcomes.hurry()

    def settle(self) -> None:
        """Publish the ends of those whose others have ended."""
        assert self._outcomes is not None
        try:
            self._outcomes.look()
            for key in list(self._keys):
                if not self._outcomes.ended(key):
                    end = links.followed(self._session, key, self._outcomes)
                    if not self._outcomes.ended(end):
                        continue
                    links.pass_on(self._session, self._outcomes, end, key)
                self._keys.discard(key)
        except (OSError, ValueError, StoreError) as exc:
            self._not_before = time.monotonic() + _AGAIN_S
            runner._print(f"the end of a task whose function has returned a future: {exc}")
