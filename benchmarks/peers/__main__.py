"""Understudy and a peer by turns, on the tiny model: ``python -m benchmarks.peers``.

Each alternation starts one server after the other afresh, alone on the machine, checks that both give the right
scores, and loads them with the same number of clients; the order changes from one alternation to the next. A figure is
the median over the alternations, a ratio that of medians, with the range of the alternations' own ratios beside it.
Understudy is also measured with its JSON form, which is the costlier one for it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import orjson

from benchmarks.environment import describe
from benchmarks.errors import BenchmarkError
from benchmarks.load import Request, Sample, Wrk, ask
from benchmarks.peers import PEERS
from benchmarks.peers.contract import Peer, Settings
from benchmarks.peers.environment import python_of
from benchmarks.process import free_ports, running
from benchmarks.report import RESULTS, origin, say, table, write
from benchmarks.service import BATCHING, understudy
from benchmarks.workloads import BASELINE, WORKLOADS, json_request
from models.backends import open_backend
from models.errors import UnderstudyError
from models.repository import open_version
from models.tensor import Array

CONNECTIONS: Final = (1, 8, 64)
OURS: Final = "understudy"
OURS_JSON: Final = "understudy, JSON"
WARM_UP_S: Final = 2.0
_WORKLOAD: Final = WORKLOADS["digits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement of one server; ``settings`` are a peer's."""

    round: int
    server: str
    settings: Settings | None
    sample: Sample


class Bench:
    """Measures servers one at a time; what it measured is in ``runs``."""

    def __init__(self, scratch: Path, *, seconds: float, connections: Sequence[int]) -> None:
        self._scratch, self._seconds, self._connections = scratch, seconds, connections
        self._wrk = Wrk(scratch)
        self._repository = scratch / "repository" / _WORKLOAD.name
        _WORKLOAD.write(self._repository)
        self._expected = _expected_scores(self._repository / str(BASELINE))
        self._starts = 0
        self.runs: list[Run] = []

    def measure_ours(self, number: int) -> None:
        """One alternation of Understudy, in both of its forms."""
        forms = {
            OURS: _WORKLOAD.request(),
            OURS_JSON: json_request(_WORKLOAD.name, _WORKLOAD.input, _WORKLOAD.example),
        }
        readers: dict[str, Callable[[bytes], Array]] = {OURS: _binary_scores, OURS_JSON: _json_scores}
        with understudy(self._new_folder() / "service", [_WORKLOAD]) as service:
            for name, request in forms.items():
                self._check(service.url, request, readers[name])
                self._load(number, name, None, service.url, request)

    def measure_peer(self, number: int, peer: Peer, python: Path, settings: Settings) -> None:
        """One alternation of a peer."""
        (port,) = free_ports(1)
        model = self._repository / str(BASELINE) / "model.onnx"
        command = [str(python), str(peer.server), "--model", str(model), "--port", str(port)]
        command += ["--settings", orjson.dumps(dict(settings)).decode()]
        url = f"http://127.0.0.1:{port}"
        with running(command, ready_url=url + peer.ready_path, log=self._new_folder() / "peer.log"):
            request = peer.request(_WORKLOAD.example)
            self._check(url, request, lambda body: np.array(peer.scores(body), np.float32))
            self._load(number, peer.name, settings, url, request)

    def _load(self, number: int, name: str, settings: Settings | None, url: str, request: Request) -> None:
        self._wrk.run(url, request, connections=max(self._connections), seconds=WARM_UP_S)
        for connections in self._connections:
            sample = self._wrk.run(url, request, connections=connections, seconds=self._seconds)
            self.runs.append(Run(round=number, server=name, settings=settings, sample=sample))
            failed = f"  FAILED {sample.failed}" if sample.failed else ""
            say(
                f"{number + 1}  {name:16} c = {connections:2}  {sample.requests_per_s:8.0f} requests/s  "
                f"p50 {sample.p50_ms:.2f}  p99 {sample.p99_ms:.2f} ms{failed}"
            )

    def _check(self, url: str, request: Request, scores: Callable[[bytes], Array]) -> None:
        found = scores(ask(url, request).content)
        if not np.allclose(found, self._expected, atol=1e-5):
            raise BenchmarkError(f"{url}: expected the scores {self._expected.tolist()}, got {found.tolist()}")

    def _new_folder(self) -> Path:
        self._starts += 1
        folder = self._scratch / f"start-{self._starts}"
        folder.mkdir()
        return folder


def _expected_scores(version: Path) -> Array:
    backend = open_backend(open_version(version), {})
    backend.load()
    try:
        return backend.run({_WORKLOAD.input: _WORKLOAD.example})[_WORKLOAD.output].ravel()
    finally:
        backend.close()


def _binary_scores(body: bytes) -> Array:
    """The only tensor of a binary answer follows its JSON header, which ends with its last brace."""
    return np.frombuffer(body[body.rindex(b"}]}") + 3 :], np.float32)


