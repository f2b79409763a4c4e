"""The router over real replicas: what clients get, and what becomes evidence, whatever the candidate does."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.tensor import from_numpy
from rollout.traffic import Priority, Route
from serving.errors import DeadlineError, ModelFailedError, NotFoundError, ServingError, UnavailableError
from serving.protocol.messages import InferRequest
from serving.router import Table
from serving.split import arm
from serving.wire import ReplyHeader, encode_reply_header
from shadow.pair import Arm
from shadow.store import read_segments
from tests.serving.doubler import BASELINE, CANDIDATE, EXITS, HANGS, MODEL, RAISES, Doubler, spec_of
from tests.serving.stage import DEADLINE_S, DEPLOYMENT, Stage, config_of, request_of, until

COUNT = 40


async def rehearsing(stage: Stage, fault: str = "none", *, weight: int = 0, **route: Any) -> Doubler:
    """A baseline and a candidate in threads, and a rollout at this weight; returns the candidate's backend."""
    stage.table(weight=weight, **route)
    stage.thread(BASELINE)
    candidate = stage.thread(CANDIDATE, fault, priority=Priority.NORMAL if weight else Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    return candidate


# Which version answers


async def test_without_a_rollout_the_baseline_answers_everything(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
    assert stage.router.default_version(MODEL) == BASELINE
    assert list(stage.router.models()[MODEL]) == [BASELINE]
    assert stage.router.lanes == {}


@pytest.mark.parametrize("weight", [0, 30, 100])
async def test_the_split_is_by_key_and_weight(stage: Stage, weight: int) -> None:
    await rehearsing(stage, weight=weight)
    expected = [CANDIDATE if arm("salt", f"k-{value}", weight) is Arm.CANDIDATE else BASELINE for value in range(COUNT)]
    assert await stage.ask_many(COUNT) == expected
    assert (CANDIDATE in expected) is (weight > 0)


async def test_a_version_in_the_url_is_served_whatever_the_weight_and_is_evidence_for_nothing(stage: Stage) -> None:
    await rehearsing(stage, weight=100)
    for version in (BASELINE, CANDIDATE):
        assert await stage.ask_many(5, version=version) == [version] * 5
    sums = await stage.sums()
    assert (sums.baseline.requests, sums.candidate.requests, sums.items) == (0, 0, 0)


@pytest.mark.parametrize(("name", "version"), [("baseline", BASELINE), ("candidate", CANDIDATE)])
async def test_an_arm_in_the_header_is_served_and_is_evidence_for_nothing(
    stage: Stage, name: str, version: int
) -> None:
    await rehearsing(stage, weight=50)
    assert await stage.ask_many(5, arm=name) == [version] * 5
    assert (await stage.sums()).items == 0


async def test_pinned_requests_travel_in_a_mirrored_batch_but_do_not_count(stage: Stage) -> None:
    stage.table()
    baseline = stage.thread(BASELINE, "waits")
    stage.thread(CANDIDATE, priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    first = asyncio.create_task(stage.ask(0))  # keeps the replica busy, so that the others share a batch
    await until(lambda: baseline.batches)
    pinned = [asyncio.create_task(stage.ask(value, version=BASELINE)) for value in (1, 2)]
    free = [asyncio.create_task(stage.ask(value)) for value in (3, 4)]
    await asyncio.sleep(0.01)
    baseline.release.set()
    await asyncio.gather(first, *pinned, *free)
    sums = await stage.sums()
    assert baseline.batches == [1, 4]
    assert (sums.items, sums.candidate.requests) == (3, 3)


async def test_a_candidate_is_not_to_be_had_where_there_is_none(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    with pytest.raises(NotFoundError, match="no candidate"):
        await stage.ask(arm="candidate")


async def test_a_version_that_is_not_loaded_and_a_model_that_is_not_served_are_not_found(stage: Stage) -> None:
    with pytest.raises(NotFoundError, match="unknown model 'x'"):
        stage.router.default_version("x")
    stage.table()
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    with pytest.raises(NotFoundError, match="no version 7 loaded"):
        await stage.ask(version=7)
    with pytest.raises(UnavailableError, match="version 2 has no live replica"):
        await stage.ask(version=CANDIDATE)
    assert not stage.router.ready(MODEL, CANDIDATE)
    assert not stage.router.ready("x", None)


async def test_a_reply_that_contradicts_its_batch_fails_that_batch_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(reply: ReplyHeader) -> bytes:
        segments = tuple(replace(each, requests=each.requests + 1) for each in reply.segments)
        return encode_reply_header(replace(reply, segments=segments))

    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    with monkeypatch.context() as patch:
        patch.setattr("serving.replica.encode_reply_header", lying)
        with pytest.raises(ModelFailedError, match="its replica's reply contradicts itself"):
            await stage.ask()
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT


async def test_replicas_at_normal_priority_take_over_from_those_in_shadow(stage: Stage) -> None:
    stage.table()
    stage.thread(BASELINE)
    in_shadow = stage.thread(CANDIDATE, priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    fresh = stage.thread(CANDIDATE, priority=Priority.NORMAL)
    await until(lambda: len(stage.directory.replicas()) == 3)
    await asyncio.sleep(0.15)  # a scan
    await stage.ask_many(10, version=CANDIDATE)
    assert (in_shadow.batches, sum(fresh.batches)) == ([], 10)


# The table


async def test_before_the_first_table_clients_are_told_to_come_again(stage: Stage) -> None:
    with pytest.raises(UnavailableError, match="'m': the control side has not said yet"):
        await stage.ask()


async def test_a_router_that_starts_again_knows_the_replicas_at_once(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    again = Stage(stage.folder)
    try:
        again.table(candidate=None)
        assert again.live(BASELINE)
        assert (await again.ask()).version == BASELINE
    finally:
        again.close()


async def test_a_batch_under_way_when_a_rollout_supersedes_another_is_evidence_for_neither(stage: Stage) -> None:
    stage.table(stage=2)
    baseline, candidate = stage.thread(BASELINE, "waits"), stage.thread(CANDIDATE, priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    early = asyncio.create_task(stage.ask())
    await until(lambda: baseline.batches)
    stage.table(deployment_id="m-2-20260101T000001Z", stage=2)
    baseline.release.set()
    await early
    await stage.ask(2)
    assert (await stage.sums(stage=2)).items == 1
    assert candidate.batches == [1]


async def test_a_candidate_s_failure_under_way_is_not_blamed_on_the_next_rollout(stage: Stage) -> None:
    candidate = await rehearsing(stage, "waits", weight=100)
    early = asyncio.create_task(stage.ask())
    await until(lambda: candidate.batches)
    stage.table(deployment_id="m-2-20260101T000001Z")
    assert (await early).version == BASELINE
    assert (await stage.sums()).candidate.timeouts == 0


async def test_a_table_of_an_older_epoch_or_count_is_ignored(stage: Stage) -> None:
    await rehearsing(stage, epoch=5)
    in_force = stage.router.table
    newer_but_of_an_old_controller = Table(4, 99, 30.0, {MODEL: Route(model=MODEL, baseline=CANDIDATE)})
    stage.router.apply(newer_but_of_an_old_controller)
    stage.router.apply(Table(5, 0, 30.0))
    assert stage.router.table is in_force
    assert stage.router.default_version(MODEL) == BASELINE


async def test_when_the_lease_runs_out_the_baseline_serves_alone_until_control_is_heard_again(stage: Stage) -> None:
    await rehearsing(stage, weight=100, lease_s=0.1)
    stage.router.renew()
    assert await stage.ask_many(5) == [CANDIDATE] * 5
    await asyncio.sleep(0.15)
    assert await stage.ask_many(5) == [BASELINE] * 5
    stage.router.renew()
    assert await stage.ask_many(5) == [CANDIDATE] * 5


async def test_when_the_last_rollout_ends_its_evidence_is_made_durable_and_the_shadow_process_ends(
    stage: Stage,
) -> None:
    await rehearsing(stage)
    await stage.ask_many(3)
    await stage.sums()
    await stage.ask_many(3)
    await until(lambda: stage.lane.held_bytes == 0)
    stage.table(candidate=None)
    assert stage.router.lanes == {}
    await until(lambda: stage.shadows[-1].ended)
    evidence = stage.folder / "reports" / DEPLOYMENT / "evidence"
    assert sum(segment.rows() for segment in read_segments(evidence)) == 6
    assert (stage.mirrors.pid, stage.mirrors.reports()) == (None, [])
    assert await stage.ask_many(3) == [BASELINE] * 3


async def test_a_shadow_process_that_cannot_be_had_harms_nobody_and_is_tried_again_at_a_later_renewal(
    stage: Stage,
) -> None:
    stage.may_fork = False
    await rehearsing(stage, weight=100)
    assert stage.router.lanes == {}
    assert await stage.ask_many(3) == [CANDIDATE] * 3
    stage.may_fork = True
    stage.router.renew()
    assert await stage.ask_many(3) == [CANDIDATE] * 3
    assert (await stage.sums()).candidate.answers == 3


# In shadow


@pytest.mark.parametrize("fault", ["none", "raises", "narrow"])
async def test_in_shadow_every_request_is_answered_by_the_baseline_and_run_by_the_candidate(
    stage: Stage, fault: str
) -> None:
    await rehearsing(stage, fault)
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
    sums = await stage.sums()
    account = await stage.account()
    good = COUNT if fault == "none" else 0
    assert (sums.baseline.requests, sums.candidate.requests) == (COUNT, COUNT)
    assert (sums.items, sums.agree, sums.delta_over) == (good, good, 0)
    assert (sums.candidate.errors, sums.candidate.malformed) == {
        "none": (0, 0),
        "raises": (COUNT, 0),
        "narrow": (0, COUNT),
    }[fault]
    assert (account.sampled, account.mirrored, account.failed) == (COUNT, good, COUNT - good)


async def test_both_sides_run_batches_of_the_same_size(stage: Stage) -> None:
    stage.table()
    baseline, candidate = stage.thread(BASELINE, "slow"), stage.thread(CANDIDATE, priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    await stage.ask_many(COUNT)
    sums = await stage.sums()
    assert baseline.batches == candidate.batches
    assert sums.baseline.batches == sums.candidate.batches == len(baseline.batches) < COUNT
    assert sums.candidate.service.n == sums.candidate.memory_readings == len(baseline.batches)


async def test_a_candidate_that_dies_in_shadow_is_its_own_failure(stage: Stage) -> None:
    stage.table()
    stage.thread(BASELINE)
    dying = stage.process(CANDIDATE, "exits", priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    assert (await stage.ask()).version == BASELINE
    assert (await dying.ended())[0] == 3
    sums = await stage.sums()
    assert (sums.candidate.requests, sums.candidate.errors, sums.baseline.failures) == (1, 1, 0)
    await until(lambda: not stage.live(CANDIDATE))
    assert stage.directory.replicas().keys() == {"1-0"}


async def test_a_candidate_that_hangs_in_shadow_times_out(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, mirror={"timeout_s": 0.2}))
    try:
        candidate = await rehearsing(stage, "waits")
        await stage.ask()
        sums, account = await stage.sums(), await stage.account()
        assert (sums.candidate.timeouts, account.timed_out, account.sampled) == (1, 1, 1)
        await stage.ask(2)
        await asyncio.sleep(0.1)
        assert len(candidate.batches) == 1  # it may hang: it gets nothing more until it answers
        candidate.release.set()
        assert (await stage.account()).mirrored == 1
    finally:
        stage.close()


async def test_what_the_lane_has_no_room_for_is_shed_and_the_account_balances_at_every_moment(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, mirror={"max_pending": 6}))
    try:
        candidate = await rehearsing(stage, "waits")
        for value in range(COUNT):
            await stage.ask(value)
            assert stage.lane.account().balanced
        await until(lambda: stage.lane.account().sampled == COUNT)
        full = stage.lane.account()
        assert (full.sampled, full.shed, full.pending) == (COUNT, COUNT - 6, 6)
        candidate.release.set()
        assert (await stage.sums()).items == 6
        settled = stage.lane.account()
        assert (settled.mirrored, settled.shed, settled.balanced) == (6, COUNT - 6, True)
    finally:
        stage.close()


@pytest.mark.parametrize("bound", [{"max_pending": 2}, {"max_pending_bytes": 20}])
async def test_a_batch_over_the_lane_s_bounds_by_itself_is_too_large(tmp_path: Path, bound: dict[str, int]) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, mirror=bound))
    try:
        candidate = await rehearsing(stage)
        await stage.ask(rows=3)
        await until(lambda: stage.lane.account().too_large == 3)
        assert (candidate.batches, stage.lane.account().balanced) == ([], True)
    finally:
        stage.close()


async def test_what_waits_longer_than_the_mirror_s_patience_is_shed_where_the_candidate_lives(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, mirror={"timeout_s": 0.3}))
    try:
        stage.table()
        baseline, candidate = stage.thread(BASELINE), stage.thread(CANDIDATE, "slow", priority=Priority.SHADOW)
        candidate.slow_s = 0.2
        await stage.cast(BASELINE, CANDIDATE)
        await stage.ask_many(COUNT)
        assert len(baseline.batches) > 6
        account = await stage.account()
        assert account.shed > 0
        assert account.mirrored > 0
        assert (account.timed_out, account.balanced) == (0, True)
    finally:
        stage.close()


async def test_what_no_replica_of_the_candidate_takes_is_the_candidate_s_timeout(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, mirror={"timeout_s": 0.1}))
    try:
        stage.table()
        stage.thread(BASELINE)
        await stage.cast(BASELINE)
        await stage.ask()
        assert (await stage.sums()).candidate.timeouts == 1
    finally:
        stage.close()


async def test_a_share_of_the_batches_is_mirrored(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, mirror={"sample": 0.5}))
    try:
        candidate = await rehearsing(stage)
        for value in range(COUNT):
            await stage.ask(value)
        sums = await stage.sums()
        assert 0.2 * COUNT < sums.items < 0.8 * COUNT
        assert stage.lane.account().sampled == sums.items == sum(candidate.batches)
    finally:
        stage.close()


# In canary


@pytest.mark.parametrize(
    ("fault", "failures"),
    [("raises", (COUNT, 0, 0)), ("narrow", (0, 0, COUNT))],
)
async def test_in_canary_the_baseline_answers_what_the_candidate_fails_and_that_is_counted(
    stage: Stage, fault: str, failures: tuple[int, int, int]
) -> None:
    await rehearsing(stage, fault, weight=100)
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
    sums = await stage.sums()
    candidate = sums.candidate
    assert (candidate.errors, candidate.timeouts, candidate.malformed) == failures
    assert (candidate.answers, candidate.answers_failed) == (COUNT, COUNT)
    assert stage.registry.get_sample_value("understudy_fallbacks_total", {"model": MODEL}) == COUNT


async def test_one_bad_request_falls_back_alone(stage: Stage) -> None:
    stage.table(weight=100)
    stage.thread(BASELINE)
    candidate = stage.thread(CANDIDATE, "waits")
    await stage.cast(BASELINE, CANDIDATE)
    first = asyncio.create_task(stage.ask(0))
    await until(lambda: candidate.batches)
    others = [asyncio.create_task(stage.ask(value)) for value in (1, 2, 3)]
    bad = asyncio.create_task(stage.router.infer(request_of(RAISES)))
    await asyncio.sleep(0.01)
    candidate.release.set()
    assert [(await task).version for task in (first, *others)] == [CANDIDATE] * 4
    with pytest.raises(ModelFailedError, match="no such weight"):  # this value makes the baseline raise too
        await bad
    sums = await stage.sums()
    assert (sums.candidate.errors, sums.candidate.answers) == (1, 5)


async def test_in_canary_a_candidate_that_dies_costs_no_client_its_answer(stage: Stage) -> None:
    stage.table(weight=100)
    stage.thread(BASELINE)
    dying = stage.process(CANDIDATE, "exits")
    await stage.cast(BASELINE, CANDIDATE)
    assert await stage.ask_many(COUNT) == [BASELINE] * COUNT
    assert (await dying.ended())[0] == 3
    assert await stage.ask_many(5) == [BASELINE] * 5
    sums = await stage.sums()
    assert (sums.candidate.errors, sums.candidate.answers_failed) == (COUNT + 5, COUNT + 5)


async def test_in_canary_a_candidate_that_hangs_leaves_the_baseline_half_of_the_deadline(stage: Stage) -> None:
    await rehearsing(stage, "waits", weight=100)
    started = asyncio.get_running_loop().time()
    assert await stage.ask_many(8) == [BASELINE] * 8
    took_s = asyncio.get_running_loop().time() - started
    assert DEADLINE_S / 2 <= took_s < DEADLINE_S
    assert await stage.ask_many(8) == [BASELINE] * 8  # at once: it is known to hang
    assert asyncio.get_running_loop().time() - started - took_s < DEADLINE_S / 2
    sums = await stage.sums()
    assert (sums.candidate.timeouts + sums.candidate.errors, sums.candidate.answers_failed) == (16, 16)
    assert sums.candidate.timeouts >= 8


async def test_a_client_in_a_hurry_does_not_prove_that_the_candidate_is_late(stage: Stage) -> None:
    candidate = await rehearsing(stage, "waits", weight=100)
    assert (await stage.ask(timeout_s=0.2)).version == BASELINE
    candidate.release.set()
    assert (await stage.ask(2)).version == CANDIDATE
    sums = await stage.sums()
    assert (sums.candidate.timeouts, sums.candidate.answers_failed) == (0, 0)


async def test_what_a_hanging_candidate_gave_up_is_not_tried_on_its_other_replicas(stage: Stage) -> None:
    stage.table(weight=100)
    baseline = stage.thread(BASELINE, "waits")
    candidates = [stage.thread(CANDIDATE, "waits") for _ in range(2)]
    await stage.cast(BASELINE, CANDIDATE)
    asked = asyncio.create_task(stage.ask())
    await until(lambda: baseline.batches)
    await asyncio.sleep(0.1)
    assert sorted(len(each.batches) for each in candidates) == [0, 1]
    baseline.release.set()
    assert (await asked).version == BASELINE


async def test_a_request_that_falls_back_while_its_candidate_is_promoted_is_answered(stage: Stage) -> None:
    candidate = await rehearsing(stage, "waits", weight=100)
    asked = asyncio.create_task(stage.ask())
    await until(lambda: candidate.batches)
    stage.router.apply(Table(1, 99, 30.0, {MODEL: Route(model=MODEL, baseline=CANDIDATE)}))
    await until(lambda: stage.registry.get_sample_value("understudy_fallbacks_total", {"model": MODEL}))
    candidate.release.set()
    assert (await asyncio.wait_for(asked, DEADLINE_S)).version == CANDIDATE


async def test_what_the_candidate_fails_is_not_refused_by_a_full_queue_and_takes_nobody_s_room(tmp_path: Path) -> None:
    batching = {"max_batch_size": 1, "max_queue": 2, "max_wait_ms": 9999}
    stage = Stage(tmp_path, config_of(tmp_path, batching=batching))
    try:
        stage.table(weight=100)
        baseline, _ = stage.thread(BASELINE, "waits"), stage.thread(CANDIDATE, "raises")
        await stage.cast(BASELINE, CANDIDATE)
        tasks = []
        for value in range(3):  # one runs, one is sent ahead, one waits
            tasks.append(asyncio.create_task(stage.ask(value, version=BASELINE)))
            await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(stage.ask(value)) for value in (3, 4)]
        failed = {"model": MODEL}
        await until(lambda: stage.registry.get_sample_value("understudy_fallbacks_total", failed) == 2)
        tasks.append(asyncio.create_task(stage.ask(5, version=BASELINE)))
        await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="queue full"):
            await stage.ask(6, version=BASELINE)
        baseline.release.set()
        assert [(await task).version for task in tasks] == [BASELINE] * 6
        assert stage.router._pools[MODEL, BASELINE].queued_items == 0
    finally:
        stage.close()


