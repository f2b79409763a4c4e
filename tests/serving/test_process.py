"""What a process asks of the operating system; in a process of its own, as it cannot be taken back."""

import subprocess
import sys

RAISE = """
import resource
from serving.process import raise_file_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
assert raise_file_limit() == hard
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
files = [open("/dev/null") for _ in range(200)]
"""


def test_a_router_may_have_as_many_connections_open_as_the_machine_allows_it() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RAISE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
