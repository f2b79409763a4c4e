import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import update

from rollout.controller import Limits
from rollout.database import ROLLOUTS
from rollout.decision import Look, check_complete, decide
from rollout.entries import Entry, read_entries, verify_chain
from rollout.errors import RolloutError, StaleControllerError
from rollout.journal import Journal
from rollout.judge import judge
from rollout.judgement import Verdict
from rollout.machine import Event, Position, State
from rollout.traffic import Priority, Readiness, Route
from shadow.accounting import Account, Company, Ledger
from shadow.cells import Cell
from shadow.errors import EvidenceError
from shadow.evidence import ArmSums, Evidence, StageSums
from shadow.evidence import Limits as EvidenceLimits
from tests.rollout.stage import BASELINE, CANDIDATE, MODEL, Crash, Stage, head, judged, policy, snapshot


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# The way of a rollout


def test_a_healthy_candidate_goes_through_every_stage_and_becomes_the_baseline(stage: Stage) -> None:
    deployment_id, weights = stage.start(), []
    for _ in range(8):
        stage.tick(Verdict.PASS)
        weights.append(stage.route.weight)
    assert weights == [0, 0, 5, 20, 50, 100, 0, 0]
    assert stage.route == Route(model=MODEL, baseline=CANDIDATE)
    assert stage.controller.baseline(MODEL) == CANDIDATE
    assert stage.traffic.unloaded == []
    assert stage.events(deployment_id) == ["start", "loaded", "pass", "loaded", "pass", "pass", "pass", "pass_last"]


def test_in_shadow_everything_is_mirrored_and_no_client_is_answered_by_the_candidate(stage: Stage) -> None:
    deployment_id = stage.reach(0)
    assert stage.route == Route(
        model=MODEL,
        baseline=BASELINE,
        candidate=CANDIDATE,
        weight=0,
        deployment_id=deployment_id,
        stage=0,
        salt="salt",
        mirror=True,
        limits=EvidenceLimits(tolerance=0.01),
    )


def test_until_the_candidate_is_loaded_the_baseline_serves_alone(stage: Stage) -> None:
    stage.traffic.readiness[Priority.SHADOW] = (Readiness.LOADING, "")
    stage.start()
    stage.tick(Verdict.PASS)
    assert stage.route == Route(model=MODEL, baseline=BASELINE)
    assert stage.state == State.LOADING


def test_fresh_replicas_at_normal_priority_are_ready_before_the_first_client_is_sent(stage: Stage) -> None:
    stage.reach(0)
    stage.traffic.readiness[Priority.NORMAL] = (Readiness.LOADING, "")
    stage.tick(Verdict.PASS)
    stage.tick(Verdict.PASS)
    assert (stage.state, stage.route.weight, stage.route.mirror) == (State.STAGING, 0, True)
    assert (MODEL, CANDIDATE, Priority.NORMAL) in stage.traffic.loaded
    stage.traffic.readiness[Priority.NORMAL] = (Readiness.READY, "")
    stage.tick(Verdict.HOLD)
    assert (stage.state, stage.route.weight, stage.route.stage) == (State.CANARY, 5, 1)


def test_the_judge_is_asked_about_the_stage_and_the_time_since_it_was_entered(stage: Stage) -> None:
    stage.reach(5)
    stage.looks.clear()
    stage.tick(after_s=10)
    stage.tick(after_s=20)
    assert stage.looks == [(1, 10.0), (1, 30.0)]


def test_the_judge_is_told_what_makes_the_evidence_doubtful_and_the_journal_keeps_it(stage: Stage) -> None:
    deployment_id = stage.reach(0)
    shed = Account(sampled=400, shed=400)
    coverage = Ledger(
        {Cell(0, ""): Account(sampled=4000, mirrored=4000), Cell(5, ""): shed},
        {Cell(0, ""): Company(bucket=4000, slice=4000), Cell(5, ""): Company(bucket=400, slice=400)},
    )
    stage.traffic.snapshots[deployment_id] = replace(snapshot(), coverage=coverage)
    stage.tick(Verdict.PASS)
    (doubt,) = stage.doubts
    assert doubt.reason.startswith("coverage is biased: requests of 256 KiB … 1 MiB: 0 % mirrored")
    assert Ledger.from_json(stage.journal.entries(deployment_id)[-1]["coverage"]) == coverage


