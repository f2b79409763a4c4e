"""The judge: what fails, passes, holds and breaks; and its promise, over whole rollouts looked at all the time."""

from dataclasses import dataclass, replace
from functools import cache
from math import isfinite, log
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rollout.bounds import Process, log_merge, log_mix_stages, mean_above, rate_above, rate_below
from rollout.judge import CONFIDENCE_CAP, judge, judge_broken
from rollout.judgement import Doubt, GateResult, Judgement, Verdict
from rollout.policy import Policy, load_policy
from shadow.evidence import ArmSums, Evidence, LabelCells, StageSums
from tests.rollout.sums import healthy, stage_sums
from tests.rollout.test_gates import possible_sums

STAGES = (0, 5, 20, 50, 100)
LONG_S = 10_000.0
LOG_FAIL = log(20)


@cache
def preset(name: str = "equivalence") -> Policy:
    return load_policy(name, Path())


def policy_with(**changes: Any) -> Policy:
    """The preset ``equivalence`` with some fields changed; gates are merged by name."""
    fields = preset().to_json()
    del fields["sha256"]
    gates = {**fields["gates"], **changes.pop("gates", {})}
    return Policy.model_validate({**fields, **changes, "gates": {name: gate for name, gate in gates.items() if gate}})


def at(evidence: dict[int, StageSums], policy: Policy | None = None, elapsed_s: float = LONG_S) -> Judgement:
    """The judgement at the last stage that has evidence."""
    return judge(
        policy or preset(), Evidence(evidence), stage=max(evidence, default=0), stages=STAGES, elapsed_s=elapsed_s
    )


def of(judgement: Judgement, gate: str) -> GateResult:
    return next(each for each in judgement.gates if each.gate == gate)


# PASS


@pytest.mark.parametrize("name", ["equivalence", "improvement"])
def test_a_healthy_candidate_passes_every_stage_on_that_stages_evidence(name: str) -> None:
    evidence: dict[int, StageSums] = {}
    for stage, weight in enumerate(STAGES):
        evidence[stage] = healthy(8000, answered=weight > 0)
        judgement = at(evidence, preset(name))
        assert judgement.verdict is Verdict.PASS, judgement.reason
        assert judgement.confidence >= 0.95
        assert judgement.reason.startswith("every binding gate is healthy; weakest: ")
        assert judgement.log_m < LOG_FAIL


def test_the_confidence_of_a_pass_is_that_of_the_weakest_gate() -> None:
    judgement = at({0: healthy(4500)})
    weakest = min(each.log_e_health for each in judgement.gates if each.log_e_health is not None)
    assert judgement.verdict is Verdict.PASS
    assert judgement.confidence == pytest.approx(1 - np.exp(-weakest))


def test_passing_takes_the_minimum_of_requests() -> None:
    judgement = at({0: healthy(8000)}, policy_with(min_requests=9000))
    assert judgement.verdict is Verdict.HOLD
    assert judgement.reason == "waiting for the stage's minimum of requests (1000 more)"


def test_passing_takes_the_bake_time_of_the_stage() -> None:
    policy = policy_with(stages={"5": {"bake_s": 3000.0}})
    first = at({0: healthy(8000)}, policy, elapsed_s=600)
    second = at({0: healthy(8000), 1: healthy(8000, answered=True)}, policy, elapsed_s=600)
    assert first.verdict is Verdict.PASS
    assert second.verdict is Verdict.HOLD
    assert second.reason == "waiting for its bake time (40 min more)"


# FAIL


@pytest.mark.parametrize(
    ("sums", "gate"),
    [
        (stage_sums(requests=2000, failures=100), "error_rate"),
        (stage_sums(requests=2000, batches=500, slow_batches=100), "latency"),
        (stage_sums(requests=2000, batches=500, readings_over=1), "memory"),
        (stage_sums(requests=2000, items=2000, deltas_over=40), "score_delta"),
        (stage_sums(requests=2000, both=1000, lost=200, gained=50, neither=750), "compliance"),
    ],
    ids=["error_rate", "latency", "memory", "score_delta", "compliance"],
)
def test_each_gate_alone_rolls_back_a_clear_regression(sums: StageSums, gate: str) -> None:
    judgement = at({0: sums})
    assert judgement.verdict is Verdict.FAIL
    assert of(judgement, gate).verdict is Verdict.FAIL
    assert gate in judgement.reason
    assert judgement.confidence >= 0.95


