"""F7 and F8: exceedances of two versions. Where latency comes in bursts F8 holds; where it does not F7 is faster.

Both read D = 1{X_c > kτ} − 1{X_b > τ} of pairs of latencies, at a threshold τ frozen before the pair is seen: the upper
edge of the bucket that held the baseline's p95 (``shadow.evidence.Histogram.quantile_ms``). With bursts in one arm, a
test that takes observations for independent and promised 2.5 % fired in 60 % of rollouts in which nothing was wrong; F8
stayed at 2.4 %. So F8 decides, and F7 speeds it up where a baseline's twin shows how far it may be trusted.
"""

from math import inf
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rollout.bounds.means import mean_above
from rollout.bounds.process import FloatArray, Process
from rollout.bounds.rates import rate_above, rate_below

LEAST_BLOCKS: Final = 30


def frozen_above() -> Process:
    """F7 against H0 "P(X_c > kτ | past) ≤ P(X_b > τ | past)": a large E proves that the candidate exceeds more often.

    Kinds: (candidate's alone exceeds, baseline's alone exceeds, both or neither); F2 on D with limit 0. To prove that
    it exceeds *less* often, swap the first two. What is slower by any factor ≤ k, all of its distribution alike,
    fulfils H0 at every τ, and where τ is the baseline's p95, H0 says that the candidate's is ≤ kτ. An answer that
    failed exceeds. τ may be frozen anew: the counts go on.
    Promise: under H0, P(E ever ≥ 1/α) ≤ α. Proof:
    1. τ was fixed by the past, so D ∈ {−1, 0, 1} has E[D | past] ≤ 0 under H0, however the two of a pair depend on
       each other;
    2. every factor 1 + λD, λ ≤ .97, is ≥ .03 and has an expectation ≤ 1, given the past, for any τ: so have products
       over several τ, and the mean of the bets is a nonnegative supermartingale that starts at 1;
    3. Ville's inequality is the promise. ∎

    A burst in one arm breaks H0 while it lasts, though nothing be wrong on average: see ``damped``. Three times faster
    than F6, as it need not find out where the quantiles are.
    """
    return mean_above(0.0)


def design_effect(squares: ArrayLike, discordant: ArrayLike, blocks: ArrayLike) -> FloatArray:
    """How many times more a block's Σ D varies than that of independent pairs would; ≥ 1.

    To be taken of the baseline against its twin (k = 1), where E[D] = 0: ``squares`` is Σ over ``blocks`` of
    (plus − minus)², ``discordant`` the number of pairs with D ≠ 0; all add up. Var(Σ D)/Σ Var(D) is 1 for independent
    pairs. ∞ before ``LEAST_BLOCKS``: the first blocks may have had no burst yet.
    """
    pairs = np.asarray(discordant, dtype=np.float64)
    effect = np.maximum(np.asarray(squares, dtype=np.float64) / np.maximum(pairs, 1), 1)
    return np.where(np.asarray(blocks) >= LEAST_BLOCKS, effect, inf)


def damped(log_e: ArrayLike, effect: ArrayLike) -> FloatArray:
    """ln E of F7 as it may decide by itself: divided by 1.5 times the design effect seen on a baseline's twin.

    This is a heuristic. As many pairs as the design effect says are worth one, and 1.5 covers that it is an estimate;
    no theorem says that it is enough. Simulated at a promised 5 % with bursts in one arm, it fired in 2.1 % of rollouts
    in which nothing was wrong, and F7 as it is in 65 %; with an effect taken from the very first blocks on, in 16 %.
    Where pairs are independent it only costs time: E^(1/c), c ≥ 1 fixed, is a supermartingale with E (Jensen).
    """
    return np.asarray(np.asarray(log_e, dtype=np.float64) / (_MARGIN * np.asarray(effect, dtype=np.float64)))


def block_sign_above() -> Process:
    """F8 against H0 "a block that is no tie is + with probability ≤ ½, given the past": a large E proves harm.

    A block is cut by time and number alone (at least 2 s and 200 requests), its sign is that of the difference summed
    over it: of D for latency, of bytes for a leak. Kinds: (blocks with +, with −); ties are dropped. F1 with limit ½.
    Ten of ten blocks reach E = 253, six of six 20. Promise: under H0, P(E ever ≥ 1/α) ≤ α. Proof:
    1. let what the arms sum to in a block be exchangeable given the past, or the candidate's be lowered from that:
       then + is at most as probable as −, however observations within the block depend on each other;
    2. so F1's factors at ½ have an expectation ≤ 1 for a block that is no tie, and a tie's are 1: the mean of the
       bets is a nonnegative supermartingale that starts at 1;
    3. Ville's inequality is the promise. ∎

    "Given the past" needs blocks that outlast bursts: one that reaches from block to block gives both its sign.
    """
    return rate_above(_EVEN)


def block_sign_below() -> Process:
    """F8 turned round: a large E proves that less than half of the blocks have +. Odds ratios 1/``ODDS``."""
    return rate_below(_EVEN)


def block_counts(differences: ArrayLike) -> NDArray[np.int64]:
    """(blocks with +, blocks with −) [..., 2] of the differences summed over each block [..., blocks]: F8's counts."""
    sums = np.asarray(differences)
    return np.stack([np.count_nonzero(sums > 0, axis=-1), np.count_nonzero(sums < 0, axis=-1)], axis=-1)


_EVEN: Final = 0.5
_MARGIN: Final = 1.5
