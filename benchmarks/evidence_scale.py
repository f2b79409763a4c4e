"""Does evidence stay small? ``python -m benchmarks.evidence_scale``: 10^8 pairs through a router's own recorder.

Synthetic batches (``benchmarks.synthetic``) are offered to a ``Recorder``, which compares them, writes segments and
adds up sums as in service. Every few million rows another process verifies what is there and compacts it, as
``understudy evidence compact`` does. Then everything is verified once more, and every sum must be what was counted as
the batches were made. Beside it: where the time of a pair goes, what a look at the sums costs the controller, and what
a mirrored request costs the router (``benchmarks.lane``).

The evidence and a line for every million pairs lie in ``--folder``. A run that is killed at any moment, or ends after
``--minutes``, goes on from there: in a chain of its own, as a router does that was started again. Costs are CPU times,
so that the run may be stopped (SIGSTOP) and share its core.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import resource
import secrets
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from math import inf
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

from benchmarks import lane
from benchmarks.environment import ROOT, describe
from benchmarks.errors import BenchmarkError
from benchmarks.report import RESULTS, origin, say, table, write
from benchmarks.synthetic import (
    APART_US,
    BEGAN_US,
    DEPLOYMENT,
    LARGEST_BATCH,
    LIMITS,
    STAGES,
    Plan,
    Position,
    Stream,
    counted,
)
from models.errors import UnderstudyError
from rollout.doubts import find_doubts
from rollout.judge import judge
from rollout.policy import load_policy
from rollout.traffic import Snapshot
from serving.process import keep_freed_memory, spare_the_collector
from shadow.accounting import Accounting, Ledger
from shadow.checkpoint import Retention, compact
from shadow.comparators import open_comparator
from shadow.evidence import Evidence
from shadow.findings import Finder
from shadow.pair import Answer
from shadow.recorder import Recorder
from shadow.rows import compact as compact_pair
from shadow.rows import to_table
from shadow.store import Head, Header, Kind, SegmentWriter, chains, latest_checkpoint, walk_chain
from shadow.sums import sums
from shadow.verify import Claim, evidence_at, run_id, verify

PAIRS: Final = 100_000_000
FOLDER: Final = ROOT / "build" / "evidence_scale"
FLAT: Final = 1.05
ROUTER_GOAL_US: Final = 20.0
POLICY: Final = "equivalence"
RETENTION: Final = Retention(keep_segments=8)
_COMPARATOR: Final = ("classification", "scores", {"k": 5})
_FILE: Final = "progress.jsonl"
ROUND_ROWS: Final = 16_384  # that wait make the recorder write
MOST_DISK_MB: Final = 2048
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SURE: Final = 2.0  # standard errors, for an interval of 95 %
_MEBIBYTE: Final = 1 << 20
_STEPS: Final = (
    _MAKING := "making the batch (not the recorder's)",
    _COPYING := "copying scores and facts",
    _FINDING := "looking for structural findings",
    _COMPARING := "making rows, comparing",
    _SUMMING := "sums",
    _WRITING := "encoding, hashing, writing",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is run. ``minutes`` is the most that this run may take, None no bound."""

    plan: Plan
    window_pairs: int = 1_000_000
    compact_rows: int = 3_000_000
    round_rows: int = ROUND_ROWS
    minutes: float | None = None
    looks: int = 50
    dissected_batches: int = 2_000
    router_rounds: int = 9
    router_requests: int = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What about a million pairs in a row took; ``pairs`` are those of the whole run by its end."""

    chain: str
    pairs: int
    new_pairs: int
    cpu_s: float
    wall_s: float
    resident_mb: float  # the median of what was read after each segment
    disk_mb: float  # at its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What verifying and compacting took, in a process of its own."""

    rows: int  # of the chains until now
    seconds: float
    cpu_s: float
    peak_mb: float
    disk_mb_before: float
    disk_mb_after: float


