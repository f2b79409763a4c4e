from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import Array
from shadow.comparators import DELTA_CAP, open_comparator
from shadow.errors import EvidenceError
from shadow.evidence import (
    LONGEST_US,
    ArmSums,
    BatchSums,
    DeltaHistogram,
    Evidence,
    Histogram,
    Limits,
    MeasureSums,
    Noise,
    SizeSums,
    SliceSums,
    SliceTable,
    StageSums,
)
from shadow.findings import find, named
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.rows import SCHEMA, Scores, compact, comparison_columns, read_layout, to_table
from shadow.sums import sums
from tests.shadow.builders import COMPARATOR, LIMITS, MEASURES, bad, ok, outcome, pair, pairs
from tests.shadow.comparators_for_tests import Neighbours

CUSTOM = "tests.shadow.comparators_for_tests"


def evidence_of(some: Iterable[Pair], limits: Limits = LIMITS) -> Evidence:
    return sums(to_table([compact(each, COMPARATOR) for each in some], COMPARATOR, 0), limits, MEASURES)


def spelled_out(one: Pair) -> Evidence:
    """The same sums by plain loops over the pair: what the vectorised ones must agree with."""
    arms = {arm: _arm(one, arm, answered=one.primary is arm) for arm in Arm}
    stage = StageSums(baseline=arms[Arm.BASELINE], candidate=arms[Arm.CANDIDATE], sizes=_sizes(one))
    for index in range(len(one.rows)):
        stage += _pair(one, "candidate", index)
    if one.twin is not None:
        stage += _twin(one)
    return Evidence({one.stage: stage})


IDLE = {Status.ABSENT, Status.REJECTED}  # evidence for nothing


def _status(one: Pair, side: str, index: int) -> Status:
    mine: Status = getattr(one, side).answers[index].status
    beside = (one.candidate, one.twin) if side == "baseline" else (one.baseline,)
    took = any(other is not None and other.answers[index].status is Status.OK for other in beside)
    return Status.ERROR if mine is Status.REJECTED and took else mine


def _arm(one: Pair, side: str, *, answered: bool) -> ArmSums:
    total = _batch(one, side)
    for index, latency_ms in enumerate(one.latencies_ms):
        total += _request(_status(one, side, index), latency_ms, answered=answered)
    return total


def _request(status: Status, latency_ms: float, *, answered: bool) -> ArmSums:
    if status in IDLE:
        return ArmSums()
    failed = status is not Status.OK
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


def _batch(one: Pair, side: str) -> ArmSums:
    mine: Outcome = getattr(one, side)
    statuses = {_status(one, side, index) for index in range(len(one.rows))} - IDLE
    failed, well = bool(statuses) and Status.OK not in statuses, Status.OK in statuses
    wall, cpu, gpu = (
        _clock(time_ms if well else None, failed) for time_ms in (mine.service_ms, mine.cpu_ms, mine.gpu_ms)
    )
    memory = mine.peak_memory_bytes
    return ArmSums(
        batches=wall[0].n + failed,
        service=wall[0],
        service_us=wall[1],
        service_over_target=wall[2],
        service_over_breach=wall[3],
        service_cpu=cpu[0],
        service_cpu_us=cpu[1],
        service_cpu_over_target=cpu[2],
        service_cpu_over_breach=cpu[3],
        service_gpu=gpu[0],
        service_gpu_us=gpu[1],
        service_gpu_over_target=gpu[2],
        service_gpu_over_breach=gpu[3],
        memory_readings=int(memory is not None),
        memory_over=memory is not None and memory > LIMITS.memory_bytes,
        memory_max_bytes=memory or 0,
    )


def _clock(time_ms: float | None, failed: bool) -> tuple[Histogram, int, int, int]:
    """Histogram, sum, over the target, over the breach."""
    time_us = [] if time_ms is None else [round(time_ms * 1000)]
    over = [int(failed or (time_ms or 0.0) > limit) for limit in (LIMITS.latency_target_ms, LIMITS.latency_breach_ms)]
    return Histogram.of(time_us), sum(time_us), over[0], over[1]


