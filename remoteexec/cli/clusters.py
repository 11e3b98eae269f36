"""`remoteexec config ...`: the clusters by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import ClusterConfig, config_path, load_cluster, load_clusters, remove_cluster, save_cluster
from ..config.model import SCHEDULERS, check_name, to_table
from ..errors import ConfigError, TransportError
from . import hostkeys, terminal

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Name clusters and say how to reach them.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="What you call the cluster.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing. Host keys are still not trusted unseen.")]
Fingerprint = Annotated[
    str | None, typer.Option(metavar="SHA256:...", help="Trust the host key with this fingerprint, and no other.")
]


@app.command("add-cluster")
def add_cluster(
    name: Name,
    host: Annotated[str | None, typer.Option(help="Login node: name, address, or a Host of ~/.ssh/config.")] = None,
    user: Annotated[str | None, typer.Option(help="Login name, if it differs from yours here.")] = None,
    port: Annotated[int | None, typer.Option(help="SSH port, if not 22.")] = None,
    identity_file: Annotated[str | None, typer.Option(help="Private key; no other is then offered.")] = None,
    known_hosts: Annotated[str | None, typer.Option(help="File of host keys; no other is then read.")] = None,
    root: Annotated[
        str | None, typer.Option(help="Our directory there; may begin with ~ or $SCRATCH.  [default: ~/.remoteexec]")
    ] = None,
    python: Annotated[str | None, typer.Option(help="Python there.  [default: ROOT/env/bin/python]")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="slurm, flux, pbs, torque, lsf, sge, moab, or local for no scheduler.  [default: slurm]"),
    ] = None,
    pysqa_config_directory: Annotated[
        str | None, typer.Option(help="The site's pysqa configuration there: queue.yaml and templates.")
    ] = None,
    login_shell: Annotated[
        bool | None, typer.Option("--login-shell/--no-login-shell", help="Start our processes from `bash -l`.")
    ] = None,
    yes: Yes = False,
    fingerprint: Fingerprint = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Log in before saving.")] = True,
) -> None:
    """Add a cluster, or change one: options that are not given stay as they are.

    Without --host, asks on the terminal. Shows the host key and asks before trusting it, logs in once, then saves.
    """
    given = {
        "host": host,
        "user": user,
        "port": port,
        "identity_file": _absolute(identity_file),
        "known_hosts": _absolute(known_hosts),
        "root": root,
        "python": python,
        "scheduler": scheduler,
        "pysqa_config_directory": pysqa_config_directory,
        "login_shell": login_shell,
    }
    old = load_clusters().get(check_name(name))
    if old is not None and not yes and not _may_change(old):
        raise typer.Exit(1)
    values = {} if old is None else {each.name: getattr(old, each.name) for each in dataclasses.fields(old)}
    values |= {key: value for key, value in given.items() if value is not None}
    if host is None and not yes and terminal.interactive():
        values |= _questions(values)
    if "host" not in values:
        raise ConfigError(f"Cluster {name!r} needs the name of its login node.\nGive it with `--host HOST`.")
    config = ClusterConfig(**{**values, "name": name})
    if test and not _tested(config, yes, fingerprint):
        raise typer.Exit(1)
    terminal.say(f"Saved {name!r} in {save_cluster(config)}.")
    terminal.say(f"Next: `remoteexec install {name}`, then `remoteexec check {name}`.")


@app.command("list")
def list_clusters() -> None:
    """List the clusters."""
    clusters = load_clusters()
    if not clusters:
        terminal.say(f"No clusters in {config_path()}. Add one: `remoteexec config add-cluster NAME --host HOST`.")
    width = max(map(len, clusters), default=0)
    for name, config in clusters.items():
        at = f"{config.user}@{config.host}" if config.user else config.host
        terminal.say(f"{name:<{width}}  {at}{f':{config.port}' if config.port else ''}  {config.scheduler}")


@app.command()
def show(name: Name) -> None:
    """Show a cluster's entry and the file it stands in."""
    import tomli_w

    config = load_cluster(name)
    terminal.say(f"# {config_path()}\n{tomli_w.dumps({name: to_table(config)}).rstrip()}")


@app.command("remove-cluster")
def remove(name: Name, yes: Yes = False) -> None:
    """Forget a cluster. Nothing is removed on the cluster itself, nor its host key here."""
    load_cluster_or_broken(name)
    if not yes:
        if not terminal.interactive():
            raise ConfigError(f"Nobody can be asked whether to remove {name!r}.\nRun it again with `--yes`.")
        if not terminal.confirm(f"Remove {name!r}?"):
            terminal.say("Nothing was changed.")
            raise typer.Exit(1)
    terminal.say(f"Removed {name!r} from {remove_cluster(name)}.")


@app.command()
def trust(name: Name, fingerprint: Fingerprint = None) -> None:
    """Show a cluster's host key, the one on file too if it has changed, and ask whether to trust it."""
    if not hostkeys.settle(load_cluster(name), fingerprint):
        raise typer.Exit(1)


def load_cluster_or_broken(name: str) -> None:
    """See that there is such an entry; one that is broken may be removed too.

    Raises:
        ConfigError: There is none.
    """
    try:
        load_cluster(name)
    except ConfigError as exc:
        if "has no cluster" in str(exc) or "not valid TOML" in str(exc):
            raise


def _may_change(old: ClusterConfig) -> bool:
    if not terminal.interactive():
        raise ConfigError(
            f"There is a cluster {old.name!r} already (host {old.host}).\nRun the command with `--yes` to change it."
        )
    if terminal.confirm(f"There is a cluster {old.name!r} already (host {old.host}). Change it?"):
        return True
    terminal.say("Nothing was changed.")
    return False


def _questions(values: dict[str, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "host": typer.prompt("Login node (name, address, or a Host of ~/.ssh/config)", default=values.get("host")),
        "user": typer.prompt("User there (empty: as in ~/.ssh/config)", default=values.get("user") or "") or None,
        "identity_file": _absolute(
            typer.prompt("Private key (empty: agent and usual files)", default=values.get("identity_file") or "")
            or None
        ),
        "root": typer.prompt("Our directory there", default=values.get("root") or "~/.remoteexec"),
        "scheduler": typer.prompt(f"Scheduler ({', '.join(SCHEDULERS)})", default=values.get("scheduler") or "slurm"),
    }
    return answers


def _tested(config: ClusterConfig, yes: bool, fingerprint: str | None) -> bool:
    """Host key and login; False if the user said no."""
    from ..ssh.fabric_link import FabricLink

    try:
        if not hostkeys.settle(config, fingerprint):
            return False
        link = FabricLink(config.ssh_settings(terminal.password(config)))
        try:
            link.connect()
        finally:
            link.close()
    except TransportError as exc:
        if yes or not terminal.interactive():
            exc.args = (f"{exc}\n{config.name!r} was not saved; `--no-test` saves it without logging in.",)
            raise
        terminal.say(str(exc))
        return terminal.confirm(f"Save {config.name!r} nevertheless?")
    terminal.say(f"Logged in to {config.host}.")
    return True


def _absolute(file: str | None) -> str | None:
    """A file of this machine is the same file from any directory."""
    return None if file is None else str(Path(file).expanduser().absolute())