def test_a_deterministic_breach_fails_at_once_and_with_the_highest_confidence() -> None:
    judgement = at({0: stage_sums(requests=4, batches=1, readings_over=1)}, elapsed_s=1)
    assert (judgement.verdict, judgement.confidence) == (Verdict.FAIL, CONFIDENCE_CAP)
    assert judgement.reason == "memory: 1 of 1 batches over 500 MB, peak 600 MB"
    assert judgement.log_m < LOG_FAIL


def test_no_gate_fails_by_itself_at_one_over_alpha() -> None:
    """One gate of four must reach 4/α by itself: at 1/α each, four gates would err four times as often."""
    judgement = at({0: stage_sums(requests=1000, failures=30)})
    harm = of(judgement, "error_rate").log_e_harm
    assert harm is not None
    assert LOG_FAIL < harm < log(4 * 20)
    assert of(judgement, "error_rate").verdict is Verdict.HOLD
    assert judgement.verdict is Verdict.HOLD


def test_gates_that_each_prove_too_little_can_fail_together() -> None:
    sums = stage_sums(requests=1000, failures=30, items=1000, deltas_over=6, batches=400, slow_batches=38)
    judgement = at({0: sums})
    assert judgement.verdict is Verdict.FAIL
    assert not [each for each in judgement.gates if each.verdict is Verdict.FAIL]
    assert judgement.reason.startswith("harm proved, M = ")
    assert "error_rate: 3 % (30 of 1000 requests), E = " in judgement.reason


def test_harm_outweighs_health() -> None:
    clean_now = healthy(8000, answered=True)
    judgement = at({0: stage_sums(requests=3000, failures=600), 1: clean_now})
    assert of(judgement, "error_rate").log_e_health is not None
    assert judgement.verdict is Verdict.FAIL


def test_the_confidence_of_a_failure_is_what_m_proves() -> None:
    judgement = at({0: stage_sums(requests=1000, failures=35)})
    assert judgement.verdict is Verdict.FAIL
    assert judgement.confidence == pytest.approx(1 - np.exp(-judgement.log_m))


# HOLD and ERROR


def test_without_data_every_gate_holds() -> None:
    judgement = at({}, elapsed_s=0)
    assert judgement.verdict is Verdict.HOLD
    assert {each.verdict for each in judgement.gates} == {Verdict.HOLD}
    assert "error_rate (no requests yet)" in judgement.reason
    assert judgement.confidence == 0.0


def test_one_gate_without_data_holds_a_rollout_that_is_otherwise_healthy() -> None:
    unlabelled = replace(healthy(8000), labels=LabelCells())
    judgement = at({0: unlabelled})
    assert judgement.verdict is Verdict.HOLD
    assert judgement.reason == "waiting for compliance (no labelled items yet)"


def test_a_hold_says_what_is_missing_in_numbers_and_in_time() -> None:
    judgement = at({0: healthy(200)}, elapsed_s=100)
    result = of(judgement, "error_rate")
    assert judgement.verdict is Verdict.HOLD
    assert result.missing_requests is not None
    assert f"≈ {result.missing_requests} more requests, ≈ " in result.reason
    assert "95 % interval 0 … " in result.reason
    assert f"error_rate (≈ {result.missing_requests} more requests, ≈ " in judgement.reason


def test_a_gate_that_will_not_get_there_says_so() -> None:
    judgement = at({0: stage_sums(requests=4000, failures=50)})
    assert "error_rate (not on course at the present rate)" in judgement.reason


def test_the_confidence_of_a_hold_is_what_is_proved_of_either_side() -> None:
    assert at({0: healthy(100)}).confidence == 0.0


@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        (ArmSums(requests=3, errors=2, timeouts=2), "4 of 3 failed requests"),
        (ArmSums(answers=1, answers_over_breach=2), "2 of 1 answers over the latency breach"),
        (ArmSums(batches=-1), "0 of -1 batches over the latency target"),
        (ArmSums(memory_readings=1, memory_over=2), "2 of 1 memory readings over the limit"),
    ],
)
def test_sums_that_cannot_be_true_are_an_error(arm: ArmSums, problem: str) -> None:
    judgement = at({0: StageSums(candidate=arm), 1: healthy(8000, answered=True)})
    assert judgement.verdict is Verdict.ERROR
    assert judgement.reason == f"evidence is broken: {problem}"


def test_negative_labels_are_an_error() -> None:
    assert at({0: StageSums(labels=LabelCells(both=-1))}).verdict is Verdict.ERROR


