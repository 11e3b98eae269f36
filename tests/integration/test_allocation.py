"""SlurmJobExecutor inside `salloc` on the rootless SLURM: where calls run, and what is lost with a node."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.clusters.netcluster import NetCluster
from tests.clusters.rootless import SlurmCluster

CHECKOUT = Path(__file__).parent.parent.parent
PREAMBLE = """
import os, signal, sys, time
from concurrent.futures import wait
from remoteexec import Retry, SlurmJobExecutor, current_executor, errors

def node(number=0):
    return os.environ["SLURMD_NODENAME"]

def where_and_zygote(number):
    time.sleep(0.05)
    return os.environ["SLURMD_NODENAME"], os.getppid()

def sleep_on(s):
    time.sleep(s)
    return os.environ["SLURMD_NODENAME"]

def agent_of(zygote):
    return int(open(f"/proc/{zygote}/stat").read().rpartition(")")[2].split()[1])
"""


def inside(
    cluster: SlurmCluster | NetCluster, script: str, *options: str, nodes: int = 2, timeout_s: float = 60
) -> str:
    """What a script prints inside an allocation of whole nodes, of 4 cores each; `options` are of `salloc`."""
    probe = cluster.run([sys.executable, "-c", f"open({__file__!r})"], check=False)
    if probe.returncode != 0:
        pytest.skip(f"the cluster's user cannot use {sys.executable} or read {CHECKOUT}: {probe.stderr[-200:]}")
    file = cluster.make_directory("allocation") / "script.py"
    file.write_text(PREAMBLE + script, encoding="utf-8")
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "server_side"), os.environ.get("PYTHONPATH", "")])
    variables = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1", f"PATH={os.environ['PATH']}"]
    allocate = ["salloc", "--quiet", f"-N{nodes}", f"-n{4 * nodes}", *options]
    done = cluster.run(["env", *variables, *allocate, sys.executable, str(file)], timeout_s=timeout_s, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_all_cores_of_all_nodes_are_used_at_once(slurm_cluster: SlurmCluster, kept: bool) -> None:
    script = f"""
with SlurmJobExecutor(block_allocation={kept}) as exe:
    futures = [exe.submit(sleep_on, 0.3) for _ in range(8)]
    print(sorted(future.result() for future in futures))
    print(all(future.task.host == future.result() for future in futures))
"""
    assert inside(slurm_cluster, script) == f"{['n1'] * 4 + ['n2'] * 4}\nTrue\n"


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_a_lost_agent_takes_its_running_calls_and_no_others(slurm_cluster: SlurmCluster, kept: bool) -> None:
    script = f"""
with SlurmJobExecutor(block_allocation={kept}) as exe:
    whereabouts = {{}}
    while set(whereabouts) != {{"n1", "n2"}}:
        whereabouts = dict(exe.map(where_and_zygote, range(8)))
    futures = [exe.submit(sleep_on, 2) for _ in range(16)]
    time.sleep(0.7)
    os.kill(agent_of(whereabouts["n2"]), signal.SIGKILL)
    wait(futures)
    said = [future.exception() or future.result() for future in futures]
    lost = [exc for exc in said if isinstance(exc, errors.TaskNodeFailure)]
    print(len(lost), all("node n2" in str(exc) for exc in lost), said.count("n1"), exe.submit(node).result())
"""
    assert inside(slurm_cluster, script) == "4 True 12 n1\n"


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_when_all_nodes_are_lost_nothing_waits_for_ever(slurm_cluster: SlurmCluster, kept: bool) -> None:
    script = f"""
exe = SlurmJobExecutor(block_allocation={kept})
whereabouts = {{}}
while set(whereabouts) != {{"n1", "n2"}}:
    whereabouts = dict(exe.map(where_and_zygote, range(8)))
futures = [exe.submit(sleep_on, 100) for _ in range(20)]
for zygote in whereabouts.values():
    os.kill(agent_of(zygote), signal.SIGKILL)
print(len(wait(futures, 30).done), isinstance(exe.submit(node).exception(30), errors.TaskLost))
exe.shutdown()
"""
    assert inside(slurm_cluster, script) == "20 True\n"


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_calls_of_a_lost_node_are_tried_again_on_others(slurm_cluster: SlurmCluster, kept: bool) -> None:
    script = f"""
