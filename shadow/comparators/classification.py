"""Classification: one score per class, the answer is the class with the highest."""

from collections.abc import Mapping

import numpy as np

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison


class Classification:
    """|Δscore| over all classes, and the top-1 answer (the first of equals)."""

    def __init__(self, output: str) -> None:
        self.output = output

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare scores of shape [n, classes].

        A NaN on either side is an infinite difference, and no answer of that side. Equal infinities do not differ.
        Sides with different numbers of classes differ infinitely in every item; each keeps its own top-1.
        """
        left, right = baseline[self.output], candidate[self.output]
        if left.shape == right.shape:
            delta = _differences(left, right)
            largest, mean = delta.max(axis=1), delta.mean(axis=1)
        else:
            largest = mean = np.full(len(left), DELTA_CAP)
        return Comparison(max_delta=largest, mean_delta=mean, baseline_top1=_top1(left), candidate_top1=_top1(right))


def _differences(left: Array, right: Array) -> Array:
    """|Δ| per score in float64, capped."""
    with np.errstate(invalid="ignore"):
        delta: Array = np.abs(np.subtract(left, right, dtype=np.float64))
    if not delta.max(initial=0.0) <= DELTA_CAP:  # also when it is NaN
        delta[left == right] = 0.0  # ∞ − ∞ is NaN
        np.fmin(delta, DELTA_CAP, out=delta)  # fmin: NaN gives the cap
    return delta


def _top1(scores: Array) -> Array:
    answer: Array = scores.argmax(axis=1).astype(np.int32)  # of a row with NaN: where the first NaN is
    answer[np.isnan(scores[np.arange(len(scores)), answer])] = -1
    return answer
