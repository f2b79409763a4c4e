"""Pairs for the tests of this package."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from shadow.comparators import open_comparator
from shadow.evidence import Limits
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.rows import compact, to_table
from shadow.store import Head, Header, Kind, SegmentWriter

DEPLOYMENT = "digits-2-20260101T000000Z"
LIMITS = Limits(tolerance=1e-3, latency_target_ms=5.0, latency_breach_ms=8.0, memory_bytes=1000)
PARAMETERS = {"k": 2}
COMPARATOR = open_comparator("classification", "scores", PARAMETERS)
MEASURES = COMPARATOR.measures


def scores(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def ok(*rows: Sequence[float]) -> Answer:
    return Answer(status=Status.OK, outputs={"scores": scores(*rows)})


def bad(status: Status = Status.ERROR, error: str = "it broke") -> Answer:
    return Answer(status=status, error=error)


def outcome(*answers: Answer, service_ms: float | None = 2.0, peak_memory_bytes: int | None = 500) -> Outcome:
    return Outcome(answers=answers, service_ms=service_ms, peak_memory_bytes=peak_memory_bytes)


def pair(
    baseline: Outcome,
    candidate: Outcome,
    *,
    ids: Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
    primary: Arm = Arm.BASELINE,
    stage: int = 0,
    at_unix_us: int = 1_000_000,
    latency_ms: float = 3.0,
    twin: Outcome | None = None,
    slices: Sequence[str] = (),
) -> Pair:
    n = len(baseline.answers)
    return Pair(
        deployment_id=DEPLOYMENT,
        stage=stage,
        at_unix_us=at_unix_us,
        primary=primary,
        request_ids=tuple(ids or (f"request-{index}" for index in range(n))),
        rows=tuple(rows or (1,) * n),
        latencies_ms=(latency_ms,) * n,
        baseline=baseline,
        candidate=candidate,
        twin=twin,
        slices=tuple(slices),
    )


def simple_pair(
    request_id: str = "a", *, stage: int = 0, at_unix_us: int = 1_000_000, baseline: int = 0, candidate: int = 0
) -> Pair:
    """One request of one item, three classes; both sides OK, with these top-1 answers."""
    left, right = (np.eye(3, dtype=np.float32)[top] for top in (baseline, candidate))
    return pair(outcome(ok(left)), outcome(ok(right)), ids=[request_id], stage=stage, at_unix_us=at_unix_us)


def header(chain: str = "router", **changes: object) -> Header:
    facts: dict[str, object] = {
        "kind": Kind.PAIRS,
        "deployment_id": DEPLOYMENT,
        "limits": LIMITS,
        "comparator": "classification",
        "output": "scores",
        "parameters": PARAMETERS,
        "measures": MEASURES,
        "chain": chain,
    }
    return Header(**{**facts, **changes})  # type: ignore[arg-type]


def write_chain(folder: Path, segments: Sequence[Sequence[Pair]], chain: str = "router") -> list[Head]:
    """A chain with these segments; returns the head after each."""
    writer, heads, batches = SegmentWriter(folder, header(chain)), [], 0
    for pairs in segments:
        heads.append(writer.write(to_table([compact(each, COMPARATOR) for each in pairs], COMPARATOR, batches)))
        batches += len(pairs)
    return heads


_values = st.sampled_from([0.0, 0.1, 0.1005, 0.102, 0.5, -3.0, 1e9, float("nan"), float("inf"), float("-inf")])


@st.composite
def answers(draw: st.DrawFn, rows: int) -> Answer:
    status = draw(st.sampled_from([Status.OK, Status.OK, Status.OK, *Status]))
    if status is not Status.OK:
        return bad(status, draw(st.sampled_from(["", "boom", "é✓", "\ud800", "x" * 500])))
    width = draw(st.sampled_from([3, 3, 3, 4]))
    if draw(st.booleans()):
        shares = np.eye(width, dtype=np.float32)[draw(st.integers(0, width - 1))]
        return Answer(status=status, outputs={"scores": np.tile((shares + 1) / (width + 1), (rows, 1))})
    values = draw(st.lists(_values, min_size=rows * width, max_size=rows * width))
    return Answer(status=status, outputs={"scores": np.array(values, dtype=np.float32).reshape(rows, width)})


@st.composite
def outcomes(draw: st.DrawFn, rows: Sequence[int]) -> Outcome:
    times_ms = st.sampled_from([None, 0.0, 4.9, 5.0, 5.001, 7.0, 8.5, 1e7])
    return Outcome(
        answers=tuple(draw(answers(count)) for count in rows),
        service_ms=draw(times_ms),
        cpu_ms=draw(times_ms),
        gpu_ms=draw(times_ms),
        peak_memory_bytes=draw(st.sampled_from([None, 0, 1000, 1001, 3 << 30])),
    )


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Any pair at all: several requests of 0 to 3 rows, every mixture of ends, with and without a twin and slices."""
    rows = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    names = st.lists(st.sampled_from(["", "lobby", "gate", "other"]), min_size=len(rows), max_size=len(rows))
    one = Pair(
        deployment_id=DEPLOYMENT,
        stage=draw(st.integers(0, 2)),
        at_unix_us=draw(st.integers(0, 2**50)),
        primary=draw(st.sampled_from(Arm)),
        request_ids=tuple(draw(st.text(max_size=5)) for _ in rows),
        rows=tuple(rows),
        latencies_ms=tuple(draw(st.sampled_from([0.0, 5.0, 5.001, 9.0])) for _ in rows),
        baseline=draw(outcomes(rows)),
        candidate=draw(outcomes(rows)),
        twin=draw(st.none() | outcomes(rows)),
        slices=tuple(draw(st.just([]) | names)),
    )
    return replace(one, ran_rows=sum(rows) + draw(st.sampled_from([0, 0, 5]))) if draw(st.booleans()) else one
