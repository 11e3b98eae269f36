"""What has to be on the cluster, how it gets there, and how it is started."""

from __future__ import annotations

from .install import Installed, Look, install, look
from .launch import missing, start_argv
from .package import Package, package_files
from .probe import Facts, probe

__all__ = [
    "Facts",
    "Installed",
    "Look",
    "Package",
    "install",
    "look",
    "missing",
    "package_files",
    "probe",
    "start_argv",
]
