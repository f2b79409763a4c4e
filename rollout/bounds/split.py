"""F4: rates of bad events under split traffic. Kinds: (candidate's bad, baseline's bad), one stage after the other."""

import numpy as np
from numpy.typing import ArrayLike

from rollout.bounds.process import ODDS, FloatArray, Interval, Process, inverted_ratio
from rollout.bounds.rates import rate_above, rate_below


def split_above(shares: ArrayLike, ratio: ArrayLike = 1.0) -> Process:
    """F4 against H0 "P(bad | candidate's, past) ≤ ratio · P(bad | baseline's, past)": a large E proves harm.

    ``shares`` [stages] is the candidate's share π of the traffic at each stage; the kinds are (candidate's bad,
    baseline's bad) at the first, then at the second, …. Good requests are not counted: given a bad one, H0 limits the
    probability that it was the candidate's to π·ratio/(π·ratio + 1 − π), which is F1's limit at that stage; a bet
    keeps its odds ratio over all of them. A share of 0 or 1 leaves nothing to learn.
    Promise: under H0, P(E ever ≥ 1/α) ≤ α, whatever moves the rollout between stages. Proof:
    1. a draw of its own decides whose a request is, so a bad one is the candidate's with the probability
       π·p_c/(π·p_c + (1 − π)·p_b), given the past; p_c ≤ ratio·p_b puts it within the limit, whatever p_b is by then;
    2. the stage, and so π, is known before the event: every factor of every bet has an expectation ≤ 1, given the past,
       and capital goes from stage to stage as it is: each bet is a supermartingale, and so is their mean;
    3. Ville's inequality is the promise. ∎

    Step 1 is what it stands on. Where a routing key decides, all requests of a key share one draw, and the promise is
    void: one bad camera of 50 fires in every fourth rollout in which nothing is wrong. So it serves where the key is
    the request's id; or count keys, each once in the rollout, at the stage of its first bad request; or take pairs
    (``mean_above``). Pinned and header-forced requests were not drawn: they are evidence for nothing.
    Sources: Lindon & Malek arXiv:2011.03567; Lindon et al. arXiv:2205.14762 (canaries).

    Raises:
        ValueError: a share is not within 0 and 1.
    """
    return _joined(rate_above(_limits(shares, ratio)))


def split_below(shares: ArrayLike, ratio: ArrayLike = 1.0) -> Process:
    """F4 turned round: a large E proves P(bad | candidate's) < ratio · P(bad | baseline's). Odds ratios 1/``ODDS``."""
    return _joined(rate_below(_limits(shares, ratio)))


def split_interval(counts: ArrayLike, shares: ArrayLike, alpha: float) -> Interval:
    """The two-sided confidence sequence of P(bad | candidate's)/P(bad | baseline's): F4 inverted, α/2 a side.

    ``counts`` [2·stages] as ``split_above`` has them. (0, inf) where nothing is excluded.
    """
    return inverted_ratio(lambda x: split_above(shares, x), lambda x: split_below(shares, x), counts, alpha)


def _limits(shares: ArrayLike, ratio: ArrayLike) -> FloatArray:
    """The largest probability that a bad event is the candidate's under H0 [..., stages], ``ratio`` being [...]."""
    share = np.asarray(shares, dtype=np.float64)
    if not np.all((share >= 0) & (share <= 1)):
        raise ValueError(f"shares of traffic must be within 0 and 1, got {share.tolist()}")
    candidate = share * np.asarray(ratio, dtype=np.float64)[..., None]
    return np.asarray(candidate / (candidate + (1 - share)))


def _joined(stages: Process) -> Process:
    """F1 at each stage [..., stages, 2, bets] as one process whose kinds are those of all stages."""
    factors = stages.log_factors
    return Process(factors.reshape(*factors.shape[:-3], -1, len(ODDS)))
