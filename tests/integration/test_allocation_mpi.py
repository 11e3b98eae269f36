"""MPI functions of SlurmJobExecutor over the nodes of an allocation: as steps, counted with all other calls."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from remoteexec_server import far_session, rank_links
from remoteexec_server.rank_far import FarLinks, FarRank
from remoteexec_server.relay import new_certificate
from remoteexec_server.wire import pooled
from tests.clusters.accounts import OPEN_MPI
from tests.clusters.netcluster import NetCluster
from tests.clusters.rootless import SlurmCluster
from tests.conftest import skip_for_want_of
from tests.integration.test_allocation import inside

pytestmark = pytest.mark.timeout(180)
TOOLS = """
SIX = {"cores": 6}

def who():
    from mpi4py import MPI
    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(1), os.environ["SLURMD_NODENAME"]

def misbehave(how, rank, path=None):
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    world.Barrier()
    if path is not None:
        import subprocess
        started = subprocess.Popen(["sleep", "300"])
        open(f"{path}/{os.getpid()}", "w").close()
        open(f"{path}/{started.pid}", "w").close()
    if world.rank == rank:
        if how == "raise":
            raise LookupError(f"rank {rank} has no data")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill with watch":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(100)
        if how == "exit":
            os._exit(3)
        if how == "exit 0":
            os._exit(0)
        if how == "abort":
            world.Abort(7)
        if how == "wait":
            time.sleep(100)
    world.Barrier()

def ranks_alive():
    found = 0
    for entry in os.listdir("/proc"):
        try:
            command = open(f"/proc/{entry}/cmdline").read()
            found += "mpi-rank" in command and os.stat(f"/proc/{entry}").st_uid == os.getuid()
        except OSError:
            pass
    return found

def within(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()

def living(pids):
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]  # a zombie has none
"""


@pytest.fixture(autouse=True)
def _mpi() -> None:
    pytest.importorskip("mpi4py")


@pytest.fixture(params=["MPICH", "Open MPI"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Variables by which mpi4py takes one MPI or the other."""
    if request.param == "MPICH":
        return {}
    if OPEN_MPI is None:
        skip_for_want_of("mpi", "not installed: libopenmpi3")
    return {"MPI4PY_LIBMPI": str(OPEN_MPI), "OMPI_MCA_btl": "self,tcp"}


def test_ranks_that_no_node_can_hold_and_those_that_name_nodes_are_on_several(
    slurm_cluster: SlurmCluster, environment: dict[str, str]
) -> None:
    script = f"""
with SlurmJobExecutor(resource_dict={{"environment": {environment!r}}}) as exe:
    print(exe.submit(who, resource_dict=SIX).result())
    print(exe.submit(who, resource_dict={{"cores": 3, "num_nodes": 2}}).result())
    array = exe.submit(bytes, 3_000_000).result()
    print([len(each) for each in exe.submit(lambda data: data + b"x", array, resource_dict=SIX).result()])
"""
    assert inside(slurm_cluster, TOOLS + script).splitlines() == [
        str([(rank, 6, "n1" if rank < 4 else "n2") for rank in range(6)]),
        str([(0, 3, "n1"), (1, 3, "n1"), (2, 3, "n2")]),
        str([3_000_001] * 6),
    ]


def test_each_rank_sees_its_own_gpus(slurm_cluster: SlurmCluster) -> None:
    script = """
def gpus():
    from mpi4py import MPI
    return MPI.COMM_WORLD.rank, os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]

with SlurmJobExecutor() as exe:
    for cores, each in ((3, 1), (2, 1), (2, 2)):
        ranks = exe.submit(gpus, resource_dict={"cores": cores, "gpus_per_core": each}).result()
        print([(rank, name, sorted(its.split(","))) for rank, name, its in ranks])
"""
    assert inside(slurm_cluster, script, "--gpus-per-node=2").splitlines() == [
        str([(0, "n1", ["0"]), (1, "n1", ["1"]), (2, "n2", ["0"])]),
        str([(0, "n1", ["0"]), (1, "n1", ["1"])]),
        str([(0, "n1", ["0", "1"]), (1, "n2", ["0", "1"])]),
    ]


