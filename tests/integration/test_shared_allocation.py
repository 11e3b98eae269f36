"""Shared objects on the nodes of an allocation: how many copies there are, what they hold up, and what becomes of them.

What holds on one machine, too, is in test_shared.py, which tests/contract/test_allocation.py runs in an allocation.
"""

from __future__ import annotations

import sys

import pytest

from tests.clusters.flux import FluxInstance
from tests.clusters.rootless import SlurmCluster
from tests.integration import test_allocation, test_flux_allocation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="share needs Linux")
both_modes = pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
PREAMBLE = """
import numpy as np

MB = 1 << 20

def copies_of(pid):
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            place = f"/proc/{pid}/fd/{name}"
            if "remoteexec shared" in os.readlink(place):
                found.append(os.stat(place).st_ino)
        except OSError:
            continue
    return found

def file_and_agent(array):
    time.sleep(0.05)
    address = array.ctypes.data
    for line in open("/proc/self/maps"):
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            zygote = os.getppid()
            agent = int(open(f"/proc/{zygote}/stat").read().rpartition(")")[2].split()[1])
            return os.environ["REMOTEEXEC_NODE"], int(line.split()[4]), agent

def total(array):
    return float(array.sum())

def total_later(array, s):
    time.sleep(s)
    return float(array.sum())

def within(condition, timeout_s=30):
    until = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return bool(condition())

def size_mb(pid):
    return int(open(f"/proc/{pid}/status").read().partition("VmHWM:")[2].split()[0]) >> 10  # the most it ever had

def relay_of(exe):
    return exe._pool._zygote._process.pid

def seen_on_both_nodes(exe, shared):
    seen = set()
    while len({node for node, *_ in seen}) < 2:
        seen |= {future.result() for future in [exe.submit(file_and_agent, shared) for _ in range(40)]}
    return sorted(seen)

def agents_of(exe):
    return [agent for *_, agent in seen_on_both_nodes(exe, exe.share(1.5 * np.ones(10)))]
"""
COUNT_COPIES = """
with {executor}(block_allocation={kept}) as exe:
    shared = exe.share(np.ones(MB))
    seen = seen_on_both_nodes(exe, shared)
    agents = [agent for *_, agent in seen]
    print(len(seen), len({{file for _, file, _ in seen}}), [len(copies_of(agent)) for agent in agents])
    again = exe.share(np.ones(MB))
    print(exe.submit(total, again).result(), [len(copies_of(agent)) for agent in agents])
    running = exe.submit(total_later, shared, 1)
    within(running.running)
    again.release()
    del shared
    print(any(copies_of(agent) for agent in agents), running.result())
    print(within(lambda: not any(copies_of(agent) for agent in agents)), copies_of(relay_of(exe)), copies_of("self"))
    anew = exe.share(np.ones(MB))
    print(exe.submit(total, anew).result())
"""
COUNTED = "2 2 [1, 1]\n1048576.0 [1, 1]\nTrue 1048576.0\nTrue [] []\n1048576.0\n"


def inside(cluster: SlurmCluster, script: str) -> str:
    return test_allocation.inside(cluster, PREAMBLE + script)


@both_modes
def test_each_node_has_one_copy_which_goes_with_handle_and_calls(slurm_cluster: SlurmCluster, kept: bool) -> None:
    assert inside(slurm_cluster, COUNT_COPIES.format(executor="SlurmJobExecutor", kept=kept)) == COUNTED


@both_modes
def test_so_has_each_node_of_a_flux_instance(flux_instance: FluxInstance, kept: bool) -> None:
    script = PREAMBLE + COUNT_COPIES.format(executor="FluxJobExecutor", kept=kept)
    assert test_flux_allocation.inside(flux_instance, script) == COUNTED


def test_ranks_of_a_call_receive_it(slurm_cluster: SlurmCluster) -> None:
    pytest.importorskip("mpi4py")
    script = """
with SlurmJobExecutor() as exe:
    shared = exe.share(np.ones(MB))
    print(exe.submit(total, shared, resource_dict={"cores": 2}).result())
"""
    assert inside(slurm_cluster, script) == f"{[float(1 << 20)] * 2}\n"


