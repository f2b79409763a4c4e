"""Detection: boxes with a score and a class each, in no order that counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison, Measure
from shadow.comparators.parameters import number, text, whole
from shadow.comparators.scores import flat

_LARGEST_CLASS: Final = 2**31 - 1
_Floats = NDArray[np.float64]


class Detection:
    """Boxes matched by their overlap, whatever their classes.

    ``output`` names the scores, ``boxes`` the boxes (x1, y1, x2, y2) and ``classes`` the class ids; ``count``, if it is
    given, how many of the item's boxes are detections. Of these the ``most`` with the highest scores count, if their
    score is over ``threshold``: padding has a score of 0.

    Matching is greedy: the two boxes that overlap most are a match, as long as their intersection over union is ``iou``
    or more; then the two that overlap most of the rest, and so on. Where several overlap equally, those of equal class
    go first, then those of the closest scores, then the first. The best assignment can match more only where boxes of
    one side overlap one another, which is what suppression of non-maxima has removed.

    ``max_delta`` is the largest |Δscore| of a match, where a box without a match counts with its whole score;
    ``mean_delta`` their mean. The top-1 answer is the class of the highest score.

    * ``matched``: 2 × matches over the boxes of both sides (F1); 1 where neither has any.
    * ``iou``: mean intersection over union of the matches.
    * ``class_agreement``: the share of the matches with equal classes.
    * ``score_delta``: mean |Δscore| of the matches, 1 at most.

    The last three do not apply where nothing matches.
    """

    may_be_empty: Final = True
    measures: Final = (
        Measure("matched"),
        Measure("iou"),
        Measure("class_agreement"),
        Measure("score_delta", agrees="low"),
    )

    def __init__(
        self,
        output: str,
        *,
        boxes: str = "boxes",
        classes: str = "classes",
        count: str | None = None,
        threshold: float = 0.0,
        iou: float = 0.5,
        most: int = 300,
    ) -> None:
        self._scores, self._boxes, self._classes = output, text("boxes", boxes), text("classes", classes)
        self._count = None if count is None else text("count", count)
        self.outputs = (self._boxes, self._scores, self._classes) + (() if self._count is None else (self._count,))
        self._threshold = number("threshold", threshold, low=0, high=1)
        self._iou = number("iou", iou, low=0.01, high=1)
        self._most = whole("most", most, at_least=1)

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare boxes of shape [n, boxes, 4] with scores and classes of shape [n, boxes] and counts of shape [n, 1].

        A value among an item's detections that is not finite, a count that is no number of them, and outputs whose
        shapes do not fit together make the item one that its side cannot be read in: it differs infinitely, and
        nothing of it agrees.
        """
        sides = [self._items(side) for side in (baseline, candidate)]
        found = [_compare_item(left, right, self._iou) for left, right in zip(*sides, strict=True)]
        rows = np.array([each[0] for each in found], np.float64).reshape(-1, 2)
        values = np.array([each[1] for each in found], np.float64).reshape(-1, len(self.measures))
        tops = [np.array([-1 if item is None else item.top1 for item in side], np.int32) for side in sides]
        return Comparison(
            max_delta=rows[:, 0],
            mean_delta=rows[:, 1],
            baseline_top1=tops[0],
            candidate_top1=tops[1],
            measures={measure.name: values[:, at] for at, measure in enumerate(self.measures)},
        )

    def _items(self, side: Mapping[str, Array]) -> list["_Detections | None"]:
        boxes, scores, classes = side[self._boxes], flat(side[self._scores]), flat(side[self._classes])
        n, slots = scores.shape
        fits = boxes.shape[-1] == 4 and boxes.size == 4 * scores.size
        counts = np.full((n, 1), slots) if self._count is None else flat(side[self._count])
        if not fits or classes.shape != scores.shape or counts.shape != (n, 1):
            return [None] * n
        rows = zip(boxes.reshape(n, slots, 4), scores, classes, counts[:, 0].tolist(), strict=True)
        return [self._detections(*row) for row in rows]

    def _detections(self, boxes: Array, scores: Array, classes: Array, count: float) -> "_Detections | None":
        if not 0 <= count <= len(scores) or count != int(count):
            return None
        there = slice(int(count))
        boxes, scores, classes = (each[there].astype(np.float64) for each in (boxes, scores, classes))
        if not all(np.isfinite(each).all() for each in (boxes, scores, classes)):
            return None
        kept = np.flatnonzero(scores > self._threshold)
        if len(kept) > self._most:
            kept = np.sort(kept[np.argsort(-scores[kept], kind="stable")[: self._most]])
        return _Detections(boxes=boxes[kept], scores=scores[kept], classes=classes[kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detections:
    """The detections of one item on one side."""

    boxes: _Floats  # [detections, 4]
    scores: _Floats
    classes: _Floats

    @property
    def top1(self) -> int:
        """The class of the highest score, the first of equals; −1 where there is none."""
        if not len(self.scores):
            return -1
        return int(min(max(round(float(self.classes[self.scores.argmax()])), -1), _LARGEST_CLASS))


def _compare_item(
    left: _Detections | None, right: _Detections | None, iou: float
) -> tuple[tuple[float, float], tuple[float, float, float, float]]:
    """Largest and mean |Δscore|, and the measures in their order."""
    if left is None or right is None:
        return (DELTA_CAP, DELTA_CAP), (0.0, 0.0, 0.0, 1.0)
    overlaps = _overlaps(left.boxes, right.boxes)
    mine, theirs = _matches(left, right, overlaps, iou)
    boxes = len(left.scores) + len(right.scores)
    changes = np.abs(left.scores[mine] - right.scores[theirs])
    alone = (np.delete(left.scores, mine), np.delete(right.scores, theirs))
    deltas = np.minimum(np.concatenate((changes, *alone)), DELTA_CAP)
    if not len(mine):
        measures = (0.0 if boxes else 1.0, np.nan, np.nan, np.nan)
    else:
        agreeing = left.classes[mine] == right.classes[theirs]
        measures = (
            2 * len(mine) / boxes,
            float(overlaps[mine, theirs].mean()),
            float(agreeing.mean()),
            float(changes.mean()),
        )
    return (float(deltas.max(initial=0.0)), float(deltas.mean()) if len(deltas) else 0.0), measures


def _overlaps(left: _Floats, right: _Floats) -> _Floats:
    """Intersection over union of each two boxes; two without area overlap when they are equal."""
    one, other = left[:, None], right[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.maximum(sides, 0.0).prod(axis=-1)
    areas = [np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0).prod(axis=-1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    overlaps: _Floats = np.where(union > 0, shared / np.where(union > 0, union, 1.0), (one == other).all(axis=-1))
    return overlaps


def _matches(left: _Detections, right: _Detections, overlaps: _Floats, iou: float) -> tuple[list[int], list[int]]:
    """The detections of both sides that match, two by two."""
    one, other = np.nonzero(overlaps >= iou)
    change = np.abs(left.scores[one] - right.scores[other])
    unequal = left.classes[one] != right.classes[other]
    best = np.lexsort((other, one, change, unequal, -overlaps[one, other]))
    mine: dict[int, int] = {}
    taken: set[int] = set()
    for first, second in zip(one[best].tolist(), other[best].tolist(), strict=True):
        if first not in mine and second not in taken:
            mine[first] = second
            taken.add(second)
    return list(mine), list(mine.values())
