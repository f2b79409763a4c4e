from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from shadow.comparators import DELTA_CAP, Comparison
from shadow.comparators.classification import Classification
from tests.shadow.builders import scores

NAN, INF = float("nan"), float("inf")


def compare(left: NDArray[np.float32], right: NDArray[np.float32], *, k: int = 2, logits: bool = False) -> Comparison:
    return Classification("scores", k=k, logits=logits).compare({"scores": left}, {"scores": right})


def measure(name: str, left: NDArray[np.float32], right: NDArray[np.float32], *, logits: bool = False) -> list[float]:
    values: list[float] = compare(left, right, logits=logits).measures[name].tolist()
    return values


def test_gives_differences_and_both_answers_item_by_item() -> None:
    found = compare(scores([0.5, 0.25, 0.25], [0, 1, 0]), scores([0.25, 0.5, 0.25], [0, 1, 0]))
    assert found.max_delta.tolist() == [0.25, 0]
    assert found.mean_delta.tolist() == pytest.approx([0.5 / 3, 0])
    assert found.baseline_top1.tolist() == [0, 1]
    assert found.candidate_top1.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("left", "right", "delta", "left_top", "right_top"),
    [
        ([1, 2, 3], [1, 2, NAN], DELTA_CAP, 2, -1),
        ([NAN, 2, 3], [NAN, 2, 3], DELTA_CAP, -1, -1),
        ([0, INF, 0], [0, INF, 0], 0, 1, 1),
        ([0, -INF, 1], [0, -INF, 1], 0, 2, 2),
        ([0, INF, 0], [0, -INF, 0], DELTA_CAP, 1, 0),
        ([3e38, 0, 0], [-3e38, 0, 0], DELTA_CAP, 0, 1),
        ([5, 5, 5], [5, 5, 5], 0, 0, 0),
    ],
)
def test_a_nan_is_an_infinite_difference_and_no_answer(
    left: list[float], right: list[float], delta: float, left_top: int, right_top: int
) -> None:
    found = compare(scores(left), scores(right))
    assert found.max_delta.tolist() == [delta]
    assert (found.baseline_top1.tolist(), found.candidate_top1.tolist()) == ([left_top], [right_top])


def test_another_number_of_classes_differs_infinitely_and_keeps_both_answers() -> None:
    found = compare(scores([0, 1, 0]), scores([0, 1, 0, 0]))
    assert found.max_delta.tolist() == found.mean_delta.tolist() == [DELTA_CAP]
    assert found.baseline_top1.tolist() == found.candidate_top1.tolist() == [1]


def test_scores_of_any_shape_are_classes_one_after_another() -> None:
    left = np.zeros((1, 2, 3), np.float32)
    left[0, 1, 2] = 1
    assert compare(left, left).baseline_top1.tolist() == [5]


FLOATS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(width=32))


@given(left=FLOATS, data=st.data())
@settings(deadline=None)
def test_differences_are_symmetric_bounded_and_zero_against_itself(
    left: NDArray[np.float32], data: st.DataObject
) -> None:
    right = data.draw(hnp.arrays(np.float32, left.shape, elements=st.floats(width=32)))
    there, back = compare(left, right), compare(right, left)
    assert there.max_delta.tolist() == back.max_delta.tolist()
    assert (there.mean_delta <= there.max_delta * (1 + 1e-12)).all()
    assert ((there.max_delta >= 0) & (there.max_delta <= DELTA_CAP)).all()
    itself = compare(left, left)
    assert (itself.max_delta[~np.isnan(left).any(axis=1)] == 0).all()


@given(left=FLOATS, data=st.data(), k=st.integers(1, 3))
@settings(deadline=None)
def test_the_k_highest_are_those_of_a_stable_sort(left: NDArray[np.float32], data: st.DataObject, k: int) -> None:
    right = data.draw(hnp.arrays(np.float32, left.shape, elements=st.floats(width=32)))
    found = compare(left, right, k=k).measures["top_k_agreement"]
    for one, other, share in zip(left, right, found, strict=True):
        first = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in (one, other)]
        readable = not (np.isnan(one).any() or np.isnan(other).any())
        assert share == (len(first[0] & first[1]) / k if readable else 0)


def test_top_k_does_not_apply_to_k_classes_or_fewer() -> None:
    assert np.isnan(compare(scores([0, 1, 2]), scores([0, 1, 2]), k=3).measures["top_k_agreement"]).all()
    assert compare(scores([0, 1, 2, 3]), scores([0, 1, 3, 2]), k=3).measures["top_k_agreement"].tolist() == [1]


P, Q = [0.5, 0.3, 0.15, 0.05], [0.3, 0.5, 0.05, 0.15]
DIVERGENCE = 0.2 * log(5 / 3) + 0.1 * log(3)


def test_the_measures_of_two_rows_of_probabilities() -> None:
    assert measure("kl_divergence", scores(P), scores(Q)) == pytest.approx([DIVERGENCE], abs=1e-6)
    assert measure("top1_delta", scores(P), scores(Q)) == pytest.approx([0.2], abs=1e-6)
    assert measure("top_k_agreement", scores(P), scores(Q)) == [1]


def test_logits_are_compared_by_their_softmax() -> None:
    left, right = (np.log(scores(side)) + np.float32(7) for side in (P, Q))
    assert measure("kl_divergence", left, right, logits=True) == pytest.approx([DIVERGENCE], abs=1e-5)
    assert measure("top1_delta", left, right, logits=True) == pytest.approx([0.2], abs=1e-5)
    masked = scores([0, 0, -INF])
    assert measure("kl_divergence", masked, masked, logits=True) == [0]


@pytest.mark.parametrize(
    ("left", "right"),
    [([1, 2, 3], P[:3]), (P, [0.5, 0.5, 0.5, -0.5]), (P, [NAN, 0, 0, 1]), ([INF, 0, 0, 0], P), (P, [0, 0, 0, 0])],
)
def test_divergence_does_not_apply_where_a_side_is_no_row_of_probabilities(
    left: list[float], right: list[float]
) -> None:
    assert np.isnan(measure("kl_divergence", scores(left), scores([*right, 0, 0][: len(left)]))).all()


def test_what_the_candidate_rules_out_and_the_baseline_does_not_diverges_without_bound() -> None:
    assert measure("kl_divergence", scores([0.5, 0.5]), scores([1, 0])) == [INF]
    assert measure("kl_divergence", scores([1, 0]), scores([0.5, 0.5])) == pytest.approx([log(2)])


def test_the_delta_of_the_answer_is_that_of_the_baselines_class() -> None:
    found = measure("top1_delta", scores([0.9, 0.1], [NAN, 0.1], [0.9, 0.1]), scores([0.6, 0.9], [0, 0], [NAN, 0]))
    assert found[0] == pytest.approx(0.3)
    assert np.isnan(found[1])
    assert found[2] == DELTA_CAP
