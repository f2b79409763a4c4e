"""Evidence as sums that merge: of routers, of segments, of stages; in any order, in any grouping, to the same result.

Every figure is an integer (times in microseconds, score differences in units of 1e-9), so that merging is exactly
associative and commutative, and the hash of the sums can be recomputed from the raw rows bit for bit.

What a rollout's evidence takes in memory is bounded whatever the number of pairs: histograms have a fixed number of
buckets, slices a fixed number of names. Sums fit 63 bits for 9e7 items that all differ by ``DELTA_CAP``, 9e8 batches
of ``LONGEST_US``, and 9e9 values of a measure; one that would go beyond stays at 2^63 − 1, in any order of adding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate, repeat
from math import ceil, exp, log
from operator import mul
from typing import Any, Final, Self, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from shadow.comparators import DELTA_CAP, Measure
from shadow.slices import MAX_SLICES, OTHER

BUCKET_WIDTH: Final = log(1.01)
DELTA_UNIT: Final = 1e-9
LONGEST_US: Final = 10**10  # a batch's time ends here, near three hours: no batch may outweigh all others
MEASURE_BUCKETS: Final = 64
_LARGEST: Final = 2**63 - 1

# Lower edges of the buckets, up to some 14 days. Products of doubles are the same on every machine; logarithms are not,
# and the histogram's hash must be.
_EDGES_US: Final = np.fromiter(accumulate(repeat(1.01, 2800), mul, initial=1.0), dtype=np.float64)

# Eight a decade, from 1e-9 to 100; read from decimals, for the same reason.
_EIGHTHS: Final = ("1.0", "1.3", "1.8", "2.4", "3.2", "4.2", "5.6", "7.5")
DELTA_EDGES: Final = (*(float(f"{lead}e{power}") for power in range(-9, 2) for lead in _EIGHTHS), DELTA_CAP)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Counts by bucket; a bucket without counts is not there."""

    counts: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        return type(self)(_added(self.counts, other.counts))

    @property
    def n(self) -> int:
        """How many values it holds."""
        return sum(self.counts.values())

    def bucket_of(self, q: float) -> int | None:
        """The bucket that holds the q-quantile; None when empty."""
        rank, seen = ceil(q * self.n), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return bucket
        return None


@dataclass(frozen=True, slots=True)
class Histogram(Buckets):
    """Counts in logarithmic buckets 1 % wide: bucket i holds 1.01^i ≤ value in µs < 1.01^(i+1)."""

    @classmethod
    def of(cls, values_us: Iterable[int]) -> Self:
        """The histogram of some durations in microseconds; less than 1 µs counts as 1."""
        given = values_us if isinstance(values_us, np.ndarray) else np.fromiter(values_us, dtype=np.int64)
        return cls(_tally(np.searchsorted(_EDGES_US, np.maximum(given, 1), side="right") - 1))

    def quantile_ms(self, q: float) -> float | None:
        """The upper edge, in milliseconds, of the bucket that holds the q-quantile; None when empty."""
        bucket = self.bucket_of(q)
        return None if bucket is None else exp((bucket + 1) * BUCKET_WIDTH) / 1000


@dataclass(frozen=True, slots=True)
class DeltaHistogram(Buckets):
    """Counts of |Δscore|, eight buckets a decade: bucket i holds DELTA_EDGES[i − 1] ≤ |Δ| < DELTA_EDGES[i].

    Bucket 0 holds what is less than 1e-9, the last one what is at the cap.
    """

    @classmethod
    def of(cls, deltas: NDArray[np.float64]) -> Self:
        """The histogram of some differences from 0 to ``DELTA_CAP``."""
        return cls(_tally(np.searchsorted(DELTA_EDGES, deltas, side="right")))

    def quantile(self, q: float) -> float | None:
        """The upper edge of the bucket that holds the q-quantile; None when empty."""
        bucket = self.bucket_of(q)
        return None if bucket is None else DELTA_EDGES[min(bucket, len(DELTA_EDGES) - 1)]


