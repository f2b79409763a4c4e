"""F5: means and correlations. The published values, the properties, and the promise on heavy tails."""

from math import erfc, exp, inf, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rollout.bounds import (
    Correlation,
    asymptotic_interval,
    asymptotic_log_e,
    asymptotic_margin,
    correlation_sums,
    mixing_variance,
)
from rollout.bounds.asymptotic import LEAST
from tests.rollout.test_bounds_promises import at_most, crossings

ALPHA = 0.05
RHO2 = mixing_variance(ALPHA, 1000)
RUNS = 1000
LOOKS = 40
A_LOOK = 100  # items

Scores = NDArray[np.float64]


def test_the_margin_has_the_published_value() -> None:
    assert mixing_variance(0.05, 1000) == pytest.approx(0.00793615, abs=1e-8)
    assert float(asymptotic_margin(2000, ALPHA, RHO2)) == pytest.approx(0.068457, abs=1e-6)
    assert asymptotic_interval(1.0, 2.0, 2000, ALPHA, RHO2) == pytest.approx((1 - 0.136914, 1 + 0.136914), abs=2e-6)


def test_the_margin_narrows_as_observations_come_and_is_best_where_it_was_asked_to_be() -> None:
    assert asymptotic_interval(0.0, 1.0, 0, ALPHA, RHO2) == (-inf, inf)
    margins = asymptotic_margin(np.arange(10**4), ALPHA, RHO2)
    assert margins[0] == inf
    assert np.all(np.diff(margins[1:]) < 0)
    others = [asymptotic_margin(1000, ALPHA, mixing_variance(ALPHA, best_at)) for best_at in (200, 500, 2000, 5000)]
    assert min(others) > asymptotic_margin(1000, ALPHA, RHO2)


@settings(deadline=None)
@given(n=st.integers(1, 10**7), z=st.floats(-30, 30))
def test_the_e_value_is_the_normal_mixture_or_a_little_less(n: int, z: float) -> None:
    spread = n * RHO2 + 1
    log_e = float(asymptotic_log_e(z * sqrt(spread / RHO2) / n, n, RHO2))
    mixture = z * z / 2 + log(erfc(-z / sqrt(2))) - log(spread) / 2
    assert log_e <= mixture + 1e-9
    assert log_e >= mixture - (0.04 if mixture >= log(20) else 0.25)


@settings(deadline=None)
@given(n=st.integers(0, 10**6), low=st.floats(-3, 3), high=st.floats(-3, 3))
def test_a_larger_distance_is_more_evidence_and_no_observation_none(n: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    log_es = asymptotic_log_e((low, high), n, RHO2)
    assert log_es[0] <= log_es[1] + 1e-9
    assert float(asymptotic_log_e(high, 0, RHO2)) == 0.0


@settings(deadline=None)
@given(n=st.integers(1, 10**6))
def test_what_the_one_sided_interval_excludes_is_what_the_e_value_rejects(n: int) -> None:
    edge = float(asymptotic_margin(n, 2 * ALPHA, RHO2))
    assert exp(float(asymptotic_log_e(edge, n, RHO2))) == pytest.approx(1 / ALPHA, rel=0.06)


# Correlations


def _pairs(rng: np.random.Generator, shape: tuple[int, ...], r: float, tail: float) -> tuple[Scores, Scores]:
    """Correlated pairs whose common scale is log-normal: the more ``tail``, the heavier; 0 are normal."""
    x, noise = rng.standard_normal((2, *shape))
    scale = np.exp(tail * rng.standard_normal(shape))
    return x * scale, (r * x + sqrt(1 - r * r) * noise) * scale


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), cut=st.integers(0, 1000))
def test_sums_of_routers_add_up_to_those_of_all(seed: int, cut: int) -> None:
    x, y = _pairs(np.random.default_rng(seed), (1000, 3), 0.8, 0.3)
    parts = correlation_sums(x[:cut], y[:cut]) + correlation_sums(x[cut:], y[cut:])
    np.testing.assert_allclose(parts, correlation_sums(x, y), rtol=1e-9, atol=1e-9)
    assert Correlation.of(parts).interval(ALPHA, RHO2) == pytest.approx(
        Correlation.of(correlation_sums(x, y)).interval(ALPHA, RHO2)
    )


@pytest.mark.parametrize("tail", [0.0, 0.5])
def test_the_deviation_is_that_of_the_published_formula(tail: float) -> None:
    x, y = _pairs(np.random.default_rng(2), (3000,), 0.9, tail)
    u, v, r = (x - x.mean()) / x.std(), (y - y.mean()) / y.std(), np.corrcoef(x, y)[0, 1]
    found = Correlation.of(correlation_sums(x[:, None], y[:, None]))
    assert float(found.r) == pytest.approx(r)
    assert float(found.deviation) == pytest.approx(np.std(u * v - r / 2 * (u**2 + v**2)) / (1 - r**2))


def test_normal_scores_have_the_textbook_s_deviation_and_heavy_tails_more() -> None:
    rng = np.random.default_rng(4)
    normal, heavy = (
        Correlation.of(correlation_sums(*(each[:, None] for each in _pairs(rng, (200_000,), 0.9, tail))))
        for tail in (0.0, 0.5)
    )
    assert float(normal.deviation) == pytest.approx(1.0, rel=0.02)
    assert float(heavy.deviation) == pytest.approx(exp(2 * 0.5**2), rel=0.1)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), shift=st.floats(-10, 10), scale=st.floats(0.01, 100))