@pytest.mark.parametrize("limit", [None, 7])
def test_ranks_are_counted_with_all_other_calls(slurm_cluster: SlurmCluster, limit: int | None) -> None:
    script = f"""
import random

def busy(seconds):
    began = time.time()
    time.sleep(seconds)
    return [(os.environ["SLURMD_NODENAME"], began, time.time())]

def busy_together(seconds):
    from mpi4py import MPI
    MPI.COMM_WORLD.Barrier()
    return busy(seconds)[0]

with SlurmJobExecutor(max_cores={limit}) as exe:
    futures = [exe.submit(busy, 0.2) for _ in range(30)]
    futures += [exe.submit(busy_together, 0.3, resource_dict=SIX) for _ in range(2)]
    futures += [exe.submit(busy_together, 0.3, resource_dict={{"cores": 2, "num_nodes": 2}}) for _ in range(3)]
    futures += [exe.submit(busy_together, 0.3, resource_dict={{"cores": 2}})]
    futures += [exe.submit(busy, 0.1) for _ in range(30)]
    spans = [span for future in futures for span in future.result()]
for began in sorted(span[1] for span in spans):
    now = [node for node, begin, end in spans if begin <= began < end]
    assert max(now.count("n1"), now.count("n2")) <= 4 and len(now) <= {limit or 8}, now
mpi, last = [max(span[2] for future in part for span in future.result()) for part in (futures[30:32], futures)]
print(len(spans), mpi < last)
"""
    assert inside(slurm_cluster, TOOLS + script, timeout_s=120) == "80 True\n"


def test_a_rank_that_fails_ends_all_and_is_named(slurm_cluster: SlurmCluster, environment: dict[str, str]) -> None:
    script = f"""
with SlurmJobExecutor(resource_dict={{"environment": {environment!r}}}) as exe:
    for how in ("raise", "kill", "kill with watch", "exit", "exit 0", "abort"):
        began = time.monotonic()
        exc = exe.submit(misbehave, how, 4, resource_dict=SIX).exception(60)
        print(how, type(exc).__name__, exc.mpi_rank, getattr(exc, "exit_code", None), getattr(exc, "signal", None))
        print(time.monotonic() - began < 15, ranks_alive(), " on n2)" in str(exc))
    print(exe.submit(who, resource_dict=SIX).result()[5])
"""
    said = [line for line in inside(slurm_cluster, TOOLS + script, timeout_s=120).splitlines() if line]
    assert said[::2] == [
        "raise LookupError 4 None None",
        "kill TaskKilled 4 None 9",
        "kill with watch TaskKilled 4 143 None",
        "exit TaskKilled 4 3 None",
        "exit 0 TaskKilled 4 0 None",
        "abort TaskKilled 4 7 None",
        "(5, 6, 'n2')",
    ]
    assert said[1::2] == ["True 0 False", *["True 0 True"] * 5]


def test_cancelling_and_a_time_limit_end_one_step_and_no_other(
    slurm_cluster: SlurmCluster, environment: dict[str, str]
) -> None:
    script = f"""
import tempfile
here, other = tempfile.mkdtemp(), tempfile.mkdtemp()
two = {{"cores": 2, "num_nodes": 2}}
with SlurmJobExecutor(resource_dict={{"environment": {environment!r}}}) as exe:
    staying = exe.submit(misbehave, "wait", 0, other, resource_dict=two)
    cancelled = exe.submit(misbehave, "wait", 1, here, resource_dict={{"cores": 4, "num_nodes": 2}})
    assert within(lambda: len(os.listdir(here)) == 8 and len(os.listdir(other)) == 4)
    began = time.monotonic()
    print(cancelled.cancel(), within(lambda: not living(os.listdir(here)), 10), len(living(os.listdir(other))))
    time.sleep(1)
    alone = ranks_alive()
    late = exe.submit(misbehave, "wait", 1, resource_dict={{**two, "run_time_max": 2}})
    print(type(late.exception(30)).__name__, staying.running(), within(lambda: ranks_alive() == alone, 10))
    staying.cancel()
print(within(lambda: not ranks_alive() and not living(os.listdir(other)), 10))
"""
    assert inside(slurm_cluster, TOOLS + script) == "True True 4\nTaskTimeout True True\nTrue\n"


