"""FluxJobExecutor in a Flux instance of two nodes: where calls run, instances of their own, and what is lost."""

from __future__ import annotations

import ast
import itertools
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.clusters.flux import FluxInstance
from tests.clusters.rootless import SlurmCluster
from tests.conftest import skip_for_want_of
from tests.integration.test_allocation import inside as inside_slurm
from tests.integration.test_allocation_mpi import TOOLS

CHECKOUT = Path(__file__).parent.parent.parent
PREAMBLE = """
import json, os, signal, subprocess, sys, time
from concurrent.futures import wait
from remoteexec import FluxJobExecutor, errors

def node():
    return subprocess.run(["flux", "getattr", "rank"], capture_output=True, text=True).stdout.strip()

def stay(s):
    time.sleep(s)
    return node()

def node_and_zygote(n):
    time.sleep(0.05)
    return node(), os.getppid()

def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])

def resources():
    said = subprocess.run(["flux", "resource", "R"], capture_output=True, text=True).stdout
    return [share["children"]["core"] for share in json.loads(said)["execution"]["R_lite"]]

def alive(pid):
    return os.path.exists(f"/proc/{pid}/exe")

def bind():
    # Flux's Python binding, if it is for this Python; what it imports may be where the system's Python has it
    said = subprocess.run(["flux", "env", "printenv", "PYTHONPATH"], capture_output=True, text=True).stdout.strip()
    sys.path += [*said.split(":"), "/usr/lib/python3/dist-packages"]
    try:
        import flux.job
    except ImportError as exc:
        print("no binding:", exc)
        sys.exit()
"""
_numbers = itertools.count()
both_modes = pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])