def test_a_broken_source_is_an_error_of_every_gate_and_proves_nothing() -> None:
    judgement = judge_broken(preset("improvement"), "router 2 is silent")
    assert judgement.verdict is Verdict.ERROR
    assert judgement.confidence == 0.0
    assert {(each.verdict, each.reason, each.n) for each in judgement.gates} == {
        (Verdict.ERROR, "router 2 is silent", 0)
    }
    assert not of(judgement, "score_delta").binding


@pytest.mark.parametrize("stage", [-1, 5])
def test_a_stage_that_the_rollout_does_not_have_is_refused(stage: int) -> None:
    with pytest.raises(ValueError, match="of a rollout with 5 stages"):
        judge(preset(), Evidence(), stage=stage, stages=STAGES, elapsed_s=0)


# Doubts

GAP = Doubt(reason="coverage is biased: slice gate: 0 % mirrored, 81 % over all")
TWIN = Doubt(reason="environment out of model: the twin failed", over_fail=True)


def doubted(sums: StageSums, *doubts: Doubt, elapsed_s: float = LONG_S) -> Judgement:
    return judge(preset(), Evidence({0: sums}), stage=0, stages=STAGES, elapsed_s=elapsed_s, doubts=doubts)


@pytest.mark.parametrize("doubt", [GAP, TWIN], ids=["coverage", "twin"])
def test_a_doubt_turns_a_pass_into_a_hold_with_its_reason(doubt: Doubt) -> None:
    judgement = doubted(healthy(8000), doubt)
    assert (judgement.verdict, judgement.reason) == (Verdict.HOLD, doubt.reason)
    assert judgement.confidence == 0.0
    assert judgement.gates == at({0: healthy(8000)}).gates


def test_a_doubt_is_said_beside_what_else_is_missing() -> None:
    judgement = doubted(healthy(8000), GAP, TWIN, elapsed_s=0)
    assert judgement.verdict is Verdict.HOLD
    assert judgement.reason == f"{GAP.reason}; {TWIN.reason}; waiting for its bake time (10 min more)"


def test_only_a_doubt_that_is_over_fail_holds_what_e_values_would_roll_back() -> None:
    harm = stage_sums(requests=2000, failures=100)
    assert doubted(harm, GAP) == at({0: harm})
    judgement = doubted(harm, GAP, TWIN)
    assert judgement.verdict is Verdict.HOLD
    assert judgement.reason == f"{GAP.reason}; {TWIN.reason}; the candidate: {at({0: harm}).reason}"


def test_no_doubt_hides_a_deterministic_breach() -> None:
    breach = stage_sums(requests=4, batches=1, readings_over=1)
    assert doubted(breach, GAP, TWIN) == at({0: breach})


@settings(deadline=None, max_examples=30)
@given(sums=possible_sums(), doubts=st.lists(st.sampled_from([GAP, TWIN]), min_size=1, max_size=2))
def test_doubts_make_no_verdict_but_hold(sums: StageSums, doubts: list[Doubt]) -> None:
    without, judgement = at({0: sums}), doubted(sums, *doubts)
    assert judgement.verdict in (without.verdict, Verdict.HOLD)
    assert judgement.verdict is not Verdict.PASS
    assert (judgement.gates, judgement.log_m) == (without.gates, without.log_m)


# Advisory gates, and gates that bind at some stages


def test_an_advisory_gate_is_reported_and_decides_nothing() -> None:
    sums = replace(healthy(8000), delta_over=7000)
    judgement = at({0: sums}, preset("improvement"))
    assert of(judgement, "score_delta").verdict is Verdict.FAIL
    assert not of(judgement, "score_delta").binding
    assert judgement.verdict is Verdict.PASS
    assert judgement.log_m < LOG_FAIL


def test_an_advisory_breach_is_reported_and_decides_nothing() -> None:
    sums = replace(healthy(8000), candidate=replace(healthy(8000).candidate, memory_over=5))
    judgement = at({0: sums}, policy_with(gates={"memory": {"mode": "advisory"}}))
    assert of(judgement, "memory").breach
    assert judgement.verdict is Verdict.PASS


def test_a_gate_that_binds_later_neither_holds_nor_fails_before_and_never_for_what_it_then_saw() -> None:
    policy = policy_with(gates={"error_rate": {"stages": [20, 50, 100]}})
    failing = replace(healthy(8000), candidate=replace(healthy(8000).candidate, errors=4000))
    assert at({0: failing}, policy).verdict is Verdict.PASS
    later = at({0: failing, 2: healthy(8000, answered=True)}, policy)
    assert later.verdict is Verdict.PASS
    assert of(later, "error_rate").binding
    again = stage_sums(requests=8000, failures=4000)
    assert at({0: failing, 2: again}, policy).verdict is Verdict.FAIL


