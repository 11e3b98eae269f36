"""Sent to `PYTHON -` on the cluster: looks at what is there, and installs what is missing.

Standard library only, and in the syntax of Python 3.6, so that an old Python can say that it is too old. The client
adds `main({...})` below. Each line of ours on standard output is SENTINEL + JSON; the client passes over all else, such
as what a .bashrc prints. Kinds: {"step": text}, {"error": {...}}, {"done": {...}}.
"""
# ruff: noqa: UP006, UP035, UP045 (3.6 knows neither list[str] nor str | None)

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import traceback
import zlib
from typing import Any, Dict, List, Optional, Set, Tuple

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"

# Run by the Python that is looked at; importlib.metadata is older than any Python that passes.
INSPECT = """
import json, os, sys, sysconfig
facts = {"python": "%d.%d" % sys.version_info[:2], "executable": sys.executable, "prefix": sys.prefix}
facts["version"] = sys.version.split()[0]
conda = os.path.isdir(sys.prefix + "/conda-meta")
facts["environment"] = conda or sys.prefix != getattr(sys, "base_prefix", sys.prefix)
facts["writable"] = os.access(sysconfig.get_path("purelib"), os.W_OK)
facts["found"] = {}
try:
    from importlib import metadata
except ImportError:
    metadata = None
for name in sys.argv[1:]:
    try:
        facts["found"][name] = metadata.version(name) if metadata else None
    except Exception:
        facts["found"][name] = None
print("\\n" + json.dumps(facts))
"""

NO_NETWORK = r"NewConnection|ConnectTimeout|Temporary failure in name|Network is unreachable|ProxyError"