def inside(flux: FluxInstance, script: str, *started: str) -> str:
    """What a script prints in the instance, or in what a command of Flux's starts it in; without a binding: skip."""
    home = flux.make_directory(f"allocation-{next(_numbers)}")
    file = home / "script.py"
    file.write_text(PREAMBLE + script, encoding="utf-8")
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "server_side"), os.environ.get("PYTHONPATH", "")])
    variables = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1"]
    done = flux.run(["env", "-C", str(home), *variables, *started, sys.executable, str(file)], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if done.stdout.startswith("no binding"):
        pytest.skip(done.stdout)
    return done.stdout


@both_modes
def test_all_cores_of_all_nodes_are_used_at_once(flux_instance: FluxInstance, kept: bool) -> None:
    script = f"""
with FluxJobExecutor(block_allocation={kept}) as exe:
    print(sorted(exe.map(stay, [0.5] * 8)))
"""
    assert inside(flux_instance, script) == f"{['0'] * 4 + ['1'] * 4}\n"


def test_a_job_without_an_instance_has_its_own_cores_and_end(flux_instance: FluxInstance) -> None:
    script = """
with FluxJobExecutor() as exe:
    print([(node.name, node.cores) for node in exe.allocation.nodes], 0 < exe.allocation.ends_at - time.time() <= 60)
    print(sorted(exe.map(stay, [0.5] * 2)))
    print(type(exe.submit(stay, 1, resource_dict={"run_time_max": 100}).exception()).__name__)
"""
    started = ["flux", "run", "-N1", "-n1", "-c2", "-t60s", "--requires=rank:1"]
    assert inside(flux_instance, script, *started).splitlines()[:2] == ["[('n2', 2)] True", "['1', '1']"]


def test_a_module_of_the_users_that_is_called_flux_is_not_run(flux_instance: FluxInstance) -> None:
    script = """
open("flux.py", "w").write("print('a day of work')")
sys.path.insert(0, os.getcwd())
with FluxJobExecutor() as exe:
    print(exe.allocation.cores)
"""
    assert inside(flux_instance, script) == "8\n"


@pytest.mark.parametrize("started", [(), ("flux", "run", "-N1", "-n1", "-c2", "-t60s")], ids=["instance", "job"])
def test_flux_says_the_same_by_its_binding_and_by_its_commands(
    flux_instance: FluxInstance, started: tuple[str, ...]
) -> None:
    script = """
bind()
from remoteexec.allocation import flux
job, run = os.environ.get("FLUX_JOB_ID"), subprocess.run
if job:
    run(["flux", "update", job, "duration=500s"], check=True)
    time.sleep(1)
def no_process(*args, **options):
    raise AssertionError(args)
subprocess.run = no_process
bound = flux.allocation()
sys.modules["flux"], subprocess.run = None, run
left_s = bound.ends_at and bound.ends_at - time.time()
print(bound == flux.allocation(), [node.cores for node in bound.nodes], left_s and 400 < left_s <= 500)
"""
    assert inside(flux_instance, script, *started) == f"True {'[2] True' if started else '[4, 4] None'}\n"


@pytest.mark.parametrize("bound", [False, True], ids=["commands", "binding"])
def test_nodes_that_are_drained_are_left_out(flux_instance: FluxInstance, bound: bool) -> None:
    script = f"""
if {bound}:
    bind()
with FluxJobExecutor() as exe:
    print([node.name for node in exe.allocation.nodes], set(exe.map(stay, [0.1] * 8)))
"""
    flux_instance.run(["flux", "resource", "drain", "1"])
    try:
        assert inside(flux_instance, script) == "['n1'] {'0'}\n"
    finally:
        flux_instance.run(["flux", "resource", "undrain", "1"])


@both_modes
def test_gpus_are_given_out_once(flux_instance: FluxInstance, kept: bool) -> None:
    script = f"""
def gpu():
    time.sleep(0.5)
    return node(), os.environ["CUDA_VISIBLE_DEVICES"]
with FluxJobExecutor(block_allocation={kept}, resource_dict={{"gpus_per_core": 1}}) as exe:
    print(sorted(f.result() for f in [exe.submit(gpu) for _ in range(4)]))
"""
    assert inside(flux_instance, script) == f"{[('0', '0'), ('0', '1'), ('1', '0'), ('1', '1')]}\n"


@both_modes
def test_a_lost_agent_takes_its_running_calls_and_no_others(flux_instance: FluxInstance, kept: bool) -> None:
    script = f"""
with FluxJobExecutor(block_allocation={kept}) as exe:
    zygotes = dict(exe.map(node_and_zygote, range(16)))
    running = [exe.submit(stay, 1.5) for _ in range(8)]
    time.sleep(0.7)
    os.kill(parent(zygotes["1"]), signal.SIGKILL)
    wait(running)
    lost = [future for future in running if future.exception()]
    print(len(lost), {{type(future.exception()).__name__ for future in lost}}, "n2" in str(lost[0].exception()))
    print(set(exe.map(stay, [0.1] * 8)))
"""
    assert inside(flux_instance, script) == "4 {'TaskNodeFailure'} True\n{'0'}\n"


@both_modes
def test_a_killed_caller_leaves_no_agent_and_no_worker(flux_instance: FluxInstance, kept: bool) -> None:
    script = f"""
read, write = os.pipe()
caller = os.fork()
if caller == 0:
    exe = FluxJobExecutor(block_allocation={kept})
    zygotes = {{zygote for _, zygote in exe.map(node_and_zygote, range(16))}}
    os.write(write, " ".join(str(pid) for zygote in zygotes for pid in (zygote, parent(zygote))).encode())
    time.sleep(60)
pids = [int(pid) for pid in os.read(read, 1000).split()]
print(len(pids), all(map(alive, pids)))
os.kill(caller, signal.SIGKILL)
os.waitpid(caller, 0)
until = time.monotonic() + 10
while any(map(alive, pids)) and time.monotonic() < until:
    time.sleep(0.1)
print([pid for pid in pids if alive(pid)])
"""
    assert inside(flux_instance, script) == "4 True\n[]\n"


@both_modes
def test_calls_have_instances_of_their_own_where_they_open_executors(flux_instance: FluxInstance, kept: bool) -> None:
    script = f"""
def inner(n):
    with FluxJobExecutor() as exe:
        return resources(), sum(exe.map(abs, range(-n, 0)))

def fail():
    raise LookupError("nothing here")

def end():
    os._exit(3)

given = {{"flux_executor_nesting": True, "block_allocation": {kept}, "resource_dict": {{"cores": 2}}, "max_workers": 2}}
with FluxJobExecutor(**given) as exe:
    print([future.result() for future in [exe.submit(inner, n) for n in (3, 4)]])
    for fn in (fail, end):
        exc = exe.submit(fn).exception()
        print(type(exc).__name__, "nothing here" in str(exc) or "exit code 3" in str(exc))
"""
    done = inside(flux_instance, script).splitlines()
    results = ast.literal_eval(done[0])
    assert [total for _, total in results] == [6, 10]
    assert [len(cores) for cores, _ in results] == [1, 1]
    assert done[1:] == ["LookupError True", "TaskKilled True"]
    deadline = time.monotonic() + 20
    while flux_instance.run(["flux", "jobs", "-n"]).stdout:  # each instance is gone with its call
        assert time.monotonic() < deadline, "instances are left"
        time.sleep(0.1)


RANKS = (
    TOOLS
    + """
def who():
    from mpi4py import MPI
    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(1), node()
"""
)


@pytest.fixture
def ranks() -> str:
    """What scripts of MPI functions begin with."""
    pytest.importorskip("mpi4py")
    return RANKS


def test_ranks_that_no_node_can_hold_are_on_both_beside_a_queue_that_is_full(
    flux_instance: FluxInstance, ranks: str
) -> None:
    """Their jobs wait for no other job, as agents do not."""
    script = """
    busy = subprocess.run(["flux", "submit", "-n8", "-c1", "sleep", "100"], capture_output=True, text=True)
    with FluxJobExecutor() as exe:
        print(exe.submit(who, resource_dict={"cores": 6}).result())
        print(exe.submit(who, resource_dict={"cores": 3, "num_nodes": 2}).result())
        beside = [exe.submit(stay, 3) for _ in range(2)]
        began = time.monotonic()
        where = [place for *_, place in exe.submit(who, resource_dict={"cores": 6}).result()]
        print(where, time.monotonic() - began < 3)
    subprocess.run(["flux", "cancel", busy.stdout.strip()])
    """
    first, second, beside = inside(flux_instance, ranks + textwrap.dedent(script)).splitlines()
    assert first == str([(rank, 6, "0" if rank < 4 else "1") for rank in range(6)])
    assert second == str([(0, 3, "0"), (1, 3, "0"), (2, 3, "1")])
    assert beside == f"{['0', '0'] + ['1'] * 4} True"


def test_ranks_of_several_nodes_have_gpus_and_cores_of_their_own(flux_instance: FluxInstance, ranks: str) -> None:
    script = """
    def gpus():
        from mpi4py import MPI
        return node(), os.environ["CUDA_VISIBLE_DEVICES"]
    with FluxJobExecutor() as exe:
        print(exe.submit(gpus, resource_dict={"cores": 3, "gpus_per_core": 1}).result())
        many = {"cores": 12, "openmpi_oversubscribe": True}
        print([place for *_, place in exe.submit(who, resource_dict=many).result()].count("1"))
        two = {"cores": 2, "gpus_per_core": 1, "num_nodes": 2}
        print([where for where, _ in exe.submit(gpus, resource_dict=two).result()])
    """
    assert inside(flux_instance, ranks + textwrap.dedent(script)).splitlines() == [
        str([("0", "0"), ("0", "1"), ("1", "0")]),
        "4",
        str(["0", "1"]),
    ]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "LookupError rank 5 has no data"),
        ("kill", "TaskKilled MPI rank 5 of 6"),
        ("abort", "TaskKilled MPI rank 5 of 6"),
    ],
)
def test_a_rank_that_fails_ends_all_and_is_named(flux_instance: FluxInstance, ranks: str, how: str, said: str) -> None:
    script = f"""
    with FluxJobExecutor() as exe:
        exc = exe.submit(misbehave, {how!r}, 5, resource_dict={{"cores": 6}}).exception(60)
        print(type(exc).__name__, {said.partition(" ")[2]!r} in str(exc) or exc)
        print(len(exe.submit(who, resource_dict={{"cores": 6}}).result(60)))
    print(within(lambda: not ranks_alive(), 10))
    """
    assert inside(flux_instance, ranks + textwrap.dedent(script)) == f"{said.partition(' ')[0]} True\n6\nTrue\n"


