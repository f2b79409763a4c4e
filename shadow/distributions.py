"""What a rollout's evidence looks like: distributions that no gate has need of, from all of its rows, in one pass.

Of segments that became checkpoints there are sums alone: they count in ``Survey.evidence``, and in no distribution.

Everything merges: what is known of many segments is the sum of what is known of each, in any order and any grouping.
Memory is that of one segment and of bounded tables: histograms with fixed buckets, ``MOST_LABELS`` labels,
``MOST_BLOCKS`` blocks of time, and as many of the worst items as are asked for. No values are kept but theirs.

Times and memory are only of batches that the baseline answered: there it is the primary, and candidate and twin run the
same batch at the mirror's priority. Where the candidate answered, other processes ran it, at other priorities.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import exp, sqrt
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shadow.accounting import Account
from shadow.comparators import Measure
from shadow.errors import EvidenceError
from shadow.evidence import (
    BUCKET_WIDTH,
    DELTA_EDGES,
    Buckets,
    Evidence,
    Histogram,
    LabelCells,
    Limits,
    MeasureSums,
    SliceSums,
    StageSums,
)
from shadow.findings import FINDINGS
from shadow.labels import SCHEMA as LABEL_SCHEMA
from shadow.pair import Arm, Status
from shadow.rows import SCHEMA as PAIR_SCHEMA
from shadow.rows import SIDES, TWIN, measure_matrix
from shadow.slices import MAX_SLICES, NONE, OTHER
from shadow.store import Checkpoint, Header, Kind, Segment, chains, latest_checkpoint, walk_chain
from shadow.sums import label_sums, sums

MOST_LABELS: Final = 1000
MOST_BLOCKS: Final = 512
WORST: Final = 10
SHOWN_SCORES: Final = 4  # of a worst item
NOISE_QUANTILE: Final = 0.99  # of the twin's |Δscore|: what is beyond it is beyond the noise floor
_MOST_SLICES: Final = MAX_SLICES + 2  # with those of other values, and of none
_Z95: Final = 1.959963984540054  # of the normal distribution, two-sided
_MICROSECONDS: Final = 1_000_000
_SIZE_BITS: Final = 6  # hold the exponent of any batch size

_Bools: TypeAlias = NDArray[np.bool_]
_Ints: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]


class _Adds(Protocol):
    def __add__(self, other: Any, /) -> Any: ...


_Key = TypeVar("_Key")
_Label = TypeVar("_Label", int, str)
_Sums = TypeVar("_Sums", bound=_Adds)


class Quantity(StrEnum):
    """What is measured of a batch: its time by three clocks, in µs, and its peak of memory, in bytes."""

    WALL = "wall"
    CPU = "cpu"  # of the replica's thread
    GPU = "gpu"  # between CUDA events
    MEMORY = "memory"


_COLUMNS: Final[Mapping[Quantity, str]] = {
    Quantity.WALL: "service_us",
    Quantity.CPU: "service_cpu_us",
    Quantity.GPU: "service_gpu_us",
    Quantity.MEMORY: "memory_bytes",
}


class BatchKey(NamedTuple):
    """Batches of 2^k … 2^(k+1) − 1 rows, ``size`` being 2^k, on one side."""

    size: int
    side: str
    quantity: Quantity


class RatioKey(NamedTuple):
    """The candidate against the twin, in batches of about one size."""

    size: int
    quantity: Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Whole numbers from 0: how many, their sum, the largest, and a histogram with buckets 1 % wide."""

    n: int = 0
    total: int = 0
    largest: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    @classmethod
    def of(cls, values: _Ints) -> Self:
        """The spread of some values."""
        return cls(
            n=len(values),
            total=int(values.sum()),
            largest=int(values.max(initial=0)),
            histogram=Histogram.of(values),
        )

    @property
    def mean(self) -> float | None:
        """Their mean; None where there are none."""
        return self.total / self.n if self.n else None

    def quantile(self, q: float) -> float | None:
        """The q-quantile, at most 1 % too high and never over the largest; None where there are none."""
        bucket = self.histogram.bucket_of(q)
        return None if bucket is None else min(exp((bucket + 1) * BUCKET_WIDTH), float(self.largest))

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(
            n=self.n + other.n,
            total=self.total + other.total,
            largest=max(self.largest, other.largest),
            histogram=self.histogram + other.histogram,
        )


