"""Ranking: one score per document, the answer is their order."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison, Measure
from shadow.comparators.parameters import whole
from shadow.comparators.scores import differences, first_k_shared, flat, top1, worst


class Ranking:
    """|Δscore| over all documents, the first document as top-1 answer, and how far the orders agree in the first ``k``.

    Documents are ordered by falling score, the first of equals first. The k is 10 unless it is given.

    * ``ndcg``: DCG of the candidate's first k over that of the best order. A document's gain is the baseline's score
      less the lowest (finite) one of the item, its discount 1/log2(place + 1). Where all gains are 0 every order is
      best.
    * ``kendall``: of the pairs among the baseline's first k, those that the candidate orders likewise (two that are
      equal on both sides are) less those that it orders the other way, over all; from −1 to 1. It does not apply to
      a single document.
    * ``overlap``: the share of the first k that both sides have. It does not apply where there are not more than k.

    A score of −∞ is a document that is never shown, with gain 0. Where the baseline has a NaN or +∞ nothing applies;
    a candidate with a NaN has no order, which is the worst.
    """

    measures: Final = (Measure("ndcg"), Measure("kendall", low=-1.0), Measure("overlap"))

    def __init__(self, output: str, *, k: int = 10) -> None:
        self.output, self.outputs = output, (output,)
        self._k = whole("k", k, at_least=1)

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare scores of shape [n, documents].

        A NaN on either side is an infinite difference, and no answer of that side. Sides with different numbers of
        documents differ infinitely in every item; each keeps its own top-1.
        """
        left, right = flat(baseline[self.output]), flat(candidate[self.output])
        if left.shape == right.shape:
            delta = differences(left, right)
            largest, mean = delta.max(axis=1), delta.mean(axis=1)
            measures = self._measures(left, right)
        else:
            largest = mean = np.full(len(left), DELTA_CAP)
            measures = worst(self.measures, len(left))
        return Comparison(
            max_delta=largest,
            mean_delta=mean,
            baseline_top1=top1(left),
            candidate_top1=top1(right),
            measures=measures,
        )

    def _measures(self, left: Array, right: Array) -> dict[str, Array]:
        k = min(self._k, left.shape[1])
        found = {
            "ndcg": _ndcg(left, right, k),
            "kendall": _kendall(left, right, k),
            "overlap": first_k_shared(left, right, self._k),
        }
        unordered = np.isnan(right).any(axis=1)
        unknown = np.isnan(left).any(axis=1) | np.isposinf(left).any(axis=1)
        applies = np.ones(len(left), np.bool_) if left.shape[1] > 1 else np.zeros(len(left), np.bool_)
        found["kendall"][unordered & applies] = -1.0
        found["ndcg"][unordered] = 0.0
        for values in found.values():
            values[unknown] = np.nan
        return found


def _order(scores: Array) -> NDArray[np.intp]:
    return np.argsort(-scores, axis=1, kind="stable")


def _ndcg(left: Array, right: Array, k: int) -> NDArray[np.float64]:
    finite = np.isfinite(left)
    values = np.where(finite, left, 0.0).astype(np.float64)
    lowest = np.where(finite, values, np.inf).min(axis=1, keepdims=True)
    gains = np.where(finite, values - np.where(np.isfinite(lowest), lowest, 0.0), 0.0)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = (-np.sort(-gains, axis=1)[:, :k] * discounts).sum(axis=1)
    found = (np.take_along_axis(gains, _order(right)[:, :k], axis=1) * discounts).sum(axis=1)
    ndcg: NDArray[np.float64] = np.where(ideal > 0, found / np.where(ideal > 0, ideal, 1.0), 1.0)
    return ndcg


def _kendall(left: Array, right: Array, k: int) -> NDArray[np.float64]:
    if k < 2:
        return np.full(len(left), np.nan)
    first = _order(left)[:, :k]
    one, other = np.triu_indices(k, 1)
    mine, theirs = (_signs(np.take_along_axis(side, first, axis=1), one, other) for side in (left, right))
    agreement: NDArray[np.float64] = np.where(mine == theirs, 1, mine * theirs).mean(axis=1)
    return agreement


def _signs(scores: Array, one: Array, other: Array) -> NDArray[np.int8]:
    """How each pair is ordered: 1, 0 or −1; by comparing, for the difference of two infinities is none."""
    first, second = scores[:, one], scores[:, other]
    signs: NDArray[np.int8] = (first > second).astype(np.int8) - (first < second).astype(np.int8)
    return signs
