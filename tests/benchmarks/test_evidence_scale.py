from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.evidence_scale import Scale, Window, measure, missed, render, summarise
from benchmarks.synthetic import LARGEST_BATCH, Plan, Stream
from shadow.pair import Arm, Status

PLAN = Plan(pairs=2_000, pool=32)


def scale(**changes: Any) -> Scale:
    few: dict[str, Any] = {"looks": 1, "dissected_batches": 8, "router_rounds": 1, "router_requests": 30}
    return Scale(**{"plan": PLAN, "window_pairs": 250, "compact_rows": 700, "round_rows": 150, **few, **changes})


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream(PLAN)


def test_a_run_that_was_cut_off_goes_on_and_every_sum_is_what_was_made(tmp_path: Path, elsewhere: Executor) -> None:
    begun = measure(scale(minutes=1e-9), tmp_path, elsewhere)
    assert 0 < begun["pairs"] < PLAN.pairs
    assert begun["differences"] == []
    assert "when this run's time was over" in render(begun)
    ended = measure(scale(), tmp_path, elsewhere)
    assert ended["complete"]
    assert (ended["chains"], ended["pending"], ended["differences"]) == (2, 0, [])
    assert ended["counts"]["pairs"] == ended["pairs"] >= PLAN.pairs
    assert ended["compactions"], "the oldest segments have become a checkpoint"
    assert min(row["us_per_request"] for row in ended["router"]) > 0
    assert ended["environment"]["commit"][:12] in render(ended)
    again = measure(scale(), tmp_path, elsewhere)
    assert (again["pairs"], again["chains"]) == (ended["pairs"], 2), "there is nothing left to do"


def test_a_folder_of_another_plan_is_refused(tmp_path: Path, elsewhere: Executor) -> None:
    measure(scale(minutes=1e-9), tmp_path, elsewhere)
    with pytest.raises(BenchmarkError, match="is of another plan"):
        measure(scale(plan=Plan(pairs=9, pool=32)), tmp_path, elsewhere)


def test_the_stream_goes_on_from_any_batch_and_is_as_varied_as_it_says(stream: Stream) -> None:
    whole = [pair for _, pair in islice(stream.after(0, "a"), stream.end.batches)]
    assert [pair for _, pair in islice(stream.after(40, "a"), 3)] == whole[40:43]
    ids = [name for pair in whole for name in pair.request_ids]
    assert len(ids) == len(set(ids))
    assert {pair.stage for pair in whole} == {0, 1}
    assert {pair.primary for pair in whole} == set(Arm)
    assert {pair.twin is None for pair in whole} == {True, False}
    assert {answer.status for pair in whole for answer in pair.candidate.answers} >= {Status.OK, Status.ERROR}
    assert max(sum(pair.rows) for pair in whole) <= LARGEST_BATCH


def test_a_position_is_where_its_count_is_reached_and_adds_up_what_came_before(stream: Stream) -> None:
    found = stream.position("rows", 1_000)
    rows = [sum(pair.rows) for _, pair in islice(stream.after(0, ""), found.batches)]
    assert sum(rows[:-1]) < 1_000 <= sum(rows) == found.counts["rows"]
    assert stream.position("rows", sum(rows)) == found


def window(pairs: int, resident_mb: float, chain: str = "router-001") -> Window:
    return Window(
        chain=chain, pairs=pairs, new_pairs=100, cpu_s=0.002, wall_s=1.0, resident_mb=resident_mb, disk_mb=1.0
    )


def test_memory_is_compared_within_each_process_from_its_second_window_on() -> None:
    first = [window(at, mb) for at, mb in ((100, 50.0), (200, 100.0), (300, 102.0))]
    second = [window(at, mb, "router-002") for at, mb in ((400, 300.0), (500, 100.0), (600, 101.0), (700, 110.0))]
    found = summarise([*first, *second], [])
    assert found["resident_ratio"] == pytest.approx(1.1)
    assert found["resident_mb"] == (100.0, 110.0)
    assert found["us_per_pair"] == pytest.approx(20.0)
    assert summarise(first[:2], [])["resident_ratio"] is None


def test_what_is_missed_is_said() -> None:
    row = {"input": "360 B", "batch": 1, "us_per_request": 19.0}
    summary = {"resident_ratio": 1.01, "disk_mb_most": 100.0}
    met = {"differences": [], "pending": 0, "summary": summary, "router": [row]}
    assert missed(met) == []
    for broken in (
        {"differences": ["pairs: 2 were made, 1 are in the evidence"]},
        {"pending": 3},
        {"summary": {**summary, "resident_ratio": 1.06}},
        {"summary": {**summary, "resident_ratio": None}},
        {"summary": {**summary, "disk_mb_most": 3000.0}},
        {"router": [row, {**row, "us_per_request": 20.5}]},
    ):
        assert len(missed({**met, **broken})) == 1
