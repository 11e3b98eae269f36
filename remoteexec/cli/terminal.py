"""What is said and asked on the terminal; the library itself never asks."""

from __future__ import annotations

import functools
import getpass
import sys
from collections.abc import Callable

import typer

from ..config import ClusterConfig

__all__ = ["confirm", "interactive", "password", "say"]


def interactive() -> bool:
    """Somebody sits there who can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def say(text: str) -> None:
    """Print a line."""
    typer.echo(text)


def confirm(question: str) -> bool:
    """Ask; no is the default."""
    return typer.confirm(question, default=False)


def password(config: ClusterConfig) -> Callable[[], str | None] | None:
    """What asks for the password should the server want one, once in all; None where nobody could answer."""
    if not interactive():
        return None

    @functools.cache
    def ask() -> str | None:
        at = f"{config.user}@{config.host}" if config.user else config.host
        return getpass.getpass(f"Password of {at} (empty to give up): ") or None

    return ask