@both_modes
def test_pmi_mode_says_how_flux_starts_ranks_on_one_node_too(
    flux_instance: FluxInstance, ranks: str, kept: bool
) -> None:
    script = f"""
    def who_started():
        from mpi4py import MPI
        return MPI.COMM_WORLD.size, "FLUX_JOB_ID" in os.environ
    given = {{"max_workers": 1, "block_allocation": {kept}, "resource_dict": {{"cores": 2}}}}
    with FluxJobExecutor(**given) as exe:
        print(exe.submit(who_started).result())
    with FluxJobExecutor(pmi_mode="pmi1", **given) as exe:
        print([exe.submit(who_started).result() for _ in range(2)])
    with FluxJobExecutor(pmi_mode="pmix", **given) as exe:
        exc = exe.submit(who_started).exception(60)
        print(type(exc).__name__, "flux run -o pmi=pmix" in str(exc) and "name one that fits with pmi_mode" in str(exc))
    """
    assert inside(flux_instance, ranks + textwrap.dedent(script)).splitlines() == [
        str([(2, False)] * 2),
        str([[(2, True)] * 2] * 2),
        "RunnerMissing True",
    ]


def test_what_is_printed_is_in_log_files(flux_instance: FluxInstance) -> None:
    script = """
with FluxJobExecutor(flux_log_files=True) as exe:
    exe.submit(print, "from a call", flush=True).result()
print("from a call" in open("flux.out").read(), os.path.exists("flux.err"))
"""
    assert inside(flux_instance, script) == "True True\n"