async def test_in_canary_what_the_candidate_answered_is_mirrored_to_the_baseline_s_twin(stage: Stage) -> None:
    stage.table(weight=100, stage=1)
    baseline, twin = stage.thread(BASELINE), stage.thread(BASELINE, priority=Priority.SHADOW)
    stage.thread(CANDIDATE)
    await stage.cast(BASELINE, CANDIDATE)
    await stage.in_shadow(1)
    assert await stage.ask_many(COUNT) == [CANDIDATE] * COUNT
    sums = await stage.sums(stage=1)
    assert (sums.baseline.requests, sums.candidate.answers, sums.items) == (COUNT, COUNT, COUNT)
    assert (sums.baseline.answers, sums.candidate.answers_failed) == (0, 0)
    assert (baseline.batches, sum(twin.batches)) == ([], COUNT)


async def test_in_canary_a_full_queue_of_the_candidate_is_its_failure(tmp_path: Path) -> None:
    batching = {"max_batch_size": 1, "max_queue": 2}
    stage = Stage(tmp_path, config_of(tmp_path, batching=batching))
    try:
        candidate = await rehearsing(stage, "waits", weight=100)
        first = asyncio.create_task(stage.ask(0))
        await until(lambda: candidate.batches)
        others = [asyncio.create_task(stage.ask(value)) for value in range(1, 5)]
        await asyncio.sleep(0.05)
        candidate.release.set()
        versions = [(await task).version for task in (first, *others)]
        assert versions.count(BASELINE) >= 1
        assert (await stage.sums()).candidate.errors == versions.count(BASELINE)
    finally:
        stage.close()


