"""The shadow process's part: what is mirrored runs on shadow replicas alone, is bounded, and not lost uncounted."""

import asyncio
import errno
import logging
import stat
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.repository import ModelVersion, Repository
from models.tensor import Array, Buffer, Tensor, from_numpy
from rollout.traffic import Priority
from serving import rehearsal, replica, shadow_lane
from serving.arena import SHARE_FROM_BYTES, Arena, Window
from serving.handoff import Counted, Handoff, Opening
from serving.protocol.messages import InferRequest, InferResponse
from serving.rehearsal import TICK_S, Budget
from serving.shadow_lane import Keeper, Mirrored, deltas_of, inputs_of
from serving.wire import decode_batch_header, encode_batch
from shadow.accounting import Ledger
from shadow.comparators import DELTA_CAP, open_comparator
from shadow.evidence import Limits
from shadow.exemplars import FOLDER, Exemplar, ExemplarKind, Exemplars, ExemplarSettings, read
from shadow.findings import Finding, named
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.recorder import Recorder
from shadow.replay import LocalModel, Yardstick, replay
from shadow.rows import compact, to_table
from tests.serving.control_room import write_version
from tests.serving.doubler import BASELINE, CANDIDATE, MODEL, Doubler, spec_of
from tests.serving.stage import DEPLOYMENT, Stage, config_of, request_of, until
from tests.shadow.builders import COMPARATOR
from tests.shadow.builders import pairs as any_pairs

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
            assert pair.baseline.cpu_ms is None  # it answers clients, and is not measured beside
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


async def test_what_is_over_the_budget_waits_and_is_shed_and_the_candidate_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What comparing takes counts as well: here that is all that this process does, which on a busy machine is more than
    # the budget before the first batch comes.
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    stage = mirrored_by(tmp_path, budget=0.006, timeout_s=0.3, max_pending=8, twin=0)
    try:
        candidate, _ = await cast(stage, twin=False)
        burn = Doubler.run

        def run(self: Doubler, inputs: Any) -> Any:
            if self is candidate:
                sum(range(400_000))
            return burn(self, inputs)

        monkeypatch.setattr(Doubler, "run", run)
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


# Exemplars

PLANTED, OFF_BY = 7, 0.5


def wrong_about(inputs: Mapping[str, Array], answer: dict[str, Array]) -> dict[str, Array]:
    """A model's answer, off where its input is the planted one."""
    answer["y"][inputs["x"] == PLANTED] += np.float32(OFF_BY)
    return answer


class Offline(Doubler):
    """The candidate of ``plant``, as a replay opens it."""

    def __init__(self, version: ModelVersion) -> None:
        super().__init__()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return wrong_about(inputs, super().run(inputs))


