"""Understudy and its peers by turns: ``python -m benchmarks.peers`` builds, runs, compares, tabulates and plots.

Each alternation starts one server after the other afresh, alone on the machine, for one workload at a time; checks that
its answers are the model's; warms it up; and loads it. The order changes from one alternation to the next. All
processes share the machine, the load's too. Closed loops come from wrk and, over gRPC, from perf_analyzer; the open one
is ours, with Poisson arrivals and latencies counted from when a request was due.

Every measurement is kept at once. What is cut off, or missing because a server did not start, is made up for by the
same command; ``--fresh`` begins anew.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import perf_analyzer
from benchmarks.environment import commit, describe
from benchmarks.peers import PEERS
from benchmarks.peers.bench import Bench, Plan
from benchmarks.peers.contract import Contender
from benchmarks.peers.environment import python_of
from benchmarks.peers.journal import Journal
from benchmarks.peers.plots import plot
from benchmarks.peers.served import WARM_UP_S, PeerServer, Raw, Understudy
from benchmarks.peers.summary import as_json, render, summarise
from benchmarks.peers.tuning import tune
from benchmarks.report import RESULTS, origin, say, write
from benchmarks.workloads import WORKLOADS
from models.errors import UnderstudyError

CACHE: Final = Path(".venv-peers")
OWN: Final = {each.name: each for each in (Understudy(), Raw())}
_ROUNDS: Final = 5


def contenders(names: Sequence[str], cache: Path) -> list[Contender]:
    """Those that are asked for; environments are made where they are missing.

    Raises:
        BenchmarkError: a peer cannot be installed.
    """
    return [OWN[name] if name in OWN else _server(name, cache) for name in names]


def _server(name: str, cache: Path) -> PeerServer:
    return PeerServer(peer=PEERS[name], python=python_of(PEERS[name], cache))


def side_by_side(bench: Bench, out: Path, name: str) -> int:
    """Measure what is missing, and write and print the result; 1 if requests failed or something is still missing."""
    environment = describe()
    problems = bench.run()
    runs = bench.journal.runs
    for problem in problems:
        say(f"missing: {problem}")
    if not runs:
        return 1
    rows = summarise(runs)
    titles = {each.name: each.title for each in bench.contenders}
    document = {
        "benchmark": name,
        "environment": environment,
        "perf_analyzer": perf_analyzer.VERSION,
        "commits": sorted({run.commit for run in runs}),
        "plan": {**asdict(bench.plan), "warm_up_s": WARM_UP_S},
        "packages": {peer.name: peer.requirements for peer in PEERS.values() if peer.name in titles},
        "missing": problems,
        "summary": as_json(rows),
        "runs": [asdict(run) for run in runs],
    }
    markdown = render(rows, titles)
    write(out, name, document, _page(environment, bench.plan, markdown))
    plot(rows, titles, out, name)
    if not problems:
        bench.journal.close()
    print(markdown)
    return 1 if problems or any(run.sample.failed for run in runs if run.load.loop == "closed") else 0


def _page(environment: dict[str, Any], plan: Plan, markdown: str) -> str:
    alternations = f"{plan.rounds} alternation{'s' * (plan.rounds > 1)} of {plan.seconds:g} s"
    how = (
        f"Medians of {alternations} each, after a warm-up of {WARM_UP_S:g} s; one server at a time, the load on the "
        "same machine. A dash is what was not measured. Triton runs the model in its Python backend throughout."
    )
    return f"# Understudy and its peers\n\n{origin(environment)}\n\n{how}\n\n{markdown}"


def main() -> int:
    """Measure, print and write.

    Exit status 1 if requests failed or measurements are missing, 2 if it could not be measured, 130 if it was cut off.
    """
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does, it stops the server under measurement
    options.cache = options.cache.absolute()
    plan = Plan(
        rounds=options.rounds,
        seconds=options.seconds,
        workloads=tuple(options.workloads),
        transports=tuple(options.transports),
        loops=tuple(options.loops),
        connections=tuple(options.connections),
        rates=tuple(options.rates),
    )
    try:
        return _run(options, plan)
    except UnderstudyError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("peers: cut off; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, plan: Plan) -> int:
    if "grpc" in plan.transports:
        perf_analyzer.ensure(options.cache)
    if options.tune:
        servers = [_server(name, options.cache) for name in options.peers]
        print("\n\n".join(tune(servers, plan, workload, options.out) for workload in plan.workloads))
        return 0
    names = [*OWN, *options.peers] if options.own else options.peers
    chosen = contenders(names, options.cache)
    path = options.cache / f"{options.name}.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    journal = Journal(path, {**asdict(plan), "contenders": [each.name for each in chosen]})
    if journal.runs:
        say(f"going on after {len(journal.runs)} measurements; --fresh begins anew")
    return side_by_side(Bench(plan=plan, contenders=chosen, journal=journal, commit=commit), options.out, options.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peers", nargs="*", choices=sorted(PEERS), default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    add("--workloads", nargs="+", choices=sorted(WORKLOADS), default=list(WORKLOADS), help=", ".join(WORKLOADS))
    add("--transports", nargs="+", choices=("http", "grpc"), default=["http", "grpc"])
    add("--loops", nargs="+", choices=("closed", "open"), default=["closed", "open"])
    add("--connections", type=_positive, nargs="+", default=[], help="clients instead of each workload's own")
    add("--rates", type=_positive, nargs="+", default=[], help="requests/s offered instead of each workload's own")
    add("--rounds", type=_positive, default=_ROUNDS, help="alternations")
    add("--seconds", type=_positive, default=4, help="how long each measurement takes")
    add("--own", action=argparse.BooleanOptionalAction, default=True, help="measure Understudy and the model alone too")
    add(
        "--tune",
        action="store_true",
        help="measure the peers alone, with all settings that were tried, into tuning_<workload>",
    )
    add("--fresh", action="store_true", help="forget what an earlier run, cut off, has measured")
    add("--cache", type=Path, default=CACHE, help="where the peers' packages and a run's measurements are kept")
    add("--out", type=Path, default=RESULTS, help="where the results are written")
    add("--name", default="peers", help="what the results' files are called")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
