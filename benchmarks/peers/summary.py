"""What follows from the runs: medians, Understudy's multiples of each peer, and what it adds to the model alone.

A figure is the median over the alternations. A ratio is that of medians, with the range of the ratios that the
alternations have by themselves.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from benchmarks.load import Sample
from benchmarks.peers.contract import Load
from benchmarks.peers.journal import Run
from benchmarks.report import table
from benchmarks.workloads import WORKLOADS

OURS: Final = "understudy"
RAW: Final = "raw"
_FIGURES: Final = ("requests_per_s", "mean_ms", "sd_ms", "p50_ms", "p90_ms", "p99_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender under one load.

    Attributes:
        figures: medians over the alternations.
        requests_per_s: of each alternation.
        ratio: Understudy's requests per second by its own; ``ratios`` are those of each alternation.
    """

    workload: str
    load: Load
    server: str
    runs: int
    failed: int
    figures: Mapping[str, float]
    requests_per_s: tuple[float, ...]
    ratio: float | None
    ratios: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverRaw:
    """What Understudy adds to the model alone.

    Attributes:
        p50_ms, p99_ms: added to a lone request's latency.
        share: of the model's own rows per second at its best batch, under the most clients.
    """

    workload: str
    p50_ms: float
    p99_ms: float
    share: float


def summarise(runs: Sequence[Run]) -> list[Row]:
    """One row for each contender under each load, in the order of the runs."""
    samples: dict[tuple[str, Load], dict[str, dict[int, Sample]]] = {}
    for run in runs:
        by_server = samples.setdefault((run.workload, run.load), {})
        by_server.setdefault(run.server, {})[run.round] = run.sample
    return [
        _row(workload, load, server, by_server)
        for (workload, load), by_server in samples.items()
        for server in by_server
    ]


def over_raw(rows: Sequence[Row]) -> list[OverRaw]:
    """One for each workload that has both, over HTTP in a closed loop."""
    found = []
    for workload in dict.fromkeys(row.workload for row in rows):
        alone = [row for row in rows if (row.workload, row.server) == (workload, RAW)]
        served = [row for row in rows if (row.workload, row.server) == (workload, OURS) and _is_closed_http(row.load)]
        lone = next((row for row in served if row.load.amount == 1), None)
        if alone and lone:
            single, most = min(alone, key=_amount), max(served, key=_amount)
            best = max(row.figures["requests_per_s"] for row in alone)
            found.append(
                OverRaw(
                    workload=workload,
                    p50_ms=lone.figures["p50_ms"] - single.figures["p50_ms"],
                    p99_ms=lone.figures["p99_ms"] - single.figures["p99_ms"],
                    share=most.figures["requests_per_s"] / best,
                )
            )
    return found


def _is_closed_http(load: Load) -> bool:
    return (load.loop, load.transport) == ("closed", "http")


def _amount(row: Row) -> int:
    return row.load.amount


def _row(workload: str, load: Load, server: str, by_server: Mapping[str, Mapping[int, Sample]]) -> Row:
    samples, ours = by_server[server], by_server.get(OURS, {})
    figures = _medians(samples.values())
    rounds = [at for at in samples if at in ours] if server != OURS and load.loop == "closed" else []
    return Row(
        workload=workload,
        load=load,
        server=server,
        runs=len(samples),
        failed=sum(sample.failed for sample in samples.values()),
        figures=figures,
        requests_per_s=tuple(sample.requests_per_s for sample in samples.values()),
        ratio=_medians(ours.values())["requests_per_s"] / figures["requests_per_s"] if rounds else None,
        ratios=tuple(ours[at].requests_per_s / samples[at].requests_per_s for at in rounds),
    )


def _medians(samples: Iterable[Sample]) -> dict[str, float]:
    each = list(samples)
    return {name: median(getattr(sample, name) for sample in each) for name in _FIGURES}


def render(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """The rows as Markdown: for each workload, transport and loop what was measured, and the ratios."""
    parts = []
    for workload in dict.fromkeys(row.workload for row in rows):
        own = [row for row in rows if row.workload == workload]
        parts.append(f"## {WORKLOADS[workload].title}")
        for (loop, transport), heading in _HEADINGS.items():
            group = [row for row in own if (row.load.loop, row.load.transport) == (loop, transport)]
            if group:
                parts += [f"### {heading}", _measured(group, titles)]
                parts += [_ratios(group, titles)] if any(row.ratio for row in group) else []
    added = over_raw(rows)
    return "\n\n".join([*parts, *([_added(added)] if added else [])])


_HEADINGS: Final = {
    ("direct", "none"): "The model alone: rows/s by rows in a call (p50 / p90 / p99 ms)",
    ("closed", "http"): "HTTP, closed loop: requests/s by clients (p50 / p90 / p99 ms)",
    ("open", "http"): "HTTP, open loop: requests/s answered by requests/s offered (p50 / p90 / p99 ms)",
    ("closed", "grpc"): "gRPC, closed loop: requests/s by clients (p50 / p90 / p99 ms)",
}


def _grid(rows: Sequence[Row], titles: Mapping[str, str], cells: Mapping[tuple[str, int], str]) -> str:
    amounts = sorted({row.load.amount for row in rows})
    servers = [name for name in titles if any(name == server for server, _ in cells)]
    body = [[titles[name], *(cells.get((name, amount), "–") for amount in amounts)] for name in servers]
    return table(["", *map(str, amounts)], body)


def _measured(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    return _grid(rows, titles, {(row.server, row.load.amount): _cell(row) for row in rows})


def _cell(row: Row) -> str:
    figures = row.figures
    latencies = " / ".join(_short(figures[name]) for name in ("p50_ms", "p90_ms", "p99_ms"))
    failed = f", {row.failed} failed" if row.failed else ""
    return f"{figures['requests_per_s']:.0f} ({latencies}{failed})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratios(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    cells = {(row.server, row.load.amount): _range(row.ratio, row.ratios) for row in rows if row.ratio}
    return "Understudy's requests/s, times the other's (range over the alternations):\n\n" + _grid(rows, titles, cells)


def _range(ratio: float | None, ratios: Sequence[float]) -> str:
    return f"{ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


def _added(added: Sequence[OverRaw]) -> str:
    body = [
        [WORKLOADS[each.workload].title, f"{each.p50_ms:.2f}", f"{each.p99_ms:.2f}", f"{each.share:.1%}"]
        for each in added
    ]
    header = ["", "added at p50, ms", "added at p99, ms", "share of the model's rows/s, most clients"]
    return "## What Understudy adds to the model alone (HTTP, closed loop)\n\n" + table(header, body)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary as plain values."""
    return {"rows": [asdict(row) for row in rows], "over_raw": [asdict(each) for each in over_raw(rows)]}