def _json_scores(body: bytes) -> Array:
    return np.array(orjson.loads(body)["outputs"][0]["data"], np.float32)


def compare(runs: Sequence[Run], peer: str) -> list[dict[str, Any]]:
    """Medians by number of clients, and how many times a peer's requests per second ours are."""
    rows = []
    for connections in dict.fromkeys(run.sample.connections for run in runs):
        by_server = {
            name: {run.round: run.sample for run in runs if (run.server, run.sample.connections) == (name, connections)}
            for name in (OURS, OURS_JSON, peer)
        }
        figures = {name: _medians(list(samples.values())) for name, samples in by_server.items()}
        rows.append(
            {
                "connections": connections,
                **figures,
                "ratio": figures[OURS]["requests_per_s"] / figures[peer]["requests_per_s"],
                "ratio_json": figures[OURS_JSON]["requests_per_s"] / figures[peer]["requests_per_s"],
                "ratios": [
                    by_server[OURS][at].requests_per_s / by_server[peer][at].requests_per_s for at in by_server[peer]
                ],
            }
        )
    return rows


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    return {name: median(getattr(each, name) for each in samples) for name in ("requests_per_s", "p50_ms", "p99_ms")}


def render(rows: Sequence[dict[str, Any]], peer: str) -> str:
    """The comparison as a Markdown table."""
    header = ["clients", *(f"{name}: requests/s (p50, p99 ms)" for name in (OURS, OURS_JSON, peer))]
    cells = [
        [
            str(row["connections"]),
            *(_cell(row[name]) for name in (OURS, OURS_JSON, peer)),
            f"{row['ratio']:.1f} ({min(row['ratios']):.1f} … {max(row['ratios']):.1f})",
            f"{row['ratio_json']:.1f}",
        ]
        for row in rows
    ]
    return table([*header, f"times {peer}", "JSON, times"], cells)


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['requests_per_s']:.0f} ({figures['p50_ms']:.2f}, {figures['p99_ms']:.2f})"


def side_by_side(bench: Bench, peer: Peer, python: Path, alternations: int) -> tuple[dict[str, Any], str]:
    """Measure both by turns; the result, and its table."""
    for number in range(alternations):
        turns: list[Callable[[], None]] = [
            lambda: bench.measure_ours(number),  # noqa: B023 - called within this turn of the loop
            lambda: bench.measure_peer(number, peer, python, peer.settings),  # noqa: B023
        ]
        for turn in turns if number % 2 == 0 else reversed(turns):
            turn()
    rows = compare(bench.runs, peer.name)
    return {"settings_of_peer": peer.settings, "summary": rows}, render(rows, peer.name)


def tune(bench: Bench, peer: Peer, python: Path) -> tuple[dict[str, Any], str]:
    """Measure every combination of settings that was thought of; the result, and its table."""
    for number, settings in enumerate(peer.tried):
        say(f"{dict(settings)}")
        bench.measure_peer(number, peer, python, settings)
    connections = list(dict.fromkeys(run.sample.connections for run in bench.runs))
    cells = [
        [orjson.dumps(dict(settings)).decode(), *(f"{found[each].requests_per_s:.0f}" for each in connections)]
        for number, settings in enumerate(peer.tried)
        if (found := {run.sample.connections: run.sample for run in bench.runs if run.round == number})
    ]
    return {}, table(["settings", *(f"requests/s, c = {each}" for each in connections)], cells)


def main() -> int:
    """Measure, print and write the result; exit status 1 if requests failed, 2 if it could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=sorted(PEERS), default="litserve")
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each measurement takes")
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS))
    parser.add_argument("--cache", type=Path, default=Path(".venv-peers"), help="where the peers' packages are kept")
    parser.add_argument("--tune", action="store_true", help="measure the peer alone with all settings that were tried")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where peers.json is written")
    options = parser.parse_args()
    if options.alternations < 1 or options.seconds < 1:
        parser.error("--alternations and --seconds: expected at least 1")
    try:
        return _run(options)
    except UnderstudyError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    peer = PEERS[options.peer]
    environment = describe()
    with tempfile.TemporaryDirectory(prefix="understudy-peers-") as scratch:
        bench = Bench(Path(scratch), seconds=options.seconds, connections=options.connections)
        python = python_of(peer, options.cache.resolve())
        result, markdown = (
            tune(bench, peer, python) if options.tune else side_by_side(bench, peer, python, options.alternations)
        )
    name = f"{peer.name}_tuning" if options.tune else "peers"
    document = {
        "benchmark": name,
        "peer": peer.name,
        "requirements": peer.requirements,
        "environment": environment,
        "settings": {"seconds": options.seconds, "warm_up_s": WARM_UP_S, "batching": dict(BATCHING)},
        **result,
        "runs": [asdict(run) for run in bench.runs],
    }
    write(options.out, name, document, f"{origin(environment)}\n\n{markdown}")
    print(markdown)
    return 1 if any(run.sample.failed for run in bench.runs) else 0


if __name__ == "__main__":
    sys.exit(main())