def test_a_caller_that_is_killed_leaves_nothing(slurm_cluster: SlurmCluster, environment: dict[str, str]) -> None:
    script = f"""
import subprocess, tempfile
here = tempfile.mkdtemp()
caller = os.fork()
if caller == 0:
    exe = SlurmJobExecutor(resource_dict={{"environment": {environment!r}}})
    exe.submit(misbehave, "wait", 1, here, resource_dict=SIX).result()
print(within(lambda: len(os.listdir(here)) == 12))
os.kill(caller, signal.SIGKILL)
os.waitpid(caller, 0)
print(within(lambda: not living(os.listdir(here)) and not ranks_alive(), 10))
steps = ["squeue", "--steps", "--noheader", "--job", os.environ["SLURM_JOB_ID"]]
print(within(lambda: not subprocess.run(steps, capture_output=True).stdout, 10))
"""
    assert inside(slurm_cluster, TOOLS + script) == "True\nTrue\nTrue\n"


@pytest.mark.parametrize("lost", ["n1", "n2"])
def test_a_lost_node_fails_the_call_that_had_ranks_there_and_is_named(slurm_cluster: SlurmCluster, lost: str) -> None:
    script = f"""
import tempfile
here = tempfile.mkdtemp()
with SlurmJobExecutor() as exe:
    whereabouts = {{}}
    while set(whereabouts) != {{"n1", "n2"}}:
        whereabouts = dict(exe.map(where_and_zygote, range(8)))
    future = exe.submit(misbehave, "wait", 1, here, resource_dict=SIX)
    waiting = exe.submit(who, resource_dict=SIX)
    assert within(lambda: len(os.listdir(here)) == 12)
    os.kill(agent_of(whereabouts[{lost!r}]), signal.SIGKILL)
    exc = future.exception(30)
    print(type(exc).__name__, "is lost with node {lost}" in str(exc), within(lambda: not living(os.listdir(here)), 10))
    print(type(waiting.exception(30)).__name__, len(exe.submit(who, resource_dict={{"cores": 2}}).result()))
"""
    assert inside(slurm_cluster, TOOLS + script) == "TaskNodeFailure True True\nTaskKilled 2\n"


def test_ranks_elsewhere_end_when_the_agent_of_their_worker_is_stopped(slurm_cluster: SlurmCluster) -> None:
    """Since their cores are given to others; that worker itself is alive."""
    script = """
import tempfile
from remoteexec.allocation import launcher
launcher.PING_S = 0.5
here = tempfile.mkdtemp()
with SlurmJobExecutor() as exe:
    whereabouts = {}
    while set(whereabouts) != {"n1", "n2"}:
        whereabouts = dict(exe.map(where_and_zygote, range(8)))
    future = exe.submit(misbehave, "wait", 1, here, resource_dict={"cores": 8, "num_nodes": 2})
    assert within(lambda: len(os.listdir(here)) == 16)
    stopped = agent_of(whereabouts["n1"])
    os.kill(stopped, signal.SIGSTOP)
    try:
        exc = future.exception(30)
        print(type(exc).__name__, "node n1" in str(exc), within(lambda: not ranks_alive(), 5))
        print({exe.submit(node).result(20) for _ in range(4)})
    finally:
        os.kill(stopped, signal.SIGCONT)
"""
    assert inside(slurm_cluster, TOOLS + script) == "TaskNodeFailure True True\n{'n2'}\n"


def test_a_node_that_the_controller_holds_for_dead_is_named(slurm_cluster: SlurmCluster) -> None:
    script = """
import subprocess, tempfile
here = tempfile.mkdtemp()
with SlurmJobExecutor() as exe:
    future = exe.submit(misbehave, "wait", 1, here, resource_dict=SIX)
    assert within(lambda: len(os.listdir(here)) == 12)
    subprocess.run(["scontrol", "update", "nodename=n2", "state=down", "reason=test"], check=True)
    exc = future.exception(60)
    print(type(exc).__name__, "node n2" in str(exc) or exc.node == "n2", within(lambda: not living(os.listdir(here))))
"""
    try:
        assert inside(slurm_cluster, TOOLS + script, "--no-kill") == "TaskNodeFailure True True\n"
    finally:
        slurm_cluster.resume("n2")


