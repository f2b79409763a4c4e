import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from shadow.comparators import COMPARATORS, DELTA_CAP, Comparison, open_comparator
from shadow.comparators.classification import Classification
from shadow.errors import ShadowError
from tests.shadow.builders import scores

NAN, INF = float("nan"), float("inf")


def compare(left: NDArray[np.float32], right: NDArray[np.float32]) -> Comparison:
    return Classification("scores").compare({"scores": left}, {"scores": right})


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


def test_another_number_of_classes_differs_infinitely() -> None:
    found = compare(scores([0, 1, 0]), scores([0, 1, 0, 0]))
    assert found.max_delta.tolist() == found.mean_delta.tolist() == [DELTA_CAP]
    assert found.baseline_top1.tolist() == found.candidate_top1.tolist() == [1]


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


@pytest.mark.parametrize("kind", COMPARATORS)
def test_every_registered_comparator_opens(kind: str) -> None:
    assert open_comparator(kind, "logits").output == "logits"


def test_a_users_comparator_is_named_by_import_path() -> None:
    assert isinstance(open_comparator("shadow.comparators.classification:Classification", "scores"), Classification)


@pytest.mark.parametrize("kind", ["nonsense", "no.such.module:Name", "shadow.comparators:Missing"])
def test_an_unknown_comparator_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ShadowError, match=rf"comparator\.kind: .*{kind}"):
        open_comparator(kind, "scores")
