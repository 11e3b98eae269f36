"""What may import what, and what may be called where: read from the sources, so that nothing has to be imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
PACKAGES = {"remoteexec": CHECKOUT / "remoteexec", "remoteexec_server": CHECKOUT / "server_side" / "remoteexec_server"}
POSIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios", "pty", "tty"}

CLIENT = {
    "api": {"executors"},
    "cli": {"executors", "config", "deploy", "ssh", "demo"},
    "demo": {"config", "deploy", "executors", "ssh"},
    "executors": {"allocation", "engine", "pool", "views", "selections", "futures", "config", "deploy", "ssh"},
    "views": {"selections", "futures"},
    "allocation": {"pool"},
    "engine": {"pool", "selections", "futures"},
    "pool": {"futures"},
    "deploy": {"config", "ssh"},
    "config": {"ssh"},
    "ssh": {"engine"},  # GatewayClient fulfils a Protocol of the engine
    "selections": {"futures"},
    "futures": set(),
    "resources": set(),
    "errors": set(),
    "_version": set(),
}
"""Which part of the client may import which; everything may use errors, resources and the version."""
SERVER = {
    "__main__": set(),
    "gateway": {"batch", "wire"},
    "running": {"growing_store", "store"},  # for their types alone
    "probe": {"batch", "mpi_facts", "store", "wire"},
    "runner": {
        "attempts",
        "batch",
        "checkpoint",
        "exits",
        "failure",
        "job_ranks",
        "late_inputs",
        "parent",
        "retrying",
        "running",
        "store",
        "wire",
    },
    "parent": set(),
    "late_inputs": {"attempts", "batch", "retrying", "store", "wire"},
    "attempts": {"batch", "retrying", "runner", "store", "wire"},
    "checkpoint": {"store", "wire"},
    "retrying": {"wire"},
    "job_ranks": {"batch", "failure", "job_rank", "mpi_facts", "mpi_launch", "runner", "store", "sweeper", "wire"},
    "job_rank": {"aborts", "failure", "mpi_watch", "parent", "rank_exchange", "runner", "store", "sweeper", "wire"},
    "rank_exchange": {"wire"},
    "mpi_facts": {"wire"},
    "aborts": set(),
    "exits": {"wire"},
    "pilot": {
        "attempts",
        "batch",
        "checkpoint",
        "growing_store",
        "job_ranks",
        "parent",
        "retrying",
        "runner",
        "running",
        "slurm_clock",
        "store",
        "tried_again",
        "wire",
        "worker",
    },
    "zygote": {"growing", "orphans", "shared_objects", "worker", "wire"},
    "relay": {"open_files", "shared_copies", "wire", "zygote"},
    "affinity": set(),
    "orphans": set(),
    "agent": {"affinity", "far_session", "open_files", "shared_copies", "sweeper", "wire", "zygote"},
    "worker": {"affinity", "failure", "growing", "mpi", "wire"},
    "batches": set(),
    "growing": {
        "batches",
        "callbacks",
        "failure",
        "growing_jobs",
        "growing_store",
        "running",
        "worker",
        "wire",
    },  # through what the task runs in
    "growing_jobs": {"growing_store", "running", "store", "wire"},
    "growing_store": {"growing", "store", "wire"},
    "callbacks": set(),
    "mpi": {"failure", "mpi_program", "wire"},
    "mpi_program": {
        *("far_session", "mpi_ends", "mpi_launch", "mpi_watch", "rank_far", "rank_links", "sweeper", "wire"),
    },
    "mpi_launch": set(),
    "mpi_ends": {"mpi_watch"},
    "mpi_rank": {"aborts", "rank_far", "rank_links", "sweeper", "worker", "wire"},
    "rank_links": {"mpi_watch", "sweeper", "wire"},
    "rank_far": {"affinity", "far_session", "mpi_watch", "parent", "rank_links", "sweeper", "wire"},
    "open_files": set(),
    "far_session": set(),
    "mpi_watch": set(),
    "slurm_clock": set(),
    "sweeper": {"orphans"},
    "failure": {"wire"},
    "batch": {"exits", "retrying", "store", "tried_again", "wire"},
    "tried_again": {"retrying", "store", "wire"},
    "store": {"wire"},
    "shared_copies": {"free_memory", "shared_objects", "wire"},
    "shared_objects": {"wire"},
    "free_memory": set(),
    "contents": {"wire", "worker"},  # asks the worker when its process began
    "wire": set(),
}
FOR_ALL = {"errors", "resources", "_version"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def modules() -> Iterator[tuple[str, Path]]:
    """Full name and file of every module of ours."""
    for name, directory in PACKAGES.items():
        for path in sorted(directory.rglob("*.py")):
            parts = (name, *path.relative_to(directory).with_suffix("").parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported(module: str, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """Full names of all that a module imports, anywhere in it."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in nodes or ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found