async def test_without_a_replica_of_the_candidate_its_clients_are_the_baseline_s(stage: Stage) -> None:
    stage.table(weight=100)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    assert await stage.ask_many(5) == [BASELINE] * 5
    assert (await stage.sums()).candidate.errors == 5


async def test_requests_queued_for_a_candidate_that_withdraws_are_answered_at_once(stage: Stage) -> None:
    stage.table(weight=100)
    stage.thread(BASELINE)
    leaving = stage.thread(CANDIDATE, "waits")
    await stage.cast(BASELINE, CANDIDATE)
    tasks = [asyncio.create_task(stage.ask(value)) for value in range(12)]
    await until(lambda: leaving.batches)
    await asyncio.sleep(0.05)
    stage.directory.withdraw("2-1")
    await until(lambda: sum(task.done() for task in tasks) >= 4, timeout_s=DEADLINE_S / 4)
    leaving.release.set()
    assert {(await task).version for task in tasks} == {BASELINE, CANDIDATE}


# The baseline in trouble


async def test_a_baseline_s_failure_is_the_client_s_with_the_model_s_own_words(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    with pytest.raises(ModelFailedError, match=r"model 'm': BackendError: no such weight"):
        await stage.router.infer(request_of(RAISES))
    assert (await stage.ask()).version == BASELINE


async def test_no_answer_within_the_deadline_is_said_in_time(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE, "waits")
    await stage.cast(BASELINE)
    started = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineError, match="within the deadline"):
        await stage.ask(timeout_s=0.2)
    assert 0.2 <= asyncio.get_running_loop().time() - started < 0.5