@dataclass(slots=True)
class Progress:
    """What is known of all runs in a folder, line by line on disk."""

    path: Path
    windows: list[Window] = field(default_factory=list)
    compactions: list[Compaction] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, plan: Plan) -> "Progress":
        """Begin, or go on.

        Raises:
            BenchmarkError: the folder is of another plan.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _FILE
        progress = cls(path)
        if not path.exists():
            progress._write({"plan": asdict(plan)})
            return progress
        first, *lines = _lines(path)
        if first != {"plan": asdict(plan)}:
            raise BenchmarkError(f"{folder}: is of another plan; expected {asdict(plan)}, got {first.get('plan')}")
        for line in lines:
            if "window" in line:
                progress.windows.append(Window(**line["window"]))
            else:
                progress.compactions.append(Compaction(**line["compaction"]))
        return progress

    def add(self, found: Window | Compaction) -> None:
        """Note what has ended."""
        if isinstance(found, Window):
            self.windows.append(found)
            self._write({"window": asdict(found)})
        else:
            self.compactions.append(found)
            self._write({"compaction": asdict(found)})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file: the last one may have been cut off, and is forgotten."""
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        path.write_bytes(whole + b"\n")
    yield from map(orjson.loads, whole.splitlines())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Durable:
    """What chains on disk hold: their heads, and the sums up to there."""

    heads: tuple[Head, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)

    @classmethod
    def of(cls, folder: Path) -> "_Durable":
        heads = tuple(_head(folder, chain) for chain in chains(folder))
        return cls(heads=heads, evidence=evidence_at(folder, heads))

    @property
    def rows(self) -> int:
        return sum(head.rows for head in self.heads)

    def plus(self, evidence: Evidence, head: Head | None) -> "_Durable":
        """With what a recorder has added to them since."""
        return _Durable(heads=(*self.heads, *([head] if head else [])), evidence=self.evidence + evidence)


def _head(folder: Path, chain: str) -> Head:
    checkpoint = latest_checkpoint(folder, chain)
    ends = [head for _, head in walk_chain(folder, chain)]
    head = ends[-1] if ends else (checkpoint.head if checkpoint else None)
    assert head is not None, "a chain has a segment or a checkpoint"
    return head


class _Run:
    """One recorder from its start to its end, fed with what of the stream is not durable yet."""

    def __init__(self, scale: Scale, stream: Stream, progress: Progress, folder: Path, elsewhere: Executor) -> None:
        self._scale, self._stream, self._progress, self._elsewhere = scale, stream, progress, elsewhere
        self._folder = folder / "evidence"
        self.before = _Durable.of(self._folder)
        self._start = _position(stream, self.before.rows)
        self.accounting = Accounting()
        self._chain = f"router-{len(self.before.heads) + 1:03}"
        self._compacted_rows = sum(
            found.head.rows for chain in chains(self._folder) if (found := latest_checkpoint(self._folder, chain))
        )

    def feed(self) -> _Durable:
        """Record until the stream or the time ends; all that is durable then."""
        if self._start.batches >= self._stream.end.batches:
            return self.before
        comparator, output, parameters = _COMPARATOR
        recorder = Recorder(
            self._folder,
            self._chain,
            DEPLOYMENT,
            LIMITS,
            self.accounting,
            comparator=comparator,
            output=output,
            parameters=parameters,
        )
        try:
            self._feed(recorder)
        finally:
            recorder.close()
        found = recorder.snapshot()
        if found.fault is not None:
            raise BenchmarkError(f"the recorder failed: {found.fault}")
        return self.before.plus(found.evidence, found.head)

    def _feed(self, recorder: Recorder) -> None:
        ends_s = time.monotonic() + 60 * self._scale.minutes if self._scale.minutes is not None else inf
        batches = self._stream.after(self._start.batches, secrets.token_hex(8))
        left, window = self._stream.end.batches - self._start.batches, _Watch()
        pairs = self._start.counts.get("pairs", 0)
        while left:
            rows = new_pairs = 0
            while left and rows < self._scale.round_rows:
                template, pair = next(batches)
                self.accounting.sample(template.sampled)
                if not recorder.offer(pair):
                    raise BenchmarkError(f"the recorder refused a batch: {recorder.snapshot().fault}")
                rows += template.counts["rows"]
                new_pairs += template.counts.get("pairs", 0)
                left -= 1
            recorder.flush()
            pairs += new_pairs
            window.read(new_pairs)
            if window.pairs >= self._scale.window_pairs:
                self._note(window.end(self._chain, pairs, _disk_mb(self._folder)))
                self._compact(recorder)
                window = _Watch()
            if time.monotonic() >= ends_s:
                return

    def _note(self, window: Window) -> None:
        self._progress.add(window)
        say(
            f"{window.pairs / 1e6:7.1f} of {self._stream.end.counts['pairs'] / 1e6:.1f} million pairs  "
            f"{window.cpu_s * 1e6 / window.new_pairs:5.1f} µs/pair  {window.resident_mb:6.1f} MB resident  "
            f"{window.disk_mb:6.0f} MB on disk"
        )

    def _compact(self, recorder: Recorder) -> None:
        found = recorder.snapshot()
        durable = self.before.plus(found.evidence, found.head)
        if durable.rows - self._compacted_rows < self._scale.compact_rows:
            return
        made = self._elsewhere.submit(_compact, self._folder, durable, self._now_us(durable)).result()
        self._progress.add(made)
        self._compacted_rows = durable.rows
        say(f"compacted in {made.seconds:.1f} s: {made.disk_mb_before:.0f} MB on disk, then {made.disk_mb_after:.0f}")

    def _now_us(self, durable: _Durable) -> int:
        """The moment of the latest batch: so old are the others, and so late may their labels be."""
        return BEGAN_US + _position(self._stream, durable.rows).batches * APART_US


