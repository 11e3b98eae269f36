"""The command line: its commands, and how errors leave it."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from ..errors import RemoteExecError
from . import clusters, terminal
from .clusters import Name

__all__ = ["app", "main"]

app = typer.Typer(
    name="remoteexec",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run Python functions as jobs of a cluster. This command names, checks and installs clusters.",
)
app.add_typer(clusters.app, name="config")


def main() -> None:
    """Run the command of sys.argv; an error of ours is one message on stderr and exit code 1."""
    try:
        app()
    except RemoteExecError as exc:
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        typer.echo(f"Error: {exc}", err=True)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from .._version import __version__

        terminal.say(f"remoteexec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where errors come from.")] = False,
) -> None:
    """Options before the command."""


@app.command()
def check(
    name: Name,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For the task, which may wait in a queue.")] = 120.0,
    task: Annotated[bool, typer.Option("--task/--no-task", help="Run one task there and back.")] = True,
) -> None:
    """Try everything that has to work, one row each, with what to do about rows that fail."""
    from ..config import load_cluster
    from .check import Visit, print_rows, run_checks

    visit = Visit(load_cluster(name), timeout)
    try:
        good = print_rows(run_checks(visit.checks(task)))
    finally:
        visit.close()
    if not good:
        raise typer.Exit(1)


@app.command()
def install(
    name: Name,
    python: Annotated[
        str | None,
        typer.Option(
            help="Python there: one in an environment is used and completed, any other is what ROOT/env is made from."
        ),
    ] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", metavar="PKG", help="Further package for pip; may be repeated.")
    ] = None,
) -> None:
    """Bring the cluster side up under the root directory; what is there already is left alone."""
    import dataclasses

    from ..config import load_cluster, save_cluster
    from ..deploy import install as install_on
    from ..ssh.fabric_link import FabricLink

    config = load_cluster(name)
    link = FabricLink(config.ssh_settings(terminal.password(config)))
    try:
        link.connect()
        installed = install_on(link, config, python, with_ or (), terminal.say)
    finally:
        link.close()
    used = None if installed.own_environment else str(installed.python)
    if used != config.python:
        save_cluster(dataclasses.replace(config, python=used))
    terminal.say(
        f"{name}: remoteexec_server {installed.version} ({installed.digest}) in {installed.root}, "
        f"Python {installed.python_version} ({installed.python})."
    )
