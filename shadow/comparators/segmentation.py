"""Segmentation: a class for each pixel."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison, Measure
from shadow.comparators.parameters import whole
from shadow.errors import ShadowError

_AXES: Final = (0, 1, 2, -1)  # of an item
_Mask = NDArray[np.int64]  # [height, width]
_Flags = NDArray[np.bool_]


class Segmentation:
    """How far two masks cover the same pixels, and whether their boundaries run alike.

    The output is either class ids, of which there are ``classes`` (0 up), or scores whose highest along ``axis`` of
    the item is the pixel's class: 0 where channels come first, −1 where they come last. A boundary pixel is one that
    has a neighbour (of four) of another class.

    ``max_delta`` is 1 − ``mean_iou``, ``mean_delta`` 1 − ``pixel_agreement``. There is no top-1 answer.

    * ``mean_iou``: intersection over union of the two masks, mean over the classes that either has.
    * ``pixel_agreement``: the share of the pixels that have the same class.
    * ``boundary_f``: the share of the candidate's boundary pixels that have one of the baseline's within ``distance``
      pixels (along both axes), the share of the baseline's that have one of the candidate's, and of these two the
      harmonic mean. 1 where neither has a boundary, 0 where one alone has.
    """

    names_answers: Final = False
    difference: Final = "1 − mean IoU"
    measures: Final = (Measure("mean_iou"), Measure("pixel_agreement"), Measure("boundary_f"))

    def __init__(self, output: str, *, classes: int | None = None, axis: int | None = None, distance: int = 2) -> None:
        if (classes is None) == (axis is None):
            raise ShadowError(
                "comparator.parameters: expected either classes, where the output is a mask, or axis, along which it "
                "has a score for each class"
            )
        self.output, self.outputs = output, (output,)
        self._classes = None if classes is None else whole("classes", classes, at_least=1)
        if axis not in (None, *_AXES):
            raise ShadowError(f"comparator.parameters.axis: expected one of {list(_AXES)}, got {axis!r}")
        self._axis = axis
        self._distance = whole("distance", distance, at_least=0)

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare masks of shape [n, height, width] (or with a further axis of length 1), or scores of four axes.

        An item whose scores have a NaN, or whose mask has an id that is not one of the classes, differs infinitely, and
        nothing of it agrees; so do sides of different height, width or shape.
        """
        left, right = (self._masks(side[self.output]) for side in (baseline, candidate))
        broken = (DELTA_CAP, DELTA_CAP), (0.0, 0.0, 0.0)
        found = [
            broken if one is None or other is None or one.shape != other.shape else self._compare_item(one, other)
            for one, other in zip(left, right, strict=True)
        ]
        deltas = np.array([each[0] for each in found], np.float64).reshape(-1, 2)
        values = np.array([each[1] for each in found], np.float64).reshape(-1, len(self.measures))
        return Comparison(
            max_delta=deltas[:, 0],
            mean_delta=deltas[:, 1],
            baseline_top1=np.full(len(found), -1, np.int32),
            candidate_top1=np.full(len(found), -1, np.int32),
            measures={measure.name: values[:, at] for at, measure in enumerate(self.measures)},
        )

    def _masks(self, output: Array) -> list[_Mask | None]:
        """The mask of each item; None where it cannot be read."""
        if self._classes is not None:
            return [_mask_of_ids(item, self._classes) for item in output]
        if output.ndim != 4 or self._axis is None:
            return [None] * len(output)
        return [None if np.isnan(item).any() else item.argmax(axis=self._axis).astype(np.int64) for item in output]

    def _compare_item(self, left: _Mask, right: _Mask) -> tuple[tuple[float, float], tuple[float, float, float]]:
        equal = left == right
        iou, agreement = _mean_iou(left, right, equal), float(equal.mean())
        boundary = _boundary_f(_boundary(left), _boundary(right), self._distance)
        return (1 - iou, 1 - agreement), (iou, agreement, boundary)


def _mask_of_ids(item: Array, classes: int) -> _Mask | None:
    if item.ndim == 3 and 1 in (item.shape[0], item.shape[2]):
        item = item[0] if item.shape[0] == 1 else item[..., 0]
    if item.ndim != 2 or not ((item >= 0) & (item < classes) & (item == np.floor(item))).all():
        return None
    return item.astype(np.int64)


def _mean_iou(left: _Mask, right: _Mask, equal: _Flags) -> float:
    classes = int(max(left.max(), right.max())) + 1
    shared = np.bincount(left[equal], minlength=classes)
    mine, theirs = (np.bincount(side.ravel(), minlength=classes) for side in (left, right))
    union = mine + theirs - shared
    there = union > 0
    return float((shared[there] / union[there]).mean())


def _boundary(mask: _Mask) -> _Flags:
    """Which pixels have a neighbour of another class."""
    boundary = np.zeros(mask.shape, np.bool_)
    across, along = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    boundary[1:] |= across
    boundary[:-1] |= across
    boundary[:, 1:] |= along
    boundary[:, :-1] |= along
    return boundary


def _boundary_f(left: _Flags, right: _Flags, distance: int) -> float:
    sizes = int(np.count_nonzero(left)), int(np.count_nonzero(right))
    if 0 in sizes:
        return 1.0 if sizes == (0, 0) else 0.0
    found = np.count_nonzero(left & _widened(right, distance)) / sizes[0]
    right_found = np.count_nonzero(right & _widened(left, distance)) / sizes[1]
    both = found + right_found
    return 2 * found * right_found / both if both else 0.0


def _widened(boundary: _Flags, distance: int) -> _Flags:
    """All pixels within a distance of a boundary: a square window is one along each axis after the other."""
    return _spread(_spread(boundary, distance).T, distance).T


def _spread(flags: _Flags, distance: int) -> _Flags:
    """Each flag in the rows up to a distance before and after it too."""
    wide = flags.copy()
    for step in range(1, min(distance, len(flags) - 1) + 1):
        wide[step:] |= flags[:-step]
        wide[:-step] |= flags[step:]
    return wide
