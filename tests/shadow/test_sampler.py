from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.errors import ShadowError
from shadow.sampler import Sampler, Sampling


class Clock:
    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


def sampler(clock: Callable[[], float] | None = None, salt: str = "salt", **fields: Any) -> Sampler:
    return Sampler(Sampling(**fields), salt, clock or Clock())


def chosen(one: Sampler, batch: Sequence[tuple[str, str, str]]) -> list[int]:
    """The positions that are evidence, of a batch of (id, key, slice)."""
    ids, keys, slices = zip(*batch, strict=True)
    return list(one.choose(ids, keys, slices) or ())


def takes(one: Sampler, name: str) -> bool:
    """Whether a batch of one request is taken, of this id and this key."""
    return one.choose((name,), (name,), ()) is not None


BATCHES = st.lists(
    st.lists(
        st.tuples(st.text(max_size=4), st.sampled_from("abcdefgh"), st.sampled_from(["", "lobby", "gate"])),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=20,
)
# In quarters of a second, with floors that are multiples of 15 a minute: allowances are exact in binary fractions.
STEPS_S = st.sampled_from([0.0, 0.25, 1.0, 7.5, 59.75, 120.0])


# The draw


@given(request_id=st.text(), small=st.floats(0, 1), large=st.floats(0, 1))
@settings(deadline=None)
def test_what_a_smaller_fraction_takes_a_larger_one_takes_too(request_id: str, small: float, large: float) -> None:
    small, large = sorted((small, large))
    assert takes(sampler(fraction=large), request_id) >= takes(sampler(fraction=small), request_id)


@given(batches=BATCHES, small=st.floats(0, 1), large=st.floats(0, 1))
@settings(deadline=None)
def test_the_keys_of_a_larger_fraction_are_those_of_a_smaller_one_and_more(
    batches: list[list[tuple[str, str, str]]], small: float, large: float
) -> None:
    small, large = sorted((small, large))
    few, many = (sampler(fraction=fraction, by="key") for fraction in (small, large))
    for batch in batches:
        assert set(chosen(few, batch)) <= set(chosen(many, batch))


@given(request_id=st.text())
@settings(deadline=None)
def test_nothing_and_everything_are_exact(request_id: str) -> None:
    assert not takes(sampler(fraction=0.0), request_id)
    assert takes(sampler(fraction=1.0), request_id)


@given(batches=BATCHES, fraction=st.floats(0, 1))
@settings(deadline=None)
def test_by_request_a_batch_is_taken_whole_or_not_at_all_by_its_first_id(
    batches: list[list[tuple[str, str, str]]], fraction: float
) -> None:
    one = sampler(fraction=fraction)
    for batch in batches:
        assert chosen(one, batch) == (list(range(len(batch))) if takes(one, batch[0][0]) else [])


@given(batches=BATCHES, fraction=st.floats(0, 1))
@settings(deadline=None)
def test_by_key_a_key_is_in_or_out_whatever_it_travels_with(
    batches: list[list[tuple[str, str, str]]], fraction: float
) -> None:
    one, other = (sampler(fraction=fraction, by="key") for _ in range(2))
    fate = {key: bool(chosen(other, [("", key, "")])) for key in "abcdefgh"}
    for batch in batches:
        assert chosen(one, batch) == [at for at, (_, key, _) in enumerate(batch) if fate[key]]


@pytest.mark.parametrize("by", ["request", "key"])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_takes_the_fraction_it_was_given(fraction: float, by: str) -> None:
    one = sampler(fraction=fraction, by=by)
    taken = sum(takes(one, f"request-{index}") for index in range(20_000))
    assert taken / 20_000 == pytest.approx(fraction, abs=5 * (fraction * (1 - fraction) / 20_000) ** 0.5)


def test_another_salt_takes_others() -> None:
    one, two = (sampler(fraction=0.5, salt=salt) for salt in ("one", "two"))
    same = sum(takes(one, str(index)) == takes(two, str(index)) for index in range(4000))
    assert 1800 < same < 2200


def test_a_batch_of_any_size_is_taken_whole() -> None:
    names = [str(index) for index in range(1000)]
    assert sampler().choose(names, names, ()) == range(1000)


# Floors


def test_a_floor_takes_what_the_fraction_does_not_and_only_that() -> None:
    one = sampler(fraction=0.0, floor_per_minute={"gate": 2})
    batch = [("1", "", "lobby"), ("2", "", "gate"), ("3", "", ""), ("4", "", "gate"), ("5", "", "gate")]
    assert chosen(one, batch) == [1, 3]
    assert chosen(one, batch) == []


def test_a_floor_comes_back_evenly() -> None:
    clock = Clock()
    one = sampler(clock, fraction=0.0, floor_per_minute={"gate": 2})
    assert chosen(one, [("1", "", "gate")] * 3) == [0, 1]
    clock.at_s = 29.5
    assert chosen(one, [("2", "", "gate")]) == []
    clock.at_s = 30.0
    assert chosen(one, [("3", "", "gate")] * 2) == [0]
    clock.at_s = 3600.0
    assert chosen(one, [("4", "", "gate")] * 5) == [0, 1]


def test_what_was_drawn_counts_for_the_floor() -> None:
    clock = Clock()
    one = sampler(clock, fraction=0.5, by="key", floor_per_minute={"gate": 15})
    (drawn, left) = (next(key for key in "abcdefgh" if takes(one, key) is taken) for taken in (True, False))
    assert chosen(one, [("", drawn, "gate")] * 15) == list(range(15))
    assert chosen(one, [("", left, "gate")]) == []
    assert chosen(one, [("", drawn, "gate")] * 100) == list(range(100))
    clock.at_s = 4.0
    assert chosen(one, [("", left, "gate"), ("", left, "gate"), ("", drawn, "gate")]) == [0, 2]


@given(
    offers=st.lists(st.tuples(STEPS_S, st.integers(1, 40)), min_size=1, max_size=40),
    floor=st.sampled_from([15, 30, 60, 120]),
)
@settings(deadline=None)
def test_of_two_minutes_in_a_row_a_floor_takes_its_number_or_all_of_the_second(
    offers: list[tuple[float, int]], floor: int
) -> None:
    clock = Clock()
    one = sampler(clock, fraction=0.0, floor_per_minute={"gate": floor})
    seen = []
    for step_s, size in offers:
        clock.at_s += step_s
        seen.append((clock.at_s, size, len(chosen(one, [("", "", "gate")] * size))))
    for start_s, *_ in seen:
        came = sum(size for at_s, size, _ in seen if start_s <= at_s < start_s + 60)
        taken = sum(count for at_s, _, count in seen if start_s - 60 <= at_s < start_s + 60)
        assert taken >= min(came, floor)


# The cap


@given(
    offers=st.lists(st.tuples(STEPS_S, st.integers(1, 40)), min_size=1, max_size=40),
    max_rps=st.sampled_from([0.5, 2.0, 16.0]),
    floor=st.sampled_from([0, 15, 30]),
)
@settings(deadline=None)
def test_a_cap_bounds_what_is_taken_in_any_time(offers: list[tuple[float, int]], max_rps: float, floor: int) -> None:
    clock = Clock()
    one = sampler(clock, max_rps=max_rps, floor_per_minute={"gate": floor} if floor else {})
    times_s, taken = [], []
    for step_s, size in offers:
        clock.at_s += step_s
        times_s.append(clock.at_s)
        taken.append(len(chosen(one, [("", "", "gate")] * size)))
    before = [0, *accumulate(taken)]
    largest = max(size for _, size in offers)
    for start in range(len(taken)):
        for end in range(start, len(taken)):
            bound = max_rps * (times_s[end] - times_s[start]) + max(max_rps, 1.0) + largest + floor
            assert before[end + 1] - before[start] <= bound


def test_a_batch_is_taken_as_long_as_the_cap_is_not_overdrawn_however_large_it_is() -> None:
    clock = Clock()
    one = sampler(clock, max_rps=4.0)
    assert len(chosen(one, [("1", "", "")] * 40)) == 40
    clock.at_s = 9.0
    assert chosen(one, [("2", "", "")]) == []
    clock.at_s = 9.25
    assert chosen(one, [("3", "", "")]) == [0]


def test_the_cap_lets_through_what_it_allows_when_there_is_enough() -> None:
    clock = Clock()
    one = sampler(clock, max_rps=8.0)
    taken = 0
    for tick in range(4000):
        clock.at_s = tick / 32
        taken += len(chosen(one, [(str(tick), "", "")]))
    assert taken == pytest.approx(8 * 125, abs=9)


def test_what_a_floor_is_owed_goes_before_the_cap() -> None:
    clock = Clock()
    one = sampler(clock, max_rps=1.0, floor_per_minute={"gate": 60})
    batch = [("1", "", "lobby")] * 9 + [("2", "", "gate")]
    assert chosen(one, batch) == list(range(10))
    for second in range(1, 30):
        clock.at_s = float(second)
        assert chosen(one, batch) == [9]


# What is refused


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_refuses_what_is_no_fraction(fraction: float) -> None:
    with pytest.raises(ShadowError, match=r"mirror\.sample: expected a fraction from 0 to 1"):
        Sampling(fraction=fraction)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"by": "camera"}, "mirror.by: expected request or key, got 'camera'"),
        ({"floor_per_minute": {"gate": 0}}, "mirror.floor_per_minute.gate: expected at least 1 request, got 0"),
        ({"floor_per_minute": {"gate": float("inf")}}, "mirror.floor_per_minute.gate: expected at least 1 request"),
        ({"max_rps": 0.0}, "mirror.max_rps: expected requests a second, above 0, got 0.0"),
        ({"max_rps": float("nan")}, "mirror.max_rps: expected requests a second, above 0, got nan"),
        (
            {"max_rps": 1.0, "floor_per_minute": {"gate": 60, "lobby": 30}},
            "mirror.max_rps: expected at least 1.5, what the floors take together, got 1.0",
        ),
    ],
)
def test_a_setting_that_is_wrong_is_named(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ShadowError) as caught:
        Sampling(**fields)
    assert str(caught.value).startswith(problem)
