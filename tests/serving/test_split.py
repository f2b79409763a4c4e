from hypothesis import given
from hypothesis import strategies as st

from serving.split import arm, position
from shadow.pair import Arm

KEYS = [f"camera-{number}" for number in range(1000)]
weights = st.floats(0, 100)


@given(salt=st.text(max_size=80), key=st.text(), lower=weights, upper=weights)
def test_a_key_never_moves_back_as_the_weight_grows(salt: str, key: str, lower: float, upper: float) -> None:
    lower, upper = sorted((lower, upper))
    if arm(salt, key, lower) is Arm.CANDIDATE:
        assert arm(salt, key, upper) is Arm.CANDIDATE


@given(salt=st.text(max_size=80), key=st.text())
def test_nobody_is_the_candidate_s_at_0_and_everybody_at_100(salt: str, key: str) -> None:
    assert 0 <= position(salt, key) < 1
    assert arm(salt, key, 0) is Arm.BASELINE
    assert arm(salt, key, 100) is Arm.CANDIDATE


@given(salt=st.text(max_size=20), weight=st.sampled_from([1, 5, 20, 50, 80]))
def test_the_candidate_s_share_is_its_weight(salt: str, weight: int) -> None:
    share = sum(arm(salt, key, weight) is Arm.CANDIDATE for key in KEYS) / len(KEYS) * 100
    assert abs(share - weight) < 6 * (weight * (100 - weight) / len(KEYS)) ** 0.5  # six standard deviations


def test_another_salt_is_another_split() -> None:
    first, second = ([arm(salt, key, 50) for key in KEYS] for salt in ("a", "b"))
    same = sum(one is other for one, other in zip(first, second, strict=True)) / len(KEYS)
    assert abs(same - 0.5) < 0.05


def test_a_key_has_its_place_on_every_machine() -> None:
    assert position("salt", "key") == 0.7257854147455499