def _sizes(one: Pair) -> dict[int, SizeSums]:
    rows, size = one.ran_rows or sum(one.rows), 1
    while 2 * size <= rows:
        size *= 2
    found = SizeSums(
        baseline=_of_size(one, "baseline"),
        candidate=_of_size(one, "candidate"),
        twin=_of_size(one, "twin") if one.twin is not None else BatchSums(),
    )
    return {size: found} if found != SizeSums() else {}


def _of_size(one: Pair, side: str) -> BatchSums:
    mine: Outcome = getattr(one, side)
    well = any(_status(one, side, index) is Status.OK for index in range(len(one.rows)))
    wall, cpu, gpu = (time_ms if well else None for time_ms in (mine.service_ms, mine.cpu_ms, mine.gpu_ms))
    memory = mine.peak_memory_bytes
    return BatchSums(
        batches=int(wall is not None),
        wall_us=round((wall or 0) * 1000),
        cpu_readings=int(cpu is not None),
        cpu_us=round((cpu or 0) * 1000),
        gpu_readings=int(gpu is not None),
        gpu_us=round((gpu or 0) * 1000),
        memory_readings=int(memory is not None),
        memory_max_bytes=memory or 0,
        memory_sum_kib=(memory or 0) // 1024,
    )


def _pair(one: Pair, side: str, index: int) -> StageSums:
    baseline, candidate = one.baseline.answers[index], getattr(one, side).answers[index]
    found = StageSums(findings={str(each): 1 for each in named(find(baseline, candidate, one.rows[index]))})
    if IDLE & {_status(one, each, index) for each in ("baseline", side)}:
        return found
    if baseline.outputs is None or candidate.outputs is None:
        return found + StageSums(
            pairs=1,
            candidate_only_failed=baseline.status is Status.OK,
            baseline_only_failed=candidate.status is Status.OK,
        )
    left, right = baseline.outputs["scores"], candidate.outputs["scores"]
    name = one.slices[index] if one.slices and side == "candidate" else ""
    return sum((_item(*rows, name) for rows in zip(left, right, strict=True)), found + StageSums(pairs=1))


def _twin(one: Pair) -> StageSums:
    """As for a candidate that answers no client, and without measures, slices and sizes."""
    found = sum((_pair(one, "twin", index) for index in range(len(one.rows))), StageSums())
    return StageSums(
        twin=_arm(one, "twin", answered=False),
        noise=Noise(
            pairs=found.pairs,
            twin_only_failed=found.candidate_only_failed,
            baseline_only_failed=found.baseline_only_failed,
            items=found.items,
            agree=found.agree,
            delta_over=found.delta_over,
            delta_max_e9=found.delta_max_e9,
            delta_sum_max_e9=found.delta_sum_max_e9,
            delta_sum_mean_e9=found.delta_sum_mean_e9,
            deltas=found.deltas,
            findings=found.findings,
        ),
    )


def _item(left: Array, right: Array, name: str) -> StageSums:
    deltas = [DELTA_CAP]
    if len(left) == len(right):
        deltas = [_delta(float(a), float(b)) for a, b in zip(left, right, strict=True)]
    whole = not (np.isnan(left).any() or np.isnan(right).any())
    in_units = round(max(deltas) * 1e9)
    alike, over = int(whole and int(left.argmax()) == int(right.argmax())), int(max(deltas) > LIMITS.tolerance)
    measured = COMPARATOR.compare({"scores": left[None]}, {"scores": right[None]}).measures
    measures = {each.name: MeasureSums.of(measured[each.name], each) for each in MEASURES}
    slices = {name: SliceSums(items=1, agree=alike, delta_over=over)} if name else {}
    return StageSums(
        items=1,
        agree=alike,
        delta_over=over,
        delta_max_e9=in_units,
        delta_sum_max_e9=in_units,
        delta_sum_mean_e9=round(sum(deltas) / len(deltas) * 1e9),
        deltas=DeltaHistogram.of(np.array([max(deltas)])),
        measures={key: each for key, each in measures.items() if each.n},
        slices=SliceTable(slices),
    )


