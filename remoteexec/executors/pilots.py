"""Pilots as users ask for them: `block_allocation`, `max_workers`, `init_function`, `idle_time_s`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remoteexec_server.store.crew import init_burst
from remoteexec_server.wire.pilots import Pilots
from remoteexec_server.wire.resources import Resources

from ..engine.calls import Pickler

__all__ = ["PilotWish"]


@dataclass(frozen=True)
class PilotWish:
    """What an executor's constructor was told.

    Attributes:
        block_allocation: run tasks in pilots.
        max_workers: pilots at the same time.
        init_function: runs once in each worker; the dictionary it returns fills parameters of later calls.
        idle_time_s: seconds without anything to do after which a pilot ends.
        workers_per_job: workers in each pilot, each with the executor's resources.

    Raises:
        ValueError: values that exclude each other, or numbers that cannot be; names parameter and rule.
    """

    block_allocation: bool = False
    max_workers: int | None = None
    init_function: Callable[[], Mapping[str, Any] | None] | None = None
    idle_time_s: float = 60.0
    workers_per_job: int = 1

    def __post_init__(self) -> None:
        if self.max_workers is not None and self.max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {self.max_workers}")
        if self.init_function is not None and not self.block_allocation:
            raise ValueError("init_function needs block_allocation=True: only kept workers are initialised")
        if self.block_allocation and self.max_workers is None:
            raise ValueError("block_allocation=True needs max_workers: how many jobs may host workers")
        if self.idle_time_s < 0:
            raise ValueError(f"idle_time_s must not be negative, but is {self.idle_time_s}")
        if self.workers_per_job <= 0:
            raise ValueError(f"workers_per_job must be greater than 0, not {self.workers_per_job}")

    def read(self, resources: Resources, client: str, session_key: bytes) -> Pilots | None:
        """The same for the service; None: every task is a job.

        Args:
            resources: the executor's.
            client: its name.

        Raises:
            errors.CallNotPicklable: `init_function` cannot travel.
        """
        if not self.block_allocation or self.max_workers is None:
            return None
        init = ""
        if self.init_function is not None:
            init = base64.b64encode(self._bundle(self.init_function, client, session_key)).decode()
        return Pilots(self.max_workers, resources, self.workers_per_job, float(self.idle_time_s), init)

    def _bundle(self, function: Callable[[], Any], client: str, session_key: bytes) -> bytes:
        from remoteexec_server.store import hdf5  # late: h5py takes as long to import as all else

        call = Pickler(self).pickle(function, (), {}, Resources())
        return hdf5.write_bundle(init_burst(client), [call.function], [hdf5.Call(0, call.arguments)], session_key)
