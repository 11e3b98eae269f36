"""All of remoteexec that runs on the cluster: wire format, store, batch service, runner, gateway.

Imports the standard library, cloudpickle, h5py and pysqa; never `remoteexec`. The client uses the same modules, so both
ends speak the same wire.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
