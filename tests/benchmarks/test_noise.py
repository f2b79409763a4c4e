from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.noise.__main__ import TRACE, measure, missed, render
from benchmarks.noise.cases import CASES, EDGE, policy_of
from benchmarks.noise.record import POLICY, Bursts
from benchmarks.noise.replay import Replay, clopper_pearson, resampled
from benchmarks.noise.trace import OUTPUT, SCHEMA, Trace, write_trace
from shadow.pair import Answer
from shadow.rows import SIDES

IMAGES = 20
FACTS = {
    "environment": {"at": "2026-01-01T00:00:00+00:00"},
    "bursts": {"quiet_rate": 1, "quiet_s": 1, "burst_rate": 2, "burst_s": 1},
    "clients": {"requests": 10, "failed": 0},
    "accounting": {"sampled": 10, "mirrored": 10, "shed": 0, "failed": 0, "timed_out": 0},
    "live": {"policy": "equivalence", "state": "shadow", "findings": []},
}


def recorded(sizes: Sequence[int], *, service_us: int = 1000) -> pa.Table:
    """Batches of some sizes, ten a second; how an image is answered depends on the size of its batch alone."""
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(10), IMAGES).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for batch, size in enumerate(sizes):
        for _ in range(size):
            image = int(rng.integers(IMAGES))
            answer = scores[image] + np.float32(size) * np.spacing(scores[image])
            row: dict[str, Any] = {
                "at_ms": batch * 100,
                "batch": batch,
                "batch_rows": size,
                "image": image,
                "label": int(scores[image].argmax()),
                "latency_us": 3000,
            }
            for side in SIDES:
                row |= {f"{side}_status": "ok", f"{side}_error": None, f"{side}_answer": None}
                row |= {f"{side}_service_us": service_us, f"{side}_service_cpu_us": 900, f"{side}_memory_bytes": 4096}
            rows.append({**row, "baseline_answer": answer.tobytes()})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture(scope="module")
def trace() -> Trace:
    sizes = np.random.default_rng(1).choice([1, 2, 4, 8], 300).tolist()
    return Trace.of(recorded(sizes), FACTS)


def bits(answer: Answer) -> bytes:
    return (answer.outputs or {})[OUTPUT].tobytes()


def test_nothing_is_found_in_the_recorded_trace() -> None:
    document = measure(TRACE, seeds=1, workers=1, cases=CASES[1:2])
    assert missed(document) == []
    assert document["trace"]["pairs"] >= 20_000
    assert document["trace"]["largest_between_batches"] > 0, "noise that is none proves nothing"
    assert all(row["requests"] > 10_000 for row in document["rows"])
    assert "Nothing is found" in render(document)


def test_a_trace_is_what_was_written(tmp_path: Path, trace: Trace) -> None:
    path = tmp_path / "trace.parquet"
    write_trace(path, recorded([2, 1]), FACTS)
    found = Trace.read(path)
    assert [len(pair.rows) for pair in found.pairs] == [2, 1]
    assert found.facts == FACTS
    assert found.at_s.tolist() == [0.0, 0.1]
    assert (
        bits((found.pairs[0].twin or found.pairs[0].baseline).answers[1])
        == recorded([2, 1])["baseline_answer"].to_pylist()[1]
    )
    path.write_bytes(b"no trace")
    with pytest.raises(BenchmarkError, match=r"trace\.parquet: expected a trace"):
        Trace.read(path)


def test_a_run_holds_whole_blocks_of_the_trace_in_order_and_is_as_long(trace: Trace) -> None:
    seconds = list(resampled(trace, np.random.default_rng(3)))
    batches = np.concatenate(seconds)
    assert len(seconds) == pytest.approx(trace.seconds, abs=1)
    assert len(batches) == pytest.approx(len(trace.pairs), rel=0.02)
    follows = (np.diff(batches) % len(trace.pairs)) == 1
    assert np.count_nonzero(~follows) < trace.seconds / 10


def test_a_run_is_the_same_for_the_same_seed(trace: Trace) -> None:
    replay, policies = Replay(trace), [policy_of(POLICY, trace)]
    first, second, other = (replay.run(policies, seed) for seed in (1, 1, 2))
    assert first == second
    assert first.requests != other.requests


def test_other_batches_answer_the_same_images_with_other_bits(trace: Trace) -> None:
    other = trace.of_other_batches(np.random.default_rng(4))
    assert trace.summary()["differ_at_equal_batch"] == 0
    assert other.summary()["differ_at_equal_batch"] > trace.requests / 2
    assert [pair.baseline for pair in other.pairs] == [pair.baseline for pair in trace.pairs]
    run = Replay(other).run([policy_of(POLICY, other)], 0)
    assert (run.marked, run.reported) == (0, frozenset())


def test_a_fault_in_the_trace_is_reported(trace: Trace) -> None:
    table = recorded([4] * 100)
    nan = np.full(10, np.nan, np.float32).tobytes()
    faulty = pa.array([nan if at % 20 == 0 else None for at in range(table.num_rows)], pa.binary(40))
    place = SCHEMA.get_field_index("candidate_answer")
    broken = Trace.of(table.set_column(place, SCHEMA.field(place), faulty), FACTS)
    assert Replay(broken).run([policy_of(POLICY, broken)], 0).reported == {"not a number"}


def test_an_environment_that_is_too_slow_fires_the_twin_and_rolls_nothing_back() -> None:
    slow = Trace.of(recorded([1] * 300, service_us=900_000), FACTS)
    found = Replay(slow).run([policy_of(POLICY, slow)], 0).policies[POLICY]
    assert found.failed
    assert found.fired
    assert found.gates == {"latency"}
    assert not found.rolled_back


def test_the_edge_is_where_the_shadow_replicas_are(trace: Trace) -> None:
    assert policy_of(EDGE, trace).limits(1e-3).latency_breach_ms == 1.0


def test_bursts_are_the_same_for_the_same_seed_and_come_in_between_quiet_times() -> None:
    bursts = Bursts(quiet_rate=10, burst_rate=1000, quiet_s=1, burst_s=1, seconds=60)
    dues = bursts.arrivals()
    assert dues == bursts.arrivals() == sorted(dues)
    per_second = np.bincount(np.array(dues).astype(int), minlength=60)
    assert per_second.min() < 50 < 500 < per_second.max()
    assert len(dues) < 60 * 1000


@pytest.mark.parametrize(
    ("count", "n", "low", "high"), [(0, 100, 0.0, 0.0362), (5, 100, 0.0164, 0.1128), (10, 10, 0.6915, 1.0)]
)
def test_an_interval_is_clopper_and_pearsons(count: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(count, n) == pytest.approx((low, high), abs=1e-4)


def test_what_was_found_in_noise_is_said(trace: Trace, tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.parquet", recorded([1, 4] * 40), FACTS)
    document = measure(tmp_path / "trace.parquet", seeds=2, workers=1)
    row = document["rows"][0]
    always = {"runs": 2, "low": 0.2, "high": 1.0}
    alarmed = {**document, "rows": [{**row, "reported": 1, "kinds": {"shape": 1}, "failed": always, "uplift": always}]}
    assert missed(document) == []
    assert len(missed(alarmed)) == 3
    assert all(each in render(alarmed) for each in missed(alarmed))
    assert missed({**alarmed, "rows": [{**row, "policy": EDGE, "failed": always}]}) == []
