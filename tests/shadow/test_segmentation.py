from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparison
from shadow.comparators.segmentation import Segmentation

NAN = float("nan")


def compare(left: Array, right: Array, **parameters: Any) -> Comparison:
    given = parameters or {"classes": 3}
    sides = ({"scores": np.asarray(side, np.float32)} for side in (left, right))
    return Segmentation("scores", **given).compare(*sides)


def split_at(column: int, size: int = 8) -> Array:
    """A mask that is 0 left of a column and 1 from there on."""
    mask = np.zeros((1, size, size))
    mask[:, :, column:] = 1
    return mask


def test_four_pixels_by_hand() -> None:
    found = compare(np.array([[[0, 0], [1, 1]]]), np.array([[[0, 1], [1, 1]]]))
    assert found.measures["mean_iou"].tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2])
    assert found.measures["pixel_agreement"].tolist() == [0.75]
    assert found.max_delta.tolist() == pytest.approx([1 - (1 / 2 + 2 / 3) / 2])
    assert found.mean_delta.tolist() == [0.25]
    assert found.baseline_top1.tolist() == found.candidate_top1.tolist() == [-1]


@pytest.mark.parametrize(
    ("column", "distance", "score"), [(4, 0, 1), (5, 0, 0.5), (5, 1, 1), (7, 1, 0), (7, 2, 0.5), (7, 3, 1)]
)
def test_a_boundary_is_found_again_within_the_distance(column: int, distance: int, score: float) -> None:
    found = compare(split_at(4), split_at(column), classes=2, distance=distance)
    assert found.measures["boundary_f"].tolist() == pytest.approx([score])


def test_a_mask_without_boundary_agrees_with_its_like_alone() -> None:
    flat = np.zeros((1, 8, 8))
    assert compare(flat, flat).measures["boundary_f"].tolist() == [1]
    assert compare(flat, split_at(4)).measures["boundary_f"].tolist() == [0]
    assert compare(split_at(4), flat).measures["boundary_f"].tolist() == [0]


def test_boundaries_far_apart_have_nothing_in_common() -> None:
    assert compare(split_at(1, 20), split_at(18, 20), classes=2).measures["boundary_f"].tolist() == [0]


def test_classes_that_neither_mask_has_do_not_count() -> None:
    found = [compare(split_at(4), split_at(5), classes=classes).measures["mean_iou"][0] for classes in (2, 50)]
    assert found[0] == found[1]


@pytest.mark.parametrize("axis", [0, -1])
def test_scores_are_read_by_the_highest_along_their_axis(axis: int) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (4, 6, 5))
    scores = np.moveaxis(np.eye(3)[ids], -1, 1) if axis == 0 else np.eye(3)[ids]
    other = ids.copy()
    other[0, 0, 0] = (other[0, 0, 0] + 1) % 3
    others = np.moveaxis(np.eye(3)[other], -1, 1) if axis == 0 else np.eye(3)[other]
    by_ids, by_scores = compare(ids, other), compare(scores, others, axis=axis)
    for name, values in by_ids.measures.items():
        assert by_scores.measures[name].tolist() == values.tolist()


@pytest.mark.parametrize("shape", [(2, 1, 6, 5), (2, 6, 5, 1)])
def test_a_mask_may_have_an_axis_of_length_one(shape: tuple[int, ...]) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (2, 6, 5))
    assert compare(ids.reshape(shape), ids).max_delta.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [NAN, float("inf"), -1, 3, 0.5])
def test_an_id_that_is_no_class_breaks_its_item_alone(wrong: float) -> None:
    masks = np.zeros((2, 4, 4))
    broken = masks.copy()
    broken[1, 2, 2] = wrong
    for sides in ((masks, broken), (broken, masks)):
        found = compare(*sides)
        assert found.max_delta.tolist() == found.mean_delta.tolist() == [0, DELTA_CAP]
        assert [values.tolist() for values in found.measures.values()] == [[1, 0]] * 3


def test_scores_with_a_nan_cannot_be_read() -> None:
    scores = np.random.default_rng(0).random((1, 3, 4, 4))
    broken = scores.copy()
    broken[0, 1, 2, 3] = NAN
    assert compare(scores, broken, axis=0).max_delta.tolist() == [DELTA_CAP]


def test_masks_of_another_size_or_shape_differ_infinitely() -> None:
    assert compare(np.zeros((1, 4, 4)), np.zeros((1, 4, 5))).max_delta.tolist() == [DELTA_CAP]
    assert compare(np.zeros((1, 16)), np.zeros((1, 16))).max_delta.tolist() == [DELTA_CAP]
    assert compare(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), axis=0).max_delta.tolist() == [DELTA_CAP]


@given(seed=st.integers(0, 2**32 - 1), distance=st.integers(0, 4))
@settings(deadline=None, max_examples=50)
def test_the_boundary_score_is_that_of_plain_loops(seed: int, distance: int) -> None:
    left, right = np.random.default_rng(seed).integers(0, 2, (2, 1, 5, 6))
    found = compare(left, right, classes=2, distance=distance).measures["boundary_f"][0]
    edges = [_edges(side[0]) for side in (left, right)]
    shares = [_share(edges[0], edges[1], distance), _share(edges[1], edges[0], distance)]
    if not edges[0] or not edges[1]:
        assert found == (edges[0] == edges[1])
    else:
        assert found == pytest.approx(2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0)


def _edges(mask: Array) -> set[tuple[int, int]]:
    rows, columns = mask.shape
    steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
    return {
        (row, column)
        for row in range(rows)
        for column in range(columns)
        for down, right in steps
        if 0 <= row + down < rows and 0 <= column + right < columns
        if mask[row, column] != mask[row + down, column + right]
    }


def _share(mine: set[tuple[int, int]], theirs: set[tuple[int, int]], distance: int) -> float:
    near = [any(max(abs(a - c), abs(b - d)) <= distance for c, d in theirs) for a, b in mine]
    return sum(near) / len(near) if near else 0.0