@pytest.mark.parametrize("weight", [0, 5, 20, 50, 100])
def test_proved_harm_at_any_stage_sends_everybody_back_at_once(stage: Stage, weight: int) -> None:
    deployment_id = stage.reach(weight)
    stage.traffic.calls.clear()
    stage.tick(Verdict.FAIL)
    assert stage.route == Route(model=MODEL, baseline=BASELINE)
    assert stage.traffic.unloaded == [(MODEL, CANDIDATE)]
    assert stage.traffic.calls.index(f"route {MODEL} 0") < stage.traffic.calls.index(f"unload {MODEL} {CANDIDATE}")
    assert stage.events(deployment_id)[-1] == "fail"
    assert stage.controller.baseline(MODEL) == BASELINE
    assert "REJECT" in (stage.reports / deployment_id / "deployment_verdict.md").read_text().splitlines()[-1]


def test_a_candidate_that_cannot_be_loaded_is_rolled_back_with_the_reason(stage: Stage) -> None:
    deployment_id = stage.start()
    stage.traffic.readiness[Priority.SHADOW] = (Readiness.FAILED, "sha256 mismatch")
    stage.tick()
    status = stage.controller.status(MODEL)
    assert status.rollout.position.state is State.ROLLED_BACK
    assert status.rollout.reason == "the candidate did not load: sha256 mismatch"
    assert status.to_json()["outcome"] == "PAUSE_AND_FIX"
    assert stage.events(deployment_id) == ["start", "load_failed"]


def test_a_candidate_that_does_not_become_ready_in_time_is_rolled_back(stage: Stage) -> None:
    stage.traffic.readiness[Priority.SHADOW] = (Readiness.LOADING, "compiling")
    stage.start()
    stage.tick(after_s=120)
    assert stage.state == State.LOADING
    stage.tick(after_s=1)
    assert stage.state == State.ROLLED_BACK
    assert stage.controller.status(MODEL).rollout.reason == "the candidate did not load within 120 s: compiling"


def test_a_candidate_whose_replicas_are_lost_for_good_in_canary_is_rolled_back(stage: Stage) -> None:
    stage.reach(20)
    stage.traffic.readiness[Priority.NORMAL] = (Readiness.FAILED, "out of memory")
    stage.tick()
    assert (stage.state, stage.route.weight) == (State.ROLLED_BACK, 0)


@pytest.mark.parametrize(("on_budget", "ends", "weight"), [("roll_back", "rolled_back", 0), ("pause", "paused", 5)])
def test_a_stage_that_stays_undecided_over_its_budget_ends_as_the_policy_says(
    stage: Stage, on_budget: str, ends: str, weight: int
) -> None:
    stage.start(budget_s=100, on_budget=on_budget)
    for _ in range(3):
        stage.tick(Verdict.PASS)
    stage.tick(Verdict.HOLD, after_s=100)
    assert stage.state == State.CANARY
    stage.tick(Verdict.HOLD)
    status = stage.controller.status(MODEL)
    assert (status.rollout.position.state, stage.route.weight) == (ends, weight)
    assert status.rollout.reason == "undecided after 100 s: error_rate says HOLD"
    assert status.to_json()["outcome"] == "PAUSE_AND_FIX"


# What is broken never advances


@pytest.mark.parametrize("error", [EvidenceError("router-2 is silent"), OSError("disk"), ValueError("math domain")])
def test_evidence_that_cannot_be_read_holds_as_an_error(stage: Stage, error: Exception) -> None:
    stage.reach(5)
    stage.judgement = judged(Verdict.PASS)
    stage.traffic.broken["snapshot"] = error
    stage.tick()
    judgement = stage.controller.status(MODEL).judgement
    assert judgement is not None
    assert (judgement.verdict, stage.route.weight) == (Verdict.ERROR, 5)
    assert str(error) in judgement.reason