@both_modes
def test_a_node_that_is_lost_while_it_is_sent_an_object_takes_no_other_with_it(
    slurm_cluster: SlurmCluster, kept: bool
) -> None:
    script = f"""
with SlurmJobExecutor(block_allocation={kept}) as exe:
    small, large = exe.share(np.ones(10)), exe.share(np.ones(40 * MB))
    one, other = agents_of(exe)
    within(lambda: not copies_of(other))
    futures = [exe.submit(total_later, large, 0.5) for _ in range(8)]
    within(lambda: copies_of(other))
    os.kill(other, signal.SIGKILL)
    wait(futures)
    lost = [future for future in futures if isinstance(future.exception(), errors.TaskNodeFailure)]
    print(0 < len(lost) <= 4, {{future.result() for future in futures if future not in lost}})
    print(exe.submit(total, small).result())
    large.release()
    print(within(lambda: len(copies_of(one)) == 1), within(lambda: len(copies_of(relay_of(exe))) == 1))
"""
    assert inside(slurm_cluster, script) == f"True {{{40.0 * (1 << 20)}}}\n10.0\nTrue True\n"


def test_a_node_that_comes_late_gets_its_copy_all_the_same(slurm_cluster: SlurmCluster) -> None:
    script = """
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "comes_late.py"), "w") as file:
    file.write("import os, time\\ntime.sleep(3 * (os.environ['SLURMD_NODENAME'] == 'n2'))\\n")
with SlurmJobExecutor(preload=["comes_late"]) as exe:
    released, shared = exe.share(np.zeros(MB)), exe.share(np.ones(MB))
    futures = [exe.submit(file_and_agent, shared) for _ in range(8)]
    print({future.result()[0] for future in futures})
    released.release()
    later = exe.share(np.ones(2 * MB))
    print(len(seen_on_both_nodes(exe, shared)), len(seen_on_both_nodes(exe, later)))
"""
    assert inside(slurm_cluster, script) == "{'n1'}\n2 2\n"


def test_a_large_object_is_in_memory_once_on_each_node_and_holds_nothing_up(slurm_cluster: SlurmCluster) -> None:
    script = """
with SlurmJobExecutor(8, block_allocation=True) as exe:
    agents = agents_of(exe)
    large = exe.share(np.ones(40 * MB))
    futures = [exe.submit(total, large) for _ in range(2)]
    answered = 0
    while not any(future.done() for future in futures):
        exe.submit(abs, -1).result()
        answered += 1
    print(answered > 20, [future.result() for future in futures], len(seen_on_both_nodes(exe, large)))
    print([pid for pid in (*agents, relay_of(exe)) if size_mb(pid) > 80])
"""
    assert inside(slurm_cluster, script) == f"True {[40.0 * (1 << 20)] * 2} 2\n[]\n"


@both_modes
def test_a_node_without_room_fails_its_calls_with_the_reason_and_is_not_lost(
    slurm_cluster: SlurmCluster, kept: bool
) -> None:
    script = f"""
import resource
with SlurmJobExecutor(block_allocation={kept}) as exe:
    agents = agents_of(exe)
    small, large = exe.share(np.ones(10)), exe.share(np.ones(2 * MB))
    for agent in agents:
        _, most = resource.prlimit(agent, resource.RLIMIT_FSIZE)
        resource.prlimit(agent, resource.RLIMIT_FSIZE, (MB, most))  # of each file, in memory too
    futures = [exe.submit(total, shared) for shared in [small, large] * 8]
    wait(futures)
    print({{future.result() for future in futures[::2]}})
    print({{type(future.exception()).__name__ for future in futures[1::2]}})
    print(futures[1].exception())
    for agent in agents:
        resource.prlimit(agent, resource.RLIMIT_FSIZE, (most, most))
    print(len(seen_on_both_nodes(exe, large)))
"""
    said = inside(slurm_cluster, script).splitlines()
    assert "has no room for a copy of a shared object of 1678" in said.pop(2)
    assert said == ["{10.0}", "{'RemoteTaskError'}", "2"]


def test_a_call_that_is_cancelled_while_it_waits_for_an_object_leaves_nothing(slurm_cluster: SlurmCluster) -> None:
    script = """
with SlurmJobExecutor() as exe:
    small, large = exe.share(np.ones(10)), exe.share(np.ones(MB))
    node, _, agent = exe.submit(file_and_agent, small).result()
    os.kill(relay_of(exe), signal.SIGSTOP)
    future = exe.submit(total, large)
    large.release()
    time.sleep(0.2)
    os.kill(relay_of(exe), signal.SIGCONT)
    future.cancel()
    print(within(lambda: len(copies_of(relay_of(exe))) == 1), exe.submit(total, small).result())
    print(within(lambda: len(copies_of(agent)) <= 1))
"""
    assert inside(slurm_cluster, script) == "True 10.0\nTrue\n"
