"""clusters.toml: one table per cluster, under the cluster's name.

    [mycluster]
    host = "login.example.org"
    user = "me"
    root = "$SCRATCH/remoteexec"

    [mycluster.resources]
    partition = "short"

Written by replacing one cluster's lines, so that comments and other entries stay; under a temporary name, then renamed.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .model import ClusterConfig, to_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["config_path", "load_cluster", "load_clusters", "remove_cluster", "save_cluster"]

VARIABLE = "REMOTEEXEC_CONFIG"


def config_path() -> Path:
    """`$REMOTEEXEC_CONFIG`, else clusters.toml in the platform's directory for configuration."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("remoteexec", appauthor=False)) / "clusters.toml"


def load_clusters(path: Path | None = None) -> dict[str, ClusterConfig]:
    """All clusters of the file, in its order; none if there is no file.

    Raises:
        ConfigError: Names file, cluster, key, value, rule and remedy.
    """
    file = config_path() if path is None else path
    return {name: _cluster(file, name, table) for name, table in _parse(file, _read(file)).items()}


def load_cluster(name: str, path: Path | None = None) -> ClusterConfig:
    """One cluster; mistakes in other entries of the file do not matter.

    Raises:
        ConfigError: No such cluster (says which there are), or a mistake in its entry.
    """
    file = config_path() if path is None else path
    tables = _parse(file, _read(file))
    if name not in tables:
        raise _unknown(file, name, list(tables))
    return _cluster(file, name, tables[name])


def save_cluster(config: ClusterConfig, path: Path | None = None) -> Path:
    """Add a cluster or replace it, and say where.

    Raises:
        ConfigError: The file is broken, or cannot be written.
    """
    file = config_path() if path is None else path
    text = _read(file)
    tables = _parse(file, text)
    tables[config.name] = to_table(config)
    _write(file, _replaced(text, config.name, tables))
    return file


def remove_cluster(name: str, path: Path | None = None) -> Path:
    """Take a cluster out, and say of which file.

    Raises:
        ConfigError: No such cluster, or the file cannot be written.
    """
    file = config_path() if path is None else path
    text = _read(file)
    tables = _parse(file, text)
    if name not in tables:
        raise _unknown(file, name, list(tables))
    del tables[name]
    _write(file, _replaced(text, name, tables))
    return file


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{file} is not UTF-8 text: {exc}.\nSave it as UTF-8, or remove it and start anew.") from exc
    except OSError as exc:
        raise ConfigError(
            f"{file} cannot be read: {exc.strerror}.\nMake it readable, or name another file in ${VARIABLE}."
        ) from exc


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(
            f"{file} is not valid TOML: {exc}.\nCorrect that place; `remoteexec` changed nothing."
        ) from exc


def _cluster(file: Path, name: str, table: Any) -> ClusterConfig:
    remedy = f"Correct it in the file, or run `remoteexec config add-cluster {name}` anew."
    if not isinstance(table, dict):
        raise ConfigError(
            f"{file}: {name} = {table!r} stands outside of a cluster's table: put it below a line `[CLUSTER]`."
        )
    keys = [each.name for each in dataclasses.fields(ClusterConfig) if each.name != "name"]
    for key in table:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=2)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known are {', '.join(keys)}."
            raise ConfigError(f"{file}: cluster {name!r} has an unknown key {key!r}: {hint}\n{remedy}")
    if "host" not in table:
        raise ConfigError(f"{file}: cluster {name!r} has no host: it must name its login node.\n{remedy}")
    try:
        return ClusterConfig(name=name, **table)
    except ConfigError as exc:
        raise ConfigError(f"{file}: {exc}\n{remedy}") from exc


def _unknown(file: Path, name: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"\nDid you mean {close[0]!r}?" if close else ""
    there_are = f"there are {', '.join(sorted(known))}" if known else "there is none yet"
    return ConfigError(
        f"{file} has no cluster {name!r}: {there_are}.{hint}\n"
        f"To add it, run `remoteexec config add-cluster {name} --host HOST --user USER`."
    )


def _replaced(text: str, name: str, tables: dict[str, Any]) -> str:
    """The text with one cluster's lines exchanged for those of `tables`, or taken out.

    If that does not read back as `tables` (somebody wrote the entry in an unusual way), all is written anew.
    """
    import tomli_w

    entry = tomli_w.dumps({name: tables[name]}) if name in tables else ""
    edited = _exchange(text, name, entry)
    try:
        if tomllib.loads(edited) == tables:
            return edited
    except tomllib.TOMLDecodeError:
        pass
    return tomli_w.dumps(tables)


def _exchange(text: str, name: str, entry: str) -> str:
    own = re.compile(rf"""\[\s*(?:{re.escape(name)}|"{re.escape(name)}"|'{re.escape(name)}')\s*[.\]]""")
    before: list[str] = []
    after: list[str] = []
    current, inside = before, False
    for line in text.splitlines():
        if line.startswith("["):
            inside = bool(own.match(line))
            current = after if inside else current
        # a comment may speak of the table below it, so it stays
        if not inside or line.startswith("#"):
            current.append(line)
    blocks = ["\n".join(before).rstrip(), entry.rstrip(), "\n".join(after).strip()]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _write(file: Path, text: str) -> None:
    target = file.resolve()  # the file may be a link into somebody's dotfiles
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8", newline="\n") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigError(
            f"{file} cannot be written: {exc.strerror}.\nNothing was changed; name another file in ${VARIABLE}."
        ) from exc
