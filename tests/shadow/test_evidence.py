from dataclasses import fields
from math import floor, log

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.evidence import ArmSums, Evidence, Histogram, LabelCells, StageSums, canonical

COUNTS = st.integers(0, 2**40)
HISTOGRAMS = st.builds(Histogram, st.dictionaries(st.integers(0, 2799), st.integers(1, 10**6), max_size=3))


def sums_of(kind: type, **given: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.builds(kind, **{each.name: given.get(each.name, COUNTS) for each in fields(kind)})


ARMS = sums_of(ArmSums, service=HISTOGRAMS, latency=HISTOGRAMS)
STAGES = sums_of(StageSums, baseline=ARMS, candidate=ARMS, labels=sums_of(LabelCells))
EVIDENCE = st.builds(Evidence, st.dictionaries(st.integers(0, 4), STAGES, max_size=2))


@given(a=EVIDENCE, b=EVIDENCE, c=EVIDENCE)
@settings(deadline=None)
def test_evidence_merges_in_any_order_and_grouping(a: Evidence, b: Evidence, c: Evidence) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Evidence() == a


@given(a=EVIDENCE, b=EVIDENCE)
@settings(deadline=None)
def test_stages_add_up_to_the_total(a: Evidence, b: Evidence) -> None:
    both = a + b
    assert both.total() == a.total() + b.total()
    assert both.total() == both.stage(0) + both.since(1)


@given(evidence=EVIDENCE)
@settings(deadline=None)
def test_json_keeps_everything_in_one_spelling(evidence: Evidence) -> None:
    spelled = canonical(evidence.to_json())
    again = Evidence.from_json(orjson.loads(spelled))
    assert again == evidence
    assert canonical(again.to_json()) == spelled


@given(values=st.lists(st.integers(-5, 10**12), max_size=20))
@settings(deadline=None)
def test_a_histogram_holds_each_value_in_a_bucket_one_percent_wide(values: list[int]) -> None:
    histogram = Histogram.of(values)
    assert histogram.n == len(values)
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


def test_numbers_that_a_stage_did_not_see_are_zero() -> None:
    assert Evidence().stage(3) == StageSums()
    with pytest.raises(AttributeError):
        StageSums().nonsense  # type: ignore[attr-defined]  # noqa: B018
