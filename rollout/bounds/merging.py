"""F9: evidence of several stages, and of several gates, merged into one; and what it proves."""

from collections.abc import Sequence
from math import expm1, log
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rollout.bounds.process import FloatArray, log_mean_exp


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
    return np.logaddexp(whole, log_mean_exp(since)) - log(2)


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


_WEIGHT_TOLERANCE: Final = 1e-9
