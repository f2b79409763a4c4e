"""Each gate: no data is not healthy, harm is proved, health is certified, and what is missing is said."""

from math import isfinite, log
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.gates import GATES
from rollout.gates.compliance import Compliance
from rollout.gates.compliance_uplift import ComplianceUplift
from rollout.gates.contract import Gate, Look, Reading
from rollout.gates.error_rate import ErrorRate
from rollout.gates.latency import Latency
from rollout.gates.memory import Memory
from rollout.gates.score_delta import ScoreDelta
from rollout.gates.text import duration, e_value, number, percent, signed, span
from shadow.evidence import StageSums
from tests.rollout.sums import OK_MS, healthy, stage_sums

WEIGHTS = (0, 5, 20, 50, 100)
LEVEL = log(20)
ALL_GATES = [pytest.param(gate, id=name) for name, gate in GATES.items()]


def look(*sums: StageSums, stage: int | None = None, bets: tuple[bool, ...] = (True,) * 5) -> Look:
    """A look at a rollout whose last given stage is the present one."""
    every = (*sums, *[StageSums()] * (len(WEIGHTS) - len(sums)))
    present = max(len(sums) - 1, 0) if stage is None else stage
    return Look(sums=every, weights=WEIGHTS, stage=present, bets=bets, alpha=0.05, beta=0.05)


def harm(reading: Reading) -> float:
    assert reading.log_e_harm is not None
    return reading.log_e_harm


# Every gate


@pytest.mark.parametrize("gate", ALL_GATES)
@pytest.mark.parametrize("stage", [0, 2], ids=["in shadow", "in canary"])
def test_without_data_no_gate_is_healthy_and_none_proves_harm(gate: type[Gate], stage: int) -> None:
    reading = gate().read(look(stage=stage))
    assert not reading.healthy
    assert reading.n == 0
    assert reading.finding == f"no {reading.counted} yet"
    assert reading.estimate is None
    assert reading.interval is None
    assert reading.missing is None
    assert reading.breach is None
    assert (reading.log_e_harm or 0.0) == pytest.approx(0.0)


@pytest.mark.parametrize("gate", ALL_GATES)
def test_a_healthy_candidate_passes_every_gate_in_shadow_and_in_canary(gate: type[Gate]) -> None:
    for each in (look(healthy(8000)), look(healthy(8000), healthy(8000, answered=True))):
        reading = gate().read(each)
        assert reading.healthy
        assert reading.missing == 0
        assert (reading.log_e_harm or 0.0) < 0.5
        assert reading.breach is None


@pytest.mark.parametrize("gate", ALL_GATES)
def test_what_was_healthy_at_an_earlier_stage_must_be_shown_anew(gate: type[Gate]) -> None:
    assert not gate().read(look(healthy(8000), StageSums())).healthy


def test_gates_say_which_requirement_they_serve_and_their_limits() -> None:
    said = {name: (gate.requirement, gate().threshold()) for name, gate in GATES.items()}
    assert said == {
        "error_rate": ("R2", "< 1 % to advance, > 1.5 % rolls back"),
        "latency": ("R1", "p95 < 500 ms to advance, > 505 ms rolls back"),
        "memory": ("R4", "≤ 500 MB in every batch, over it rolls back"),
        "score_delta": ("R7", "|Δscore| over tolerance in < 0.1 % of items to advance, in > 0.1 % rolls back"),
        "compliance": ("R5", "drop < 2 points to advance, > 2 points rolls back"),
        "compliance_uplift": ("R5", "uplift > 10 % relative and lower bound > 0 to advance"),
    }


counts = st.integers(0, 3000)
shares = st.floats(0, 1)


@st.composite
def possible_sums(draw: st.DrawFn) -> StageSums:
    wholes = {name: draw(counts) for name in ("requests", "batches", "answers", "items")}
    return stage_sums(
        **wholes,
        failures=round(draw(shares) * wholes["requests"]),
        slow_batches=round(draw(shares) * wholes["batches"]),
        slow_answers=round(draw(shares) * wholes["answers"]),
        deltas_over=round(draw(shares) * wholes["items"]),
        readings_over=round(draw(shares) * wholes["batches"]),
        **{name: draw(counts) for name in ("gained", "lost", "both", "neither")},
    )


@settings(deadline=None, max_examples=40)
@given(stages=st.lists(possible_sums(), min_size=1, max_size=5))
def test_readings_of_whatever_is_possible_are_finite_and_consistent(stages: list[StageSums]) -> None:
    for gate in GATES.values():
        reading = gate().read(look(*stages))
        for value in (reading.estimate, reading.log_e_harm, reading.log_e_health):
            assert value is None or isfinite(value)
        if reading.interval is not None and reading.estimate is not None:
            low, high = reading.interval
            assert isfinite(low)
            assert isfinite(high)
            slack = 0.02 * abs(reading.estimate) + 1e-6  # a bucket of latencies is 1 % wide
            assert low - slack <= reading.estimate <= high + slack
        assert not reading.healthy or reading.missing == 0


