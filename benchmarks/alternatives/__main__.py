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
from dataclasses import dataclass
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
_TRIPS: Final = 4000
_TIMEOUT_S: Final = 60
Figures = dict[tuple[str, int, int], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How often and how long each alternative is measured.

    ``seconds`` is that of one measurement of a server, ``trips`` are the round trips of one of a channel, and ``sizes``
    are of a body in bytes.
    """

    rounds: int = 5
    seconds: float = 2.0
    trips: int = _TRIPS
    connections: tuple[int, ...] = (1, 8, 64)
    sizes: tuple[int, ...] = (_SMALL, _IMAGE)


def main() -> int:
    """Measure, and write ``alternatives.json`` and ``alternatives.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of a server")
    parser.add_argument("--trips", type=int, default=_TRIPS, help="round trips of each measurement of a channel")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    document, markdown = measure(Plan(rounds=options.rounds, seconds=options.seconds, trips=options.trips))
    write(options.out, "alternatives", document, markdown)
    print(markdown)
    return 0


def measure(plan: Plan) -> tuple[dict[str, Any], str]:
    """The figures as plain values and as Markdown.

    Raises:
        BenchmarkError: wrk or h2load is missing or failed, or an alternative did not start or answer.
    """
    environment = describe((*PACKAGES, "aiohttp", "granian", "grpcio", "grpclib", "pyzmq"))
    with tempfile.TemporaryDirectory() as folder:
        doors = _doors(Path(folder), plan)
        grpc_doors = _grpc_doors(Path(folder), plan)
        channels = _channels(Path(folder), plan)
    document = {
        "environment": environment,
        "rounds": plan.rounds,
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
    return document, _markdown(environment, doors, grpc_doors, channels, plan)


def _doors(scratch: Path, plan: Plan) -> Figures:
    figures: Figures = {}
    wrk = Wrk(scratch)
    ports = dict(zip(DOORS, free_ports(len(DOORS)), strict=True))
    with ExitStack() as stack:
        for name, port in ports.items():
            command = [sys.executable, "-m", "benchmarks.alternatives.doors", name, str(port)]
            url = f"http://127.0.0.1:{port}/"
            stack.enter_context(running(command, ready_url=url, log=scratch / f"{name}.log"))
        for turn in range(plan.rounds):
            say(f"servers, round {turn + 1} of {plan.rounds}")
            for size in plan.sizes:
                request = Request(path="/v2/models/digits/infer", headers={}, body=bytes(size))
                for count in plan.connections:
                    for name in list(DOORS) if turn % 2 == 0 else list(DOORS)[::-1]:
                        url = f"http://127.0.0.1:{ports[name]}"
                        sample = wrk.run(url, request, connections=count, seconds=plan.seconds)
                        figures.setdefault((name, size, count), []).append(sample.requests_per_s)
    return figures


def _grpc_doors(scratch: Path, plan: Plan) -> Figures:
    figures: Figures = {}
    ports = dict(zip(GRPC_DOORS, free_ports(len(GRPC_DOORS)), strict=True))
    with ExitStack() as stack:
        for name, port in ports.items():
            command = [sys.executable, "-m", "benchmarks.alternatives.grpc_doors", name, str(port)]
            stack.enter_context(running(command, ready_url=f"tcp://127.0.0.1:{port}", log=scratch / f"grpc-{name}.log"))
        for turn in range(plan.rounds):
            say(f"servers of gRPC, round {turn + 1} of {plan.rounds}")
            for size in plan.sizes:
                for count in plan.connections:
                    for name in list(GRPC_DOORS) if turn % 2 == 0 else list(GRPC_DOORS)[::-1]:
                        url = f"http://127.0.0.1:{ports[name]}{PATH}"
                        rate = call_rate(url, bytes(size), connections=count, seconds=plan.seconds, scratch=scratch)
                        figures.setdefault((name, size, count), []).append(rate)
    return figures


def _channels(scratch: Path, plan: Plan) -> Figures:
    figures: Figures = {}
    for turn in range(plan.rounds):
        say(f"channels, round {turn + 1} of {plan.rounds}")
        for size in plan.sizes:
            for name in list(CHANNELS) if turn % 2 == 0 else list(CHANNELS)[::-1]:
                if size == _SMALL and "arena" in name:
                    continue  # what is small is not put there
                count = plan.trips if size == _SMALL else plan.trips // 4
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
    plan: Plan,
) -> str:
    trips = [[name, *(_median(channels.get((name, size, 0))) for size in plan.sizes)] for name in CHANNELS]
    return "\n\n".join(
        [
            "# What the data plane's parts were chosen over",
            origin(environment),
            f"Medians over {plan.rounds} alternating rounds; the load on the same machine.",
            "## HTTP servers that read a body and answer 200 bytes: requests/s",
            _rates(plan, DOORS, doors),
            "## Servers of gRPC that answer a message with 200 bytes: calls/s",
            _rates(plan, GRPC_DOORS, grpc_doors),
            "## A message to another process and its reply: microseconds",
            table(["channel", *map(_size, plan.sizes)], trips),
        ]
    )


def _rates(plan: Plan, names: Iterable[str], figures: Figures) -> str:
    columns = [(size, count) for size in plan.sizes for count in plan.connections]
    rows = [[name, *(f"{statistics.median(figures[name, *column]):.0f}" for column in columns)] for name in names]
    return table(["server", *(f"{_size(size)}, c = {count}" for size, count in columns)], rows)


def _median(values: list[float] | None) -> str:
    return "–" if values is None else f"{statistics.median(values):.1f}"


def _size(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size // 1000} KB"


if __name__ == "__main__":
    sys.exit(main())
