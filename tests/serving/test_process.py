"""What a process asks of the operating system; in a process of its own, as it cannot be taken back."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.process import sessions_compete

RAISE = """
import resource
from serving.process import raise_file_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
assert raise_file_limit() == hard
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
files = [open("/dev/null") for _ in range(200)]
"""

GIVE_BACK = """
import time
from pathlib import Path
from serving.process import give_back_freed_memory, keep_freed_memory

def held_mb():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

keep_freed_memory()
before = held_mb()
backlog = [bytearray(600_000) for _ in range(64)]
lasting = bytearray(600_000)
backlog.clear()
assert held_mb() > before + 32, "what was freed is kept, for the next batch"
give_back_freed_memory(every_s=0.05)
deadline = time.monotonic() + 10
while held_mb() > before + 8 and time.monotonic() < deadline:
    time.sleep(0.01)
assert held_mb() < before + 8, "and returned after a while"
"""


def test_a_router_may_have_as_many_connections_open_as_the_machine_allows_it() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RAISE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_burst_freed_goes_back_to_the_machine_after_a_while() -> None:
    done = subprocess.run([sys.executable, "-c", GIVE_BACK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("enabled", "cgroup", "weights", "compete"),
    [
        ("1\n", "0::/\n", [], True),  # bare metal
        ("0\n", "0::/\n", [], False),
        (None, "0::/\n", [], False),  # a kernel without the feature
        ("1\n", "0::/system.slice/x\n", ["system.slice/x"], False),  # a service with a share of its own
        ("1\n", "0::/system.slice/x\n", [], True),  # the controller is off there
        ("1\n", "0::/\n", [""], False),  # a container: the group is the root of what can be seen
        ("1\n", "3:cpu,cpuacct:/\n0::/\n", [], True),
        ("1\n", "3:cpu,cpuacct:/docker/x\n0::/\n", [], False),
        ("1\n", "2:cpuset:/x\n3:cpu:/\n0::/\n", [], True),
    ],
)
def test_sessions_compete_where_autogroup_rules(
    tmp_path: Path, enabled: str | None, cgroup: str, weights: list[str], compete: bool
) -> None:
    proc = tmp_path / "proc"
    (proc / "sys" / "kernel").mkdir(parents=True)
    (proc / "self").mkdir()
    if enabled is not None:
        (proc / "sys" / "kernel" / "sched_autogroup_enabled").write_text(enabled)
    (proc / "self" / "cgroup").write_text(cgroup)
    for group in weights:
        folder = tmp_path / "sys" / "fs" / "cgroup" / group
        folder.mkdir(parents=True)
        (folder / "cpu.weight").write_text("100")
    assert sessions_compete(tmp_path) is compete