async def test_a_queue_that_is_full_refuses(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, batching={"max_batch_size": 1, "max_queue": 2, "max_wait_ms": 9999}))
    try:
        stage.table(candidate=None)
        baseline = stage.thread(BASELINE, "waits")
        await stage.cast(BASELINE)
        tasks = []
        for value in range(4):  # one runs, one is sent ahead, two wait
            tasks.append(asyncio.create_task(stage.ask(value)))
            await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match=r"queue full \(2 items\)"):
            await stage.ask(9)
        baseline.release.set()
        assert [(await task).version for task in tasks] == [BASELINE] * 4
    finally:
        stage.close()


async def test_a_replica_that_is_killed_loses_no_request(stage: Stage) -> None:
    stage.table(candidate=None)
    hung = stage.process(BASELINE, "hangs")
    await stage.cast(BASELINE)
    tasks = [asyncio.create_task(stage.ask(value)) for value in range(8)]
    await asyncio.sleep(0.1)
    stage.thread(BASELINE)
    hung.send(signal.SIGKILL)
    assert [(await task).version for task in tasks] == [BASELINE] * 8


@pytest.mark.parametrize(("neighbours", "deaths"), [(1, 2), (7, 3)])
async def test_a_request_that_kills_is_quarantined_and_its_neighbours_are_answered(
    tmp_path: Path, neighbours: int, deaths: int
) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, batching={"max_batch_size": 8}))
    try:
        stage.table(candidate=None)
        for _ in range(deaths + 1):
            stage.process(BASELINE)
        await until(lambda: len(stage.router._fleet._links) == deaths + 1)
        good = [asyncio.create_task(stage.ask(value)) for value in range(neighbours)]
        with pytest.raises(ModelFailedError, match=r"its process died \d times running this request"):
            await stage.router.infer(request_of(EXITS))
        assert [(await task).version for task in good] == [BASELINE] * neighbours
        assert len(stage.router._fleet._links) == 1
    finally:
        stage.close()