class Refused(Exception):
    """Ends the script with an error for the client: a kind that it knows, and what happened, evidence and remedy."""

    def __init__(self, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.error = dict(more, kind=kind, message=message)


def main(order: Dict[str, Any]) -> None:
    """Do what the client asks for.

    Args:
        order: sentinel, want ("3.11"), root, python (or None), explicit (the user named that Python for this
            installation), requirements, with, package (base64 of a zlib of a tar), digest, install (or only look).
    """

    def say(**event: Any) -> None:
        sys.stdout.write("\n" + order["sentinel"] + json.dumps(event) + "\n")
        sys.stdout.flush()

    os.umask(0o077)
    try:
        work = install if order["install"] else look
        say(done=work(order, say))
    except Refused as exc:
        say(error=exc.error)
    except OSError as exc:
        say(error={"kind": "StoreError", "message": f"{exc}.\nCheck your quota, the free space and the permissions."})
    except Exception:
        say(error={"kind": "RunnerError", "message": "The installation failed:\n" + traceback.format_exc()})


def look(order: Dict[str, Any], say: Any) -> Dict[str, Any]:
    """What is there; nothing is changed."""
    root = expand(order["root"])
    problem: Optional[str] = None
    try:
        check_root(root)
    except Refused as exc:
        problem = str(exc)
    python = expand(order["python"]) if order["python"] else os.path.join(root, "env", "bin", "python")
    facts = inspect(python, order) if problem is None else None
    target = os.path.join(root, "server", order["digest"], "remoteexec_server", "__main__.py")
    return {
        "root": root,
        "root_exists": os.path.isdir(root),
        "root_problem": problem,
        "bootstrap_python": HERE,
        "python_path": python,
        "python": facts,
        "unmet": unmet(facts, order) if facts else [],
        "package": problem is None and os.path.exists(target),
    }


def install(order: Dict[str, Any], say: Any) -> Dict[str, Any]:
    """Root, Python, dependencies, our package: each is made only if it is not there."""
    root = expand(order["root"])
    check_root(root)
    chosen = choose(root, order)
    os.makedirs(root, mode=0o700, exist_ok=True)
    check_root(root)
    with Lock(root):
        facts = environment(root, chosen, order, say)
        complete(facts, order, say)
        unpack(root, order, say)
    return {"root": root, "python": facts["executable"], "version": facts["version"]}


def expand(path: str) -> str:
    """A path of ours with `~` and variables replaced, absolute unless it names a program on PATH."""
    text = os.path.expandvars(os.path.expanduser(path))
    if text.startswith("$"):
        raise Refused("UnsafeRoot", f"{path}: the variable is not set on the cluster.\nName an absolute path.")
    return text


def check_root(root: str) -> None:
    """Refuse a root that is not the user's alone; a root that does not exist yet is fine."""
    name = f"The root directory {root}"
    where = root
    if os.path.lexists(root):
        info = os.lstat(root)
        if stat.S_ISLNK(info.st_mode):
            raise Refused("UnsafeRoot", f"{name} is a symbolic link.\nName the directory: {os.path.realpath(root)}")
        if not stat.S_ISDIR(info.st_mode):
            raise Refused("UnsafeRoot", f"{name} is not a directory.\nName another root.")
        if info.st_uid != os.geteuid():
            raise Refused(
                "UnsafeRoot",
                f"{name} belongs to user id {info.st_uid}, not to you ({os.geteuid()}).\nName another root.",
            )
        if info.st_mode & 0o077:
            raise Refused(
                "UnsafeRoot",
                f"{name} has mode {stat.S_IMODE(info.st_mode):04o}: others can read or change it.\n"
                f"See that nothing in it is foreign, then run on the cluster: chmod 700 {shlex.quote(root)}",
            )
    while not os.path.lexists(where):
        where = os.path.dirname(where)
    if not os.access(where, os.W_OK | os.X_OK):
        what = "is not writable" if where == root else f"cannot be made: {where} is not writable"
        raise Refused("UnsafeRoot", f"{name} {what}.\nName another root.")
    above = os.path.realpath(root)
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        if os.path.exists(above):
            mode = os.stat(above).st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise Refused(
                    "UnsafeRoot",
                    f"{name} lies below {above}, where everybody can write and so exchange what is in it.\n"
                    "Name another root.",
                )


def choose(root: str, order: Dict[str, Any]) -> Dict[str, Any]:
    """The Python to use or to build on, before anything is made."""
    python = expand(order["python"]) if order["python"] else None
    own = os.path.join(root, "env", "bin", "python")
    if python is None and os.path.exists(own):
        python = own
    if python is None or (python == own and not os.path.exists(own)):
        facts = inspect("python" + order["want"], order) or inspect(sys.executable, order)
    else:
        facts = inspect(python, order)
        if facts is None and python != own:
            raise Refused("RunnerMissing", f"{python} does not start as a Python on the cluster.\nName another one.")
        facts = facts or inspect("python" + order["want"], order) or inspect(sys.executable, order)
    if facts is None or facts["python"] != order["want"]:
        raise mismatch(facts, own, order)
    return facts


def mismatch(facts: Optional[Dict[str, Any]], own: str, order: Dict[str, Any]) -> Refused:
    """The client and the cluster need the same minor version, since functions pickled by one crash the other."""
    want = order["want"]
    there = facts["python"] if facts else HERE
    if facts is not None and facts["executable"] == own:
        what = f"{own} is Python {there}, your client's is {want}"
        remove = f"rm -r {shlex.quote(os.path.dirname(os.path.dirname(own)))}"
        remedy = f"If no other client of yours uses it, remove it on the cluster, `{remove}`, and install again"
    elif order["python"]:
        what = f"{order['python']} is Python {there}, your client's is {want}"
        remedy = f"Name a Python {want} of the cluster: `--python PATH`"
    else:
        what = f"There is no python{want} on the cluster's PATH, and your client's Python is {want}"
        remedy = f"Name a Python {want} of the cluster: `--python PATH` (`module avail python` may know one)"
    return Refused(
        "PythonMismatch",
        f"{what}; a function pickled by one minor version can crash another.\n"
        f"On PATH there: {', '.join(on_path()) or 'none'}.\n"
        f"{remedy}, or run your client with a Python that the cluster has.",
        here=want,
        there=there,
    )


def on_path() -> List[str]:
    """Names such as python3.9 of all Pythons on PATH."""
    names: Set[str] = set()
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        try:
            names.update(name for name in os.listdir(directory) if re.match(r"python3\.\d+$", name))
        except OSError:
            pass
    return sorted(names, key=lambda name: int(name.split(".")[1]))


def environment(root: str, chosen: Dict[str, Any], order: Dict[str, Any], say: Any) -> Dict[str, Any]:
    """The environment to complete: the one that was named, or ROOT/env, made from the Python that was chosen."""
    own = os.path.join(root, "env")
    if chosen["executable"] == os.path.join(own, "bin", "python"):
        return chosen
    if order["python"] and (not unmet(chosen, order) or chosen["environment"]):
        return chosen
    base = chosen["executable"]
    say(step=f"making {own} with {base} (Python {chosen['version']})")
    code, text = run([base, "-m", "venv", "--clear", own])
    made = inspect(os.path.join(own, "bin", "python"), order) if code == 0 else None
    if made is None:
        shutil.rmtree(own, ignore_errors=True)
        raise Refused(
            "RunnerError",
            f"{base} -m venv {own} failed with exit code {code}:\n{tail(text)}\n"
            "On Debian and Ubuntu the package python3-venv may be missing. Or name a Python inside an environment: "
            "`--python PATH`.",
        )
    return made


def complete(facts: Dict[str, Any], order: Dict[str, Any], say: Any) -> None:
    """Install what is missing into an environment, with its own pip."""
    lacking = unmet(facts, order)
    wanted = [each["install"] for each in lacking] + list(order["with"])
    if not facts["writable"]:
        wanted = [each["install"] for each in lacking] + [
            each for each in order["with"] if not facts["found"].get(distribution(each))
        ]
    if not wanted:
        return
    python, listed = facts["executable"], ", ".join(wanted)
    if not facts["writable"]:
        raise Refused(
            "RunnerMissing",
            f"{python} lacks {listed}, and its environment cannot be written to.\n"
            "Have them installed there, or name no Python: then an environment of ours is made.",
        )
    say(step=f"installing {listed} into {facts['prefix']}")
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    # A firewall that swallows packets would hold pip for minutes per package with its own defaults.
    code, text = run([*command, "--retries", "1", "--timeout", "20", "--", *wanted])
    if code != 0:
        offline = re.search(NO_NETWORK, text)
        cause = "No package index can be reached from the cluster" if offline else f"pip failed with exit code {code}"
        raise Refused(
            "RunnerError",
            f"{cause}; wanted: {listed}. pip's last lines:\n{tail(text)}\n"
            "Install them there by other means and name that Python: `--python PATH`.",
        )
    after = inspect(python, order)
    left = unmet(after, order) if after else lacking
    if left:
        names = ", ".join(each["install"] for each in left)
        raise Refused("RunnerError", f"pip said it installed {names}, but they are not there:\n{tail(text)}")


def unpack(root: str, order: Dict[str, Any], say: Any) -> None:
    """ROOT/server/DIGEST, whole or not at all; a damaged one is replaced."""
    target = os.path.join(root, "server", order["digest"])
    if digest_of(target) == order["digest"]:
        return
    say(step="sending remoteexec_server {}".format(order["digest"]))
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(target))
    try:
        whole = os.path.join(temporary, "whole")
        data = zlib.decompress(base64.b64decode(order["package"]))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar.getmembers():  # not extractall: its filters differ between versions of Python
                parts = member.name.split("/")
                if not member.isfile() or ".." in parts or member.name.startswith("/"):
                    raise Refused("RunnerError", f"unexpected member {member.name!r} in our own package")
                path = os.path.join(whole, *parts)
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                source = tar.extractfile(member)
                with open(path, "wb") as out:
                    out.write(source.read() if source else b"")
        if digest_of(whole) != order["digest"]:
            raise Refused("RunnerError", "our package arrived damaged; try again")
        if os.path.exists(target):
            os.rename(target, os.path.join(temporary, "damaged"))
        os.rename(whole, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def digest_of(directory: str) -> str:
    """The same as the client's, over names and contents."""
    files: List[Tuple[str, str]] = []
    for above, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(above, name)
            relative = os.path.relpath(path, directory).replace(os.sep, "/")
            if "__pycache__" not in relative.split("/") and not name.endswith((".pyc", "~")):
                files.append((relative, path))
    digest = hashlib.sha256()
    for relative, path in sorted(files):
        with open(path, "rb") as source:
            data = source.read()
        for part in (relative.encode(), data):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def inspect(python: str, order: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """What a Python is and has; None if it does not start."""
    names = [each["name"] for each in order["requirements"]] + [distribution(each) for each in order["with"]]
    code, text = run([python, "-c", INSPECT, *names], stderr=subprocess.DEVNULL)
    try:
        facts = json.loads(text.strip().splitlines()[-1]) if code == 0 else None
    except (ValueError, IndexError):
        return None
    return facts if isinstance(facts, dict) else None


def distribution(requirement: str) -> str:
    """The name in what pip takes: "ase" of "ase[test]>=3.22"."""
    return re.split(r"[^A-Za-z0-9._-]", requirement.strip())[0]


def unmet(facts: Dict[str, Any], order: Dict[str, Any]) -> List[Dict[str, str]]:
    """The requirements that a Python does not meet."""
    return [
        each
        for each in order["requirements"]
        if not facts["found"].get(each["name"])
        or not numbers(each["at_least"]) <= numbers(facts["found"][each["name"]]) < numbers(each["below"])
    ]


def numbers(version: str) -> Tuple[int, ...]:
    """(3, 11) of "3.11rc1": enough for comparing with bounds such as 3.9 and 4."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[a-z+-]", version)[0]))


def run(command: List[str], stderr: int = subprocess.STDOUT) -> Tuple[int, str]:
    """Exit code and output of a command; 127 and the reason if it does not start."""
    unwanted = ("PYTHONHOME", "PIP_REQUIRE_VIRTUALENV")
    environ = {name: value for name, value in os.environ.items() if name not in unwanted}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environ)
    except OSError as exc:
        return 127, str(exc)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def tail(text: str) -> str:
    """The last lines of a command's output."""
    return "\n".join(text.strip().splitlines()[-12:])


class Lock:
    """One installation in a root at a time, where the file system has locks."""

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, "install.lock")

    def __enter__(self) -> None:
        import fcntl

        self.file = open(self.path, "w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise Refused("RunnerError", "Another installation into this root is running.\nWait for its end.") from None
        except OSError:
            pass

    def __exit__(self, *exc: Any) -> None:
        self.file.close()
