"""The ordinary user that a test cluster runs as, and a Python which that user can execute."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import distributions, version
from pathlib import Path

from remoteexec.demo.processes import Account

# What the cluster side imports, and what the examples' tasks do.
CLUSTER_PACKAGES = ("ase", "cloudpickle", "h5py", "numpy", "pysqa")
# And for MPI functions, where the tests' own environment has them.
MPI_PACKAGES = ("mpi4py", "mpich")
OPEN_MPI = next((path for path in Path("/usr/lib").glob("*/libmpi.so.40")), None)
"""The library of the Open MPI that the system has."""
SHARED = Path("/var/tmp/remoteexec-tests")


class NoClusterPython(RuntimeError):
    """The cluster's user can execute no Python of the tests' minor version that has the packages."""


def make_account(name: str, home: Path) -> Account:
    """Add an ordinary user (as root); `home` is not created.

    The caller removes it with `userdel NAME`, which a keeper does even where the caller gets no chance to.
    """
    argv = ["useradd", "--home-dir", str(home), "--no-create-home", "--shell", "/bin/bash", "--comment", "test", name]
    for _ in range(50):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return Account.named(name)
        if "lock" not in done.stderr:
            break
        time.sleep(0.1)  # another useradd holds /etc/passwd
    raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")


def can_execute(account: Account, python: Path, *modules: str) -> bool:
    """Whether the account can start this interpreter and would find the modules."""
    code = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))"
    try:
        done = subprocess.run(
            [python, "-c", code, *modules],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            check=False,
            **account.popen_arguments(),
        )
    except OSError:
        return False
    return done.returncode == 0


def cluster_python(account: Account, directory: Path, unseen: tuple[str, ...] = ()) -> Path:
    """A Python of this minor version with the cluster's packages but without remoteexec, as on a real cluster.

    Where the account can read this environment, it is one in `directory` that borrows its packages (the editable
    install of remoteexec is left out by that); else one in /var/tmp of root's, made once per set of versions.

    Args:
        directory: a new directory that the account can read.
        unseen: directories that the cluster's hosts have of their own: what lies there now is not there for them.

    Raises:
        NoClusterPython: with the reason.
    """
    packages = Path(sysconfig.get_path("purelib")).resolve()
    seen = not any(packages.is_relative_to(place) for place in unseen)
    if seen and can_execute(account, Path(sys.executable), *CLUSTER_PACKAGES):
        return borrowing_environment(directory)
    return shared_environment(account)


def is_installed(package: str) -> bool:
    """Whether this environment has a package of that name; mpich is nothing that can be imported."""
    return bool(list(distributions(name=package)))


def borrowing_environment(directory: Path) -> Path:
    """Make a virtual environment that finds this one's packages and MPI, but processes none of its .pth files."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    for place, pattern in (("lib", "libmp*"), ("lib", "mpi*"), ("bin", "mpi*"), ("bin", "hydra*")):
        for path in Path(sys.prefix, place).glob(pattern):
            (directory / place / path.name).symlink_to(path)
    site_packages = next((directory / "lib").glob("python3*/site-packages"))
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return directory / "bin" / "python"


def shared_environment(account: Account) -> Path:
    """The environment that root has made below /var/tmp for the cluster's user, made now where it is missing."""
    minor = f"python3.{sys.version_info.minor}"
    base = next((path for path in map(shutil.which, (f"/usr/bin/{minor}", f"/usr/local/bin/{minor}")) if path), None)
    if base is None or not can_execute(account, Path(base)):
        raise NoClusterPython(
            f"{sys.executable} cannot be executed by {account.name}, and there is no /usr/bin/{minor}"
        )
    pins = [f"{name}=={version(name)}" for name in (*CLUSTER_PACKAGES, *filter(is_installed, MPI_PACKAGES))]
    SHARED.mkdir(mode=0o755, exist_ok=True)
    if SHARED.lstat().st_uid != os.geteuid() or SHARED.is_symlink() or SHARED.lstat().st_mode & 0o022:
        raise NoClusterPython(f"{SHARED} is not ours; remove it")
    environment = SHARED / f"{minor}-{hashlib.sha256(' '.join(pins).encode()).hexdigest()[:12]}"
    complete = environment / "complete"
    with open(SHARED / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(environment, ignore_errors=True)
            pip: list[str | Path] = [
                environment / "bin" / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ]
            make: list[str | Path] = [base, "-m", "venv", environment]
            for argv in (make, [*pip, *pins]):
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise NoClusterPython(f"{' '.join(map(str, argv))}: {done.stderr[-1000:]}")
            complete.touch()
    return environment / "bin" / "python"
