"""Does anything grow or fail in an hour at 70 % of what the service can bear: ``python -m benchmarks.soak``.

A service as a user starts it gets tiny requests and images of 602 KB, over HTTP and gRPC, with a candidate in shadow
for both models. First a closed loop finds what it can bear of that mix, and another fills batches; then a share of it
is offered at a constant rate. Every few seconds each process's memory is read. The samples are written to ``--folder``
as they come: the same command goes on after whatever cut it off, with a new service, whose warm-up counts for nothing.
"""

import argparse
import math
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import ROOT, describe
from benchmarks.report import RESULTS, origin, say, table, write
from benchmarks.service import Understudy, understudy
from benchmarks.soak.callers import Stream, over_grpc, over_http
from benchmarks.soak.generator import Tally, closed_loop, offering
from benchmarks.soak.journal import Journal, Sample, Segment
from benchmarks.soak.plot import plot
from benchmarks.soak.processes import disk, held_below
from benchmarks.soak.verdict import LIMIT, Growth, answers, breaches, failures, growths, to_json
from benchmarks.workloads import WORKLOADS
from models.errors import UnderstudyError

FOLDER: Final = ROOT / "build" / "soak"
CLIENTS: Final = 32
CAPACITY_S: Final = 10.0
SETTLE_S: Final = 5.0
FILL_S: Final = 5.0
FULL_CLIENTS: Final = 128
SERVED: Final = ("digits", "images")
# Shares of the requests: (model, over HTTP, over gRPC).
MIX: Final = (("digits", 0.5, 0.2), ("images", 0.2, 0.1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: a run that goes on has the same.

    ``load`` is the share of the capacity that is offered, ``sample`` that of the requests which is mirrored.
    """

    load: float
    sample: float
    interval_s: float
    warm_up_s: float
    capacity_s: float = CAPACITY_S


def soak(plan: Plan, seconds: float, folder: Path) -> Journal:
    """Measure until there are ``seconds`` after the warm-up in the journal in ``folder``; the journal.

    Raises:
        BenchmarkError: the service does not start or the load's process ends, or the folder is of another plan.
    """
    journal = Journal(folder, asdict(plan))
    if journal.measured_s < seconds:
        _segment(plan, seconds, journal, folder / "service")
    return journal


def _segment(plan: Plan, seconds: float, journal: Journal, scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    environment = describe()
    say("starting the service")
    with understudy(scratch, [WORKLOADS[name] for name in SERVED], sample=plan.sample) as service:
        for name in SERVED:
            service.mirror(name)
        streams = _streams(service)
        capacity = journal.segments[0].capacity if journal.segments else _capacity(streams, plan.capacity_s)
        rate = plan.load * capacity
        _fill(streams)
        journal.begin(Segment(environment=environment, capacity=capacity, rate=rate, warm_up_s=plan.warm_up_s))
        say(f"offering {rate:.0f} requests/s, {plan.load:.0%} of {capacity:.0f}")
        with offering(streams, rate=rate, window_s=plan.interval_s) as windows:
            at_s = 0.0
            while journal.measured_s < seconds:
                window = next(windows)
                at_s += window.seconds
                held = held_below(os.getpid())
                journal.add(Sample(at_s=at_s, window=window, held=held, disk=disk(scratch)))
                _progress(journal, seconds)
    shutil.rmtree(scratch, ignore_errors=True)


def _streams(service: Understudy) -> list[Stream]:
    http = service.url.partition("//")[2]
    return [
        stream
        for name, by_http, by_grpc in MIX
        for stream in (
            over_http(WORKLOADS[name], http, by_http),
            over_grpc(WORKLOADS[name], service.grpc, by_grpc),
        )
    ]


def _capacity(streams: Sequence[Stream], seconds: float) -> float:
    """Requests a second of the mix that are answered in a closed loop."""
    closed_loop(streams, clients=CLIENTS, seconds=SETTLE_S)
    window = closed_loop(streams, clients=CLIENTS, seconds=seconds)
    return window.answered / window.seconds


def _fill(streams: Sequence[Stream]) -> None:
    """Let every model see batches as large as they get: what their runtimes keep for these is no leak."""
    for stream in streams:
        closed_loop([stream], clients=FULL_CLIENTS, seconds=FILL_S)


def _progress(journal: Journal, seconds: float) -> None:
    sample = journal.segments[-1].samples[-1]
    window = sample.window
    own = sum(each.own_mb for each in sample.held if each.ours)
    failed = f"  FAILED {dict(window.failed)}" if window.failed else ""
    say(
        f"{journal.measured_s / 60:5.1f} of {seconds / 60:.0f} min  {window.answered / window.seconds:6.0f} answered/s"
        f"  load's CPU {window.cpu_s / window.seconds:.0%}  ours {own:.1f} MB{failed}"
    )


def document(journal: Journal, plan: Plan, seconds: float) -> dict[str, Any]:
    """The result as plain values."""
    segments = [each for each in journal.segments if each.samples]
    found, total = growths(segments), answers(segments)
    failed = failures(total)
    return {
        "benchmark": "soak",
        "environment": segments[-1].environment,
        "settings": {**asdict(plan), "seconds": seconds, "clients": CLIENTS, "mix": MIX, "limit": LIMIT},
        "breaches": breaches(found, failed, journal.measured_s, seconds),
        "capacity": segments[0].capacity,
        "rate": segments[0].rate,
        "measured_s": journal.measured_s,
        "longest_s": max(each.measured_s for each in segments),
        "segments": [
            {"at": each.environment["at"], "commit": each.environment["commit"], "measured_s": each.measured_s}
            for each in segments
        ],
        "failed_requests": failed,
        "streams": {name: _stream(tally) for name, tally in total.items()},
        "processes": [to_json(each) for each in found],
        "disk": _disk(segments),
    }


def _stream(tally: Tally) -> dict[str, Any]:
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    figures = {f"{name}_ms": tally.quantile_ms(share) for name, share in quantiles.items()}
    return {"offered": tally.offered, "answered": tally.answered, "failed": dict(tally.failed), **figures}


def _disk(segments: Sequence[Segment]) -> dict[str, dict[str, float]]:
    """What the longest segment had on disk at its end, and how much an hour came to it after the warm-up."""
    measured = max((each.measured for each in segments), key=len)
    if len(measured) < 2:
        return {}
    first, last = measured[0], measured[-1]
    hours = (last.at_s - first.at_s) / 3600
    kinds = sorted(last.disk)
    return {
        kind: {"end": last.disk[kind], "per_hour": (last.disk[kind] - first.disk.get(kind, 0)) / hours}
        for kind in kinds
    }


def render(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    settings = result["settings"]
    parts = ["# What grows under load", origin(result["environment"])]
    parts.append(
        f"{settings['load']:.0%} of capacity ({result['rate']:.0f} of {result['capacity']:.0f} requests/s of the mix), "
        f"{settings['sample']:.0%} mirrored; {result['measured_s'] / 60:.1f} minutes measured after "
        f"{settings['warm_up_s'] / 60:.1f} of warm-up in each of {len(result['segments'])} segments, the longest "
        f"unbroken one {result['longest_s'] / 60:.1f} minutes. Load and service share the machine."
    )
    rows = [
        (name, *(str(each[key]) for key in ("offered", "answered")), str(sum(each["failed"].values())), *_latency(each))
        for name, each in result["streams"].items()
    ]
    parts.append(table(("requests", "offered", "answered", "failed", "p50 ms", "p99 ms", "max ms"), rows))
    parts.append(
        "*Own* is a process's anonymous memory (heaps and stacks; no files, no shared memory), which is judged; "
        "*slope* is its growth by the median slope over the whole time, *tenths* the last tenth's median against the "
        f"first's. Both have to be at most {settings['limit']:.0%}. PSS is without shared memory. Ray's own processes "
        "are shown and not judged."
    )
    parts.append(_processes([Growth(**_without_flat(each)) for each in result["processes"]]))
    rows = [
        (kind, _amount(kind, each["end"]), _amount(kind, each["per_hour"])) for kind, each in result["disk"].items()
    ]
    parts.append(table(("on disk, MB by the files' ending", "at the end", "per hour"), rows))
    parts += [f"BREACH: {line}" for line in result["breaches"]] or ["Every process is flat, and no request failed."]
    return "\n\n".join(parts)


def _latency(stream: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{stream['p50_ms']:.1f}", f"{stream['p99_ms']:.1f}", f"{stream['max_ms']:.0f}"


def _without_flat(process: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in process.items() if name != "flat"}


def _amount(kind: str, amount: float) -> str:
    return f"{amount:.0f}" if kind == "files" else f"{amount / 1e6:.2f}"


def _processes(found: Sequence[Growth]) -> str:
    header = ("process", "own MB", "slope", "tenths", "PSS MB", "shared MB", "threads", "open files", "flat")
    return table(
        header,
        [
            (
                each.role,
                f"{each.own_mb:.1f}",
                f"{each.slope:+.2%}",
                f"{each.tenths:+.2%}",
                f"{each.pss_mb:.1f}",
                f"{each.shared_mb:.1f}",
                _change(each.threads),
                _change(each.files),
                ("yes" if each.flat else "NO") if each.ours else "(Ray's)",
            )
            for each in found
        ],
    )


def _change(pair: Sequence[int]) -> str:
    first, last = pair
    return str(last) if first == last else f"{first} → {last}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.0, help="how long is measured after the warm-up")
    parser.add_argument("--minutes", type=float, default=0.0, help="the same; without either, an hour")
    parser.add_argument("--load", type=float, default=0.7, help="the share of the capacity that is offered")
    parser.add_argument("--sample", type=float, default=0.1, help="the share of the requests that is mirrored")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--warm-up", type=float, default=10.0, help="minutes of each segment that count for nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where samples are kept, to go on from there")
    parser.add_argument("--fresh", action="store_true", help="discard what is there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where soak.json, .md, .png and .svg are written")
    options = parser.parse_args()
    options.seconds = options.hours * 3600 + options.minutes * 60 or 3600.0
    for name in ("seconds", "load", "interval"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name}: expected more than 0")
    if not 0 <= options.sample <= 1 or options.warm_up < 0:
        parser.error("--sample: expected 0 to 1; --warm-up: expected 0 or more")
    return options


def _terminated(*_: object) -> None:
    sys.exit(143)  # by way of what stops the service


def main() -> int:
    """Soak and judge; exit status 1 where a bound is broken, 2 where it could not be measured."""
    options = _options()
    signal.signal(signal.SIGTERM, _terminated)
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    plan = Plan(load=options.load, sample=options.sample, interval_s=options.interval, warm_up_s=options.warm_up * 60)
    try:
        journal = soak(plan, options.seconds, options.folder)
        result = document(journal, plan, options.seconds)
        plot(journal.segments, options.out)
    except UnderstudyError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"soak: stopped; the same command goes on from {options.folder}", file=sys.stderr)
        return 130
    markdown = render(result)
    write(options.out, "soak", result, markdown)
    print(markdown)
    return 1 if result["breaches"] else 0


if __name__ == "__main__":
    sys.exit(main())