def _delta(left: float, right: float) -> float:
    if left == right:
        return 0.0
    delta = abs(left - right)
    return delta if delta < DELTA_CAP else DELTA_CAP


@given(some=st.lists(pairs(), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_the_sums_are_those_of_plain_loops_over_the_pairs(some: list[Pair]) -> None:
    assert evidence_of(some) == sum((spelled_out(each) for each in some), Evidence())


@given(some=st.lists(pairs(), min_size=1, max_size=4), cuts=st.lists(st.integers(0, 40)))
@settings(deadline=None)
def test_rows_may_be_cut_anywhere(some: list[Pair], cuts: list[int]) -> None:
    table = to_table([compact(each, COMPARATOR) for each in some], COMPARATOR, 7)
    edges = sorted({0, table.num_rows, *(cut % (table.num_rows + 1) for cut in cuts)})
    parts = [table.slice(start, end - start) for start, end in pairwise(edges)]
    whole = sums(table, LIMITS, MEASURES)
    assert sum((sums(part, LIMITS, MEASURES) for part in parts), Evidence()) == whole
    assert sums(pa.concat_tables(parts), LIMITS, MEASURES) == whole


@given(one=pairs())
@settings(deadline=None)
def test_rows_have_the_schema_and_one_row_per_item(one: Pair) -> None:
    table = to_table([compact(one, COMPARATOR)], COMPARATOR, 5)
    assert table.schema.equals(SCHEMA)
    table.validate(full=True)
    assert table.num_rows == sum(max(rows, 1) for rows in one.rows)
    assert table["batch_row"].to_pylist() == list(range(table.num_rows))
    assert set(table["batch"].to_pylist()) == {5}
    assert table["item"].to_pylist() == [item for rows in one.rows for item in range(max(rows, 1))]


def test_no_rows_sum_to_nothing() -> None:
    assert sums(SCHEMA.empty_table(), LIMITS, MEASURES) == Evidence()


def test_rows_with_another_number_of_measures_are_refused() -> None:
    table = to_table([compact(pair(outcome(ok([1, 0])), outcome(ok([1, 0]))), COMPARATOR)], COMPARATOR, 0)
    with pytest.raises(EvidenceError, match="measures: expected 2 values"):
        sums(table, LIMITS, MEASURES[:2])


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
    table = to_table([compact(one, COMPARATOR)], COMPARATOR, 0)
    assert table["candidate_status"].to_pylist() == ["malformed"] * 2
    assert table["candidate_error"].to_pylist() == [reason] * 2
    assert table["candidate_scores"].null_count == 2
    assert sums(table, LIMITS, MEASURES).stage(0).candidate.malformed == 1


def test_scores_are_copied_so_that_buffers_can_be_reused() -> None:
    left = np.array([[0.25, 0.75]], np.float32)
    one = pair(outcome(type(bad())(status=Status.OK, outputs={"scores": left})), outcome(ok([0.25, 0.75])))
    taken = compact(one, COMPARATOR)
    left[:] = 9
    assert to_table([taken], COMPARATOR, 0)["max_delta"].to_pylist() == [0.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_scores_of_any_numeric_type_are_kept_as_float32(dtype: type) -> None:
    values: Sequence[Sequence[float]] = [[0, 1, 3]]
    side = outcome(type(bad())(status=Status.OK, outputs={"scores": np.array(values, dtype)}))
    table = to_table([compact(pair(side, side), COMPARATOR)], COMPARATOR, 0)
    assert table["baseline_scores"].to_pylist() == [[0.0, 1.0, 3.0]]


def test_doubles_beyond_float32_become_infinite_without_a_warning() -> None:
    side = outcome(type(bad())(status=Status.OK, outputs={"scores": np.array([[1e300, 0.0]])}))
    assert evidence_of([pair(side, side)]).stage(0).agree == 1


def test_an_input_that_the_baseline_took_and_its_twin_rejected_is_the_twins_error() -> None:
    good = outcome(ok([1, 0, 0]))
    found = evidence_of([pair(good, good, twin=outcome(bad(Status.REJECTED)))]).stage(0)
    assert (found.twin.errors, found.noise.twin_only_failed, found.baseline.errors) == (1, 1, 0)


def test_the_twins_differences_are_the_noise_and_not_the_candidates() -> None:
    good, off = outcome(ok([1, 0, 0], [1, 0, 0])), outcome(ok([1, 0, 0], [0, 0.75, 0.5]))
    found = evidence_of([pair(good, good, rows=[2], twin=off)]).stage(0)
    assert (found.items, found.delta_over, found.delta_max_e9, found.agree) == (2, 0, 0, 2)
    noise = found.noise
    assert (noise.pairs, noise.items, noise.delta_over, noise.delta_max_e9, noise.agree) == (1, 2, 1, 10**9, 1)
    assert noise.deltas.quantile(1.0) == 1.3
    assert noise.deltas.quantile(0.5) == 1e-9
    assert (found.twin.requests, found.twin.batches, found.twin.answers) == (1, 1, 0)


def test_the_twin_in_the_candidates_place_is_read_as_a_candidate_that_answers_nobody() -> None:
    good, off = outcome(ok([1, 0, 0])), outcome(ok([0, 1, 0]), service_ms=50.0)
    broken = evidence_of([pair(good, good, twin=off)]).stage(0).of_twin()
    as_candidate = evidence_of([pair(good, off)]).stage(0)
    assert broken.candidate == as_candidate.candidate
    for name in ("pairs", "items", "agree", "delta_over", "delta_max_e9", "delta_sum_max_e9", "deltas", "findings"):
        assert getattr(broken, name) == getattr(as_candidate, name)


def test_a_baseline_that_only_its_twin_ran_beside_keeps_its_scores() -> None:
    good, absent = outcome(ok([1, 0, 0])), outcome(bad(Status.ABSENT), service_ms=None, peak_memory_bytes=None)
    table = to_table([compact(pair(good, absent, twin=good), COMPARATOR)], COMPARATOR, 0)
    assert table["baseline_scores"].null_count == table["twin_scores"].null_count == 0
    assert table["twin_max_delta"].to_pylist() == [0.0]
    found = sums(table, LIMITS, MEASURES).stage(0)
    assert (found.items, found.noise.items, found.pairs) == (0, 1, 0)


def test_slices_are_counted_apart_and_requests_without_one_in_none() -> None:
    good, off = ok([1, 0, 0]), ok([0, 1, 0])
    one = pair(outcome(good, good, good), outcome(good, off, off), slices=["lobby", "gate", ""])
    found = evidence_of([one]).stage(0)
    assert found.slices.by_name == {"lobby": SliceSums(items=1, agree=1), "gate": SliceSums(items=1, delta_over=1)}
    assert (found.items, found.delta_over) == (3, 2)


def test_batches_are_counted_by_the_size_at_which_they_ran() -> None:
    two = replace(outcome(ok([1, 0], [1, 0])), service_ms=4.0, cpu_ms=3.0, gpu_ms=2.0, peak_memory_bytes=2047)
    one = pair(two, two, rows=[2], twin=two)
    found = evidence_of([one, one, replace(one, ran_rows=7)]).stage(0).sizes
    assert set(found) == {2, 4}
    of_two = found[2].candidate
    assert (of_two.batches, of_two.wall_us, of_two.cpu_us, of_two.gpu_us) == (2, 8000, 6000, 4000)
    assert (of_two.memory_readings, of_two.memory_max_bytes, of_two.memory_sum_kib) == (2, 2047, 2)
    assert found[2].baseline == found[2].twin == of_two


def test_a_clock_without_a_reading_counts_only_the_batches_that_failed() -> None:
    good = outcome(ok([1, 0]), service_ms=6.0)
    found = evidence_of([pair(good, replace(good, cpu_ms=5.5)), pair(good, outcome(bad()))]).stage(0).candidate
    assert (found.service_over_target, found.service_cpu_over_target, found.service_gpu_over_target) == (2, 2, 1)
    assert (found.service_cpu.n, found.service_cpu_us, found.service_gpu.n) == (1, 5500, 0)


def test_a_time_that_no_batch_takes_is_cut_to_the_longest() -> None:
    endless = outcome(ok([1, 0]), service_ms=1e12)
    assert evidence_of([pair(endless, endless)]).stage(0).candidate.service_us == LONGEST_US


def test_a_finding_is_counted_by_its_name_once_a_request() -> None:
    good = Answer(status=Status.OK, outputs={"scores": np.array([[0.3, 0.7]] * 2, np.float32)})
    double = Answer(status=Status.OK, outputs={"scores": np.array([[0.3, 0.7]] * 2, np.float64)})
    table = to_table([compact(pair(outcome(good), outcome(double), rows=[2]), COMPARATOR)], COMPARATOR, 0)
    assert [mask > 0 for mask in table["findings"].to_pylist()] == [True, False]
    assert sums(table, LIMITS, MEASURES).stage(0).findings == {"datatype": 1}


def test_what_is_found_in_the_twins_answers_is_noise() -> None:
    good = outcome(Answer(status=Status.OK, outputs={"scores": np.array([[0.3, 0.7]], np.float32)}))
    double = outcome(Answer(status=Status.OK, outputs={"scores": np.array([[0.3, 0.7]], np.float64)}))
    found = evidence_of([pair(good, good, twin=double)]).stage(0)
    assert (found.findings, found.noise.findings) == ({}, {"datatype": 1})


def test_slices_of_another_number_of_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="2 slices for 1 requests"):
        compact(pair(outcome(ok([1, 0])), outcome(ok([1, 0])), slices=["a", "b"]), COMPARATOR)


def boxes_answer(rows: int, boxes: int, *, seed: int = 0) -> Answer:
    generator = np.random.default_rng(seed)
    corners = generator.random((rows, boxes, 4), np.float32)
    corners[..., 2:] += 1
    outputs: dict[str, Array] = {
        "boxes": corners,
        "scores": generator.random((rows, boxes), np.float32),
        "classes": generator.integers(0, 3, (rows, boxes)),
    }
    return Answer(status=Status.OK, outputs=outputs)


DETECTION = open_comparator("detection", "scores")


def test_several_outputs_are_kept_item_by_item_and_had_again_as_arrays() -> None:
    answer = boxes_answer(2, 3)
    table = to_table([compact(pair(outcome(answer), outcome(answer), rows=[2]), DETECTION)], DETECTION, 0)
    assert table["baseline_layout"].to_pylist() == ["boxes:3,4;scores:3;classes:3"] * 2
    scores = Scores.of(table["baseline_layout"].combine_chunks(), table["baseline_scores"].combine_chunks())
    found = scores.arrays(np.arange(2), DETECTION.outputs)
    assert answer.outputs is not None
    for name, array in answer.outputs.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32))


