"""Bringing the cluster side up: the bootstrap script goes to a Python there, its answers come back as lines."""

from __future__ import annotations

import base64
import importlib.resources
import json
import secrets
import shlex
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from .. import errors
from ..config.model import ClusterConfig
from ..errors import ConfigError, RunnerError, RunnerMissing
from ..ssh.base import Link, Stream
from .launch import expression, missing, shell
from .package import package_files
from .requirements import for_cluster

__all__ = ["Installed", "Look", "install", "look"]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_KINDS = {name: getattr(errors, name) for name in ("UnsafeRoot", "RunnerMissing", "StoreError", "RunnerError")}


@dataclass(frozen=True)
class Installed:
    """The cluster side, ready.

    Attributes:
        python: Absolute path of the interpreter there.
        root: Absolute path.
        digest: Of our package.
        version: Of remoteexec.
        python_version: "3.11.2".
    """

    python: PurePosixPath
    root: PurePosixPath
    digest: str
    version: str
    python_version: str

    @property
    def own_environment(self) -> bool:
        """The interpreter is that of ROOT/env, which is the configuration's default."""
        return self.python == self.root / "env" / "bin" / "python"


@dataclass(frozen=True)
class Look:
    """What is on the cluster.

    Attributes:
        root: Absolute path.
        root_exists: An absent root is made at installation.
        root_problem: Why the root cannot be used, None if it can.
        python_path: Of the interpreter that would be used.
        python: Its version, "3.11.2"; None if it does not start.
        python_minor: "3.11".
        found: Distributions that we need and their versions, None where missing.
        unmet: pip's words for those that are missing or have a wrong version.
        package: Our package of this client's digest is there.
    """

    root: PurePosixPath
    root_exists: bool
    root_problem: str | None
    python_path: str
    python: str | None
    python_minor: str | None
    found: Mapping[str, str | None] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()
    package: bool = False


def install(
    link: Link,
    config: ClusterConfig,
    python: str | None = None,
    with_packages: Sequence[str] = (),
    report: Callable[[str], None] = lambda step: None,
) -> Installed:
    """Make what is missing: the root, an environment, its packages, our own package. Doing it twice changes nothing.

    Args:
        link: Connected.
        config: The cluster; `config.python` is used if `python` is None.
        python: Path or name of a Python there. One that has all we need, or lies in an environment, is used itself (and
            completed); any other is what ROOT/env is made from.
        with_packages: Further requirements, as pip takes them.
        report: Called with a line of text before each step that takes time.

    Raises:
        UnsafeRoot: The root is not the user's alone, or cannot be made.
        PythonMismatch: No Python of this client's minor version.
        RunnerMissing: No such Python, or its environment lacks packages and cannot be written to.
        RunnerError: pip or venv failed; holds their last lines.
        StoreError: Quota, disk full, permissions.
        ConfigError: A requirement that pip would take for an option.
        TransportError: The connection.
    """
    for requirement in with_packages:
        if not requirement.strip() or requirement.startswith("-"):
            raise ConfigError(f"--with {requirement!r}: must be a requirement such as 'ase' or 'numpy<2'.")
    package = package_files()
    chosen = config.python if python is None else python
    order = {
        **_order(config, chosen),
        "install": True,
        "with": list(with_packages),
        "package": base64.b64encode(zlib.compress(package.tar, 9)).decode(),
    }
    done = _converse(link, config, chosen, order, report)
    return Installed(
        PurePosixPath(done["python"]), PurePosixPath(done["root"]), package.digest, package.version, done["version"]
    )


def look(link: Link, config: ClusterConfig) -> Look:
    """See what is there, changing nothing. See `install` for what it raises."""
    order = {**_order(config, config.python), "install": False}
    done = _converse(link, config, config.python, order, lambda step: None)
    facts = done["python"] or {}
    return Look(
        root=PurePosixPath(done["root"]),
        root_exists=done["root_exists"],
        root_problem=done["root_problem"],
        python_path=done["python_path"],
        python=facts.get("version"),
        python_minor=facts.get("python"),
        found=facts.get("found", {}),
        unmet=tuple(each["install"] for each in done["unmet"]),
        package=done["package"],
    )


def _order(config: ClusterConfig, python: str | None) -> dict[str, Any]:
    return {
        "sentinel": secrets.token_hex(16),
        "want": PYTHON,
        "root": config.root,
        "python": python,
        "requirements": for_cluster(),
        "with": [],
        "digest": package_files().digest,
    }


def _converse(
    link: Link, config: ClusterConfig, python: str | None, order: Mapping[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    source = importlib.resources.files("remoteexec.deploy").joinpath("bootstrap.py").read_text(encoding="utf-8")
    # JSON within a Python string literal: repr of ASCII text is the same in every version
    program = f"{source}\nmain(json.loads({json.dumps(order)!r}))\n"
    stream = link.open(_bootstrap_argv(config, python))
    try:
        stream.write(program.encode())
        stream.close_input()
        return _answer(stream, config, str(order["sentinel"]), report)
    finally:
        stream.close()


def _bootstrap_argv(config: ClusterConfig, python: str | None) -> list[str]:
    """The first of these Pythons that starts runs the script; shims of version managers are there and do not start."""
    candidates = [] if python is None else [expression(python)]
    candidates += [f"python{PYTHON}", "python3", "python"]
    script = (
        f"for python in {' '.join(candidates)}; do "
        'if "$python" -c "" </dev/null >/dev/null 2>&1; then exec "$python" -I -; fi; done; '
        "echo 'no Python on PATH' >&2; exit 66"
    )
    return [*shell(config), script]


def _answer(stream: Stream, config: ClusterConfig, sentinel: str, report: Callable[[str], None]) -> dict[str, Any]:
    rest, noise = b"", b""
    mark = sentinel.encode()
    while piece := stream.read_some(65536):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            _, found, text = line.partition(mark)
            if not found:
                noise = (noise + line + b"\n")[-2000:]
                continue
            event = json.loads(text)
            if "step" in event:
                report(event["step"])
            elif "error" in event:
                raise _error(event["error"], config)
            else:
                done: dict[str, Any] = event["done"]
                return done
    stderr = stream.stderr_tail()
    known = missing(stream.exit_code, stderr, config)
    if known is not None:
        raise known
    words = "\n".join((noise.decode("utf-8", "replace") + stderr).strip().splitlines()[-12:])
    raise RunnerMissing(
        f"No Python on {config.name!r} ran our installation (exit code {stream.exit_code}). Its last lines:\n{words}\n"
        f"Try `{shlex.join(['ssh', config.host, 'python3', '--version'])}` by hand; if Python is there only in a login "
        f"shell, run `remoteexec config add-cluster {config.name} --login-shell`."
    )


def _error(error: Mapping[str, str], config: ClusterConfig) -> RunnerError:
    message = f"{config.name}: {error['message']}"
    if error["kind"] == "PythonMismatch":
        return errors.PythonMismatch(message, here=error["here"], there=error["there"])
    made: RunnerError = _KINDS[error["kind"]](message)
    return made
