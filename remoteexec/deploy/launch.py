"""How our package is started on the cluster: one shell line that expands `~` and variables there.

Python's path and ours depend on the root, and the root may begin with `$SCRATCH`, which only the cluster knows. The
user's login shell, whichever it is, has only to start the `sh` or `bash` named here.
"""

from __future__ import annotations

import re
import shlex

from ..config.model import ClusterConfig
from ..errors import RunnerError, RunnerMissing, UnsafeRoot

__all__ = ["expression", "missing", "shell", "start_argv"]

NO_PYTHON, NO_PACKAGE, NO_VARIABLE, NOT_OURS = 66, 67, 68, 69
"""Exit codes of the line, above those of Python and below those of shells and signals."""

_VARIABLE = re.compile(r"(?:\$([A-Za-z_][A-Za-z0-9_]*)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|(~))(?=/|$)(.*)", re.DOTALL)


def start_argv(config: ClusterConfig, digest: str, command: str, *arguments: str) -> list[str]:
    """The argument list that runs `PYTHON ROOT/server/DIGEST/remoteexec_server COMMAND --root ROOT ARGUMENTS`.

    Exits with 66 if there is no such Python, 67 if there is no package of that digest, 68 if the variable is not set,
    69 if the root is somebody else's or others may write to it: nothing that lies there is run then.
    """
    python = '"$root"/env/bin/python' if config.python is None else expression(config.python)
    # a variable that is not set ends only the subshell that says so, hence the second exit
    script = (
        f"root={expression(config.root)} || exit {NO_VARIABLE}; python={python} || exit {NO_VARIABLE}; "
        'mode=$(ls -ld "$root/" 2>/dev/null); '
        f'case $mode in d????w*|d???????w*) echo "$mode" >&2; exit {NOT_OURS};; esac; '
        f'[ -z "$mode" ] || [ -O "$root" ] || {{ echo "$mode" >&2; exit {NOT_OURS}; }}; '
        f"entry=$root/server/{digest}/remoteexec_server; "
        f'[ -f "$entry/__main__.py" ] || {{ echo "no $entry" >&2; exit {NO_PACKAGE}; }}; '
        f'command -v "$python" >/dev/null || {{ echo "no program $python" >&2; exit {NO_PYTHON}; }}; '
        'exec "$python" "$entry" "$0" --root "$root" "$@"'
    )
    return [*shell(config), script, command, *arguments]


def shell(config: ClusterConfig) -> list[str]:
    """The shell that takes a script as its next argument."""
    return ["bash", "-lc"] if config.login_shell else ["sh", "-c"]


def expression(path: str) -> str:
    """Shell text that stands for a path of the cluster: a leading `~` or variable is expanded, nothing else."""
    found = _VARIABLE.fullmatch(path)
    if found is None:
        return shlex.quote(path)
    name = found[1] or found[2] or "HOME"
    rest = shlex.quote(found[4]) if found[4] else ""
    return f"${{{name}:-$(echo '{name} is not set' >&2; exit {NO_VARIABLE})}}{rest}"


def missing(exit_code: int | None, stderr: str, config: ClusterConfig) -> RunnerError | None:
    """The error that an exit code of the line stands for; None if it has another meaning."""
    evidence = stderr.strip().splitlines()[-1:] or [f"exit code {exit_code}"]
    remedy = f"Run `remoteexec install {config.name}`."
    match exit_code:
        case 66:
            return RunnerMissing(f"There is no Python for us on {config.name!r} ({evidence[0]}).\n{remedy}")
        case 67:
            return RunnerMissing(
                f"The cluster side of this version is not installed on {config.name!r} ({evidence[0]}).\n{remedy}"
            )
        case 68:
            return UnsafeRoot(
                f"root = {config.root!r} of cluster {config.name!r} cannot be expanded there: {evidence[0]}.\n"
                f"Name another root: `remoteexec config add-cluster {config.name} --root PATH`, or add `--login-shell`."
            )
        case 69:
            return UnsafeRoot(
                f"root = {config.root!r} on {config.name!r} is not yours alone: {evidence[0]}\n"
                f"If it is yours and nothing in it is foreign, run `chmod 700` on it there; else name another root: "
                f"`remoteexec config add-cluster {config.name} --root PATH`."
            )
    return None