def test_a_judge_that_breaks_holds_as_an_error(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    stage.judgement = ZeroDivisionError("float division")
    stage.tick()
    last = stage.journal.entries(deployment_id)[-1]
    assert (last["event"], last["judgement"]["verdict"], last["weight"]) == ("judgement", "ERROR", 5)
    assert last["evidence"] is None


def test_evidence_that_lost_a_recorded_segment_is_not_judged(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    stage.traffic.snapshots[deployment_id] = snapshot(segments=3)
    stage.tick()
    stage.traffic.snapshots[deployment_id] = snapshot(segments=2)
    stage.tick(Verdict.PASS)
    judgement = stage.controller.status(MODEL).judgement
    assert judgement is not None
    assert judgement.reason == "evidence chain router-1: 3 segments recorded, 2 found"
    assert stage.route.weight == 5


def test_evidence_is_complete_when_every_recorded_chain_reaches_as_far() -> None:
    check_complete([head(segments=2, sha256="b" * 64), head("new")], {"router-1": head(segments=1)})
    with pytest.raises(EvidenceError, match="chain router-1: 1 segments recorded, 0 found"):
        check_complete([head("new")], {"router-1": head()})
    with pytest.raises(EvidenceError, match="chain router-1: segment 1 is not the one"):
        check_complete([head(sha256="b" * 64)], {"router-1": head()})


def test_no_weight_rises_while_the_candidates_replicas_are_on_their_way(stage: Stage) -> None:
    stage.reach(5)
    stage.traffic.readiness[Priority.NORMAL] = (Readiness.LOADING, "restarting")
    stage.tick(Verdict.PASS)
    assert stage.route.weight == 5
    stage.traffic.readiness[Priority.NORMAL] = (Readiness.READY, "")
    stage.tick(Verdict.PASS)
    assert stage.route.weight == 20


def test_one_rollout_that_breaks_does_not_stop_the_others(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    broken = stage.start()
    stage.controller.start("faces", 8, policy(), stages=[0, 5, 20, 50, 100], tolerance=0.1, actor="ada")
    (stage.reports / broken / "journal.jsonl").write_text('{"hash": "forged"}\n')
    stage.restart()
    stage.tick(Verdict.HOLD)
    stage.tick(Verdict.HOLD)
    assert stage.traffic.routes["faces"].mirror
    assert stage.route.mirror, "a journal file that cannot be written delays no effect"
    fault = stage.controller.status(MODEL).fault
    assert fault is not None
    assert "entry 1 is not the database's" in fault
    assert sum("is not the database's" in record.message for record in caplog.records) == 1
    assert stage.controller.status("faces").fault is None


def test_an_effect_that_fails_is_tried_again_at_the_next_tick(stage: Stage) -> None:
    stage.reach(5)
    stage.traffic.broken["route"] = ConnectionError("no router")
    stage.tick(Verdict.FAIL)
    assert (stage.state, stage.route.weight) == (State.ROLLED_BACK, 5)
    del stage.traffic.broken["route"]
    stage.tick()
    assert stage.route == Route(model=MODEL, baseline=BASELINE)
    assert stage.traffic.unloaded == [(MODEL, CANDIDATE)]


# The journal


def test_a_look_that_changes_nothing_is_journaled_when_its_verdict_is_new_and_once_a_minute(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    before = len(stage.events(deployment_id))
    for _ in range(59):
        stage.tick(Verdict.HOLD)
    assert stage.events(deployment_id)[before:] == ["judgement"]
    for _ in range(60):
        stage.tick(Verdict.HOLD)
    assert stage.events(deployment_id)[before:] == ["judgement"] * 2
    stage.tick(Verdict.ERROR)
    assert stage.events(deployment_id)[before:] == ["judgement"] * 3


def test_an_entry_says_what_was_decided_on_which_evidence(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    entries = stage.journal.entries(deployment_id)
    assert verify_chain(entries)
    assert entries[0]["rollout"]["policy"]["name"] == "improvement"
    last = entries[-1]
    assert {key: last[key] for key in ("event", "state", "stage", "weight", "actor", "at", "deployment_id")} == {
        "event": "loaded",
        "state": "canary",
        "stage": 1,
        "weight": 5,
        "actor": "gates",
        "at": stage.clock.now().isoformat(),
        "deployment_id": deployment_id,
    }
    assert last["heads"] == [{"chain": "router-1", "segments": 1, "rows": 10, "sha256": "a" * 64}]
    assert last["evidence"]["0"]["items"] == 10
    assert len(last["run_id"]) == 12
    assert last["file"] == f"{deployment_id}/journal.jsonl"
    assert last["judgement"]["gates"][0]["gate"] == "error_rate"


def test_the_file_follows_the_database(stage: Stage) -> None:
    deployment_id = stage.reach(20)
    assert read_entries(stage.reports / deployment_id / "journal.jsonl") == stage.journal.entries(deployment_id)


def test_the_heads_in_the_database_follow_the_evidence_between_entries(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    stage.tick()
    stage.traffic.snapshots[deployment_id] = snapshot(segments=4)
    before = len(stage.events(deployment_id))
    stage.tick()
    assert stage.journal.heads(deployment_id)["router-1"].segments == 4
    assert len(stage.events(deployment_id)) == before


def test_nothing_is_published_that_is_not_journaled(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    stage.judgement = judged(Verdict.PASS)
    stage.traffic.fuse.left = 3  # load, snapshot, journal: dies between the commit and the route
    with pytest.raises(Crash):
        stage.tick()
    assert stage.route.weight == 5
    assert stage.events(deployment_id)[-1] == "pass"
    stage.restart()
    assert stage.route.weight == 20


# Restarts


@pytest.mark.parametrize("weight", [0, 5, 20, 50, 100])
def test_a_new_controller_publishes_the_journaled_stage_at_once(stage: Stage, weight: int) -> None:
    deployment_id = stage.reach(weight)
    route = stage.route
    stage.traffic.routes.clear()
    stage.restart()
    assert stage.route == route
    assert stage.traffic.routes["faces"] == Route(model="faces", baseline=7)
    assert stage.events(deployment_id)[-1] == "restart"


def test_after_a_full_restart_the_baseline_serves_alone_until_the_candidate_is_back(stage: Stage) -> None:
    stage.reach(20)
    stage.traffic.readiness[Priority.NORMAL] = (Readiness.LOADING, "")
    stage.restart()
    stage.tick(Verdict.PASS)
    assert stage.route == Route(model=MODEL, baseline=BASELINE)
    stage.traffic.readiness[Priority.NORMAL] = (Readiness.READY, "")
    stage.tick(Verdict.HOLD)
    assert stage.route.weight == 20


def test_the_time_in_a_stage_counts_on_across_a_restart(stage: Stage) -> None:
    stage.reach(5)
    stage.tick(after_s=30)
    stage.restart()
    stage.tick(after_s=5)
    assert stage.looks[-1] == (1, 35.0)


def test_the_time_without_a_controller_does_not_use_up_the_budget(stage: Stage) -> None:
    stage.reach(5)
    stage.clock.at_s += 10_000
    stage.restart()
    stage.tick()
    assert stage.state == State.CANARY
    stage.tick(after_s=3601)
    assert stage.state == State.ROLLED_BACK


def test_a_wall_clock_that_jumps_does_not_shorten_a_stage(stage: Stage) -> None:
    stage.reach(5)
    stage.tick(after_s=10)
    now = stage.controller._tools.now()
    object.__setattr__(stage.controller._tools, "now", lambda: now.replace(year=2027))
    stage.tick(after_s=1)
    assert stage.looks[-1] == (1, 11.0)


def test_the_promoted_version_is_the_baseline_after_a_restart_whatever_the_config_says(stage: Stage) -> None:
    stage.reach(100)
    stage.tick(Verdict.PASS)
    stage.traffic.routes.clear()
    stage.restart()
    assert stage.route == Route(model=MODEL, baseline=CANDIDATE)


def test_a_controller_whose_epoch_is_over_stops_and_publishes_nothing(stage: Stage) -> None:
    stage.reach(5)
    old, newer = stage.controller, Journal(stage.url)
    newer.take_epoch()
    calls = list(stage.traffic.calls)
    with pytest.raises(StaleControllerError):
        old.tick()
    with pytest.raises(StaleControllerError):
        old.abort(MODEL, actor="ada")
    assert "route" not in "".join(stage.traffic.calls[len(calls) :])
    newer.close()


# Commands


def test_a_second_rollout_is_refused_unless_it_supersedes_the_first(stage: Stage) -> None:
    first = stage.reach(50)
    with pytest.raises(RolloutError, match=f"{first} is active"):
        stage.start(3)
    second = stage.start(3, supersede=True)
    ended = stage.journal.rollout(first)
    assert ended is not None
    assert (ended.position.state, ended.reason) == (State.SUPERSEDED, f"superseded by {second}")
    assert stage.route == Route(model=MODEL, baseline=BASELINE)
    assert stage.traffic.unloaded == [(MODEL, CANDIDATE)]
    assert (stage.reports / first / "deployment_verdict.md").exists()
    stage.tick()
    assert (stage.route.candidate, stage.route.deployment_id) == (3, second)


def test_superseding_with_the_same_candidate_keeps_its_replicas(stage: Stage) -> None:
    first = stage.reach(50)
    assert stage.start(supersede=True) != first
    stage.tick()
    assert stage.traffic.unloaded == []


def test_two_rollouts_of_one_second_have_two_names(stage: Stage) -> None:
    names = [stage.start(supersede=True) for _ in range(3)]
    assert names == [f"digits-2-20261121T023015Z{end}" for end in ("", "-2", "-3")]


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (lambda stage: stage.start(BASELINE), "version 1 is the baseline already"),
        (
            lambda stage: stage.controller.start("cats", 2, policy(), stages=(0, 100), tolerance=0, actor="ada"),
            r"cats: unknown model; expected one of \['digits', 'faces'\]",
        ),
        (
            lambda stage: stage.controller.start(MODEL, 2, policy(), stages=(5, 100), tolerance=0, actor="ada"),
            "rise from 0 to 100",
        ),
        (lambda stage: stage.controller.pause(MODEL, actor="ada"), "no rollout is active"),
        (lambda stage: stage.controller.status(MODEL), "no rollout yet"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_in_one_line(
    stage: Stage, start: Callable[[Stage], object], says: str
) -> None:
    with pytest.raises(RolloutError, match=says) as refusal:
        start(stage)
    assert "\n" not in str(refusal.value)
    assert stage.journal.rollouts(MODEL) == []


def test_a_paused_rollout_keeps_its_weight_and_does_not_advance(stage: Stage) -> None:
    stage.reach(20)
    assert stage.controller.pause(MODEL, actor="ada", reason="lunch").rollout.reason == "lunch"
    for _ in range(3):
        stage.tick(Verdict.PASS, after_s=4000)
    assert (stage.state, stage.route.weight) == (State.PAUSED, 20)
    stage.controller.resume(MODEL, actor="ada")
    stage.tick(Verdict.PASS)
    assert stage.route.weight == 50


def test_harm_rolls_back_even_a_paused_rollout(stage: Stage) -> None:
    stage.reach(20)
    stage.controller.pause(MODEL, actor="ada")
    stage.tick(Verdict.FAIL)
    assert (stage.state, stage.route.weight) == (State.ROLLED_BACK, 0)


def test_resuming_starts_the_stages_budget_anew(stage: Stage) -> None:
    stage.start(budget_s=100, on_budget="pause")
    stage.tick()
    stage.tick(after_s=101)
    assert stage.state == State.PAUSED
    stage.controller.resume(MODEL, actor="ada")
    stage.tick(after_s=99)
    assert stage.state == State.SHADOW


def test_a_person_can_raise_the_weight_to_a_later_stage(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    assert stage.controller.promote(MODEL, actor="ada", reason="trust me", to=50).rollout.weight == 50
    assert stage.route.weight == 50
    last = stage.journal.entries(deployment_id)[-1]
    assert (last["event"], last["actor"], last["reason"]) == ("promote", "ada", "trust me")


def test_a_person_can_promote_past_the_last_stage(stage: Stage) -> None:
    stage.reach(100)
    stage.controller.promote(MODEL, actor="ada")
    assert stage.controller.baseline(MODEL) == CANDIDATE


def test_nobody_can_promote_a_candidate_that_is_proved_harmful(stage: Stage) -> None:
    stage.reach(5)
    stage.judgement = judged(Verdict.FAIL)
    with pytest.raises(RolloutError, match="harm is proved"):
        stage.controller.promote(MODEL, actor="ada")
    stage.tick()
    assert stage.state == State.ROLLED_BACK


def test_a_promotion_to_no_stage_leaves_everything_as_it_is(stage: Stage) -> None:
    deployment_id = stage.reach(20)
    before = stage.events(deployment_id)
    with pytest.raises(RolloutError, match=r"expected one of \[50, 100\]"):
        stage.controller.promote(MODEL, actor="ada", to=33)
    assert stage.events(deployment_id) == before


@pytest.mark.parametrize(("command", "state"), [("abort", "aborted"), ("rollback", "rolled_back")])
def test_a_person_can_end_a_rollout_and_the_baseline_serves_alone(stage: Stage, command: str, state: str) -> None:
    stage.reach(50)
    status = getattr(stage.controller, command)(MODEL, actor="ada")
    assert (status.rollout.position.state, stage.route) == (state, Route(model=MODEL, baseline=BASELINE))
    assert stage.traffic.unloaded == [(MODEL, CANDIDATE)]
    assert status.to_json()["outcome"] == "SHADOW ONLY"


def test_a_rollback_by_hand_works_while_the_evidence_is_broken(stage: Stage) -> None:
    stage.reach(50)
    stage.traffic.broken |= {"snapshot": EvidenceError("gone"), "load": ConnectionError("gone")}
    stage.controller.rollback(MODEL, actor="ada")
    assert stage.route.weight == 0


def test_a_rollout_whose_policy_cannot_be_read_leaves_the_baseline_serving_and_can_be_ended(stage: Stage) -> None:
    deployment_id = stage.reach(50)
    with stage.journal._engine.begin() as connection:
        connection.execute(update(ROLLOUTS).values(policy={"name": "of another release"}))
    stage.restart()
    stage.tick()
    assert stage.route == Route(model=MODEL, baseline=BASELINE)
    assert "validation error" in str(stage.controller.status(MODEL).fault)
    stage.controller.abort(MODEL, actor="ada")
    assert stage.state == State.ABORTED
    assert (stage.reports / deployment_id / "deployment_verdict.md").exists()


def test_the_status_says_where_it_stands_and_what_is_missing(stage: Stage) -> None:
    deployment_id = stage.reach(5)
    stage.tick(after_s=12)
    status = stage.controller.status(MODEL).to_json()
    wanted = ("deployment_id", "state", "stage", "weight", "elapsed_s", "missing", "policy", "active", "fault")
    assert {key: status[key] for key in wanted} == {
        "deployment_id": deployment_id,
        "state": "canary",
        "stage": 1,
        "weight": 5,
        "elapsed_s": 12.0,
        "missing": ["error_rate: error_rate says HOLD"],
        "policy": "improvement",
        "active": True,
        "fault": None,
    }
    assert status["accounting"]["sampled"] == 10
    assert status["heads"][0]["chain"] == "router-1"


# With the real judge


def healthy(requests: int, errors: int = 0) -> StageSums:
    return StageSums(candidate=ArmSums(requests=requests, errors=errors), pairs=requests)


def test_the_real_judge_promotes_a_candidate_that_does_not_fail(tmp_path: Path) -> None:
    stage = Stage(tmp_path, judge=judge)
    deployment_id, sums = stage.start(), {}
    for index in (0, 0, 0, 1, 2, 3, 4):
        sums[index] = healthy(2000)
        stage.traffic.snapshots[deployment_id] = replace(snapshot(), evidence=Evidence(dict(sums)))
        stage.tick()
    assert stage.controller.baseline(MODEL) == CANDIDATE
    last = (stage.reports / deployment_id / "deployment_verdict.md").read_text().splitlines()[-1]
    assert last == "Execution Verdict: GO — confidence = 0.99"


def test_the_real_judge_rolls_back_a_candidate_that_fails(tmp_path: Path) -> None:
    stage = Stage(tmp_path, judge=judge)
    deployment_id = stage.start()
    stage.traffic.snapshots[deployment_id] = replace(snapshot(), evidence=Evidence({0: healthy(500, errors=50)}))
    stage.tick()
    stage.tick()
    status = stage.controller.status(MODEL).to_json()
    assert (status["state"], status["outcome"]) == ("rolled_back", "REJECT")
    assert "error_rate" in status["reason"]


# Decisions as values


def look(verdict: Verdict | None = None, readiness: Readiness = Readiness.READY) -> Look:
    return Look(readiness=readiness, why="", judgement=judged(verdict) if verdict else None)


@pytest.mark.parametrize(
    ("state", "seen", "patience_s", "event"),
    [
        (State.LOADING, look(readiness=Readiness.LOADING), 1, None),
        (State.LOADING, look(readiness=Readiness.LOADING), 121, Event.LOAD_FAILED),
        (State.LOADING, look(readiness=Readiness.FAILED), 1, Event.LOAD_FAILED),
        (State.LOADING, look(), 1, Event.LOADED),
        (State.STAGING, look(Verdict.HOLD), 1, Event.LOADED),
        (State.STAGING, look(Verdict.FAIL), 1, Event.FAIL),
        (State.STAGING, look(Verdict.FAIL, Readiness.FAILED), 1, Event.FAIL),
        (State.SHADOW, look(Verdict.PASS), 1, Event.PASS),
        (State.SHADOW, look(Verdict.ERROR), 1, None),
        (State.CANARY, look(Verdict.HOLD), 3601, Event.EXHAUSTED),
        (State.CANARY, look(Verdict.ERROR), 3601, Event.EXHAUSTED),
        (State.CANARY, look(Verdict.PASS), 3601, Event.PASS),
        (State.PAUSED, look(Verdict.PASS), 3601, None),
        (State.PAUSED, look(Verdict.HOLD), 3601, None),
        (State.PAUSED, look(Verdict.FAIL), 1, Event.FAIL),
    ],
)
def test_what_follows_from_a_look(state: State, seen: Look, patience_s: float, event: Event | None) -> None:
    decision = decide(Position(state=state), seen, policy(), patience_s=patience_s, load_limit_s=120)
    assert (decision.event if decision else None) is event


# Whatever happens, in whatever order, with a crash anywhere


class AnyLife(RuleBasedStateMachine):
    """Ticks, commands and crashes in any order; a crash is a ``Crash`` raised at the n-th seam that is crossed."""

    fuses = st.none() | st.none() | st.integers(0, 9)

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.stage = Stage(self.folder, limits=Limits(load_s=120, note_s=5))
        self.stage.start()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.stage.journal.close()
            shutil.rmtree(self.folder)

    def _do(self, act: Callable[[], Any], fuse: int | None) -> None:
        self.stage.traffic.fuse.left = fuse
        try:
            with suppress(RolloutError):
                act()
            self.stage.traffic.fuse.left = None
        except Crash:
            journaled = self._positions()
            self.stage.restart()
            assert self._positions() == journaled, "a restart moves no rollout"

    def _positions(self) -> dict[str, tuple[Position, int]]:
        return {each.deployment_id: (each.position, each.weight) for each in self.stage.journal.rollouts(MODEL)}

    @rule(
        verdict=st.sampled_from([Verdict.HOLD, Verdict.ERROR, Verdict.PASS, Verdict.FAIL]),
        after_s=st.sampled_from([1, 1, 1, 70, 4000]),
        readiness=st.sampled_from([Readiness.READY] * 4 + [Readiness.LOADING] * 2 + [Readiness.FAILED]),
        fuse=fuses,
    )
    def tick(self, verdict: Verdict, after_s: float, readiness: Readiness, fuse: int | None) -> None:
        self.stage.traffic.readiness = dict.fromkeys(Priority, (readiness, "as the test says"))
        self._do(lambda: self.stage.tick(verdict, after_s=after_s), fuse)
        self.stage.traffic.readiness = dict.fromkeys(Priority, (Readiness.READY, ""))

    @rule(verdicts=st.lists(st.sampled_from([Verdict.PASS, Verdict.PASS, Verdict.ERROR]), max_size=6), fuse=fuses)
    def climb(self, verdicts: list[Verdict], fuse: int | None) -> None:
        for verdict in verdicts:
            self._do(lambda: self.stage.tick(verdict), None)  # noqa: B023 — called at once
        self._do(lambda: self.stage.tick(Verdict.PASS), fuse)

    @rule(candidate=st.integers(1, 4), supersede=st.booleans(), fuse=fuses)
    def start(self, candidate: int, supersede: bool, fuse: int | None) -> None:
        self._do(lambda: self.stage.start(candidate, supersede=supersede), fuse)

    @rule(name=st.sampled_from(["pause", "resume", "resume", "abort", "rollback"]), fuse=fuses)
    def command(self, name: str, fuse: int | None) -> None:
        self._do(lambda: getattr(self.stage.controller, name)(MODEL, actor="ada"), fuse)

    @rule(to=st.sampled_from([None, 20, 100]), fuse=fuses)
    def promote(self, to: int | None, fuse: int | None) -> None:
        self._do(lambda: self.stage.controller.promote(MODEL, actor="ada", to=to), fuse)

    @rule(fuse=fuses)
    def kill(self, fuse: int | None) -> None:
        before = self._positions()
        self._do(self.stage.restart, fuse)
        assert self._positions() == before

    @rule()
    def settle_down(self) -> None:
        """A tick without a crash leaves the serving side and the files as the journal says."""
        self.stage.tick(Verdict.HOLD)
        known, traffic = self.stage.journal.rollouts(MODEL), self.stage.traffic
        active, route = self.stage.journal.active(MODEL), self.stage.route
        if active is None or active.position.state is State.LOADING:
            assert route == Route(model=MODEL, baseline=self.stage.controller.baseline(MODEL))
        else:
            assert (route.deployment_id, route.weight) in ((active.deployment_id, active.weight), (None, 0))
        assert all(each.settled is each.position.ended for each in known)
        needed = {each.candidate for each in known if not each.position.ended or each.position.state is State.PROMOTED}
        assert {version for _, version, _ in traffic.loaded} <= needed, "what no route needs has been unloaded"
        for each in known:
            folder = self.stage.reports / each.deployment_id
            assert read_entries(folder / "journal.jsonl") == self.stage.journal.entries(each.deployment_id)
            assert (folder / "deployment_verdict.md").exists() is each.position.ended

    @precondition(lambda self: hasattr(self, "stage"))
    @invariant()
    def holds(self) -> None:
        known = self.stage.journal.rollouts(MODEL)
        assert sum(not each.position.ended for each in known) <= 1
        for each in known:
            entries = self.stage.journal.entries(each.deployment_id)
            assert verify_chain(entries) == each.hash
            assert (entries[-1]["state"], entries[-1]["weight"]) == (each.position.state, each.weight)
            check_rises(entries)
        promoted = [each for each in known if each.position.state is State.PROMOTED]
        assert self.stage.controller.baseline(MODEL) == (promoted[-1].candidate if promoted else BASELINE)
        assert self.stage.traffic.torn == []
        self._check_route()

    def _check_route(self) -> None:
        """What is published was journaled: never a weight that the rollout has not reached."""
        route = self.stage.route
        if route.deployment_id is None:
            assert (route.candidate, route.weight, route.mirror) == (None, 0, False)
        else:
            entries = self.stage.journal.entries(route.deployment_id)
            assert (route.weight, route.stage) in {(entry["weight"], entry["stage"]) for entry in entries}


def check_rises(entries: list[Entry]) -> None:
    """A weight rises by a journaled PASS, one stage further, or by a person's promotion; at once or once staged."""
    by_pass = by_hand = False
    for before, entry in pairwise(entries):
        if entry["event"] not in ("loaded", "judgement", "restart"):
            by_pass = entry["event"] in ("pass", "pass_last") and entry["judgement"]["verdict"] == "PASS"
            by_hand = entry["event"] in ("promote", "promote_last") and entry["actor"] == "ada"
        if entry["weight"] > before["weight"]:
            one_further = entry["stage"] == before["stage"] + 1
            assert by_hand or (by_pass and one_further), f"entry {entry['seq']}: {entry['event']} raised the weight"


AnyLife.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyLife = AnyLife.TestCase
