"""F5: confidence sequences of means and of correlations that need no bound on the values. Asymptotic.

Promise: P(the interval ever misses, from the first look on) tends to at most α as the first look comes later; how soon
it does depends on the tails. So what can be bounded has F1 to F4, and a correlation is not judged before ``LEAST``
items. Log-normal tails, looks from 500 on: 1.9 % of correlations ever missed at a promised 5 %.
Source: Waudby-Smith et al. arXiv:2103.06476; the e-value is the normal mixture that it inverts (Robbins 1970).
"""

from dataclasses import dataclass
from math import inf, log, pi, sqrt, tanh
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike

from rollout.bounds.process import FloatArray, Interval

LEAST: Final = 500


def mixing_variance(alpha: float, best_at: float) -> float:
    """ρ², the variance of F5's mixture over effects, with which its interval is narrowest near n = ``best_at``.

    It is fixed before the first look: a ρ² chosen by the data voids the promise.
    """
    return (-2 * log(alpha) + log(1 - 2 * log(alpha))) / best_at


def asymptotic_margin(n: ArrayLike, alpha: float, rho2: float) -> FloatArray:
    """F5's half width after n observations, in their standard deviations; ∞ at n = 0. For one side alone give 2α."""
    t = np.asarray(n, dtype=np.float64)
    spread = t * rho2 + 1
    margin = np.sqrt(2 * spread / rho2 * np.log(np.sqrt(spread) / alpha)) / np.maximum(t, 1)
    return np.where(t > 0, margin, inf)


def asymptotic_interval(mean: float, deviation: float, n: int, alpha: float, rho2: float) -> Interval:
    """The two-sided confidence sequence of a mean, from the mean and the standard deviation of n observations."""
    margin = deviation * float(asymptotic_margin(n, alpha, rho2)) if n else inf
    return mean - margin, mean + margin


def asymptotic_log_e(distance: ArrayLike, n: ArrayLike, rho2: float) -> FloatArray:
    """F5 as an e-value against H0 "the mean is ≤ a limit": ln E; a large E proves that it is above. n = 0: 0.

    ``distance`` is (mean − limit)/deviation of the n observations, finite; to prove a mean *below* the limit, give its
    negative. E is the likelihood ratio mixed over effects above the limit, half-normal with variance ρ²: with
    s = nρ² + 1 and z = n·distance·ρ/√s it is 2Φ(z)·exp(z²/2)/√s. Elementary lower bounds stand in for Φ, which keeps
    the promise: 1 − ½exp(−z²/2) for z > 0, and Boyd's (1959) of Mills' ratio for z ≤ 0. Both are ½ at 0; where
    E ≥ 20 they cost less than 4 % of it.
    """
    t = np.asarray(n, dtype=np.float64)
    spread = t * rho2 + 1
    z = t * np.asarray(distance, dtype=np.float64) * np.sqrt(rho2 / spread)
    half = z * z / 2
    above = half + np.log1p(-np.expm1(-half))
    below = log(sqrt(2 * pi)) - np.log(np.sqrt(z * z + 2 * pi) + (pi - 1) * np.abs(z))
    return np.asarray(np.where(z > 0, above, below) - np.log(spread) / 2)


