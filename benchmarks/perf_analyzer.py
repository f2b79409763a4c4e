"""NVIDIA's ``perf_analyzer``, the load that Triton's users know: fetched once, run, and read.

``python -m benchmarks.perf_analyzer`` fetches it. It is inside a wheel of tritonclient, and links two libraries that
few machines have; all three go into a folder of their own (``.venv-peers/perf_analyzer``), installed nowhere.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from benchmarks.errors import BenchmarkError
from benchmarks.report import say

Protocol = Literal["http", "grpc"]
CACHE: Final = Path(__file__).resolve().parents[1] / ".venv-peers"
# Later wheels of tritonclient want a newer glibc than Debian 12 has.
_WHEELS: Final = (
    "tritonclient==2.51.0 --hash=sha256:c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52",
    "nvidia-cuda-runtime-cu12==12.9.79 --hash=sha256:25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
)
_PLATFORMS: Final = ("manylinux1_x86_64", "manylinux2014_x86_64")
_PACKAGE: Final = "libb64-0d"
VERSION: Final = "2.51.0"  # of Triton, whose clients it came with
_PROGRAM: Final = "tritonclient-2.51.0.data/data/bin/perf_analyzer"
_LIBRARIES: Final = ("nvidia/cuda_runtime/lib", "usr/lib/x86_64-linux-gnu")
_GRACE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """The program, and the environment that it needs."""

    path: Path
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One measurement: what the clients saw, and what the server's statistics say of the same time.

    ``errors`` is 0: ``perf_analyzer`` gives up at the first failed request, which ``run`` raises.
    Throughput counts rows, which is requests at batch size 1. A server without statistics has zeros for its own.
    """

    concurrency: int
    requests: int
    errors: int
    throughput: float
    mean_us: float
    sd_us: float
    p50_us: float
    p90_us: float
    p95_us: float
    p99_us: float
    server_inferences: int
    server_executions: int
    server_successes: int
    server_mean_us: Mapping[str, float]

    @classmethod
    def from_output(cls, output: str, concurrency: int) -> Self:
        """Read what it printed.

        Raises:
            BenchmarkError: a figure is missing.
        """
        client, _, server = output.partition("Server:")
        return cls(
            concurrency=concurrency,
            requests=int(_figure(client, r"Request count: (\d+)")),
            errors=0,
            throughput=_figure(client, r"Throughput: ([\d.]+) infer/sec"),
            mean_us=_figure(client, r"Avg latency: (\d+) usec"),
            sd_us=_figure(client, r"standard deviation (\d+) usec"),
            p50_us=_figure(client, r"p50 latency: (\d+) usec"),
            p90_us=_figure(client, r"p90 latency: (\d+) usec"),
            p95_us=_figure(client, r"p95 latency: (\d+) usec"),
            p99_us=_figure(client, r"p99 latency: (\d+) usec"),
            **_of_server(server),
        )

    def to_json(self) -> dict[str, Any]:
        """The profile as plain values."""
        return asdict(self)


def installed(cache: Path = CACHE) -> Tool | None:
    """The program, if it was fetched before."""
    folder = cache / "perf_analyzer"
    if not (folder / ".complete").exists():
        return None
    libraries = ":".join(str(folder / each) for each in _LIBRARIES)
    return Tool(path=folder / _PROGRAM, env={**os.environ, "LD_LIBRARY_PATH": libraries})


def ensure(cache: Path = CACHE) -> Tool:
    """The program; fetched first if it is not below ``cache`` yet.

    Raises:
        BenchmarkError: pip or apt cannot fetch a part of it.
    """
    found = installed(cache)
    if found is not None:
        return found
    folder = cache / "perf_analyzer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"fetching perf_analyzer into {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        _fetch(Path(scratch), folder)
    program = folder / _PROGRAM
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / ".complete").touch()
    tool = installed(cache)
    assert tool is not None
    return tool


def run(
    url: str,
    protocol: Protocol,
    model: str,
    concurrency: int,
    *,
    batch_size: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 2.0,
    trials: int = 5,
    stability_percent: float = 20.0,
    request_count: int | None = None,
    options: Sequence[str] = (),
    cache: Path = CACHE,
) -> Profile:
    """Load ``model`` at ``url`` (host:port) with ``concurrency`` requests at a time, each sent when another is back.

    It measures windows of ``seconds`` until three agree within ``stability_percent``, at most ``trials``; or, given
    ``request_count``, exactly one window of that many requests. ``shapes`` names sizes for inputs whose dimensions are
    variable beyond the batch; the tensors' values are random. ``options`` are passed on as they are.

    Raises:
        BenchmarkError: it ended with another status than 0, as it does at the first request that fails.
    """
    tool = ensure(cache)
    command = [str(tool.path), "-m", model, "-u", url, "-i", protocol, "-b", str(batch_size)]
    command += ["--concurrency-range", f"{concurrency}:{concurrency}", "-s", f"{stability_percent:g}"]
    if request_count is None:
        command += ["-p", str(round(seconds * 1000)), "-r", str(trials)]
    else:
        command += ["--request-count", str(request_count)]
    for name, shape in (shapes or {}).items():
        command += ["--shape", f"{name}:{','.join(map(str, shape))}"]
    timeout_s = seconds * trials + _GRACE_S
    try:
        ended = subprocess.run(
            [*command, *options], env=tool.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"perf_analyzer: not done within {timeout_s:.0f} s") from None
    if ended.returncode != 0:
        said = " | ".join((ended.stderr or ended.stdout).strip().splitlines()[-3:])
        raise BenchmarkError(f"perf_analyzer: ended with status {ended.returncode}: {said}")
    return Profile.from_output(ended.stdout, concurrency)


def _of_server(text: str) -> dict[str, Any]:
    """The figures of the server's statistics, which are left out where none of them moved."""
    if not text.strip():
        return {"server_inferences": 0, "server_executions": 0, "server_successes": 0, "server_mean_us": {}}
    stages = ("queue", "compute input", "compute infer", "compute output")
    means = {stage.replace(" ", "_"): _figure(text, rf"\b{stage} (\d+) usec") for stage in stages}
    return {
        "server_inferences": int(_figure(text, r"Inference count: (\d+)")),
        "server_executions": int(_figure(text, r"Execution count: (\d+)")),
        "server_successes": int(_figure(text, r"Successful request count: (\d+)")),
        "server_mean_us": {"request": _figure(text, r"Avg request latency: (\d+) usec"), **means},
    }


def _figure(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise BenchmarkError(f"perf_analyzer: expected {pattern!r} in its output, got {text.strip()[-200:]!r}")
    return float(found[1])


def _fetch(scratch: Path, folder: Path) -> None:
    wanted = scratch / "wheels.txt"
    wanted.write_text("\n".join(_WHEELS) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", *(f"--platform={each}" for each in _PLATFORMS), "--require-hashes"]
    _call([*pip, "--requirement", str(wanted), "--dest", str(scratch)], scratch)
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    _call(["apt-get", "download", "--quiet", "--quiet", _PACKAGE], scratch)
    for package in scratch.glob("*.deb"):
        _call(["dpkg-deb", "--extract", str(package), str(folder)], scratch)


def _call(command: list[str], folder: Path) -> None:
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchmarkError(f"{command[0]}: not found; perf_analyzer is fetched on Debian and Ubuntu only") from None
    if ended.returncode != 0:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BenchmarkError(f"{' '.join(command[:4])}: {last[0]}")


if __name__ == "__main__":
    say(f"perf_analyzer: {ensure().path}")
