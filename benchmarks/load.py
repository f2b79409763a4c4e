"""Closed-loop HTTP load from wrk: every connection sends its next request when it has the answer to the last."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx

from benchmarks.errors import BenchmarkError

_MARK: Final = "understudy-sample "
_GRACE_S: Final = 30.0
_SCRIPT: Final = """
local file = assert(io.open({body}, "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency)
  local failed = 0
  for _, count in pairs(summary.errors) do failed = failed + count end
  io.write(string.format(
    '\\n{mark}{{"requests": %d, "failed": %d, "duration_us": %d, "mean_us": %f, "sd_us": %f, ' ..
    '"p50_us": %d, "p90_us": %d, "p99_us": %d}}\\n',
    summary.requests, failed, summary.duration, latency.mean, latency.stdev,
    latency:percentile(50), latency:percentile(90), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, sent again and again: its path, headers and body."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the clients saw of one run.

    Attributes:
        connections: how many clients there were; of an open loop, at most how many.
        failed: answers other than 2xx/3xx, broken connections and what was not answered in time.
        sd_ms: the standard deviation of the latency.
    """

    connections: int
    requests: int
    failed: int
    requests_per_s: float
    mean_ms: float
    sd_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def from_wrk(cls, output: str, connections: int) -> Self:
        """Read what the script above wrote.

        Raises:
            BenchmarkError: it wrote nothing.
        """
        line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
        if line is None:
            raise BenchmarkError(f"wrk: expected a summary, got {output.strip()[-200:]!r}")
        value = json.loads(line.removeprefix(_MARK))
        return cls(
            connections=connections,
            requests=value["requests"],
            failed=value["failed"],
            requests_per_s=value["requests"] / (value["duration_us"] / 1e6),
            **{f"{name}_ms": value[f"{name}_us"] / 1000 for name in ("mean", "sd", "p50", "p90", "p99")},
        )

    def to_json(self) -> dict[str, Any]:
        """The sample as plain values."""
        return asdict(self)


class Wrk:
    """Runs wrk; its scripts and bodies lie in ``scratch``.

    Raises:
        BenchmarkError: wrk is not installed.
    """

    def __init__(self, scratch: Path) -> None:
        if shutil.which("wrk") is None:
            raise BenchmarkError("wrk: not found; it makes the load (Debian and Ubuntu: apt-get install wrk)")
        self._scratch = scratch

    def run(self, base_url: str, request: Request, *, connections: int, seconds: float) -> Sample:
        """Load ``base_url`` for whole seconds (at least one) with one request per connection at a time.

        Raises:
            BenchmarkError: wrk failed, or the server was not there.
        """
        command = [
            "wrk",
            "--threads",
            "1",
            "--connections",
            str(connections),
            "--duration",
            f"{max(1, round(seconds))}s",
        ]
        command += ["--timeout", "10s", "--script", str(self._script(request)), base_url + request.path]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE_S, check=False)
        if ended.returncode != 0:
            raise BenchmarkError(f"wrk: {(ended.stderr or ended.stdout).strip()}")
        return Sample.from_wrk(ended.stdout, connections)

    def _script(self, request: Request) -> Path:
        body, script = self._scratch / "body.bin", self._scratch / "request.lua"
        body.write_bytes(request.body)
        headers = "\n".join(
            f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in request.headers.items()
        )
        script.write_text(_SCRIPT.format(body=json.dumps(str(body)), headers=headers, mark=_MARK), encoding="utf-8")
        return script


def ask(base_url: str, request: Request) -> httpx.Response:
    """Send one request.

    Raises:
        BenchmarkError: any answer but 200, because the figures that followed would be those of errors.
    """
    with httpx.Client(trust_env=False, timeout=30) as client:
        try:
            answer = client.post(base_url + request.path, content=request.body, headers=dict(request.headers))
        except httpx.TransportError as error:
            raise BenchmarkError(f"{base_url}{request.path}: {error}") from None
    if answer.status_code != httpx.codes.OK:
        raise BenchmarkError(f"{base_url}{request.path}: expected 200, got {answer.status_code}: {answer.text[:200]}")
    return answer