def stay_with_child(s):
    child = current_executor().submit(sleep_on, s)
    return os.environ["SLURMD_NODENAME"], child.result()

with SlurmJobExecutor(block_allocation={kept}, retries=Retry()) as exe:
    whereabouts = {{}}
    while set(whereabouts) != {{"n1", "n2"}}:
        whereabouts = dict(exe.map(where_and_zygote, range(8)))
    futures = [exe.submit(sleep_on, 2) for _ in range(12)]
    parents = [exe.submit(stay_with_child, 1) for _ in range(2)]
    time.sleep(0.7)
    os.kill(agent_of(whereabouts["n2"]), signal.SIGKILL)
    nodes = [future.result() for future in futures]
    print(nodes.count("n1"), sorted(future.task.attempts for future in futures) == [1] * 8 + [2] * 4)
    print({{node for future in parents for node in future.result()}})
    last = exe.submit(sleep_on, 60)
    time.sleep(0.5)
    os.kill(agent_of(whereabouts["n1"]), signal.SIGKILL)
    print(str(last.exception()).startswith(f"task {{last.key}} cannot run again, after node_failure: "))
"""
    assert inside(slurm_cluster, script) == "12 True\n{'n1'}\nTrue\n"


@pytest.mark.parametrize("who", ["process", "relay"])
def test_agents_end_with_the_executors_process_or_its_relay(slurm_cluster: SlurmCluster, who: str) -> None:
    script = f"""
def processes():
    found = []
    for entry in os.listdir("/proc"):
        try:
            command = open(f"/proc/{{entry}}/cmdline").read().split(chr(0))
        except OSError:
            continue
        if {{"agent", "relay", "zygote"}} & set(command) and os.stat(f"/proc/{{entry}}").st_uid == os.getuid():
            found.append(command)
    return found

if os.fork() == 0:
    exe = SlurmJobExecutor(block_allocation=True)
    futures = [exe.submit(sleep_on, 100) for _ in range(8)]
    while not all(future.running() for future in futures) or len(processes()) < 3 + 8:
        time.sleep(0.1)
    os.kill(os.getpid() if {who!r} == "process" else exe._pool._zygote._process.pid, signal.SIGKILL)
    wait(futures)
    print({{type(future.exception()).__name__ for future in futures}}, flush=True)
    os._exit(0)
os.wait()
until = time.monotonic() + 10
while processes() and time.monotonic() < until:
    time.sleep(0.1)
print(processes())
"""
    assert inside(slurm_cluster, script) == ("" if who == "process" else "{'TaskKilled'}\n") + "[]\n"


def test_mpi_ranks_run_on_one_node(slurm_cluster: SlurmCluster) -> None:
    pytest.importorskip("mpi4py")
    script = """
def rank():
    from mpi4py import MPI
    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size(), os.environ["SLURMD_NODENAME"]

with SlurmJobExecutor() as exe:
    found = [future.result() for future in [exe.submit(rank, resource_dict={"cores": 2}) for _ in range(2)]]
    print([[(number, size) for number, size, _ in ranks] for ranks in found])
    print([len({name for *_, name in ranks}) for ranks in found])
"""
    assert inside(slurm_cluster, script) == f"{[[(0, 2), (1, 2)]] * 2}\n[1, 1]\n"


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_a_caller_that_is_killed_leaves_no_ranks(slurm_cluster: SlurmCluster, kept: bool) -> None:
    pytest.importorskip("mpi4py")
    script = f"""
import subprocess, tempfile

def stay(path):
    from mpi4py import MPI
    started = subprocess.Popen(["sleep", "300"])
    open(f"{{path}}/{{os.getpid()}}", "w").close()
    open(f"{{path}}/{{started.pid}}", "w").close()
    MPI.COMM_WORLD.recv(source=1 - MPI.COMM_WORLD.rank)

def living(pids):
    return [pid for pid in pids if os.path.exists(f"/proc/{{pid}}/exe")]  # a zombie has none

def within(condition):
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return condition()