def correlation_sums(baseline: ArrayLike, candidate: ArrayLike) -> FloatArray:
    """What the correlation of two versions' scores [..., items, scores] depends on; sums of several routers add up.

    [..., 6, 6]: Σ over items of m·mᵀ, m being the item's means of (1, x, y, x², xy, y²), x the baseline's score and y
    the candidate's. So an item weighs the same however many scores it has, and its scores may depend on each other, as
    those of all classes do, which sum to 1. With one score an item these are the moments up to order 4.
    """
    x, y = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    means = np.stack([each.mean(axis=-1) for each in (np.ones_like(x), x, y, x * x, x * y, y * y)], axis=-1)
    return np.asarray(np.matmul(np.swapaxes(means, -1, -2), means))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Correlation:
    """Pearson's correlation of paired scores on Fisher's scale, where it is close to normal: z = artanh r.

    ``n`` items, ``z``, and ``deviation``, that of one item's contribution to z; arrays of one shape. Up to terms that
    vanish faster, z is off by the items' mean of [uv − (r/2)(u² + v²)]/(1 − r²), u and v the standardised scores (the
    delta method); F5 with its standard deviation is z's confidence sequence. The textbook's 1/√(n − 3) holds for normal
    scores alone: on heavy tails it gave 56 % false alarms at a promised 5 %.
    """

    n: FloatArray
    z: FloatArray
    deviation: FloatArray

    @classmethod
    def of(cls, sums: ArrayLike) -> Self:
        """From ``correlation_sums`` [..., 6, 6]. |r| is taken for 1 − 1e-6 at most: Fisher's scale has no end.

        Where ``deviation`` is ∞, nothing is known: less than ``LEAST`` items, or a version whose scores never differ.
        """
        table = np.asarray(sums, dtype=np.float64)
        n = table[..., 0, 0]
        items = np.maximum(n, 1)
        x, y, xx, xy, yy = np.moveaxis(table[..., 0, 1:] / items[..., None], -1, 0)
        known = (n >= LEAST) & (xx > x**2) & (yy > y**2)
        a, b = 1 / np.sqrt(np.where(known, xx - x**2, 1)), 1 / np.sqrt(np.where(known, yy - y**2, 1))
        r = np.where(known, np.clip(a * b * (xy - x * y), -_MOST_R, _MOST_R), 0)
        form = _contribution(r, a, -a * x, b, -b * y)
        # Where scores are far from 0 beside their spread, digits cancel: what that may amount to widens the interval.
        squares = np.maximum(_quadratic(form, table), 0) + _ROUNDING * _quadratic(np.abs(form), np.abs(table))
        return cls(n=n, z=np.arctanh(r), deviation=np.where(known, np.sqrt(squares / items) / (1 - r**2), inf))

    @property
    def r(self) -> FloatArray:
        """Pearson's correlation; 0 where nothing is known."""
        return np.tanh(self.z)

    def interval(self, alpha: float, rho2: float) -> Interval:
        """The two-sided confidence sequence of one correlation; (−1, 1): nothing is known."""
        low, high = asymptotic_interval(float(self.z), float(self.deviation), int(self.n), alpha, rho2)
        return tanh(low), tanh(high)

    def log_e_above(self, limit: float, rho2: float) -> FloatArray:
        """ln E that the correlation is above a limit, −1 < limit < 1: that the versions are as good as one model."""
        return self._log_e(1, limit, rho2)

    def log_e_below(self, limit: float, rho2: float) -> FloatArray:
        """ln E that the correlation is below a limit, −1 < limit < 1: that the versions differ."""
        return self._log_e(-1, limit, rho2)

    def _log_e(self, sign: int, limit: float, rho2: float) -> FloatArray:
        distance = sign * (self.z - np.arctanh(limit)) / self.deviation
        return asymptotic_log_e(distance, np.where(np.isfinite(self.deviation), self.n, 0), rho2)


_MOST_R: Final = 1 - 1e-6
_ROUNDING: Final = 64 * float(np.finfo(np.float64).eps)  # 36 products, and the additions behind each of the sums


def _contribution(r: FloatArray, a: FloatArray, u0: FloatArray, b: FloatArray, v0: FloatArray) -> FloatArray:
    """uv − (r/2)(u² + v²) as a linear form [..., 6] in (1, x, y, x², xy, y²), where u = ax + u0 and v = by + v0."""
    half = r / 2
    terms = (
        u0 * v0 - half * (u0**2 + v0**2),
        a * (v0 - r * u0),
        b * (u0 - r * v0),
        -half * a**2,
        a * b,
        -half * b**2,
    )
    return np.stack(terms, axis=-1)


def _quadratic(form: FloatArray, table: FloatArray) -> FloatArray:
    """formᵀ · table · form: Σ of the form's squares, of a table Σ m·mᵀ."""
    return np.asarray(np.einsum("...i,...ij,...j->...", form, table, form))