def test_an_answer_without_boxes_is_no_malformed_one_where_the_comparator_takes_it() -> None:
    none = boxes_answer(2, 0)
    table = to_table([compact(pair(outcome(boxes_answer(2, 3)), outcome(none), rows=[2]), DETECTION)], DETECTION, 0)
    assert table["candidate_status"].to_pylist() == ["ok"] * 2
    assert table["candidate_layout"].to_pylist() == ["boxes:0,4;scores:0;classes:0"] * 2
    assert table["candidate_scores"].to_pylist() == [[], []]
    assert table["measures"].to_pylist()[0][0] == 0.0


def test_sides_of_different_layouts_in_one_table_are_each_compared_with_their_own() -> None:
    one, other = boxes_answer(1, 3), boxes_answer(2, 2, seed=1)
    some = [pair(outcome(one, other), outcome(one, other), rows=[1, 2]), pair(outcome(other), outcome(other), rows=[2])]
    table = to_table([compact(each, DETECTION) for each in some], DETECTION, 0)
    assert table["max_delta"].to_pylist() == [0.0] * 5
    assert [measures[0] for measures in table["measures"].to_pylist()] == [1.0] * 5


def test_an_item_with_too_many_values_keeps_what_the_comparison_gave_alone() -> None:
    wide, narrow = ok(range(8)), ok(range(4))
    some = [pair(outcome(each), outcome(each)) for each in (wide, narrow)]
    taken = [compact(each, COMPARATOR) for each in some]
    table, whole = to_table(taken, COMPARATOR, 0, kept_values=4), to_table(taken, COMPARATOR, 0)
    assert table["baseline_scores"].is_null().to_pylist() == [True, False]
    assert table["baseline_layout"].to_pylist() == ["scores:8", "scores:4"]
    for name in ("max_delta", "measures", "candidate_top1"):
        assert repr(table[name].to_pylist()) == repr(whole[name].to_pylist())
    assert sums(table, LIMITS, MEASURES) == sums(whole, LIMITS, MEASURES)