@both_modes
def test_agents_are_a_job_of_flux_own_executor_which_stays_open(flux_instance: FluxInstance, kept: bool) -> None:
    script = f"""
    bind()
    from flux.job import FluxExecutor, JobspecV1
    def jobs():
        return subprocess.run(["flux", "jobs", "-no", "{{ncores}} {{nnodes}}"], capture_output=True, text=True).stdout
    with FluxExecutor() as flux_executor:
        with FluxJobExecutor(flux_executor=flux_executor, block_allocation={kept}) as exe:
            print(jobs(), sorted(exe.map(stay, [0.5] * 8)), jobs())
        print(jobs())
        jobspec = JobspecV1.from_command(["true"])
        jobspec.cwd, jobspec.environment = os.getcwd(), dict(os.environ)
        print(flux_executor.submit(jobspec).result())
"""
    assert inside(flux_instance, textwrap.dedent(script)) == f" {['0'] * 4 + ['1'] * 4} 8 2\n\n\n0\n"


def test_a_killed_caller_leaves_no_job_of_agents(flux_instance: FluxInstance) -> None:
    script = """
    bind()
    from flux.job import FluxExecutor
    caller = os.fork()
    if caller == 0:
        exe = FluxJobExecutor(flux_executor=FluxExecutor())
        exe.submit(stay, 0).result()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(caller, 0)
    until = time.monotonic() + 10
    while (left := subprocess.run(["flux", "jobs", "-n"], capture_output=True).stdout) and time.monotonic() < until:
        time.sleep(0.1)
    print(left)
    """
    assert inside(flux_instance, textwrap.dedent(script)) == "b''\n"


def test_with_nesting_calls_are_jobs_beside_a_flux_executor_and_agents_are_not(flux_instance: FluxInstance) -> None:
    script = """
    bind()
    from flux.job import FluxExecutor
    with FluxExecutor() as flux_executor:
        with FluxJobExecutor(flux_executor=flux_executor, flux_executor_nesting=True) as exe:
            print(len(exe.submit(resources).result(50)))
    """
    assert inside(flux_instance, textwrap.dedent(script)) == "1\n"


def test_agents_that_wait_behind_other_jobs_are_cancelled_when_their_caller_is_killed(
    flux_instance: FluxInstance,
) -> None:
    script = """
    bind()
    from flux.job import FluxExecutor
    def jobs():
        return len(subprocess.run(["flux", "jobs", "-n"], capture_output=True).stdout.splitlines())
    busy = subprocess.run(["flux", "submit", "-n1", "sleep", "100"], capture_output=True, text=True).stdout.strip()
    caller = os.fork()
    if caller == 0:
        FluxJobExecutor(flux_executor=FluxExecutor()).submit(stay, 0)
        time.sleep(60)
    until = time.monotonic() + 20
    while jobs() < 2 and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    until = time.monotonic() + 10
    while jobs() > 1 and time.monotonic() < until:
        time.sleep(0.1)
    print(jobs())
    subprocess.run(["flux", "cancel", busy])
    """
    assert inside(flux_instance, textwrap.dedent(script)) == "1\n"


