"""A mixture of bets on counts, and how the limits that it does not reject become an interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log
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
        return log_mean_exp(self._log_capitals(counts))

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


def log_mean_exp(values: FloatArray) -> FloatArray:
    """ln of the mean of exp over the last axis, without overflow."""
    top = values.max(axis=-1)
    return np.asarray(top + np.log(np.exp(values - top[..., None]).sum(axis=-1) / values.shape[-1]))


def last_excluded(log_e: Callable[[FloatArray], FloatArray], start: float, end: float, alpha: float) -> float | None:
    """The last x on the way from start to end with E ≥ 1/α, E falling on that way; None when there is none.

    Rounded towards ``start``, so that a confidence sequence is never too narrow. In F1 to F4 every single factor
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


def inverted_ratio(
    above: Callable[[FloatArray], Process], below: Callable[[FloatArray], Process], counts: ArrayLike, alpha: float
) -> Interval:
    """The two-sided confidence sequence of a ratio > 0 from its processes, α/2 a side; (0, inf): nothing excluded."""
    lower = last_excluded(lambda x: above(np.exp(x)).log_e(counts), -_LOG_RATIO_END, _LOG_RATIO_END, alpha / 2)
    upper = last_excluded(lambda x: below(np.exp(x)).log_e(counts), _LOG_RATIO_END, -_LOG_RATIO_END, alpha / 2)
    return 0.0 if lower is None else exp(lower), inf if upper is None else exp(upper)


_NEWTON_STEPS: Final = 12  # quadratic convergence on a convex function: far more than the digits of a float need
_ROUNDING: Final = 1e-6  # of an observation: a level reached exactly is not missed for a rounding error
_LOG_RATIO_END: Final = 14.0  # ratios from 1e-6 to 1e6
_GRID: Final = 65
_ROUNDS: Final = 4  # an inverted bound is found to (range)/64^4, about 4e-6 of its logit
