"""Classification: one score per class, the answer is the class with the highest."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison, Measure
from shadow.comparators.parameters import flag, whole
from shadow.comparators.scores import differences, first_k_shared, flat, top1, worst

_SUM_TOLERANCE: Final = 1e-3  # a softmax in float16 adds up to 1 no better


class Classification:
    """|Δscore| over all classes, the top-1 answer (the first of equals), and three measures.

    * ``top_k_agreement``: the share of the ``k`` highest classes that both sides have. It does not apply where there
      are not more than ``k`` classes; a side with a NaN has no highest classes, which is no agreement.
    * ``kl_divergence``: KL(baseline ‖ candidate) in nats, 10 at most. It applies where both sides are probabilities
      (not negative, adding up to 1 within 0.001) or, with ``logits``, have a softmax.
    * ``top1_delta``: |Δ| of the score of the baseline's top-1 class, of its softmax with ``logits``, 1 at most. It does
      not apply where the baseline has no answer.
    """

    measures: Final = (
        Measure("top_k_agreement"),
        Measure("kl_divergence", high=10.0, agrees="low"),
        Measure("top1_delta", agrees="low"),
    )

    def __init__(self, output: str, *, k: int = 5, logits: bool = False) -> None:
        self.output, self.outputs = output, (output,)
        self._k, self._logits = whole("k", k, at_least=1), flag("logits", logits)

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare scores of shape [n, classes].

        A NaN on either side is an infinite difference, and no answer of that side. Equal infinities do not differ.
        Sides with different numbers of classes differ infinitely in every item; each keeps its own top-1.
        """
        left, right = flat(baseline[self.output]), flat(candidate[self.output])
        answer, n = top1(left), len(left)
        if left.shape == right.shape:
            delta = differences(left, right)
            largest, mean = delta.max(axis=1), delta.mean(axis=1)
            measures = self._measures(left, right, delta, answer)
        else:
            largest = mean = np.full(n, DELTA_CAP)
            measures = worst(self.measures, n)
        return Comparison(
            max_delta=largest,
            mean_delta=mean,
            baseline_top1=answer,
            candidate_top1=top1(right),
            measures=measures,
        )

    def _measures(self, left: Array, right: Array, delta: Array, answer: Array) -> dict[str, Array]:
        shared = first_k_shared(left, right, self._k)
        if self._logits:
            left, right = _softmax(left), _softmax(right)
            delta = differences(left, right)
        own = delta[np.arange(len(left)), answer]
        own[answer < 0] = np.nan
        return {"top_k_agreement": shared, "kl_divergence": _divergence(left, right), "top1_delta": own}


def _softmax(logits: Array) -> Array:
    """Probabilities in float64; NaN in a row with a NaN, an infinity of +∞, or nothing but −∞."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _divergence(left: Array, right: Array) -> Array:
    """KL of each row in nats, NaN where a side is not a row of probabilities."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        (p, mine), (q, other) = (_probabilities(side) for side in (left, right))
        terms = np.where(p > 0, p * np.log(p / q), 0.0)
        divergence: Array = np.fmax(terms.sum(axis=1), 0.0)  # of equal rows a rounding error may be left
    divergence[~(mine & other)] = np.nan
    return divergence


def _probabilities(scores: Array) -> tuple[Array, Array]:
    """The rows made to add up to exactly 1, and which of them nearly did."""
    values = scores.astype(np.float64)
    total = values.sum(axis=1)
    valid = (values >= 0).all(axis=1) & (np.abs(total - 1) <= _SUM_TOLERANCE)
    return values / total[:, None], valid
