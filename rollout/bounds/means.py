"""F2: the mean of paired bounded differences, kinds (plus, minus, zero). F3: a relative uplift, kinds: four cells."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rollout.bounds.process import LAMS, FloatArray, Interval, Process, inverted_ratio, last_excluded


def mean_above(limit: ArrayLike, values: Sequence[float] = (1.0, -1.0, 0.0), least: float = -1.0) -> Process:
    """F2 against H0 "E[D | past] ≤ limit": a large E proves that the mean difference is above it.

    D takes ``values``, one kind each, none below ``least`` < limit; the default is the count form for D ∈ {−1, 0, 1}
    with kinds (plus, minus, zero). Bets are 1 + λ(D − limit), λ = ``LAMS``/(limit − least): a mean over the bins of
    a histogram when D is continuous. To prove a mean *below* m: swap plus and minus and give −m.
    Promise: at a mean ≤ limit, P(E ever ≥ 1/α) ≤ α. Source: Waudby-Smith & Ramdas arXiv:2010.09686.
    """
    limits = np.asarray(limit, dtype=np.float64)[..., None, None]
    stakes = np.asarray(LAMS) / (limits - least)
    return Process(np.log1p(stakes * (np.asarray(values)[:, None] - limits)))


def mean_interval(plus: int, minus: int, zero: int, alpha: float) -> Interval:
    """The two-sided confidence sequence of the mean of D ∈ {−1, 0, 1}: F2 inverted, α/2 a side."""
    return _mean_lower((plus, minus, zero), alpha / 2), -_mean_lower((minus, plus, zero), alpha / 2)


def ratio_above(ratio: ArrayLike) -> Process:
    """F3 against H0 "P(candidate right | past) ≤ ratio · P(baseline right | past)": a large E proves the uplift.

    Kinds: (both, baseline only, candidate only, neither). F2 on D = c − ratio·b, c and b being 1 where the version is
    right, with λ = ``LAMS``/ratio; ratio 1.1 is "more than +10 %". Promise: under H0, P(E ever ≥ 1/α) ≤ α. Proof:
    1. D ≥ −ratio and λ·ratio ≤ .97, so every factor 1 + λD ≥ .03 > 0: capital is never negative, and starts at 1;
    2. under H0, E[D | past] ≤ 0, so E[1 + λD | past] ≤ 1: each capital is a supermartingale, and so is their mean;
    3. Ville's inequality for nonnegative supermartingales that start at 1 is the promise. ∎
    """
    return _paired_bets(np.asarray(ratio, dtype=np.float64), sign=1)


def ratio_below(ratio: ArrayLike) -> Process:
    """F3 turned round: a large E proves P(candidate right) < ratio · P(baseline right). D = ratio·b − c ≥ −1."""
    return _paired_bets(np.asarray(ratio, dtype=np.float64), sign=-1)


def ratio_interval(both: int, baseline_only: int, candidate_only: int, neither: int, alpha: float) -> Interval:
    """The two-sided confidence sequence of P(candidate right)/P(baseline right): F3 inverted, α/2 a side.

    (0, inf) where nothing is excluded: the baseline, say, was not right often enough to bound the ratio from above.
    """
    return inverted_ratio(ratio_above, ratio_below, (both, baseline_only, candidate_only, neither), alpha)


_LEAST_MEAN: Final = -1 + 1e-12  # F2's stake is infinite at a limit of −1


def _mean_lower(counts: tuple[int, int, int], alpha: float) -> float:
    edge = last_excluded(lambda m: mean_above(m).log_e(counts), _LEAST_MEAN, 1.0, alpha)
    return -1.0 if edge is None else edge


def _paired_bets(ratio: FloatArray, *, sign: int) -> Process:
    """F3's factors by cell: D = ±(c − ratio·b), staked on its least value."""
    candidate, baseline = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0])
    difference = sign * (candidate - ratio[..., None] * baseline)
    stakes = np.asarray(LAMS) / (ratio[..., None, None] if sign > 0 else 1.0)
    return Process(np.log1p(stakes * difference[..., None]))
