"""The formulas: their published values, their properties, and their promises by simulation."""

from math import inf, isfinite, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rollout.bounds import (
    Process,
    confidence,
    log_merge,
    log_mix_stages,
    mean_above,
    mean_interval,
    quantile_edges,
    rate_above,
    rate_below,
    rate_interval,
    rate_lower,
    rate_upper,
    ratio_above,
    ratio_below,
    ratio_interval,
)

ALPHA = 0.05
LEVEL = -log(ALPHA)
RUNS = 1000

Counted = NDArray[np.int64]


# The values of STATISTICS.md


@pytest.mark.parametrize(
    ("process", "counts", "expected"),
    [
        (rate_above(0.01), (20, 980), 2.453272),
        (rate_above(0.01), (2, 0), 6.141333),
        (mean_above(0.0), (30, 12, 958), 2.460506),
        (mean_above(0.005), (30, 12, 958), 0.972426),
        (ratio_above(1.1), (500, 60, 260, 180), 29.815829),
    ],
    ids=["F1 20/1000", "F1 2/2", "F2 m=0", "F2 m=.005", "F3"],
)
def test_log_e_has_the_published_value(process: Process, counts: tuple[int, ...], expected: float) -> None:
    assert float(process.log_e(counts)) == pytest.approx(expected, abs=1e-6)


def test_rate_intervals_have_the_published_values() -> None:
    assert rate_interval(20, 5000, ALPHA) == pytest.approx((0.001765, 0.007582), abs=5e-7)
    assert (rate_lower(20, 5000, ALPHA), rate_upper(20, 5000, ALPHA)) == pytest.approx((0.001885, 0.007277), abs=5e-7)


def test_mixing_stages_has_the_published_value() -> None:
    mixed = log_mix_stages(log(0.2), np.log([1, 1, 30, 400, 1]))
    assert float(np.exp(mixed)) == pytest.approx(43.4)


# Properties

counts_of = st.integers(min_value=0, max_value=10**9)
limits = st.floats(min_value=1e-4, max_value=0.9)


def test_no_observation_is_no_evidence() -> None:
    for process, kinds in ((rate_above(0.01), 2), (rate_below(0.01), 2), (mean_above(0.02), 3), (ratio_above(1.1), 4)):
        assert float(process.log_e((0,) * kinds)) == 0.0
        assert process.missing((0,) * kinds, LEVEL) is None


@settings(deadline=None)
@given(bad=counts_of, good=counts_of, limit=limits)
def test_log_e_of_a_rate_is_finite_and_grows_with_its_side(bad: int, good: int, limit: float) -> None:
    harm, health = rate_above(limit), rate_below(limit)
    assert isfinite(float(harm.log_e((bad, good))))
    assert float(harm.log_e((bad + 1, good))) >= float(harm.log_e((bad, good)))
    assert float(harm.log_e((bad, good + 1))) <= float(harm.log_e((bad, good)))
    assert float(health.log_e((bad, good + 1))) >= float(health.log_e((bad, good)))
    assert float(health.log_e((bad + 1, good))) <= float(health.log_e((bad, good)))