@pytest.mark.parametrize("lost", ["n1", "n4"])
def test_ranks_on_hosts_of_their_own_of_which_one_loses_power(net_cluster: NetCluster, lost: str) -> None:
    """The worker is on n1: there its connections end with it, elsewhere the pool ends it."""
    here = net_cluster.make_directory(f"ranks-{uuid.uuid4().hex}")
    off = threading.Thread(target=_when, args=(here / "go", lambda: net_cluster.kill_host(lost)))
    off.start()
    script = f"""
def stay(path):
    from mpi4py import MPI
    MPI.COMM_WORLD.Barrier()
    open(path + "/" + os.environ["SLURMD_NODENAME"], "w").close()
    time.sleep(100)

with SlurmJobExecutor() as exe:
    print([node for *_, node in exe.submit(who, resource_dict={{"cores": 14}}).result()])
    future = exe.submit(stay, {str(here)!r}, resource_dict={{"cores": 4, "num_nodes": 4}})
    assert within(lambda: len(os.listdir({str(here)!r})) == 4, 60)
    open({str(here / "go")!r}, "w").close()
    exc = future.exception(60)
    print(type(exc).__name__, "node {lost}" in str(exc), len(exe.submit(who, resource_dict=SIX).result(60)))
"""
    try:
        said = inside(net_cluster, TOOLS + script, "--no-kill", nodes=4, timeout_s=150)
    finally:
        (here / "go").touch()
        off.join()
        net_cluster.recover()
    assert said.splitlines() == [
        str(["n1"] * 4 + ["n2"] * 4 + ["n3"] * 4 + ["n4"] * 2),
        "TaskNodeFailure True 6",
    ]


def _when(path: Path, act: Callable[[], None]) -> None:
    """Do it as soon as this file is there."""
    end = time.monotonic() + 160
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    act()


def test_hostile_options_of_srun_start_nothing_of_their_own(slurm_cluster: SlurmCluster) -> None:
    script = """
import tempfile
here = tempfile.mkdtemp()
hostile = [
    ["--comment=a'; touch " + here + "/shell; echo \\"b ü"],
    ["--nodelist=n1", "--ntasks=100", "--nodes=1", "--distribution=block", "--jobid=1"],
    ["--output=" + here + "/out", "--error=/dev/null", "--label", "--cpu-bind", "none"],
    ["--no-such-option"],
    ["--help"],
    ["--test-only"],
    ["--multi-prog"],
    ["touch", here + "/program"],
    ["--partition=debug", "touch", here + "/program"],
]
with SlurmJobExecutor() as exe:
    for options in hostile:
        try:
            future = exe.submit(who, resource_dict={"cores": 6, "slurm_cmd_args": options})
            found = [node for *_, node in future.result(100)]
        except (errors.RunnerMissing, ValueError) as exc:
            found = type(exc).__name__
        print("found", found)
    print("found", sorted(os.listdir(here)), exe.submit(who, resource_dict=SIX).result()[0], ranks_alive())
"""
    spread = str(["n1"] * 4 + ["n2"] * 2)
    said = inside(slurm_cluster, TOOLS + script, timeout_s=150).splitlines()  # srun's own help among it
    assert [line.removeprefix("found ") for line in said if line.startswith("found ")] == [
        *[spread] * 3,
        *["RunnerMissing"] * 4,
        *["ResourceError"] * 2,
        "[] (0, 6, 'n1') 0",
    ]


def test_a_pmi_that_is_named_is_the_one_and_its_failure_says_so(slurm_cluster: SlurmCluster) -> None:
    script = """
with SlurmJobExecutor(pmi_mode="pmi2") as exe:
    print(exe.submit(who, resource_dict={"cores": 2}).result()[1][:2])
    for wrong in ("pmi1", "pmix"):
        exc = exe.submit(who, resource_dict={**SIX, "pmi_mode": wrong}).exception(60)
        print(type(exc).__name__, f"srun --mpi={'none' if wrong == 'pmi1' else wrong}: " in str(exc))
        print("MPI counts 1" in str(exc), "name one that fits with pmi_mode" in str(exc), ranks_alive())
with SlurmJobExecutor(pmi_mode="pmi2", block_allocation=True, resource_dict={"cores": 2}) as exe:
    print(sorted(len({node for *_, node in ranks}) for ranks in exe.map(lambda _: who(), range(4))))
"""
    assert inside(slurm_cluster, TOOLS + script).splitlines() == [
        "(1, 2)",
        "RunnerMissing True",
        "True True 0",
        "RunnerMissing True",
        "False True 0",
        "[1, 1, 1, 1]",
    ]


def test_without_mpiexec_srun_starts_ranks_on_one_node_too(slurm_cluster: SlurmCluster) -> None:
    script = """
os.environ["REMOTEEXEC_MPIEXEC"] = "/no/mpiexec"
with SlurmJobExecutor() as exe:
    print([len({node for *_, node in exe.submit(who, resource_dict={"cores": 4}).result()}) for _ in range(2)])
"""
    assert inside(slurm_cluster, TOOLS + script) == "[1, 1]\n"


