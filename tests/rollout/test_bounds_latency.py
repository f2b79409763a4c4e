"""F6, F7 and F8: the latency of two versions. Published values, properties, and promises with and without bursts."""

from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rollout.bounds import (
    block_counts,
    block_sign_above,
    block_sign_below,
    damped,
    design_effect,
    frozen_above,
    mean_above,
    quantile_ratio_above,
    quantile_ratio_interval,
)
from tests.rollout.test_bounds_promises import at_most, crossings

ALPHA = 0.05
Q = 0.95
WIDTH = log(1.1)  # coarse: a test looks at many histograms
BUCKETS = 60
A_LOOK = 100  # requests

Counted = NDArray[np.int64]


# F6: the ratio of quantiles

histograms = st.lists(st.integers(0, 10**6), min_size=8, max_size=8)


def _by_hand(candidate: list[int], baseline: list[int], shift: int, q: float = Q) -> float:
    """The formula, bucket by bucket and bet by bet."""
    n_c, n_b, p0 = sum(candidate), sum(baseline), 1 - q

    def rate(bad: int, n: int, odds: NDArray[np.float64]) -> float:
        p = odds * p0 / (1 - p0 + odds * p0)
        return float(np.logaddexp.reduce(bad * np.log(p / p0) + (n - bad) * np.log((1 - p) / (1 - p0))) - log(len(p)))

    ratios = np.array([1.1, 1.2, 1.4, 1.7, 2, 2.5, 3, 4, 6, 10, 20, 50, 200])
    return min(
        rate(sum(candidate[i + 1 :]), n_c, ratios)
        + rate(sum(baseline[min(max(i - shift, 0), len(baseline) - 1) :]), n_b, 1 / ratios)
        for i in range(len(candidate))
    )


@settings(deadline=None)
@given(candidate=histograms, baseline=histograms, shift=st.integers(-3, 3))
def test_the_quantiles_evidence_is_that_of_the_least_favourable_edge(
    candidate: list[int], baseline: list[int], shift: int
) -> None:
    ratio = exp(shift * WIDTH)
    found = float(quantile_ratio_above(candidate, baseline, q=Q, ratio=ratio, width=WIDTH))
    assert found == pytest.approx(_by_hand(candidate, baseline, shift), rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(candidate=histograms, baseline=histograms, low=st.floats(0.2, 5), high=st.floats(0.2, 5))
def test_a_higher_ratio_of_quantiles_is_harder_to_prove_exceeded(
    candidate: list[int], baseline: list[int], low: float, high: float
) -> None:
    low, high = sorted((low, high))
    easier = float(quantile_ratio_above(candidate, baseline, q=Q, ratio=low, width=WIDTH))
    assert float(quantile_ratio_above(candidate, baseline, q=Q, ratio=high, width=WIDTH)) <= easier + 1e-6


@settings(deadline=None)
@given(candidate=histograms, baseline=histograms, bucket=st.integers(0, 6))
def test_what_becomes_slower_adds_evidence_of_a_slower_candidate(
    candidate: list[int], baseline: list[int], bucket: int
) -> None:
    before = float(quantile_ratio_above(candidate, baseline, q=Q, ratio=1.2, width=WIDTH))
    slower = [*candidate]
    slower[bucket], slower[bucket + 1] = 0, candidate[bucket] + candidate[bucket + 1]
    assert float(quantile_ratio_above(slower, baseline, q=Q, ratio=1.2, width=WIDTH)) >= before - 1e-6


def _latencies(rng: np.random.Generator, runs: int, looks: int, slower: int) -> Counted:
    """Histograms [runs, looks, buckets] of exponential latencies, slower by so many buckets, since the start."""
    edges = np.exp(WIDTH * (np.arange(1, BUCKETS) - 30 - slower))
    beyond = np.array([1.0, *np.exp(-edges), 0.0])
    counts: Counted = rng.multinomial(A_LOOK, -np.diff(beyond), size=(runs, looks)).cumsum(axis=1)
    return counts


def test_a_ratio_of_quantiles_at_its_limit_is_proved_neither_above_nor_below_it() -> None:
    rng, runs, looks, slower = np.random.default_rng(1), 300, 50, 7
    candidate, baseline = _latencies(rng, runs, looks, slower), _latencies(rng, runs, looks, 0)
    above = quantile_ratio_above(candidate, baseline, q=Q, ratio=exp(slower * WIDTH), width=WIDTH)
    below = quantile_ratio_above(baseline, candidate, q=Q, ratio=exp(-slower * WIDTH), width=WIDTH)
    assert at_most(crossings(above, ALPHA), runs) <= ALPHA
    assert at_most(crossings(below, ALPHA), runs) <= ALPHA


def test_the_ratio_of_quantiles_lies_in_its_interval_which_narrows() -> None:
    rng, slower = np.random.default_rng(2), 7
    candidate, baseline = _latencies(rng, 1, 400, slower)[0], _latencies(rng, 1, 400, 0)[0]
    widths = []
    for look in (10, 100, 399):
        low, high = quantile_ratio_interval(candidate[look], baseline[look], q=Q, width=WIDTH, alpha=ALPHA)
        assert low < exp(slower * WIDTH) < high
        widths.append(log(high / low))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 6 * WIDTH


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99))
def test_what_the_quantiles_interval_excludes_is_what_the_process_rejects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidate, baseline = _latencies(rng, 1, 30, 5)[0, -1], _latencies(rng, 1, 30, 0)[0, -1]
    low, high = quantile_ratio_interval(candidate, baseline, q=Q, width=WIDTH, alpha=ALPHA)
    level = -log(ALPHA / 2)
    edge = quantile_ratio_above(candidate, baseline, q=Q, ratio=low, width=WIDTH)
    beyond = quantile_ratio_above(candidate, baseline, q=Q, ratio=low * 1.05, width=WIDTH)
    assert float(edge) >= level > float(beyond)
    turned = quantile_ratio_interval(baseline, candidate, q=Q, width=WIDTH, alpha=ALPHA)
    assert turned == pytest.approx((1 / high, 1 / low))