async def test_a_request_whose_replica_died_and_for_which_no_other_comes_ends_at_its_deadline(stage: Stage) -> None:
    stage.table(candidate=None)
    stage.process(BASELINE)
    await stage.cast(BASELINE)
    started = asyncio.get_running_loop().time()
    with pytest.raises(UnavailableError, match="no replica was free within the deadline"):
        await stage.router.infer(request_of(EXITS))
    assert asyncio.get_running_loop().time() - started < DEADLINE_S + 0.5
    assert not stage.router._pools[MODEL, BASELINE].waiting


async def test_a_client_that_leaves_takes_its_queued_request_along(stage: Stage) -> None:
    stage.table(candidate=None)
    baseline = stage.thread(BASELINE, "waits")
    await stage.cast(BASELINE)
    first = asyncio.create_task(stage.ask(0))
    await until(lambda: baseline.batches)
    leaver = asyncio.create_task(stage.ask(1, rows=3))
    await asyncio.sleep(0)
    leaver.cancel()
    stayer = asyncio.create_task(stage.ask(2))
    await asyncio.sleep(0.05)
    baseline.release.set()
    assert [(await task).version for task in (first, stayer)] == [BASELINE] * 2
    assert sum(baseline.batches) in (2, 5)  # 5: it had been sent ahead before its client left
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_a_router_that_stops_answers_everybody_who_still_waits(stage: Stage) -> None:
    stage.table()
    stage.thread(BASELINE, "waits")
    stage.thread(CANDIDATE, "waits")
    await stage.cast(BASELINE, CANDIDATE)
    tasks = [asyncio.create_task(stage.ask(value)) for value in range(12)]
    await asyncio.sleep(0.05)
    stage.router.close()
    for task in tasks:
        with pytest.raises(ServingError, match="stopping"):
            await task


