"""Where the time of requests went between two scrapes: plain arithmetic over the routers' histograms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from prometheus_client.parser import text_string_to_metric_families

from serving.stages import METRIC, STAGES

QUANTILES: Final = (0.5, 0.9, 0.99)
Key = tuple[str, str, str, str]  # router, model, version, stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A histogram of seconds: how many values each bound has at or below it, the last bound infinite; and their sum."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    sum_s: float

    @property
    def count(self) -> int:
        """How many values there are."""
        return round(self.cumulative[-1])

    @property
    def mean_s(self) -> float:
        """Their mean; 0 of none."""
        return self.sum_s / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Seconds that a ``share`` above 0 of the values do not exceed, as if they lay evenly in each bucket.

        0 of no values; the last finite bound where it is beyond that.
        """
        rank, lower, below = share * self.cumulative[-1], 0.0, 0.0
        for upper, count in zip(self.bounds, self.cumulative, strict=True):
            if count > below and count >= rank:
                return lower if math.isinf(upper) else lower + (upper - lower) * (rank - below) / (count - below)
            lower, below = upper, count
        return 0.0

    def plus(self, other: Self, sign: int = 1) -> "Spread":
        """The values of both; with ``sign`` -1 those that came since ``other``."""
        return Spread(
            bounds=self.bounds,
            cumulative=tuple(mine + sign * its for mine, its in zip(self.cumulative, other.cumulative, strict=True)),
            sum_s=self.sum_s + sign * other.sum_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """What one version answered in ``seconds``, and how long each stage of it took."""

    model: str
    version: str
    seconds: float
    stages: Mapping[str, Spread]

    @property
    def requests(self) -> int:
        """How many requests were answered."""
        return self.stages[STAGES[0]].count

    @property
    def mean_s(self) -> float:
        """Of a request from its last byte to its encoded answer."""
        return sum(spread.mean_s for spread in self.stages.values())

    def share(self, stage: str) -> float:
        """A stage's part of the whole time."""
        return self.stages[stage].mean_s / self.mean_s if self.mean_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values, times in seconds."""
        return {
            "model": self.model,
            "version": self.version,
            "requests": self.requests,
            "requests_per_s": self.requests / self.seconds,
            "mean_s": self.mean_s,
            "stages": {
                stage: {
                    "share": self.share(stage),
                    "mean_s": spread.mean_s,
                    **{f"p{100 * each:.0f}_s": spread.quantile(each) for each in QUANTILES},
                }
                for stage, spread in self.stages.items()
            },
        }


@dataclass(slots=True)
class _Samples:
    buckets: dict[float, float] = field(default_factory=dict)
    sum_s: float = 0.0

    def spread(self) -> Spread:
        bounds = tuple(sorted(self.buckets))
        return Spread(bounds=bounds, cumulative=tuple(map(self.buckets.__getitem__, bounds)), sum_s=self.sum_s)


def read_stages(page: str) -> dict[Key, Spread]:
    """The histograms of all stages in a page of Prometheus's text format."""
    found: dict[Key, _Samples] = {}
    for family in text_string_to_metric_families(page):
        for name, labels, value, *_ in family.samples if family.name == METRIC else ():
            key = (labels["router"], labels["model"], labels["version"], labels["stage"])
            samples = found.setdefault(key, _Samples())
            if name.endswith("_bucket"):
                samples.buckets[float(labels["le"])] = value
            elif name.endswith("_sum"):
                samples.sum_s = value
    return {key: samples.spread() for key, samples in found.items()}


def breakdowns(before: Mapping[Key, Spread], after: Mapping[Key, Spread], seconds: float) -> Sequence[Breakdown]:
    """What all routers together answered between two scrapes, by model and version; versions without requests left out.

    A router that came meanwhile counts from its beginning, one that went not at all.
    """
    versions: dict[tuple[str, str], dict[str, Spread]] = {}
    for key, spread in after.items():
        _, model, version, stage = key
        fresh = spread.plus(before[key], -1) if key in before else spread
        stages = versions.setdefault((model, version), {})
        stages[stage] = stages[stage].plus(fresh) if stage in stages else fresh
    found = [
        Breakdown(model=model, version=version, seconds=seconds, stages={stage: stages[stage] for stage in STAGES})
        for (model, version), stages in versions.items()
    ]
    return sorted((each for each in found if each.requests), key=lambda each: (each.model, int(each.version)))