def test_neither_unit_nor_offset_nor_order_matters_and_a_turned_sign_turns_the_interval(
    seed: int, shift: float, scale: float
) -> None:
    x, y = _pairs(np.random.default_rng(seed), (1000, 1), 0.8, 0.3)
    interval = Correlation.of(correlation_sums(x, y)).interval(ALPHA, RHO2)
    assert Correlation.of(correlation_sums(y, x)).interval(ALPHA, RHO2) == pytest.approx(interval, abs=1e-6)
    moved = Correlation.of(correlation_sums(scale * (x + shift), y)).interval(ALPHA, RHO2)
    assert moved == pytest.approx(interval, abs=1e-6)
    low, high = Correlation.of(correlation_sums(x, -y)).interval(ALPHA, RHO2)
    assert (-high, -low) == pytest.approx(interval, abs=1e-6)


def test_an_item_s_scores_count_as_one_observation() -> None:
    x, y = _pairs(np.random.default_rng(5), (1000, 1), 0.8, 0.3)
    once = Correlation.of(correlation_sums(x, y))
    again = Correlation.of(correlation_sums(np.repeat(x, 10, axis=1), np.repeat(y, 10, axis=1)))
    assert float(again.n) == 1000
    assert again.interval(ALPHA, RHO2) == pytest.approx(once.interval(ALPHA, RHO2))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.arange(LEAST - 1.0), np.arange(LEAST - 1.0)),
        (np.ones(1000), np.arange(1000.0)),
        (np.full(1000, 0.1), np.full(1000, 0.1)),
        (1e9 + np.arange(1000) % 2, 1e9 + np.arange(1000) % 2),
    ],
    ids=["too few", "one constant", "constant but for rounding", "a spread that rounding hides"],
)
def test_where_nothing_is_known_every_correlation_is_possible(x: Scores, y: Scores) -> None:
    found = Correlation.of(correlation_sums(x[:, None], y[:, None]))
    assert found.interval(ALPHA, RHO2) == (-1.0, 1.0)
    assert float(found.log_e_above(0.95, RHO2)) <= 0
    assert float(found.log_e_below(0.95, RHO2)) <= 0


@pytest.mark.parametrize("shift", [10.0, 1e3, 1e5, 1e7])
def test_digits_lost_to_an_offset_widen_the_interval_and_never_narrow_it(shift: float) -> None:
    for seed in range(20):
        x, y = _pairs(np.random.default_rng(seed), (1000, 1), 0.99, 0.3)
        low, high = Correlation.of(correlation_sums(x, y)).interval(ALPHA, RHO2)
        found = Correlation.of(correlation_sums(x + shift, y + shift)).interval(ALPHA, RHO2)
        assert found[0] <= low + 1e-6
        assert found[1] >= high - 1e-6


def test_a_model_and_its_copy_are_proved_to_be_correlated_and_two_models_not_to_be() -> None:
    x, other = _pairs(np.random.default_rng(6), (2000, 10), 0.9, 0.3)
    copy = Correlation.of(correlation_sums(x, x))
    low, high = copy.interval(ALPHA, RHO2)
    assert 0.999 < low < high <= 1
    assert float(copy.log_e_above(0.95, RHO2)) > log(1000) > 0 > float(copy.log_e_below(0.95, RHO2))
    different = Correlation.of(correlation_sums(x, other))
    assert float(different.log_e_below(0.95, RHO2)) > log(1000) > 0 > float(different.log_e_above(0.95, RHO2))


# The promise, looked at every 100 items from 500 on


def _looks(seed: int, tail: float, scores: int = 1) -> Correlation:
    """Correlations [runs, looks] where .95 is the true one and the scores of an item are all the same."""
    rng, sums = np.random.default_rng(seed), []
    for _ in range(RUNS // 200):
        x, y = _pairs(rng, (200, LOOKS, A_LOOK, 1), 0.95, tail)
        sums.append(correlation_sums(np.repeat(x, scores, axis=-1), np.repeat(y, scores, axis=-1)))
    return Correlation.of(np.concatenate(sums).cumsum(axis=1))


def test_heavy_tails_break_the_textbook_s_correlation_but_not_this_one() -> None:
    found = _looks(8, tail=0.5)
    off, margin = np.abs(found.z - np.arctanh(0.95)), asymptotic_margin(found.n, ALPHA, RHO2)
    missed = int(np.count_nonzero((off > found.deviation * margin).any(axis=1)))
    assert at_most(missed, RUNS) <= ALPHA
    textbook = off > 1.96 / np.sqrt(found.n - 3)
    assert int(np.count_nonzero((textbook & (found.n >= LEAST)).any(axis=1))) > 5 * ALPHA * RUNS


@pytest.mark.parametrize("scores", [1, 3], ids=["one score an item", "scores that say the same"])
def test_a_correlation_at_its_limit_is_proved_neither_above_nor_below_it(scores: int) -> None:
    found = _looks(9, tail=0.3, scores=scores)
    assert at_most(crossings(found.log_e_above(0.95, RHO2), ALPHA), RUNS) <= ALPHA
    assert at_most(crossings(found.log_e_below(0.95, RHO2), ALPHA), RUNS) <= ALPHA


def test_a_mean_of_heavy_tails_is_ever_missed_with_probability_at_most_alpha() -> None:
    rng = np.random.default_rng(10)
    values = rng.standard_t(5, (RUNS, LOOKS, A_LOOK))
    n = np.arange(1, LOOKS + 1) * A_LOOK
    mean = values.sum(axis=2).cumsum(axis=1) / n
    deviation = np.sqrt((values**2).sum(axis=2).cumsum(axis=1) / n - mean**2)
    missed = np.abs(mean) > deviation * asymptotic_margin(n, ALPHA, RHO2)
    assert at_most(int(np.count_nonzero(missed.any(axis=1))), RUNS) <= ALPHA
