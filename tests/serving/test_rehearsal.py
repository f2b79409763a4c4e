"""The shadow process's part: what is mirrored runs on shadow replicas alone, is bounded, and not lost uncounted."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.tensor import from_numpy
from rollout.traffic import Priority
from serving import rehearsal, replica
from serving.arena import Arena
from serving.protocol.messages import InferRequest, InferResponse
from serving.rehearsal import TICK_S, Budget
from shadow.accounting import Ledger
from shadow.pair import Pair, Status
from shadow.recorder import Recorder
from tests.serving.doubler import BASELINE, CANDIDATE, MODEL, Doubler, spec_of
from tests.serving.stage import DEPLOYMENT, Stage, config_of, until

COUNT = 12


def mirrored_by(folder: Path, **mirror: Any) -> Stage:
    """A stage whose model has these settings of its mirror."""
    return Stage(folder, config_of(folder, mirror=mirror))


async def cast(stage: Stage, *, weight: int = 0, twin: bool = True) -> tuple[Doubler, Doubler | None]:
    """A rollout with all its replicas: the candidate's and the twin's backends in shadow."""
    stage.table(weight=weight)
    stage.thread(BASELINE)
    if weight:
        stage.thread(CANDIDATE)
    rehearsing = stage.thread(CANDIDATE, priority=Priority.SHADOW)
    understood = stage.thread(BASELINE, priority=Priority.SHADOW) if twin else None
    await stage.cast(BASELINE, CANDIDATE)
    await stage.in_shadow(1 + twin)
    return rehearsing, understood


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """What is offered to recorders, which take it all the same."""
    offered: list[Pair] = []
    offer = Recorder.offer

    def note(self: Recorder, pair: Pair) -> bool:
        offered.append(pair)
        return offer(self, pair)

    monkeypatch.setattr(Recorder, "offer", note)
    return offered


# The twin


async def test_the_twin_runs_its_share_of_the_mirrored_batches_and_answers_no_client(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    stage = mirrored_by(tmp_path, twin=0.5)
    try:
        candidate, twin = await cast(stage)
        assert twin is not None
        for value in range(60):
            await stage.ask(value)
        account = await stage.account()
        assert (account.mirrored, len(candidate.batches)) == (60, 60)
        assert 12 < len(twin.batches) < 48
        assert sum(pair.twin is not None for pair in pairs) == len(twin.batches)
        for pair in pairs:
            assert pair.candidate.cpu_ms is not None
            if pair.twin is not None:
                assert [answer.status for answer in pair.twin.answers] == [Status.OK]
    finally:
        stage.close()


async def test_a_rollout_without_a_twin_waits_for_none(tmp_path: Path, pairs: list[Pair]) -> None:
    stage = mirrored_by(tmp_path, twin=1.0)
    try:
        candidate, _ = await cast(stage, twin=False)
        await stage.ask_many(COUNT)
        account = await stage.account()
        assert (account.mirrored, account.failed) == (COUNT, 0)
        assert sum(candidate.batches) == COUNT
        assert {pair.twin for pair in pairs} == {None}
    finally:
        stage.close()


async def test_in_canary_without_a_twin_the_candidate_s_answers_are_evidence_all_the_same(tmp_path: Path) -> None:
    stage = mirrored_by(tmp_path)
    try:
        await cast(stage, weight=100, twin=False)
        assert await stage.ask_many(COUNT) == [CANDIDATE] * COUNT
        sums, account = await stage.sums(), await stage.account()
        assert (sums.candidate.answers, sums.items, sums.baseline.requests) == (COUNT, 0, 0)
        assert (account.sampled, account.shed) == (COUNT, COUNT)
    finally:
        stage.close()


async def test_when_the_baseline_is_gone_its_twin_still_answers_no_client(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    twin = stage.thread(BASELINE, priority=Priority.SHADOW)
    stage.stop_worker(0)
    await until(lambda: not stage.live(BASELINE))
    waiting = asyncio.create_task(stage.ask())
    await asyncio.sleep(0.3)
    assert (twin.batches, waiting.done()) == ([], False)
    stage.thread(BASELINE)
    assert (await waiting).version == BASELINE


async def test_a_twin_that_fails_is_not_the_candidate_s_failure(tmp_path: Path, pairs: list[Pair]) -> None:
    stage = mirrored_by(tmp_path, twin=1.0)
    try:
        stage.table()
        stage.thread(BASELINE)
        stage.thread(CANDIDATE, priority=Priority.SHADOW)
        stage.thread(BASELINE, "raises", priority=Priority.SHADOW)
        await stage.cast(BASELINE, CANDIDATE)
        await stage.in_shadow(2)
        await stage.ask_many(COUNT)
        sums, account = await stage.sums(), await stage.account()
        assert (sums.candidate.failures, sums.baseline.failures, sums.items) == (0, 0, COUNT)
        assert (account.mirrored, account.failed) == (COUNT, 0)
        assert {answer.status for pair in pairs if pair.twin for answer in pair.twin.answers} == {Status.ERROR}
    finally:
        stage.close()


# Pictures in shared memory

ROWS = 9000  # 72 KiB: enough to stay in the arena


def in_arena(arena: Arena, value: float) -> InferRequest:
    """A request whose tensor lies in the arena."""
    rows = np.full((ROWS, 2), value, np.float32)
    block = arena.allocate(rows.nbytes)
    assert block is not None
    block[:] = rows.tobytes()
    tensor = from_numpy("x", "FP32", np.frombuffer(block, np.float32).reshape(ROWS, 2))
    return InferRequest(model=MODEL, inputs={"x": tensor}, request_id=f"r-{value}", key=f"k-{value}")


def doubled(response: InferResponse, value: float) -> bool:
    return bool((response.outputs["y"].numpy() == 2 * value).all())


@pytest.mark.parametrize("readable", [True, False])
async def test_pictures_stay_where_they_were_received_until_the_candidate_has_run_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    if not readable:
        monkeypatch.setattr(replica, "_open", lambda arena: None)
    arena = Arena(8 << 20)
    much = 1 << 20
    settings = {"mirror": {"max_pending": much}, "batching": {"max_batch_size": 4, "max_queue": much}}
    stage = Stage(tmp_path, config_of(tmp_path, **settings), arena=arena)
    try:
        candidate, _ = await cast(stage, twin=False)
        for value in range(1, 9):
            assert doubled(await stage.router.infer(in_arena(arena, value)), value)
        sums, account = await stage.sums(), await stage.account()
        assert (sums.items, sums.agree, sums.delta_over, account.mirrored) == (8 * ROWS, 8 * ROWS, 0, 8 * ROWS)
        assert sum(candidate.batches) == 8 * ROWS
        await until(lambda: stage.lane.held_bytes == 0)
        await until(lambda: arena.used_bytes == 0)
    finally:
        stage.close()
        arena.close()


# Bounds


def test_a_budget_is_so_many_seconds_a_minute() -> None:
    now = 0.0
    budget = Budget(6.0, lambda: now)
    spent = 0.0
    for _ in range(60_000):
        now += 0.01
        if budget.open:
            budget.spend(0.05)
            spent += 0.05
    assert spent == pytest.approx(60.0, rel=0.03)  # of ten minutes


def test_a_budget_that_was_not_used_lets_a_burst_through_and_no_more() -> None:
    now = 0.0
    budget = Budget(6.0, lambda: now)
    now = 3600.0
    spent = 0.0
    while budget.open:
        budget.spend(0.1)
        spent += 0.1
    assert spent == pytest.approx(1.0, abs=0.1)


def test_without_a_budget_work_is_never_refused() -> None:
    budget = Budget(None, lambda: 0.0)
    budget.spend(1e9)
    assert budget.open


async def test_what_is_over_the_budget_waits_and_is_shed_and_the_candidate_is_not_blamed(tmp_path: Path) -> None:
    stage = mirrored_by(tmp_path, budget=0.006, timeout_s=0.3, max_pending=8, twin=0)
    try:
        candidate, _ = await cast(stage, twin=False)
        burn = Doubler.run

        def run(self: Doubler, inputs: Any) -> Any:
            if self is candidate:
                sum(range(400_000))
            return burn(self, inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Doubler, "run", run)
            for value in range(COUNT):
                await stage.ask(value)
                await asyncio.sleep(0.02)
            account = await stage.account()
        assert account.shed > COUNT / 2
        assert (account.timed_out, account.failed, account.balanced) == (0, 0, True)
        assert account.mirrored == sum(candidate.batches) >= 1
    finally:
        stage.close()


async def test_a_replica_that_is_kept_from_running_is_not_taken_to_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starved:
        def __init__(self, pid: int) -> None:
            pass

        def since(self) -> float:
            return TICK_S

    monkeypatch.setattr(rehearsal, "Starvation", Starved)
    monkeypatch.setattr(rehearsal, "_SUSPECT_S", 0.05)
    stage = mirrored_by(tmp_path, timeout_s=0.3, twin=0)
    try:
        stage.table()
        stage.thread(BASELINE)
        candidate = stage.thread(CANDIDATE, "waits", priority=Priority.SHADOW)
        await stage.cast(BASELINE, CANDIDATE)
        await stage.ask()
        await until(lambda: candidate.batches)
        await asyncio.sleep(1.0)
        candidate.release.set()
        account = await stage.account()
        assert (account.mirrored, account.timed_out) == (1, 0)
    finally:
        stage.close()


# A shadow process that goes


async def test_what_a_dying_shadow_process_had_is_counted_as_failed_and_the_next_one_goes_on(stage: Stage) -> None:
    candidate, _ = await cast(stage, twin=False)
    await stage.ask_many(COUNT)
    await stage.sums()
    candidate.fault = "waits"
    await stage.ask_many(COUNT)
    lost = stage.lane
    await until(lambda: lost.account().sampled == 2 * COUNT)
    stage.shadows[-1].close()
    await until(lambda: stage.router.lanes == {})
    assert (lost.account().mirrored, lost.account().failed, lost.account().balanced) == (COUNT, COUNT, True)
    assert lost.held_bytes == 0
    assert stage.mirrors.reports()[0]["error"] == "the shadow process is gone"
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT  # no client notices

    candidate.fault = "none"
    candidate.release.set()
    await until(lambda: stage.mirrors.may_start)
    stage.router.renew()
    await until(lambda: len(stage.shadows) == 2)
    await stage.ask_many(COUNT)
    assert (await stage.account()).mirrored == COUNT
    first, second = stage.mirrors.reports()
    assert (first["chain"] != second["chain"], second["error"]) == (True, None)
    ends = [Ledger.from_json(each["ledger"]).total for each in (first, second)]
    assert (ends[0].failed, ends[1].sampled) == (COUNT, COUNT)


async def test_a_shadow_process_that_keeps_dying_is_started_less_and_less_often(stage: Stage) -> None:
    await cast(stage, twin=False)
    waits = []
    for _ in range(3):
        stage.shadows[-1].close()
        await until(lambda: stage.router.lanes == {})
        waits.append(stage.mirrors._again_s)
        stage.mirrors._not_before_s = 0.0
        stage.router.renew()
        assert stage.router.lanes
    assert waits == sorted(set(waits))


async def test_failures_that_a_stopped_shadow_process_does_not_read_do_not_pile_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.mirror._MOST_FAILURES", 5)
    stage.table(weight=100)
    stage.thread(BASELINE)
    stage.thread(CANDIDATE, "raises")
    await stage.cast(BASELINE, CANDIDATE)
    sent: list[int] = []
    lane = stage.lane
    monkeypatch.setattr(lane, "_send", lambda frames: sent.append(1))
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
    assert len(sent) == 5


async def test_a_lane_that_the_disk_refuses_says_so_harms_nobody_and_is_opened_at_a_later_renewal(
    stage: Stage,
) -> None:
    evidence = stage.folder / "reports" / DEPLOYMENT / "evidence"
    evidence.parent.mkdir(parents=True)
    evidence.write_text("a file where a folder should be", encoding="utf-8")
    stage.table()
    stage.thread(BASELINE)
    stage.thread(CANDIDATE, priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
    await until(lambda: stage.router.lanes == {})
    (report,) = stage.mirrors.reports()
    assert "File exists" in report["error"]
    assert Ledger.from_json(report["ledger"]).balanced
    evidence.unlink()
    stage.router.renew()
    await stage.ask_many(COUNT)
    assert (await stage.account()).mirrored == COUNT
    assert stage.mirrors.reports()[-1]["error"] is None


async def test_a_model_without_batch_dimension_is_mirrored_one_request_at_a_time(stage: Stage) -> None:
    stage.table()
    spec = spec_of(BASELINE, max_batch_size=0)
    stage.thread(BASELINE, spec=spec)
    candidate = stage.thread(CANDIDATE, spec=spec_of(CANDIDATE, max_batch_size=0), priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    for value in range(4):
        tensor = from_numpy("x", "FP32", np.full(2, value, np.float32))
        await stage.router.infer(InferRequest(model=MODEL, inputs={"x": tensor}, request_id=f"r-{value}", key="k"))
    sums = await stage.sums()
    assert (sums.items, sums.agree, len(candidate.batches)) == (4, 4, 4)