def test_without_latencies_no_ratio_is_excluded() -> None:
    nothing = [0] * BUCKETS
    assert quantile_ratio_interval(nothing, nothing, q=Q, width=WIDTH, alpha=ALPHA) == (0.0, inf)
    assert float(quantile_ratio_above(nothing, nothing, q=Q, ratio=2.0, width=WIDTH)) == 0.0


def test_a_candidate_three_times_as_slow_is_proved_to_be_more_than_twice_as_slow() -> None:
    rng = np.random.default_rng(3)
    candidate, baseline = _latencies(rng, 100, 60, 12), _latencies(rng, 100, 60, 0)
    log_e = quantile_ratio_above(candidate, baseline, q=Q, ratio=2.0, width=WIDTH)
    assert crossings(log_e, ALPHA) > 90


# F7: a frozen threshold


def test_the_frozen_threshold_is_a_mean_of_paired_differences_against_zero() -> None:
    assert float(frozen_above().log_e((30, 12, 958))) == pytest.approx(2.460506, abs=1e-6)
    assert frozen_above().log_factors == pytest.approx(mean_above(0.0).log_factors)


def test_a_threshold_frozen_from_few_latencies_and_frozen_anew_keeps_the_promise() -> None:
    """Independent exponential latencies, the candidate's of just k times the length: exceeding kτ is as likely."""
    rng, runs, looks = np.random.default_rng(4), 1000, 100
    frozen = np.quantile(rng.exponential(1.0, (runs, 5, 200)), Q, axis=2)  # anew after each 20 looks
    p = np.exp(-np.repeat(frozen, looks // 5, axis=1))
    probabilities = np.stack([p * (1 - p), p * (1 - p), 1 - 2 * p * (1 - p)], axis=-1)
    counts = rng.multinomial(A_LOOK, probabilities).cumsum(axis=1)
    assert at_most(crossings(frozen_above().log_e(counts), ALPHA), runs) <= ALPHA


# F8: the sign of blocks


@pytest.mark.parametrize(("blocks", "expected"), [(10, 5.535609), (9, 4.904661)])
def test_blocks_of_one_sign_have_the_published_value(blocks: int, expected: float) -> None:
    assert float(block_sign_above().log_e((blocks, 0))) == pytest.approx(expected, abs=1e-6)
    assert float(block_sign_below().log_e((0, blocks))) == pytest.approx(expected, abs=1e-6)


def test_six_blocks_of_one_sign_prove_it_and_five_do_not() -> None:
    assert float(block_sign_above().log_e((6, 0))) >= -log(ALPHA) > float(block_sign_above().log_e((5, 0)))


@settings(deadline=None)
@given(sums=st.lists(st.integers(-3, 3), max_size=50), others=st.lists(st.integers(-3, 3), max_size=50))
def test_blocks_of_routers_add_up_ties_are_dropped_and_turned_signs_turn_the_evidence(
    sums: list[int], others: list[int]
) -> None:
    together = block_counts([*sums, *others])
    assert together.tolist() == (block_counts(sums) + block_counts(others)).tolist()
    assert together.tolist() == block_counts([0, *sums, 0, *others]).tolist()
    turned = float(block_sign_below().log_e(block_counts([-each for each in (*sums, *others)])))
    assert float(block_sign_above().log_e(together)) == pytest.approx(turned)


# Bursts in one arm: 20 requests a tick, blocks of 10 ticks, bursts of two ticks on average, 20 times as many exceed

RUNS = 3000
TICKS = 1000
A_TICK = 20
A_BLOCK = 10  # ticks


def _exceeding(rng: np.random.Generator) -> NDArray[np.float64]:
    """The probability that an arm's requests exceed [runs, ticks]; its bursts come and go by themselves."""
    burst, states = np.zeros(RUNS, dtype=np.bool_), np.empty((RUNS, TICKS), dtype=np.bool_)
    for tick in range(TICKS):
        burst = rng.random(RUNS) < np.where(burst, 0.5, 0.02)
        states[:, tick] = burst
    return np.where(states, 0.6, 0.03)


@pytest.fixture(scope="module")
def bursts() -> Counted:
    """(candidate's alone, baseline's alone) exceeding [runs, blocks, 2] where nothing is wrong but bursts."""
    rng = np.random.default_rng(20261121)
    candidate, baseline = _exceeding(rng), _exceeding(rng)
    plus, minus = candidate * (1 - baseline), baseline * (1 - candidate)
    kinds = rng.multinomial(A_TICK, np.stack([plus, minus, 1 - plus - minus], axis=-1))[..., :2]
    alone: Counted = kinds.reshape(RUNS, TICKS // A_BLOCK, A_BLOCK, 2).sum(axis=2)
    return alone


def _frozen_log_e(bursts: Counted) -> NDArray[np.float64]:
    pairs = np.arange(1, bursts.shape[1] + 1) * A_BLOCK * A_TICK
    plus, minus = np.moveaxis(bursts.cumsum(axis=1), -1, 0)
    return np.asarray(frozen_above().log_e(np.stack([plus, minus, pairs - plus - minus], axis=-1)))


def test_bursts_in_one_arm_break_what_takes_pairs_for_independent(bursts: Counted) -> None:
    assert crossings(_frozen_log_e(bursts), ALPHA) > 3 * ALPHA * RUNS


def test_the_sign_of_blocks_holds_under_bursts_in_one_arm(bursts: Counted) -> None:
    sign = np.sign(bursts[..., 0] - bursts[..., 1])
    counts = np.stack([(sign > 0).cumsum(axis=1), (sign < 0).cumsum(axis=1)], axis=-1)
    assert at_most(crossings(block_sign_above().log_e(counts), ALPHA), RUNS) <= ALPHA
    assert at_most(crossings(block_sign_below().log_e(counts), ALPHA), RUNS) <= ALPHA
    assert counts[0, -1].tolist() == block_counts(bursts[0, :, 0] - bursts[0, :, 1]).tolist()


def test_the_frozen_threshold_holds_under_bursts_when_damped_by_what_the_twin_shows(bursts: Counted) -> None:
    """The runs are each other's twins: two deployments of one version, with bursts of the same kind."""
    twins = np.roll(bursts, 1, axis=0)
    squares = ((twins[..., 0] - twins[..., 1]) ** 2).cumsum(axis=1)
    effect = design_effect(squares, twins.sum(axis=-1).cumsum(axis=1), np.arange(1, twins.shape[1] + 1))
    assert float(np.median(effect[:, -1])) > 3
    assert at_most(crossings(damped(_frozen_log_e(bursts), effect), ALPHA), RUNS) <= ALPHA


def test_independent_pairs_have_no_design_effect() -> None:
    sums = np.random.default_rng(5).multinomial(200, (0.05, 0.05, 0.9), size=5000)
    effect = design_effect(((sums[:, 0] - sums[:, 1]) ** 2).sum(), sums[:, :2].sum(), len(sums))
    assert float(effect) == pytest.approx(1.0, abs=0.1)
    assert float(damped(3.0, 1.0)) == pytest.approx(2.0)


def test_a_twin_of_few_blocks_lets_the_frozen_threshold_decide_nothing() -> None:
    assert float(damped(100.0, design_effect(30, 40, 29))) == 0.0
    assert float(damped(99.0, design_effect(0, 0, 30))) == pytest.approx(66.0)


def test_blocks_find_a_candidate_that_exceeds_twice_as_often() -> None:
    rng = np.random.default_rng(6)
    plus, minus = rng.binomial(200, 0.1, (300, 50)), rng.binomial(200, 0.05, (300, 50))
    sign = np.sign(plus - minus)
    counts = np.stack([(sign > 0).cumsum(axis=1), (sign < 0).cumsum(axis=1)], axis=-1)
    assert crossings(block_sign_above().log_e(counts), ALPHA) == 300