class _Watch:
    """A window that has not ended."""

    def __init__(self) -> None:
        self.pairs = 0
        self._began = time.process_time(), time.perf_counter()
        self._resident: list[int] = []

    def read(self, pairs: int) -> None:
        """A segment has been written."""
        self.pairs += pairs
        self._resident.append(_resident())

    def end(self, chain: str, pairs: int, disk_mb: float) -> Window:
        """What it was; ``pairs`` and ``disk_mb`` are there by now."""
        return Window(
            chain=chain,
            pairs=pairs,
            new_pairs=self.pairs,
            cpu_s=time.process_time() - self._began[0],
            wall_s=time.perf_counter() - self._began[1],
            resident_mb=median(self._resident) / _MEBIBYTE,
            disk_mb=disk_mb,
        )


def _position(stream: Stream, rows: int) -> Position:
    """Where the stream had come to when so many rows were durable."""
    found = stream.position("rows", rows) if rows else Position(batches=0, counts={})
    if found.counts.get("rows", 0) != rows:
        raise BenchmarkError(f"{rows} rows are durable, where no batch of this plan ends")
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE


def _disk_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / _MEBIBYTE


def _claims(durable: _Durable) -> list[Claim]:
    """What the journal would say at this moment."""
    name = run_id(durable.evidence, durable.heads)
    return [Claim(seq=1, evidence=durable.evidence.to_json(), heads=durable.heads, run_id=name)]


def _compact(folder: Path, durable: _Durable, now_unix_us: int) -> Compaction:
    """Verify, then compact; what ``understudy evidence compact`` does."""
    began, began_cpu, before_mb = time.perf_counter(), time.process_time(), _disk_mb(folder)
    _verified(folder, durable)
    compact(folder, durable.heads, RETENTION, now_unix_us=now_unix_us)
    return Compaction(
        rows=durable.rows,
        seconds=time.perf_counter() - began,
        cpu_s=time.process_time() - began_cpu,
        peak_mb=_peak_mb(),
        disk_mb_before=before_mb,
        disk_mb_after=_disk_mb(folder),
    )


def _verified(folder: Path, durable: _Durable) -> Evidence:
    found = verify(folder, {head.chain: head for head in durable.heads}, _claims(durable))
    if not found.ok:
        raise BenchmarkError(f"the evidence does not hold: {'; '.join(found.problems)}")
    return found.evidence


