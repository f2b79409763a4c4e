"""F1 as a quantile's interval, and F6: the quantiles of two versions, from histograms."""

from math import ceil, exp, inf, log
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rollout.bounds.process import FloatArray, Interval
from rollout.bounds.rates import rate_above, rate_below


def quantile_edges(over: ArrayLike, n: int, q: float, alpha: float) -> tuple[int | None, int | None]:
    """The two-sided confidence sequence of the q-quantile, as indices into ascending edges; None: not bounded there.

    ``over`` [edges] counts, of ``n`` observations, those at or beyond each edge. F1 at every edge with limit 1 − q; the
    true quantile is wrongly excluded only if the process at that one edge errs, so P(ever outside) ≤ α needs no
    correction for the number of edges. Source: Howard & Ramdas arXiv:1906.09712.
    """
    beyond = np.asarray(over, dtype=np.float64)
    counts, level = np.stack([beyond, n - beyond], axis=-1), -log(alpha / 2)
    above = np.flatnonzero(rate_above(1 - q).log_e(counts) >= level)
    below = np.flatnonzero(rate_below(1 - q).log_e(counts) >= level)
    return (int(above[-1]) if above.size else None), (int(below[0]) if below.size else None)


def quantile_ratio_above(
    candidate: ArrayLike, baseline: ArrayLike, *, q: float, ratio: float, width: float
) -> FloatArray:
    """F6 against H0 "q_c ≤ ratio · q_b" for the q-quantiles of two versions: ln E; a large E proves a higher ratio.

    ``candidate`` and ``baseline`` [..., buckets] are histograms over the same buckets, whose edges ascend by the factor
    e^``width`` (``shadow.evidence.BUCKET_WIDTH``); the first bucket holds all that is below its upper edge too, the
    last all that is beyond its lower one, failures included. Observations are of one version each: split traffic.
    Promise: under H0, P(E ever ≥ 1/α) ≤ α, for quantiles that stay what they are (P(X_c > q_c | past) ≤ 1 − q ≤
    P(X_b ≥ q_b | past) throughout). Proof:
    1. let q_c lie in bucket i. F1 above 1 − q, on the candidate's from the *next* edge on, is an e-process; so is F1
       below 1 − q on the baseline's from any edge ≤ q_c/ratio on, as that is ≤ q_b;
    2. an observation multiplies one of the two: their product is an e-process as well;
    3. i is not known: E is the least of all buckets' products, so never more than that of i. ∎

    Step 2 carries over to pairs whose two exceedances are not negatively dependent, as those of a shared queue are not.
    It proves a ratio up to two buckets wider than it is asked for. Source: Howard & Ramdas arXiv:1906.09712.
    """
    above, below = _sides(candidate, baseline, q)
    return _least(above, below, ceil(log(ratio) / width - _ROUNDING))


def quantile_ratio_interval(
    candidate: ArrayLike, baseline: ArrayLike, *, q: float, width: float, alpha: float
) -> Interval:
    """The two-sided confidence sequence of q_c/q_b, to a bucket's width: F6 inverted, α/2 a side.

    ``candidate`` and ``baseline`` [buckets] as in ``quantile_ratio_above``. (0, inf) where nothing is excluded.
    """
    lower = _last_shift(*_sides(candidate, baseline, q), alpha / 2)
    upper = _last_shift(*_sides(baseline, candidate, q), alpha / 2)
    return (0.0 if lower is None else exp(lower * width)), (inf if upper is None else exp(-upper * width))


_ROUNDING: Final = 1e-9  # of a bucket: a ratio of exactly so many buckets is not taken for one more


def _sides(candidate: ArrayLike, baseline: ArrayLike, q: float) -> tuple[FloatArray, FloatArray]:
    """ln E by bucket: that more than 1 − q of the candidate's are beyond it; less of the baseline's in it or beyond."""
    over, base = _at_or_beyond(candidate), _at_or_beyond(baseline)
    beyond = np.concatenate([over[..., 1:], np.zeros_like(over[..., :1])], axis=-1)
    above = rate_above(1 - q).log_e(np.stack([beyond, over[..., :1] - beyond], axis=-1))
    below = rate_below(1 - q).log_e(np.stack([base, base[..., :1] - base], axis=-1))
    return above, below


def _at_or_beyond(histogram: ArrayLike) -> FloatArray:
    counts = np.asarray(histogram, dtype=np.float64)
    return np.asarray(counts[..., ::-1].cumsum(axis=-1)[..., ::-1])


def _least(above: FloatArray, below: FloatArray, shift: int) -> FloatArray:
    """ln E that the candidate's quantile is more than ``shift`` buckets beyond the baseline's; falls with it.

    Before the first bucket all of the baseline's lie beyond; after the last, at most as many as in the last.
    """
    buckets = above.shape[-1]
    at = np.clip(np.arange(buckets) - shift, 0, buckets - 1)
    return np.asarray((above + below[..., at]).min(axis=-1))


def _last_shift(above: FloatArray, below: FloatArray, alpha: float) -> int | None:
    """The widest shift that is proved at α; None where none is."""
    level = -log(alpha)
    buckets: int = above.shape[-1]
    proved, open_ = -buckets, buckets
    if _least(above, below, proved) < level:
        return None
    while open_ - proved > 1:
        middle = (proved + open_) // 2
        if _least(above, below, middle) >= level:
            proved = middle
        else:
            open_ = middle
    return proved
