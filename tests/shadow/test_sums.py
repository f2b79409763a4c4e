from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import Array
from shadow.comparators import DELTA_CAP
from shadow.evidence import ArmSums, Evidence, Histogram, Limits, StageSums
from shadow.pair import Arm, Pair, Status
from shadow.rows import SCHEMA, compact, to_table
from shadow.sums import sums
from tests.shadow.builders import COMPARATOR, LIMITS, bad, ok, outcome, pair, pairs


def evidence_of(some: Iterable[Pair], limits: Limits = LIMITS) -> Evidence:
    return sums(to_table([compact(each, "scores") for each in some], COMPARATOR, 0), limits)


def spelled_out(one: Pair) -> Evidence:
    """The same sums by plain loops over the pair: what the vectorised ones must agree with."""
    arms = {arm: ArmSums() for arm in Arm}
    for arm in Arm:
        arms[arm] += _batch(one, arm)
        for index in range(len(one.rows)):
            arms[arm] += _request(one, arm, index)
    stage = StageSums(baseline=arms[Arm.BASELINE], candidate=arms[Arm.CANDIDATE])
    for index in range(len(one.rows)):
        stage += _pair(one, index)
    return Evidence({one.stage: stage})


IDLE = {Status.ABSENT, Status.REJECTED}  # evidence for nothing


def _status(one: Pair, arm: Arm, index: int) -> Status:
    mine, other = (one.of(each).answers[index].status for each in (arm, arm.other))
    return Status.ERROR if mine is Status.REJECTED and other is Status.OK else mine


def _request(one: Pair, arm: Arm, index: int) -> ArmSums:
    status, latency_ms = _status(one, arm, index), one.latencies_ms[index]
    if status in IDLE:
        return ArmSums()
    failed, answered = status is not Status.OK, one.primary is arm
    return ArmSums(
        requests=1,
        errors=status is Status.ERROR,
        timeouts=status is Status.TIMEOUT,
        malformed=status is Status.MALFORMED,
        answers=int(answered),
        answers_failed=answered and failed,
        answers_over_target=answered and (failed or latency_ms > LIMITS.latency_target_ms),
        answers_over_breach=answered and (failed or latency_ms > LIMITS.latency_breach_ms),
        latency=Histogram.of([round(latency_ms * 1000)] if answered and not failed else []),
    )


def _batch(one: Pair, arm: Arm) -> ArmSums:
    side = one.of(arm)
    statuses = {_status(one, arm, index) for index in range(len(one.rows))} - IDLE
    failed = bool(statuses) and Status.OK not in statuses
    timed = Status.OK in statuses and side.service_ms is not None
    service_ms = side.service_ms or 0.0
    memory = side.peak_memory_bytes
    return ArmSums(
        batches=timed + failed,
        service_us=round(service_ms * 1000) if timed else 0,
        service_over_target=failed or (timed and service_ms > LIMITS.latency_target_ms),
        service_over_breach=failed or (timed and service_ms > LIMITS.latency_breach_ms),
        service=Histogram.of([round(service_ms * 1000)] if timed else []),
        memory_readings=int(memory is not None),
        memory_over=memory is not None and memory > LIMITS.memory_bytes,
        memory_max_bytes=memory or 0,
    )


def _pair(one: Pair, index: int) -> StageSums:
    baseline, candidate = one.baseline.answers[index], one.candidate.answers[index]
    if IDLE & {_status(one, arm, index) for arm in Arm}:
        return StageSums()
    if baseline.outputs is None or candidate.outputs is None:
        return StageSums(
            pairs=1,
            candidate_only_failed=baseline.status is Status.OK,
            baseline_only_failed=candidate.status is Status.OK,
        )
    left, right = baseline.outputs["scores"], candidate.outputs["scores"]
    return sum((_item(*rows) for rows in zip(left, right, strict=True)), StageSums(pairs=1))


def _item(left: Array, right: Array) -> StageSums:
    deltas = [DELTA_CAP]
    if len(left) == len(right):
        deltas = [_delta(float(a), float(b)) for a, b in zip(left, right, strict=True)]
    whole = not (np.isnan(left).any() or np.isnan(right).any())
    in_units = round(max(deltas) * 1e9)
    return StageSums(
        items=1,
        agree=whole and int(left.argmax()) == int(right.argmax()),
        delta_over=max(deltas) > LIMITS.tolerance,
        delta_max_e9=in_units,
        delta_sum_max_e9=in_units,
        delta_sum_mean_e9=round(sum(deltas) / len(deltas) * 1e9),
    )


def _delta(left: float, right: float) -> float:
    if left == right:
        return 0.0
    delta = abs(left - right)
    return delta if delta < DELTA_CAP else DELTA_CAP


