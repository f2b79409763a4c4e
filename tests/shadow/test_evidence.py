from dataclasses import fields
from math import floor, log

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.comparators import DELTA_CAP, Measure
from shadow.evidence import (
    DELTA_EDGES,
    ArmSums,
    BatchSums,
    DeltaHistogram,
    Evidence,
    Histogram,
    LabelCells,
    MeasureSums,
    Noise,
    Shares,
    SizeSums,
    SliceSums,
    SliceTable,
    StageSums,
    canonical,
)
from shadow.slices import MAX_SLICES, OTHER

LARGEST = 2**63 - 1
COUNTS = st.integers(0, 2**40) | st.integers(LARGEST - 3, LARGEST)
TALLIES = st.dictionaries(st.integers(0, 2799), st.integers(1, 10**6), max_size=3)
HISTOGRAMS, DELTAS, SHARES = (st.builds(kind, TALLIES) for kind in (Histogram, DeltaHistogram, Shares))


def sums_of(kind: type, **given: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.builds(kind, **{each.name: given.get(each.name, COUNTS) for each in fields(kind)})


ARMS = sums_of(ArmSums, service=HISTOGRAMS, service_cpu=HISTOGRAMS, service_gpu=HISTOGRAMS, latency=HISTOGRAMS)
FINDINGS = st.dictionaries(st.text(max_size=3), st.integers(1, 10**9), max_size=2)
BATCHES = sums_of(BatchSums)
SIZES = st.dictionaries(
    st.integers(0, 4).map(lambda power: 1 << power),
    sums_of(SizeSums, baseline=BATCHES, candidate=BATCHES, twin=BATCHES),
    max_size=2,
)
MEASURES = st.dictionaries(st.text(max_size=3), sums_of(MeasureSums, shares=SHARES), max_size=2)
SLICES = st.builds(SliceTable.of, st.dictionaries(st.text(max_size=3), sums_of(SliceSums), max_size=3))
STAGES = sums_of(
    StageSums,
    baseline=ARMS,
    candidate=ARMS,
    twin=ARMS,
    deltas=DELTAS,
    noise=sums_of(Noise, deltas=DELTAS, findings=FINDINGS),
    measures=MEASURES,
    findings=FINDINGS,
    slices=SLICES,
    sizes=SIZES,
    labels=sums_of(LabelCells),
)
EVIDENCE = st.builds(Evidence, st.dictionaries(st.integers(0, 4), STAGES, max_size=2))
FEW = settings(deadline=None, max_examples=40)  # each with hundreds of figures


@given(a=EVIDENCE, b=EVIDENCE, c=EVIDENCE)
@FEW
def test_evidence_merges_in_any_order_and_grouping(a: Evidence, b: Evidence, c: Evidence) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Evidence() == a


@given(a=EVIDENCE, b=EVIDENCE)
@FEW
def test_stages_add_up_to_the_total(a: Evidence, b: Evidence) -> None:
    both = a + b
    assert both.total() == a.total() + b.total()
    assert both.total() == both.stage(0) + both.since(1)


@given(evidence=EVIDENCE)
@FEW
def test_json_keeps_everything_in_one_spelling(evidence: Evidence) -> None:
    spelled = canonical(evidence.to_json())
    again = Evidence.from_json(orjson.loads(spelled))
    assert again == evidence
    assert canonical(again.to_json()) == spelled


def test_json_does_not_spell_zeros() -> None:
    assert Evidence({2: StageSums(items=3)}).to_json() == {"2": {"items": 3}}
    assert Evidence.from_json({"2": {"items": 3}}) == Evidence({2: StageSums(items=3)})


def test_json_with_a_figure_that_is_not_known_is_refused() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        Evidence.from_json({"0": {"nonsense": 1}})


def test_a_sum_that_would_leave_63_bits_stays_at_their_end() -> None:
    full = StageSums(delta_sum_max_e9=LARGEST)
    assert (full + StageSums(delta_sum_max_e9=1)).delta_sum_max_e9 == LARGEST
    assert orjson.loads(canonical(Evidence({0: full + full}).to_json())) == {"0": {"delta_sum_max_e9": LARGEST}}


NAMES = st.text(alphabet="abcdef", min_size=1, max_size=3) | st.just(OTHER)
MANY = st.builds(SliceTable.of, st.dictionaries(NAMES, sums_of(SliceSums), min_size=40, max_size=90))


@given(a=MANY, b=MANY, c=MANY)
@settings(deadline=None, max_examples=20)
def test_slices_beyond_the_first_64_names_are_pooled_in_any_order(a: SliceTable, b: SliceTable, c: SliceTable) -> None:
    total = a + b + c
    assert total == c + (b + a)
    assert len({*total.by_name} - {OTHER}) <= MAX_SLICES


def test_pooled_slices_lose_no_item() -> None:
    many = SliceTable.of({f"{number:03}": SliceSums(items=number) for number in range(100)})
    assert sum(each.items for each in many.by_name.values()) == sum(range(100))
    assert many.by_name[OTHER].items == sum(range(64, 100))


@given(values=st.lists(st.integers(-5, 10**12), max_size=20))
@settings(deadline=None)
def test_a_histogram_holds_each_value_in_a_bucket_one_percent_wide(values: list[int]) -> None:
    histogram = Histogram.of(values)
    assert histogram.n == len(values)
    assert histogram == Histogram.of(np.array(values, np.int64))
    expected = sorted(floor(log(max(value, 1)) / log(1.01)) for value in values)
    found = sorted(bucket for bucket, count in histogram.counts.items() for _ in range(count))
    assert all(abs(one - other) <= 1 for one, other in zip(found, expected, strict=True))


@given(left=st.lists(st.integers(0, 10**9)), right=st.lists(st.integers(0, 10**9)))
@settings(deadline=None)
def test_histograms_of_parts_add_up_to_that_of_the_whole(left: list[int], right: list[int]) -> None:
    assert Histogram.of(left) + Histogram.of(right) == Histogram.of(left + right)


@given(values=st.lists(st.integers(1, 10**9), min_size=1), q=st.floats(0.01, 1))
@settings(deadline=None)
def test_a_quantile_is_right_to_one_percent(values: list[int], q: float) -> None:
    exact = sorted(values)[max(0, -int(-q * len(values) // 1) - 1)] / 1000
    found = Histogram.of(values).quantile_ms(q)
    assert found is not None
    assert exact <= found * (1 + 1e-9)
    assert found <= exact * 1.0101


def test_a_quantile_of_nothing_is_unknown() -> None:
    assert Histogram().quantile_ms(0.95) is None
    assert DeltaHistogram().quantile(0.95) is None


@given(values=st.lists(st.floats(0, DELTA_CAP), min_size=1))
@settings(deadline=None)
def test_a_difference_is_in_the_bucket_between_its_edges(values: list[float]) -> None:
    edges = (0.0, *DELTA_EDGES, float("inf"))
    found = sorted(bucket for bucket, n in DeltaHistogram.of(np.array(values)).counts.items() for _ in range(n))
    for bucket, value in zip(found, sorted(values), strict=True):
        assert edges[bucket] <= value < edges[bucket + 1]


def test_the_edges_of_differences_are_eight_a_decade_from_a_billionth_to_the_cap() -> None:
    assert (DELTA_EDGES[0], DELTA_EDGES[8], DELTA_EDGES[-1]) == (1e-9, 1e-8, DELTA_CAP)
    assert len(DELTA_EDGES) == 8 * 11 + 1
    assert list(DELTA_EDGES) == sorted(set(DELTA_EDGES))
    assert DeltaHistogram.of(np.array([DELTA_CAP])).quantile(1) == DELTA_CAP


def test_a_measure_keeps_its_mean_and_the_shape_of_its_values() -> None:
    kendall = Measure("kendall", low=-1.0)
    found = MeasureSums.of(np.array([-1.0, 0.0, 1.0, 1.0, np.nan, 5.0]), kendall)
    assert found.n == 5
    assert found.mean(kendall) == pytest.approx(0.4)
    assert found.shares == Shares({0: 1, 32: 1, 63: 3})
    assert MeasureSums().mean(kendall) is None


@given(values=st.lists(st.floats(-3, 3), max_size=20), cut=st.integers(0, 20))
@settings(deadline=None)
def test_a_measure_of_parts_adds_up_to_that_of_the_whole(values: list[float], cut: int) -> None:
    measure, whole = Measure("anything", low=-2.0, high=2.5), np.array(values, np.float64)
    parts = MeasureSums.of(whole[:cut], measure) + MeasureSums.of(whole[cut:], measure)
    assert parts == MeasureSums.of(whole, measure)
    if values:
        assert parts.mean(measure) == pytest.approx(np.clip(whole, -2.0, 2.5).mean(), abs=1e-8)


def test_evidence_of_a_full_stage_stays_small_whatever_it_counts() -> None:
    everything = Histogram.of(np.geomspace(1, 10**9, 100_000).astype(np.int64))
    arm = ArmSums(service=everything, service_cpu=everything, service_gpu=everything, latency=everything)
    shares = MeasureSums(n=1, shares=Shares.of(np.linspace(0, 1, 1000)))
    stage = StageSums(
        baseline=arm,
        candidate=arm,
        twin=arm,
        deltas=DeltaHistogram.of(np.geomspace(1e-12, 100, 10_000)),
        measures={str(number): shares for number in range(4)},
        slices=SliceTable({str(number): SliceSums(items=LARGEST) for number in range(MAX_SLICES)}),
        sizes={1 << power: SizeSums(candidate=BatchSums(wall_us=LARGEST)) for power in range(12)},
    )
    once, often = Evidence({0: stage}), sum((Evidence({0: stage}) for _ in range(50)), Evidence())
    assert len(canonical(once.to_json())) < 500_000
    assert len(canonical(often.to_json())) < 1.3 * len(canonical(once.to_json()))


def test_numbers_that_a_stage_did_not_see_are_zero() -> None:
    assert Evidence().stage(3) == StageSums()
    with pytest.raises(AttributeError):
        StageSums().nonsense  # type: ignore[attr-defined]  # noqa: B018
