"""Where a request's time goes: each stage of its way in a histogram of its own, and what no stage explains.

A request costs a few microseconds here, so nothing is locked and nothing is allocated: all of it happens on the data
plane's event loop, and a scrape, in another thread, reads integers.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

STAGES: Final = ("decode", "queue", "transfer", "copy", "preprocess", "compute", "encode", "unexplained")
_SCALE: Final = tuple(mantissa * 10.0**exponent for exponent in range(-5, 1) for mantissa in (1, 2.5, 5))
BUCKETS_S: Final = (*_SCALE, 10.0)
METRIC: Final = "understudy_stage_seconds"
_US: Final = 1e-6


@dataclass(slots=True)
class Timing:
    """When a request passed where, in seconds of ``time.monotonic``, and what its replica measured.

    ``received``: its last byte is here. ``decoded``: it is queued. ``started``: its replica has it in work.
    ``replied``: the reply is back. ``resumed``: its own task goes on with it. ``ended``: its answer is encoded.
    """

    received: float
    decoded: float = 0.0
    started: float = 0.0
    replied: float = 0.0
    resumed: float = 0.0
    copy_us: int = 0
    preprocess_us: int = 0
    compute_us: int = 0

    def stages(self, ended: float) -> tuple[float, ...]:
        """Seconds of each of ``STAGES``, the last such that all add up to the whole."""
        copy, preprocess, compute = self.copy_us * _US, self.preprocess_us * _US, self.compute_us * _US
        decode, queue = self.decoded - self.received, self.started - self.decoded
        transfer = max(0.0, self.replied - self.started - copy - preprocess - compute)
        encode = ended - self.resumed
        known = decode + queue + transfer + copy + preprocess + compute + encode
        return (decode, queue, transfer, copy, preprocess, compute, encode, max(0.0, ended - self.received - known))


class Histogram:
    """Counts by bucket; a bound belongs to the bucket below it, as Prometheus has it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus's buckets: each bound with how many values do not exceed it."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Stages(Collector):
    """The histograms of every model version that has answered."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, int], tuple[Histogram, ...]] = {}

    def observe(self, model: str, version: int, timing: Timing, ended: float) -> None:
        """Count an answered request."""
        histograms = self._versions.get((model, version))
        if histograms is None:
            histograms = tuple(Histogram(BUCKETS_S) for _ in STAGES)
            self._versions[model, version] = histograms
        for histogram, seconds in zip(histograms, timing.stages(ended), strict=True):
            histogram.counts[bisect_left(BUCKETS_S, seconds)] += 1
            histogram.sum += seconds

    def collect(self) -> Iterator[Metric]:
        """All of it for Prometheus."""
        family = HistogramMetricFamily(
            METRIC, "Time of a request in each stage of its way.", labels=("model", "version", "stage")
        )
        for (model, version), histograms in list(self._versions.items()):
            for stage, histogram in zip(STAGES, histograms, strict=True):
                family.add_metric((model, str(version), stage), histogram.cumulative(), histogram.sum)
        yield family