# Errors


def test_failures_of_mirrored_and_served_requests_count_alike() -> None:
    reading = ErrorRate().read(look(stage_sums(requests=1000, failures=40)))
    assert reading.finding == "4 % (40 of 1000 requests)"
    assert harm(reading) > LEVEL
    assert not reading.healthy
    assert reading.missing is None
    assert reading.harm == "failure rate > 1.5 %: 40 of 1000 requests over the rollout"


def test_between_the_limits_a_candidate_neither_advances_nor_fails() -> None:
    reading = ErrorRate().read(look(stage_sums(requests=4000, failures=50)))
    assert harm(reading) < 0
    assert not reading.healthy


def test_the_strict_limit_of_one_percent_is_a_matter_of_policy() -> None:
    sums = stage_sums(requests=5000, failures=110)
    strict = ErrorRate(advance_below=0.01, roll_back_above=0.01)
    assert harm(strict.read(look(sums))) > LEVEL
    assert harm(strict.read(look(sums))) > harm(ErrorRate().read(look(sums)))


def test_missing_requests_are_what_it_then_takes() -> None:
    reading = ErrorRate().read(look(stage_sums(requests=100)))
    assert reading.missing is not None
    assert ErrorRate().read(look(stage_sums(requests=100 + reading.missing))).healthy
    assert not ErrorRate().read(look(stage_sums(requests=98 + reading.missing))).healthy


def test_a_regression_that_begins_late_is_seen_through_a_long_clean_past() -> None:
    clean, bad = stage_sums(requests=50_000), stage_sums(requests=1000, failures=60)
    assert harm(ErrorRate().read(look(clean, clean, bad))) > LEVEL


def test_what_was_seen_while_a_gate_only_advised_never_weighs_as_harm() -> None:
    bad, clean = stage_sums(requests=1000, failures=200), stage_sums(requests=100)
    advised_in_shadow = (False, True, True, True, True)
    assert harm(ErrorRate().read(look(bad, clean))) > LEVEL
    assert harm(ErrorRate().read(look(bad, clean, bets=advised_in_shadow))) < 0


# Latency


def test_shadow_reads_service_time_and_canary_end_to_end_latency() -> None:
    slow_service = stage_sums(batches=400, slow_batches=100, answers=400)
    shadow, canary = Latency().read(look(slow_service)), Latency().read(look(StageSums(), slow_service))
    assert (shadow.counted, shadow.healthy) == ("batches", False)
    assert (canary.counted, canary.healthy) == ("answers", True)
    assert shadow.finding == "p95 605 ms (service time); 25 % of 400 batches over 500 ms"
    assert canary.estimate == pytest.approx(OK_MS, rel=0.01)
    assert canary.unit == "ms"


def test_either_stream_alone_can_prove_harm() -> None:
    service = stage_sums(batches=400, slow_batches=100, answers=400)
    answers = stage_sums(batches=400, answers=400, slow_answers=100)
    for sums in (service, answers):
        reading = Latency().read(look(stage_sums(batches=400), sums))
        assert harm(reading) > LEVEL
        assert "p95 > 505 ms" in reading.harm


def test_just_five_percent_over_the_limit_is_neither_harm_nor_health() -> None:
    reading = Latency().read(look(stage_sums(batches=4000, slow_batches=200)))
    assert harm(reading) < 0
    assert not reading.healthy


def test_the_interval_of_the_quantile_holds_it_and_counts_failures_as_beyond_every_edge() -> None:
    reading = Latency().read(look(stage_sums(batches=4000, slow_batches=100)))
    assert reading.interval is not None
    assert reading.interval[0] <= OK_MS <= reading.interval[1] < 25
    failed = stage_sums(batches=900)
    arm = failed.candidate
    mostly_failed = StageSums(
        candidate=type(arm)(batches=1000, service=arm.service, service_over_target=100, service_over_breach=100)
    )
    assert Latency().read(look(mostly_failed)).interval is None


def test_another_quantile_is_a_matter_of_policy() -> None:
    sums = stage_sums(batches=4000, slow_batches=120)
    assert Latency().read(look(sums)).healthy
    p99 = Latency(quantile=0.99)
    assert not p99.read(look(sums)).healthy
    assert p99.threshold().startswith("p99 < 500 ms")


# Memory


