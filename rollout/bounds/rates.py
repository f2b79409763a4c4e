"""F1: a rate against a limit. Kinds: (bad, good)."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rollout.bounds.process import ODDS, FloatArray, Interval, Process, last_excluded


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
    edge = last_excluded(lambda x: rate_above(_expit(x)).log_e((bad, n - bad)), -_LOGIT_END, _LOGIT_END, alpha)
    return 0.0 if edge is None else float(_expit(edge))


def rate_upper(bad: int, n: int, alpha: float) -> float:
    """The one-sided upper confidence sequence: the rate is ever above it with probability ≤ α. 0 ≤ bad ≤ n."""
    edge = last_excluded(lambda x: rate_below(_expit(x)).log_e((bad, n - bad)), _LOGIT_END, -_LOGIT_END, alpha)
    return 1.0 if edge is None else float(_expit(edge))


_LOGIT_END: Final = 30.0  # rates from 1e-13: n up to 1e9 is well inside


def _likelihood_ratios(limit: ArrayLike, odds: FloatArray) -> Process:
    """ln of the ratio of Bernoulli likelihoods; exact near 0 and 1 because it is written with log1p of the limit."""
    good = -np.log1p((odds - 1) * np.asarray(limit, dtype=np.float64)[..., None])
    return Process(np.stack([np.log(odds) + good, good], axis=-2))


def _expit(x: ArrayLike) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, dtype=np.float64))))
