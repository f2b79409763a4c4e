"""E-values and confidence sequences: evidence that stays valid however often one looks at it.

An e-process E starts at 1 and, under its null hypothesis H0, is a nonnegative supermartingale: given the past, its next
value is at most its present one in expectation. Ville's inequality is then the promise of everything here:
P(E ever reaches 1/α) ≤ α under H0, over all looks together, whenever and however often one looks. With α = .05: of
100 rollouts in which H0 holds, at most 5 ever show E ≥ 20. All work is done on ln E.

F1, F2 and F3 are one construction, ``Process``. An observation is of one of a few kinds; each of the bets multiplies
its capital by a factor that depends on the kind alone; E is the mean capital of the bets. So E needs the *counts* of
the kinds only: counts of several routers add up, and the order of observations does not matter.

Null hypotheses are about each observation given all that came before ("P(bad | past) ≤ limit"). Dependence that keeps
this true does no harm; bursts in which the limit is exceeded for a while are evidence against it.

Sources: Howard & Ramdas arXiv:1906.09712; Waudby-Smith & Ramdas arXiv:2010.09686; Lindon & Malek arXiv:2011.03567;
merging: arXiv:2409.19888. F3 and F9's stage form are derivations of this project, proved where they are defined.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, expm1, inf, log
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

ODDS: Final = (1.1, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0, 200.0)
LAMS: Final = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4, 0.55, 0.7, 0.85, 0.97)


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A uniform mixture of bets on observations of a few kinds.

    ``log_factors`` [..., kinds, bets]: ln of what each bet's capital is multiplied by on an observation of each kind.
    Leading axes, where there are any, are parallel processes (the limits that a confidence sequence tries).
    """

    log_factors: FloatArray

    def log_e(self, counts: ArrayLike) -> FloatArray:
        """ln E after ``counts`` [..., kinds] observations; counts and processes broadcast. No observation: 0."""
        return _log_mean_exp(self._log_capitals(counts))

    def missing(self, counts: Sequence[float], log_level: float) -> int | None:
        """How many more observations, in the proportions seen so far, until ln E ≥ ``log_level`` > 0.

        0 when it is reached already; None when it never would be, or when nothing has been seen. ln E is convex along
        a ray of counts and 0 at its start: it crosses the level once, and Newton's method from the right finds where.
        """
        slopes = self._log_capitals(counts)
        steepest = float(slopes.max())
        if steepest <= 0:
            return None
        scale = (log_level + log(slopes.size)) / steepest
        for _ in range(_NEWTON_STEPS):
            capitals = np.exp(scale * (slopes - steepest))
            value = scale * steepest + log(float(capitals.mean()))
            slope = float(capitals @ slopes) / float(capitals.sum())
            scale -= (value - log_level) / slope
        return max(ceil((scale - 1) * sum(counts) - _ROUNDING), 0)

    def _log_capitals(self, counts: ArrayLike) -> FloatArray:
        return np.asarray(np.matmul(np.asarray(counts, dtype=np.float64), self.log_factors))


# F1: a rate against a limit. Kinds: (bad, good).


def rate_above(limit: ArrayLike) -> Process:
    """F1 against H0 "P(bad | past) ≤ limit": a large E proves harm. Kinds (bad, good); 0 < limit < 1.

    Likelihood ratios of rates whose odds are ``ODDS`` times the limit's. With odds ratio r the factors are
    r/(1 + (r − 1)·limit) on a bad observation and 1/(1 + (r − 1)·limit) on a good one.
    Promise: at a rate ≤ limit, P(E ever ≥ 1/α) ≤ α, as (1 + (r − 1)p)/(1 + (r − 1)·limit) ≤ 1 for p ≤ limit, r > 1.
    Source: Lindon & Malek arXiv:2011.03567 (mixtures of likelihood ratios of counts).
    """
    return _likelihood_ratios(limit, np.asarray(ODDS))


def rate_below(limit: ArrayLike) -> Process:
    """F1 against H0 "P(bad | past) ≥ limit": a large E certifies a rate below it. Kinds (bad, good).

    As ``rate_above`` with odds ratios 1/``ODDS``. Promise: at a rate ≥ limit, P(E ever ≥ 1/β) ≤ β.
    """
    return _likelihood_ratios(limit, 1 / np.asarray(ODDS))


def rate_interval(bad: int, n: int, alpha: float) -> Interval:
    """The two-sided confidence sequence of a rate: F1 inverted, α/2 a side.

    Promise: P(the rate ever lies outside, at any look) ≤ α. The finest bet is an odds ratio of 1.1:
    however large n, the interval stays about ±5 % of the rate wide.
    Source: inversion, Howard & Ramdas arXiv:1906.09712.
    """
    return rate_lower(bad, n, alpha / 2), rate_upper(bad, n, alpha / 2)


def rate_lower(bad: int, n: int, alpha: float) -> float:
    """The one-sided lower confidence sequence: the rate is ever below it with probability ≤ α. 0 ≤ bad ≤ n."""
    edge = _last_excluded(lambda x: rate_above(_expit(x)).log_e((bad, n - bad)), -_LOGIT_END, _LOGIT_END, alpha)
    return 0.0 if edge is None else float(_expit(edge))


def rate_upper(bad: int, n: int, alpha: float) -> float:
    """The one-sided upper confidence sequence: the rate is ever above it with probability ≤ α. 0 ≤ bad ≤ n."""
    edge = _last_excluded(lambda x: rate_below(_expit(x)).log_e((bad, n - bad)), _LOGIT_END, -_LOGIT_END, alpha)
    return 1.0 if edge is None else float(_expit(edge))


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


# F2: the mean of paired bounded differences. Kinds of the count form: (plus, minus, zero).


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


