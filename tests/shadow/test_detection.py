from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison
from shadow.comparators.detection import Detection

NAN, INF = float("nan"), float("inf")
Box = tuple[Sequence[float], float, int]  # corners, score, class

A: Box = ([0, 0, 10, 10], 0.9, 1)
B: Box = ([20, 20, 30, 30], 0.8, 2)
C: Box = ([50, 50, 60, 60], 0.3, 2)


def side(*boxes: Box, slots: int | None = None, count: float | None = None) -> dict[str, Array]:
    """One item with these boxes, padded with zeros to the number of slots."""
    slots = len(boxes) if slots is None else slots
    corners, scores, classes = np.zeros((1, slots, 4)), np.zeros((1, slots)), np.zeros((1, slots))
    for at, (box, score, kind) in enumerate(boxes):
        corners[0, at], scores[0, at], classes[0, at] = box, score, kind
    found = {"boxes": corners, "scores": scores, "classes": classes, "count": np.full((1, 1), count or 0.0)}
    return {name: array.astype(np.float32) for name, array in found.items()}


def compare(left: dict[str, Array], right: dict[str, Array], **parameters: Any) -> Comparison:
    return Detection("scores", **parameters).compare(left, right)


def measures(left: dict[str, Array], right: dict[str, Array], **parameters: Any) -> list[float]:
    """matched, iou, class_agreement, score_delta."""
    return [float(values[0]) for values in compare(left, right, **parameters).measures.values()]


def test_a_match_a_miss_and_a_box_too_many() -> None:
    left, right = side(A, B), side(([0, 0, 10, 8], 0.7, 1), C)
    assert measures(left, right) == pytest.approx([0.5, 0.8, 1, 0.2])
    found = compare(left, right)
    assert found.max_delta.tolist() == pytest.approx([0.8])  # box B, which has no match
    assert found.mean_delta.tolist() == pytest.approx([(0.2 + 0.8 + 0.3) / 3])
    assert (found.baseline_top1.tolist(), found.candidate_top1.tolist()) == ([1], [1])


def test_the_order_of_the_boxes_does_not_count() -> None:
    found = compare(side(A, B, C), side(C, A, B))
    assert found.max_delta.tolist() == [0]
    assert [values[0] for values in found.measures.values()] == [1, 1, 1, 0]


def test_a_match_of_another_class_is_a_match_that_disagrees() -> None:
    assert measures(side(A), side(([0, 0, 10, 10], 0.9, 7))) == pytest.approx([1, 1, 0, 0])


def test_boxes_that_overlap_too_little_do_not_match() -> None:
    left, right = side(A), side(([0, 0, 10, 5.1], 0.9, 1))
    assert measures(left, right)[0] == 1
    assert measures(left, right, iou=0.6)[0] == 0
    assert np.isnan(measures(left, right, iou=0.6)[1:]).all()


def test_the_two_that_overlap_most_match_first() -> None:
    near, nearer = ([0, 0, 10, 8], 0.5, 1), ([0, 0, 10, 9], 0.6, 1)
    found = compare(side(A), side(near, nearer))
    assert found.measures["iou"].tolist() == pytest.approx([0.9])
    assert found.measures["score_delta"].tolist() == pytest.approx([0.3])


def test_of_equal_overlaps_the_equal_class_goes_first_and_then_the_closest_score() -> None:
    corners = A[0]
    left = side((corners, 0.9, 1), (corners, 0.6, 2), (corners, 0.3, 2))
    right = side((corners, 0.3, 2), (corners, 0.6, 2), (corners, 0.9, 1))
    assert compare(left, right).max_delta.tolist() == [0]


def test_no_boxes_on_either_side_agree_and_none_against_some_is_what_they_score() -> None:
    nothing = side()
    found = compare(nothing, nothing)
    assert (found.max_delta.tolist(), found.baseline_top1.tolist()) == ([0], [-1])
    assert found.measures["matched"].tolist() == [1]
    assert np.isnan(found.measures["iou"]).all()
    missed = compare(side(A, C), nothing)
    assert missed.max_delta.tolist() == pytest.approx([0.9])
    assert missed.measures["matched"].tolist() == [0]


def test_padding_is_no_detection() -> None:
    assert compare(side(A), side(A, slots=100)).max_delta.tolist() == [0]
    assert measures(side(A, slots=5), side(A, slots=100))[0] == 1
    assert measures(side(A, C), side(A), threshold=0.5)[0] == 1


def test_a_count_says_how_many_of_the_boxes_are_detections() -> None:
    left, right = side(A, B, count=1), side(A, C, count=1)
    assert compare(left, right, count="count").max_delta.tolist() == [0]
    assert compare(left, right).max_delta.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("count", [NAN, INF, -1, 3, 0.5])
def test_a_count_that_is_no_number_of_boxes_cannot_be_read(count: float) -> None:
    found = compare(side(A, B, count=2), side(A, B, count=count), count="count")
    assert found.max_delta.tolist() == [DELTA_CAP]
    assert (found.baseline_top1.tolist(), found.candidate_top1.tolist()) == ([1], [-1])


@pytest.mark.parametrize("name", ["boxes", "scores", "classes"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_value_that_is_not_finite_breaks_its_item_alone(name: str, value: float) -> None:
    whole = {key: np.repeat(array, 2, axis=0) for key, array in side(A, B).items()}
    broken = {key: array.copy() for key, array in whole.items()}
    broken[name][1, 0] = value
    found = compare(whole, broken)
    assert found.max_delta.tolist() == found.mean_delta.tolist() == [0, DELTA_CAP]
    assert found.candidate_top1.tolist() == [1, -1]
    assert [values[1] for values in found.measures.values()] == [0, 0, 0, 1]


@pytest.mark.parametrize("name", ["boxes", "classes"])
def test_outputs_whose_shapes_do_not_fit_together_cannot_be_read(name: str) -> None:
    left, right = side(A, B), side(A, B)
    right[name] = right[name][:, :1]
    assert compare(left, right).max_delta.tolist() == [DELTA_CAP]


def test_a_box_without_area_matches_its_equal_alone() -> None:
    point: Box = ([5, 5, 5, 5], 0.9, 1)
    assert measures(side(point), side(point)) == [1, 1, 1, 0]
    assert measures(side(point), side(A))[0] == 0


def test_only_the_highest_scores_count_where_there_are_too_many() -> None:
    many = side(*(([at, 0, at + 0.5, 1], 0.1 + at / 100, 1) for at in range(50)))
    found = compare(many, many, most=10)
    assert found.measures["matched"].tolist() == [1]
    fewer = {key: array[:, 40:] for key, array in many.items() if key != "count"}
    assert compare(many, fewer, most=10).max_delta.tolist() == [0]


def test_an_answer_without_batch_dimension_may_have_one_box() -> None:
    corners, score = np.array([A[0]], np.float32), np.array([[0.9]], np.float32)
    assert compare({"boxes": corners, "scores": score, "classes": np.ones((1, 1))}, side(A)).max_delta.tolist() == [0]
