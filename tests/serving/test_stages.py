"""Where a request's time goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serving.stages import BUCKETS_S, STAGES, Histogram, Stages, Timing

durations = st.floats(0, 10, allow_nan=False)


def test_a_request_s_stages_add_up_to_its_whole_time() -> None:
    timing = Timing(
        1.0,
        decoded=1.1,
        started=1.3,
        replied=2.0,
        resumed=2.1,
        copy_us=50_000,
        preprocess_us=100_000,
        compute_us=400_000,
    )
    found = dict(zip(STAGES, timing.stages(2.4), strict=True))
    expected = {"decode": 0.1, "queue": 0.2, "transfer": 0.15, "copy": 0.05, "preprocess": 0.1, "compute": 0.4}
    assert found == pytest.approx(expected | {"encode": 0.3, "unexplained": 0.1})
    assert sum(found.values()) == pytest.approx(1.4)


@given(decode=durations, queue=durations, work=durations, wait=durations, encode=durations, share=st.floats(0, 1))
def test_no_stage_is_negative_and_nothing_is_lost(
    decode: float, queue: float, work: float, wait: float, encode: float, share: float
) -> None:
    timing = Timing(5.0)
    timing.decoded = timing.received + decode
    timing.started = timing.decoded + queue
    timing.replied = timing.started + work
    timing.resumed = timing.replied + wait
    timing.compute_us = int(work * share * 1e6)
    stages = timing.stages(timing.resumed + encode)
    assert min(stages) >= -1e-9
    assert sum(stages) == pytest.approx(decode + queue + work + wait + encode, abs=1e-6)


@given(values=st.lists(st.floats(0, 20, allow_nan=False)))
def test_a_histogram_counts_each_value_once_at_its_bound(values: list[float]) -> None:
    histogram = Histogram(BUCKETS_S)
    for value in values:
        histogram.observe(value)
    buckets = histogram.cumulative()
    for (_, count), bound in zip(buckets, (*BUCKETS_S, float("inf")), strict=True):
        assert count == sum(value <= bound for value in values)
    assert histogram.sum == pytest.approx(sum(values))


def test_prometheus_reads_every_stage_of_every_version() -> None:
    registry, stages = CollectorRegistry(), Stages()
    registry.register(stages)
    for version in (1, 2, 2):
        stages.observe("m", version, Timing(0.0, 0.5, 0.5, 0.5, 0.5), 0.5)
    for stage in STAGES:
        labels = {"model": "m", "version": "2", "stage": stage}
        assert registry.get_sample_value("understudy_stage_seconds_count", labels) == 2
    labels = {"model": "m", "version": "2", "stage": "decode"}
    assert registry.get_sample_value("understudy_stage_seconds_sum", labels) == 1.0
    assert registry.get_sample_value("understudy_stage_seconds_bucket", labels | {"le": "0.25"}) == 0
    assert registry.get_sample_value("understudy_stage_seconds_bucket", labels | {"le": "0.5"}) == 2