@pytest.mark.parametrize(
    ("shape", "rows", "layout"),
    [
        ((2, 5), 2, "scores:5"),
        ((2,), 2, "scores:1"),
        ((5,), 1, "scores:5"),
        ((3, 4), 1, "scores:3,4"),
        ((4, 3), 2, "scores:6"),
    ],
)
def test_the_layout_is_the_shape_of_one_item(shape: tuple[int, ...], rows: int, layout: str) -> None:
    side = outcome(Answer(status=Status.OK, outputs={"scores": np.ones(shape, np.float32)}))
    table = to_table([compact(pair(side, side, rows=[rows]), COMPARATOR)], COMPARATOR, 0)
    assert table["baseline_layout"].to_pylist() == [layout] * rows


@pytest.mark.parametrize("word", ["", "scores", "scores:", "scores:3,", "scores:-1", "scores:9999999999", "a:3;b"])
def test_a_word_that_is_no_layout_is_refused(word: str) -> None:
    with pytest.raises(EvidenceError, match="layout: expected NAME:SIZE"):
        read_layout(word)


def test_a_layout_larger_than_a_list_can_be_is_refused() -> None:
    with pytest.raises(EvidenceError, match="values at most"):
        read_layout("scores:999999999,9")


def test_names_of_outputs_may_hold_colons() -> None:
    assert read_layout("StatefulPartitionedCall:0:10") == ((10,),)


