"""What comparators of scores share: differences, the answer, the first k."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Measure


def flat(array: Array) -> Array:
    """The items' values in one row each: shape [n, values]."""
    return array if array.ndim == 2 else array.reshape(len(array), -1)


def differences(left: Array, right: Array) -> Array:
    """|Δ| of each value in float64, capped; a NaN on either side is the cap, equal infinities do not differ."""
    with np.errstate(invalid="ignore"):
        delta: Array = np.abs(np.subtract(left, right, dtype=np.float64))
    if not delta.max(initial=0.0) <= DELTA_CAP:  # also when it is NaN
        delta[left == right] = 0.0  # ∞ − ∞ is NaN
        np.fmin(delta, DELTA_CAP, out=delta)  # fmin: NaN gives the cap
    return delta


def top1(scores: Array) -> NDArray[np.int32]:
    """The index of each row's highest score, the first of equals; −1 where one is NaN."""
    answer: NDArray[np.int32] = scores.argmax(axis=1).astype(np.int32)  # of a row with NaN: where the first NaN is
    answer[np.isnan(scores[np.arange(len(scores)), answer])] = -1
    return answer


def top_k(scores: Array, k: int) -> NDArray[np.bool_]:
    """Which scores of each row are its k highest, the first of equals; none of a row with a NaN.

    The k-th highest is a value, whatever the order in which a machine partitions: the choice is the same on all.
    """
    least = np.partition(scores, -k, axis=1)[:, -k, None]
    above, equal = scores > least, scores == least
    room = k - np.count_nonzero(above, axis=1, keepdims=True)
    chosen: NDArray[np.bool_] = above | (equal & (np.cumsum(equal, axis=1) <= room))
    chosen[np.isnan(scores).any(axis=1)] = False
    return chosen


def first_k_shared(left: Array, right: Array, k: int) -> NDArray[np.float64]:
    """The share of the k highest that both sides have; NaN throughout where there are not more than k."""
    if left.shape[1] <= k:
        return np.full(len(left), np.nan)
    shared: NDArray[np.float64] = np.count_nonzero(top_k(left, k) & top_k(right, k), axis=1) / k
    return shared


def worst(measures: Sequence[Measure], n: int) -> dict[str, Array]:
    """The measures of n items that cannot be compared because the sides are of different shapes."""
    return {measure.name: np.full(n, measure.worst) for measure in measures}
