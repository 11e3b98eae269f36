"""Pilots as users ask for them: `block_allocation`, `max_workers`, `init_function`, `idle_time_s`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remoteexec_server.wire.pilots import Pilots, limited
from remoteexec_server.wire.resources import Resources

from .. import errors

__all__ = ["PilotWish"]


@dataclass(frozen=True)
class PilotWish:
    """What an executor's constructor was told.

    Attributes:
        block_allocation: run tasks in pilots.
        max_workers: pilots at the same time; None: as many as `max_cores` allows.
        max_cores: CPUs of all pilots together; None: no limit.
        init_function: runs once in each worker; the dictionary it returns fills parameters of later calls.
        idle_time_s: seconds without anything to do after which a pilot ends.
    """

    block_allocation: bool = False
    max_workers: int | None = None
    init_function: Callable[..., Mapping[str, Any] | None] | None = None
    idle_time_s: float = 60.0
    max_cores: int | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: values that exclude each other; names parameter and rule.
        """
        if self.init_function is not None and not self.block_allocation:
            raise ValueError("init_function needs block_allocation=True: only kept workers are initialised")
        if self.block_allocation and self.max_workers is None and self.max_cores is None:
            raise ValueError("block_allocation=True needs max_workers, or max_cores: how many jobs may host workers")

    def read(self, resources: Resources) -> Pilots | None:
        """The same for the service; None: every task is a job.

        Args:
            resources: the executor's.

        Raises:
            ValueError: `init_function` cannot be used with these.
            errors.CallNotPicklable: `init_function` cannot travel.
        """
        count = self.max_workers or self.max_cores
        if not self.block_allocation or count is None:
            return None
        if self.init_function is not None and resources.cores > 1:
            raise ValueError(
                f"init_function with cores={resources.cores}: on clusters MPI ranks are started for each task, and "
                "kept nowhere; have the function itself load what its ranks need"
            )
        init = "" if self.init_function is None else base64.b64encode(_pickled(self.init_function)).decode()
        return limited(Pilots(count, resources, idle_time_s=float(self.idle_time_s), init=init), self.max_cores)


def _pickled(function: Callable[[], Any]) -> bytes:
    from remoteexec_server.wire import payload  # late: few executors have such a function

    try:
        return payload.dumps(function, in_band=True).data
    except Exception as exc:  # whatever the user's own pickling raises
        raise errors.CallNotPicklable(f"init_function {function!r} cannot be pickled: {exc}") from exc