def test_weights_of_merging_do_not_change_between_stages() -> None:
    """M is the mean over four gates also where one of them does not bind yet."""
    policy = policy_with(gates={"compliance": {"stages": [100]}})
    judgement = at({0: stage_sums(requests=1000, failures=35)}, policy)
    harms = {each.gate: each.log_e_harm or 0.0 for each in judgement.gates}
    harms["compliance"] = 0.0  # it does not bet before it binds
    merged = [harms[name] for name in ("error_rate", "latency", "score_delta", "compliance")]
    assert judgement.log_m == pytest.approx(float(log_merge(merged, [0.25] * 4)))


# Properties


@settings(deadline=None, max_examples=30)
@given(stages=st.lists(possible_sums(), min_size=1, max_size=5), elapsed_s=st.floats(0, 1e6))
def test_whatever_is_possible_gives_a_finite_judgement_of_one_line_that_json_can_hold(
    stages: list[StageSums], elapsed_s: float
) -> None:
    judgement = at(dict(enumerate(stages)), preset("improvement"), elapsed_s)
    assert isfinite(judgement.log_m)
    assert 0 <= judgement.confidence <= CONFIDENCE_CAP
    assert orjson.loads(orjson.dumps(judgement))["confidence"] == judgement.confidence
    assert all(text and "\n" not in text for text in (judgement.reason, *(each.reason for each in judgement.gates)))
    assert "nan" not in judgement.reason
    healthy_all = all(each.verdict is Verdict.PASS for each in judgement.gates if each.binding)
    assert healthy_all or judgement.verdict is not Verdict.PASS


@settings(deadline=None, max_examples=30)
@given(sums=possible_sums(), order=st.permutations(list(preset().gates)))
def test_the_order_of_gates_does_not_matter(sums: StageSums, order: list[str]) -> None:
    shuffled = preset().model_copy(update={"gates": {name: preset().gates[name] for name in order}})
    one, other = at({0: sums}), at({0: sums}, shuffled)
    assert one.verdict is other.verdict
    assert one.log_m == pytest.approx(other.log_m)
    assert one.confidence == pytest.approx(other.confidence)


@settings(deadline=None, max_examples=30)
@given(failures=st.integers(0, 500), more=st.integers(1, 500))
def test_more_failures_never_make_it_look_better(failures: int, more: int) -> None:
    few, many = (at({0: stage_sums(requests=1000, failures=each)}) for each in (failures, failures + more))
    assert many.log_m >= few.log_m
    worse = [Verdict.PASS, Verdict.HOLD, Verdict.ERROR, Verdict.FAIL]
    assert worse.index(many.verdict) >= worse.index(few.verdict)


# The promise, by simulation


