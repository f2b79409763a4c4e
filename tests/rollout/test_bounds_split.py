"""F4: split traffic. Its published values, its properties, its promise, and where it does not hold."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rollout.bounds import rate_above, split_above, split_below, split_interval
from tests.rollout.test_bounds_promises import at_most, crossings

ALPHA = 0.05
RUNS = 1000
LOOKS = 200
A_LOOK = 100  # requests

events = st.integers(0, 10**6)
shares = st.floats(0.01, 0.99)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((12, 90, 60, 95), 8.438615), ((5, 95, 25, 75), -1.958182)],
    ids=["worse at both stages", "equal arms"],
)
def test_log_e_has_the_published_value(counts: tuple[int, ...], expected: float) -> None:
    assert float(split_above((0.05, 0.25)).log_e(counts)) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(candidate=events, baseline=events, share=shares)
def test_one_stage_is_the_rate_of_the_candidate_s_among_bad_events_against_its_share(
    candidate: int, baseline: int, share: float
) -> None:
    log_e = float(split_above((share,)).log_e((candidate, baseline)))
    assert log_e == pytest.approx(float(rate_above(share).log_e((candidate, baseline))))
    assert float(split_above((share,)).log_e((candidate + 1, baseline))) >= log_e
    assert float(split_above((share,)).log_e((candidate, baseline + 1))) <= log_e


@settings(deadline=None)
@given(counts=st.tuples(events, events, events, events), share=shares, other=shares)
def test_counts_of_routers_and_of_visits_to_a_stage_add_up(
    counts: tuple[int, int, int, int], share: float, other: float
) -> None:
    first, second = counts[:2], counts[2:]
    added = float(split_above((share,)).log_e(np.add(first, second)))
    assert float(split_above((share, share)).log_e(counts)) == pytest.approx(added, rel=1e-6, abs=1e-6)
    there, back = split_above((share, other)), split_above((other, share))
    assert float(there.log_e(counts)) == pytest.approx(float(back.log_e((*second, *first))), rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(counts=st.tuples(events, events, events, events), low=st.floats(0.1, 10), high=st.floats(0.1, 10))
def test_a_higher_ratio_is_harder_to_prove_exceeded(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    low, high = sorted((low, high))
    harm = split_above((0.05, 0.25), (low, high)).log_e(counts)
    health = split_below((0.05, 0.25), (low, high)).log_e(counts)
    assert harm[1] <= harm[0] + 1e-6
    assert health[1] >= health[0] - 1e-6


@pytest.mark.parametrize(("share", "counts"), [(0.0, (0, 7)), (1.0, (7, 0))], ids=["shadow", "all traffic"])
def test_a_stage_at_which_one_version_answers_all_teaches_nothing(share: float, counts: tuple[int, int]) -> None:
    assert float(split_above((share,)).log_e(counts)) == pytest.approx(0.0, abs=1e-9)
    assert float(split_below((share,)).log_e(counts)) == pytest.approx(0.0, abs=1e-9)


def test_shares_in_percent_are_refused() -> None:
    with pytest.raises(ValueError, match=r"within 0 and 1, got \[5.0, 25.0\]"):
        split_above((5, 25))


@settings(deadline=None, max_examples=30)
@given(candidate=events, baseline=events, share=st.floats(0.05, 0.95))
def test_a_ratio_lies_in_its_interval_and_turning_the_versions_round_inverts_it(
    candidate: int, baseline: int, share: float
) -> None:
    low, high = split_interval((candidate, baseline), (share,), ALPHA)
    assert 0 <= low < high <= inf
    if baseline:
        assert low <= candidate / share / (baseline / (1 - share)) <= high
    turned = split_interval((baseline, candidate), (1 - share,), ALPHA)
    assert turned == pytest.approx((1 / high, 1 / low if low else inf), rel=1e-3)


def test_no_bad_event_is_no_evidence_and_an_interval_that_excludes_nothing() -> None:
    assert float(split_above((0.05, 0.25)).log_e((0, 0, 0, 0))) == 0.0
    assert split_interval((0, 0, 0, 0), (0.05, 0.25), ALPHA) == (0.0, inf)


# The promise, looked at every 100 requests


def _bad(rng: np.random.Generator, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """(candidate's, baseline's) bad requests of one look in each run [runs, 2], as bad as each other.

    Inputs come in bursts that both versions fail alike: the rate is twenty times higher at every tenth look.
    """
    rate = np.where(rng.random(len(shares)) < 0.1, 0.2, 0.01)
    answered = rng.binomial(A_LOOK, shares)
    return np.stack([rng.binomial(answered, rate), rng.binomial(A_LOOK - answered, rate)], axis=-1)


def test_stages_that_follow_the_data_and_bursts_of_bad_input_do_not_break_the_promise() -> None:
    """A run leaves its first stage when the candidate looks worst: as soon as two bad requests were its own."""
    rng, stages = np.random.default_rng(20261121), np.array([0.05, 0.25])
    counts, stage = np.zeros((RUNS, 2, 2), dtype=np.int64), np.zeros(RUNS, dtype=np.int64)
    process, log_e = split_above(stages), np.empty((RUNS, LOOKS))
    for look in range(LOOKS):
        counts[np.arange(RUNS), stage] += _bad(rng, stages[stage])
        log_e[:, look] = process.log_e(counts.reshape(RUNS, 4))
        stage = np.maximum(stage, counts[:, 0, 0] >= 2)
    assert at_most(crossings(log_e, ALPHA), RUNS) <= ALPHA


def _sticky(bad_keys: int, *, by_key: bool) -> NDArray[np.float64]:
    """ln E [runs, looks] where 50 keys are routed, some of which send input that both versions fail, every third time.

    The share rises from 5 to 25 % halfway; a key that is the candidate's stays there.
    """
    rng = np.random.default_rng(7)
    position = rng.random((RUNS, 1, bad_keys))
    late = np.arange(LOOKS)[:, None] >= LOOKS // 2
    mine = position < np.where(late, 0.25, 0.05)
    bad = rng.binomial(A_LOOK // 50, 1 / 3, (RUNS, LOOKS, bad_keys))
    if by_key:
        bad = (bad > 0) & (bad.cumsum(axis=1) == bad)  # its first
    kinds = [
        (bad * (mine == whose) * (late == stage)).sum(axis=2) for stage in (False, True) for whose in (True, False)
    ]
    return np.asarray(split_above((0.05, 0.25)).log_e(np.stack(kinds, axis=-1).cumsum(axis=1)))


def test_requests_of_sticky_keys_break_it() -> None:
    assert crossings(_sticky(1, by_key=False), ALPHA) > 3 * ALPHA * RUNS


@pytest.mark.parametrize("bad_keys", [1, 20])
def test_keys_that_count_once_each_do_not(bad_keys: int) -> None:
    assert at_most(crossings(_sticky(bad_keys, by_key=True), ALPHA), RUNS) <= ALPHA


def test_three_times_the_baseline_s_errors_are_found_in_most_rollouts() -> None:
    rng = np.random.default_rng(3)
    answered = rng.binomial(A_LOOK, 0.25, (RUNS, LOOKS))
    bad = np.stack([rng.binomial(answered, 0.03), rng.binomial(A_LOOK - answered, 0.01)], axis=-1).cumsum(axis=1)
    assert crossings(split_above((0.25,)).log_e(bad), ALPHA) > 0.9 * RUNS
