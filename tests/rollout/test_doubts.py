"""Doubts: what is not covered, and a twin that fires, hold a rollout; and nothing else does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rollout.bounds import rate_above
from rollout.doubts import find_doubts, twin_fired, uncovered
from rollout.judge import judge
from rollout.judgement import Doubt, Judgement, Verdict
from rollout.policy import load_policy
from rollout.traffic import Snapshot
from shadow.accounting import Account, Ledger
from shadow.cells import Cell
from shadow.evidence import ArmSums, Evidence, Noise, StageSums
from tests.rollout.sums import healthy, stage_sums

STAGES = (0, 5, 20, 50, 100)
POLICY = load_policy("equivalence", Path())
LONG_S = 10_000.0

EVEN = Ledger({Cell(3, ""): Account(sampled=9000, mirrored=8000, shed=1000)})
LARGE_ONES_LOST = EVEN + Ledger({Cell(6, ""): Account(sampled=1000, mirrored=120, too_large=880)})


def fired(evidence: Evidence, stage: int = 0) -> Doubt | None:
    return twin_fired(POLICY, evidence, stage=stage, stages=STAGES, elapsed_s=LONG_S)


def with_twin(sums: StageSums, twin: StageSums) -> StageSums:
    """What the candidate did, and what the twin did, which is given as if it were one."""
    noise = Noise(items=twin.items, agree=twin.agree, delta_over=twin.delta_over)
    return replace(sums, twin=twin.candidate, noise=noise)


def judged(sums: StageSums, coverage: Ledger = EVEN) -> Judgement:
    """As the controller asks: first for doubts, then for the judgement."""
    snapshot = Snapshot(evidence=Evidence({0: sums}), heads=(), accounting={}, coverage=coverage)
    doubts = find_doubts(POLICY, snapshot, stage=0, stages=STAGES, elapsed_s=LONG_S)
    return judge(POLICY, snapshot.evidence, stage=0, stages=STAGES, elapsed_s=LONG_S, doubts=doubts)


# Coverage


def test_a_pass_with_biased_coverage_is_a_hold_that_names_the_bucket() -> None:
    judgement = judged(healthy(8000), LARGE_ONES_LOST)
    assert judgement.verdict is Verdict.HOLD
    assert judgement.reason == ("coverage is biased: requests of 1 MiB … 4 MiB: 12 % mirrored, 81.2 % over all")


def test_biased_coverage_hides_no_failure() -> None:
    for harm in (stage_sums(requests=2000, failures=100), stage_sums(requests=4, batches=1, readings_over=1)):
        assert judged(harm, LARGE_ONES_LOST) == judged(harm)
        assert judged(harm).verdict is Verdict.FAIL


def test_coverage_without_bias_is_no_doubt() -> None:
    snapshot = Snapshot(evidence=Evidence({0: healthy(8000)}), heads=(), accounting={})
    assert uncovered(snapshot) is None
    assert uncovered(replace(snapshot, coverage=EVEN)) is None
    assert uncovered(replace(snapshot, coverage=LARGE_ONES_LOST)) == Doubt(
        reason="coverage is biased: requests of 1 MiB … 4 MiB: 12 % mirrored, 81.2 % over all"
    )


# The twin


@pytest.mark.parametrize(
    ("twin", "gate"),
    [
        (stage_sums(requests=2000, failures=100), "error_rate"),
        (stage_sums(requests=2000, batches=500, slow_batches=100), "latency"),
        (stage_sums(requests=2000, batches=500, readings_over=1), "memory"),
        (stage_sums(requests=2000, items=2000, deltas_over=40), "score_delta"),
    ],
    ids=["error_rate", "latency", "memory", "score_delta"],
)
def test_a_twin_that_a_gate_would_roll_back_holds_the_rollout_whatever_the_candidate_does(
    twin: StageSums, gate: str
) -> None:
    for sums in (healthy(8000), stage_sums(requests=2000, failures=100)):
        judgement = judged(with_twin(sums, twin))
        assert judgement.verdict is Verdict.HOLD
        assert judgement.reason.startswith("environment out of model: the baseline's twin: ")
        assert gate in judgement.reason


def test_what_a_twin_overrules_is_said_all_the_same() -> None:
    slow = stage_sums(requests=2000, batches=500, slow_batches=100)
    judgement = judged(with_twin(stage_sums(requests=2000, failures=100), slow))
    assert "; the candidate: harm proved, M = " in judgement.reason
    assert "error_rate: " in judgement.reason


def test_a_twin_that_fires_hides_no_deterministic_breach() -> None:
    breach = stage_sums(requests=2000, batches=500, readings_over=1)
    judgement = judged(with_twin(breach, stage_sums(requests=2000, failures=100)))
    assert judgement.verdict is Verdict.FAIL
    assert judgement.reason == "memory: 1 of 500 batches over 500 MB, peak 600 MB"


def test_a_twin_that_is_well_changes_nothing() -> None:
    twin = replace(healthy(800), labels=stage_sums().labels)
    for sums in (healthy(8000), healthy(100), stage_sums(requests=2000, failures=100)):
        assert judged(with_twin(sums, twin)) == judged(sums)


def test_without_a_twin_there_is_no_doubt_of_it() -> None:
    assert fired(Evidence({0: stage_sums(requests=2000, failures=100)})) is None
    assert fired(Evidence()) is None


def test_a_twin_whose_sums_cannot_be_true_is_a_doubt_that_hides_no_failure() -> None:
    impossible = replace(healthy(8000), twin=ArmSums(requests=3, errors=4))
    doubt = fired(Evidence({0: impossible}))
    assert doubt == Doubt(reason="the baseline's twin: evidence is broken: 4 of 3 failed requests")


def test_a_twin_that_fired_at_an_earlier_stage_is_not_forgotten() -> None:
    bad = with_twin(healthy(8000), stage_sums(requests=2000, failures=100))
    doubt = fired(Evidence({0: bad, 1: healthy(8000, answered=True)}), stage=1)
    assert doubt is not None
    assert doubt.over_fail


def test_a_harmless_twin_fires_no_more_often_than_promised() -> None:
    """200 rollouts whose baseline fails just as often as is harmless, 40 looks each: at most 5 % are ever held for it.

    The twin is judged at the look where it seems worst.
    """
    failures = np.cumsum(np.random.default_rng(11).binomial(100, 0.015, size=(200, 40)), axis=1)
    n = 100 * np.arange(1, 41)
    worst = rate_above(0.015).log_e(np.stack([failures, n - failures], axis=-1)).argmax(axis=1)
    held = 0
    for run, look in enumerate(worst):
        twin = stage_sums(requests=int(n[look]), failures=int(failures[run, look]))
        held += fired(Evidence({0: with_twin(healthy(8000), twin)})) is not None
    assert held <= 0.05 * 200
