"""A plugin for pytest: inside an allocation, SingleNodeExecutor means SlurmJobExecutor.

So a suite of the one runs over the other, as it is written.
"""

from __future__ import annotations

import remoteexec
from remoteexec import SlurmJobExecutor

remoteexec.SingleNodeExecutor = SlurmJobExecutor  # type: ignore[misc]