def _mean_lower(counts: tuple[int, int, int], alpha: float) -> float:
    edge = _last_excluded(lambda m: mean_above(m).log_e(counts), _LEAST_MEAN, 1.0, alpha)
    return -1.0 if edge is None else edge


# F3: a relative uplift. Kinds: the four cells (both, baseline only, candidate only, neither).


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
    cells = (both, baseline_only, candidate_only, neither)
    lower = _last_excluded(lambda x: ratio_above(np.exp(x)).log_e(cells), -_LOG_RATIO_END, _LOG_RATIO_END, alpha / 2)
    upper = _last_excluded(lambda x: ratio_below(np.exp(x)).log_e(cells), _LOG_RATIO_END, -_LOG_RATIO_END, alpha / 2)
    return 0.0 if lower is None else exp(lower), inf if upper is None else exp(upper)


# F9: merging.


def log_mix_stages(log_e_whole: ArrayLike, log_e_since: ArrayLike) -> FloatArray:
    """F9 over stages: ln(½·E_whole + (½/K)·Σ_k E_since_k); ``log_e_since`` [..., K], one process per stage.

    Process k sees only observations made at stages ≥ k (it is 1 before, and goes on when a stage is entered again).
    It finds a regression that begins at a stage, at a price of ln 2K; the whole pays ln 2.
    Promise: if H0 holds throughout, P(the mix ever ≥ 1/α) ≤ α, whatever moves the rollout between stages. Proof:
    1. whether process k bets on the next observation is known before it is made (the stage is), and a stake of 0
       leaves capital as it is: each process is a nonnegative supermartingale that starts at 1;
    2. the weights ½ + K·½/K = 1 are constants fixed beforehand: the mix is one too, and also starts at 1;
    3. Ville's inequality is the promise. ∎
    """
    since = np.asarray(log_e_since, dtype=np.float64)
    whole = np.asarray(log_e_whole, dtype=np.float64)
    return np.logaddexp(whole, _log_mean_exp(since)) - log(2)


def log_merge(log_e: ArrayLike, weights: Sequence[float]) -> FloatArray:
    """F9 over gates: ln Σ_k w_k E_k, for ``log_e`` [..., gates] and constant weights > 0 that sum to 1.

    Promise: if every gate's H0 holds, P(the merged M ever ≥ 1/α) ≤ α, in whatever way the gates depend on each other:
    a sum of supermartingales with constant weights is one. Source: arXiv:2409.19888; it dominates Bonferroni.

    Raises:
        ValueError: the weights are not positive or do not sum to 1.
    """
    if min(weights) <= 0 or abs(sum(weights) - 1) > _WEIGHT_TOLERANCE:
        raise ValueError(f"weights of merged e-values must be positive and sum to 1, got {list(weights)}")
    return np.asarray(np.logaddexp.reduce(np.asarray(log_e, dtype=np.float64) + np.log(weights), axis=-1))


def confidence(log_e: float) -> float:
    """What an e-value proves: 1 − 1/E, never below 0."""
    return -expm1(-log_e) if log_e > 0 else 0.0


_NEWTON_STEPS: Final = 12  # quadratic convergence on a convex function: far more than the digits of a float need
_ROUNDING: Final = 1e-6  # of an observation: a level reached exactly is not missed for a rounding error
_WEIGHT_TOLERANCE: Final = 1e-9
_LOGIT_END: Final = 30.0  # rates from 1e-13: n up to 1e9 is well inside
_LOG_RATIO_END: Final = 14.0  # ratios from 1e-6 to 1e6
_LEAST_MEAN: Final = -1 + 1e-12  # F2's stake is infinite at a limit of −1
_GRID: Final = 65
_ROUNDS: Final = 4  # an inverted bound is found to (range)/64^4, about 4e-6 of its logit


def _likelihood_ratios(limit: ArrayLike, odds: FloatArray) -> Process:
    """ln of the ratio of Bernoulli likelihoods; exact near 0 and 1 because it is written with log1p of the limit."""
    good = -np.log1p((odds - 1) * np.asarray(limit, dtype=np.float64)[..., None])
    return Process(np.stack([np.log(odds) + good, good], axis=-2))


def _paired_bets(ratio: FloatArray, *, sign: int) -> Process:
    """F3's factors by cell: D = ±(c − ratio·b), staked on its least value."""
    candidate, baseline = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0])
    difference = sign * (candidate - ratio[..., None] * baseline)
    stakes = np.asarray(LAMS) / (ratio[..., None, None] if sign > 0 else 1.0)
    return Process(np.log1p(stakes * difference[..., None]))


def _log_mean_exp(values: FloatArray) -> FloatArray:
    """ln of the mean of exp over the last axis, without overflow."""
    top = values.max(axis=-1)
    return np.asarray(top + np.log(np.exp(values - top[..., None]).sum(axis=-1) / values.shape[-1]))


def _expit(x: ArrayLike) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, dtype=np.float64))))


def _last_excluded(log_e: Callable[[FloatArray], FloatArray], start: float, end: float, alpha: float) -> float | None:
    """The last x on the way from start to end with E ≥ 1/α, E falling on that way; None when there is none.

    Rounded towards ``start``, so that a confidence sequence is never too narrow. In F1, F2 and F3 every single factor
    falls in this sense, and so does E: the limits that are not excluded are one interval.
    """
    level = -log(alpha)
    for _ in range(_ROUNDS):
        grid = np.linspace(start, end, _GRID)
        excluded = int(np.count_nonzero(log_e(grid) >= level))
        if excluded == 0:
            return None
        if excluded == _GRID:
            return float(end)
        start, end = float(grid[excluded - 1]), float(grid[excluded])
    return start