def plant(monkeypatch: pytest.MonkeyPatch, candidate: Doubler) -> None:
    """Have one backend be wrong about the planted input."""
    run = Doubler.run

    def planted(self: Doubler, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return wrong_about(inputs, run(self, inputs)) if self is candidate else run(self, inputs)

    monkeypatch.setattr(Doubler, "run", planted)


def keeper_of(stage: Stage) -> Keeper:
    keeper = stage.shadow_lane.exemplars
    assert keeper is not None
    return keeper


async def kept(stage: Stage) -> list[Exemplar]:
    """What was kept, when all is written; nothing is from then on."""
    await stage.sums()
    await asyncio.to_thread(keeper_of(stage).close)
    return list(read(stage.folder / "reports" / DEPLOYMENT / FOLDER))


def wire_bytes(value: float, rows: int = 1) -> bytes:
    """Of the input of ``request_of``."""
    return np.full((rows, 2), value, np.float32).tobytes()


async def test_a_planted_disagreement_is_kept_with_the_bytes_of_its_input_and_found_by_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = mirrored_by(tmp_path, exemplars={"worst": 4})
    try:
        candidate, _ = await cast(stage, twin=False)
        plant(monkeypatch, candidate)
        assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
        (one,) = await kept(stage)
        assert (one.request_id, one.kind, one.max_delta) == (f"r-{PLANTED}", ExemplarKind.WORST, OFF_BY)
        assert one.inputs == (Tensor("x", "FP32", (1, 2), wire_bytes(PLANTED)),)
        assert (one.model, one.baseline_version, one.candidate_version) == (MODEL, BASELINE, CANDIDATE)
        assert (one.deployment_id, one.chain, one.stage) == (DEPLOYMENT, stage.lane.opening.chain, 0)
        assert one.baseline.outputs is not None
        assert one.candidate.outputs is not None
        assert one.baseline.outputs["y"].tolist() == [[2 * PLANTED] * 2]
        assert one.candidate.outputs["y"].tolist() == [[2 * PLANTED + OFF_BY] * 2]
    finally:
        stage.close()

    rollout = tmp_path / "reports" / DEPLOYMENT
    rows = [row for path in (rollout / "evidence").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [row["max_delta"] for row in rows if row["request_id"] == one.request_id] == [one.max_delta]
    assert stat.S_IMODE((rollout / FOLDER).stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (rollout / FOLDER).iterdir()} == {0o600}

    write_version(tmp_path / "repository", CANDIDATE)
    version = Repository(tmp_path / "repository").open(MODEL, CANDIDATE)
    with LocalModel(version, {"doubler": f"{__name__}:Offline"}) as again:
        (worst,) = replay(read(rollout / FOLDER), again, Yardstick(output="y")).worst
    assert (worst.request_id, worst.max_delta, worst.recorded_delta) == (one.request_id, OFF_BY, OFF_BY)


@pytest.mark.parametrize("readable", [True, False])
async def test_a_large_input_is_copied_before_its_place_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    if not readable:
        monkeypatch.setattr(replica, "_open", lambda arena: None)
    arena, much = Arena(1 << 20), 1 << 20
    mirror = {"max_pending": much, "exemplars": {"worst": 1}}
    settings = {"mirror": mirror, "batching": {"max_batch_size": 4, "max_queue": much}}
    stage = Stage(tmp_path, config_of(tmp_path, **settings), arena=arena)
    try:
        candidate, _ = await cast(stage, twin=False)
        plant(monkeypatch, candidate)
        for value in range(PLANTED - 2, PLANTED + 6):
            assert doubled(await stage.router.infer(in_arena(arena, value)), value)
            await until(lambda: arena.used_bytes == 0)  # so that the next one lies in the same place
        (one,) = await kept(stage)
        assert one.inputs == (Tensor("x", "FP32", (ROWS, 2), wire_bytes(PLANTED, ROWS)),)
        assert (one.rows, one.max_delta) == (ROWS, OFF_BY)
    finally:
        stage.close()
        arena.close()


async def test_only_what_is_evidence_is_kept_each_request_with_its_own_input_and_slice(tmp_path: Path) -> None:
    slices = {"parameter": "camera", "values": ["gate"]}
    stage = Stage(tmp_path, config_of(tmp_path, mirror={"exemplars": {"sample": 1.0}}, slices=slices))
    try:
        await cast(stage, twin=False)
        pinned = [stage.ask(value, version=BASELINE) for value in (1, 4, 6)]
        others = [stage.ask(value, rows=1 + value % 3, parameters={"camera": "gate"}) for value in (0, 2, 3, 5, 7)]
        await asyncio.gather(*pinned[:1], *others[:3], *pinned[1:], *others[3:])
        found = {each.request_id: each for each in await kept(stage)}
        assert sorted(found) == ["r-0", "r-2", "r-3", "r-5", "r-7"]
        for value in (0, 2, 3, 5, 7):
            one, rows = found[f"r-{value}"], 1 + value % 3
            assert one.inputs == (Tensor("x", "FP32", (rows, 2), wire_bytes(value, rows)),)
            assert (one.kind, one.rows, one.slice, one.max_delta) == (ExemplarKind.SAMPLE, rows, "gate", 0)
    finally:
        stage.close()


async def test_an_answer_of_another_shape_is_kept_as_the_largest_disagreement_with_its_finding(tmp_path: Path) -> None:
    stage = mirrored_by(tmp_path, exemplars={"worst": 1})
    try:
        stage.table()
        stage.thread(BASELINE)
        stage.thread(CANDIDATE, "narrow", priority=Priority.SHADOW)
        await stage.cast(BASELINE, CANDIDATE)
        await stage.ask(3)
        (one,) = await kept(stage)
        assert (one.candidate.status, one.candidate.outputs) == (Status.MALFORMED, None)
        assert (one.max_delta, named(one.findings)) == (DELTA_CAP, (Finding.SHAPE,))
        assert one.inputs[0].data == wire_bytes(3)
    finally:
        stage.close()


async def test_in_canary_the_candidate_s_answer_is_kept_beside_the_twin_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = mirrored_by(tmp_path, exemplars={"worst": 1})
    try:
        stage.table(weight=100)
        stage.thread(BASELINE)
        plant(monkeypatch, stage.thread(CANDIDATE))
        stage.thread(BASELINE, priority=Priority.SHADOW)
        await stage.cast(BASELINE, CANDIDATE)
        await stage.in_shadow(1)
        for value in range(PLANTED - 1, PLANTED + 2):
            assert (await stage.router.infer(request_of(value))).version == CANDIDATE
        (one,) = await kept(stage)
        assert one.baseline.outputs is not None
        assert one.candidate.outputs is not None
        assert one.baseline.outputs["y"].tolist() == [[2 * PLANTED] * 2]
        assert one.candidate.outputs["y"].tolist() == [[2 * PLANTED + OFF_BY] * 2]
    finally:
        stage.close()


async def test_nothing_is_kept_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    candidate, _ = await cast(stage, twin=False)
    plant(monkeypatch, candidate)
    await stage.ask_many(COUNT)
    assert (await stage.account()).mirrored == COUNT
    assert stage.shadow_lane.exemplars is None
    assert not (tmp_path / "reports" / DEPLOYMENT / FOLDER).exists()


async def test_a_disk_that_refuses_exemplars_harms_neither_evidence_nor_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: Buffer) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shadow.exemplars._write_private", refuse)
    stage = mirrored_by(tmp_path, exemplars={"worst": COUNT})
    try:
        candidate, _ = await cast(stage, twin=False)
        plant(monkeypatch, candidate)
        assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
        sums, account = await stage.sums(), await stage.account()
        assert (sums.items, sums.delta_over, account.mirrored, account.failed) == (COUNT, 1, COUNT, 0)
        assert stage.shadow_lane.recorder.snapshot().fault is None
        assert await kept(stage) == []
        assert keeper_of(stage).errors == 1
    finally:
        stage.close()


async def test_a_folder_that_cannot_be_made_harms_neither_evidence_nor_clients(tmp_path: Path) -> None:
    stage = mirrored_by(tmp_path, exemplars={"sample": 1.0})
    try:
        folder = tmp_path / "reports" / DEPLOYMENT / FOLDER
        folder.parent.mkdir(parents=True)
        folder.write_text("a file where a folder should be", encoding="utf-8")
        await cast(stage, twin=False)
        assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
        assert (await stage.account()).mirrored == COUNT
        assert stage.shadow_lane.recorder.snapshot().fault is None
        assert keeper_of(stage).errors >= 1
        await asyncio.to_thread(keeper_of(stage).close)
    finally:
        stage.close()


async def test_a_slow_disk_holds_neither_inputs_nor_evidence_and_what_does_not_fit_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, keep = threading.Event(), Exemplars.keep

    def slowly(self: Exemplars, exemplar: Exemplar) -> None:
        release.wait(30)
        keep(self, exemplar)

    monkeypatch.setattr(Exemplars, "keep", slowly)
    monkeypatch.setattr(shadow_lane, "_MOST_WAITING", 2)
    stage = mirrored_by(tmp_path, exemplars={"sample": 1.0})
    try:
        await cast(stage, twin=False)
        await stage.ask_many(COUNT)
        assert (await stage.account()).mirrored == COUNT
        await until(lambda: stage.lane.held_bytes == 0)
        assert keeper_of(stage).dropped == COUNT - 2
        release.set()
        assert len(await kept(stage)) == 2
    finally:
        release.set()
        stage.close()


async def test_a_fault_in_what_is_kept_is_counted_and_said_once_and_every_pair_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(self: Exemplars, delta: float, request_id: str) -> bool:
        raise RuntimeError("surprise")

    monkeypatch.setattr(Exemplars, "wants", fault)
    stage = mirrored_by(tmp_path, exemplars={"worst": 1})
    try:
        await cast(stage, twin=False)
        with caplog.at_level(logging.WARNING, "understudy.shadow"):
            for value in range(3):
                await stage.ask(value)
            sums, account = await stage.sums(), await stage.account()
        assert (sums.items, account.mirrored, account.failed) == (3, 3, 0)
        assert keeper_of(stage).errors == 3
        assert [each.getMessage() for each in caplog.records].count("exemplars_not_taken") == 1
        await asyncio.to_thread(keeper_of(stage).close)
    finally:
        stage.close()


async def test_a_rollout_that_ends_has_what_waits_written_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = mirrored_by(tmp_path, exemplars={"worst": 1})
    try:
        candidate, _ = await cast(stage, twin=False)
        plant(monkeypatch, candidate)
        await stage.ask(PLANTED)
        assert (await stage.sums()).items == 1
        name = f"exemplars-{stage.lane.opening.chain}"
        assert name in {each.name for each in threading.enumerate()}
        stage.table(candidate=None)
        await until(lambda: name not in {each.name for each in threading.enumerate()})
        assert [each.max_delta for each in read(tmp_path / "reports" / DEPLOYMENT / FOLDER)] == [OFF_BY]
    finally:
        stage.close()


async def test_what_is_too_old_is_deleted_though_nothing_new_is_kept(tmp_path: Path) -> None:
    now_s = 1_800_000_000.0
    answer = Answer(status=Status.OK, outputs={"y": np.zeros((1, 2), np.float32)})
    settings = ExemplarSettings(worst=1, max_age_s=60.0)
    exemplars = Exemplars(tmp_path / FOLDER, settings, "salt", lambda: now_s)
    one = Exemplar(
        request_id="r",
        deployment_id=DEPLOYMENT,
        chain="chain",
        model=MODEL,
        baseline_version=BASELINE,
        candidate_version=CANDIDATE,
        stage=0,
        at_unix_us=round(now_s * 1e6),
        rows=1,
        max_delta=OFF_BY,
        inputs=(Tensor("x", "FP32", (1, 2), wire_bytes(1)),),
        baseline=answer,
        candidate=answer,
    )
    exemplars.keep(one)
    assert len(list(read(tmp_path / FOLDER))) == 1
    now_s += 61
    keeper = Keeper(
        exemplars,
        OPENING,
        comparator=open_comparator("classification", "y"),
        declared=(),
        window=lambda mirrored: None,
        forget_every_s=0.01,
    )
    await until(lambda: not list(read(tmp_path / FOLDER)))
    keeper.close()
    assert keeper.errors == 0


OPENING = Opening(
    deployment_id=DEPLOYMENT,
    model=MODEL,
    baseline=BASELINE,
    candidate=CANDIDATE,
    salt="salt",
    limits=Limits(),
    chain="chain",
)


@given(any_pairs())
def test_a_request_s_disagreement_is_the_largest_that_is_recorded_of_its_items(one: Pair) -> None:
    table = to_table([compact(one, COMPARATOR)], COMPARATOR, 0)
    recorded: list[list[Mapping[str, Any]]] = []
    for row in table.select(["item", "max_delta", "baseline_status", "candidate_status"]).to_pylist():
        recorded = [*recorded, [row]] if row["item"] == 0 else [*recorded[:-1], [*recorded[-1], row]]
    expected = []
    for rows in recorded:
        baseline, candidate = rows[0]["baseline_status"], rows[0]["candidate_status"]
        deltas = [row["max_delta"] for row in rows if row["max_delta"] is not None]
        if baseline == "ok" and candidate in ("error", "timeout", "malformed"):
            deltas = [DELTA_CAP]
        expected.append(max(deltas, default=None))
    assert deltas_of(one, COMPARATOR) == expected


# Where a request's inputs lie


def mirrored_of(rows: Sequence[int], requests: Sequence[Mapping[str, Tensor]], arena: Arena | None = None) -> Mirrored:
    """A batch as it came to the shadow process."""
    locate = None if arena is None else arena.locate
    frames = encode_batch(1, rows, requests, batched=True, measure=True, locate=locate)
    nothing = [0] * len(rows)
    handoff = Handoff(
        number=1,
        primary=Arm.BASELINE,
        stage=0,
        at_unix_us=0,
        rows=rows,
        recorded=range(len(rows)),
        request_ids=[""] * len(rows),
        latencies_us=nothing,
        sizes=nothing,
        slices=[],
        counted=Counted(),
    )
    head, *batch = (memoryview(frame) for frame in frames)
    return Mirrored(
        lane=None,  # type: ignore[arg-type]
        handoff=handoff,
        header=decode_batch_header(head),
        batch=batch,
        primary=Outcome(answers=()),
        legs=deque(),
    )


@st.composite
def small_requests(draw: st.DrawFn) -> tuple[list[int], list[dict[str, Tensor]]]:
    """Requests of a batch, whose tensors are small enough to be joined."""
    rows = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    width = draw(st.integers(0, 3))
    requests = []
    for count in rows:
        size = count * width
        words = draw(st.lists(st.binary(max_size=5), min_size=size, max_size=size))
        numbers = draw(st.binary(min_size=2 * size, max_size=2 * size))
        texts = np.array([*words, None], object)[:-1].reshape(count, width)
        halves = Tensor("halves", "FP16", (count, width), numbers)
        requests.append({"texts": from_numpy("texts", "BYTES", texts), "halves": halves})
    return rows, requests


@given(small_requests())
def test_small_inputs_are_found_in_what_was_joined_for_their_batch(
    batch: tuple[list[int], list[dict[str, Tensor]]],
) -> None:
    rows, requests = batch
    mirrored = mirrored_of(rows, requests)
    for at, request in enumerate(requests):
        assert inputs_of(mirrored, at, lambda _: None) == tuple(request.values())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rows", [[2], [1, 3, 2]])
def test_large_inputs_are_found_beside_small_ones_wherever_they_lie(rows: list[int], shared: bool) -> None:
    arena = Arena(4 << 20)
    random = np.random.default_rng(5)
    requests = []
    for count in rows:
        block = arena.allocate(count * SHARE_FROM_BYTES)
        assert block is not None
        block[:] = random.bytes(len(block))
        flags = Tensor("flags", "UINT8", (count, 2), random.bytes(2 * count))
        image = Tensor("image", "UINT8", (count, SHARE_FROM_BYTES), block)
        requests.append({"flags": flags, "image": image, "more": replace(flags, name="more")})
    mirrored = mirrored_of(rows, requests, arena if shared else None)
    assert bool(mirrored.header.blocks) is shared
    window = Window(arena.name)
    for at, request in enumerate(requests):
        copied = tuple(replace(each, data=bytes(each.data)) for each in request.values())
        assert inputs_of(mirrored, at, lambda _: window) == copied
    if shared:
        with pytest.raises(ValueError, match="cannot be read"):
            inputs_of(mirrored, 0, lambda _: None)
    arena.close()


async def test_what_waited_behind_a_batch_that_killed_its_replica_is_run_by_the_next_one(stage: Stage) -> None:
    stage.table()
    stage.thread(BASELINE)
    dying = stage.process(CANDIDATE, "exits", priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    await stage.in_shadow(1)
    for value in range(4):
        await stage.ask(value)
    await dying.ended()
    heir = stage.thread(CANDIDATE, priority=Priority.SHADOW)
    account = await stage.account()
    assert (account.failed, account.mirrored, sum(heir.batches)) == (1, 3, 3)


async def test_what_waited_behind_a_batch_that_hangs_is_tried_again(tmp_path: Path) -> None:
    stage = mirrored_by(tmp_path, timeout_s=0.3, twin=0)
    try:
        hanging, _ = await cast(stage, twin=False)
        hanging.fault = "waits"
        for value in range(4):
            await stage.ask(value)
        await until(lambda: hanging.batches)
        stage.thread(CANDIDATE, priority=Priority.SHADOW)
        account = await stage.account()
        assert (account.timed_out, account.mirrored, account.failed) == (1, 3, 0)
    finally:
        stage.close()
