from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shadow.comparators import DELTA_CAP, Comparison
from shadow.comparators.embedding import Embedding
from tests.shadow.builders import scores

NAN, INF = float("nan"), float("inf")


def compare(left: NDArray[np.float32], right: NDArray[np.float32], *, k: int = 5) -> Comparison:
    return Embedding("scores", k=k).compare({"scores": left}, {"scores": right})


def at_degrees(*degrees: float) -> NDArray[np.float32]:
    angles = np.radians(degrees)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)


def overlap(left: NDArray[np.float32], right: NDArray[np.float32], *, k: int = 5) -> NDArray[np.float64]:
    return compare(left, right, k=k).measures["neighbour_overlap"]


@pytest.mark.parametrize(
    ("left", "right", "cosine", "l2"),
    [
        ([1, 0], [0, 1], 1, sqrt(2)),
        ([1, 0], [-1, 0], 2, 2),
        ([1, 0], [3, 0], 0, 0),
        ([3, 4], [4, 3], 1 - 24 / 25, sqrt(2 * (1 - 24 / 25))),
        ([0, 0], [0, 0], 0, 0),
    ],
)
def test_only_the_direction_of_two_vectors_counts(
    left: list[float], right: list[float], cosine: float, l2: float
) -> None:
    found = compare(scores(left), scores(right))
    assert found.max_delta.tolist() == pytest.approx([cosine])
    assert found.measures["cosine_distance"].tolist() == pytest.approx([cosine])
    assert found.measures["l2_distance"].tolist() == pytest.approx([l2])
    assert found.baseline_top1.tolist() == found.candidate_top1.tolist() == [-1]


def test_the_mean_difference_is_that_of_the_normalised_components() -> None:
    assert compare(scores([3, 4]), scores([8, 6])).mean_delta.tolist() == pytest.approx([0.2])


def test_a_distance_far_below_the_rounding_of_a_cosine_is_still_told() -> None:
    found = compare(scores([1, 0]), scores([1, 1e-6])).max_delta[0]
    assert found == pytest.approx(0.5e-12, rel=1e-3)


@pytest.mark.parametrize("broken", [[NAN, 1], [INF, 1], [0, 0]])
def test_a_vector_without_direction_is_as_far_from_another_as_can_be(broken: list[float]) -> None:
    for sides in ((broken, [1, 1]), ([1, 1], broken)):
        found = compare(scores(sides[0]), scores(sides[1]))
        assert found.max_delta.tolist() == found.mean_delta.tolist() == [DELTA_CAP]
        assert found.measures["cosine_distance"].tolist() == found.measures["l2_distance"].tolist() == [2]


def test_a_nan_does_not_agree_even_with_itself() -> None:
    assert compare(scores([NAN, 1]), scores([NAN, 1])).max_delta.tolist() == [DELTA_CAP]


def test_neighbours_are_kept_or_lost_item_by_item() -> None:
    found = overlap(at_degrees(0, 10, 25, 90, 101), at_degrees(0, 10, 15, 90, 40), k=1)
    assert found.tolist() == [1, 0, 1, 1, 0]


def test_all_that_are_as_near_as_the_kth_are_neighbours() -> None:
    left, right = at_degrees(0, 10, 20, 90, 100), at_degrees(0, 10, 40, 90, 100)
    assert overlap(left, right, k=1)[1] == 0.5  # {0, 2} has become {0}
    assert overlap(right, left, k=1)[1] == 0.5


def test_equal_vectors_are_equally_near_whatever_their_place() -> None:
    generator = np.random.default_rng(3)
    vectors = generator.standard_normal((16, 300)).astype(np.float32)
    vectors[8:] = vectors[:8]
    for order in (generator.permutation(16) for _ in range(20)):
        assert overlap(vectors, vectors[order][np.argsort(order)], k=3).tolist() == [1] * 16


def test_no_more_than_half_of_the_others_are_neighbours() -> None:
    left, right = at_degrees(0, 10, 100, 130), at_degrees(0, 100, 10, 130)
    assert overlap(left, right, k=5)[0] == 0  # with all three others as neighbours nothing could be lost


@pytest.mark.parametrize("n", [1, 2, 3, 1025])
def test_a_batch_too_small_or_too_large_has_no_neighbourhood(n: int) -> None:
    vectors = np.random.default_rng(0).random((n, 3), np.float32)
    assert np.isnan(overlap(vectors, vectors)).all()


def test_neighbours_are_compared_across_sides_of_different_size() -> None:
    left, right = at_degrees(0, 10, 25, 90), np.pad(at_degrees(0, 10, 25, 90), ((0, 0), (0, 3)))
    found = compare(left, right)
    assert found.max_delta.tolist() == [DELTA_CAP] * 4
    assert found.measures["neighbour_overlap"].tolist() == [1] * 4


def test_a_candidate_without_direction_has_no_neighbours_and_a_baseline_without_has_none_to_keep() -> None:
    whole = at_degrees(0, 10, 25, 90, 101)
    broken = whole.copy()
    broken[1] = NAN
    assert overlap(whole, broken, k=1)[1] == 0
    assert overlap(whole, broken, k=1)[0] == 0  # its neighbour was item 1
    assert np.isnan(overlap(broken, whole, k=1)[1])


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=50)
def test_the_lengths_of_vectors_do_not_count(seed: int, scale: float) -> None:
    left, right = np.random.default_rng(seed).standard_normal((2, 8, 5)).astype(np.float32)
    there, back = compare(left, right), compare(left, (right * np.float32(scale)).astype(np.float32))
    np.testing.assert_allclose(there.max_delta, back.max_delta, atol=1e-6)
    assert ((there.max_delta >= 0) & (there.max_delta <= 2)).all()