def test_one_reading_over_the_limit_is_a_breach_at_every_later_stage() -> None:
    over = stage_sums(batches=40, readings_over=1)
    for each in (look(over), look(over, healthy(400))):
        assert Memory().read(each).breach == "1 of 40 batches over 500 MB, peak 600 MB" or each.stage == 1
        assert Memory().read(each).breach is not None


def test_memory_is_not_healthy_before_enough_readings() -> None:
    few = Memory(min_readings=50).read(look(stage_sums(batches=49)))
    assert (few.healthy, few.missing) == (False, 1)
    assert Memory(min_readings=50).read(look(stage_sums(batches=50))).healthy


def test_a_replica_that_reports_no_memory_never_passes() -> None:
    assert not Memory().read(look(stage_sums(requests=9000, batches=3000, readings=0))).healthy


# Scores


def test_score_differences_over_tolerance_are_harm_beyond_their_share() -> None:
    reading = ScoreDelta().read(look(stage_sums(items=1000, deltas_over=15)))
    assert harm(reading) > LEVEL
    assert reading.finding == "1.5 % (15 of 1000 items)"


def test_certifying_one_in_a_thousand_takes_thousands_of_items_and_a_wider_share_fewer() -> None:
    sums = look(stage_sums(items=1000))
    strict, wide = ScoreDelta().read(sums), ScoreDelta(advance_below=0.01).read(sums)
    assert strict.missing is not None
    assert 2500 < strict.missing < 3500
    assert wide.healthy


# Compliance


def test_a_drop_and_its_absence_are_proved_separately() -> None:
    dropped = Compliance().read(look(stage_sums(lost=120, gained=20, both=1200, neither=660)))
    undecided = Compliance().read(look(stage_sums(lost=70, gained=30, both=1200, neither=700)))
    equal = Compliance().read(look(stage_sums(lost=20, gained=20, both=1300, neither=660)))
    assert harm(dropped) > LEVEL
    assert not dropped.healthy
    assert harm(undecided) < LEVEL
    assert not undecided.healthy
    assert harm(equal) < 0
    assert equal.healthy
    assert dropped.finding == "−5 points (gained 20, lost 120 of 2000 labelled items)"
    assert dropped.estimate == pytest.approx(-5)
    assert dropped.interval is not None
    assert dropped.interval[1] < 0


def test_an_uplift_is_healthy_when_more_than_ten_percent_is_proved() -> None:
    proved = ComplianceUplift().read(look(stage_sums(both=500, lost=60, gained=260, neither=180, items=1000)))
    assert proved.healthy
    assert proved.log_e_health == pytest.approx(29.815829, abs=1e-6)
    assert proved.estimate == pytest.approx(100 * 200 / 560)
    assert proved.interval is not None
    assert proved.interval[0] > 10
    assert proved.finding == "+35.7 % relative (56 % → 76 % of 1000 labelled items), conflict rate 10 %"


def test_an_uplift_that_is_too_small_is_not_on_course_and_no_harm() -> None:
    reading = ComplianceUplift().read(look(stage_sums(both=700, lost=40, gained=60, neither=200)))
    assert not reading.healthy
    assert reading.missing is None
    assert reading.log_e_harm is None
    assert "conflict rate unknown" in reading.finding


def test_an_uplift_over_a_baseline_that_is_never_right_has_no_interval_yet() -> None:
    reading = ComplianceUplift().read(look(stage_sums(gained=5, neither=20)))
    assert reading.estimate is None
    assert reading.interval is None
    assert reading.finding.startswith("baseline never right")


# Spelling


@pytest.mark.parametrize(
    ("spelt", "expected"),
    [
        (percent(0.015), "1.5 %"),
        (number(1234.4), "1234"),
        (signed(-2.0), "−2"),
        (e_value(log(23.14)), "23.1"),
        (e_value(1e9), "10^434294482"),
        (e_value(-1e9), "10^-434294482"),
        (span((0.1, 2.0), "%"), "0.1 … 2 %"),
        (duration(12.4), "12 s"),
        (duration(90.0), "1.5 min"),
        (duration(7200.0), "2 h"),
    ],
)
def test_numbers_are_spelt_for_people(spelt: str, expected: str) -> None:
    assert spelt == expected


def test_a_limit_is_a_field_of_its_gate() -> None:
    limits: dict[str, Any] = {name: sorted(set(gate.model_fields) - {"mode", "stages"}) for name, gate in GATES.items()}
    assert limits == {
        "error_rate": ["advance_below", "roll_back_above"],
        "latency": ["advance_below_ms", "quantile", "roll_back_above_ms"],
        "memory": ["limit_bytes", "min_readings"],
        "score_delta": ["advance_below", "roll_back_above"],
        "compliance": ["drop_points"],
        "compliance_uplift": ["uplift"],
    }
