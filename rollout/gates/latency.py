"""R1: the candidate's 95th percentile of latency, against limits of its own."""

from dataclasses import replace
from math import exp
from typing import ClassVar, Self

import numpy as np
from pydantic import model_validator

from rollout.bounds import Interval, log_merge, quantile_edges
from rollout.gates.contract import Counts, Gate, Look, Positive, Reading, Share
from rollout.gates.rate import Rate
from rollout.gates.text import number, percent
from shadow.evidence import BUCKET_WIDTH, Histogram, StageSums


class Latency(Gate):
    """The q-quantile is below a limit just when less than 1 − q of the latencies exceed it: F1 on exceedances.

    Two streams are read. *Service time* of the candidate's batches exists at every stage; *end-to-end latency* of its
    answers only where it answers clients, at normal priority. Health reads the stream that the stage is about: service
    time in shadow, end-to-end latency in canary. Harm must be one process for the whole rollout, and the two streams
    do not share a null hypothesis: each has its own process, mixed over stages, and the two are merged with weights ½,
    constant, so that their mean is again a supermartingale. The price is ln 2.

    An answer or batch that failed counts as an exceedance. The null hypothesis is conditional (P(over | past) ≤ 1 − q
    at every time), so a burst long enough to be evidence is evidence, whatever the average of the day.
    """

    requirement: ClassVar[str] = "R1"
    proves_harm: ClassVar[bool] = True

    quantile: Share = 0.95
    advance_below_ms: Positive = 500.0
    roll_back_above_ms: Positive = 505.0

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.advance_below_ms > self.roll_back_above_ms:
            raise ValueError("advance_below_ms must not exceed roll_back_above_ms")
        return self

    def threshold(self) -> str:
        """Its limits, fit to print."""
        below, above = self.advance_below_ms, self.roll_back_above_ms
        return f"{self._name} < {below:g} ms to advance, > {above:g} ms rolls back"

    def read(self, look: Look) -> Reading:
        """Read one look."""
        streams = (self._rate("batches", _service_over_breach), self._rate("answers", _answers_over_breach))
        harm = float(log_merge([stream.log_e_harm(look) for stream in streams], (0.5, 0.5)))
        target = self._rate("batches", _service_over_target)
        if not look.in_shadow:
            target = self._rate("answers", _answers_over_target)
        reading = replace(
            target.read(look),
            log_e_harm=harm,
            health=f"{self._name} < {self.advance_below_ms:g} ms",
            harm=self._harm(look, streams),
        )
        return self._in_ms(reading, look) if reading.n else reading

    @property
    def _name(self) -> str:
        return f"p{100 * self.quantile:g}"

    def _rate(self, counted: str, bad: Counts) -> Rate:
        share = 1 - self.quantile
        return Rate(name="", counted=counted, bad=bad, advance_below=share, roll_back_above=share)

    def _harm(self, look: Look, streams: tuple[Rate, Rate]) -> str:
        counts = [(stream.counted, look.counted(stream.bad)) for stream in streams]
        said = " and ".join(f"{bad} of {n} {counted}" for counted, (bad, n) in counts if n)
        return f"{self._name} > {self.roll_back_above_ms:g} ms: {said} over it over the rollout"

    def _in_ms(self, reading: Reading, look: Look) -> Reading:
        """The share of exceedances told as what it stands for: the quantile, in milliseconds."""
        arm = look.now.candidate
        histogram, what = (arm.service, "service time") if look.in_shadow else (arm.latency, "end to end")
        estimate = histogram.quantile_ms(self.quantile)
        said = "unknown" if estimate is None else f"{number(estimate)} ms"
        share = percent((reading.estimate or 0.0) / 100)
        return replace(
            reading,
            unit="ms",
            estimate=estimate,
            interval=_interval_ms(histogram, reading.n, self.quantile, look.alpha),
            finding=f"{self._name} {said} ({what}); {share} of {reading.n} {reading.counted} "
            f"over {self.advance_below_ms:g} ms",
        )


def _interval_ms(histogram: Histogram, n: int, q: float, alpha: float) -> Interval | None:
    """The quantile's interval, to a bucket's width. Of ``n``, those that no bucket holds lie beyond all edges."""
    if not histogram.counts:
        return None
    first, last = min(histogram.counts), max(histogram.counts)
    counts = [histogram.counts.get(bucket, 0) for bucket in range(first, last + 1)]
    over = n - np.cumsum([0, *counts])
    low, high = quantile_edges(over, n, q, alpha)
    if high is None:
        return None
    return (0.0 if low is None else _ms(first + low)), _ms(first + high)


def _ms(edge: int) -> float:
    return exp(edge * BUCKET_WIDTH) / 1000


def _service_over_target(sums: StageSums) -> tuple[int, int]:
    return sums.candidate.service_over_target, sums.candidate.batches


def _service_over_breach(sums: StageSums) -> tuple[int, int]:
    return sums.candidate.service_over_breach, sums.candidate.batches


def _answers_over_target(sums: StageSums) -> tuple[int, int]:
    return sums.candidate.answers_over_target, sums.candidate.answers


def _answers_over_breach(sums: StageSums) -> tuple[int, int]:
    return sums.candidate.answers_over_breach, sums.candidate.answers
