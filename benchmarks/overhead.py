"""What serving costs over the bare model, and what mirroring costs on top: ``python -m benchmarks.overhead``.

Each round measures every configuration once, in an order that alternates; figures are medians over the rounds, ratios
are medians of the rounds' own ratios, so that what else the machine does falls on both sides alike. All processes
share one machine, the load's too. "Mirrored" is the share of the answered requests that the candidate ran as well,
from the mirror's own account.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.environment import describe
from benchmarks.load import Sample, Wrk, ask
from benchmarks.raw import RawModel, RawSample
from benchmarks.report import RESULTS, origin, say, table, write
from benchmarks.service import BATCHING, Understudy, understudy
from benchmarks.workloads import MAX_BATCH_SIZE, WORKLOADS, Workload
from models.errors import UnderstudyError

CONNECTIONS: Final = (1, 8, 64)
PLAIN: Final = "plain"
MIRRORED: Final = "mirrored"
RAW_BATCHES: Final = (1, MAX_BATCH_SIZE)
WARM_UP_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    connections: tuple[int, ...] = CONNECTIONS
    workloads: tuple[str, ...] = ("digits", "images")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run; ``mirrored_share`` of its requests were run by the candidate too."""

    round: int
    workload: str
    mode: str
    sample: Sample
    mirrored_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRaw:
    """One run of the bare model."""

    round: int
    workload: str
    sample: RawSample


class Overhead:
    """The measurement: ``run`` fills ``served`` and ``raw``."""

    def __init__(self, plan: Plan, scratch: Path) -> None:
        self._plan, self._scratch = plan, scratch
        self._workloads = [WORKLOADS[name] for name in plan.workloads]
        self._wrk = Wrk(scratch)
        self.served: list[Measured] = []
        self.raw: list[MeasuredRaw] = []

    def run(self) -> None:
        """Measure.

        Raises:
            BenchmarkError: wrk is missing, the service does not start, or it answers with an error.
        """
        say("starting the service")
        with ExitStack() as stack:
            service = stack.enter_context(understudy(self._scratch / "service", self._workloads))
            models = {each.name: RawModel(each, self._scratch / "raw") for each in self._workloads}
            for model in models.values():
                stack.callback(model.close)
            for number in range(self._plan.rounds):
                for workload in self._workloads:
                    self._measure_raw(number, workload, models[workload.name])
                    modes = (PLAIN, MIRRORED) if number % 2 == 0 else (MIRRORED, PLAIN)
                    for mode in modes:
                        self._measure_mode(number, workload, mode, service)

    def _measure_raw(self, number: int, workload: Workload, model: RawModel) -> None:
        for batch in RAW_BATCHES:
            sample = model.measure(batch, self._plan.seconds)
            self.raw.append(MeasuredRaw(round=number, workload=workload.name, sample=sample))
            say(f"round {number + 1}  {workload.name:7} raw, batch {batch:2}  {sample.rows_per_s:9.0f} rows/s")

    def _measure_mode(self, number: int, workload: Workload, mode: str, service: Understudy) -> None:
        request = workload.request()
        with _mirroring(service, workload.name) if mode == MIRRORED else nullcontext():
            ask(service.url, request)
            self._wrk.run(service.url, request, connections=max(self._plan.connections), seconds=WARM_UP_S)
            account = service.account(workload.name) if mode == MIRRORED else None
            for connections in self._plan.connections:
                sample = self._wrk.run(service.url, request, connections=connections, seconds=self._plan.seconds)
                share = None
                if account is not None:
                    before, account = account, service.account(workload.name)
                    share = _share(before, account)
                self.served.append(
                    Measured(round=number, workload=workload.name, mode=mode, sample=sample, mirrored_share=share)
                )
                say(f"round {number + 1}  {workload.name:7} {mode:8} c = {connections:2}  {_line(sample, share)}")


@contextmanager
def _mirroring(service: Understudy, model: str) -> Iterator[None]:
    service.mirror(model)
    yield  # where this raises, the whole service ends
    service.stop_mirroring(model)


