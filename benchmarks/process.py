"""A server in processes of its own, from the moment it answers until none of them is left."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from benchmarks.errors import BenchmarkError

READY_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1


@contextmanager
def running(command: Sequence[str], *, ready_url: str, log: Path) -> Iterator[None]:
    """Run ``command`` in a session of its own while the block runs, which begins when ``ready_url`` answers 200.

    A URL such as ``tcp://127.0.0.1:8001`` answers when somebody listens there.

    Raises:
        BenchmarkError: it ended, or did not answer within READY_TIMEOUT_S; shows the end of ``log``.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until(
            lambda: _answers(ready_url) or process.poll() is not None,
            timeout_s=READY_TIMEOUT_S,
            what=f"{ready_url} answers",
        )
        if process.poll() is not None:
            raise BenchmarkError(f"{command[0]} ended with status {process.returncode}: {_end_of(log)}")
        yield
    finally:
        _stop(process)


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Poll until a condition holds.

    Raises:
        BenchmarkError: it does not within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(_POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on at present."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _answers(url: str) -> bool:
    address = httpx.URL(url)
    if address.scheme == "tcp":
        with socket.socket() as sock:
            return sock.connect_ex((address.host, address.port)) == 0
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask it to end; whatever of its group is left then, or when this is cut short, is killed."""
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_of(log: Path) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
