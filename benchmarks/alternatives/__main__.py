"""``python -m benchmarks.alternatives``: what the data plane's doors and channel were chosen over.

Each round measures every alternative once, in an order that alternates; figures are medians over the rounds. Needs the
extra ``bench``.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.alternatives.channels import CHANNELS
from benchmarks.alternatives.doors import DOORS
from benchmarks.alternatives.grpc_doors import GRPC_DOORS, PATH
from benchmarks.environment import PACKAGES, describe
from benchmarks.errors import BenchmarkError
from benchmarks.h2load import call_rate
from benchmarks.load import Request, Wrk
from benchmarks.process import free_ports, running
from benchmarks.report import RESULTS, origin, say, table, write

_SMALL: Final = 360
_IMAGE: Final = 602_112
_CONNECTIONS: Final = (1, 8, 64)
_TRIPS: Final = 4000
_TIMEOUT_S: Final = 60
Figures = dict[tuple[str, int, int], list[float]]


def main() -> int:
    """Measure, and write ``alternatives.json`` and ``alternatives.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of a server")
    parser.add_argument("--trips", type=int, default=_TRIPS, help="round trips of each measurement of a channel")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    environment = describe((*PACKAGES, "aiohttp", "granian", "grpcio", "grpclib", "pyzmq"))
    with tempfile.TemporaryDirectory() as folder:
        doors = _doors(Path(folder), options.rounds, options.seconds)
        grpc_doors = _grpc_doors(Path(folder), options.rounds, options.seconds)
        channels = _channels(Path(folder), options.rounds, options.trips)
    markdown = _markdown(environment, doors, grpc_doors, channels, options)
    document = {
        "environment": environment,
        "rounds": options.rounds,
        "doors_requests_per_s": [
            {"server": name, "body_bytes": size, "connections": count, "values": values}
            for (name, size, count), values in doors.items()
        ],
        "grpc_doors_calls_per_s": [
            {"server": name, "message_bytes": size, "connections": count, "values": values}
            for (name, size, count), values in grpc_doors.items()
        ],
        "channels_us": [
            {"channel": name, "payload_bytes": size, "values": values} for (name, size, _), values in channels.items()
        ],
    }
    write(options.out, "alternatives", document, markdown)
    print(markdown)
    return 0


def _doors(scratch: Path, rounds: int, seconds: float) -> Figures:
    figures: Figures = {}
    wrk = Wrk(scratch)
    ports = dict(zip(DOORS, free_ports(len(DOORS)), strict=True))
    with ExitStack() as stack:
        for name, port in ports.items():
            command = [sys.executable, "-m", "benchmarks.alternatives.doors", name, str(port)]
            url = f"http://127.0.0.1:{port}/"
            stack.enter_context(running(command, ready_url=url, log=scratch / f"{name}.log"))
        for turn in range(rounds):
            say(f"servers, round {turn + 1} of {rounds}")
            for size in (_SMALL, _IMAGE):
                request = Request(path="/v2/models/digits/infer", headers={}, body=bytes(size))
                for count in _CONNECTIONS:
                    for name in list(DOORS) if turn % 2 == 0 else list(DOORS)[::-1]:
                        url = f"http://127.0.0.1:{ports[name]}"
                        sample = wrk.run(url, request, connections=count, seconds=seconds)
                        figures.setdefault((name, size, count), []).append(sample.requests_per_s)
    return figures


def _grpc_doors(scratch: Path, rounds: int, seconds: float) -> Figures:
    figures: Figures = {}
    ports = dict(zip(GRPC_DOORS, free_ports(len(GRPC_DOORS)), strict=True))
    with ExitStack() as stack:
        for name, port in ports.items():
            command = [sys.executable, "-m", "benchmarks.alternatives.grpc_doors", name, str(port)]
            stack.enter_context(running(command, ready_url=f"tcp://127.0.0.1:{port}", log=scratch / f"grpc-{name}.log"))
        for turn in range(rounds):
            say(f"servers of gRPC, round {turn + 1} of {rounds}")
            for size in (_SMALL, _IMAGE):
                for count in _CONNECTIONS:
                    for name in list(GRPC_DOORS) if turn % 2 == 0 else list(GRPC_DOORS)[::-1]:
                        url = f"http://127.0.0.1:{ports[name]}{PATH}"
                        rate = call_rate(url, bytes(size), connections=count, seconds=seconds, scratch=scratch)
                        figures.setdefault((name, size, count), []).append(rate)
    return figures


def _channels(scratch: Path, rounds: int, trips: int) -> Figures:
    figures: Figures = {}
    for turn in range(rounds):
        say(f"channels, round {turn + 1} of {rounds}")
        for size in (_SMALL, _IMAGE):
            for name in list(CHANNELS) if turn % 2 == 0 else list(CHANNELS)[::-1]:
                if size == _SMALL and "arena" in name:
                    continue  # what is small is not put there
                count = trips if size == _SMALL else trips // 4
                figures.setdefault((name, size, 0), []).append(_measure(name, scratch, size, count))
    return figures


def _measure(name: str, scratch: Path, size: int, trips: int) -> float:
    """Microseconds of a round trip, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.alternatives.channels", name, str(scratch), str(size), str(trips)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if ended.returncode != 0:
        raise BenchmarkError(f"{name}: {ended.stderr.strip().splitlines()[-1]}")
    return float(ended.stdout)


def _markdown(
    environment: Mapping[str, Any],
    doors: Figures,
    grpc_doors: Figures,
    channels: Figures,
    options: argparse.Namespace,
) -> str:
    trips = [[name, *(_median(channels.get((name, size, 0))) for size in (_SMALL, _IMAGE))] for name in CHANNELS]
    return "\n\n".join(
        [
            "# What the data plane's parts were chosen over",
            origin(environment),
            f"Medians over {options.rounds} alternating rounds; the load on the same machine.",
            "## HTTP servers that read a body and answer 200 bytes: requests/s",
            _rates(DOORS, doors),
            "## Servers of gRPC that answer a message with 200 bytes: calls/s",
            _rates(GRPC_DOORS, grpc_doors),
            "## A message to another process and its reply: microseconds",
            table(["channel", _size(_SMALL), _size(_IMAGE)], trips),
        ]
    )


def _rates(names: Iterable[str], figures: Figures) -> str:
    columns = [(size, count) for size in (_SMALL, _IMAGE) for count in _CONNECTIONS]
    rows = [[name, *(f"{statistics.median(figures[name, *column]):.0f}" for column in columns)] for name in names]
    return table(["server", *(f"{_size(size)}, c = {count}" for size, count in columns)], rows)


def _median(values: list[float] | None) -> str:
    return "–" if values is None else f"{statistics.median(values):.1f}"


def _size(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size // 1000} KB"


if __name__ == "__main__":
    sys.exit(main())