def _share(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """The share of the answered items that the candidate ran too: everything answered is sampled here."""
    sampled = after["sampled"] - before["sampled"]
    return (after["mirrored"] - before["mirrored"]) / sampled if sampled else 0.0


def _line(sample: Sample, share: float | None) -> str:
    extra = "" if share is None else f"  mirrored {share:.0%}"
    extra += f"  FAILED {sample.failed}" if sample.failed else ""
    return f"{sample.requests_per_s:9.0f} requests/s  p50 {sample.p50_ms:.2f}  p99 {sample.p99_ms:.2f} ms{extra}"


def summarise(served: Sequence[Measured], raw: Sequence[MeasuredRaw]) -> dict[str, Any]:
    """Medians per workload: the bare model by batch size, the service by number of clients."""
    summary: dict[str, Any] = {}
    for workload in dict.fromkeys(each.workload for each in served):
        bare = [each for each in raw if each.workload == workload]
        mine = [each for each in served if each.workload == workload]
        summary[workload] = {
            "raw": [_raw_row(bare, batch) for batch in RAW_BATCHES],
            "served": [
                _served_row(mine, bare, connections)
                for connections in dict.fromkeys(each.sample.connections for each in mine)
            ],
        }
    return summary


def _raw_row(raw: Sequence[MeasuredRaw], batch: int) -> dict[str, Any]:
    samples = [each.sample for each in raw if each.sample.batch == batch]
    return {
        "batch": batch,
        "rows_per_s": median(each.rows_per_s for each in samples),
        "p50_ms": median(each.p50_ms for each in samples),
        "p99_ms": median(each.p99_ms for each in samples),
    }


def _served_row(served: Sequence[Measured], raw: Sequence[MeasuredRaw], connections: int) -> dict[str, Any]:
    runs = [each for each in served if each.sample.connections == connections]
    plain = {each.round: each.sample for each in runs if each.mode == PLAIN}
    mirrored = {each.round: each.sample for each in runs if each.mode == MIRRORED}
    bare = {each.round: each.sample for each in raw if each.sample.batch == 1}
    shares = [each.mirrored_share for each in runs if each.mirrored_share is not None]
    return {
        "connections": connections,
        PLAIN: _medians(list(plain.values())),
        MIRRORED: {**_medians(list(mirrored.values())), "mirrored_share": median(shares)},
        "mirrored_to_plain": median(mirrored[at].requests_per_s / plain[at].requests_per_s for at in plain),
        "plain_to_raw": median(plain[at].requests_per_s / bare[at].rows_per_s for at in plain),
        "p50_over_raw_ms": median(plain[at].p50_ms - bare[at].p50_ms for at in plain),
    }


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    return {name: median(getattr(each, name) for each in samples) for name in ("requests_per_s", "p50_ms", "p99_ms")}


def render(document: dict[str, Any]) -> str:
    """The result as Markdown."""
    settings = document["settings"]
    parts = ["# What serving and mirroring cost", origin(document["environment"])]
    parts.append(
        f"Medians over {settings['rounds']} alternating rounds of {settings['seconds']:g} s each, after a warm-up of "
        f"{settings['warm_up_s']:g} s per configuration; closed loop, one request per connection at a time, all "
        "processes on the one machine. *Kept* is the median of the rounds' ratios of mirrored to plain; *mirrored* is "
        "the share of the requests that the candidate ran as well."
    )
    for workload, rows in document["summary"].items():
        parts += [f"## {WORKLOADS[workload].title}", _raw_table(rows["raw"]), _served_table(rows["served"])]
    return "\n\n".join(parts)


def _raw_table(rows: Sequence[dict[str, Any]]) -> str:
    return table(
        ("bare model, one thread", "rows/s", "p50 ms", "p99 ms"),
        [
            (f"batches of {row['batch']}", f"{row['rows_per_s']:.0f}", f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}")
            for row in rows
        ],
    )


def _served_table(rows: Sequence[dict[str, Any]]) -> str:
    header = (
        "clients",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "mirroring: requests/s",
        "p50 ms",
        "p99 ms",
        "kept",
        "mirrored",
    )
    cells = []
    for row in rows:
        figures = [text for mode in (PLAIN, MIRRORED) for text in _cells(row[mode])]
        kept, share = row["mirrored_to_plain"], row[MIRRORED]["mirrored_share"]
        cells.append((str(row["connections"]), *figures, f"{kept:.2f}", f"{share:.0%}"))
    return table(header, cells)


def _cells(row: dict[str, float]) -> tuple[str, str, str]:
    return f"{row['requests_per_s']:.0f}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"


def measure(plan: Plan) -> dict[str, Any]:
    """Measure what ``plan`` says; the result as plain values."""
    environment = describe()
    with tempfile.TemporaryDirectory(prefix="understudy-overhead-") as scratch:
        overhead = Overhead(plan, Path(scratch))
        overhead.run()
    return {
        "benchmark": "overhead",
        "environment": environment,
        "settings": {**asdict(plan), "warm_up_s": WARM_UP_S, "batching": dict(BATCHING)},
        "summary": summarise(overhead.served, overhead.raw),
        "failed_requests": sum(each.sample.failed for each in overhead.served),
        "runs": {"served": [asdict(each) for each in overhead.served], "raw": [asdict(each) for each in overhead.raw]},
    }


def main() -> int:
    """Measure, print and write the result; exit status 1 if requests failed, 2 if it could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each configuration is measured")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each measurement takes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where overhead.json and overhead.md are written")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds: expected at least 1")
    try:
        document = measure(Plan(rounds=options.rounds, seconds=options.seconds))
    except UnderstudyError as error:
        print(f"overhead: {error}", file=sys.stderr)
        return 2
    markdown = render(document)
    write(options.out, "overhead", document, markdown)
    print(markdown)
    return 1 if document["failed_requests"] else 0


if __name__ == "__main__":
    sys.exit(main())