here = tempfile.mkdtemp()
caller = os.fork()
if caller == 0:
    exe = SlurmJobExecutor(block_allocation={kept}, resource_dict={{"cores": 2}})
    futures = [exe.submit(stay, here) for _ in range(2)]
    wait(futures)
    os._exit(0)
print(within(lambda: len(os.listdir(here)) == 8))
pids = os.listdir(here)
print(len(living(pids)))
os.kill(caller, signal.SIGKILL)
os.waitpid(caller, 0)
print(within(lambda: not living(pids)))
"""
    assert inside(slurm_cluster, script) == "True\n8\nTrue\n"


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_a_call_that_may_outlive_the_allocation_is_not_started(slurm_cluster: SlurmCluster, kept: bool) -> None:
    script = f"""
with SlurmJobExecutor(block_allocation={kept}, resource_dict={{"run_time_max": 3600}}) as exe:
    exc = exe.submit(node).exception()
    print(type(exc).__name__, "it may take 3600 s (run_time_max), and the allocation ends in " in str(exc))
    print(exe.remaining.not_started, exe.remaining.left_s < 3600)
with SlurmJobExecutor(block_allocation={kept}, resource_dict={{"run_time_max": 30}}) as exe:
    print(exe.submit(pow, 2, 3).result())
"""
    assert inside(slurm_cluster, script) == "TaskKilled True\n1 True\n8\n"


@pytest.mark.timeout(150)
def test_what_remains_is_told_before_the_end_and_fails_after_it(slurm_cluster: SlurmCluster) -> None:
    script = """
import logging, subprocess

said = []
class Notes(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("remoteexec").addHandler(Notes())
subprocess.run(["scontrol", "update", f"jobid={os.environ['SLURM_JOB_ID']}", "EndTime=now+20"], check=True)
executors = [SlurmJobExecutor(block_allocation=kept) for kept in (False, True)]
for exe in executors:
    futures = [exe.submit(sleep_on, 100) for _ in range(10)]
    futures.append(exe.submit(sleep_on, futures[0]))
    while exe.remaining.running < 8:
        time.sleep(0.05)
    remaining = exe.remaining
    print(remaining.running, remaining.waiting, remaining.waiting_for_inputs, 0 < remaining.left_s <= 20)
    exe.futures = futures
for exe in executors:
    wait(exe.futures, 100)
    first, *_, last, after = [future.exception(0) for future in exe.futures]
    print(type(first).__name__, after is first, "has reached its time limit, " in str(first), "again" in str(first))
    print(type(last).__name__, "has reached its time limit, " in str(last))
    print("no node of the allocation is left" in str(exe.submit(node).exception(20)))
    exe.shutdown()
told = [text.partition(" s: ")[2].partition(";")[0] for text in said if text.startswith("the allocation ends in ")]
print(*told, sep="\\n")
"""
    counted = "8 calls run, 2 wait for a worker, 1 for their inputs, and 0 were not started for want of time"
    ends = "TaskNodeFailure True True False\nTaskKilled True\nTrue\n"
    expected = "8 2 1 True\n" * 2 + ends * 2 + f"{counted} (run_time_max)\n" * 2
    assert inside(slurm_cluster, script, timeout_s=120) == expected


def test_kept_workers_have_gpus_of_their_nodes(slurm_cluster: SlurmCluster) -> None:
    script = """
def gpu(n):
    time.sleep(0.2)
    return os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]

def now(exe):
    return sorted(set(exe.map(gpu, range(12))))

with SlurmJobExecutor(block_allocation=True, resource_dict={"gpus_per_core": 1}, restart_limit=4) as exe:
    print(now(exe))
    exe.max_workers = 2
    time.sleep(1)
    print(len(now(exe)))
    exe.max_workers = 4
    time.sleep(1)
    print(now(exe))
    try:
        exe.max_workers = 5
    except ValueError as exc:
        print(exc, exe.max_workers)
    whereabouts = {}
    while set(whereabouts) != {"n1", "n2"}:
        whereabouts = dict(exe.map(where_and_zygote, range(8)))
    os.kill(agent_of(whereabouts["n2"]), signal.SIGKILL)
    time.sleep(1)
    print(now(exe))
with SlurmJobExecutor(block_allocation=True, resource_dict={"gpus_per_core": 2}) as exe:
    print(now(exe))
