"""Agents of an allocation that needs no scheduler: its nodes are processes of this machine, started by a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("process_mark")
both_modes = pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])

PREAMBLE = """
import logging, os, resource, sys, time
from concurrent.futures import wait
from remoteexec import errors
from remoteexec.allocation.base import Allocation, Node, Step
from remoteexec.executors.allocated import AllocatedExecutor

STEP = '''
import os, subprocess, sys
told = sys.stdin.buffer.readline()
def start(node):
    agent = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, env={**os.environ, "SLURMD_NODENAME": node})
    agent.stdin.write(told)
    agent.stdin.close()
    return agent
'''

class Nodes(AllocatedExecutor):
    # Nodes of four cores; `how` starts their agents, by `start(node)`.
    def __init__(self, *args, nodes=2, cores=4, how="", end="", **options):
        self.nodes, self.cores = nodes, cores
        self.how = how or "agents = [start(f'n{n}') for n in range(1, %d)]" % (nodes + 1)
        self.how += end or "\\nfor agent in agents: agent.wait()"
        super().__init__(*args, hostname_localhost=True, **options)

    _spreads, _new_steps = False, None

    def _find_allocation(self):
        return Allocation("1", tuple(Node(f"n{n}", self.cores) for n in range(1, self.nodes + 1)))

    def _step(self):
        return Step([sys.executable, "-c", STEP + self.how], {})

def stay(s):
    time.sleep(s)
    return os.environ["SLURMD_NODENAME"]
"""


def run(script: str, said: str = "") -> str:
    """What a script prints; `said` is to be in what it complains of."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script], capture_output=True, text=True, timeout=100, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    return done.stdout


@both_modes
@pytest.mark.parametrize("who", ["relay", "agent", "caller"])
def test_calls_wait_where_no_more_files_can_be_open(who: str, kept: bool) -> None:
    """Of 80 at once not all can be, and none is lost."""
    script = f"""
logging.disable(logging.WARNING)  # that not all kept workers could be started
limit, here = 60, {who!r} == "caller"
few = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({{limit}}, {{limit}})); "
if here:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
elif {who!r} == "relay":
    from remoteexec.allocation import launcher
    launcher.START = few + launcher.START
how = "" if {who!r} != "agent" else few + "agents = [start('n1')]"
with Nodes(nodes=1, cores=80, how=how, block_allocation={kept}) as exe:
    futures = [exe.submit(stay, 0.3) for _ in range(100)]
    print({{future.result(40) for future in futures}})
"""
    assert run(script) == "{'n1'}\n"


def test_there_may_be_more_open_files_for_workers_and_workers_have_the_limit_as_it_was() -> None:
    script = """
def limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
with Nodes(nodes=1, cores=80) as exe:
    futures = [exe.submit(stay, 1.5) for _ in range(80)]
    print(exe.submit(limit).result(30), limit(), max(map(int, os.listdir("/proc/self/fd"))) >= 80)
    print(len(wait(futures, 30).done))
"""
    assert run(script) == "100 340 True\n80\n"


@both_modes
def test_calls_go_to_nodes_whose_agents_are_there_and_none_is_lost_with_another(kept: bool) -> None:
    """n2 comes after a second, n3 never."""
    how = "one = start('n1'); import time; time.sleep(1); agents = [one, start('n2')]"
    script = f"""
with Nodes(nodes=3, how={how!r}, block_allocation={kept}) as exe:
    began = time.monotonic()
    print({{future.result(20) for future in [exe.submit(stay, 0.01) for _ in range(16)]}}, time.monotonic() - began < 1)
    while exe.submit(stay, 0.1).result(20) != "n2":
        [future.result(20) for future in [exe.submit(stay, 0.1) for _ in range(8)]]
    ended = [exe.submit(stay, 0.3) for _ in range(40)]
    print({{future.result(20) for future in ended}} - {{"n1", "n2"}})
"""
    assert run(script) == "{'n1'} True\nset()\n"


@both_modes
def test_a_node_whose_agent_ends_at_once_takes_no_calls_with_it(kept: bool) -> None:
    """Its step says why; the other node has all calls."""
    how = "one = start('n1'); print('no Python on n2', file=sys.stderr); one.wait(); agents = []"
    script = f"""
with Nodes(nodes=2, how={how!r}, block_allocation={kept}) as exe:
    print({{future.result(20) for future in [exe.submit(stay, 0.1) for _ in range(20)]}})
"""
    assert run(script, "no Python on n2") == "{'n1'}\n"