def _verify(folder: Path, durable: _Durable) -> dict[str, Any]:
    """Verify all that there is; its counts, and what that took."""
    began = time.perf_counter()
    evidence = _verified(folder, durable)
    return {
        "counts": counted(evidence, durable.rows),
        "seconds": time.perf_counter() - began,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(scale: Scale, folder: Path, elsewhere: Executor) -> dict[str, Any]:
    """Go on in a folder; the result of all that is there by then, as plain values. ``elsewhere`` runs what others do.

    Raises:
        BenchmarkError: the folder is of another plan, or the evidence is not what it must be.
    """
    environment = describe(("numpy", "orjson", "pyarrow"))
    progress = Progress.of(folder, scale.plan)
    say("making the batches")
    stream = Stream(scale.plan)
    run = _Run(scale, stream, progress, folder, elsewhere)
    durable = run.feed()
    say("verifying")
    verified = elsewhere.submit(_verify, folder / "evidence", durable).result()
    expected = _position(stream, durable.rows).counts
    say("looking, dissecting, offering to a lane")
    return {
        "benchmark": "evidence_scale",
        "environment": environment,
        "settings": {**asdict(scale.plan), "policy": POLICY, "keep_segments": RETENTION.keep_segments},
        "pairs": expected.get("pairs", 0),
        "rows": durable.rows,
        "complete": durable.rows == stream.end.counts["rows"],
        "chains": len(durable.heads),
        "segments": sum(head.segments for head in durable.heads),
        "pending": run.accounting.snapshot().pending,
        "windows": [asdict(window) for window in progress.windows],
        "compactions": [asdict(each) for each in progress.compactions],
        "summary": summarise(progress.windows, progress.compactions),
        "verified": {name: verified[name] for name in ("seconds", "peak_mb")},
        "differences": _differences(expected, verified["counts"]),
        "counts": verified["counts"],
        "look": _look(durable, run.accounting.ledger(), scale.looks),
        "dissection": _dissect(stream, scale.dissected_batches, folder / "dissection"),
        "router": lane.measure(rounds=scale.router_rounds, requests=scale.router_requests),
    }


def _differences(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    return [
        f"{name}: {expected.get(name, 0)} were made, {found.get(name, 0)} are in the evidence"
        for name in sorted({*expected, *found})
        if expected.get(name, 0) != found.get(name, 0)
    ]


def summarise(windows: Sequence[Window], compactions: Sequence[Compaction]) -> dict[str, Any]:
    """The figures of a run: cost, memory and disk, and how they go with the number of pairs.

    Memory is compared within each chain, which is one process: the last window with the second, by whose begin there
    were some million pairs. The ratio is the largest of all chains with three windows; None where there is none.
    """
    by_chain: dict[str, list[Window]] = {}
    for window in windows:
        by_chain.setdefault(window.chain, []).append(window)
    long = [some for some in by_chain.values() if len(some) > 2]
    longest = max(long, key=len, default=[])
    costs = [window.cpu_s * 1e6 / window.new_pairs for window in windows]
    ratios = [some[-1].resident_mb / some[1].resident_mb for some in long]
    compacting_s, last_rows = (
        sum(each.cpu_s for each in compactions),
        max((each.rows for each in compactions), default=0),
    )
    return {
        "us_per_pair": median(costs) if costs else None,
        "us_per_pair_interval": _interval(costs),
        "us_per_pair_growth": _slope([(window.pairs, cost) for window, cost in zip(windows, costs, strict=True)]),
        "pairs_per_s": 1e6 / median(costs) if costs else None,
        "resident_mb": (longest[1].resident_mb, longest[-1].resident_mb) if longest else None,
        "resident_ratio": max(ratios, default=None),
        "resident_growth_mb": _slope([(window.pairs, window.resident_mb) for window in longest[1:]]),
        "disk_mb_most": max((each.disk_mb_before for each in compactions), default=None),
        "disk_mb_after": max((each.disk_mb_after for each in compactions), default=None),
        "compaction_us_per_row": compacting_s * 1e6 / last_rows if last_rows else None,
        "compaction_peak_mb": max((each.peak_mb for each in compactions), default=None),
    }


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The mean, two standard errors down and up."""
    n = len(values)
    if n < 3:
        return None
    mean = sum(values) / n
    error = (sum((each - mean) ** 2 for each in values) / (n - 1) / n) ** 0.5
    return mean - _SURE * error, mean + _SURE * error


def _slope(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """By how much a figure grows in 10^8 pairs: the line of least squares, two standard errors down and up."""
    n = len(points)
    if n < 4:
        return None
    mean_x, mean_y = (sum(column) / n for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    error = (left / (n - 2) / spread) ** 0.5
    return (slope - _SURE * error) * PAIRS, (slope + _SURE * error) * PAIRS


def _look(durable: _Durable, coverage: Ledger, looks: int) -> dict[str, Any]:
    """What the controller does with the sums at each look: reads what a router posts, merges, doubts, judges."""
    posted = orjson.dumps(durable.evidence.to_json())
    policy = load_policy(POLICY, ROOT)
    spent: dict[str, list[float]] = {"read": [], "merge": [], "judge": []}
    verdict = ""
    for _ in range(looks):
        with _timed(spent["read"]):
            evidence = Evidence.from_json(orjson.loads(posted))
        with _timed(spent["merge"]):
            merged = sum((evidence, Evidence()), Evidence())
        with _timed(spent["judge"]):
            snapshot = Snapshot(evidence=merged, heads=durable.heads, accounting={}, coverage=coverage)
            at_stage: dict[str, Any] = {"stage": max(merged.stages, default=0), "stages": STAGES, "elapsed_s": 3600.0}
            doubts = find_doubts(policy, snapshot, **at_stage)
            verdict = judge(policy, merged, doubts=doubts, **at_stage).verdict
    return {
        "posted_bytes": len(posted),
        "verdict": verdict,
        **{f"{name}_ms": median(times) / 1000 for name, times in spent.items()},
    }


@contextlib.contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    """Add the microseconds of CPU that the block takes."""
    began = time.thread_time()
    yield
    into.append((time.thread_time() - began) * 1e6)


def _dissect(stream: Stream, batches: int, folder: Path) -> dict[str, float]:
    """Where the time of a pair goes: microseconds a pair of each step of the recorder, alone, on the same batches."""
    name, output, parameters = _COMPARATOR
    comparator, finder, noise_finder = open_comparator(name, output, parameters), Finder(), Finder()
    shutil.rmtree(folder, ignore_errors=True)
    writer = SegmentWriter(
        folder,
        Header(
            kind=Kind.PAIRS,
            deployment_id=DEPLOYMENT,
            limits=LIMITS,
            comparator=name,
            output=output,
            parameters=parameters,
            measures=comparator.measures,
            chain="dissection",
        ),
    )
    spent: dict[str, list[float]] = {step: [] for step in _STEPS}
    with _timed(spent[_MAKING]):
        made = [pair for _, pair in itertools.islice(stream.after(0, secrets.token_hex(8)), batches)]
    with _timed(spent[_COPYING]):
        taken = [compact_pair(pair, comparator, find=_nothing, find_noise=_nothing) for pair in made]
    with _timed(spent[_FINDING]):
        for pair in made:
            deque(map(finder.find, pair.baseline.answers, pair.candidate.answers, pair.rows), 0)
            if pair.twin is not None:
                deque(map(noise_finder.find, pair.baseline.answers, pair.twin.answers, pair.rows), 0)
    segments = max(sum(sum(pair.rows) for pair in made) // ROUND_ROWS, 1)
    each = -(-batches // segments)
    for at in range(0, batches, each):
        with _timed(spent[_COMPARING]):
            rows = to_table(taken[at : at + each], comparator, at)
        with _timed(spent[_SUMMING]):
            sums(rows, LIMITS, comparator.measures)
        with _timed(spent[_WRITING]):
            writer.write(rows)
    shutil.rmtree(folder)
    pairs = sum(len(pair.rows) for pair in made)
    return {step: sum(times) / pairs for step, times in spent.items()}


def _nothing(baseline: Answer, candidate: Answer, rows: int) -> int:
    """Structural findings, where their time is not to be counted."""
    return 0


def missed(document: Mapping[str, Any]) -> list[str]:
    """What is not as it must be; empty when all is."""
    summary = document["summary"]
    ratio, disk_mb = summary["resident_ratio"], summary["disk_mb_most"]
    slow = max(document["router"], key=itemgetter("us_per_request"))
    found = list(document["differences"])
    if document["pending"]:
        found.append(f"{document['pending']} items are pending in the account when all has ended")
    if ratio is None:
        found.append("memory: fewer than three windows, too few to say whether it is flat")
    elif ratio > FLAT:
        found.append(f"memory: grew to {ratio:.3f} of what it was, the goal is {FLAT}")
    if disk_mb is not None and disk_mb > MOST_DISK_MB:
        found.append(f"disk: up to {disk_mb:.0f} MB, the goal is {MOST_DISK_MB}")
    if slow["us_per_request"] > ROUTER_GOAL_US:
        found.append(
            f"router: {slow['us_per_request']:.1f} µs a request in batches of {slow['batch']} ({slow['input']}), "
            f"the goal is {ROUTER_GOAL_US:.0f}"
        )
    return found


def render(document: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    settings, look = document["settings"], document["look"]
    ended = "" if document["complete"] else f" of {settings['pairs']:,}, when this run's time was over"
    return "\n\n".join(
        [
            "# Evidence at scale",
            origin(document["environment"]),
            f"{document['pairs']:,} pairs{ended}: {document['rows']:,} rows in {document['segments']:,} segments of "
            f"{document['chains']} chains, one for each process that recorded. The batches hold 1 to {LARGEST_BATCH} "
            "rows; a tenth of those in shadow have a twin. All of them come from a pool of "
            f"{settings['pool']} for each stage, with ids and moments of their own.",
            "## The recorder",
            table(("figure", "value"), _figures(document)),
            "The interval is of the mean over windows of a million pairs, the growth that of the line of least squares "
            "through these, both two standard errors wide. Memory is the median over a window of what was resident "
            "after each segment. Verifying and compacting run in a process of their own.",
            "## Where the time of a pair goes",
            table(
                ("step", "µs/pair"),
                [(step, f"{spent:.2f}") for step, spent in document["dissection"].items()],
            ),
            "## A look of the controller",
            table(
                ("step", "ms of CPU"),
                [
                    (f"read the {look['posted_bytes']:,} bytes that a router posts", f"{look['read_ms']:.2f}"),
                    ("merge", f"{look['merge_ms']:.2f}"),
                    (f"doubt and judge (`{settings['policy']}`: {look['verdict']})", f"{look['judge_ms']:.2f}"),
                ],
            ),
            "## The router",
            table(
                ("input", "requests in a batch", "µs of CPU a request", "lowest", "highest"),
                [
                    (
                        row["input"],
                        str(row["batch"]),
                        *(f"{row[name]:.2f}" for name in ("us_per_request", "lowest", "highest")),
                    )
                    for row in document["router"]
                ],
            ),
            "\n".join(missed(document)) or "Every sum is what was counted as the batches were made; all goals are met.",
        ]
    )


def _figures(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    summary, verified = document["summary"], document["verified"]
    between, growth = summary["us_per_pair_interval"], summary["us_per_pair_growth"]
    resident, resident_growth = summary["resident_mb"], summary["resident_growth_mb"]
    compaction = summary["compaction_us_per_row"]
    return [
        ("CPU for a pair, median of the windows", _said(summary["us_per_pair"], "{:.2f} µs")),
        ("mean, 95 % interval", _said(between, "{:.2f} … {:.2f} µs")),
        ("growth in 10^8 pairs, 95 % interval", _said(growth, "{:+.2f} … {:+.2f} µs")),
        ("pairs a second of CPU", _said(summary["pairs_per_s"], "{:,.0f}")),
        ("resident after 10^6 pairs, and at the end", _said(resident, "{:.1f}, {:.1f} MB")),
        (f"its ratio, at most (goal: {FLAT})", _said(summary["resident_ratio"], "{:.3f}")),
        ("its growth in 10^8 pairs, 95 % interval", _said(resident_growth, "{:+.1f} … {:+.1f} MB")),
        ("most on disk before compacting", _said(summary["disk_mb_most"], "{:.0f} MB")),
        ("most on disk after it", _said(summary["disk_mb_after"], "{:.0f} MB")),
        ("CPU of verifying and compacting", _said(compaction, "{:.2f} µs/row")),
        ("its peak of memory", _said(summary["compaction_peak_mb"], "{:.0f} MB")),
        ("verifying at the end", f"{verified['seconds']:.1f} s, {verified['peak_mb']:.0f} MB"),
        ("pairs in the sums", f"{document['counts'].get('pairs', 0):,}"),
        ("sums that differ from what was made", str(len(document["differences"]))),
    ]


def _said(value: float | Sequence[float] | None, spelling: str) -> str:
    if value is None:
        return "too few windows"
    return spelling.format(*value) if isinstance(value, Sequence) else spelling.format(value)


def main() -> int:
    """Run, print and write the result; exit status 1 if something is not as it must be, 2 if it cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of the whole run")
    parser.add_argument("--minutes", type=float, help="at most, of this call; without it, until all is done")
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the evidence lies; a run goes on from there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where evidence_scale.json and .md are written")
    options = parser.parse_args()
    if options.pairs < 1 or options.seed < 0 or (options.minutes is not None and options.minutes <= 0):
        parser.error("--pairs, --seed and --minutes: expected at least 1, at least 0 and more than 0")
    scale = Scale(plan=Plan(pairs=options.pairs, seed=options.seed), minutes=options.minutes)
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn, max_tasks_per_child=1) as elsewhere:
            document = measure(scale, options.folder, elsewhere)
    except (OSError, BenchmarkError, UnderstudyError) as error:
        print(f"evidence_scale: {error}", file=sys.stderr)
        return 2
    markdown = render(document)
    write(options.out, "evidence_scale", document, markdown)
    print(markdown)
    return 1 if missed(document) else 0


if __name__ == "__main__":
    keep_freed_memory()  # as a router's shadow process does, which records
    spare_the_collector()
    sys.exit(main())
