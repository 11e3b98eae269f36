"""One cluster's configuration: its fields, defaults and rules."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..ssh.base import SshSettings

__all__ = ["SCHEDULERS", "ClusterConfig", "check_name", "to_table"]

SCHEDULERS = ("slurm", "flux", "pbs", "torque", "lsf", "sge", "moab", "local")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ROOT = re.compile(r"(/|~(/|$)|\$[A-Za-z_][A-Za-z0-9_]*(/|$)|\$\{[A-Za-z_][A-Za-z0-9_]*\}(/|$))")


@dataclass(frozen=True)
class ClusterConfig:
    """One cluster. Building one checks it.

    Attributes:
        name: What the user calls it: letters, digits, `.`, `_`, `-`.
        host: Login node: a name, an address, or a `Host` of ~/.ssh/config.
        user: Login name; None is ~/.ssh/config's, else the local one.
        port: None is ~/.ssh/config's, else 22.
        identity_file: Private key; if given, no other key is offered.
        known_hosts: File of host keys; if given, no other file is read.
        root: Our directory on the cluster: absolute, or beginning with `~` or a variable such as `$SCRATCH`, which are
            replaced there.
        python: Interpreter on the cluster: a path like `root`, or a name on PATH; None is ROOT/env/bin/python.
        scheduler: "slurm", another of `SCHEDULERS`, or "local" for running jobs on the login node itself.
        login_shell: Start our processes from `bash -l`, for sites that set PATH or modules only there.
        poll_s: Seconds between two questions to the scheduler, at least; > 0.
        pysqa_config_directory: On the cluster, with the site's templates and limits: a path like `root`.
        resources: Defaults under each call's `resource_dict`.

    Raises:
        ConfigError: Names key, value and rule.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    root: str = "~/.remoteexec"
    python: str | None = None
    scheduler: str = "slurm"
    login_shell: bool = False
    poll_s: float = 30.0
    pysqa_config_directory: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "resources", dict(self.resources))
        for key, (rule, good) in _RULES.items():
            value = getattr(self, key)
            if not good(value):
                raise ConfigError(f"{key} = {value!r} of cluster {self.name!r}: must be {rule}.")
        _check_resources(self.name, self.resources)

    def ssh_settings(self, password: Callable[[], str | None] | None = None) -> SshSettings:
        """How to reach the login node; `password` is called if the server wants one."""
        return SshSettings(
            host=self.host,
            cluster=self.name,
            user=self.user,
            port=self.port,
            identity_file=self.identity_file,
            known_hosts=self.known_hosts,
            password=password,
        )


def check_name(name: str) -> str:
    """The name itself.

    Raises:
        ConfigError: It cannot be a cluster's name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a cluster: use letters, digits, '.', '_' and '-', and begin with a letter or digit."
        )
    return name


def to_table(config: ClusterConfig) -> dict[str, Any]:
    """The TOML table of a cluster: what differs from the defaults, in the order of the fields."""
    table = {}
    for each in dataclasses.fields(ClusterConfig):
        value = getattr(config, each.name)
        if each.name not in ("name", "resources") and value is not None and value != each.default:
            table[each.name] = value
    if config.resources:
        table["resources"] = dict(config.resources)
    return table


def _check_resources(name: str, resources: Mapping[str, Any]) -> None:
    if not resources:
        return
    from ..resources import ResourceError, read_resources

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown keys are for submission templates; each submit says so
        try:
            read_resources(resources)
        except (ResourceError, TypeError) as exc:
            raise ConfigError(f"resources of cluster {name!r}: {exc}.") from exc


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _CONTROL.search(value)


def _host(value: object) -> bool:
    # a dash in front would be an option wherever the name reaches a command line
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_:\[][^\s@/\x00-\x1f\x7f]*", value))


def _optional(good: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or good(value)


def _port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9


def _resources(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and key.isidentifier() for key in value)


_FILE = ("a path in quotes", _optional(_text))
_RULES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "host": ("the name or address of a login node, without user or port", _host),
    "user": ("a login name, without spaces", _optional(lambda v: isinstance(v, str) and bool(re.fullmatch(r"\S+", v)))),
    "port": ("a number from 1 to 65535", _optional(_port)),
    "identity_file": _FILE,
    "known_hosts": _FILE,
    "root": (
        "a path on the cluster that begins with '/', '~/' or a variable such as '$SCRATCH/'",
        lambda v: _text(v) and bool(_ROOT.match(str(v))) and ".." not in str(v).split("/"),
    ),
    "python": ("a path or the name of a program on the cluster", _optional(_text)),
    "scheduler": (f"one of {', '.join(SCHEDULERS)}", lambda v: v in SCHEDULERS),
    "login_shell": ("true or false", lambda v: isinstance(v, bool)),
    "poll_s": ("a number of seconds greater than 0", _seconds),
    "pysqa_config_directory": (
        "a path on the cluster that begins with '/', '~/' or a variable such as '$HOME/'",
        _optional(lambda v: _text(v) and bool(_ROOT.match(str(v)))),
    ),
    "resources": ("a table whose keys are resource names such as cores", _resources),
}
