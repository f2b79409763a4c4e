"""What mirroring costs the clients: ``python -m benchmarks.mirror_tax`` compares it on and off under the same loads.

One service has the same artifact under three names: *plain* has no rollout (nor has *beside*, where each core has work
of the lowest scheduling class: what the kernel charges for that, whoever does it), *off* a rollout of which nothing is
mirrored (``mirror.sample: 0``), *on* one of which everything is. The candidate is the baseline's own files, so it costs
as much. The names are loaded one at a time, in an order that rotates from round to round; nothing is started or stopped
in between, so whatever else the machine does falls on all alike, and what is not loaded idles. On by off is what
mirroring costs; on by plain is what a rollout costs altogether, with the candidate's processes and the reading of each
batch's memory. In canary, off and on have the same weight: a plain baseline would gather other batches than two
versions do. A candidate that does not behave is compared with no rollout, and begun afresh for each measurement.

Closed loops come from wrk. Open ones are ours, with Poisson arrivals, the same in every mode, and latencies that run
from when a request was due. They offer shares of what the open loop itself gets answered at most, in shadow without a
rollout, in canary with nothing mirrored: its client takes more of the cores than wrk, and all share the machine.

Each alternation is written to ``--folder`` when all its modes are measured: the same command goes on after whatever
cut it off, and with more ``--rounds`` or other ``--parts`` it measures what is missing. Exit status 1 means that
requests failed, 2 that it could not be measured; a missed goal is printed.
"""

import argparse
import math
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import ROOT, commit, describe
from benchmarks.mirror_tax.bench import Bench
from benchmarks.mirror_tax.figures import Row, count_goals, missed, summarise
from benchmarks.mirror_tax.journal import Journal
from benchmarks.mirror_tax.loads import Load, Part, Plan, loads_of
from benchmarks.mirror_tax.plot import plot
from benchmarks.mirror_tax.render import render
from benchmarks.report import RESULTS, write
from models.errors import UnderstudyError

FOLDER: Final = ROOT / "build" / "mirror_tax"


def measure(plan: Plan, loads: Sequence[Load], folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Measure what the journal in ``folder`` does not have yet; all that it then has, as plain values and as rows.

    Raises:
        BenchmarkError: it cannot be measured, or the folder is of another plan.
    """
    environment = describe()
    journal = Journal(folder, {"seconds": plan.seconds, "lead_in_s": plan.lead_in_s})
    Bench(plan=plan, journal=journal, folder=folder, commit=commit()).run(loads)
    rows = summarise(journal.alternations, journal.batch_ms)
    document = {
        "benchmark": "mirror_tax",
        "environment": environment,
        "commits": list(dict.fromkeys(each.commit for each in journal.alternations)),
        "settings": {**asdict(plan), "rounds": max(row.rounds for row in rows)},
        "saturation": journal.saturation,
        "batch_ms": journal.batch_ms,
        "goals": count_goals(rows),
        "missed": len(missed(rows)),
        "failed_requests": sum(row.failed for row in rows),
        "rows": [row.to_json() for row in rows],
        "alternations": [each.to_json() for each in journal.alternations],
    }
    return document, rows


def _parts(text: str) -> list[Part]:
    try:
        return [Part(name) for name in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(Part)}, got {text!r}") from None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Plan().rounds, help="alternations of each load")
    parser.add_argument("--seconds", type=float, default=Plan().seconds, help="how long each measurement takes")
    parser.add_argument("--parts", type=_parts, default=list(Part), help=f"some of {','.join(Part)}; all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where measurements are kept, to go on from there")
    parser.add_argument("--fresh", action="store_true", help="discard what is there")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where mirror_tax.json, .md, .png and .svg are written"
    )
    options = parser.parse_args()
    if options.rounds < 1 or not 1 <= options.seconds < math.inf:
        parser.error("--rounds and --seconds: expected at least 1")
    return options


def _terminated(*_: object) -> None:
    sys.exit(143)  # by way of what stops the service


def main() -> int:
    """Measure, print and write the result; see above for the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, _terminated)
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    try:
        plan = Plan(rounds=options.rounds, seconds=options.seconds)
        document, rows = measure(plan, loads_of(options.parts), options.folder)
        plot(rows, options.out)
    except UnderstudyError as error:
        print(f"mirror_tax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mirror_tax: stopped; the same command goes on from {options.folder}", file=sys.stderr)
        return 130
    markdown = render(document, rows)
    write(options.out, "mirror_tax", document, markdown)
    print(markdown)
    return 1 if document["failed_requests"] else 0


if __name__ == "__main__":
    sys.exit(main())
