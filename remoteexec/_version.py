"""The version, read by both packages' users from here."""

from __future__ import annotations

from remoteexec_server import __version__

__all__ = ["__version__"]
