from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from shadow.comparators import DELTA_CAP, Comparison
from shadow.comparators.ranking import Ranking
from tests.shadow.builders import scores

NAN, INF = float("nan"), float("inf")


def compare(left: NDArray[np.float32], right: NDArray[np.float32], *, k: int = 10) -> Comparison:
    return Ranking("scores", k=k).compare({"scores": left}, {"scores": right})


def measures(left: list[float], right: list[float], *, k: int = 10) -> dict[str, float]:
    return {name: float(values[0]) for name, values in compare(scores(left), scores(right), k=k).measures.items()}


def test_two_documents_exchanged_at_the_top() -> None:
    found = measures([3, 2, 1, 0], [2, 3, 1, 0], k=3)
    exchanged, ideal = 2 + 3 / log2(3) + 1 / 2, 3 + 2 / log2(3) + 1 / 2
    assert found["ndcg"] == pytest.approx(exchanged / ideal)
    assert found["kendall"] == pytest.approx(1 / 3)  # of three pairs one is turned round
    assert found["overlap"] == 1


def test_the_first_document_is_the_answer() -> None:
    found = compare(scores([3, 2, 1], [0, 5, 5]), scores([2, 3, 1], [0, 5, 5]))
    assert found.baseline_top1.tolist() == [0, 1]
    assert found.candidate_top1.tolist() == [1, 1]
    assert found.max_delta.tolist() == [1, 0]
    assert found.mean_delta.tolist() == pytest.approx([2 / 3, 0])


def test_an_order_turned_round_is_the_worst() -> None:
    found = measures([4, 3, 2, 1], [1, 2, 3, 4], k=2)
    assert found["kendall"] == -1
    assert found["overlap"] == 0
    assert found["ndcg"] == pytest.approx((0 + 1 / log2(3)) / (3 + 2 / log2(3)))


def test_the_gain_is_what_a_score_is_above_the_lowest() -> None:
    shifted = measures([103, 102, 101, 100], [2, 3, 1, 0], k=3)
    assert shifted["ndcg"] == pytest.approx(measures([-7, -8, -9, -10], [2, 3, 1, 0], k=3)["ndcg"])


def test_documents_that_are_equal_on_one_side_alone_agree_neither_way() -> None:
    assert measures([2, 1], [1, 1])["kendall"] == 0
    assert measures([1, 1], [2, 1])["kendall"] == 0
    assert measures([1, 1], [2, 2])["kendall"] == 1
    assert measures([1, 1, 1], [3, 1, 2])["ndcg"] == 1  # any order is best


def test_overlap_does_not_apply_to_k_documents_or_fewer_nor_order_to_one() -> None:
    found = measures([1], [2])
    assert np.isnan([found["overlap"], found["kendall"]]).all()
    assert found["ndcg"] == 1
    assert np.isnan(measures([2, 1], [2, 1], k=2)["overlap"])


def test_a_document_of_minus_infinity_is_never_shown() -> None:
    found = measures([3, 2, -INF, -INF], [3, 2, -INF, -INF], k=3)
    assert (found["ndcg"], found["kendall"], found["overlap"]) == (1, 1, 1)
    assert measures([3, 2, -INF], [-INF, 2, 3], k=2)["ndcg"] < 0.5
    assert measures([-INF, -INF], [1, 2])["ndcg"] == 1


@pytest.mark.parametrize("broken", [[NAN, 1, 2], [INF, 1, 2]])
def test_nothing_applies_where_the_baseline_has_no_order(broken: list[float]) -> None:
    assert np.isnan(list(measures(broken, [1, 2, 3], k=2).values())).all()


def test_a_candidate_with_a_nan_has_no_order_which_is_the_worst() -> None:
    assert measures([1, 2, 3], [NAN, 2, 3], k=2) == {"ndcg": 0, "kendall": -1, "overlap": 0}
    found = compare(scores([1, 2, 3]), scores([NAN, 2, 3]))
    assert (found.candidate_top1.tolist(), found.max_delta.tolist()) == ([-1], [DELTA_CAP])


def test_another_number_of_documents_keeps_both_answers() -> None:
    found = compare(scores([1, 2]), scores([1, 2, 3]))
    assert (found.baseline_top1.tolist(), found.candidate_top1.tolist()) == ([1], [2])


@given(
    left=hnp.arrays(np.float32, (3, 6), elements=st.integers(-3, 3).map(float)),
    right=hnp.arrays(np.float32, (3, 6), elements=st.integers(-3, 3).map(float)),
    k=st.integers(1, 8),
)
@settings(deadline=None)
def test_figures_are_those_of_plain_loops(left: NDArray[np.float32], right: NDArray[np.float32], k: int) -> None:
    found = compare(left, right, k=k).measures
    for item in range(3):
        mine, theirs = left[item].tolist(), right[item].tolist()
        first = [sorted(range(6), key=lambda at: -side[at])[:k] for side in (mine, theirs)]
        gains = [[mine[at] - min(mine) for at in order] for order in first]
        dcg = [sum(gain / log2(place + 2) for place, gain in enumerate(each)) for each in gains]
        assert found["ndcg"][item] == pytest.approx(dcg[1] / dcg[0] if dcg[0] else 1)
        pairs = [(a, b) for at, a in enumerate(first[0]) for b in first[0][at + 1 :]]
        signs = [(np.sign(mine[a] - mine[b]), np.sign(theirs[a] - theirs[b])) for a, b in pairs]
        if pairs:
            agreement = sum(1 if one == other else one * other for one, other in signs) / len(pairs)
            assert found["kendall"][item] == pytest.approx(agreement)
        if k < 6:
            assert found["overlap"][item] == pytest.approx(len({*first[0]} & {*first[1]}) / k)