def at_import(module: str) -> set[str]:
    """What is imported as soon as the module is: not in functions, not for type checkers only."""

    def walk(body: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            yield node
            for block in ("body", "orelse", "finalbody", "handlers"):
                for child in getattr(node, block, []):
                    yield from walk(child.body if isinstance(child, ast.ExceptHandler) else [child])

    return imported(module, walk(tree(MODULES[module]).body))


def part(module: str) -> tuple[str, str]:
    """Package and part: ("remoteexec", "engine"); the part is "" for the package itself."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_one_way(module: str) -> None:
    package, of = part(module)
    allowed = (CLIENT if package == "remoteexec" else SERVER) | {
        "": {"executors", "engine", "selections", "checkpoint", "futures", "growing", "worker"}
    }
    inside = {part(name)[1] for name in imported(module) if part(name)[0] == package} - {of, ""}
    assert of in allowed, f"{module}: a new part of {package} needs its row in this test"

    assert inside - allowed[of] - FOR_ALL == set()


def test_the_cluster_side_never_imports_the_client() -> None:
    wrong = {
        (module, name)
        for module in MODULES
        if part(module)[0] == "remoteexec_server"
        for name in imported(module)
        if part(name)[0] == "remoteexec"
    }

    assert wrong == set()


def test_the_cluster_side_needs_four_libraries_and_what_pysqa_brings() -> None:
    import sys

    foreign = {
        part(name)[0] for module in MODULES if part(module)[0] == "remoteexec_server" for name in imported(module)
    } - set(sys.stdlib_module_names)

    # cryptography: for large arrays in what is compared with the client, by workers of its own machine
    known = {"remoteexec_server", "cloudpickle", "h5py", "numpy", "pysqa", "jinja2", "yaml", "mpi4py", "cryptography"}
    assert foreign <= known
    assert {module for module in MODULES if "mpi4py" in imported(module)} <= {
        f"remoteexec_server.{name}" for name in ("mpi_rank", "job_rank", "mpi_facts")
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {module: at_import(module) & set(MODULES) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for name in sorted(arrows[module]):
            visit(name, (*way, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


def test_the_client_needs_no_module_that_windows_lacks() -> None:
    seen: set[str] = set()
    waiting = ["remoteexec", "remoteexec.cli", "remoteexec.executors.remote"]
    wrong: set[tuple[str, str]] = set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        names = at_import(module)
        wrong |= {(module, name) for name in names & POSIX_ONLY}
        parents = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
        waiting += [name for name in parents if name in MODULES]

    assert wrong == set()
    assert "remoteexec.engine.driver" in seen


def calls(module: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.Call))


def test_one_module_unpickles() -> None:
    found = {
        module
        for module in MODULES
        for call in calls(module)
        if ast.unparse(call.func).split(".")[-1] in ("loads", "load", "Unpickler")
        and ast.unparse(call.func).split(".")[0] in ("pickle", "cloudpickle", "_pickle", "dill", "joblib")
    }
    loading = ("marshal.loads", "marshal.load")
    marshalled = {module for module in MODULES for call in calls(module) if ast.unparse(call.func) in loading}
    imports = {module for module in MODULES if "pickle" in imported(module)}

    assert found == {"remoteexec_server.wire.payload"}
    # between a pool and the workers it started: numbers, texts and bytes, on sockets that nobody else has
    assert marshalled == {"remoteexec_server.wire.pooled", "remoteexec_server.failure"}
    # errors: for PicklingError; contents: for the type PickleBuffer; graph: pickles, for payload to load
    more = {"remoteexec_server.contents.objects", "remoteexec_server.contents.checked", "remoteexec.engine.graph"}
    assert imports == {"remoteexec_server.wire.payload", "remoteexec.errors"} | more


def test_no_shell_is_given_a_line() -> None:
    wrong = []
    for module in MODULES:
        for call in calls(module):
            name = ast.unparse(call.func)
            if name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"):
                wrong.append((module, call.lineno, name))
            wrong += [
                (module, call.lineno, f"{name}(shell=…)")
                for keyword in call.keywords
                if keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
            ]

    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_its_subject_first(module: str) -> None:
    text = ast.get_docstring(tree(MODULES[module]))

    assert text