STOPPED = """
import signal
from pathlib import Path
from remoteexec.allocation import launcher
launcher.PING_S = 0.5

def agents():
    # of each node, and those that hold its workers' calls
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\\0")
            environment = (entry / "environ").read_bytes().split(b"\\0")
        except OSError:
            continue
        mark = b"REMOTEEXEC_TEST_AGENTS=" + str(os.getpid()).encode()
        nodes = [value.split(b"=")[1].decode() for value in environment if value.startswith(b"SLURMD_NODENAME=")]
        if b"agent" in command and mark in environment and nodes:
            found.setdefault(nodes[0], []).append(int(entry.name))
    return found

os.environ["REMOTEEXEC_TEST_AGENTS"] = str(os.getpid())
"""


@both_modes
@pytest.mark.parametrize("which", [0, 1], ids=["agent", "zygote"])
def test_a_node_whose_agent_or_zygote_is_stopped_is_lost_and_ends_when_that_goes_on(kept: bool, which: int) -> None:
    script = f"""
with Nodes(block_allocation={kept}) as exe:
    assert {{future.result(20) for future in [exe.submit(stay, 0.5) for _ in range(8)]}} == {{"n1", "n2"}}
    of_n2 = agents()["n2"]
    stopped = sorted(of_n2)[{which}]
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    futures = [exe.submit(stay, 0.5) for _ in range(64)]
    lost = [exc for future in futures if (exc := future.exception(30)) is not None]
    assert 1 <= len(lost) <= 4 + 4, lost
    assert all(type(exc) is errors.TaskNodeFailure for exc in lost), lost
    assert all("node n2" in str(exc) and "has not answered for 3 s" in str(exc) for exc in lost), lost
    others = ["n2"] if {which} == 1 and {kept} else []  # workers that are there go on without a zygote until then
    assert sorted({{future.result() for future in futures if future.exception() is None}}) == ["n1", *others]
    assert {{exe.submit(stay, 0).result(5) for _ in range(8)}} == {{"n1"}}
    print(time.monotonic() - began < 15)
    if {which} == 0:  # its agent ends, and lets a zygote go on
        os.kill(stopped, signal.SIGCONT)
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{{pid}}/exe") for pid in of_n2) and time.monotonic() < until:
        time.sleep(0.05)
    print([pid for pid in of_n2 if os.path.exists(f"/proc/{{pid}}/exe")])
"""
    assert run(STOPPED + script) == "True\n[]\n"


@both_modes
def test_what_ends_a_node_a_moment_after_its_calls_has_ended_these(kept: bool) -> None:
    """As at a time limit, when all processes of a step are told to end, one after the other."""
    script = f"""
with Nodes(nodes=1, block_allocation={kept}) as exe:
    futures = [exe.submit(stay, 100) for _ in range(4)]
    while exe.remaining.running < 4:
        time.sleep(0.05)
    time.sleep(0.5)
    agent, zygote, *workers = sorted(agents()["n1"])
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.05)
    for pid in zygote, agent:
        os.kill(pid, signal.SIGTERM)
    print({{type(future.exception(20)).__name__ for future in futures}})
"""
    assert run(STOPPED + script, "node n1 is lost") == "{'TaskNodeFailure'}\n"


def test_nodes_are_not_lost_when_who_asks_them_was_suspended_and_goes_on() -> None:
    """As all of a job is by `scontrol suspend`: agents a moment longer than the relay."""
    script = """
import subprocess
with Nodes() as exe:
    assert {future.result(20) for future in [exe.submit(stay, 0.5) for _ in range(8)]} == {"n1", "n2"}
    relay = exe._carrier._process.pid
    stopped = [relay, *[min(pids) for pids in agents().values()]]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)
    futures = [exe.submit(stay, 0.5) for _ in range(16)]
    print({future.result(20) for future in futures} == {"n1", "n2"})
"""
    assert run(STOPPED + script) == "True\n"


