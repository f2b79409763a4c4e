import shutil

import pytest

from benchmarks.load import Sample
from benchmarks.overhead import MIRRORED, PLAIN, Measured, MeasuredRaw, Plan, measure, render, summarise
from benchmarks.raw import RawSample

LATENCIES = {"mean_ms": 2.0, "sd_ms": 0.5, "p50_ms": 2.0, "p90_ms": 2.5, "p99_ms": 3.0}


def measured(round_: int, mode: str, requests_per_s: float, share: float | None = None) -> Measured:
    sample = Sample(connections=8, requests=100, failed=0, requests_per_s=requests_per_s, **LATENCIES)
    return Measured(round=round_, workload="digits", mode=mode, sample=sample, mirrored_share=share)


def bare(round_: int, batch: int) -> MeasuredRaw:
    sample = RawSample(batch=batch, calls=10, rows_per_s=1000.0 * batch, **{**LATENCIES, "p50_ms": 1.0})
    return MeasuredRaw(round=round_, workload="digits", sample=sample)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    plain = [measured(at, PLAIN, rate) for at, rate in enumerate((100.0, 200.0, 400.0))]
    mirrored = [measured(at, MIRRORED, rate, 0.5) for at, rate in enumerate((90.0, 100.0, 320.0))]
    raw = [bare(at, batch) for at in range(3) for batch in (1, 32)]
    (row,) = summarise([*plain, *mirrored], raw)["digits"]["served"]
    assert row["mirrored_to_plain"] == pytest.approx(0.8)
    assert row["plain_to_raw"] == pytest.approx(0.2)
    assert row["p50_over_raw_ms"] == pytest.approx(1.0)
    assert (row[PLAIN]["requests_per_s"], row[MIRRORED]["mirrored_share"]) == (200.0, 0.5)


@pytest.mark.end_to_end
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is not installed")
def test_the_service_is_measured_with_and_without_mirroring_beside_the_bare_model() -> None:
    plan = Plan(rounds=1, seconds=1, connections=(8,), workloads=("digits",))
    document = measure(plan)
    rows = document["summary"]["digits"]
    assert [row["batch"] for row in rows["raw"]] == [1, 32]
    (served,) = rows["served"]
    assert document["failed_requests"] == 0
    assert served["connections"] == 8
    for mode in (PLAIN, MIRRORED):
        assert 0 < served[mode]["p50_ms"] <= served[mode]["p99_ms"]
    assert 0 < served[MIRRORED]["mirrored_share"] <= 1
    assert 0 < served["plain_to_raw"] < 1, "a served model is never faster than the model alone"
    markdown = render(document)
    assert document["environment"]["commit"][:12] in markdown
    assert "| 8 |" in markdown