"""
    each = "[('n1', '0'), ('n1', '1'), ('n2', '0'), ('n2', '1')]"
    refusal = (
        "5 workers with gpus_per_core=1, and the nodes of the allocation have GPUs for 4: set max_workers to at most 4"
    )
    expected = [each, "2", each, f"{refusal} 4", "[('n1', '0'), ('n1', '1')]", "[('n1', '0,1'), ('n2', '0,1')]"]
    assert inside(slurm_cluster, script, "--gres=gpu:2").splitlines() == expected


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_calls_have_cores_of_their_own_where_a_node_has_as_many_as_it_says(
    slurm_cluster: SlurmCluster, kept: bool
) -> None:
    count = len(os.sched_getaffinity(0))
    if not 2 <= count <= 4:
        pytest.skip(f"the cluster's nodes say that they have 4 cores, and this machine has {count}")
    script = f"""
def cores(n):
    time.sleep(0.2)
    return sorted(os.sched_getaffinity(0))

def used(calls, **options):
    with SlurmJobExecutor(block_allocation={kept}, **options) as exe:
        return sorted(exe.map(cores, range(calls)))

print(used({count}), used(1, resource_dict={{"threads_per_core": {count}}}), used(1, pin_cores=False))
"""
    each, whole = [[core] for core in range(count)], [list(range(count))]
    assert inside(slurm_cluster, script, "-N1", f"-n{count}") == f"{each} {whole} {whole}\n"
    if count < 4:
        assert inside(slurm_cluster, script, "-N1", "-n4").startswith(f"{whole * count} ")


def test_calls_that_no_node_can_hold_and_other_places_are_refused(slurm_cluster: SlurmCluster) -> None:
    script = """
with SlurmJobExecutor() as exe:
    for asked in ({"threads_per_core": 5}, {"gpus_per_core": 1}, {"memory_max": 100}):
        try:
            exe.submit(node, resource_dict=asked)
        except ValueError as exc:
            print(type(exc).__name__)
del os.environ["SLURM_JOB_ID"]
try:
    SlurmJobExecutor()
except ValueError as exc:
    print(str(exc).partition(",")[0])
"""
    assert inside(slurm_cluster, script) == "TooLarge\n" * 3 + "SLURM_JOB_ID is not set\n"


def test_a_large_argument_does_not_fill_the_memory_of_what_carries_it(slurm_cluster: SlurmCluster) -> None:
    script = """
def size_mb(pid):
    return int(open(f"/proc/{pid}/status").read().partition("VmHWM:")[2].split()[0]) >> 10  # the most it ever had

def carriers():
    agent = agent_of(os.getppid())
    return agent, size_mb(agent)

def slow():
    time.sleep(2)
    return {}

with SlurmJobExecutor(1, block_allocation=True, init_function=slow) as exe:
    large = exe.submit(len, b"x" * 200_000_000)
    agent, size = exe.submit(carriers).result()
    print(large.result(), size < 80, size_mb(exe._pool._zygote._process.pid) < 80)
"""
    assert inside(slurm_cluster, script) == "200000000 True True\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_EXPORT_ENV": "NONE"},
        {"SLURM_STDINMODE": "none"},
        {"SLURM_STDOUTMODE": "none", "SLURM_STDERRMODE": "none"},
        {"SLURM_NTASKS_PER_GPU": "1"},
        {"SLURM_GPUS_PER_TASK": "1"},
        {"SLURM_DISTRIBUTION": "arbitrary"},
    ],
    ids=lambda variables: ",".join(variables),
)
def test_what_a_job_says_of_its_own_step_is_not_the_agents(
    slurm_cluster: SlurmCluster, variables: dict[str, str]
) -> None:
    """As `#SBATCH --export=NONE` and options of sbatch leave it in the environment."""
    script = f"""
os.environ.update({variables!r}, OF_THE_CALLER="1")
def here():
    print("printed", flush=True)
    return os.environ["OF_THE_CALLER"]
with SlurmJobExecutor() as exe:
    print(exe.submit(here).result(20))
"""
    assert sorted(inside(slurm_cluster, script).split()) == ["1", "printed"]