def test_an_agent_that_says_nothing_for_some_seconds_keeps_its_calls_and_others_go_on() -> None:
    """What waits behind a call there is asked for in vain as soon as others are free, and again when it answers."""
    script = """
launcher.PING_S = 10
with Nodes(2, block_allocation=True) as exe:
    assert {future.result(20) for future in [exe.submit(stay, 0.5) for _ in range(8)]} == {"n1", "n2"}
    futures = [exe.submit(stay, 0.5) for _ in range(8)]
    futures[1].result(5)  # from now on a call waits behind another
    agent = min(agents()["n2"])
    os.kill(agent, signal.SIGSTOP)
    began = time.monotonic()
    while time.monotonic() - began < 7:
        assert exe.submit(stay, 0.1).result(5) == "n1"
    print(sorted({future.done() for future in futures}))
    os.kill(agent, signal.SIGCONT)
    print({future.result(5) for future in futures} == {"n1", "n2"})
"""
    assert run(STOPPED + script) == "[False, True]\nTrue\n"


def test_a_call_that_was_on_its_way_to_a_worker_that_ended_has_not_begun() -> None:
    """The relay has both before it: the call for the worker, and the report of that one's end."""
    script = """
with Nodes(1, nodes=1, block_allocation=True, restart_limit=1) as exe:
    worker, relay = exe.submit(os.getpid).result(20), exe._carrier._process.pid
    os.kill(relay, signal.SIGSTOP)
    future = exe.submit(stay, 0)
    time.sleep(0.5)
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.5)
    os.kill(relay, signal.SIGCONT)
    print(future.result(20))
"""
    assert run(STOPPED + script) == "n1\n"


@both_modes
@pytest.mark.parametrize(
    ("how", "options", "said"),
    [
        ("sys.exit('srun: unrecognized option: --nosuch')", "", "ended with exit code 1, and said: srun: unrecognized"),
        ("", 'preload=["nosuchmodule"]', "preload: nosuchmodule cannot be imported: ModuleNotFoundError"),
    ],
    ids=["step", "preload"],
)
def test_what_keeps_all_agents_from_starting_is_told(how: str, options: str, said: str, kept: bool) -> None:
    script = f"""
logging.disable(logging.WARNING)
exe = Nodes({options or "preload=[]"}, how={how!r}, block_allocation={kept})
for future in [exe.submit(stay, 0.1) for _ in range(10)]:
    exc = future.exception(20)
    assert type(exc) is errors.RunnerMissing and {said!r} in str(exc), repr(exc)
print(type(exe.submit(stay, 0).exception(5)).__name__)
"""
    assert run(script) == "RunnerMissing\n"


def test_a_long_reason_that_comes_in_pieces_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text("raise LookupError('x' * 3_000_000 + ' at the end')")
    script = f"""
logging.disable(logging.WARNING)
sys.path.append({str(tmp_path)!r})
with Nodes(preload=["talkative"]) as exe:
    exc = exe.submit(stay, 0).exception(60)
    print(type(exc).__name__, "talkative cannot be imported: LookupError: " in str(exc), " at the end" in str(exc))
"""
    assert run(script) == "RunnerMissing True True\n"


@both_modes
def test_what_the_scheduler_says_when_it_ends_a_node_is_in_the_errors(kept: bool) -> None:
    """As slurmstepd of a node says that a step has exceeded its memory, among what calls print."""
    how = """
import time
agents = [start("n1")]
while not os.path.exists(os.environ["END"]): time.sleep(0.02)
for line in ("of a call", "slurmstepd: error: Step 1.0 exceeded memory limit"): print(line, file=sys.stderr, flush=True)
time.sleep(0.3)
agents[0].kill()
"""
    script = f"""
import tempfile
logging.disable(logging.WARNING)
os.environ["END"] = end = os.path.join(tempfile.mkdtemp(), "end")
with Nodes(nodes=1, how={how!r}, block_allocation={kept}) as exe:
    exe.submit(stay, 0).result(20)
    future = exe.submit(stay, 30)
    time.sleep(0.3)
    open(end, "w").close()
    print(type(future.exception(20)).__name__, str(future.exception()).partition(": ")[2])
"""
    assert run(script) == "TaskNodeFailure slurmstepd: error: Step 1.0 exceeded memory limit\n"