def test_agents_that_wait_behind_other_jobs_are_cancelled_with_their_executor(flux_instance: FluxInstance) -> None:
    script = """
    bind()
    from flux.job import FluxExecutor
    busy = subprocess.run(["flux", "submit", "-n1", "sleep", "100"], capture_output=True, text=True).stdout.strip()
    with FluxExecutor() as flux_executor:
        exe = FluxJobExecutor(flux_executor=flux_executor)
        future = exe.submit(stay, 0)
        time.sleep(1)
        print(future.cancel())
        exe.shutdown(wait=False)
        until = time.monotonic() + 20
        while len(subprocess.run(["flux", "jobs", "-n"], capture_output=True).stdout.splitlines()) > 1:
            assert time.monotonic() < until
            time.sleep(0.1)
    subprocess.run(["flux", "cancel", busy])
    """
    assert inside(flux_instance, textwrap.dedent(script)) == "True\n"


def test_a_job_of_agents_whose_id_comes_too_late_is_cancelled(flux_instance: FluxInstance) -> None:
    script = """
    bind()
    from flux.job import FluxExecutor
    from remoteexec.allocation import flux
    class Late(FluxExecutor):
        def submit(self, *args, **kwargs):
            future = super().submit(*args, **kwargs)
            tell = future._set_jobid
            future._set_jobid = lambda *args: (time.sleep(2), tell(*args))
            return future
    def jobs(*options):
        return subprocess.run(["flux", "jobs", "-n", *options], capture_output=True, text=True).stdout.splitlines()
    before = len(jobs("-a"))
    with Late() as flux_executor, FluxJobExecutor(flux_executor=flux_executor) as exe:
        flux._ASK_S = 1
        try:
            exe.submit(stay, 0)
        except errors.RunnerMissing as exc:
            print("TimeoutError" in str(exc))
        flux._ASK_S = 30
        until = time.monotonic() + 20
        while (jobs() or len(jobs("-a")) == before) and time.monotonic() < until:
            time.sleep(0.1)
        print(jobs(), len(jobs("-a")) - before)
    """
    assert inside(flux_instance, textwrap.dedent(script)) == "True\n[] 1\n"


def test_a_flux_executor_that_is_shut_down_is_named(flux_instance: FluxInstance) -> None:
    script = """
    bind()
    from flux.job import FluxExecutor
    flux_executor = FluxExecutor()
    flux_executor.shutdown()
    with FluxJobExecutor(flux_executor=flux_executor) as exe:
        try:
            print(exe.submit(stay, 0).exception())
        except errors.RunnerMissing as exc:
            print("takes no job" in str(exc))
    """
    assert inside(flux_instance, textwrap.dedent(script)) == "True\n"


def test_an_instance_over_the_nodes_of_a_slurm_allocation(slurm_cluster: SlurmCluster, ranks: str) -> None:
    """Its brokers are a step; they find as many cores as this machine has, each."""
    if shutil.which("flux") is None:
        skip_for_want_of("flux", "no `flux` on PATH: flux-core is not installed")
    script = """
with FluxJobExecutor() as exe:
    nodes = exe.allocation.nodes
    each = nodes[0].cores
    print(len(nodes), sorted(exe.map(stay, [0.5] * 2 * each)) == ["0"] * each + ["1"] * each)
    print([place for *_, place in exe.submit(who, resource_dict={"cores": 2, "num_nodes": 2}).result()])
"""
    outer = f"""
inner = os.path.join(os.path.dirname(__file__), "inner.py")
open(inner, "w").write({PREAMBLE + ranks + script!r})
import subprocess
sys.stdout.flush()
instance = ["srun", "-N2", "-n2", "--mpi=pmi2", "--overlap", "--quiet", "flux", "start", sys.executable, inner]
sys.exit(subprocess.run(instance).returncode)
"""
    assert inside_slurm(slurm_cluster, outer) == "2 True\n['0', '1']\n"
