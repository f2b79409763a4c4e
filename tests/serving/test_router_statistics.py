"""What a router tells in the protocol's statistics: clients' answers, and nothing of what is mirrored."""

from typing import Any

import pytest

from rollout.traffic import Priority
from serving.errors import ModelFailedError
from tests.serving.doubler import BASELINE, CANDIDATE, MODEL
from tests.serving.stage import Stage, request_of

COUNT = 20


def counted(stage: Stage, version: int) -> dict[str, Any]:
    return stage.router.statistics.of(MODEL, version)


async def test_answers_are_counted_and_what_is_mirrored_is_not(stage: Stage) -> None:
    stage.table(weight=0)
    stage.thread(BASELINE)
    stage.thread(CANDIDATE, priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    await stage.ask_many(COUNT)
    sums = await stage.sums()
    assert sums.items == COUNT  # the candidate ran them all
    entry = counted(stage, BASELINE)
    stats = entry["inference_stats"]
    assert entry["inference_count"] == stats["success"]["count"] == COUNT
    assert 1 <= entry["execution_count"] <= COUNT
    assert sum(size["batch_size"] * size["compute_infer"]["count"] for size in entry["batch_stats"]) == COUNT
    parts = sum(stats[name]["ns"] for name in ("queue", "compute_input", "compute_infer"))
    assert stats["success"]["ns"] > parts > 0
    assert counted(stage, CANDIDATE)["inference_count"] == 0


async def test_what_the_candidate_failed_is_the_baseline_s_success(stage: Stage) -> None:
    stage.table(weight=100)
    stage.thread(BASELINE)
    stage.thread(CANDIDATE, "raises")
    await stage.cast(BASELINE, CANDIDATE)
    await stage.ask_many(COUNT)
    assert counted(stage, BASELINE)["inference_count"] == COUNT
    entry = counted(stage, CANDIDATE)
    assert entry["inference_count"] == entry["inference_stats"]["fail"]["count"] == 0


async def test_a_request_that_failed_is_counted_once_as_a_failure(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE, "raises")
    await stage.cast(BASELINE)
    with pytest.raises(ModelFailedError):
        await stage.router.infer(request_of(1.0))
    stats = counted(stage, BASELINE)["inference_stats"]
    assert stats["fail"]["count"] == 1
    assert stats["fail"]["ns"] > 0
    assert stats["success"]["count"] == 0
