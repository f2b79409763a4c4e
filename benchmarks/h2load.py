"""Closed-loop load over HTTP/2 from nghttp2's h2load: every connection has one call of gRPC under way at a time."""

import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.errors import BenchmarkError

_GRACE_S: Final = 30.0
_RATE: Final = re.compile(r"finished in [^,]+, ([\d.]+) req/s")
_COUNTS: Final = re.compile(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")


def call_rate(url: str, message: bytes, *, connections: int, seconds: float, scratch: Path) -> float:
    """Calls a second with ``message`` to the method at ``url``, after a second of warm-up.

    Raises:
        BenchmarkError: h2load is not installed or failed, or a call was not answered with HTTP 200.
    """
    if shutil.which("h2load") is None:
        raise BenchmarkError("h2load: not found; it makes the load (Debian and Ubuntu: apt-get install nghttp2-client)")
    body = scratch / "message.bin"
    body.write_bytes(struct.pack(">BL", 0, len(message)) + message)
    command = [
        "h2load",
        "--clients",
        str(connections),
        "--duration",
        f"{max(1, round(seconds))}",
        "--warm-up-time",
        "1",
    ]
    command += ["--data", str(body), "--header", "content-type: application/grpc", "--header", "te: trailers", url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE_S, check=False)
    rate, counts = _RATE.search(ended.stdout), _COUNTS.search(ended.stdout)
    if ended.returncode != 0 or rate is None or counts is None:
        raise BenchmarkError(f"h2load: {(ended.stderr or ended.stdout).strip()[-200:]}")
    if int(counts[1]) == 0 or any(int(count) for count in counts.groups()[1:]):
        raise BenchmarkError(f"h2load: {counts[0]}")
    return float(rate[1])