@given(some=st.lists(pairs(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_sums_are_those_of_plain_loops_over_the_pairs(some: list[Pair]) -> None:
    assert evidence_of(some) == sum((spelled_out(each) for each in some), Evidence())


@given(some=st.lists(pairs(), min_size=1, max_size=4), cuts=st.lists(st.integers(0, 40)))
@settings(deadline=None)
def test_rows_may_be_cut_anywhere(some: list[Pair], cuts: list[int]) -> None:
    table = to_table([compact(each, "scores") for each in some], COMPARATOR, 7)
    edges = sorted({0, table.num_rows, *(cut % (table.num_rows + 1) for cut in cuts)})
    parts = [table.slice(start, end - start) for start, end in pairwise(edges)]
    assert sum((sums(part, LIMITS) for part in parts), Evidence()) == sums(table, LIMITS)


@given(one=pairs())
@settings(deadline=None)
def test_rows_have_the_schema_and_one_row_per_item(one: Pair) -> None:
    table = to_table([compact(one, "scores")], COMPARATOR, 5)
    assert table.schema.equals(SCHEMA)
    table.validate(full=True)
    assert table.num_rows == sum(max(rows, 1) for rows in one.rows)
    assert table["batch_row"].to_pylist() == list(range(table.num_rows))
    assert set(table["batch"].to_pylist()) == {5}
    assert table["item"].to_pylist() == [item for rows in one.rows for item in range(max(rows, 1))]


def test_no_rows_sum_to_nothing() -> None:
    assert sums(SCHEMA.empty_table(), LIMITS) == Evidence()


def test_an_input_that_both_versions_rejected_is_evidence_for_nothing() -> None:
    rejected = outcome(ok([1, 0, 0]), bad(Status.REJECTED))
    both = evidence_of([pair(rejected, rejected)]).stage(0)
    assert (both.pairs, both.candidate.requests, both.candidate.batches) == (1, 1, 1)
    alone = outcome(bad(Status.REJECTED), peak_memory_bytes=None)
    assert evidence_of([pair(alone, alone)]) == Evidence({0: StageSums()})


@pytest.mark.parametrize("arm", list(Arm))
def test_an_input_that_only_one_version_rejected_is_its_error(arm: Arm) -> None:
    sides = {arm: outcome(bad(Status.REJECTED)), arm.other: outcome(ok([1, 0, 0]))}
    found = evidence_of([pair(sides[Arm.BASELINE], sides[Arm.CANDIDATE])]).stage(0)
    errors = {Arm.BASELINE: found.baseline.errors, Arm.CANDIDATE: found.candidate.errors}
    assert (found.pairs, errors[arm], errors[arm.other]) == (1, 1, 0)
    assert (found.candidate_only_failed, found.baseline_only_failed) == (arm is Arm.CANDIDATE, arm is Arm.BASELINE)


def test_a_candidate_that_failed_as_primary_failed_its_answer_and_is_over_both_limits() -> None:
    timed_out = outcome(bad(Status.TIMEOUT), service_ms=None, peak_memory_bytes=None)
    found = evidence_of([pair(outcome(ok([1, 0, 0])), timed_out, primary=Arm.CANDIDATE)]).stage(0)
    candidate = found.candidate
    assert (candidate.answers, candidate.answers_failed, candidate.timeouts) == (1, 1, 1)
    assert (candidate.answers_over_target, candidate.answers_over_breach) == (1, 1)
    assert (candidate.batches, candidate.service_over_target, candidate.service_over_breach) == (1, 1, 1)
    assert (found.baseline.answers, found.baseline.requests, found.candidate_only_failed) == (0, 1, 1)


def test_a_side_that_never_ran_is_evidence_for_nothing() -> None:
    absent = outcome(bad(Status.ABSENT), service_ms=None, peak_memory_bytes=None)
    found = evidence_of([pair(outcome(ok([1, 0, 0])), absent)]).stage(0)
    assert found.candidate == ArmSums()
    assert (found.pairs, found.items) == (0, 0)
    assert (found.baseline.requests, found.baseline.answers) == (1, 1)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({}, "no output 'scores'"),
        ({"scores": np.array([b"x"], dtype=object)}, "output 'scores' is not numeric"),
        ({"scores": np.zeros((2, 0), np.float32)}, "output 'scores' has 0 values for 2 rows"),
        ({"scores": np.zeros(5, np.float32)}, "output 'scores' has 5 values for 2 rows"),
    ],
)
def test_an_answer_whose_scores_cannot_be_read_is_malformed(outputs: dict[str, Array], reason: str) -> None:
    broken = outcome(type(bad())(status=Status.OK, outputs=outputs))
    one = pair(outcome(ok([1, 0], [1, 0])), broken, rows=[2])
    table = to_table([compact(one, "scores")], COMPARATOR, 0)
    assert table["candidate_status"].to_pylist() == ["malformed"] * 2
    assert table["candidate_error"].to_pylist() == [reason] * 2
    assert table["candidate_scores"].null_count == 2
    assert sums(table, LIMITS).stage(0).candidate.malformed == 1


def test_scores_are_copied_so_that_buffers_can_be_reused() -> None:
    left = np.array([[0.25, 0.75]], np.float32)
    one = pair(outcome(type(bad())(status=Status.OK, outputs={"scores": left})), outcome(ok([0.25, 0.75])))
    taken = compact(one, "scores")
    left[:] = 9
    assert to_table([taken], COMPARATOR, 0)["max_delta"].to_pylist() == [0.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_scores_of_any_numeric_type_are_kept_as_float32(dtype: type) -> None:
    values: Sequence[Sequence[float]] = [[0, 1, 3]]
    side = outcome(type(bad())(status=Status.OK, outputs={"scores": np.array(values, dtype)}))
    table = to_table([compact(pair(side, side), "scores")], COMPARATOR, 0)
    assert table["baseline_scores"].to_pylist() == [[0.0, 1.0, 3.0]]


def test_doubles_beyond_float32_become_infinite_without_a_warning() -> None:
    side = outcome(type(bad())(status=Status.OK, outputs={"scores": np.array([[1e300, 0.0]])}))
    assert evidence_of([pair(side, side)]).stage(0).agree == 1
