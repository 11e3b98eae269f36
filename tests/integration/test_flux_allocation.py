"""FluxJobExecutor in a Flux instance of two nodes: where calls run, instances of their own, and what is lost."""

from __future__ import annotations

import ast
import itertools
import os
import sys
import time
from pathlib import Path

import pytest

from tests.clusters.flux import FluxInstance

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
"""
_numbers = itertools.count()
both_modes = pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])


def inside(flux: FluxInstance, script: str, *started: str) -> str:
    """What a script prints in the instance, or in what a command of Flux's starts it in."""
    home = flux.make_directory(f"allocation-{next(_numbers)}")
    file = home / "script.py"
    file.write_text(PREAMBLE + script, encoding="utf-8")
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "server_side"), os.environ.get("PYTHONPATH", "")])
    variables = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1"]
    done = flux.run(["env", "-C", str(home), *variables, *started, sys.executable, str(file)], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
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


def test_what_is_printed_is_in_log_files(flux_instance: FluxInstance) -> None:
    script = """
with FluxJobExecutor(flux_log_files=True) as exe:
    exe.submit(print, "from a call", flush=True).result()
print("from a call" in open("flux.out").read(), os.path.exists("flux.err"))
"""
    assert inside(flux_instance, script) == "True True\n"