@dataclass(frozen=True, slots=True)
class Simulated:
    """Counts after each look of many rollouts, by kind of observation: [runs, looks, kinds]. A stage is equal looks."""

    requests: NDArray[np.int64]  # (bad, good)
    batches: NDArray[np.int64]  # (over, within)
    answers: NDArray[np.int64]  # (over, within)
    items: NDArray[np.int64]  # (over, within)
    labels: NDArray[np.int64]  # (lost, gained, equal)

    @property
    def looks(self) -> int:
        return int(self.requests.shape[1])

    def log_m(self) -> NDArray[np.float64]:
        """M at every look, by the formulas of STATISTICS.md alone."""
        latency = [self._mixed(stream, rate_above(0.05)) for stream in (self.batches, self.answers)]
        gates = [
            self._mixed(self.requests, rate_above(0.015)),
            log_merge(np.stack(latency, axis=-1), (0.5, 0.5)),
            self._mixed(self.items, rate_above(0.001)),
            self._mixed(self.labels, mean_above(0.02)),
        ]
        return log_merge(np.stack(gates, axis=-1), [0.25] * 4)

    def _mixed(self, counts: NDArray[np.int64], process: Process) -> NDArray[np.float64]:
        starts = [stage * self.looks // len(STAGES) for stage in range(len(STAGES))]
        since = [np.maximum(counts - (counts[:, [start - 1]] if start else 0), 0) for start in starts]
        log_e = [process.log_e(each) for each in since]
        return log_mix_stages(log_e[0], np.stack(log_e, axis=-1))

    def evidence(self, run: int, look: int) -> Evidence:
        """What the judge is given at a look."""
        length = self.looks // len(STAGES)
        return Evidence({stage: self._stage(run, stage * length, look, length) for stage in range(look // length + 1)})

    def _stage(self, run: int, start: int, look: int, length: int) -> StageSums:
        end = min(look, start + length - 1)

        def seen(counts: NDArray[np.int64]) -> list[int]:
            before = counts[run, start - 1] if start else 0
            return [int(each) for each in counts[run, end] - before]

        (failed, ran), (slow, quick), (late, early) = seen(self.requests), seen(self.batches), seen(self.answers)
        (over, within), (lost, gained, equal) = seen(self.items), seen(self.labels)
        return stage_sums(
            requests=failed + ran,
            failures=failed,
            batches=slow + quick,
            slow_batches=slow,
            answers=late + early,
            slow_answers=late,
            items=over + within,
            deltas_over=over,
            lost=lost,
            gained=gained,
            both=equal,
        )


def simulate(rng: np.random.Generator, runs: int, looks: int, per_look: int) -> Simulated:
    """Rollouts of the worst candidate that is still harmless: every limit of harm is met exactly, none exceeded."""

    def stream(n: NDArray[np.int64], *probabilities: float) -> NDArray[np.int64]:
        return np.cumsum(rng.multinomial(n, probabilities, size=(runs, looks)), axis=1)

    every = np.full(looks, per_look)
    weights = np.repeat(STAGES, looks // len(STAGES))
    return Simulated(
        requests=stream(every, 0.015, 0.985),
        batches=stream(every // 4, 0.05, 0.95),
        answers=stream(every * weights // 100, 0.05, 0.95),
        items=stream(every, 0.001, 0.999),
        labels=stream(every // 2, 0.06, 0.04, 0.90),
    )


def test_harmless_rollouts_are_rolled_back_no_more_often_than_promised() -> None:
    """600 rollouts of 5 stages, each looked at 150 times: at most 5 % may ever fail (about 1 % do).

    M is computed at every look; the judge is asked at the look where it is largest, and must say the same.
    """
    simulated = simulate(np.random.default_rng(20261121), runs=600, looks=150, per_look=40)
    log_m = simulated.log_m()
    assert float(np.mean((log_m >= LOG_FAIL).any(axis=1))) <= 0.05
    failed = 0
    for run in range(0, 600, 2):
        worst = int(log_m[run].argmax())
        judgement = judge(
            preset(), simulated.evidence(run, worst), stage=worst // 30, stages=STAGES, elapsed_s=float(worst)
        )
        assert judgement.log_m == pytest.approx(log_m[run, worst])
        failed += judgement.verdict is Verdict.FAIL
    assert failed <= 0.05 * 300


def test_what_is_not_healthy_passes_a_stage_no_more_often_than_promised() -> None:
    """The error rate is at the limit that health must prove it below; everything else is perfect."""
    rng = np.random.default_rng(17)
    runs, looks = 300, 40
    failures = np.cumsum(rng.binomial(100, 0.01, size=(runs, looks)), axis=1)
    n = 100 * np.arange(1, looks + 1)
    log_e = rate_below(0.01).log_e(np.stack([failures, n - failures], axis=-1))
    template = healthy(5000)
    passed = 0
    for run in range(runs):
        look = int(log_e[run].argmax())  # where health looks best the judge is asked
        candidate = replace(template.candidate, requests=int(n[look]), errors=int(failures[run, look]))
        passed += at({0: replace(template, candidate=candidate)}).verdict is Verdict.PASS
    assert passed <= 0.05 * runs


@pytest.mark.parametrize("begins", [0, 2, 4], ids=["from the start", "at 20 %", "at 100 %"])
def test_an_injected_regression_is_caught_wherever_it_begins(begins: int) -> None:
    """4 % of requests fail: found in nearly every rollout within 3000 requests of its beginning."""
    rng = np.random.default_rng(23)
    past = {stage: healthy(8000, answered=stage > 0) for stage in range(begins)}
    caught = 0
    for _ in range(20):
        failures = np.cumsum(rng.binomial(250, 0.04, size=12))
        caught += any(
            at({**past, begins: stage_sums(requests=250 * (look + 1), failures=int(failed))}).verdict is Verdict.FAIL
            for look, failed in enumerate(failures)
        )
    assert caught >= 19