async def test_a_model_without_batch_dimension_takes_one_request_at_a_time(stage: Stage) -> None:
    stage.table(weight=100)
    baseline = stage.thread(BASELINE, spec=spec_of(BASELINE, max_batch_size=0))
    await stage.cast(BASELINE)
    requests = [
        InferRequest(
            model=MODEL,
            request_id=str(value),
            key=str(value),
            inputs={"x": from_numpy("x", "FP32", np.full(2, value, np.float32))},
        )
        for value in range(4)
    ]
    answers = await asyncio.gather(*(stage.router.infer(each) for each in requests))
    assert [answer.outputs["y"].numpy().tolist() for answer in answers] == [[2.0 * v, 2.0 * v] for v in range(4)]
    assert baseline.batches == [2] * 4  # the length of its vector
    assert (await stage.sums()).candidate.requests == 4


async def test_a_hanging_baseline_gets_no_more_work_while_another_replica_lives(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, batching={"max_batch_size": 1, "timeout_s": 0.3}))
    try:
        stage.table(candidate=None)
        stage.thread(BASELINE)
        await stage.cast(BASELINE)
        hanging = asyncio.create_task(stage.router.infer(request_of(HANGS, timeout_s=1)))
        await asyncio.sleep(0.05)
        second = stage.thread(BASELINE)
        await until(lambda: len(stage.router._fleet._links) == 2)
        assert (await stage.ask(1)).version == BASELINE
        await until(lambda: len(second.batches) == 2)  # the request that hung was tried again
        with pytest.raises(ServingError):
            await hanging
    finally:
        stage.close()