def test_kept_workers_have_their_ranks_on_several_nodes(
    slurm_cluster: SlurmCluster, environment: dict[str, str]
) -> None:
    """Which stay from call to call, and each of which runs `init_function`."""
    script = f"""
from remoteexec import worker_id
here = {{"environment": {environment!r}}}

def begin():
    from mpi4py import MPI
    return {{"begun": (MPI.COMM_WORLD.rank, os.getpid())}}

def known(wait_s, begun):
    time.sleep(wait_s)
    return begun[0], begun[1] == os.getpid(), worker_id(), os.environ["SLURMD_NODENAME"]

with SlurmJobExecutor(block_allocation=True, init_function=begin, resource_dict={{**SIX, **here}}) as exe:
    print(exe.submit(known, 0).result())
    print(len({{tuple(pid for pid in pids) for pids in exe.map(lambda _: os.getpid(), range(5))}}), exe.max_workers)
    print(exe.submit(misbehave, "raise", 5).exception().mpi_rank, len(exe.submit(who).result()))
with SlurmJobExecutor(block_allocation=True, resource_dict={{"cores": 2, "num_nodes": 2, **here}}) as exe:
    futures = [exe.submit(lambda: (time.sleep(1), worker_id(), os.environ["SLURMD_NODENAME"])[1:]) for _ in range(4)]
    print(sorted(future.result() for future in futures))
    exe.max_workers = 1
    futures = [exe.submit(lambda: (time.sleep(0.2), worker_id())[1]) for _ in range(4)]
    print(len({{future.result()[0] for future in futures}}))
print(ranks_alive())
"""
    assert inside(slurm_cluster, TOOLS + script, timeout_s=120).splitlines() == [
        str([(rank, True, 0, "n1" if rank < 4 else "n2") for rank in range(6)]),
        "1 None",
        "5 6",
        str([[(number, "n1"), (number, "n2")] for number in range(4)]),
        "1",
        "0",
    ]


def test_kept_ranks_of_several_nodes_see_gpus_and_have_cores_of_their_own(slurm_cluster: SlurmCluster) -> None:
    script = """
def gpus():
    from mpi4py import MPI
    time.sleep(1)
    return os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]

given = {"cores": 2, "num_nodes": 2, "gpus_per_core": 1}
with SlurmJobExecutor(block_allocation=True, resource_dict=given) as exe:
    print(sorted(future.result() for future in [exe.submit(gpus) for _ in range(2)]))
try:
    SlurmJobExecutor(3, block_allocation=True, resource_dict=given)
except ValueError as exc:
    print("set max_workers to at most 2" in str(exc))
"""
    assert inside(slurm_cluster, TOOLS + script, "--gpus-per-node=2").splitlines() == [
        str([[("n1", "0"), ("n2", "0")], [("n1", "1"), ("n2", "1")]]),
        "True",
    ]


def test_kept_ranks_that_end_are_started_again_as_often_as_the_limit_says(slurm_cluster: SlurmCluster) -> None:
    script = """
with SlurmJobExecutor(block_allocation=True, restart_limit=1, resource_dict=SIX) as exe:
    for _ in range(2):
        print(type(exe.submit(misbehave, "kill", 4).exception(30)).__name__)
    exc = exe.submit(who).exception(30)
    print(type(exc).__name__, "`restart_limit` was 1" in str(exc), ranks_alive())
"""
    assert inside(slurm_cluster, TOOLS + script) == "TaskKilled\nTaskKilled\nTaskKilled True 0\n"


