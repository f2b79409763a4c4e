import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.errors import ShadowError
from shadow.sampler import Sampler


@given(request_id=st.text(), small=st.floats(0, 1), large=st.floats(0, 1))
@settings(deadline=None)
def test_what_a_smaller_fraction_takes_a_larger_one_takes_too(request_id: str, small: float, large: float) -> None:
    small, large = sorted((small, large))
    assert Sampler(large, "salt").takes(request_id) >= Sampler(small, "salt").takes(request_id)


@given(request_id=st.text())
@settings(deadline=None)
def test_nothing_and_everything_are_exact(request_id: str) -> None:
    assert not Sampler(0.0, "salt").takes(request_id)
    assert Sampler(1.0, "salt").takes(request_id)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_takes_the_fraction_it_was_given(fraction: float) -> None:
    sampler = Sampler(fraction, "salt")
    taken = sum(sampler.takes(f"request-{index}") for index in range(20_000))
    assert taken / 20_000 == pytest.approx(fraction, abs=5 * (fraction * (1 - fraction) / 20_000) ** 0.5)


def test_another_salt_takes_others() -> None:
    one, two = Sampler(0.5, "one"), Sampler(0.5, "two")
    same = sum(one.takes(str(index)) == two.takes(str(index)) for index in range(4000))
    assert 1800 < same < 2200


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_refuses_what_is_no_fraction(fraction: float) -> None:
    with pytest.raises(ShadowError, match=r"mirror\.sample: expected a fraction from 0 to 1"):
        Sampler(fraction, "salt")