@dataclass(frozen=True, slots=True)
class Ratios(Buckets):
    """Counts of quotients in buckets 1 % wide: bucket i holds 1.01^(i − ½) … 1.01^(i + ½), and 1 is amid bucket 0."""

    @classmethod
    def of(cls, above: _Ints, below: _Ints) -> Self:
        """Of the quotients of two arrays of numbers from 0; 0 counts as 1."""
        logs = np.log(np.maximum(above, 1)) - np.log(np.maximum(below, 1))
        found, counts = np.unique(np.rint(logs / BUCKET_WIDTH).astype(np.int64), return_counts=True)
        return cls(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def quantile(self, q: float) -> float | None:
        """The q-quantile, at most ½ % off; None where there are none."""
        bucket = self.bucket_of(q)
        return None if bucket is None else exp(bucket * BUCKET_WIDTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Readings of one block of time and one batch size: how many, and their sum in bytes."""

    n: int = 0
    total: int = 0

    def __add__(self, other: "Reading") -> "Reading":
        return Reading(n=self.n + other.n, total=self.total + other.total)


class Cell(NamedTuple):
    """A block of time, numbered from 1970 on, and a batch size in it."""

    block: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How a side's peak memory went in the course of its batches, at about equal batch size.

    ``batches`` and ``levels`` have an entry for each block of time with a reading: how many batches there had been at
    its middle, and the mean peak in bytes, each reading taken less the mean of its batch size and plus the mean of all.

    ``slope`` is the least-squares slope in bytes per 1000 batches of all the side's replicas together, ``error`` its
    standard error, which takes blocks as independent; each is None where there are too few blocks for it. The line goes
    through ``mean`` bytes at ``middle`` batches.

    ``rises`` and ``falls`` are signs of differences between a block of the second half and the one as far into the
    first half. Without a trend either sign is as likely: with F1 against ½ that is the block sign test F8. Source: Cox
    & Stuart, Some quick sign tests for trend (1955). Allocators keep what they once had: a rise that ends is no leak.
    """

    n: int = 0
    batches: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    middle: float = 0.0
    mean: float = 0.0
    slope: float | None = None
    error: float | None = None
    rises: int = 0
    falls: int = 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """Readings of memory by time, in blocks of 2^``exponent`` seconds, and by batch size within each block.

    Blocks are as narrow as they can be, from 2 s on, while those from the first to the last are at most
    ``MOST_BLOCKS``: that depends on the first and the last alone, so the order of adding is free.
    """

    exponent: int = 1
    cells: Mapping[Cell, Reading] = field(default_factory=dict)

    @classmethod
    def of(cls, at_unix_us: _Ints, sizes: _Ints, values: _Ints) -> Self:
        """Some readings in bytes, with the time and the size (a power of two) of their batches."""
        blocks = at_unix_us // _MICROSECONDS >> 1
        codes = (blocks << _SIZE_BITS) + np.frexp(sizes)[1] - 1
        return cls(
            1,
            {
                Cell(code >> _SIZE_BITS, 1 << (code & (1 << _SIZE_BITS) - 1)): Reading(
                    n=len(rows), total=int(values[rows].sum())
                )
                for code, rows in _groups(codes)
            },
        )._bounded()

    def __add__(self, other: Self) -> Self:
        exponent = max(self.exponent, other.exponent)
        cells = _merged(self._widened(exponent), other._widened(exponent))
        return type(self)(exponent, cells)._bounded()

    def _bounded(self) -> Self:
        """With blocks as wide as they must be."""
        if not self.cells:
            return self
        first, last, more = min(self.cells).block, max(self.cells).block, 0
        while (last >> more) - (first >> more) >= MOST_BLOCKS:
            more += 1
        return type(self)(self.exponent + more, self._widened(self.exponent + more))

    def _widened(self, exponent: int) -> Mapping[Cell, Reading]:
        """Its cells, in blocks of 2^exponent seconds."""
        if exponent == self.exponent:
            return self.cells
        wide: dict[Cell, Reading] = {}
        for (block, size), reading in self.cells.items():
            cell = Cell(block >> exponent - self.exponent, size)
            wide[cell] = wide[cell] + reading if cell in wide else reading
        return wide

    def trend(self) -> Trend:
        """The trend over all blocks: least squares with a level for each batch size, and a slope for all."""
        if not self.cells:
            return Trend()
        cells = sorted(self.cells)
        n, totals = (
            np.array([getattr(self.cells[cell], name) for cell in cells], np.float64) for name in ("n", "total")
        )
        block = np.unique([cell.block for cell in cells], return_inverse=True)[1]
        size = np.unique([cell.size for cell in cells], return_inverse=True)[1]
        readings = np.bincount(block, n)
        middles = np.cumsum(readings) - readings / 2
        x, y = middles[block], totals / n
        x, y = x - _level(x, n, size), y - _level(y, n, size)
        mean = float(totals.sum() / n.sum())
        levels = np.bincount(block, n * y) / readings + mean
        slope, error = _line(x, y, n, spare=len(cells) - len(np.unique(size)) - 1)
        half = len(levels) // 2
        risen = levels[len(levels) - half :] - levels[:half]
        return Trend(
            n=int(n.sum()),
            batches=tuple(middles.tolist()),
            levels=tuple(levels.tolist()),
            middle=float((readings * middles).sum() / readings.sum()),
            mean=mean,
            slope=slope,
            error=error,
            rises=_count(risen >= 1),  # less than a byte is a rounding error
            falls=_count(risen <= -1),
        )


def _level(values: _Floats, weights: _Floats, group: NDArray[np.intp]) -> _Floats:
    """The weighted mean of each value's group."""
    means: _Floats = (np.bincount(group, weights * values) / np.bincount(group, weights))[group]
    return means


def _line(x: _Floats, y: _Floats, weights: _Floats, *, spare: int) -> tuple[float | None, float | None]:
    """The slope of y over x, both centred, per 1000 of x, and its standard error with ``spare`` degrees of freedom."""
    width = float((weights * x * x).sum())
    if width <= 0:
        return None, None
    slope = float((weights * x * y).sum()) / width
    if spare < 1:
        return 1000 * slope, None
    unexplained = y - slope * x
    variance = float((weights * unexplained * unexplained).sum()) / spare
    return 1000 * slope, 1000 * sqrt(variance / width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Compared items that have something in common."""

    items: int = 0
    agree: int = 0  # same top-1
    over: int = 0  # max |Δscore| > tolerance
    max_delta: float = 0.0
    measures: Mapping[str, MeasureSums] = field(default_factory=dict)  # by the measure's name

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            items=self.items + other.items,
            agree=self.agree + other.agree,
            over=self.over + other.over,
            max_delta=max(self.max_delta, other.max_delta),
            measures=_merged(self.measures, other.measures),
        )


@dataclass(frozen=True, slots=True)
class Pooled(Generic[_Label, _Sums]):
    """Sums by label: of the ``most`` smallest labels, and of all others together.

    A label that is pooled has that many before it, which no later label takes away: so the order of adding is free.
    """

    most: int
    by_label: Mapping[_Label, _Sums] = field(default_factory=dict)
    others: _Sums | None = None

    @classmethod
    def of(cls, most: int, by_label: Mapping[_Label, _Sums], others: _Sums | None = None) -> Self:
        """Any number of labels, pooled."""
        labels = sorted(by_label)
        if len(labels) <= most:
            return cls(most, by_label, others)
        for label in labels[most:]:
            others = _plus(others, by_label[label])
        return cls(most, {label: by_label[label] for label in labels[:most]}, others)

    def __add__(self, other: Self) -> Self:
        by_label = _merged(self.by_label, other.by_label)
        return self.of(self.most, by_label, _plus(self.others, other.others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Requests that show one kind of structural finding.

    ``beside`` counts those of the candidate's that the twin ran as well, ``twin`` those of the twin's among the same
    requests: only these two may be compared, as the twin runs a share of the batches.
    """

    candidate: int = 0
    beside: int = 0
    twin: int = 0

    def __add__(self, other: "Found") -> "Found":
        return Found(
            candidate=self.candidate + other.candidate,
            beside=self.beside + other.beside,
            twin=self.twin + other.twin,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One compared item, and where it is recorded: the file, and the row in it counted from 0.

    ``places`` are the positions among the item's values at which the sides differ most (the first ones, where one
    has more values), the largest difference first; the scores are those found there. Nothing where they were not kept.
    """

    max_delta: float
    twin_max_delta: float | None
    request_id: str
    item: int
    stage: int
    at_unix_us: int
    slice: str
    baseline_top1: int  # −1: none
    candidate_top1: int
    places: tuple[int, ...]
    baseline_scores: tuple[float, ...]
    candidate_scores: tuple[float, ...]
    file: str
    row: int


@dataclass(frozen=True, slots=True)
class Worst:
    """The items with the largest max |Δscore|, the largest first; of equals the one whose file and row come first."""

    most: int = 0
    cases: tuple[Case, ...] = ()

    def __add__(self, other: Self) -> Self:
        most = max(self.most, other.most)
        return type(self)(most, tuple(heapq.nsmallest(most, (*self.cases, *other.cases), key=_badness)))


def _badness(case: Case) -> tuple[float, str, int]:
    return -case.max_delta, case.file, case.row


@dataclass(frozen=True, slots=True)
class Span:
    """From the first to the last time, in Unix µs; None where there is none."""

    first: int | None = None
    last: int | None = None

    @classmethod
    def of(cls, at_unix_us: _Ints) -> Self:
        """The span of some times."""
        return cls(int(at_unix_us.min()), int(at_unix_us.max())) if len(at_unix_us) else cls()

    def __add__(self, other: Self) -> Self:
        firsts = [each.first for each in (self, other) if each.first is not None]
        lasts = [each.last for each in (self, other) if each.last is not None]
        return type(self)(min(firsts, default=None), max(lasts, default=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributions:
    """Of some rows; those of many are the sum of their parts'.

    ``spreads``, ``ratios`` and ``memory`` are of the batches that the baseline answered; ``batches`` and ``swapped``
    count all batches, and those that the candidate answered. ``looked`` are requests with an end on both sides, where
    findings can show, ``looked_beside`` those of them that the twin ran, too. ``named`` are compared items whose
    baseline named a top-1 answer; ``labels`` sorts them by it, ``slices`` sorts all, and has their measures.
    ``accuracy`` is of late labels, by the true class.
    """

    rows: int = 0
    span: Span = field(default_factory=Span)
    batches: int = 0
    swapped: int = 0
    spreads: Mapping[BatchKey, Spread] = field(default_factory=dict)
    ratios: Mapping[RatioKey, Ratios] = field(default_factory=dict)  # candidate / twin, batch by batch
    memory: Mapping[str, Blocks] = field(default_factory=dict)  # by side: candidate, twin
    looked: int = 0
    looked_beside: int = 0
    findings: Mapping[str, Found] = field(default_factory=dict)
    named: int = 0
    labels: Pooled[int, Agreement] = field(default_factory=lambda: Pooled(MOST_LABELS))
    slices: Pooled[str, Agreement] = field(default_factory=lambda: Pooled(_MOST_SLICES))
    accuracy: Pooled[int, LabelCells] = field(default_factory=lambda: Pooled(MOST_LABELS))
    worst: Worst = field(default_factory=Worst)

    def __add__(self, other: "Distributions") -> "Distributions":
        merged = {each.name: _sum(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)}
        return Distributions(**merged)

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that there are, ascending: 2^k stands for 2^k … 2^(k+1) − 1."""
        return sorted({key.size for key in self.spreads})

    def ratio(self, quantity: Quantity) -> Ratios:
        """The candidate against the twin over batches of all sizes, each against the same batch."""
        return sum((each for key, each in self.ratios.items() if key.quantity is quantity), Ratios())


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """Items of the candidate whose max |Δscore| is at or over the noise floor: the twin's p99, rounded up to an edge of
    the histogram. Of noise alone it would be 1 % of them at most, in the long run.
    """

    floor: float
    items: int
    share: float


def beyond_noise(total: StageSums) -> Beyond | None:
    """How much of the candidate's differences is more than noise; None without a twin, or without items."""
    bucket = total.noise.deltas.bucket_of(NOISE_QUANTILE)
    if bucket is None or not total.items:
        return None
    items = sum(count for each, count in total.deltas.counts.items() if each > bucket)
    return Beyond(floor=DELTA_EDGES[min(bucket, len(DELTA_EDGES) - 1)], items=items, share=items / total.items)


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share; (0, 1) where n is 0.

    It holds for one look at independent items, as description: gates use ``rollout.bounds``. Source: Wilson, Probable
    inference, the law of succession, and statistical inference (1927).
    """
    if not n:
        return 0.0, 1.0
    square = _Z95 * _Z95
    centre, reach = count + square / 2, _Z95 * sqrt(count * (n - count) / n + square / 4)
    lower, upper = (centre - reach) / (n + square), (centre + reach) / (n + square)
    return (max(lower, 0.0) if count else 0.0), (min(upper, 1.0) if count < n else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """What became of older segments: their sums, and how many segments and rows of pairs these had been."""

    chains: int = 0  # that begin with a checkpoint
    segments: int = 0
    rows: int = 0
    evidence: Evidence = field(default_factory=Evidence)

    def __add__(self, other: "Checkpoints") -> "Checkpoints":
        return Checkpoints(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All evidence of one rollout. ``header`` is that of a segment of pairs, ``account`` what the last segment of each
    chain says of the mirror, added up.

    ``evidence`` has everything, also what is in ``checkpoints`` alone; ``distributions`` and ``segments`` are of what
    is still there row by row.
    """

    header: Header
    chains: int
    segments: int
    account: Account
    evidence: Evidence
    distributions: Distributions
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    @property
    def by_slice(self) -> dict[str, Agreement]:
        """All compared items by slice, those of no slice as ``NONE``.

        Counts are those of the sums, checkpoints included; the largest |Δ| and the measures are of the rows.
        """
        total, rows = self.evidence.total(), self.distributions.slices
        counts = {**total.slices.by_name}
        rest = SliceSums(
            items=total.items - sum(each.items for each in counts.values()),
            agree=total.agree - sum(each.agree for each in counts.values()),
            delta_over=total.delta_over - sum(each.delta_over for each in counts.values()),
        )
        if rest.items:
            counts[NONE] = rest
        seen: dict[str, Agreement] = {}
        for name, each in (*rows.by_label.items(), (OTHER, rows.others)):
            if each is not None:
                place = name if name in counts else OTHER  # as ``SliceTable`` pools them
                seen[place] = seen.get(place, Agreement()) + each
        return {
            name: replace(seen.get(name, Agreement()), items=each.items, agree=each.agree, over=each.delta_over)
            for name, each in counts.items()
        }


def survey(folder: Path, *, worst: int = WORST) -> Survey:
    """Read all segments in a folder of evidence, one after the other, and the checkpoints before them.

    A rollout that still runs is read as far as it had come. Every chain is walked: a segment must follow the bytes of
    the one before. Whether figures follow from the scores, and heads are those that the journal recorded, is for
    ``shadow.verify`` to say.

    Raises:
        EvidenceError: there is none, a segment is damaged or missing (names the file), chains are of two rollouts, or
            one was compacted while it was read.
    """
    reader = _Reader(worst)
    for chain in chains(folder):
        reader.read(folder, chain)
    if reader.header is None:
        raise EvidenceError(f"{folder}: no evidence: expected segments of pairs, <chain>-000001.parquet")
    return Survey(
        header=reader.header,
        chains=reader.chains,
        segments=reader.segments,
        account=reader.account,
        evidence=reader.evidence,
        distributions=reader.distributions,
        checkpoints=reader.checkpoints,
    )


class _Reader:
    """One run of ``survey``."""

    def __init__(self, worst: int) -> None:
        self._worst = worst
        self.header: Header | None = None
        self.chains = self.segments = 0
        self.account, self.evidence = Account(), Evidence()
        self.distributions, self.checkpoints = Distributions(), Checkpoints()
        self._deployment_id: str | None = None

    def read(self, folder: Path, chain: str) -> None:
        """Add a chain."""
        header: Header | None = None
        number = 0
        if (checkpoint := latest_checkpoint(folder, chain)) is not None:
            header, number = checkpoint.header, checkpoint.head.segments
            self._check(folder / checkpoint.name, header)
            self._add_checkpoint(checkpoint)
        for segment, _ in walk_chain(folder, chain):
            number += 1
            if segment.number != number:
                raise EvidenceError(f"{folder}: chain {chain} was compacted while it was read: run this again")
            header = segment.header()
            self._check(segment.path, header)
            self._add(segment, header)
            self.segments += 1
        self.chains += 1
        if header is not None:
            self.account += header.account

    def _add_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.evidence += checkpoint.evidence
        self.checkpoints += Checkpoints(
            chains=1,
            segments=checkpoint.head.segments,
            rows=checkpoint.head.rows if checkpoint.header.kind is Kind.PAIRS else 0,
            evidence=checkpoint.evidence,
        )

    def _check(self, path: Path, header: Header) -> None:
        """All chains must be of one rollout, all pairs compared in one way."""
        self._deployment_id = self._deployment_id or header.deployment_id
        if header.deployment_id != self._deployment_id:
            raise EvidenceError(
                f"{path}: of deployment {header.deployment_id}; others here are of {self._deployment_id}"
            )
        if header.kind is Kind.PAIRS:
            self.header = self.header or header
            if _way(header) != _way(self.header):
                raise EvidenceError(f"{path}: header: limits or comparator differ from those of other chains")

    def _add(self, segment: Segment, header: Header) -> None:
        try:
            if header.kind is Kind.LABELS:
                table = segment.table(LABEL_SCHEMA)
                self.evidence += label_sums(table)
                self.distributions += Distributions(accuracy=_accuracy(_Columns(table)))
            else:
                table = segment.table(PAIR_SCHEMA)
                self.evidence += sums(table, header.limits, header.measures)
                self.distributions += distributions(
                    table, segment.path.name, header.limits, header.measures, worst=self._worst
                )
        except Exception as error:  # rows that are damaged, or that someone made up, may break anything
            if str(error).startswith(str(segment.path)):
                raise
            raise EvidenceError(f"{segment.path}: its rows cannot be counted: {error}") from error


def _way(header: Header) -> Header:
    """How pairs were compared: the header without what differs from segment to segment."""
    return replace(header, chain="", number=0, previous="", account=Account())


def distributions(
    table: pa.Table, file: str, limits: Limits, measures: Sequence[Measure] = (), *, worst: int = WORST
) -> Distributions:
    """Those of rows of ``shadow.rows.SCHEMA``, which are all of the segment that ``file`` names.

    ``measures`` are those of the rows' comparator.

    Raises:
        EvidenceError: the rows have another number of measures.
    """
    columns = _Columns(table)
    request, batch = columns.ints("item") == 0, columns.ints("batch_row") == 0
    primary = columns.equal("primary", Arm.BASELINE)
    sizes, readings = columns.sizes(), _readings(columns, batch & primary)
    both = request & columns.ran("baseline") & columns.ran("candidate")
    beside = both & columns.ran(TWIN)
    return Distributions(
        rows=table.num_rows,
        span=Span.of(columns.ints("at_unix_us")),
        batches=_count(batch),
        swapped=_count(batch & ~primary),
        spreads=_spreads(readings, sizes),
        ratios=_ratios(readings, sizes),
        memory=_memory(readings, sizes, columns.ints("at_unix_us")),
        looked=_count(both),
        looked_beside=_count(beside),
        findings=_findings(columns, both, beside),
        worst=_worst(table, columns.floats("max_delta"), file, worst),
        **_agreements(columns, limits.tolerance, measures),
    )


class _Columns:
    """The columns of a table as arrays."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def ints(self, name: str) -> _Ints:
        """A column of numbers from 0; null is −1, as no answer is."""
        numbers: _Ints = self._table[name].fill_null(-1).to_numpy().astype(np.int64, copy=False)
        return numbers

    def floats(self, name: str) -> _Floats:
        """A column of floats; null is NaN."""
        numbers: _Floats = self._table[name].combine_chunks().to_numpy(zero_copy_only=False)
        return numbers

    def measures(self, count: int) -> _Floats:
        """What the comparator measured: [rows, count]."""
        return measure_matrix(self._table["measures"].combine_chunks(), count)

    def words(self, name: str) -> tuple[list[str], _Ints]:
        """The words of a column, and which of them each row has."""
        column = self._table[name].combine_chunks()
        codes: _Ints = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return column.dictionary.to_pylist(), codes

    def equal(self, name: str, word: str) -> _Bools:
        """Where a column has a word."""
        words, codes = self.words(name)
        where: _Bools = np.isin(codes, [place for place, each in enumerate(words) if each == word])
        return where

    def ran(self, side: str) -> _Bools:
        """Where a side had something to do with the request's end."""
        name = f"{side}_status"
        return ~(self.equal(name, Status.ABSENT) | self.equal(name, Status.REJECTED))

    def sizes(self) -> _Ints:
        """The power of two that is not larger than the rows of the batch, as it ran."""
        _, exponents = np.frexp(np.maximum(self.ints("batch_rows"), 1))
        powers: _Ints = np.left_shift(1, exponents.astype(np.int64) - 1)
        return powers


_Readings: TypeAlias = Mapping[tuple[str, Quantity], _Ints]


def _readings(columns: _Columns, batch: _Bools) -> _Readings:
    """What was measured of the batches on whose first rows ``batch`` is; −1 elsewhere.

    Batches that failed have no time worth the name; what they took of memory counts.
    """
    found = {}
    for side in SIDES:
        well = columns.equal(f"{side}_batch", Status.OK)
        for quantity, name in _COLUMNS.items():
            there = batch if quantity is Quantity.MEMORY else batch & well
            found[side, quantity] = np.where(there, columns.ints(f"{side}_{name}"), -1)
    return found


def _spreads(readings: _Readings, sizes: _Ints) -> dict[BatchKey, Spread]:
    return {
        BatchKey(size, side, quantity): Spread.of(some)
        for (side, quantity), values in readings.items()
        for size, some in _by_size(sizes, values >= 0, values)
    }


def _ratios(readings: _Readings, sizes: _Ints) -> dict[RatioKey, Ratios]:
    found = {}
    for quantity in Quantity:
        candidate, twin = readings[Arm.CANDIDATE, quantity], readings[TWIN, quantity]
        both = (candidate >= 0) & (twin >= 0)
        for size, rows in _by_size(sizes, both, np.arange(len(sizes))):
            found[RatioKey(size, quantity)] = Ratios.of(candidate[rows], twin[rows])
    return found


def _memory(readings: _Readings, sizes: _Ints, at_unix_us: _Ints) -> dict[str, Blocks]:
    found = {}
    for side in (str(Arm.CANDIDATE), TWIN):
        values = readings[side, Quantity.MEMORY]
        there = values >= 0
        if there.any():
            found[side] = Blocks.of(at_unix_us[there], sizes[there], values[there])
    return found


def _findings(columns: _Columns, both: _Bools, beside: _Bools) -> dict[str, Found]:
    masks, twin_masks = columns.ints("findings"), columns.ints("twin_findings")
    found = {}
    for bit, finding in enumerate(FINDINGS):
        shown, twin_shown = masks >> bit & 1 == 1, twin_masks >> bit & 1 == 1
        counts = Found(candidate=_count(both & shown), beside=_count(beside & shown), twin=_count(beside & twin_shown))
        if counts != Found():
            found[str(finding)] = counts
    return found


def _agreements(columns: _Columns, tolerance: float, measures: Sequence[Measure]) -> dict[str, Any]:
    """``named``, ``labels`` and ``slices`` of the compared items."""
    deltas = columns.floats("max_delta")
    compared = np.flatnonzero(~np.isnan(deltas))
    deltas, label = deltas[compared], columns.ints("baseline_top1")[compared]
    same = (label == columns.ints("candidate_top1")[compared]) & (label >= 0)
    names, codes = columns.words("slice")
    measured = columns.measures(len(measures))[compared] if measures else np.empty((len(compared), 0))

    def of(rows: NDArray[np.intp]) -> Agreement:
        return Agreement(
            items=len(rows),
            agree=_count(same[rows]),
            over=_count(deltas[rows] > tolerance),
            max_delta=float(deltas[rows].max()),
        )

    def with_measures(rows: NDArray[np.intp]) -> Agreement:
        found = {each.name: MeasureSums.of(measured[rows, at], each) for at, each in enumerate(measures)}
        return replace(of(rows), measures={name: each for name, each in found.items() if each.n})

    by_slice = {names[code]: with_measures(rows) for code, rows in _groups(codes[compared])}
    return {
        "named": _count(label >= 0),
        "labels": Pooled.of(MOST_LABELS, {each: of(rows) for each, rows in _groups(label) if each >= 0}),
        "slices": Pooled.of(_MOST_SLICES, by_slice),
    }


def _accuracy(columns: _Columns) -> Pooled[int, LabelCells]:
    """Who was right, by the true class, of rows of ``shadow.labels.SCHEMA``."""
    label = columns.ints("label")
    baseline, candidate = columns.ints("baseline_top1") == label, columns.ints("candidate_top1") == label
    cells = {
        each: LabelCells(
            both=_count(baseline[rows] & candidate[rows]),
            baseline_only=_count(baseline[rows] & ~candidate[rows]),
            candidate_only=_count(~baseline[rows] & candidate[rows]),
            neither=_count(~baseline[rows] & ~candidate[rows]),
        )
        for each, rows in _groups(label)
    }
    return Pooled.of(MOST_LABELS, cells)


_FACTS: Final = [
    *("max_delta", "twin_max_delta", "request_id", "item", "stage", "at_unix_us", "slice"),
    *("baseline_top1", "candidate_top1"),
]
_KEPT: Final = ["baseline_scores", "candidate_scores"]


def _worst(table: pa.Table, deltas: _Floats, file: str, most: int) -> Worst:
    order = np.argsort(-deltas, kind="stable")[:most]
    rows = order[~np.isnan(deltas[order])]
    few = table.select([*_FACTS, *_KEPT]).take(pa.array(rows))
    facts = few.select(_FACTS).to_pylist()
    kept = [few[name].combine_chunks() for name in _KEPT]
    return Worst(
        most,
        tuple(
            Case(**fact, **_scores(*(column[at] for column in kept)), file=file, row=row)
            for at, (fact, row) in enumerate(zip(facts, rows.tolist(), strict=True))
        ),
    )


def _scores(left: pa.Scalar, right: pa.Scalar) -> dict[str, Any]:
    """A few scores of an item, as ``Case`` has them."""
    if not (left.is_valid and right.is_valid):
        return {"places": (), "baseline_scores": (), "candidate_scores": ()}
    baseline, candidate = (side.values.to_numpy(zero_copy_only=False).astype(np.float64) for side in (left, right))
    if len(baseline) == len(candidate):
        places = np.argsort(-_apart(baseline, candidate), kind="stable")[:SHOWN_SCORES]
    else:
        places = np.arange(min(SHOWN_SCORES, len(baseline), len(candidate)))
    return {
        "places": tuple(places.tolist()),
        "baseline_scores": tuple(baseline[places].tolist()),
        "candidate_scores": tuple(candidate[places].tolist()),
    }


def _apart(left: _Floats, right: _Floats) -> _Floats:
    """|Δ|, infinite where one is not a number; equal infinities do not differ."""
    with np.errstate(invalid="ignore"):
        deltas: _Floats = np.where(left == right, 0.0, np.abs(left - right))
    deltas[np.isnan(deltas)] = np.inf
    return deltas


def _by_size(sizes: _Ints, there: _Bools, values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The values that are there, by batch size."""
    chosen = values[there]
    for size, rows in _groups(sizes[there]):
        yield size, chosen[rows]


def _groups(codes: _Ints) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The different codes, and where each of them is."""
    if not len(codes):
        return
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


def _plus(left: _Sums | None, right: _Sums | None) -> _Sums | None:
    if left is None or right is None:
        return right if left is None else left
    both: _Sums = left + right
    return both


def _merged(left: Mapping[_Key, _Sums], right: Mapping[_Key, _Sums]) -> dict[_Key, _Sums]:
    return {**left, **{key: left[key] + part if key in left else part for key, part in right.items()}}


def _sum(left: Any, right: Any) -> Any:
    return _merged(left, right) if isinstance(left, Mapping) else left + right