@dataclass(frozen=True, slots=True)
class Shares(Buckets):
    """Counts of values within known ends, in ``MEASURE_BUCKETS`` equal buckets; the upper end is in the last."""

    @classmethod
    def of(cls, shares: NDArray[np.float64]) -> Self:
        """The histogram of some values given as 0 at the lower end, 1 at the upper."""
        return cls(_tally(np.minimum((shares * MEASURE_BUCKETS).astype(np.int64), MEASURE_BUCKETS - 1)))


def _tally(buckets: NDArray[np.int64]) -> dict[int, int]:
    found, counts = np.unique(buckets, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the counts of exceedance count; fixed when a rollout starts, and part of its evidence."""

    tolerance: float = 1e-3  # of max |Δscore| per item
    latency_target_ms: float = 500.0
    latency_breach_ms: float = 505.0
    memory_bytes: int = 500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSums:
    """What one version did. Requests: runs, failures, answers. Batches: service time by three clocks, memory.

    ``service`` is wall time, ``service_cpu`` the CPU time of the replica's thread, ``service_gpu`` the time between its
    CUDA events. By each clock, over a limit are the batches that ended well with a reading over it, and all that ended
    badly: of ``batches − service.n + service_cpu.n`` in all, by the clock of the CPU.
    """

    requests: int = 0  # that it was asked to run, as primary or mirrored
    errors: int = 0
    timeouts: int = 0
    malformed: int = 0
    batches: int = 0  # that it was asked to run and that ended, well (``service.n`` of them) or not
    service_us: int = 0  # Σ over those that ended well
    service_over_target: int = 0  # batches; one that failed or timed out is over both limits
    service_over_breach: int = 0
    service: Histogram = field(default_factory=Histogram)
    service_cpu_us: int = 0
    service_cpu_over_target: int = 0
    service_cpu_over_breach: int = 0
    service_cpu: Histogram = field(default_factory=Histogram)
    service_gpu_us: int = 0
    service_gpu_over_target: int = 0
    service_gpu_over_breach: int = 0
    service_gpu: Histogram = field(default_factory=Histogram)
    answers: int = 0  # clients' requests that the split gave to it, answered by it or, when it failed, by the baseline
    answers_failed: int = 0  # of these, those that it failed
    answers_over_target: int = 0  # end-to-end latency; a failed one is over both limits
    answers_over_breach: int = 0
    latency: Histogram = field(default_factory=Histogram)  # of those that it answered itself
    memory_readings: int = 0  # batches
    memory_over: int = 0
    memory_max_bytes: int = 0

    @property
    def failures(self) -> int:
        """Requests that it failed in any way."""
        return self.errors + self.timeouts + self.malformed

    def __add__(self, other: "ArmSums") -> "ArmSums":
        return _merge(self, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCells:
    """Labelled items by who satisfied the label with its top-1 answer."""

    both: int = 0
    baseline_only: int = 0
    candidate_only: int = 0
    neither: int = 0

    @property
    def n(self) -> int:
        """Labelled items."""
        return self.both + self.baseline_only + self.candidate_only + self.neither

    def __add__(self, other: "LabelCells") -> "LabelCells":
        return _merge(self, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSums:
    """One of the comparator's measures, over the items that it applies to."""

    n: int = 0
    sum_e9: int = 0  # Σ of (value − low) / (high − low), in units of 1e-9
    shares: Shares = field(default_factory=Shares)

    @classmethod
    def of(cls, values: NDArray[np.float64], measure: Measure) -> Self:
        """The sums of some values; NaN does not apply."""
        within = (np.clip(values[~np.isnan(values)], measure.low, measure.high) - measure.low) / (
            measure.high - measure.low
        )
        return cls(n=len(within), sum_e9=int(np.rint(within * 1e9).astype(np.int64).sum()), shares=Shares.of(within))

    def mean(self, measure: Measure) -> float | None:
        """The mean value; None where there is none."""
        return measure.low + (measure.high - measure.low) * self.sum_e9 * 1e-9 / self.n if self.n else None

    def __add__(self, other: "MeasureSums") -> "MeasureSums":
        return _merge(self, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSums:
    """The compared items of one slice."""

    items: int = 0
    agree: int = 0  # same top-1
    delta_over: int = 0  # max |Δscore| of the item > tolerance

    def __add__(self, other: "SliceSums") -> "SliceSums":
        return _merge(self, other)


@dataclass(frozen=True, slots=True)
class SliceTable:
    """Sums by slice: of the first ``MAX_SLICES`` names by alphabet, and of all others together as ``OTHER``.

    A name that is pooled has that many before it, which no later name takes away: so the order of adding is free.
    """

    by_name: Mapping[str, SliceSums] = field(default_factory=dict)

    @classmethod
    def of(cls, by_name: Mapping[str, SliceSums]) -> Self:
        """Any number of slices, pooled."""
        names = sorted({*by_name} - {OTHER})
        if len(names) <= MAX_SLICES:
            return cls(by_name)
        pooled = sum((by_name[name] for name in names[MAX_SLICES:]), by_name.get(OTHER, SliceSums()))
        return cls({**{name: by_name[name] for name in names[:MAX_SLICES]}, OTHER: pooled})

    def __add__(self, other: "SliceTable") -> "SliceTable":
        return SliceTable.of(_added(self.by_name, other.by_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSums:
    """What one version's batches of about one size took; the times are of those that ended well."""

    batches: int = 0  # with a wall time
    wall_us: int = 0
    cpu_readings: int = 0
    cpu_us: int = 0
    gpu_readings: int = 0
    gpu_us: int = 0
    memory_readings: int = 0
    memory_max_bytes: int = 0
    memory_sum_kib: int = 0  # each reading rounded down

    def __add__(self, other: "BatchSums") -> "BatchSums":
        return _merge(self, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeSums:
    """All batches of about one size, by version."""

    baseline: BatchSums = field(default_factory=BatchSums)
    candidate: BatchSums = field(default_factory=BatchSums)
    twin: BatchSums = field(default_factory=BatchSums)

    def __add__(self, other: "SizeSums") -> "SizeSums":
        return _merge(self, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The twin against the baseline: what two deployments of one version differ by, counted as for the candidate."""

    pairs: int = 0  # requests with an end on both
    twin_only_failed: int = 0
    baseline_only_failed: int = 0
    items: int = 0  # compared: both OK
    agree: int = 0
    delta_over: int = 0
    delta_max_e9: int = 0
    delta_sum_max_e9: int = 0
    delta_sum_mean_e9: int = 0
    deltas: DeltaHistogram = field(default_factory=DeltaHistogram)  # of the items' max |Δscore|
    findings: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Noise") -> "Noise":
        return _merge(self, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSums:
    """All evidence of one stage. Items are batch rows: one image, one answer."""

    baseline: ArmSums = field(default_factory=ArmSums)
    candidate: ArmSums = field(default_factory=ArmSums)
    twin: ArmSums = field(default_factory=ArmSums)
    pairs: int = 0  # requests with an end on both sides
    candidate_only_failed: int = 0  # pairs
    baseline_only_failed: int = 0
    items: int = 0  # compared: both sides OK
    agree: int = 0  # same top-1
    delta_over: int = 0  # max |Δscore| of the item > tolerance
    delta_max_e9: int = 0  # largest |Δscore|
    delta_sum_max_e9: int = 0  # Σ of the items' max |Δscore|
    delta_sum_mean_e9: int = 0  # Σ of the items' mean |Δscore|
    deltas: DeltaHistogram = field(default_factory=DeltaHistogram)  # of the items' max |Δscore|
    noise: Noise = field(default_factory=Noise)
    measures: Mapping[str, MeasureSums] = field(default_factory=dict)  # by the measure's name
    findings: Mapping[str, int] = field(default_factory=dict)  # requests by what was found, ``shadow.findings``
    slices: SliceTable = field(default_factory=SliceTable)
    sizes: Mapping[int, SizeSums] = field(default_factory=dict)  # by batch size: 2^k holds 2^k … 2^(k+1) − 1 rows
    labels: LabelCells = field(default_factory=LabelCells)

    def __add__(self, other: "StageSums") -> "StageSums":
        return _merge(self, other)

    def of_twin(self) -> "StageSums":
        """These sums with the twin in the candidate's place: what a gate that fires on it would have fired on anyway.

        The twin answers no client and has no labels, measures or slices.
        """
        noise = self.noise
        return StageSums(
            baseline=self.baseline,
            candidate=self.twin,
            pairs=noise.pairs,
            candidate_only_failed=noise.twin_only_failed,
            baseline_only_failed=noise.baseline_only_failed,
            items=noise.items,
            agree=noise.agree,
            delta_over=noise.delta_over,
            delta_max_e9=noise.delta_max_e9,
            delta_sum_max_e9=noise.delta_sum_max_e9,
            delta_sum_mean_e9=noise.delta_sum_mean_e9,
            deltas=noise.deltas,
            findings=noise.findings,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Sums by stage (index into the rollout's stages)."""

    stages: Mapping[int, StageSums] = field(default_factory=dict)

    def __add__(self, other: "Evidence") -> "Evidence":
        keys = sorted({*self.stages, *other.stages})
        return Evidence({key: self.stage(key) + other.stage(key) for key in keys})

    def stage(self, index: int) -> StageSums:
        """The sums of one stage; all zero where nothing was seen."""
        return self.stages.get(index, StageSums())

    def since(self, index: int) -> StageSums:
        """The sums of this stage and all later ones."""
        return sum((sums for key, sums in self.stages.items() if key >= index), StageSums())

    def total(self) -> StageSums:
        """The sums of all stages."""
        return self.since(0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without those that are zero; ``canonical`` gives their one spelling."""
        return {str(key): _plain(self.stages[key]) for key in sorted(self.stages)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls({int(key): _read(StageSums, sums) for key, sums in value.items()})


def canonical(value: object) -> bytes:
    """The one JSON spelling that hashes are taken of: sorted keys, no spaces."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


_Sums = TypeVar("_Sums", ArmSums, LabelCells, MeasureSums, SliceSums, BatchSums, SizeSums, Noise, StageSums)
_MAXIMA: Final = frozenset({"memory_max_bytes", "delta_max_e9"})


def _merge(left: _Sums, right: _Sums) -> _Sums:
    """Field by field: maxima by max, all else by +."""
    merged = {each.name: _add(each.name, getattr(left, each.name), getattr(right, each.name)) for each in fields(left)}
    return type(left)(**merged)


def _add(name: str, left: Any, right: Any) -> Any:
    if isinstance(left, int):
        return max(left, right) if name in _MAXIMA else min(left + right, _LARGEST)
    return _added(left, right) if isinstance(left, Mapping) else left + right


def _added(left: Mapping[Any, Any], right: Mapping[Any, Any]) -> dict[Any, Any]:
    """Key by key; what only one of them has is as it is."""
    return {**left, **{key: left[key] + part if key in left else part for key, part in right.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if isinstance(value, Buckets):
        return {str(bucket): value.counts[bucket] for bucket in sorted(value.counts)}
    if isinstance(value, SliceTable):
        return _plain(value.by_name)
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in sorted(value)}
    parts = {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return {name: part for name, part in parts.items() if part}


_Read = TypeVar("_Read")
_KEYED: Final[Mapping[str, tuple[type[int] | type[str], type[Any]]]] = {
    "measures": (str, MeasureSums),
    "sizes": (int, SizeSums),
}


def _read(kind: type[_Read], value: Mapping[str, Any]) -> _Read:
    """The inverse of ``_plain``; what is not there is zero."""
    zero = kind()
    return kind(**{name: _read_part(name, getattr(zero, name), part) for name, part in value.items()})


def _read_part(name: str, zero: Any, part: Any) -> Any:
    if isinstance(zero, int):
        return part
    if isinstance(zero, Buckets):
        return type(zero)({int(bucket): count for bucket, count in part.items()})
    if isinstance(zero, SliceTable):
        return SliceTable({each: _read(SliceSums, sums) for each, sums in part.items()})
    if name in _KEYED:
        key, kind = _KEYED[name]
        return {key(each): _read(kind, sums) for each, sums in part.items()}
    return dict(part) if isinstance(zero, Mapping) else _read(type(zero), part)
