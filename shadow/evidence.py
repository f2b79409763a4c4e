"""Evidence as sums that merge: of routers, of segments, of stages; in any order, in any grouping, to the same result.

Every figure is an integer (times in microseconds, score differences in units of 1e-9), so that merging is exactly
associative and commutative, and the hash of the sums can be recomputed from the raw rows bit for bit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate, repeat
from math import ceil, exp, log
from operator import mul
from typing import Any, Final, Self, TypeVar

import numpy as np
import orjson

BUCKET_WIDTH: Final = log(1.01)
DELTA_UNIT: Final = 1e-9

# Lower edges of the buckets, up to some 14 days. Products of doubles are the same on every machine; logarithms are not,
# and the histogram's hash must be.
_EDGES_US: Final = np.fromiter(accumulate(repeat(1.01, 2800), mul, initial=1.0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in logarithmic buckets 1 % wide: bucket i holds 1.01^i ≤ value in µs < 1.01^(i+1)."""

    counts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values_us: Iterable[int]) -> Self:
        """The histogram of some durations in microseconds; less than 1 µs counts as 1."""
        values = np.maximum(np.fromiter(values_us, dtype=np.int64), 1)
        buckets, counts = np.unique(np.searchsorted(_EDGES_US, values, side="right") - 1, return_counts=True)
        return cls(dict(zip(buckets.tolist(), counts.tolist(), strict=True)))

    def __add__(self, other: "Histogram") -> "Histogram":
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return Histogram(counts)

    @property
    def n(self) -> int:
        """How many values it holds."""
        return sum(self.counts.values())

    def quantile_ms(self, q: float) -> float | None:
        """The upper edge, in milliseconds, of the bucket that holds the q-quantile; None when empty."""
        rank, seen = ceil(q * self.n), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return exp((bucket + 1) * BUCKET_WIDTH) / 1000
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the counts of exceedance count; fixed when a rollout starts, and part of its evidence."""

    tolerance: float = 1e-3  # of max |Δscore| per item
    latency_target_ms: float = 500.0
    latency_breach_ms: float = 505.0
    memory_bytes: int = 500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSums:
    """What one version did. Requests: runs, failures, answers. Batches: service time, memory."""

    requests: int = 0  # that it was asked to run, as primary or mirrored
    errors: int = 0
    timeouts: int = 0
    malformed: int = 0
    batches: int = 0  # that it was asked to run and that ended, well (``service.n`` of them) or not
    service_us: int = 0  # Σ over those that ended well
    service_over_target: int = 0  # batches; one that failed or timed out is over both limits
    service_over_breach: int = 0
    service: Histogram = field(default_factory=Histogram)
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
class StageSums:
    """All evidence of one stage. Items are batch rows: one image, one answer."""

    baseline: ArmSums = field(default_factory=ArmSums)
    candidate: ArmSums = field(default_factory=ArmSums)
    pairs: int = 0  # requests with an end on both sides
    candidate_only_failed: int = 0  # pairs
    baseline_only_failed: int = 0
    items: int = 0  # compared: both sides OK
    agree: int = 0  # same top-1
    delta_over: int = 0  # max |Δscore| of the item > tolerance
    delta_max_e9: int = 0  # largest |Δscore|
    delta_sum_max_e9: int = 0  # Σ of the items' max |Δscore|
    delta_sum_mean_e9: int = 0  # Σ of the items' mean |Δscore|
    labels: LabelCells = field(default_factory=LabelCells)

    def __add__(self, other: "StageSums") -> "StageSums":
        return _merge(self, other)


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
        """Plain JSON values; ``canonical`` gives their one spelling."""
        return {str(key): _plain(self.stages[key]) for key in sorted(self.stages)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls({int(key): _stage(sums) for key, sums in value.items()})


def canonical(value: object) -> bytes:
    """The one JSON spelling that hashes are taken of: sorted keys, no spaces."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


_Sums = TypeVar("_Sums", ArmSums, LabelCells, StageSums)
_MAXIMA: Final = frozenset({"memory_max_bytes", "delta_max_e9"})


def _merge(left: _Sums, right: _Sums) -> _Sums:
    """Field by field: maxima by max, all else by +."""
    merged = {}
    for each in fields(left):
        a, b = getattr(left, each.name), getattr(right, each.name)
        merged[each.name] = max(a, b) if each.name in _MAXIMA else a + b
    return type(left)(**merged)


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return {str(bucket): value.counts[bucket] for bucket in sorted(value.counts)}
    if isinstance(value, int):
        return value
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}


def _stage(value: Mapping[str, Any]) -> StageSums:
    parts = dict(value)
    parts["baseline"], parts["candidate"] = _arm(parts["baseline"]), _arm(parts["candidate"])
    parts["labels"] = LabelCells(**parts["labels"])
    return StageSums(**parts)


def _arm(value: Mapping[str, Any]) -> ArmSums:
    parts = dict(value)
    for name in ("service", "latency"):
        parts[name] = Histogram({int(bucket): count for bucket, count in parts[name].items()})
    return ArmSums(**parts)
