"""What seeded runs under a null hypothesis prove about a promise of the formulas: how often, at most, it is broken."""

from math import lgamma, log

import numpy as np
import pytest
from numpy.typing import NDArray


def crossings(log_e: NDArray[np.float64], alpha: float) -> int:
    """In how many of the runs [runs, looks] E ever reaches 1/α."""
    return int(np.count_nonzero((log_e >= -log(alpha)).any(axis=1)))


def at_most(broken: int, runs: int, error: float = 0.01) -> float:
    """The Clopper–Pearson upper bound: a higher probability would show so few broken promises with chance < error."""
    low, high = broken / runs, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if middle < 1 and _as_few(broken, runs, middle) < error:
            high = middle
        else:
            low = middle
    return high


def _as_few(broken: int, runs: int, p: float) -> float:
    """P(Binomial(runs, p) ≤ broken)."""
    log_odds = np.arange(broken + 1) * log(p) + np.arange(runs, runs - broken - 1, -1) * np.log1p(-p)
    ways = [lgamma(runs + 1) - lgamma(k + 1) - lgamma(runs - k + 1) for k in range(broken + 1)]
    return float(np.exp(np.asarray(ways) + log_odds).sum())


def test_the_bound_on_how_often_a_promise_is_broken_is_clopper_and_pearson_s() -> None:
    assert at_most(0, 1000, error=0.05) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert at_most(1, 2, error=0.19) == pytest.approx(0.9)
    assert at_most(1000, 1000) == 1.0
    assert at_most(30, 1000) < 0.05 < at_most(50, 1000)


def test_a_run_that_ever_reaches_the_level_has_crossed_it_once() -> None:
    assert crossings(np.log([[1.0, 20.1, 3.0], [19.9, 1.0, 1.0], [21.0, 1.0, 400.0]]), 0.05) == 2
