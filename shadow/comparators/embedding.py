"""Embedding: one vector per item, of which only the direction counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison, Measure
from shadow.comparators.parameters import whole
from shadow.comparators.scores import flat

_FEWEST: Final = 4  # items that make a neighbourhood
_MOST: Final = 1024  # whose similarities, a square of them, are still small
_DIGITS: Final = 9  # what machines agree on in a product of matrices; equal vectors must be equally near on all
_SELF: Final = -3.0  # below every cosine, and below what has no direction
_NOWHERE: Final = -2.0


class Embedding:
    """The angle between the sides' vectors, and whether an item keeps its neighbours.

    ``max_delta`` is the cosine distance, ``mean_delta`` the mean |Δ| of the components of the normalised vectors.
    There is no top-1 answer.

    * ``cosine_distance``: 1 − cos, from 0 to 2.
    * ``l2_distance``: of the normalised vectors, from 0 to 2.
    * ``neighbour_overlap``: an item's neighbours on a side are the ``k`` other items of its batch that have the largest
      cosine with it (half of the others at most, or chance alone would find them again), and all that are as near as
      the k-th. The overlap is the number of neighbours that both sides have, over that of the side with more. It does
      not apply to a batch of less than 4 items or more than 1024, nor where the baseline's vector has no direction.
    """

    by_batch: Final = True
    names_answers: Final = False
    difference: Final = "cosine distance"
    measures: Final = (
        Measure("cosine_distance", high=2.0, agrees="low"),
        Measure("l2_distance", high=2.0, agrees="low"),
        Measure("neighbour_overlap"),
    )

    def __init__(self, output: str, *, k: int = 5) -> None:
        self.output, self.outputs = output, (output,)
        self._k = whole("k", k, at_least=1)

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare vectors of shape [n, components].

        A vector with a NaN or an infinity, one of zeros beside one that is not, and sides with different numbers of
        components are as far apart as can be. Two vectors of zeros do not differ.
        """
        left, right = _Vectors.of(flat(baseline[self.output])), _Vectors.of(flat(candidate[self.output]))
        n = len(left.units)
        distance, mean = _distances(left, right)
        apart = np.isnan(distance)
        return Comparison(
            max_delta=np.where(apart, DELTA_CAP, distance),
            mean_delta=np.where(apart, DELTA_CAP, mean),
            baseline_top1=np.full(n, -1, np.int32),
            candidate_top1=np.full(n, -1, np.int32),
            measures={
                "cosine_distance": np.where(apart, 2.0, distance),
                "l2_distance": np.where(apart, 2.0, np.sqrt(2 * distance)),
                "neighbour_overlap": _overlap(left, right, self._k),
            },
        )


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Normalised vectors [n, components]; zeros where there is no direction: ``directed`` is False."""

    units: NDArray[np.float64]
    finite: NDArray[np.bool_]
    directed: NDArray[np.bool_]

    @classmethod
    def of(cls, vectors: Array) -> Self:
        values = vectors.astype(np.float64)
        finite = np.asarray(np.isfinite(values).all(axis=1))
        values[~finite] = 0.0
        norms = np.sqrt((values * values).sum(axis=1))
        directed = norms > 0
        return cls(values / np.where(directed, norms, 1.0)[:, None], finite, directed)


def _distances(left: _Vectors, right: _Vectors) -> tuple[Array, Array]:
    """Cosine distance and mean |Δ| of each item; NaN where they are as far apart as can be."""
    n = len(left.units)
    if left.units.shape != right.units.shape:
        return np.full(n, np.nan), np.full(n, np.nan)
    delta = left.units - right.units
    distance = (delta * delta).sum(axis=1) / 2  # 1 − cos would lose the digits that matter
    distance[~(left.finite & right.finite & (left.directed == right.directed))] = np.nan
    return distance, np.abs(delta).mean(axis=1)


def _overlap(left: _Vectors, right: _Vectors, k: int) -> Array:
    n = len(left.units)
    if not _FEWEST <= n <= _MOST:
        return np.full(n, np.nan)
    most = min(k, (n - 1) // 2)
    mine, theirs = _neighbours(left, most), _neighbours(right, most)
    larger = np.maximum(np.count_nonzero(mine, axis=1), np.count_nonzero(theirs, axis=1))
    overlap: Array = np.count_nonzero(mine & theirs, axis=1) / larger
    overlap[~right.directed] = 0.0
    overlap[~left.directed] = np.nan
    return overlap


def _neighbours(vectors: _Vectors, k: int) -> NDArray[np.bool_]:
    """Row i: which items are neighbours of item i."""
    cosines = np.round(vectors.units @ vectors.units.T, _DIGITS)
    cosines[:, ~vectors.directed] = _NOWHERE
    np.fill_diagonal(cosines, _SELF)
    near: NDArray[np.bool_] = cosines >= np.partition(cosines, -k, axis=1)[:, -k, None]
    return near
