"""With noise alone, is anything found? ``python -m benchmarks.noise``.

A real service was recorded whose candidate is its baseline over again, under bursty load (``--record`` does so anew;
the trace is committed beside the results). Here the trace is resampled in blocks, with a seed for each run, and goes
the way of a rollout's evidence, with a look every second (``benchmarks.noise.replay``). Nothing may be found:

* no structural finding reported, at the service's own thresholds;
* no gate of the policies that come along may fail the candidate more often than α says, or hold an uplift for proved
  more often than β says.

A further policy has its limits of latency where the shadow replicas' own 95th percentile is: the edge of what its null
hypothesis allows on the average, and beyond it within every burst. It shows how far the twin helps where a limit is
near, and nothing is demanded of it.

Exit status: 0, nothing was found; 1, something was; 2, it cannot be run.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import ROOT, describe
from benchmarks.noise.cases import CASES, EDGE, Case, Task, policy_of, run
from benchmarks.noise.record import POLICY, Bursts, record
from benchmarks.noise.replay import BLOCK_S, Run, clopper_pearson
from benchmarks.noise.trace import Trace
from benchmarks.report import RESULTS, origin, say, table, write
from models.errors import UnderstudyError
from rollout.gates.latency import Latency

TRACE: Final = RESULTS / "noise.parquet"
SCRATCH: Final = ROOT / "build" / "noise"


def measure(path: Path, seeds: int, workers: int, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """Run everything, in so many processes; the result as plain values.

    Raises:
        BenchmarkError: the trace cannot be read.
    """
    environment, trace = describe(("numpy", "pyarrow")), Trace.read(path)
    say(f"{trace.requests} pairs; {seeds} runs of each of {len(cases)} cases")
    parts = [range(first, seeds, workers) for first in range(min(workers, seeds))]
    tasks = [Task(trace=path, case=case.name, seeds=part) for case in cases for part in parts]
    if workers == 1:
        found = [run(task) for task in tasks]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(run, tasks))
    rows = []
    for case in cases:
        mine = [each for task, runs in zip(tasks, found, strict=True) if task.case == case.name for each in runs]
        rows += [_row(case, name, trace, mine) for name in case.policies]
    return {
        "benchmark": "noise",
        "environment": environment,
        "settings": {"seeds": seeds, "block_s": BLOCK_S},
        "recorded": dict(trace.facts),
        "trace": trace.summary(),
        "rows": rows,
    }


def _row(case: Case, name: str, trace: Trace, runs: Sequence[Run]) -> dict[str, Any]:
    policy, of_policy = policy_of(name, trace), [each.policies[name] for each in runs]
    gate = policy.gates["latency"]
    return {
        "case": case.name,
        "policy": name,
        "latency_limit_ms": gate.roll_back_above_ms if isinstance(gate, Latency) else None,
        "runs": len(runs),
        "looks": sum(each.looks for each in runs),
        "requests": sum(each.requests for each in runs),
        "marked": sum(each.marked for each in runs),
        "reported": sum(bool(each.reported) for each in runs),
        "kinds": dict(Counter(kind for each in runs for kind in each.reported)),
        "gates": dict(Counter(gate for each in of_policy for gate in each.gates)),
        **{
            key: _share([getattr(each, key) for each in of_policy])
            for key in ("failed", "fired", "rolled_back", "uplift")
        },
        "alpha": policy.alpha,
        "beta": policy.beta,
    }


def _share(happened: Sequence[bool]) -> dict[str, Any]:
    count = sum(happened)
    low, high = clopper_pearson(count, len(happened))
    return {"runs": count, "low": low, "high": high}


def missed(document: Mapping[str, Any]) -> list[str]:
    """What is not as it must be; empty when all is."""
    rows = document["rows"]
    found = [
        f"{row['case']}: reported in {row['reported']} of {row['runs']} runs: {', '.join(row['kinds'])}"
        for row in rows
        if row["reported"]
    ]
    for row in rows:
        for key, risk, what in (("failed", "alpha", "failed by a gate"), ("uplift", "beta", "an uplift proved")):
            if row["policy"] != EDGE and row[key]["low"] > row[risk]:
                found.append(
                    f"{row['case']}, policy {row['policy']}: {what} in {row[key]['runs']} of {row['runs']} runs, "
                    f"where {row[risk]:.0%} are promised at most"
                )
    return list(dict.fromkeys(found))


def render(document: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    settings, rows = document["settings"], document["rows"]
    edge = next((row["latency_limit_ms"] for row in rows if row["policy"] == EDGE), None)
    said = [
        "# Noise alone: a recorded trace, resampled",
        origin(document["environment"]),
        _recorded(document["recorded"]),
        _trace(document["trace"]),
        f"Each row: {settings['seeds']} runs of the trace's length, of blocks of {settings['block_s']:g} s, with a "
        "look every second. *Reported*: runs with a structural finding at any look. *Failed*: runs in which the gates "
        "proved harm at any look, whatever the twin did; *twin fired*: the same of the baseline's twin, which holds a "
        "rollout; *rolled back*: failed while the twin had not fired. Intervals are Clopper and Pearson's, 95 %.",
        table(
            ("case", "policy", "marked requests", "reported", "failed", "twin fired", "rolled back", "uplift proved"),
            [
                (
                    row["case"],
                    row["policy"],
                    f"{row['marked']} of {row['requests']}",
                    f"{row['reported']} of {row['runs']}",
                    _of(row, "failed") + _gates(row["gates"]),
                    _of(row, "fired"),
                    _of(row, "rolled_back"),
                    _of(row, "uplift"),
                )
                for row in rows
            ],
        ),
    ]
    if edge is not None:
        said.append(
            f"Policy {EDGE} is {POLICY} with both limits of latency at {edge:.3g} ms, the 95th percentile of service "
            "time of the slower of the two shadow replicas: no more than 5 % of either's batches are over it, but more "
            "than that within a burst. The gates' promise is for no burst being worse than the limit, so nothing is "
            "demanded here; it shows how far the twin helps where a limit is near."
        )
    said.append("\n".join(missed(document)) or "Nothing is found in noise, and no preset's gate fails beyond its risk.")
    return "\n\n".join(said)


def _recorded(facts: Mapping[str, Any]) -> str:
    bursts, account, live = facts["bursts"], facts["accounting"], facts["live"]
    sampled, ended_badly = account["sampled"], account["failed"] + account["timed_out"]
    return (
        f"Recorded at {facts['environment']['at']}: a convolutional network on PyTorch, the candidate and the twin its "
        f"baseline over again; {facts['clients']['requests']} requests ({facts['clients']['failed']} failed), "
        f"{bursts['quiet_rate']:g}/s for {bursts['quiet_s']:g} s and {bursts['burst_rate']:g}/s for "
        f"{bursts['burst_s']:g} s in the mean, by turns. Of {sampled} sampled items "
        f"{account['mirrored'] / sampled:.0%} were mirrored, {account['shed']} shed, {ended_badly} failed. The live "
        f"rollout, under {live['policy']}: {live['state']}; findings: {', '.join(live['findings']) or 'none'}."
    )


def _trace(found: Mapping[str, Any]) -> str:
    rates, different = found["pairs_per_s"], found["differ_at_equal_batch"]
    times = ", ".join(
        f"{name} {each['p50']:.2g} / {each['p95']:.2g} / {each['p99']:.2g}"
        for name, each in found["service_ms"].items()
    )
    return (
        f"The trace: {found['pairs']} pairs in {found['batches']} batches within {found['seconds']:.0f} s, "
        f"{rates['0.05']:.0f} to {rates['0.95']:.0f} a second. In batches of equal size {different} of them differ, be "
        f"it by a bit; between batches of different sizes the {found['images']} images have {found['answers']} "
        f"different answers, up to {found['largest_between_batches']:.1e} apart. Service time in ms (p50 / p95 / p99): "
        f"{times}."
    )


def _of(row: Mapping[str, Any], key: str) -> str:
    each = row[key]
    return f"{each['runs']} of {row['runs']} ({each['low']:.1%} … {each['high']:.1%})"


def _gates(gates: Mapping[str, int]) -> str:
    return "".join(f"; {name} {count}" for name, count in sorted(gates.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="runs of each case")
    parser.add_argument("--workers", type=int, default=2, help="processes that run them")
    parser.add_argument("--trace", type=Path, default=TRACE, help="the recorded trace")
    parser.add_argument("--record", action="store_true", help="record the trace anew, with a service of its own")
    parser.add_argument("--seconds", type=float, default=Bursts().seconds, help="how long to record")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where noise.json and noise.md are written")
    options = parser.parse_args()
    if min(options.seeds, options.workers) < 1:
        parser.error("--seeds and --workers: expected at least 1")
    if not 1 <= options.seconds < math.inf:
        parser.error("--seconds: expected at least 1")
    return options


def main() -> int:
    """Measure, print and write the result; see above for the exit status."""
    options = _options()
    try:
        if options.record:
            record(options.trace, SCRATCH, Bursts(seconds=options.seconds))
        document = measure(options.trace, options.seeds, options.workers)
    except UnderstudyError as error:
        print(f"noise: {error}", file=sys.stderr)
        return 2
    markdown = render(document)
    write(options.out, "noise", document, markdown)
    print(markdown)
    return 1 if missed(document) else 0


if __name__ == "__main__":
    sys.exit(main())