@settings(deadline=None)
@given(bad=st.integers(0, 500), good=st.integers(0, 5000), low=limits, high=limits)
def test_a_wider_limit_is_harder_to_prove_exceeded(bad: int, good: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert float(rate_above(high).log_e((bad, good))) <= float(rate_above(low).log_e((bad, good))) + 1e-9
    assert float(rate_below(high).log_e((bad, good))) >= float(rate_below(low).log_e((bad, good))) - 1e-9


@settings(deadline=None)
@given(bad=counts_of, good=counts_of)
def test_a_rate_lies_in_its_interval(bad: int, good: int) -> None:
    low, high = rate_interval(bad, bad + good, ALPHA)
    assert 0 <= low < high <= 1
    if bad + good:
        assert low <= bad / (bad + good) <= high


def test_an_interval_narrows_as_observations_come() -> None:
    widths = [high - low for low, high in (rate_interval(n // 100, n, ALPHA) for n in (0, 100, 1000, 10**4, 10**9))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 1.0
    assert widths[-1] < 0.001  # a tenth of the rate: the finest odds ratio is 1.1


def test_what_an_interval_excludes_is_what_the_process_rejects() -> None:
    low, high = rate_interval(20, 5000, ALPHA)
    level = -log(ALPHA / 2)
    assert float(rate_above(low).log_e((20, 4980))) >= level > float(rate_above(low * 1.001).log_e((20, 4980)))
    assert float(rate_below(high).log_e((20, 4980))) >= level > float(rate_below(high * 0.999).log_e((20, 4980)))


@settings(deadline=None)
@given(plus=st.integers(0, 10**6), minus=st.integers(0, 10**6), zero=st.integers(0, 10**6))
def test_a_mean_lies_in_its_interval_and_turning_the_sign_turns_the_interval(plus: int, minus: int, zero: int) -> None:
    low, high = mean_interval(plus, minus, zero, ALPHA)
    assert -1 <= low < high <= 1
    assert mean_interval(minus, plus, zero, ALPHA) == pytest.approx((-high, -low))
    if n := plus + minus + zero:
        assert low <= (plus - minus) / n <= high


@settings(deadline=None)
@given(cells=st.tuples(*[st.integers(0, 10**5)] * 4))
def test_a_ratio_lies_in_its_interval_and_no_better_is_easier_to_refute_than_not_much_better(
    cells: tuple[int, int, int, int],
) -> None:
    low, high = ratio_interval(*cells, ALPHA)
    assert 0 <= low < high <= inf
    assert float(ratio_above(1.0).log_e(cells)) >= float(ratio_above(1.1).log_e(cells)) - 1e-9
    if baseline := cells[0] + cells[1]:
        assert low - 1e-9 <= (cells[0] + cells[2]) / baseline <= high + 1e-9


def test_a_histogram_of_differences_bets_as_its_bins_do() -> None:
    """The general form of F2 on {−1, 0, 1} is the count form, and its product over single draws."""
    values = (-0.5, 0.0, 0.25)
    process = mean_above(0.01, values=values)
    stakes = np.array([0.01, 0.97]) / 1.01
    by_hand = np.prod(
        [(1 + stakes * (value - 0.01)) ** count for value, count in zip(values, (3, 5, 9), strict=True)], 0
    )
    capitals = np.exp(np.array((3, 5, 9)) @ process.log_factors)
    assert capitals[[0, -1]] == pytest.approx(by_hand)


def test_the_quantile_lies_between_its_edges() -> None:
    rng = np.random.default_rng(1)
    values, edges = rng.exponential(100.0, 20_000), np.arange(0.0, 1000.0, 5.0)
    low, high = quantile_edges((values[:, None] >= edges).sum(axis=0), 20_000, 0.95, ALPHA)
    assert low is not None
    assert high is not None
    assert edges[low] <= 100 * log(20) <= edges[high]
    assert edges[high] - edges[low] < 40
    assert quantile_edges([0, 0], 0, 0.95, ALPHA) == (None, None)


@settings(deadline=None)
@given(bad=st.integers(0, 50), good=st.integers(1, 5000), limit=st.floats(0.005, 0.5))
def test_missing_observations_are_just_enough(bad: int, good: int, limit: float) -> None:
    process, n = rate_below(limit), bad + good
    missing = process.missing((bad, good), LEVEL)
    if missing is None:
        assert bad / n >= limit / 2
        return
    reached = np.array((bad, good)) * (n + missing) / n
    assert float(process.log_e(reached)) >= LEVEL - 1e-6
    if missing > 1:
        assert float(process.log_e(np.array((bad, good)) * (n + missing - 2) / n)) < LEVEL


def test_nothing_is_missing_where_the_level_is_reached() -> None:
    assert rate_below(0.01).missing((0, 5000), LEVEL) == 0


@settings(deadline=None)
@given(order=st.permutations(range(4)), log_es=st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_merging_does_not_depend_on_the_order(order: list[int], log_es: list[float]) -> None:
    weights = (0.1, 0.2, 0.3, 0.4)
    merged = float(log_merge(log_es, weights))
    assert float(log_merge([log_es[i] for i in order], [weights[i] for i in order])) == pytest.approx(merged)
    assert min(log_es) - 1e-6 <= merged <= max(log_es) + 1e-6


@pytest.mark.parametrize("weights", [(0.5, 0.6), (0.5, 0.4), (1.5, -0.5), (1.0, 0.0)])
def test_weights_that_would_break_the_promise_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        log_merge([0.0, 0.0], weights)


def test_confidence_is_one_minus_one_over_e() -> None:
    assert confidence(log(20)) == pytest.approx(0.95)
    assert confidence(0.0) == confidence(-1e9) == 0.0
    assert confidence(1e9) == 1.0


# Promises: over many seeded runs of the null hypothesis at its boundary, looked at after every observation


def _share_that_ever_crosses(log_e: NDArray[np.float64]) -> float:
    """``log_e`` [runs, looks]."""
    return float(np.mean((log_e >= LEVEL).any(axis=1)))


def _cumulated(kinds: Counted, n_kinds: int) -> Counted:
    """Kinds [runs, observations] → counts after each observation [runs, observations, kinds]."""
    return np.cumsum(kinds[..., None] == np.arange(n_kinds), axis=1)


NULLS: dict[str, tuple[Process, tuple[float, ...]]] = {
    "F1: a rate at its limit proves no harm": (rate_above(0.02), (0.02, 0.98)),
    "F1: a rate at its limit is not certified below it": (rate_below(0.02), (0.02, 0.98)),
    "F2: a mean at its limit is not above it": (mean_above(0.02), (0.07, 0.05, 0.88)),
    "F2: a drop of two points is not certified smaller": (mean_above(-0.02), (0.05, 0.07, 0.88)),
    "F3: an uplift of just ten percent is no more": (ratio_above(1.1), (0.50, 0.10, 0.16, 0.24)),
    "F3: a ratio of just 1.1 is no less": (ratio_below(1.1), (0.50, 0.10, 0.16, 0.24)),
}


@pytest.mark.parametrize("name", list(NULLS))
def test_false_alarms_under_continuous_looking_stay_within_alpha(name: str) -> None:
    process, probabilities = NULLS[name]
    rng = np.random.default_rng(20261121)
    kinds = rng.choice(len(probabilities), size=(RUNS, 1000), p=probabilities)
    counts = _cumulated(kinds, len(probabilities))
    crossed = _share_that_ever_crosses(process.log_e(counts))
    assert crossed <= ALPHA


def test_a_confidence_sequence_ever_misses_the_rate_with_probability_at_most_alpha() -> None:
    """Inverted: the true rate is outside at a look just when a side's process against it has crossed 2/α."""
    rng = np.random.default_rng(7)
    counts = _cumulated((rng.random((RUNS, 1000)) >= 0.03).astype(np.int64), 2)
    level = -log(ALPHA / 2)
    missed = (rate_above(0.03).log_e(counts) >= level) | (rate_below(0.03).log_e(counts) >= level)
    assert float(np.mean(missed.any(axis=1))) <= ALPHA
    rate, n = counts[..., 0] / np.arange(1, 1001), np.arange(1, 1001)
    textbook = np.abs(rate - 0.03) > 1.96 * np.sqrt(rate * (1 - rate) / n)
    assert float(np.mean(textbook[:, 200:].any(axis=1))) > 4 * ALPHA  # what a fixed-n interval does with many looks


def test_stages_that_follow_the_data_do_not_break_the_promise_of_mixing() -> None:
    """A stage begins whenever it looks worst for the candidate: right after bad observations."""
    rng = np.random.default_rng(11)
    looks, stages = 800, 5
    bad = rng.random((RUNS, looks)) < 0.02
    starts = np.argsort(~bad, axis=1, kind="stable")[:, : stages - 1]  # the first four bad observations
    process, total = rate_above(0.02), np.cumsum(bad, axis=1)
    since = [process.log_e(np.stack([total, np.arange(1, looks + 1) - total], axis=-1))]
    for stage in range(stages - 1):
        seen = np.arange(looks) > starts[:, [stage]]  # not with the observation that made it begin
        own = np.cumsum(bad & seen, axis=1)
        since.append(process.log_e(np.stack([own, np.cumsum(seen, axis=1) - own], axis=-1)))
    mixed = log_mix_stages(since[0], np.stack(since, axis=-1))
    assert _share_that_ever_crosses(mixed) <= ALPHA


@pytest.mark.parametrize("dependent", [False, True], ids=["independent gates", "gates that err together"])
def test_merged_gates_stay_within_alpha_together(dependent: bool) -> None:
    rng = np.random.default_rng(5)
    gates, looks = 4, 500
    draws = rng.random((RUNS, looks, 1 if dependent else gates)) * np.ones(gates)
    bad = np.cumsum(draws < 0.05, axis=1)
    n = np.arange(1, looks + 1)[:, None]
    log_e = rate_above(0.05).log_e(np.stack([bad, n - bad], axis=-1))
    assert _share_that_ever_crosses(log_merge(log_e, [1 / gates] * gates)) <= ALPHA


# Power


@pytest.mark.parametrize(
    ("process", "probabilities", "at_most"),
    [
        (rate_above(0.01), (0.02, 0.98), 1800),
        (rate_above(0.001), (0.01, 0.99), 600),
        (mean_above(0.02), (0.09, 0.04, 0.87), 2100),
    ],
    ids=["errors 2 % against 1 %", "1 % of large score differences against .1 %", "a drop of 5 points against 2"],
)
def test_regressions_are_found_about_as_fast_as_published(
    process: Process, probabilities: tuple[float, ...], at_most: int
) -> None:
    """The published medians are for gates merged with others; one process alone must not be slower."""
    rng = np.random.default_rng(3)
    counts = _cumulated(rng.choice(len(probabilities), size=(200, 3000), p=probabilities), len(probabilities))
    over = process.log_e(counts) >= LEVEL
    delays = np.where(over.any(axis=1), over.argmax(axis=1), 10**9)
    assert float(np.median(delays)) <= at_most