def test_a_comparator_that_compares_within_batches_is_given_one_batch_at_a_time() -> None:
    comparator = open_comparator(f"{CUSTOM}:Neighbours", "scores", {"beside": "more"})
    assert isinstance(comparator, Neighbours)

    def answer(rows: int) -> Answer:
        return Answer(status=Status.OK, outputs={"scores": np.ones((rows, 2)), "more": np.full((rows, 1), rows)})

    some = [pair(outcome(answer(n)), outcome(answer(n)), rows=[n]) for n in (3, 1, 2)]
    some.append(pair(outcome(answer(2), answer(3)), outcome(answer(2), bad()), rows=[2, 3]))
    table = to_table([compact(each, comparator) for each in some], comparator, 0)
    together = [measures and measures[0] for measures in table["measures"].to_pylist()]
    assert together == [3, 3, 3, 1, 2, 2, 2, 2, None, None, None]
    assert table["baseline_top1"].to_pylist() == [3, 3, 3, 1, 2, 2, 2, 2, 3, 3, 3]


def test_what_was_kept_gives_the_same_comparison_again() -> None:
    answers = [
        boxes_answer(rows, boxes, seed=seed) for seed, (rows, boxes) in enumerate([(1, 3), (2, 2), (1, 0), (2, 3)])
    ]
    some = [
        pair(outcome(left), outcome(right), rows=[rows], twin=outcome(left))
        for left, right, rows in [(answers[0], answers[2], 1), (answers[1], answers[3], 2), (answers[3], answers[3], 2)]
    ]
    table = to_table([compact(each, DETECTION) for each in some], DETECTION, 0)
    scores = {
        side: Scores.of(table[f"{side}_layout"].combine_chunks(), table[f"{side}_scores"].combine_chunks())
        for side in ("baseline", "candidate", "twin")
    }
    for name, column in comparison_columns(scores, table["batch"].to_numpy(), DETECTION).items():
        assert repr(column.to_pylist()) == repr(table[name].combine_chunks().to_pylist())