@pytest.mark.parametrize("lost", ["n1", "n4"])
def test_kept_ranks_on_a_lost_node_are_lost_with_it_and_others_go_on(net_cluster: NetCluster, lost: str) -> None:
    """Of two workers, on n1 and n2, n3 and n4; then of the other, too."""
    here = net_cluster.make_directory(f"kept-{uuid.uuid4().hex}")
    last = "n2" if lost == "n4" else "n3"
    off = [threading.Thread(target=_when, args=(here / n, lambda n=n: net_cluster.kill_host(n))) for n in (lost, last)]
    for thread in off:
        thread.start()
    script = f"""
def stay(path):
    rank, _, node = who()
    open(f"{{path}}/{{node}}.{{rank}}", "w").close()
    time.sleep(100)

given = {{"cores": 6, "num_nodes": 2}}
with SlurmJobExecutor(block_allocation=True, restart_limit=3, resource_dict=given) as exe:
    futures = [exe.submit(lambda: (time.sleep(1), who())[1]) for _ in range(2)]
    print(sorted(sorted({{node for *_, node in future.result()}}) for future in futures))
    futures = [exe.submit(stay, {str(here)!r}) for _ in range(2)]
    assert within(lambda: len(os.listdir({str(here)!r})) == 12, 60)
    open({str(here / lost)!r}, "w").close()
    done = wait(futures, 60, "FIRST_COMPLETED").done
    print([(type(exc).__name__, "node {lost}" in str(exc)) for exc in (future.exception() for future in done)])
    for future in set(futures) - done:
        print(future.running(), future.cancel())
    print(len(exe.submit(who).result(60)))
    open({str(here / last)!r}, "w").close()
    exc = exe.submit(time.sleep, 30).exception(60)
    print(type(exc).__name__, "node {last}" in str(exc))
    exc = exe.submit(who).exception(60)
    print(type(exc).__name__, "a worker is on 2 nodes, and so many are not left" in str(exc) or exc)
"""
    try:
        said = inside(net_cluster, TOOLS + script, "--no-kill", nodes=4, timeout_s=170)
    finally:
        for path, thread in zip((here / lost, here / last), off, strict=True):
            path.touch()
            thread.join()
        net_cluster.recover()
    assert said.splitlines() == [
        "[['n1', 'n2'], ['n3', 'n4']]",
        "[('TaskNodeFailure', True)]",
        "True True",
        "6",
        "TaskNodeFailure True",
        "TaskKilled True",
    ]


def test_what_cannot_be_is_refused_by_submit_or_at_construction(slurm_cluster: SlurmCluster) -> None:
    script = """
def refused(call):
    try:
        call()
    except ValueError as exc:
        print(type(exc).__name__, " ranks on 3 nodes, each of " in str(exc), "6 ranks on" in str(exc))

with SlurmJobExecutor(max_cores=7) as exe:
    for asked in ({"cores": 9}, {"cores": 8}, {"num_nodes": 2}, {"cores": 6, "num_nodes": 3}):
        refused(lambda: exe.submit(who, resource_dict=asked))
    refused(lambda: exe.submit(who, resource_dict={"cores": 3, "threads_per_core": 5}))
refused(lambda: SlurmJobExecutor(block_allocation=True, resource_dict={"cores": 9}))
refused(lambda: SlurmJobExecutor(block_allocation=True, resource_dict={"cores": 6, "num_nodes": 3}))
"""
    too_many = "TooLarge False False\n"
    several = "TooLarge True True\n"
    assert inside(slurm_cluster, TOOLS + script) == too_many * 3 + several + too_many * 2 + several


def test_who_has_no_certificate_of_the_session_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = new_certificate()
    links = FarLinks(far_session.FarSession("s", certificate, local=True), 2)
    port = int(links.address.partition("@")[0])
    with socket.create_connection(("127.0.0.1", port)) as stranger, socket.create_connection(("127.0.0.1", port)):
        stranger.sendall(b"\0" * 1000)
        other = FarLinks(far_session.FarSession("s", new_certificate(), local=True), 2)
        for secret, welcome in ((other.secret, False), (links.secret, True)):
            monkeypatch.setenv(rank_links.SECRET, secret)
            rank = FarRank(links.address)
            sock, arrived = _connected(rank, links)
            assert bool(arrived) == welcome
            if welcome:
                assert sock is not None
                pooled.send(sock, (1, 2))  # and what he says then arrives
                with sock, arrived[0].sock:
                    assert pooled.Stream(arrived[0].sock).next()[0] == (1, 2)
            elif sock is not None:
                sock.close()
    other.close()
    links.close()


def _connected(rank: FarRank, links: FarLinks) -> tuple[socket.socket | None, list[rank_links.Arrival]]:
    """A rank connects while its worker looks."""
    made: list[socket.socket] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            made.append(rank.connect())

    thread = threading.Thread(target=connect)
    thread.start()
    arrived: list[rank_links.Arrival] = []
    for _ in range(200):
        arrived += links.arrivals()
        if arrived or not thread.is_alive():
            break
        thread.join(0.02)
    thread.join(20)
    return (made[0] if made else None), arrived
